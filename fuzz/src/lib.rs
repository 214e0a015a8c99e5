//! Fuzzing of every decoder that reads bytes from outside. The bodies are plain functions, so the
//! same properties run three times: under libFuzzer (`make fuzz`), over the committed seeds and
//! over seeded mutations of valid samples in plain `cargo test` (cli/tests/decoders.rs includes
//! [`bodies`] and [`samples`]).

pub mod bodies;
pub mod samples;
