//! Where a goroutine that does not run sits: exact stacks, unwound with the stack depths of the symbol table.
//!
//! Reads the target's memory through [`Memory`], a word at a time, and never more than [`MAX_FRAMES`] frames. The
//! target is not stopped, so what was read is believed only if the goroutine has not moved meanwhile.

use super::offsets::{self, Offsets};
use super::pclntab::Frame;
use super::{GoBinary, Name, Refusal};
use std::collections::HashMap;
use std::sync::Arc;

/// A running program's memory.
pub trait Memory {
    /// The 8 bytes at `address`; `None` when they cannot be read.
    fn word(&mut self, address: u64) -> Option<u64>;

    /// Reads what lies at `at`; how many bytes could be read, from the front.
    fn read(&mut self, at: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for part in into.chunks_mut(8) {
            let Some(word) = self.word(at.wrapping_add(done as u64)) else { break };
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
            done += part.len();
        }
        done
    }
}

impl<F: FnMut(u64) -> Option<u64>> Memory for F {
    fn word(&mut self, address: u64) -> Option<u64> {
        self(address)
    }
}

/// Deepest stack that is unwound.
pub const MAX_FRAMES: usize = 128;

/// Why a goroutine does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pause {
    /// It is parked: waits for a lock, a channel, the network, a timer.
    Waiting,
    /// It is in a system call, on a thread.
    Syscall,
    /// It can run and waits for a thread.
    Runnable,
}

/// A goroutine that does not run, as read from the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// Address of its `g`.
    pub g: u64,
    /// Its number.
    pub goid: u64,
    /// Why it does not run.
    pub pause: Pause,
    /// `g.waitreason`; means something when it is parked.
    pub wait_reason: u8,
    /// Address of the `m` it is on, 0 when it is parked.
    pub m: u64,
    /// Next instruction.
    pub pc: u64,
    /// Stack pointer there.
    pub sp: u64,
    /// End of its stack.
    pub stack_hi: u64,
}

impl Goroutine {
    /// Reads the goroutine at `g`. Refused when it runs, has ended, or is being looked at by the garbage collector.
    pub fn read(memory: &mut impl Memory, offsets: &Offsets, g: u64) -> Result<Goroutine, Refusal> {
        let mut word = |offset: u16| {
            let at = g.wrapping_add(u64::from(offset));
            memory
                .word(at)
                .ok_or_else(|| Refusal::new(format!("goroutine at {g:#x}: cannot read its memory")))
        };
        // All fields are read as words; the little end of one is the narrower field.
        let status = word(offsets.atomic_status)? as u32;
        let pause = match status {
            offsets::STATUS_WAITING | offsets::STATUS_LEAKED => Pause::Waiting,
            offsets::STATUS_SYSCALL => Pause::Syscall,
            offsets::STATUS_RUNNABLE => Pause::Runnable,
            offsets::STATUS_RUNNING => return Err(Refusal::new("the goroutine is running")),
            offsets::STATUS_DEAD | offsets::STATUS_DEAD_EXTRA => {
                return Err(Refusal::new("the goroutine has ended"));
            }
            other => {
                return Err(Refusal::new(format!("the goroutine's stack may move now (status {other:#x})")));
            }
        };
        let (pc, sp) = match pause {
            Pause::Syscall => (word(offsets.syscall_pc)?, word(offsets.syscall_sp)?),
            Pause::Waiting | Pause::Runnable => (word(offsets.sched_pc)?, word(offsets.sched_sp)?),
        };
        let (lo, hi) = (word(offsets.g_stack_lo)?, word(offsets.g_stack_hi)?);
        if !(lo..hi).contains(&sp) {
            return Err(Refusal::new("the goroutine's stack pointer is outside of its stack"));
        }
        Ok(Goroutine {
            g,
            goid: word(offsets.goid)?,
            pause,
            wait_reason: word(offsets.wait_reason)? as u8,
            m: word(offsets.g_m)?,
            pc,
            sp,
            stack_hi: hi,
        })
    }
}

/// One frame on a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackFrame {
    /// Where it continues, an address in the running program.
    pub pc: u64,
    /// Stack pointer there.
    pub sp: u64,
    /// How far behind the function's entry that is.
    pub offset: u64,
    /// The function, preceded by what is inlined at that place, innermost first. Shared by all that sit there.
    pub functions: Arc<[Frame]>,
}

/// A goroutine's stack, innermost frame first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The frames.
    pub frames: Vec<StackFrame>,
    /// Why frames are missing at the outer end; `None` when the goroutine's first function was reached.
    pub cut: Option<Refusal>,
}

impl Stack {
    /// Names of all functions, innermost first, inlined ones included.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.frames.iter().flat_map(|frame| &*frame.functions).map(|function| function.name.as_str())
    }
}

/// Unwinds a goroutine that was just read; `bias` is [`super::elf::Elf::load_bias`]. Refused when the goroutine moved on
/// meanwhile.
pub fn unwind(
    binary: &GoBinary<'_>,
    bias: u64,
    offsets: &Offsets,
    memory: &mut impl Memory,
    goroutine: &Goroutine,
) -> Result<Stack, Refusal> {
    let mut frames = Vec::new();
    let mut places = Places::new(binary, false);
    let cut = walk(&mut places, bias, memory, goroutine, MAX_FRAMES, &mut frames).err();
    // A goroutine that ran meanwhile may be back at the same place only with the same frames, as far as they count.
    match Goroutine::read(memory, offsets, goroutine.g) {
        Ok(now) if now == *goroutine => Ok(Stack { frames, cut }),
        _ => Err(Refusal::new("the goroutine moved on while its stack was read")),
    }
}

/// What is known of places in a program's code. Goroutines sit in the same few places, so answers are kept.
pub(super) struct Places<'b, 'd> {
    binary: &'b GoBinary<'d>,
    lines: bool,
    known: HashMap<(u64, bool), Option<Place>>,
}

/// A place in code where a frame may continue.
struct Place {
    /// Bytes behind the function's entry.
    offset: u64,
    /// From the stack pointer to the return address.
    depth: Option<u64>,
    functions: Arc<[Frame]>,
}

/// Places that are kept; a hostile program must not fill the memory.
const MAX_PLACES: usize = 1 << 16;

impl<'b, 'd> Places<'b, 'd> {
    /// None is known yet; `lines` says whether files and lines are wanted.
    pub(super) fn new(binary: &'b GoBinary<'d>, lines: bool) -> Places<'b, 'd> {
        Places { binary, lines, known: HashMap::new() }
    }

    /// The place at `place` (without load bias), which was `interrupted` or else made a call.
    fn at(&mut self, place: u64, interrupted: bool) -> Option<&Place> {
        if self.known.len() >= MAX_PLACES {
            self.known.clear();
        }
        let (binary, lines) = (self.binary, self.lines);
        let find = || {
            let function = binary.functions.function_at(place)?;
            // A pc behind a call belongs to the call; only a goroutine that has not started yet is at an entry.
            let call = if interrupted || place == function.entry { place } else { place - 1 };
            Some(Place {
                offset: place - function.entry,
                depth: binary.functions.stack_depth(function, place),
                functions: binary.functions.frames(&binary.elf, call, lines).into(),
            })
        };
        self.known.entry((place, interrupted)).or_insert_with(find).as_ref()
    }

    /// The functions at a place behind a call (without load bias), and how far it is behind the entry.
    pub(super) fn functions(&mut self, place: u64) -> Option<(&[Frame], u64)> {
        self.at(place, false).map(|place| (&*place.functions, place.offset))
    }
}

/// Follows the stack from the goroutine's place outwards; the error says why the frames end before its first function.
pub(super) fn walk(
    places: &mut Places<'_, '_>,
    bias: u64,
    memory: &mut impl Memory,
    goroutine: &Goroutine,
    most: usize,
    frames: &mut Vec<StackFrame>,
) -> Result<(), Refusal> {
    let (mut pc, mut sp) = (goroutine.pc, goroutine.sp);
    let mut interrupted = false;
    while frames.len() < most {
        let place = places
            .at(pc.wrapping_sub(bias), interrupted)
            .ok_or_else(|| Refusal::new(format!("{pc:#x} is in no Go function")))?;
        frames.push(StackFrame { pc, sp, offset: place.offset, functions: Arc::clone(&place.functions) });
        let name = place.functions.last().map_or("", |f| f.name.as_str());
        if name == "runtime.goexit" {
            return Ok(());
        }
        // A signal put these there, between any two instructions of the function below.
        interrupted = matches!(name, "runtime.asyncPreempt" | "runtime.sigpanic");
        let depth =
            place.depth.ok_or_else(|| Refusal::new(format!("the stack depth at {pc:#x} is not known")))?;
        let return_at = sp
            .checked_add(depth)
            .filter(|at| *at < goroutine.stack_hi)
            .ok_or_else(|| Refusal::new("the stack's end was passed"))?;
        pc = memory.word(return_at).ok_or_else(|| Refusal::new("the stack cannot be read"))?;
        sp = return_at.wrapping_add(8);
    }
    Err(Refusal::new(format!("more than {most} frames")))
}

/// Address of `runtime.allgs` (a slice: pointer, length, capacity) without load bias, read off the function that
/// appends to it. Element n is the address of a `g`; goroutines that ended stay in it.
pub fn all_goroutines(binary: &GoBinary<'_>) -> Result<u64, Refusal> {
    let found = binary.find(&[Name::Exact("runtime.allgadd")]);
    let function = found
        .first()
        .and_then(|hits| hits.first())
        .ok_or_else(|| Refusal::new("the program has no function runtime.allgadd"))?;
    let addresses = binary.code(*function)?.data_addresses();
    addresses
        .iter()
        .copied()
        .find(|at| {
            [8, 16].iter().all(|step| at.checked_add(*step).is_some_and(|next| addresses.contains(&next)))
        })
        .ok_or_else(|| Refusal::new("runtime.allgs cannot be told from the code of runtime.allgadd"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golang::buildinfo::GoVersion;
    use std::collections::HashMap;

    const G: u64 = 0xc000_0010_0000;

    fn offsets() -> Offsets {
        Offsets::of(GoVersion { minor: 27, patch: 0 }).unwrap()
    }

    fn parked(status: u64) -> HashMap<u64, u64> {
        let o = offsets();
        let fields = [
            (o.g_stack_lo, 0x1000),
            (o.g_stack_hi, 0x2000),
            (o.atomic_status, status | 0xdead_0000_0000_0000),
            (o.sched_pc, 0x40_1234),
            (o.sched_sp, 0x1f00),
            (o.syscall_pc, 0x40_5678),
            (o.syscall_sp, 0x1e00),
            (o.goid, 17),
            (o.wait_reason, 0x1122_3316),
            (o.g_m, 0),
        ];
        fields.into_iter().map(|(offset, value)| (G + u64::from(offset), value)).collect()
    }

    fn read(memory: &HashMap<u64, u64>) -> Result<Goroutine, Refusal> {
        Goroutine::read(&mut |at| memory.get(&at).copied(), &offsets(), G)
    }

    #[test]
    fn the_place_depends_on_the_status() {
        let waiting = read(&parked(4)).unwrap();
        assert_eq!((waiting.pause, waiting.pc, waiting.sp), (Pause::Waiting, 0x40_1234, 0x1f00));
        assert_eq!((waiting.goid, waiting.wait_reason), (17, 0x16));
        let syscall = read(&parked(3)).unwrap();
        assert_eq!((syscall.pause, syscall.pc, syscall.sp), (Pause::Syscall, 0x40_5678, 0x1e00));
    }

    #[test]
    fn goroutines_that_cannot_be_read_safely_are_refused() {
        for (status, why) in [(2, "running"), (6, "ended"), (0x1004, "move"), (8, "move")] {
            let refusal = read(&parked(status)).unwrap_err().to_string();
            assert!(refusal.contains(why), "{status}: {refusal}");
        }
        let mut outside = parked(4);
        outside.insert(G + u64::from(offsets().sched_sp), 0x2000);
        assert!(read(&outside).unwrap_err().to_string().contains("outside"));
        assert!(read(&HashMap::new()).is_err());
    }
}
