//! See `plegscope_fuzz::capture`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::capture(data));
