//! See `plegscope_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::config(data));
