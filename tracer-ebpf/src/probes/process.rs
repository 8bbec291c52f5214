//! Process life: what can no longer end is told and forgotten.

use crate::{
    actor::thread,
    emit,
    maps::{PROCESSES, UNMOUNTING},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    op::{Key, kind},
    record::{Header, ProcessGone, record_kind},
};

#[inline(always)]
fn gone<C: EbpfContext>(ctx: &C, tgid: u32) {
    // SAFETY: the value is only looked at for presence.
    if unsafe { PROCESSES.get(&tgid) }.is_none() {
        return;
    }
    // SAFETY: the helper takes no arguments and always succeeds.
    let at = unsafe { bpf_ktime_get_ns() };
    let header = Header { kind: record_kind::PROCESS_GONE, size: size_of::<ProcessGone>() as u32, at };
    emit::send(ctx, 0, &ProcessGone { header, tgid, pad: 0 });
}

/// Raw tracepoint `sched_process_exit`, once per thread. The leader's exit is told; user space checks that the whole
/// group is gone, since a leader can leave before its threads.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn tracepoint_exit(ctx: RawTracePointContext) -> i32 {
    let (tgid, tid) = thread();
    let who = bpf_get_current_pid_tgid();
    let key = Key { tgid, what: kind::UNMOUNT, actor: u64::from(tid), object: 0 };
    super::unmount::finish(&ctx, &key);
    // An unmount in a Go function that was killed has no entry of this thread, the sync inside it has.
    super::super_block::ends_with_unmount(&ctx, tgid, tid, None);
    let _ = UNMOUNTING.remove(&who);
    super::super_block::forget_calls();
    if tgid == tid {
        gone(&ctx, tgid);
    }
    0
}

/// Raw tracepoint `sched_process_exec`: this process is now another program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn tracepoint_exec(ctx: RawTracePointContext) -> i32 {
    let (tgid, _) = thread();
    gone(&ctx, tgid);
    0
}
