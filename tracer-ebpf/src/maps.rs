//! All maps, in one place. Sizes are fixed: nothing a workload does can make them grow.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, ProgramArray, RingBuf},
};
use tracer_common::{
    cookie::COUNTERS,
    op::{Key, Op, Wait, kind},
    settings::{BUCKETS, Process, Site},
    stats::SLOTS,
};

/// Records for user space. 1 MiB: twice mapped, it costs 2 MiB of memory.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Lock waits and holds in flight. Never an LRU map: that would evict the oldest, which is the one we look for.
#[map]
pub static WAITS: HashMap<Key, Wait> = HashMap::with_max_entries(16384, 0);

/// All other operations in flight.
#[map]
pub static OPS: HashMap<Key, Op> = HashMap::with_max_entries(4096, 0);

/// One blank operation, never written: an [`Op`] does not fit on the stack beside the registers.
#[map]
pub static BLANK: Array<Op> = Array::with_max_entries(1, 0);

/// Threads that are inside an unmount: `pid_tgid` -> address of the registers that the thread saved on its way into the
/// kernel; 0 when not known.
#[map]
pub static UNMOUNTING: HashMap<u64, u64> = HashMap::with_max_entries(4096, 0);

/// Super blocks of the kretprobe family, innermost last: `pid_tgid` -> stack.
#[map]
pub static SUPER_STACK: HashMap<u64, SuperStack> = HashMap::with_max_entries(1024, 0);

/// Processes that take part, put here by user space.
#[map]
pub static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(4096, 0);

/// Cookies by instruction address, for kernels without attach cookies; filled by user space.
#[map]
pub static SITES: HashMap<Site, u64> = HashMap::with_max_entries(4096, 0);

/// Floor in ns per kind.
#[map]
pub static FLOORS: Array<u64> = Array::with_max_entries(kind::LIMIT, 0);

/// Durations of everything, also below the floor: kind * BUCKETS + bucket.
#[map]
pub static DURATIONS: Array<u64> = Array::with_max_entries(kind::LIMIT * BUCKETS, 0);

/// Hits and refusals: kind * SLOTS + slot.
#[map]
pub static STATS: Array<u64> = Array::with_max_entries(kind::LIMIT * SLOTS, 0);

/// Hits of all sites in Go programs, also of those that come to nothing: what looking costs. See [`Cookie::counter`].
///
/// [`Cookie::counter`]: tracer_common::cookie::Cookie::counter
#[map]
pub static PASSES: Array<u64> = Array::with_max_entries(COUNTERS, 0);

/// Always empty: see `own_stack` in the probes of Go programs.
#[map]
pub static NOWHERE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// A kretprobe has no arguments, so the kprobe leaves here what began.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SuperStack {
    /// Number of entries in use.
    pub depth: u64,
    /// What has begun, outermost first.
    pub calls: [SuperCall; 4],
}

/// One call of a probed function.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SuperCall {
    /// Operation kind.
    pub kind: u64,
    /// Its super block.
    pub block: u64,
    /// Stack pointer at the call, where the return address lies.
    pub sp: u64,
}
