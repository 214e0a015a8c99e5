#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skein_fuzz::bodies::mesh::mesh_membership(input));
