//! Super-block shutdown and sync, with device and file-system type.
//!
//! First choice fentry/fexit, then kprobe/kretprobe. On a kernel with neither, two tracepoints tell at least that a
//! thread inside an unmount syncs, and which device; the end is then that of the unmount.

use crate::{
    actor::{goroutine_of, kernel, thread},
    emit, globals,
    maps::{OPS, SUPER_STACK, SuperCall, SuperStack, UNMOUNTING},
};
use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
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

/// Forgets the calls of this thread that must have returned unseen, because a frame ends at `sp` now: the kernel has few
/// kretprobe instances (on 5.10 without preemption one for each CPU) and drops the returns of calls beyond them. Such an
/// end is not told, since nobody knows when it was; user space sees that the operation is no longer there.
#[inline(always)]
fn drop_unseen(stack: &mut SuperStack, below: u64, tgid: u32, tid: u32) {
    for _ in 0..4 {
        let Some(last) = stack.depth.checked_sub(1) else { return };
        let Some(call) = stack.calls.get((last & 3) as usize) else { return };
        if call.sp >= below {
            return;
        }
        let key = Key { tgid, what: call.kind as u32, actor: u64::from(tid), object: call.block };
        let _ = OPS.remove(&key);
        stack.depth = last;
    }
}

/// The running thread exits: whatever it called has returned.
#[inline(always)]
pub fn forget_calls() {
    let who = bpf_get_current_pid_tgid();
    if let Some(stack) = SUPER_STACK.get_ptr_mut(&who) {
        let (tgid, tid) = thread();
        // SAFETY: only this thread writes its entry, and it is not used after its removal.
        drop_unseen(unsafe { &mut *stack }, u64::MAX, tgid, tid);
        let _ = SUPER_STACK.remove(&who);
    }
}

#[inline(always)]
fn kprobe_begin(ctx: &ProbeContext, kind: u32) {
    let Some(block) = ctx.arg::<u64>(0) else { return };
    let sp = stack_pointer(ctx);
    let who = bpf_get_current_pid_tgid();
    let call = SuperCall { kind: u64::from(kind), block, sp };
    if let Some(stack) = SUPER_STACK.get_ptr_mut(&who) {
        // SAFETY: only this thread writes its entry.
        let stack = unsafe { &mut *stack };
        let (tgid, tid) = thread();
        drop_unseen(stack, sp + 1, tgid, tid);
        if stack.depth >= 4 {
            // Deeper than any file system nests: without a place here its end could not be told.
            emit::refuse(ctx, kind, Cause::MapFull);
            return;
        }
        if let Some(slot) = stack.calls.get_mut((stack.depth & 3) as usize) {
            *slot = call;
        }
        stack.depth += 1;
    } else {
        let none = SuperCall { kind: 0, block: 0, sp: 0 };
        if SUPER_STACK.insert(&who, &SuperStack { depth: 1, calls: [call, none, none, none] }, 0).is_err() {
            emit::refuse(ctx, kind, Cause::MapFull);
            return;
        }
    }
    begin(ctx, kind, block, block, flag::KPROBE);
}

#[inline(always)]
fn kretprobe_end(ctx: &RetProbeContext, kind: u32) {
    let who = bpf_get_current_pid_tgid();
    let Some(stack) = SUPER_STACK.get_ptr_mut(&who) else {
        emit::refuse(ctx, kind, Cause::NoBegin);
        return;
    };
    // SAFETY: only this thread writes its entry, and it is not used after its removal.
    let stack = unsafe { &mut *stack };
    // The return address has been taken off the stack.
    let sp = stack_pointer(ctx) - 8;
    let (tgid, tid) = thread();
    drop_unseen(stack, sp, tgid, tid);
    let call = stack.depth.checked_sub(1).and_then(|last| stack.calls.get((last & 3) as usize)).copied();
    match call {
        Some(call) if call.sp == sp && call.kind == u64::from(kind) => {
            stack.depth -= 1;
            end(ctx, kind, call.block);
        }
        _ => emit::refuse(ctx, kind, Cause::NoBegin),
    }
    if stack.depth == 0 {
        let _ = SUPER_STACK.remove(&who);
    }
}

#[inline(always)]
fn stack_pointer<C: EbpfContext>(ctx: &C) -> u64 {
    // SAFETY: the context of a kprobe program is a `pt_regs`.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.as_ptr().cast::<pt_regs>()).rsp) }
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
