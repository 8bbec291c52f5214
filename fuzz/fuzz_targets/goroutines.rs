//! See `plegscope_fuzz::goroutines`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::goroutines(data));
