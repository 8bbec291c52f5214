//! Where the Go runtime keeps what plegscope reads of a running program: fields of `runtime.g`, `runtime.m` and
//! `runtime.sudog`, per Go version.
//!
//! Source of the numbers: DWARF of small programs built by Go 1.15, 1.19, 1.21 to 1.27 and the struct definitions in
//! `runtime/runtime2.go` of 1.16, 1.17, 1.18 and 1.20. A version that is not in the table is refused, never guessed;
//! every answer is checked against the running process as well (`m.procid` must be the thread's id).

use super::Refusal;
use super::buildinfo::GoVersion;
use serde::{Deserialize, Serialize};

/// How Go functions get their arguments, on x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Abi {
    /// Go 1.16 and older: argument word n is at `[rsp + 8 + 8 n]` at entry; `g` is in thread-local storage.
    Stack,
    /// Go 1.17 and newer: words 0 to 8 are in RAX, RBX, RCX, RDI, RSI, R8, R9, R10, R11; `g` is in R14.
    Register,
}

impl Abi {
    /// Convention of a Go version.
    pub fn of(version: GoVersion) -> Abi {
        if version.minor <= 16 { Abi::Stack } else { Abi::Register }
    }
}

/// Byte offsets in the Go runtime's structs. Sizes are 8 bytes where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// `g.stack.lo`, `g.stack.hi`: bounds of the goroutine's stack.
    pub g_stack_lo: u16,
    /// See `g_stack_lo`.
    pub g_stack_hi: u16,
    /// `g.m`: the thread (`runtime.m`) that runs it, 0 when it is parked.
    pub g_m: u16,
    /// `g.sched.sp`: stack pointer of a parked goroutine.
    pub sched_sp: u16,
    /// `g.sched.pc`: next instruction of a parked goroutine.
    pub sched_pc: u16,
    /// `g.sched.bp`: frame pointer of a parked goroutine.
    pub sched_bp: u16,
    /// `g.syscallsp`: stack pointer of a goroutine in a system call, else 0.
    pub syscall_sp: u16,
    /// `g.syscallpc`: next instruction of a goroutine in a system call.
    pub syscall_pc: u16,
    /// `g.syscallbp`: frame pointer in a system call; since Go 1.23.
    pub syscall_bp: Option<u16>,
    /// `g.atomicstatus`, 4 bytes: [`STATUS_RUNNABLE`] and so on, plus [`STATUS_SCAN`].
    pub atomic_status: u16,
    /// `g.goid`: the goroutine's number.
    pub goid: u16,
    /// `g.waitsince`: not the time of parking. Zero, or when the garbage collection began that first found the
    /// goroutine parked or in a system call (`runtime/mgcmark.go`).
    pub wait_since: u16,
    /// `g.waitreason`, 1 byte.
    pub wait_reason: u16,
    /// `g.waiting`: head of the list of `sudog`s; for semaphores only since Go 1.26.
    pub waiting: u16,
    /// `g.gopc`: where the `go` statement that made it continues.
    pub go_pc: u16,
    /// `g.parentGoid`: number of the goroutine that made it; since Go 1.21.
    pub parent_goid: Option<u16>,
    /// `m.procid`: thread id in the process's own pid namespace.
    pub m_procid: u16,
    /// `m.curg`: the goroutine that runs on this thread.
    pub m_curg: u16,
    /// `sudog.g`: who waits.
    pub sudog_g: u16,
    /// `sudog.next`: next in a list; right child in the tree of semaphore waiters.
    pub sudog_next: u16,
    /// `sudog.prev`: previous in a list; left child in the tree of semaphore waiters.
    pub sudog_prev: u16,
    /// `sudog.elem`: the semaphore's address.
    pub sudog_elem: u16,
    /// `sudog.waitlink`: next waiter of the same semaphore.
    pub sudog_wait_link: u16,
    /// What `g.waitreason` says of waits for `sync` locks.
    pub wait_reasons: WaitReasons,
    /// Whether a goroutine that waits for a semaphore has `g.waiting` set (since Go 1.26).
    pub waiting_names_semaphore: bool,
}

/// Values of `g.waitreason` for semaphores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitReasons {
    /// Wait for a `sync.Mutex`.
    pub mutex: u8,
    /// Wait for the read side of a `sync.RWMutex`.
    pub read: u8,
    /// Wait for the write side of a `sync.RWMutex`. All three are equal before Go 1.20, where the reason does not
    /// tell them apart.
    pub write: u8,
}

/// `g.atomicstatus`: is being made.
pub const STATUS_IDLE: u32 = 0;
/// `g.atomicstatus`: can run, waits for a thread.
pub const STATUS_RUNNABLE: u32 = 1;
/// `g.atomicstatus`: runs.
pub const STATUS_RUNNING: u32 = 2;
/// `g.atomicstatus`: is in a system call.
pub const STATUS_SYSCALL: u32 = 3;
/// `g.atomicstatus`: is parked.
pub const STATUS_WAITING: u32 = 4;
/// `g.atomicstatus`: has ended; its memory waits for the next goroutine.
pub const STATUS_DEAD: u32 = 6;
/// `g.atomicstatus`: is parked, and a garbage collection found that nothing can ever wake it; since Go 1.26.
pub const STATUS_LEAKED: u32 = 10;
/// `g.atomicstatus`: has not begun, is kept for calls from C; since Go 1.26 (dead before).
pub const STATUS_DEAD_EXTRA: u32 = 11;
/// Bit of `g.atomicstatus`: the garbage collector looks at the stack and may move it.
pub const STATUS_SCAN: u32 = 0x1000;

/// Oldest Go 1.N in the table.
pub const OLDEST: u32 = 15;
/// Newest Go 1.N in the table.
pub const NEWEST: u32 = 27;

impl Offsets {
    /// Offsets of a Go version.
    pub fn of(version: GoVersion) -> Result<Offsets, Refusal> {
        let minor = version.minor;
        if !(OLDEST..=NEWEST).contains(&minor) {
            return Err(Refusal::new(format!(
                "{version}: the layout of its runtime is not known (known: Go 1.{OLDEST} to 1.{NEWEST}), so goroutines \
                 and locks cannot be read; a newer plegscope may know it"
            )));
        }
        // gobuf lost a word in 1.25 (ret), which moved what follows it.
        let shift: u16 = if minor >= 25 { 8 } else { 0 };
        // syscallbp, new in 1.23, moved what follows it.
        let syscall_bp = if minor >= 23 { Some(128 - shift) } else { None };
        let moved = if minor >= 23 { 8 } else { 0 };
        let waiting = match minor {
            15 | 16 => 312,
            17..=20 => 328,
            21 | 22 => 312,
            23 | 24 => 320,
            25 => 312,
            _ => 320,
        };
        Ok(Offsets {
            g_stack_lo: 0,
            g_stack_hi: 8,
            g_m: 48,
            sched_sp: 56,
            sched_pc: 64,
            sched_bp: 104 - shift,
            syscall_sp: 112 - shift,
            syscall_pc: 120 - shift,
            syscall_bp,
            atomic_status: 144 + moved - shift,
            goid: 152 + moved - shift,
            wait_since: 168 + moved - shift,
            wait_reason: 176 + moved - shift,
            waiting,
            // Between them: ancestors, startpc, racectx.
            go_pc: waiting - 32,
            parent_goid: if minor >= 21 { Some(waiting - 40) } else { None },
            m_procid: 72 - shift,
            m_curg: 192 - shift,
            sudog_g: 0,
            sudog_next: 8,
            sudog_prev: 16,
            sudog_elem: 24,
            sudog_wait_link: if minor >= 26 { 72 } else { 64 },
            wait_reasons: match minor {
                ..20 => WaitReasons { mutex: 18, read: 18, write: 18 },
                20..25 => WaitReasons { mutex: 21, read: 22, write: 23 },
                _ => WaitReasons { mutex: 22, read: 23, write: 24 },
            },
            waiting_names_semaphore: minor >= 26,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as measured: goid, sched.bp, atomicstatus, waitreason, waitsince, syscallsp/pc/bp, waiting, procid, curg.
    type Row = (std::ops::RangeInclusive<u32>, [u16; 7], Option<u16>, [u16; 3]);

    #[test]
    fn the_table_is_what_dwarf_says() {
        let rows: [Row; 6] = [
            (15..=16, [152, 104, 144, 176, 168, 112, 120], None, [312, 72, 192]),
            (17..=20, [152, 104, 144, 176, 168, 112, 120], None, [328, 72, 192]),
            (21..=22, [152, 104, 144, 176, 168, 112, 120], None, [312, 72, 192]),
            (23..=24, [160, 104, 152, 184, 176, 112, 120], Some(128), [320, 72, 192]),
            (25..=25, [152, 96, 144, 176, 168, 104, 112], Some(120), [312, 64, 184]),
            (26..=27, [152, 96, 144, 176, 168, 104, 112], Some(120), [320, 64, 184]),
        ];
        let mut seen = 0;
        for (minors, words, bp, rest) in rows {
            for minor in minors {
                let o = Offsets::of(GoVersion { minor, patch: 3 }).unwrap();
                let got = [
                    o.goid,
                    o.sched_bp,
                    o.atomic_status,
                    o.wait_reason,
                    o.wait_since,
                    o.syscall_sp,
                    o.syscall_pc,
                ];
                assert_eq!(got, words, "1.{minor}");
                assert_eq!(o.syscall_bp, bp, "1.{minor}");
                assert_eq!([o.waiting, o.m_procid, o.m_curg], rest, "1.{minor}");
                assert_eq!(o.m_curg - o.m_procid, 120, "1.{minor}");
                assert_eq!(
                    o.go_pc,
                    if minor == 15 || minor == 25 { 280 } else { o.waiting - 32 },
                    "1.{minor}"
                );
                seen += 1;
            }
        }
        assert_eq!(seen, NEWEST - OLDEST + 1);
    }

    #[test]
    fn unknown_versions_are_refused_in_words() {
        for minor in [2, 14, 28, 99] {
            let refusal = Offsets::of(GoVersion { minor, patch: 0 }).unwrap_err().to_string();
            assert!(
                refusal.contains(&format!("go1.{minor}.0")) && refusal.contains("1.15 to 1.27"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn calling_convention_changed_in_1_17() {
        assert_eq!(Abi::of(GoVersion { minor: 16, patch: 15 }), Abi::Stack);
        assert_eq!(Abi::of(GoVersion { minor: 17, patch: 0 }), Abi::Register);
    }
}
