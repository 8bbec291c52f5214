//! See `plegscope_fuzz::btf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::btf(data));
