//! A look into a running Go program from outside: every goroutine that does not run, where it sits, and what it waits for.
//!
//! Nothing in the program is stopped or changed. All that is read goes through [`Memory`], in few large pieces: the list
//! of goroutines, the table of semaphores, and for each goroutine its `g`, its stack, and its `g` again. What changed
//! meanwhile is read again a few times, then left out with a reason. docs/go-symbols.md tells where the places come from.

pub use super::layout::{Layout, Semaphores, WaitStarted};

use super::offsets::{self, Offsets};
use super::pclntab::Frame;
use super::unwind::{self, Goroutine, Memory, Pause, Places, Stack};
use super::waiters::{self, Waiter};
use super::{GoBinary, Refusal};
use std::collections::HashMap;

/// Bounds on one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Goroutines that are read; the others are counted.
    pub goroutines: usize,
    /// Frames of one stack.
    pub frames: usize,
    /// Bytes of one stack, from its inner end.
    pub stack_bytes: usize,
    /// Raw words of all stacks together; those read later have none.
    pub words: usize,
    /// Frames of all stacks together; goroutines read later are left out.
    pub all_frames: usize,
    /// Waiters in the table of semaphores.
    pub waiters: usize,
    /// The monotonic clock when the look begins, ns. A time behind it is not believed.
    pub now: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            goroutines: 20_000,
            frames: unwind::MAX_FRAMES,
            stack_bytes: 64 << 10,
            words: 1 << 20,
            all_frames: 1 << 18,
            waiters: 20_000,
            now: u64::MAX,
        }
    }
}

/// Makes of each `g.waitsince` a time since when that goroutine has certainly been parked, or in its system call.
///
/// A collection that finds a goroutine parked writes there when the collection *before it* ended (`work.tstart` is set by
/// `gcMark`, at the end of marking; Go 1.15 to 1.27), and running again clears it (`execute`, `exitsyscall`). So the next
/// larger time that any goroutine has is the end of a collection that had found this one parked already. The largest is
/// no bound for those that have it.
fn bound_parking(goroutines: &mut [Seen]) {
    let mut ends: Vec<u64> = goroutines.iter().filter_map(|seen| seen.parked_since).collect();
    ends.sort_unstable();
    for seen in goroutines {
        let later = seen.parked_since.map(|since| ends.partition_point(|end| *end <= since));
        seen.parked_since = later.and_then(|at| ends.get(at).copied());
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
    /// Goroutines that had ended, or not begun.
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
    /// Where it sits, with files and lines.
    pub stack: Stack,
    /// The semaphore it waits for.
    pub waits: Option<SemaphoreWait>,
    /// It has been parked, or in the same system call, since this time at the latest (`CLOCK_MONOTONIC`, ns): a garbage
    /// collection that ended then had found it so.
    pub parked_since: Option<u64>,
    /// The `go` statement that made it.
    pub created_by: Option<Creator>,
    /// Its stack's raw words, from the stack pointer up to the outermost frame; word n lies at `goroutine.sp + 8 n`.
    pub words: Vec<u64>,
}

impl Seen {
    /// The raw word at an address on its stack.
    pub fn word_at(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.goroutine.sp).filter(|offset| offset % 8 == 0)?;
        self.words.get(usize::try_from(offset / 8).ok()?).copied()
    }
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
    /// The function whose code holds the `go` statement, and the statement's file and line, as Go prints them.
    pub function: Frame,
    /// Number of the goroutine that ran it; since Go 1.21.
    pub goroutine: Option<u64>,
    /// Where the `go` statement continues, an address in the running program.
    pub pc: u64,
    /// How far behind the function's entry that is.
    pub offset: u64,
}

/// Looks at a program; `bias` is [`super::elf::Elf::load_bias`].
pub fn look(
    binary: &GoBinary<'_>,
    bias: u64,
    layout: &Layout,
    memory: &mut impl Memory,
    limits: &Limits,
) -> Result<Look, Refusal> {
    Looker::new(binary, layout, *limits).look(bias, memory)
}

/// Looks at processes that run the same program, and remembers what it learned of its code.
pub struct Looker<'b, 'd> {
    layout: &'b Layout,
    /// The bounds; the clock among them changes from look to look.
    pub limits: Limits,
    places: Places<'b, 'd>,
    words_left: usize,
    frames_left: usize,
}

/// Rounds in which goroutines that moved while they were read are read again.
const ROUNDS: usize = 4;
/// More goroutines than fit into any memory.
const MOST_GOROUTINES: u64 = 1 << 28;

/// What reading one goroutine came to.
enum Read {
    Seen(Box<Seen>),
    Running,
    Dead,
    /// It changed meanwhile; worth another try.
    Again(Refusal),
    /// There is no room for it.
    Refused(Refusal),
    /// What may be incomplete, and is worth another try.
    Unsure(Box<Seen>),
}

impl<'b, 'd> Looker<'b, 'd> {
    /// For one program, with these bounds.
    pub fn new(binary: &'b GoBinary<'d>, layout: &'b Layout, limits: Limits) -> Looker<'b, 'd> {
        Looker { layout, limits, places: Places::new(binary, true), words_left: 0, frames_left: 0 }
    }

    /// Where the program's runtime keeps what is read.
    pub fn layout(&self) -> &'b Layout {
        self.layout
    }

    /// Looks at a process; `bias` is [`super::elf::Elf::load_bias`].
    pub fn look(&mut self, bias: u64, memory: &mut impl Memory) -> Result<Look, Refusal> {
        (self.words_left, self.frames_left) = (self.limits.words, self.limits.all_frames);
        let (list, total) = self.list(bias, memory)?;
        let mut look = Look {
            goroutines: Vec::with_capacity(list.len()),
            total,
            running: 0,
            dead: 0,
            left_out: Vec::new(),
            waiters: Ok(0),
        };
        let mut left_out = |why: Refusal, count: usize| {
            match look.left_out.iter_mut().find(|(reason, _)| *reason == why) {
                Some((_, counted)) => *counted += count,
                None => look.left_out.push((why, count)),
            };
        };
        if total > list.len() {
            let why = format!("only the first {} goroutines are read", list.len());
            left_out(Refusal::new(why), total - list.len());
        }
        let mut seen: Vec<(usize, Seen)> = Vec::with_capacity(list.len());
        let mut rest: Vec<(usize, u64)> = list.into_iter().enumerate().collect();
        for round in 0..ROUNDS {
            let table = self.waiters(bias, memory);
            if round == 0 {
                look.waiters = table.as_ref().map(HashMap::len).map_err(Clone::clone);
            }
            let last = round + 1 == ROUNDS;
            let mut again = Vec::new();
            for (n, g) in rest {
                match self.goroutine(bias, memory, g, table.as_ref().ok()) {
                    Read::Unsure(_) if !last => again.push((n, g)),
                    Read::Seen(one) | Read::Unsure(one) => {
                        self.words_left -= one.words.len();
                        self.frames_left -= one.stack.frames.len();
                        seen.push((n, *one));
                    }
                    Read::Running => look.running += 1,
                    Read::Dead => look.dead += 1,
                    Read::Refused(why) => left_out(why, 1),
                    Read::Again(why) if last => left_out(why, 1),
                    Read::Again(_) => again.push((n, g)),
                }
            }
            rest = again;
            if rest.is_empty() {
                break;
            }
        }
        seen.sort_unstable_by_key(|(n, _)| *n);
        look.goroutines = seen.into_iter().map(|(_, one)| one).collect();
        bound_parking(&mut look.goroutines);
        Ok(look)
    }

    /// Addresses of all goroutines, as many as are wanted, and how many there are.
    fn list(&self, bias: u64, memory: &mut impl Memory) -> Result<(Vec<u64>, usize), Refusal> {
        let unreadable = || Refusal::new("the list of goroutines cannot be read");
        let slice = Piece::read(memory, self.layout.all_goroutines.wrapping_add(bias), 24);
        let [first, total, capacity] =
            slice.map(|slice| [0, 8, 16].map(|at| slice.field(at))).ok_or_else(unreadable)?;
        if total > capacity || total > MOST_GOROUTINES || total == 0 {
            return Err(Refusal::new(format!("the list of goroutines cannot have {total} of {capacity}")));
        }
        let total = total as usize;
        let size = total.min(self.limits.goroutines) * 8;
        let list = Piece::read(memory, first, size).ok_or_else(unreadable)?;
        Ok((list.bytes.chunks_exact(8).map(word_of).collect(), total))
    }

    /// Who waits for semaphores: the address of each `g`.
    fn waiters(&self, bias: u64, memory: &mut impl Memory) -> Result<HashMap<u64, Waiter>, Refusal> {
        let semaphores = self.layout.semaphores.ok_or_else(|| {
            Refusal::new("runtime.semtable cannot be told from the code of runtime.semrelease1")
        })?;
        waiters::read(&semaphores, bias, &self.layout.offsets, memory, self.limits.waiters)
    }

    fn goroutine(
        &mut self,
        bias: u64,
        memory: &mut impl Memory,
        g: u64,
        table: Option<&HashMap<u64, Waiter>>,
    ) -> Read {
        let layout = self.layout;
        let offsets = &layout.offsets;
        // `waiting` is the last of the fields that are read.
        let size = usize::from(offsets.waiting) + 8;
        let Some(mut before) = Piece::read(memory, g, size) else {
            return Read::Again(Refusal::new("its memory cannot be read"));
        };
        match before.field(offsets.atomic_status) as u32 & !offsets::STATUS_SCAN {
            offsets::STATUS_RUNNING => return Read::Running,
            offsets::STATUS_IDLE | offsets::STATUS_DEAD | offsets::STATUS_DEAD_EXTRA => return Read::Dead,
            _ => {}
        }
        let goroutine = match Goroutine::read(&mut before, offsets, g) {
            Ok(goroutine) => goroutine,
            Err(why) => return Read::Again(why),
        };
        let reason = match goroutine.pause {
            Pause::Waiting => layout.reasons.get(usize::from(goroutine.wait_reason)),
            Pause::Syscall | Pause::Runnable => None,
        };
        let reason = reason.map_or("", String::as_str);
        let waiter = match goroutine.pause {
            Pause::Waiting => waiter(memory, offsets, &before, reason, table),
            Pause::Syscall | Pause::Runnable => Ok(None),
        };

        let length = (goroutine.stack_hi - goroutine.sp).min(self.limits.stack_bytes as u64) as usize / 8 * 8;
        let Some(mut copy) = Piece::read(memory, goroutine.sp, length) else {
            return Read::Again(Refusal::new("its stack cannot be read"));
        };
        let thread = thread(memory, offsets, &goroutine);
        let (mut frames, most) = (Vec::new(), self.limits.frames);
        let ended = unwind::walk(&mut self.places, bias, &mut copy, &goroutine, most, &mut frames);
        let cut = match ended {
            Err(_) if copy.missed => {
                Some(Refusal::new(format!("only the inner {length} bytes of the stack are read")))
            }
            ended => ended.err(),
        };
        let started = layout.wait_started.as_ref().and_then(|kept| {
            let frame = frames.iter().find(|f| kept.resumes.contains(&f.pc.wrapping_sub(bias)))?;
            let at = frame.sp.checked_add(u64::from(kept.slot))?;
            copy.word(at)
        });

        let used = frames.last().map_or(0, |outermost| (outermost.sp - goroutine.sp) as usize / 8 + 1);
        let used = used.min(length / 8);
        // All of it decided where a stack was cut.
        let decided = if cut.is_some() { length } else { used * 8 };
        // The goroutine has been where it is all the time if it is there still, and its stack is what was read: one that
        // ran and came back in between differs in one or the other.
        let after = Piece::read(memory, g, size).filter(|after| {
            let waiting = |piece: &Piece| piece.field(offsets.waiting);
            waiting(after) == waiting(&before)
                && Goroutine::read(&mut after.clone(), offsets, g).as_ref() == Ok(&goroutine)
        });
        let again = Piece::read(memory, goroutine.sp, decided);
        let same = again.is_some_and(|again| copy.bytes.starts_with(&again.bytes));
        let Some(after) = after.filter(|_| same) else {
            return Read::Again(Refusal::new("it moved on while it was read"));
        };
        let believed = |at: &u64| (1..=self.limits.now).contains(at);
        let (waits, unsure) = match waiter {
            Ok(Some(waiter)) if waiter.holds(memory, offsets) => {
                let since = started.filter(believed);
                (Some(SemaphoreWait { semaphore: waiter.semaphore, since }), false)
            }
            Ok(None) => (None, false),
            Ok(Some(_)) | Err(_) => (None, true),
        };
        // What `g.waitsince` says; see `bound_parking`.
        let parked_since = match goroutine.pause {
            Pause::Waiting | Pause::Syscall => Some(after.field(offsets.wait_since)).filter(believed),
            Pause::Runnable => None,
        };
        if frames.len() > self.frames_left {
            let all = self.limits.all_frames;
            return Read::Refused(Refusal::new(format!("only {all} frames are kept")));
        }
        frames.shrink_to_fit();
        let kept = self.words_left.min(used);
        let seen = Box::new(Seen {
            goroutine,
            reason: reason.to_owned(),
            thread,
            stack: Stack { frames, cut },
            waits,
            parked_since,
            created_by: self.creator(bias, &after),
            words: copy.bytes.chunks_exact(8).take(kept).map(word_of).collect(),
        });
        if unsure { Read::Unsure(seen) } else { Read::Seen(seen) }
    }

    fn creator(&mut self, bias: u64, g: &Piece) -> Option<Creator> {
        let offsets = &self.layout.offsets;
        let pc = g.field(offsets.go_pc);
        let (functions, offset) = self.places.functions(pc.wrapping_sub(bias))?;
        let (innermost, outermost) = (functions.first()?, functions.last()?);
        Some(Creator {
            function: Frame { name: outermost.name.clone(), inlined: false, ..innermost.clone() },
            goroutine: offsets.parent_goid.map(|at| g.field(at)).filter(|goid| *goid > 0),
            pc,
            offset,
        })
    }
}

/// The entry of a parked goroutine in the table of semaphores. Where the goroutine names it too, both must agree. What
/// does not fit may do so a moment later.
fn waiter(
    memory: &mut impl Memory,
    offsets: &Offsets,
    g: &Piece,
    reason: &str,
    table: Option<&HashMap<u64, Waiter>>,
) -> Result<Option<Waiter>, ()> {
    let named = g.field(offsets.waiting);
    let found = match table {
        Some(table) => table.get(&g.at).copied(),
        None if offsets.waiting_names_semaphore => Waiter::read(memory, offsets, named),
        None => return Ok(None),
    };
    match found {
        Some(found) if offsets.waiting_names_semaphore && found.at != named => Err(()),
        Some(found) if found.g == g.at && found.holds(memory, offsets) => Ok(Some(found)),
        // It may have parked after the table was read, or just been taken out of it.
        None if !must_be_listed(reason) => Ok(None),
        _ => Err(()),
    }
}

/// Whether a goroutine that waits for this is in the table of semaphores.
fn must_be_listed(reason: &str) -> bool {
    matches!(
        reason,
        "semacquire" | "sync.Mutex.Lock" | "sync.RWMutex.RLock" | "sync.RWMutex.Lock" | "sync.WaitGroup.Wait"
    )
}

/// The thread of a goroutine in a system call.
fn thread(memory: &mut impl Memory, offsets: &Offsets, goroutine: &Goroutine) -> Option<u32> {
    if goroutine.pause != Pause::Syscall || goroutine.m == 0 {
        return None;
    }
    let mut field = |offset: u16| memory.word(goroutine.m.wrapping_add(u64::from(offset)));
    let (id, current) = (field(offsets.m_procid)?, field(offsets.m_curg)?);
    u32::try_from(id).ok().filter(|id| *id > 0 && current == goroutine.g)
}

fn word_of(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// A copied piece of the target's memory.
#[derive(Clone)]
pub(super) struct Piece {
    at: u64,
    bytes: Vec<u8>,
    /// Whether a word outside of it was asked for.
    missed: bool,
}

impl Piece {
    /// Copies `size` bytes, or none.
    pub(super) fn read(memory: &mut impl Memory, at: u64, size: usize) -> Option<Piece> {
        let mut bytes = vec![0; size];
        (memory.read(at, &mut bytes) == size).then_some(Piece { at, bytes, missed: false })
    }

    /// The field at an offset; 0 outside.
    pub(super) fn field(&self, offset: u16) -> u64 {
        self.word_in(usize::from(offset))
    }

    /// The word at an offset; 0 outside.
    pub(super) fn word_in(&self, from: usize) -> u64 {
        self.bytes.get(from..from + 8).map_or(0, word_of)
    }
}

impl Memory for Piece {
    fn word(&mut self, address: u64) -> Option<u64> {
        let from = address.checked_sub(self.at).and_then(|from| usize::try_from(from).ok());
        let word = from.and_then(|from| self.bytes.get(from..from.checked_add(8)?)).map(word_of);
        self.missed |= word.is_none();
        word
    }
}
