//! See `plegscope_fuzz::proc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::proc(data));
