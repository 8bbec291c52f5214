//! Offsets of a Go version that is in no table, found in the running program itself.
//!
//! The runtime's structs consist of groups of fields that have kept their inner order since Go 1.15 and only move as a
//! whole. For each group every place is tried, and one is believed only if all goroutines of the program bear it out, in
//! ways that chance does not: whole stacks unwind to their first function, threads are the process's own, the
//! `go` statements found are calls of the function that makes goroutines. If two places fit, or none, it is refused.

use super::goroutines::Piece;
use super::layout::Layout;
use super::offsets::{self, Offsets, WaitReasons};
use super::unwind::{self, Goroutine, Memory, Pause, Places};
use super::waiters::{self, Waiter};
use super::{GoBinary, Name, Refusal};
use std::collections::BTreeSet;

/// Goroutines that are asked, and bytes of each.
const MOST: usize = 64;
const BYTES: usize = 512;
/// Fewest that must be parked for an answer: the runtime's own.
const FEWEST_PARKED: usize = 3;
/// More goroutines than a process makes in years.
const LARGEST_NUMBER: u64 = 1 << 40;
/// Tries, because the program goes on meanwhile.
const TRIES: usize = 4;

/// A goroutine's memory, and what of it is known so far.
struct G {
    piece: Piece,
    at: u64,
    status: u32,
}

impl Layout {
    /// What [`Layout::of`] tells, for a version whose offsets are in no table; `threads` are the ids of the process's
    /// threads in its own pid namespace. Needs a program that has goroutines in a system call, as all daemons that
    /// handle signals have.
    pub fn calibrate(
        binary: &GoBinary<'_>,
        bias: u64,
        memory: &mut impl Memory,
        threads: &[u32],
    ) -> Result<Layout, Refusal> {
        let all = unwind::all_goroutines(binary)?.wrapping_add(bias);
        let mut result = Err(Refusal::new("never tried"));
        for _ in 0..TRIES {
            result = offsets_of(binary, bias, memory, all, threads);
            if result.is_ok() {
                break;
            }
        }
        let unfit = |why: Refusal| {
            Refusal::new(format!("{}: not known, and not to be found: {why}", binary.build.go))
        };
        let (found, evidence) = result.map_err(unfit)?;
        let mut layout = Layout::with(binary, found)?;
        if layout.reasons.is_empty() {
            return Err(unfit(Refusal::new("the words for wait reasons are not where they are expected")));
        }
        let number = |word: &str| layout.reasons.iter().position(|reason| reason == word).unwrap_or(0) as u8;
        layout.offsets.wait_reasons = WaitReasons {
            mutex: number("sync.Mutex.Lock"),
            read: number("sync.RWMutex.RLock"),
            write: number("sync.RWMutex.Lock"),
        };
        waiter_fields(&mut layout, bias, memory);
        layout.calibrated = Some(format!(
            "{} is not known; its layout was found in the running program and borne out by {evidence}",
            binary.build.go
        ));
        Ok(layout)
    }
}

/// The one place that fits, of those tried.
fn only(
    what: &str,
    places: impl Iterator<Item = u16>,
    fits: impl FnMut(&u16) -> bool,
) -> Result<u16, Refusal> {
    let found: Vec<u16> = places.filter(fits).collect();
    match found[..] {
        [one] => Ok(one),
        _ => Err(Refusal::new(format!("{what} could be at {found:?}"))),
    }
}

fn words(from: u16, to: u16) -> impl Iterator<Item = u16> {
    (from..=to).step_by(8)
}

fn offsets_of(
    binary: &GoBinary<'_>,
    bias: u64,
    memory: &mut impl Memory,
    all: u64,
    threads: &[u32],
) -> Result<(Offsets, String), Refusal> {
    let unreadable = || Refusal::new("its goroutines cannot be read");
    let list = Piece::read(memory, all, 16).ok_or_else(unreadable)?;
    let count = (list.field(8) as usize).min(MOST);
    let list = Piece::read(memory, list.field(0), count * 8).ok_or_else(unreadable)?;
    let mut gs = Vec::new();
    for n in 0..count {
        let at = list.word_in(8 * n);
        let piece = Piece::read(memory, at, BYTES).ok_or_else(unreadable)?;
        gs.push(G { piece, at, status: 0 });
    }

    // atomicstatus, (stackLock,) goid, schedlink, waitsince, waitreason.
    let goid = only("the number", words(96, 256), |at| {
        let numbers: BTreeSet<u64> = gs.iter().map(|g| g.piece.field(*at)).collect();
        let states = gs.iter().map(|g| g.piece.field(*at - 8) as u32 & !offsets::STATUS_SCAN);
        let parked = states.clone().filter(|state| *state == offsets::STATUS_WAITING).count();
        gs.first().is_some_and(|g| g.piece.field(*at) == 1)
            && numbers.len() == gs.len()
            && numbers.range(1..LARGEST_NUMBER).count() == gs.len()
            && states.clone().all(|state| matches!(state, 0..=4 | 6 | 8..=11))
            && parked >= FEWEST_PARKED
    })?;
    for g in &mut gs {
        g.status = g.piece.field(goid - 8) as u32;
    }
    let with = |status: u32| gs.iter().filter(move |g| g.status == status);
    let (parked, calling) = (with(offsets::STATUS_WAITING), with(offsets::STATUS_SYSCALL));
    if calling.clone().next().is_none() {
        return Err(Refusal::new("no goroutine is in a system call"));
    }

    let mut places = Places::new(binary, false);
    let mut whole = |g: &G, sp: u64, pc: u64| {
        let (lo, hi) = (g.piece.field(0), g.piece.field(8));
        let goroutine =
            Goroutine { g: g.at, goid: 0, pause: Pause::Waiting, wait_reason: 0, m: 0, pc, sp, stack_hi: hi };
        let (most, mut frames) = (unwind::MAX_FRAMES, Vec::new());
        // So many frames that fit onto each other are as good as the outermost.
        (lo..hi).contains(&sp)
            && (unwind::walk(&mut places, bias, memory, &goroutine, most, &mut frames).is_ok()
                || frames.len() == most)
    };
    // gobuf: sp, pc, g, ….
    let sched_sp = only("the place of parked goroutines", words(32, 96), |at| {
        parked
            .clone()
            .all(|g| g.piece.field(*at + 16) == g.at && whole(g, g.piece.field(*at), g.piece.field(*at + 8)))
    })?;
    // Behind it: syscallsp, syscallpc.
    let syscall_sp = only("the place of system calls", words(sched_sp + 32, sched_sp + 80), |at| {
        parked.clone().all(|g| g.piece.field(*at) == 0)
            && calling.clone().all(|g| whole(g, g.piece.field(*at), g.piece.field(*at + 8)))
    })?;
    // procid, and far behind it curg.
    const CURG: u16 = 120;
    const G_M: u16 = 48;
    let m_procid = only("the thread", words(32, 120), |at| {
        calling.clone().all(|g| {
            let m = g.piece.field(G_M);
            let mut word = |offset: u16| memory.word(m.wrapping_add(u64::from(offset)));
            let id = word(*at).and_then(|id| u32::try_from(id).ok());
            id.is_some_and(|id| threads.contains(&id)) && word(*at + CURG) == Some(g.at)
        })
    })?;
    // parentGoid, gopc, ancestors, startpc, racectx, waiting.
    let news = binary.find(&[Name::Exact("runtime.newproc")]);
    let made_by_go = |pc: u64| {
        // call rel32
        let at = pc.wrapping_sub(bias);
        let code = binary.elf.bytes_at(at.wrapping_sub(5), 5);
        let target = code.and_then(|code| match code {
            [0xe8, rest @ ..] => {
                Some(at.wrapping_add_signed(i64::from(i32::from_le_bytes(rest.try_into().ok()?))))
            }
            _ => None,
        });
        target.is_some_and(|to| news.iter().flatten().any(|new| new.entry == to))
    };
    let go_pc = only("the go statement", words(goid + 64, 440), |at| {
        let alive = gs.iter().skip(1).filter(|g| {
            !matches!(g.status, offsets::STATUS_IDLE | offsets::STATUS_DEAD | offsets::STATUS_DEAD_EXTRA)
        });
        alive.clone().count() >= FEWEST_PARKED && alive.clone().all(|g| made_by_go(g.piece.field(*at)))
    })?;
    let parents = || gs.iter().map(|g| g.piece.field(go_pc - 8));
    let parent = gs.first().is_some_and(|g| g.piece.field(go_pc - 8) == 0)
        && parents().any(|parent| parent == 1)
        && parents().all(|parent| parent < LARGEST_NUMBER);

    let evidence = format!(
        "{} goroutines, {} stacks of parked ones, {} in system calls",
        gs.len(),
        parked.clone().count(),
        calling.clone().count()
    );
    let found = Offsets {
        g_stack_lo: 0,
        g_stack_hi: 8,
        g_m: G_M,
        sched_sp,
        sched_pc: sched_sp + 8,
        sched_bp: syscall_sp - 8,
        syscall_sp,
        syscall_pc: syscall_sp + 8,
        syscall_bp: None,
        atomic_status: goid - 8,
        goid,
        wait_since: goid + 16,
        wait_reason: goid + 24,
        waiting: go_pc + 32,
        go_pc,
        parent_goid: parent.then_some(go_pc - 8),
        m_procid,
        m_curg: m_procid + CURG,
        sudog_g: 0,
        sudog_next: 8,
        sudog_prev: 16,
        sudog_elem: 24,
        sudog_wait_link: WAIT_LINKS[0],
        wait_reasons: WaitReasons { mutex: 0, read: 0, write: 0 },
        waiting_names_semaphore: false,
    };
    Ok((found, evidence))
}

/// Where `sudog.waitlink` has been, newest first.
const WAIT_LINKS: [u16; 3] = [72, 64, 80];

/// Fields that only waiters can show. Where there are none, what is assumed here is never used; where it is wrong, a
/// waiter is not found, because each entry is checked by itself.
fn waiter_fields(layout: &mut Layout, bias: u64, memory: &mut impl Memory) {
    const MOST_WAITERS: usize = 10_000;
    let Some(semaphores) = layout.semaphores else { return };
    let mut best = None;
    for link in WAIT_LINKS {
        let mut tried = layout.offsets;
        tried.sudog_wait_link = link;
        let Ok(found) = waiters::read(&semaphores, bias, &tried, memory, MOST_WAITERS) else { continue };
        if best.as_ref().is_none_or(|(most, _): &(usize, Offsets)| found.len() > *most) {
            let mut names = |waiter: &Waiter| {
                let waiting = memory.word(waiter.g.wrapping_add(u64::from(tried.waiting)));
                waiting == Some(waiter.at)
            };
            tried.waiting_names_semaphore = !found.is_empty() && found.values().all(&mut names);
            best = Some((found.len(), tried));
        }
    }
    if let Some((_, offsets)) = best {
        layout.offsets = offsets;
    }
}
