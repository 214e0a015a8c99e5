//! Skein: the server and the operator's command line in one binary.

fn main() {}
