//! Embeds the checked-in BPF object, aligned as a parser of ELF files needs it.
//!
//! A plain `cargo build` needs nothing but stable Rust; `cargo xtask bpf` makes the object from source.

use std::{env, fs, path::Path};

fn main() {
    let object = Path::new("../tracer-ebpf/prebuilt/plegscope.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    let out = match env::var("OUT_DIR") {
        Ok(out) => out,
        Err(error) => panic!("OUT_DIR: {error}"),
    };
    if let Err(error) = fs::copy(object, Path::new(&out).join("plegscope.bpf.o")) {
        panic!(
            "the BPF object {} cannot be embedded ({error}); it is part of the repository: restore it with \
             `git checkout -- tracer-ebpf/prebuilt`, or build it with `cargo xtask bpf`",
            object.display()
        );
    }
}
