//! Where a program's runtime keeps what [`super::goroutines`] reads, taken from the program's own code and data.
//!
//! Compilers write these few functions in one way since Go 1.15, so each place is read off the instructions that use it
//! and checked by a second trait of the same code. What does not fit exactly is not known; nothing is guessed.

use super::offsets::Offsets;
use super::probe_site::Code;
use super::{GoBinary, Name, Refusal, unwind};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
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
    /// Go's words for each value of `g.waitreason`, as this program would print them; empty when they were not found.
    pub reasons: Vec<String>,
    /// Fields of the runtime's structs.
    pub offsets: Offsets,
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
    /// Bytes from one root to the next: a cache line, on x86-64 64. (On arm64 it is 64 in Go 1.19 and 128 in Go 1.27;
    /// untested, its code is not decoded.)
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

const SEMRELEASE: Name = Name::Exact("runtime.semrelease1");
const REASON: Name = Name::Exact("runtime.waitReason.String");
/// `sync.Mutex` moved in Go 1.24.
const LOCK_SLOW: [Name; 2] =
    [Name::Exact("internal/sync.(*Mutex).lockSlow"), Name::Exact("sync.(*Mutex).lockSlow")];
const NANOTIME: [Name; 2] =
    [Name::Exact("internal/sync.runtime_nanotime"), Name::Exact("sync.runtime_nanotime")];
const ACQUIRE: [Name; 2] =
    [Name::Exact("internal/sync.runtime_SemacquireMutex"), Name::Exact("sync.runtime_SemacquireMutex")];

impl Layout {
    /// Finds the places in a program's code and tables. Refused when goroutines cannot be found, or their layout is not
    /// known.
    pub fn of(binary: &GoBinary<'_>) -> Result<Layout, Refusal> {
        Layout::with(binary, binary.offsets()?)
    }

    /// The same for offsets found otherwise.
    pub(super) fn with(binary: &GoBinary<'_>, offsets: Offsets) -> Result<Layout, Refusal> {
        let names: Vec<Name> =
            [SEMRELEASE, REASON].into_iter().chain(LOCK_SLOW).chain(NANOTIME).chain(ACQUIRE).collect();
        let found = binary.find(&names);
        let functions = |from: usize, count: usize| {
            found.iter().skip(from).take(count).flatten().copied().collect::<Vec<_>>()
        };
        let code = |from: usize, count: usize| {
            functions(from, count).first().and_then(|function| binary.code(*function).ok())
        };
        let entries = |from| functions(from, 2).iter().map(|f| f.entry).collect::<Vec<_>>();
        Ok(Layout {
            all_goroutines: unwind::all_goroutines(binary)?,
            semaphores: code(0, 1).and_then(|code| semaphores(&code)),
            wait_started: code(2, 2).and_then(|code| wait_started(binary, &code, &entries(4), &entries(6))),
            reasons: code(1, 1).and_then(|code| reasons(binary, &code)).unwrap_or_default(),
            offsets,
            calibrated: None,
        })
    }
}

/// `semrelease1` begins with `semroot(addr)`, inlined: `&semtable[(addr >> 3) % semTabSize]`. The multiplication of the
/// division, the shift by the size of a root, and the table's address follow each other.
fn semaphores(code: &Code) -> Option<Semaphores> {
    const NEAR: usize = 6;
    let mut all = Vec::new();
    for (at, multiply) in code.instructions().iter().enumerate() {
        if multiply.mnemonic() != Mnemonic::Imul || multiply.op_count() != 3 {
            continue;
        }
        let behind = || code.instructions().iter().skip(at + 1).take(NEAR);
        let shift = behind().find(|i| i.mnemonic() == Mnemonic::Shl).map(|i| i.immediate(1));
        let table = behind().find(|i| i.mnemonic() == Mnemonic::Lea && i.is_ip_rel_memory_operand());
        if let (Some(shift @ 5..=8), Some(table)) = (shift, table) {
            let roots = u32::try_from(multiply.immediate(2)).ok()?;
            all.push(Semaphores { table: table.ip_rel_memory_address(), roots, stride: 1 << shift });
        }
    }
    // A prime, 251 in every version so far.
    all.dedup();
    match all[..] {
        [one] if (2..=4096).contains(&one.roots) => Some(one),
        _ => None,
    }
}

/// After it was woken, `lockSlow` asks whether `runtime_nanotime()-waitStartTime > starvationThresholdNs`, so the
/// variable has lain in its frame during the wait.
fn wait_started(
    binary: &GoBinary<'_>,
    code: &Code,
    nanotime: &[u64],
    acquire: &[u64],
) -> Option<WaitStarted> {
    const STARVATION_THRESHOLD_NS: u64 = 1_000_000;
    let instructions = code.instructions();
    let calls = |i: &Instruction, to: &[u64]| {
        i.mnemonic() == Mnemonic::Call
            && i.op0_kind() == OpKind::NearBranch64
            && to.contains(&i.near_branch_target())
    };
    // The word of the frame at this distance from RSP.
    let in_frame = |i: &Instruction| {
        (i.memory_base() == Register::RSP && i.memory_index() == Register::None)
            .then(|| u32::try_from(i.memory_displacement64()).ok())
            .flatten()
    };
    let loads = |i: &Instruction, into: Register| {
        (i.mnemonic() == Mnemonic::Mov && i.op1_kind() == OpKind::Memory && i.op0_register() == into)
            .then(|| in_frame(i))
            .flatten()
    };
    let mut found = Vec::new();
    for (at, compare) in instructions.iter().enumerate() {
        let is_threshold = compare.mnemonic() == Mnemonic::Cmp
            && matches!(compare.op1_kind(), OpKind::Immediate32to64)
            && compare.immediate(1) == STARVATION_THRESHOLD_NS;
        if !is_threshold {
            continue;
        }
        let mut before = instructions.get(..at)?.iter().rev();
        let subtract = before.next()?;
        if subtract.mnemonic() != Mnemonic::Sub || subtract.op0_register() != compare.op0_register() {
            return None;
        }
        let (slot, load) = if subtract.op1_kind() == OpKind::Memory {
            (in_frame(subtract)?, subtract)
        } else {
            let load = before.next()?;
            (loads(load, subtract.op1_register())?, load)
        };
        // Its result is in RAX, or on the old calling convention where RSP points to.
        let mut call = before.next()?;
        if loads(call, subtract.op0_register()) == Some(0) {
            call = before.next()?;
        } else if subtract.op0_register() != Register::RAX {
            return None;
        }
        if !calls(call, nanotime) {
            return None;
        }
        found.push((slot, load.ip()));
    }
    let [(slot, load)] = found[..] else { return None };
    let mut resumes = Vec::new();
    for (at, call) in instructions.iter().enumerate().filter(|(_, i)| calls(i, acquire)) {
        // The value is put there right before the wait.
        const NEAR: usize = 8;
        let put = instructions.get(at.saturating_sub(NEAR)..at)?.iter().any(|i| {
            i.mnemonic() == Mnemonic::Mov
                && i.op0_kind() == OpKind::Memory
                && i.op1_register().is_gpr64()
                && in_frame(i) == Some(slot)
        });
        if !put {
            return None;
        }
        resumes.push(call.next_ip());
    }
    // One frame, one size: what the slot is at the load, it is at the calls.
    let function = binary.functions.function_at(load)?;
    let depth = |at: u64| binary.functions.stack_depth(function, at);
    let holds = depth(load).is_some_and(|d| u64::from(slot) < d)
        && !resumes.is_empty()
        && resumes.iter().all(|at| depth(*at) == depth(load));
    holds.then_some(WaitStarted { resumes, slot })
}

/// `waitReason.String` compares its argument with the length of the array of strings and indexes it.
fn reasons(binary: &GoBinary<'_>, code: &Code) -> Option<Vec<String>> {
    /// More than any version has, and longer.
    const MOST: (u64, u64) = (128, 64);
    let count = code
        .instructions()
        .iter()
        .find(|i| i.mnemonic() == Mnemonic::Cmp && i.op1_kind() == OpKind::Immediate8)
        .map(|i| i.immediate(1) & 0xff)
        .filter(|count| (2..=MOST.0).contains(count))?;
    let word = |n: u64, at: u64| {
        let header = at.checked_add(16 * n)?;
        let length = binary.elf.word(header.checked_add(8)?).filter(|length| *length <= MOST.1)?;
        // The first, no reason, is empty, and no other.
        if (length == 0) != (n == 0) {
            return None;
        }
        let bytes = if n == 0 { &[] } else { binary.elf.bytes_at(binary.elf.word(header)?, length)? };
        let text = std::str::from_utf8(bytes).ok()?;
        text.bytes().all(|b| (b' '..=b'~').contains(&b)).then(|| text.to_owned())
    };
    let tables = code.instructions().iter().filter(|i| i.is_ip_rel_memory_operand());
    tables
        .map(Instruction::ip_rel_memory_address)
        .find_map(|at| (0..count).map(|n| word(n, at)).collect::<Option<Vec<String>>>())
}
