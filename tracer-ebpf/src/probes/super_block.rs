//! Super-block shutdown and sync, with device and file-system type.
//!
//! First choice fentry/fexit, then kprobe/kretprobe. On a kernel with neither, two tracepoints tell at least that a
//! thread inside an unmount syncs, and which device; the end is then that of the unmount.

use crate::{
    actor::{goroutine_of, kernel, thread},
    emit, globals,
    maps::{OPS, SUPER_STACK, SuperStack, UNMOUNTING},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel_str_bytes},
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint},
    programs::{FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use tracer_common::{
    op::{Key, flag, kind},
    stats::Cause,
};

/// `WB_REASON_SYNC` of the kernel's `enum wb_reason`, unchanged from 5.10 to 7.x.
const REASON_SYNC: i32 = 2;

#[inline(always)]
fn begin<C: EbpfContext>(ctx: &C, kind: u32, block: u64, nested: u64, how: u32) {
    emit::hit(kind);
    let (tgid, tid) = thread();
    let key = Key { tgid, what: kind, actor: u64::from(tid), object: nested };
    let Some(op) = emit::begin(ctx, &key) else { return };
    (op.g, op.goid) = goroutine_of(tgid).unwrap_or((0, 0));
    op.object = block;
    op.tid = tid;
    op.flags = how;
    match kernel::<u32>(block + u64::from(globals::off_s_dev())) {
        Some(dev) => op.dev = dev,
        None => emit::refuse(ctx, kind, Cause::ReadKernel),
    }
    if let Some(fs) = kernel::<u64>(block + u64::from(globals::off_s_type()))
        && let Some(name) = kernel::<u64>(fs + u64::from(globals::off_fs_name()))
        // SAFETY: the helper checks the address and stays inside the destination.
        && let Ok(read) = unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, &mut op.name) }
    {
        op.name_len = read.len() as u32;
    }
    emit::begun(op);
}

#[inline(always)]
fn end<C: EbpfContext>(ctx: &C, kind: u32, block: u64) {
    let (tgid, tid) = thread();
    let key = Key { tgid, what: kind, actor: u64::from(tid), object: block };
    // SAFETY: only this thread writes its entry, and it is not used after its removal.
    let Some(op) = (unsafe { OPS.get(&key) }) else {
        emit::refuse(ctx, kind, Cause::NoBegin);
        return;
    };
    // SAFETY: the helper takes no arguments and always succeeds.
    emit::op_ended(ctx, op, unsafe { bpf_ktime_get_ns() });
    let _ = OPS.remove(&key);
}

/// Ends what a tracepoint began on this thread: the unmount around it was over at `at`. Without a time nothing is told,
/// it is only forgotten; user space sees that it is no longer there.
#[inline(always)]
pub fn ends_with_unmount<C: EbpfContext>(ctx: &C, tgid: u32, tid: u32, at: Option<u64>) {
    let key = Key { tgid, what: kind::SYNC, actor: u64::from(tid), object: 0 };
    // SAFETY: only this thread writes its entry, and it is not used after its removal.
    if let Some(op) = unsafe { OPS.get(&key) } {
        if let Some(at) = at {
            emit::op_ended(ctx, op, at);
        }
        let _ = OPS.remove(&key);
    }
}

#[inline(always)]
fn fentry_begin(ctx: &FEntryContext, kind: u32) {
    let block = ctx.arg::<u64>(0);
    begin(ctx, kind, block, block, flag::FENTRY);
}

/// `generic_shutdown_super(struct super_block *)` begins.
#[fentry(function = "generic_shutdown_super")]
pub fn fentry_super_shutdown(ctx: FEntryContext) -> u32 {
    fentry_begin(&ctx, kind::SUPER_SHUTDOWN);
    0
}

/// `generic_shutdown_super` has ended.
#[fexit(function = "generic_shutdown_super")]
pub fn fexit_super_shutdown(ctx: FExitContext) -> u32 {
    end(&ctx, kind::SUPER_SHUTDOWN, ctx.arg::<u64>(0));
    0
}

/// `sync_filesystem(struct super_block *)` begins.
#[fentry(function = "sync_filesystem")]
pub fn fentry_sync(ctx: FEntryContext) -> u32 {
    fentry_begin(&ctx, kind::SYNC);
    0
}

/// `sync_filesystem` has ended.
#[fexit(function = "sync_filesystem")]
pub fn fexit_sync(ctx: FExitContext) -> u32 {
    end(&ctx, kind::SYNC, ctx.arg::<u64>(0));
    0
}

#[inline(always)]
fn push(block: u64) {
    let who = bpf_get_current_pid_tgid();
    if let Some(stack) = SUPER_STACK.get_ptr_mut(&who) {
        // SAFETY: only this thread writes its entry.
        let stack = unsafe { &mut *stack };
        if let Some(slot) = stack.blocks.get_mut((stack.depth & 3) as usize) {
            *slot = block;
        }
        stack.depth += 1;
    } else {
        let _ = SUPER_STACK.insert(&who, &SuperStack { depth: 1, blocks: [block, 0, 0, 0] }, 0);
    }
}

#[inline(always)]
fn pop() -> Option<u64> {
    let who = bpf_get_current_pid_tgid();
    let stack = SUPER_STACK.get_ptr_mut(&who)?;
    // SAFETY: only this thread writes its entry, and it is not used after its removal.
    let stack = unsafe { &mut *stack };
    stack.depth = stack.depth.checked_sub(1)?;
    let block = *stack.blocks.get((stack.depth & 3) as usize)?;
    if stack.depth == 0 {
        let _ = SUPER_STACK.remove(&who);
    }
    Some(block)
}

#[inline(always)]
fn kprobe_begin(ctx: &ProbeContext, kind: u32) {
    if let Some(block) = ctx.arg::<u64>(0) {
        push(block);
        begin(ctx, kind, block, block, flag::KPROBE);
    }
}

#[inline(always)]
fn kretprobe_end(ctx: &RetProbeContext, kind: u32) {
    if let Some(block) = pop() {
        end(ctx, kind, block);
    }
}

/// `generic_shutdown_super` begins.
#[kprobe]
pub fn kprobe_super_shutdown(ctx: ProbeContext) -> u32 {
    kprobe_begin(&ctx, kind::SUPER_SHUTDOWN);
    0
}

/// `generic_shutdown_super` has ended.
#[kretprobe]
pub fn kretprobe_super_shutdown(ctx: RetProbeContext) -> u32 {
    kretprobe_end(&ctx, kind::SUPER_SHUTDOWN);
    0
}

/// `sync_filesystem` begins.
#[kprobe]
pub fn kprobe_sync(ctx: ProbeContext) -> u32 {
    kprobe_begin(&ctx, kind::SYNC);
    0
}

/// `sync_filesystem` has ended.
#[kretprobe]
pub fn kretprobe_sync(ctx: RetProbeContext) -> u32 {
    kretprobe_end(&ctx, kind::SYNC);
    0
}

#[inline(always)]
fn seen_in_unmount(ctx: &RawTracePointContext, block: u64) {
    let who = bpf_get_current_pid_tgid();
    // SAFETY: the value is only looked at for presence.
    if block == 0 || unsafe { UNMOUNTING.get(&who) }.is_none() {
        return;
    }
    let (tgid, tid) = thread();
    let key = Key { tgid, what: kind::SYNC, actor: u64::from(tid), object: 0 };
    // SAFETY: the value is only looked at for presence.
    if unsafe { OPS.get(&key) }.is_none() {
        begin(ctx, kind::SYNC, block, 0, flag::TRACEPOINT | flag::ENDS_WITH_UNMOUNT);
    }
}

/// Raw tracepoint `writeback_queue(struct bdi_writeback *, struct wb_writeback_work *)`: this thread asks for dirty
/// pages to be written.
#[raw_tracepoint(tracepoint = "writeback_queue")]
pub fn tracepoint_writeback_queue(ctx: RawTracePointContext) -> i32 {
    let work = ctx.arg::<u64>(1);
    if kernel::<i32>(work + u64::from(globals::off_work_reason())) == Some(REASON_SYNC) {
        seen_in_unmount(&ctx, kernel(work + u64::from(globals::off_work_sb())).unwrap_or(0));
    }
    0
}

/// Raw tracepoint `ext4_sync_fs(struct super_block *, int wait)`.
#[raw_tracepoint(tracepoint = "ext4_sync_fs")]
pub fn tracepoint_ext4_sync_fs(ctx: RawTracePointContext) -> i32 {
    seen_in_unmount(&ctx, ctx.arg::<u64>(0));
    0
}
