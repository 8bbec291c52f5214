//! Unmount, from the call to the moment the process is really back from it.
//!
//! The last reference to a mount is dropped by task work on the way back to user space, after the call has returned
//! inside the kernel:
//!
//! ```text
//! __x64_sys_umount ──────┐ errno         cleanup_mnt ────────────────┐
//! begin                  RETURNED        CLEANING                    RETURNED, end moves here
//! ```
//!
//! So a failed call ends at its return; a successful one ends at the last `cleanup_mnt` on that thread, or at its return
//! when none begins (the mount is pinned elsewhere). That is known only afterwards: the entry stays, marked RETURNED
//! with its end, until the thread unmounts again or exits; user space treats such an entry as over.
//!
//! A thread that is back can run `cleanup_mnt` for another reason: it closes the last file of a mount that was detached
//! earlier. That is no longer this unmount. The registers saved on the way into the kernel tell: as long as the thread is
//! on its way back from the call, they hold the number of that call.

use crate::{
    actor::{goroutine_of, kernel, thread},
    emit, globals,
    maps::{OPS, UNMOUNTING},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user_str_bytes},
    macros::{fentry, fexit, kprobe, kretprobe, tracepoint},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext, TracePointContext},
};
use tracer_common::{
    op::{Key, TEXT, flag, kind},
    stats::Cause,
};

const UNMOUNT: u32 = kind::UNMOUNT;
/// `umount2` on x86-64.
const SYS_UMOUNT2: u64 = 166;

#[inline(always)]
fn key() -> Key {
    let (tgid, tid) = thread();
    Key { tgid, what: UNMOUNT, actor: u64::from(tid), object: 0 }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no arguments and always succeeds.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn begin<C: EbpfContext>(ctx: &C, path: u64, regs: u64, how: u32) {
    emit::hit(UNMOUNT);
    let key = key();
    finish(ctx, &key);
    let Some(op) = emit::begin(ctx, &key) else { return };
    (op.g, op.goid) = goroutine_of(key.tgid).unwrap_or((0, 0));
    op.tid = key.actor as u32;
    op.flags = how;
    // SAFETY: the helper checks the address and stays inside the destination.
    match unsafe { bpf_probe_read_user_str_bytes(path as *const u8, &mut op.text) } {
        Ok(read) => {
            op.text_len = read.len() as u32;
            if read.len() == TEXT - 1 {
                // Cut at its end: not a tail, so not usable to name a container.
                op.flags |= flag::NO_TEXT;
            }
        }
        Err(_) => {
            op.flags |= flag::NO_TEXT;
            emit::refuse(ctx, UNMOUNT, Cause::ReadUser);
        }
    }
    let _ = UNMOUNTING.insert(&bpf_get_current_pid_tgid(), &regs, 0);
    emit::begun(op);
}

#[inline(always)]
fn returned<C: EbpfContext>(ctx: &C, result: i64) {
    let key = key();
    let Some(op) = OPS.get_ptr_mut(&key) else {
        emit::refuse(ctx, UNMOUNT, Cause::NoBegin);
        return;
    };
    // SAFETY: only this thread writes its entry, and it is not used after its removal.
    let op = unsafe { &mut *op };
    op.end = now();
    if result < 0 {
        op.errno = -result as u32;
        op.flags |= flag::ERRNO | flag::FAILED | flag::RETURNED;
        finish(ctx, &key);
    } else {
        op.flags |= flag::RETURNED;
    }
}

#[inline(always)]
fn cleaning(on: bool) {
    if let Some(op) = OPS.get_ptr_mut(&key()) {
        // SAFETY: only this thread writes its entry.
        let op = unsafe { &mut *op };
        if !on && op.flags & flag::CLEANING != 0 {
            op.end = now();
            // The call has returned, even where its kretprobe was dropped for want of an instance.
            op.flags = (op.flags | flag::RETURNED) & !flag::CLEANING;
        } else if on && on_the_way_back() {
            op.flags |= flag::CLEANING;
        }
    }
}

/// Whether this thread has not been in user space since it called unmount; yes when that cannot be told.
#[inline(always)]
fn on_the_way_back() -> bool {
    // SAFETY: the value is only read, and by copy.
    match unsafe { UNMOUNTING.get(&bpf_get_current_pid_tgid()) } {
        None | Some(0) => true,
        Some(regs) => {
            kernel::<u64>(regs + u64::from(globals::off_regs_orig_ax())).is_none_or(|n| n == SYS_UMOUNT2)
        }
    }
}

/// Tells the end of an unmount that has returned, and forgets it.
#[inline(always)]
pub fn finish<C: EbpfContext>(ctx: &C, key: &Key) {
    // SAFETY: only this thread writes its entry, and it is not used after its removal.
    let Some(op) = (unsafe { OPS.get(key) }) else { return };
    // A tracepoint alone knows when the call returned, not when the process was back, and nobody knows it when the
    // kretprobe of `cleanup_mnt` was dropped for want of an instance: user space asks /proc for that.
    let known = op.flags & (flag::TRACEPOINT | flag::CLEANING) == 0 || op.flags & flag::ERRNO != 0;
    let end = (op.flags & flag::RETURNED != 0 && known).then_some(op.end);
    super::super_block::ends_with_unmount(ctx, key.tgid, key.actor as u32, end);
    if let Some(end) = end {
        emit::op_ended(ctx, op, end);
    }
    let _ = OPS.remove(key);
    let _ = UNMOUNTING.remove(&bpf_get_current_pid_tgid());
}

/// Path argument of `__x64_sys_umount(const struct pt_regs *)`.
#[inline(always)]
fn path_of(regs: u64) -> u64 {
    kernel(regs + u64::from(globals::off_regs_di())).unwrap_or(0)
}

/// `__x64_sys_umount` begins.
#[fentry(function = "__x64_sys_umount")]
pub fn fentry_unmount(ctx: FEntryContext) -> u32 {
    let regs = ctx.arg::<u64>(0);
    begin(&ctx, path_of(regs), regs, flag::FENTRY);
    0
}

/// `__x64_sys_umount` has returned inside the kernel.
#[fexit(function = "__x64_sys_umount")]
pub fn fexit_unmount(ctx: FExitContext) -> u32 {
    returned(&ctx, ctx.arg::<i64>(1));
    0
}

/// `cleanup_mnt(struct mount *)` begins.
#[fentry(function = "cleanup_mnt")]
pub fn fentry_cleanup_mnt(_ctx: FEntryContext) -> u32 {
    cleaning(true);
    0
}

/// `cleanup_mnt` has ended.
#[fexit(function = "cleanup_mnt")]
pub fn fexit_cleanup_mnt(_ctx: FExitContext) -> u32 {
    cleaning(false);
    0
}

/// `__x64_sys_umount` begins.
#[kprobe]
pub fn kprobe_unmount(ctx: ProbeContext) -> u32 {
    let regs = ctx.arg::<u64>(0).unwrap_or(0);
    begin(&ctx, path_of(regs), regs, flag::KPROBE);
    0
}

/// `__x64_sys_umount` has returned inside the kernel.
#[kretprobe]
pub fn kretprobe_unmount(ctx: RetProbeContext) -> u32 {
    returned(&ctx, ctx.ret::<i64>());
    0
}

/// `cleanup_mnt` begins.
#[kprobe]
pub fn kprobe_cleanup_mnt(_ctx: ProbeContext) -> u32 {
    cleaning(true);
    0
}

/// `cleanup_mnt` has ended.
#[kretprobe]
pub fn kretprobe_cleanup_mnt(_ctx: RetProbeContext) -> u32 {
    cleaning(false);
    0
}

/// Tracepoint `syscalls:sys_enter_umount`: path pointer at 16. The last resort: it taxes every system call of the node.
#[tracepoint]
pub fn tracepoint_unmount(ctx: TracePointContext) -> u32 {
    // SAFETY: the offset lies inside this tracepoint's record.
    let path = unsafe { ctx.read_at::<u64>(16) }.unwrap_or(0);
    begin(&ctx, path, 0, flag::TRACEPOINT);
    0
}

/// Tracepoint `syscalls:sys_exit_umount`: result at 16. Used for the errno; a success goes on behind it, and where no
/// `cleanup_mnt` probe can tell for how long, user space asks `/proc/TID/syscall`.
#[tracepoint]
pub fn tracepoint_unmount_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: the offset lies inside this tracepoint's record.
    if let Ok(result) = unsafe { ctx.read_at::<i64>(16) } {
        returned(&ctx, result);
    }
    0
}
