//! Embeds the checked-in BPF object, so that a plain `cargo build` on stable Rust needs nothing else.
//!
//! The object is copied to `$OUT_DIR/plegscope.bpf.o`, for `aya::include_bytes_aligned!`: an ELF parser needs it
//! aligned. `cargo xtask bpf` makes the object from source; a check compares the two.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where an ELF header names the machine, and the number of BPF, little-endian.
const ELF_MACHINE: (std::ops::Range<usize>, [u8; 2]) = (18..20, [247, 0]);

fn main() -> Result<(), Box<dyn Error>> {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tracer-ebpf/prebuilt/plegscope.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    // What a plegscope keeps of programs is believed by the very same build only.
    println!("cargo::rustc-link-arg-bins=-Wl,--build-id=sha1");
    let seen = match fs::read(&object) {
        Ok(bytes) if is_bpf(&bytes) => {
            fs::write(PathBuf::from(env::var("OUT_DIR")?).join("plegscope.bpf.o"), bytes)?;
            return Ok(());
        }
        Ok(bytes) => format!("{} bytes that are not an ELF object for BPF", bytes.len()),
        Err(error) => error.to_string(),
    };
    println!(
        "cargo::error=the BPF object {} cannot be embedded: {seen}. It is part of the repository: restore it with \
         `git checkout -- tracer-ebpf/prebuilt`, or build it from source with `cargo xtask bpf`.",
        object.display()
    );
    Ok(())
}

fn is_bpf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF") && bytes.get(ELF_MACHINE.0) == Some(&ELF_MACHINE.1)
}
