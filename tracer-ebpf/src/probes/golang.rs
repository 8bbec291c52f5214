//! uprobes in Go programs: lock waits, write locks, and named operations.
//!
//! One program serves every function of a family; what differs travels in the site's cookie. A hit costs about one
//! map update, since the text of an operation is read only where there is one.

use crate::{
    actor::{Site, thread, user_word},
    emit, globals,
    maps::{NOWHERE, OPS, PROCESSES, SITES, UNMOUNTING, WAITS},
};
use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user_buf},
    macros::uprobe,
    programs::ProbeContext,
};
use tracer_common::{
    cookie::{Cookie, text},
    op::{Key, NAME, Op, TEXT, Wait, flag, kind},
    record::{Header, Woken, record_kind},
    settings,
    stats::Cause,
};

const LOCK_WAIT: u32 = kind::LOCK_WAIT;
const LOCK_HOLD: u32 = kind::LOCK_HOLD;
/// `semaMutexProfile | semaBlockProfile`: what `sync.Mutex` and `sync.RWMutex` pass to `semacquire1` in Go 1.15-1.27.
const PROFILE_OF_LOCKS: u64 = 3;
/// Bytes of a container id that CRI makes.
const ID: u64 = 64;

/// Keeps the program's variables on the stack of the thread that runs it; to be called in each program of this file.
///
/// Since 6.13 the kernel gives programs of the kprobe type a stack of their own, one per CPU, taking it that they cannot
/// be preempted. In uprobes they can be since 6.0: where the kernel is preemptible, two threads on one CPU would write
/// over each other's variables, pointers among them (the kernel panics of opentelemetry-ebpf-instrumentation issue
/// 3056). A program that contains a tail call gets no such stack (`check_max_stack_depth` in the verifier); this one is
/// never made, and no instruction of it is left when the verifier is done.
#[inline(always)]
fn own_stack(ctx: &ProbeContext) {
    if globals::never() != 0 {
        // SAFETY: the map is always empty, so the call comes back; and it is never made.
        unsafe { NOWHERE.tail_call(ctx, 0) };
    }
}

/// The site's cookie, and the hit is counted.
#[inline(always)]
fn cookie<C: EbpfContext>(ctx: &C, end: bool) -> Option<Cookie> {
    let cookie = find_cookie(ctx, end)?;
    emit::passed(cookie);
    Some(cookie)
}

/// From the attachment, or before kernel 5.15 by the address of the instruction.
#[inline(always)]
fn find_cookie<C: EbpfContext>(ctx: &C, end: bool) -> Option<Cookie> {
    if globals::have_cookie() != 0 {
        // SAFETY: the helper only reads the context.
        return Some(Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) }));
    }
    // SAFETY: the context of a uprobe program is a `pt_regs`.
    let address = unsafe { (*ctx.as_ptr().cast::<pt_regs>()).rip };
    let (tgid, _) = thread();
    // SAFETY: the values are only read, and only by copy.
    let found = unsafe {
        PROCESSES.get(&tgid).and_then(|process| {
            let site = settings::Site {
                binary: process.binary,
                end: end as u32,
                address: address.wrapping_sub(process.bias),
            };
            SITES.get(&site).copied()
        })
    };
    if found.is_none() {
        emit::refuse(ctx, 0, Cause::UnknownSite);
    }
    found.map(Cookie)
}

#[inline(always)]
fn goid(site: &Site, g: u64) -> u64 {
    let offset = site.cookie.goid_offset();
    if offset == 0 { 0 } else { user_word(g + offset).unwrap_or(0) }
}

/// `runtime.semacquire1(addr *uint32, lifo bool, profile semaProfileFlags, …)` begins.
#[uprobe]
pub fn go_lock_wait(ctx: ProbeContext) -> u32 {
    own_stack(&ctx);
    try_lock_wait(&ctx);
    0
}

#[inline(always)]
fn try_lock_wait(ctx: &ProbeContext) -> Option<()> {
    let site = Site::new(ctx, cookie(ctx, false)?)?;
    if site.word(2)? & PROFILE_OF_LOCKS != PROFILE_OF_LOCKS {
        return None;
    }
    let semaphore = site.word(0)?;
    remember_lock(ctx, &site, LOCK_WAIT, semaphore, 0)
}

/// `sync.(*RWMutex).Lock()` begins: from here on this goroutine holds the write lock, or waits for it.
#[uprobe]
pub fn go_write_lock(ctx: ProbeContext) -> u32 {
    own_stack(&ctx);
    try_write_lock(&ctx);
    0
}

#[inline(always)]
fn try_write_lock(ctx: &ProbeContext) -> Option<()> {
    let site = Site::new(ctx, cookie(ctx, false)?)?;
    let base = site.word(0)?;
    remember_lock(ctx, &site, LOCK_HOLD, base, base)
}

#[inline(always)]
fn remember_lock(ctx: &ProbeContext, site: &Site, kind: u32, object: u64, key_object: u64) -> Option<()> {
    emit::hit(kind);
    let Some(g) = site.g() else {
        emit::refuse(ctx, kind, Cause::NoGoroutine);
        return None;
    };
    let (tgid, tid) = thread();
    let key = Key { tgid, what: kind, actor: g, object: key_object };
    // SAFETY: the helper takes no arguments and always succeeds.
    let begin = unsafe { bpf_ktime_get_ns() };
    let wait = Wait { key, begin, goid: goid(site, g), object, tid, flags: flag::GOROUTINE };
    if WAITS.insert(&key, &wait, 0).is_err() {
        emit::refuse(ctx, kind, Cause::MapFull);
    }
    Some(())
}

/// `runtime.semacquire1` is about to return: the goroutine has the semaphore.
#[uprobe]
pub fn go_lock_wait_end(ctx: ProbeContext) -> u32 {
    own_stack(&ctx);
    try_lock_end(&ctx, LOCK_WAIT);
    0
}

/// `sync.(*RWMutex).Unlock()` begins. The lock is told released here, a moment before it is.
#[uprobe]
pub fn go_write_unlock(ctx: ProbeContext) -> u32 {
    own_stack(&ctx);
    try_lock_end(&ctx, LOCK_HOLD);
    0
}

#[inline(always)]
fn try_lock_end(ctx: &ProbeContext, kind: u32) -> Option<()> {
    let site = Site::new(ctx, cookie(ctx, kind == LOCK_WAIT)?)?;
    let (tgid, _) = thread();
    let object = if kind == LOCK_HOLD { site.word(0)? } else { 0 };
    let key = Key { tgid, what: kind, actor: site.g()?, object };
    // SAFETY: only this goroutine writes its entry; the reference is not used after the removal.
    let wait = *unsafe { WAITS.get(&key) }?;
    // A miss is normal: waits for other semaphores than locks are not remembered.
    let _ = WAITS.remove(&key);
    // SAFETY: the helper takes no arguments and always succeeds.
    emit::wait_ended(ctx, &wait, unsafe { bpf_ktime_get_ns() });
    Some(())
}

/// `runtime.readyWithTime(s *sudog, …)`: the goroutine at `s.g` is made runnable by this one.
#[uprobe]
pub fn go_wake(ctx: ProbeContext) -> u32 {
    own_stack(&ctx);
    try_wake(&ctx);
    0
}

#[inline(always)]
fn try_wake(ctx: &ProbeContext) -> Option<()> {
    let site = Site::new(ctx, cookie(ctx, false)?)?;
    let waiter = user_word(site.word(0)?)?;
    let (tgid, by_tid) = thread();
    let key = Key { tgid, what: LOCK_WAIT, actor: waiter, object: 0 };
    // SAFETY: the entry is only read, and by copy.
    let wait = *unsafe { WAITS.get(&key) }?;
    // SAFETY: the helper takes no arguments and always succeeds.
    let at = unsafe { bpf_ktime_get_ns() };
    if !crate::maps::FLOORS.get(LOCK_WAIT).is_some_and(|floor| at.saturating_sub(wait.begin) >= *floor) {
        return None;
    }
    let by = site.g().unwrap_or(0);
    let by_goid = if by == 0 { 0 } else { goid(&site, by) };
    let header = Header { kind: record_kind::WOKEN, size: size_of::<Woken>() as u32, at };
    emit::send(ctx, LOCK_WAIT, &Woken { header, wait, by, by_goid, by_tid, pad: 0 });
    Some(())
}

/// A named Go function begins.
#[uprobe]
pub fn go_operation(ctx: ProbeContext) -> u32 {
    own_stack(&ctx);
    try_operation(&ctx);
    0
}

#[inline(always)]
fn try_operation(ctx: &ProbeContext) -> Option<()> {
    let site = Site::new(ctx, cookie(ctx, false)?)?;
    let cookie = site.cookie;
    let kind = cookie.kind();
    emit::hit(kind);
    let Some(g) = site.g() else {
        emit::refuse(ctx, kind, Cause::NoGoroutine);
        return None;
    };
    let (tgid, tid) = thread();
    let key = Key { tgid, what: cookie.what(), actor: g, object: 0 };
    let op = emit::begin(ctx, &key)?;
    op.g = g;
    op.goid = goid(&site, g);
    op.object = cookie.object().and_then(|n| site.word(n)).unwrap_or(0);
    op.tid = tid;
    op.flags = flag::GOROUTINE;
    if let Some(word) = cookie.name_word()
        && let Some((pointer, len)) = site.pair(word)
    {
        // Longer than the field: not one of ours, keep the beginning.
        let n = (if len > NAME as u64 { NAME as u64 } else { len }) as usize;
        // SAFETY: the helper checks the address; the destination is a field of `op` and `n` is bounded by it.
        if unsafe { bpf_probe_read_user_buf(pointer as *const u8, op.name.get_unchecked_mut(..n)) }.is_ok() {
            op.name_len = n as u32;
        }
        // Wait lasts as long as the container does: it is not a call anybody is blocked in.
        if kind == kind::SHIM_CALL && n == 4 && op.name[..4] == *b"Wait" {
            let _ = OPS.remove(&key);
            return None;
        }
    }
    read_text(ctx, &site, op, kind);
    if kind == kind::UNMOUNT {
        let _ = UNMOUNTING.insert(&bpf_get_current_pid_tgid(), &0, 0);
    }
    emit::begun(op);
    Some(())
}

#[inline(always)]
fn read_text(ctx: &ProbeContext, site: &Site, op: &mut Op, kind: u32) {
    let cookie = site.cookie;
    let at = |place: u64| match cookie.text_source() {
        text::ARGUMENT => site.pair(place),
        _ => site
            .word(cookie.text_word())
            .and_then(|base| user_word(base + place).zip(user_word(base + place + 8))),
    };
    let first = match cookie.text_source() {
        text::NONE => return,
        text::ARGUMENT => cookie.text_word(),
        _ => cookie.text_offset(),
    };
    let mut header = at(first);
    if let Some(second) = cookie.second()
        && !matches!(header, Some((_, ID)))
    {
        header = at(second);
    }
    const MOST: u64 = TEXT as u64 - 1;
    let Some((mut pointer, len)) = header else {
        op.flags |= flag::NO_TEXT;
        emit::refuse(ctx, kind, Cause::ReadUser);
        return;
    };
    let mut n = len;
    if len > MOST {
        // The end of a path says more than its beginning.
        pointer += len - MOST;
        n = MOST;
        op.flags |= flag::TAIL;
    }
    let n = (n & MOST) as usize;
    // SAFETY: the helper checks the address; the mask keeps `n` inside the field.
    if unsafe { bpf_probe_read_user_buf(pointer as *const u8, op.text.get_unchecked_mut(..n)) }.is_ok() {
        op.text_len = n as u32;
    } else {
        op.flags |= flag::NO_TEXT;
        emit::refuse(ctx, kind, Cause::ReadUser);
    }
}

/// A named Go function is about to return.
#[uprobe]
pub fn go_operation_end(ctx: ProbeContext) -> u32 {
    own_stack(&ctx);
    try_operation_end(&ctx);
    0
}

#[inline(always)]
fn try_operation_end(ctx: &ProbeContext) -> Option<()> {
    let site = Site::new(ctx, cookie(ctx, true)?)?;
    let cookie = site.cookie;
    let kind = cookie.kind();
    let (tgid, tid) = thread();
    let Some(g) = site.g() else {
        emit::refuse(ctx, kind, Cause::NoGoroutine);
        return None;
    };
    let key = Key { tgid, what: cookie.what(), actor: g, object: 0 };
    let Some(op) = OPS.get_ptr_mut(&key) else {
        if kind != kind::SHIM_CALL {
            emit::refuse(ctx, kind, Cause::NoBegin);
        }
        return None;
    };
    // SAFETY: only this goroutine writes its entry, and it is not used after its removal.
    let op = unsafe { &mut *op };
    if let Some(word) = cookie.error_word()
        && site.word(word).unwrap_or(0) != 0
    {
        op.flags |= flag::FAILED;
        // The value behind the interface is a syscall.Errno for the calls we ask this of.
        if let Some(errno) = site.word(word + 1).and_then(user_word)
            && errno < 4096
        {
            op.errno = errno as u32;
            op.flags |= flag::ERRNO;
        }
    }
    // SAFETY: the helper takes no arguments and always succeeds.
    let at = unsafe { bpf_ktime_get_ns() };
    if kind == kind::UNMOUNT {
        let _ = UNMOUNTING.remove(&bpf_get_current_pid_tgid());
        super::super_block::ends_with_unmount(ctx, tgid, tid, Some(at));
        let _ = UNMOUNTING.remove(&((u64::from(tgid) << 32) | u64::from(op.tid)));
    }
    emit::op_ended(ctx, op, at);
    let _ = OPS.remove(&key);
    Some(())
}
