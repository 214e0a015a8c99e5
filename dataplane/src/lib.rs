//! Skein's data process: shards, sessions, routing and sinks.
