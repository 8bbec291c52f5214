//! A look into a running Go program from outside: every goroutine that does not run, where it sits, and what it waits for.
//!
//! Nothing in the program is stopped or changed. All that is read goes through [`Memory`], in few large pieces: the list
//! of goroutines, the table of semaphores, and for each goroutine its `g`, its stack, and its `g` again. What changed
//! meanwhile is read again a few times, then left out with a reason. docs/go-symbols.md tells where the places come from.

use super::offsets::Offsets;
use super::pclntab::Frame;
use super::unwind::{Goroutine, Memory, Stack};
use super::{GoBinary, Refusal};
use serde::{Deserialize, Serialize};

/// Where a program's runtime keeps what a look reads. Found once per file; addresses are without load bias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `runtime.allgs`, a slice of `*g`.
    pub all_goroutines: u64,
    /// The table of semaphore waiters; without it locks have no addresses.
    pub semaphores: Option<Semaphores>,
    /// Where a goroutine that waits for a `sync.Mutex` keeps the time its wait began.
    pub wait_started: Option<WaitStarted>,
    /// Fields of the runtime's structs.
    pub offsets: Offsets,
    /// The N of Go 1.N whose words for wait reasons hold.
    pub words_of: u32,
    /// How the offsets were found, when they are not those of a known version.
    pub calibrated: Option<String>,
}

/// `runtime.semtable`: an array of roots, each a tree of waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphores {
    /// Its address.
    pub table: u64,
    /// Number of roots.
    pub roots: u32,
    /// Bytes from one root to the next.
    pub stride: u32,
}

/// The variable `waitStartTime` of `(*Mutex).lockSlow`, while it is parked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitStarted {
    /// Where a frame of the function continues when it is parked: behind its calls of `runtime_SemacquireMutex`.
    pub resumes: Vec<u64>,
    /// Bytes from the frame's stack pointer to the variable.
    pub slot: u32,
}

impl Layout {
    /// Finds the places in a program's code and tables.
    pub fn of(_binary: &GoBinary<'_>) -> Result<Layout, Refusal> {
        Err(Refusal::new("not built yet"))
    }
}

/// Bounds on one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Goroutines that are read; the others are counted.
    pub goroutines: usize,
    /// Frames of one stack.
    pub frames: usize,
    /// Bytes of one stack, from its inner end.
    pub stack_bytes: usize,
    /// Waiters in the table of semaphores.
    pub waiters: usize,
    /// The monotonic clock before the look, ns: no wait began later than the look ended.
    pub now: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { goroutines: 20_000, frames: 128, stack_bytes: 64 << 10, waiters: 20_000, now: u64::MAX }
    }
}

/// What a look saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Goroutines that do not run, in the order in which the runtime keeps them.
    pub goroutines: Vec<Seen>,
    /// Goroutines there were, ended ones included.
    pub total: usize,
    /// Goroutines that ran.
    pub running: usize,
    /// Goroutines that had ended.
    pub dead: usize,
    /// Why goroutines were left out, and how many for each reason.
    pub left_out: Vec<(Refusal, usize)>,
    /// How many waiters the table of semaphores had, or why it could not be read.
    pub waiters: Result<usize, Refusal>,
}

/// A goroutine that does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its own account.
    pub goroutine: Goroutine,
    /// Go's words for what it waits for, such as `sync.Mutex.Lock`, `select` or `IO wait`; empty when it is not parked.
    pub reason: String,
    /// Thread id (in the process's own pid namespace) of a goroutine in a system call.
    pub thread: Option<u32>,
    /// Where it sits.
    pub stack: Stack,
    /// The semaphore it waits for.
    pub waits: Option<SemaphoreWait>,
    /// It has been parked since this time at the latest (`CLOCK_MONOTONIC`, ns): a garbage collection that began then
    /// found it parked.
    pub parked_since: Option<u64>,
    /// The `go` statement that made it.
    pub created_by: Option<Creator>,
    /// Its stack's raw words, from the stack pointer up; word n lies at `goroutine.sp + 8 n`.
    pub words: Vec<u64>,
}

/// A wait for a semaphore: that of a `sync.Mutex`, a `sync.RWMutex` or a `sync.WaitGroup`, as the reason tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SemaphoreWait {
    /// Address of the semaphore, a field of the lock.
    pub semaphore: u64,
    /// When the wait began (`CLOCK_MONOTONIC`, ns), where the program itself keeps that.
    pub since: Option<u64>,
}

/// Who made a goroutine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creator {
    /// The function, and the line of the `go` statement.
    pub function: Frame,
    /// Number of the goroutine that ran it; since Go 1.21.
    pub goroutine: Option<u64>,
    /// Where the `go` statement continues, an address in the running program.
    pub pc: u64,
}

/// Looks at a program; `bias` is [`super::elf::Elf::load_bias`].
pub fn look(
    _binary: &GoBinary<'_>,
    _bias: u64,
    _layout: &Layout,
    _memory: &mut impl Memory,
    _limits: &Limits,
) -> Result<Look, Refusal> {
    Err(Refusal::new("not built yet"))
}
