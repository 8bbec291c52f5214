//! The only way out: counters, histograms, and the ring. Every refusal is counted by kind and cause.

use crate::maps::{BLANK, DURATIONS, FLOORS, OPS, PASSES, RING, STATS};
use aya_ebpf::{EbpfContext, helpers::bpf_ktime_get_ns};
use aya_log_ebpf::debug;
use tracer_common::{
    cookie::Cookie,
    op::{Key, Op, Wait, flag, kind},
    record::{Header, OpEnded, WaitEnded, record_kind},
    settings::{BUCKETS, bucket},
    stats::{Cause, FIRST_CAUSE, HITS, SLOTS},
};

const EBUSY: u32 = 16;

/// Adds one to a counter that several CPUs, and preempted uprobe programs, share.
#[inline(always)]
fn increment(counter: *mut u64) {
    // SAFETY: the pointer comes from an array map and is valid for the program's life. The result is not used, so the
    // compiler makes a plain atomic add, which every kernel has.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, 1)
    };
}

#[inline(always)]
fn stat(kind: u32, slot: u32) {
    if let Some(counter) = STATS.get_ptr_mut((kind & (kind::LIMIT - 1)) * SLOTS + slot) {
        increment(counter);
    }
}

/// Counts a hit of a begin site.
#[inline(always)]
pub fn hit(kind: u32) {
    stat(kind, HITS);
}

/// Counts a hit of any site in a Go program, whatever comes of it.
#[inline(always)]
pub fn passed(cookie: Cookie) {
    if let Some(counter) = PASSES.get_ptr_mut(cookie.counter()) {
        increment(counter);
    }
}

/// Counts a refusal, and tells of it in the diagnostic log when that is on.
#[inline(always)]
pub fn refuse<C: EbpfContext>(ctx: &C, kind: u32, cause: Cause) {
    stat(kind, FIRST_CAUSE + cause as u32);
    debug!(ctx, "operation kind {} refused, cause {}", kind, cause as u32);
}

/// Counts a duration; whether it reached its floor.
#[inline(always)]
pub fn measure(kind: u32, ns: u64) -> bool {
    let kind = kind & (kind::LIMIT - 1);
    if let Some(counter) = DURATIONS.get_ptr_mut(kind * BUCKETS + (bucket(ns) & (BUCKETS - 1))) {
        increment(counter);
    }
    FLOORS.get(kind).is_some_and(|floor| ns >= *floor)
}

/// Puts a record on the ring.
#[inline(always)]
pub fn send<C: EbpfContext, R: Copy + 'static>(ctx: &C, kind: u32, record: &R) {
    if RING.output::<R>(record, 0).is_err() {
        refuse(ctx, kind, Cause::RingFull);
    }
}

/// Makes a blank entry for an operation and gives it to be filled in place. Its `begin` must be written last, by
/// [`begun`]: until then readers take it for not there yet.
#[inline(always)]
pub fn begin<'a, C: EbpfContext>(ctx: &C, key: &Key) -> Option<&'a mut Op> {
    let kind = key.what & 0xff;
    let made =
        BLANK.get(0).and_then(|blank| OPS.insert(key, blank, 0).ok()).and_then(|()| OPS.get_ptr_mut(key));
    match made {
        // SAFETY: only the actor in the key writes this entry, and it removes it no earlier than at the operation's end.
        Some(op) => {
            let op = unsafe { &mut *op };
            op.key = *key;
            Some(op)
        }
        None => {
            refuse(ctx, kind, Cause::MapFull);
            None
        }
    }
}

/// The operation begins now, and is visible from now on.
#[inline(always)]
pub fn begun(op: &mut Op) {
    // SAFETY: a valid reference; volatile keeps the write behind the others. The helper always succeeds.
    unsafe { core::ptr::write_volatile(&raw mut op.begin, bpf_ktime_get_ns()) };
}

/// A lock wait or hold is over.
#[inline(always)]
pub fn wait_ended<C: EbpfContext>(ctx: &C, wait: &Wait, at: u64) {
    let kind = wait.key.what & 0xff;
    if measure(kind, at.saturating_sub(wait.begin)) {
        let header = Header { kind: record_kind::WAIT_ENDED, size: size_of::<WaitEnded>() as u32, at };
        send(ctx, kind, &WaitEnded { header, wait: *wait });
    }
}

/// Any other operation is over. Written straight into the ring: an [`Op`] does not fit on the stack twice.
#[inline(always)]
pub fn op_ended<C: EbpfContext>(ctx: &C, op: &Op, at: u64) {
    let kind = op.key.what & 0xff;
    // Each EBUSY counts, however quick: fifty of them in a row are an unmount that somebody keeps busy.
    let busy = op.flags & flag::ERRNO != 0 && op.errno == EBUSY;
    if !measure(kind, at.saturating_sub(op.begin)) && !busy {
        return;
    }
    let Some(mut slot) = RING.reserve::<OpEnded>(0) else {
        refuse(ctx, kind, Cause::RingFull);
        return;
    };
    let record = slot.as_mut_ptr();
    // SAFETY: the slot is as large as the record and every byte of it is written before it is submitted.
    unsafe {
        (&raw mut (*record).header).write(Header {
            kind: record_kind::OP_ENDED,
            size: size_of::<OpEnded>() as u32,
            at,
        });
        (&raw mut (*record).op).write(*op);
    }
    slot.submit(0);
}
