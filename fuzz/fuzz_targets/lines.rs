//! See `plegscope_fuzz::lines`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::lines(data));
