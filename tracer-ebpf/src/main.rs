//! plegscope's kernel half: remembers what is in flight on the node, and tells what lasted longer than its floor.
//!
//! [`maps`] holds all state, [`emit`] is the only way out, [`globals`] is what user space decided before loading,
//! [`actor`] tells who is running; `probes` has one file per family.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(
    internal_features,
    reason = "an atomic add whose result is not used has no stable form for this target"
)]

mod abi;
mod actor;
mod emit;
mod globals;
mod maps;
mod probes {
    //! One file per probe family.
    pub mod golang;
    pub mod process;
    pub mod super_block;
    pub mod unmount;
}

/// An endless loop: the verifier rejects the program when a panic can be reached.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets only GPL-compatible programs use the helpers we need.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
