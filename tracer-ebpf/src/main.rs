//! The kernel half of plegscope (a placeholder which proves the build).
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{map, tracepoint},
    maps::HashMap,
    programs::TracePointContext,
};
use aya_log_ebpf::debug;

/// A value type, so that the object's BTF holds a struct.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Placeholder {
    /// When.
    pub at: u64,
    /// Thread.
    pub tid: u32,
    /// Explicit padding.
    pub pad: u32,
}

#[map]
static SEEN: HashMap<u32, Placeholder> = HashMap::with_max_entries(16, 0);

#[tracepoint]
fn placeholder(ctx: TracePointContext) -> u32 {
    let tid = aya_ebpf::helpers::bpf_get_current_pid_tgid() as u32;
    // SAFETY: the helper has no preconditions.
    let at = unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_ns() };
    if SEEN.insert(&tid, &Placeholder { at, tid, pad: 0 }, 0).is_err() {
        debug!(&ctx, "map full at {}", tid);
    }
    0
}

/// An endless loop, so that the verifier rejects a program in which a panic can be reached.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
