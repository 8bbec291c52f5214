//! See `plegscope_fuzz::elf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plegscope_fuzz::elf(data));
