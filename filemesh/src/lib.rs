//! Skein's file mesh: manifests, peer wire, transfer state machines and the file engine.
