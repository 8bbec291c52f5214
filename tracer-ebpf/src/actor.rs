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

/// Reads a register once, here and unconditionally: the compiler would otherwise merge loads of several registers into
/// one load at a computed offset, and the verifier refuses arithmetic on the context.
macro_rules! register {
    ($regs:expr, $name:ident) => {
        // SAFETY: a field of the program's context, which is a `pt_regs`.
        unsafe { core::ptr::read_volatile(&raw const (*$regs).$name) }
    };
}

/// Registers at a probe site of a Go function.
pub struct Site {
    /// The site's cookie.
    pub cookie: Cookie,
    rsp: u64,
    r14: u64,
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdi: u64,
    rsi: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
}

impl Site {
    /// The registers of a uprobe hit; `None` when the hit does not count, because the stack check's branch is taken
    /// and the function will begin again.
    #[inline(always)]
    pub fn new<C: EbpfContext>(ctx: &C, cookie: Cookie) -> Option<Site> {
        const CARRY: u64 = 1;
        const ZERO: u64 = 1 << 6;
        let regs = ctx.as_ptr().cast::<pt_regs>();
        let eflags = register!(regs, eflags);
        let site = Site {
            cookie,
            rsp: register!(regs, rsp),
            r14: register!(regs, r14),
            rax: register!(regs, rax),
            rbx: register!(regs, rbx),
            rcx: register!(regs, rcx),
            rdi: register!(regs, rdi),
            rsi: register!(regs, rsi),
            r8: register!(regs, r8),
            r9: register!(regs, r9),
            r10: register!(regs, r10),
            r11: register!(regs, r11),
        };
        if cookie.stack_check() && eflags & (CARRY | ZERO) != 0 { None } else { Some(site) }
    }

    /// `g` of the running goroutine. With the stack ABI it is in RCX at the stack check, else in thread-local storage.
    #[inline(always)]
    pub fn g(&self) -> Option<u64> {
        if !self.cookie.stack_abi() {
            Some(self.r14)
        } else if self.cookie.stack_check() {
            Some(self.rcx)
        } else {
            g_of_thread()
        }
    }

    /// Argument or result word `n`: a register, or with the stack ABI the n-th word above the return address.
    #[inline(always)]
    pub fn word(&self, n: u64) -> Option<u64> {
        if self.cookie.stack_abi() {
            return user_word(self.rsp + 8 + 8 * n);
        }
        Some(match n {
            0 => self.rax,
            1 => self.rbx,
            2 => self.rcx,
            3 => self.rdi,
            4 => self.rsi,
            5 => self.r8,
            6 => self.r9,
            7 => self.r10,
            8 => self.r11,
            _ => return None,
        })
    }

    /// Argument or result words `n` and `n + 1`: a Go string, or an interface.
    ///
    /// Not two calls of [`Site::word`]: where the first has no register, the verifier of 5.10 goes on to the second with
    /// an `n` that is both too large and not, and takes the stack pointer plus that for no pointer at all.
    #[inline(always)]
    pub fn pair(&self, n: u64) -> Option<(u64, u64)> {
        if self.cookie.stack_abi() {
            let at = self.rsp + 8 + 8 * n;
            return user_word(at).zip(user_word(at + 8));
        }
        Some(match n {
            0 => (self.rax, self.rbx),
            1 => (self.rbx, self.rcx),
            2 => (self.rcx, self.rdi),
            3 => (self.rdi, self.rsi),
            4 => (self.rsi, self.r8),
            5 => (self.r8, self.r9),
            6 => (self.r9, self.r10),
            7 => (self.r10, self.r11),
            _ => return None,
        })
    }
}
