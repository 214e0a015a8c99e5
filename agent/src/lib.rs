//! Skein's agent: tasks, processes, collectors, spool and file peer on each host.
