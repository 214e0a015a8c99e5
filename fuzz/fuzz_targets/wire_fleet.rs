#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skein_fuzz::bodies::wire_fleet(input));
