//! Who is running: thread, goroutine, argument words.

use crate::{globals, maps::PROCESSES};
use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user},
};
use tracer_common::cookie::Cookie;

/// Thread-group id and thread id.
#[inline(always)]
pub fn thread() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

/// Reads a word of the target.
#[inline(always)]
pub fn user_word(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address and fails when it cannot be read.
    unsafe { bpf_probe_read_user(address as *const u64) }.ok()
}

/// Reads a value of the kernel, unless that is switched off.
#[inline(always)]
pub fn kernel<T: Copy>(address: u64) -> Option<T> {
    if globals::read_kernel() == 0 {
        return None;
    }
    // SAFETY: the helper checks the address and fails when it cannot be read.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// `g` from thread-local storage (`fs:-8` on linux/amd64 in every Go version). Valid also inside a system call.
#[inline(always)]
pub fn g_of_thread() -> Option<u64> {
    let offset = globals::off_fsbase();
    if offset == 0 {
        return None;
    }
    // SAFETY: the helper takes no arguments and always succeeds.
    let task = unsafe { bpf_get_current_task() };
    let base: u64 = kernel(task + u64::from(offset))?;
    user_word(base.wrapping_sub(8)).filter(|g| *g != 0)
}

/// The goroutine of the running thread, if it belongs to a registered Go process: `(g, goid)`.
#[inline(always)]
pub fn goroutine_of(tgid: u32) -> Option<(u64, u64)> {
    // SAFETY: the value is only read, and only by copy.
    let offset = unsafe { PROCESSES.get(&tgid) }?.goid_offset;
    let g = g_of_thread()?;
    let goid = if offset == 0 { 0 } else { user_word(g + u64::from(offset)).unwrap_or(0) };
    Some((g, goid))
}

/// Registers at a probe site of a Go function.
pub struct Site<'a> {
    /// The site's cookie.
    pub cookie: Cookie,
    regs: &'a pt_regs,
}

impl<'a> Site<'a> {
    /// The registers of a uprobe hit; `None` when the hit does not count, because the stack check's branch is taken
    /// and the function will begin again.
    #[inline(always)]
    pub fn new<C: EbpfContext>(ctx: &'a C, cookie: Cookie) -> Option<Site<'a>> {
        const CARRY: u64 = 1;
        const ZERO: u64 = 1 << 6;
        // SAFETY: the context of a uprobe program is a `pt_regs`.
        let regs = unsafe { &*ctx.as_ptr().cast::<pt_regs>() };
        if cookie.stack_check() && regs.eflags & (CARRY | ZERO) != 0 {
            return None;
        }
        Some(Site { cookie, regs })
    }

    /// `g` of the running goroutine. With the stack ABI it is in RCX at the stack check, else in thread-local storage.
    #[inline(always)]
    pub fn g(&self) -> Option<u64> {
        if !self.cookie.stack_abi() {
            Some(self.regs.r14)
        } else if self.cookie.stack_check() {
            Some(self.regs.rcx)
        } else {
            g_of_thread()
        }
    }

    /// Argument or result word `n`: a register, or with the stack ABI the n-th word above the return address.
    #[inline(always)]
    pub fn word(&self, n: u64) -> Option<u64> {
        if self.cookie.stack_abi() {
            return user_word(self.regs.rsp + 8 + 8 * n);
        }
        Some(match n {
            0 => self.regs.rax,
            1 => self.regs.rbx,
            2 => self.regs.rcx,
            3 => self.regs.rdi,
            4 => self.regs.rsi,
            5 => self.regs.r8,
            6 => self.regs.r9,
            7 => self.regs.r10,
            8 => self.regs.r11,
            _ => return None,
        })
    }
}
