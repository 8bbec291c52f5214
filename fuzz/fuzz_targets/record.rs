//! See `plegscope_fuzz::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::record(data));
