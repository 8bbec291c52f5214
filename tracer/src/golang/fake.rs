//! Looks into made-up memory: goroutines, waiters and stacks that change at every possible moment, or make no sense.

use super::buildinfo::GoVersion;
use super::goroutines::{Layout, Limits, Look, Looker, Semaphores, WaitStarted, look};
use super::offsets::Offsets;
use super::pclntab::Format;
use super::synthetic::{ACQUIRE, LIST, program};
use super::unwind::{Memory, Pause};
use super::waiters;
use super::{GoBinary, Refusal};
use proptest::prelude::*;
use std::collections::HashMap;

const LISTED: u64 = 0x1_0000;
const ARRAY: u64 = 0x1_1000;
const TABLE: u64 = 0x2_0000;
const G: u64 = 0xc000_0000;
const M: u64 = 0xd000_0000;
const SUDOG: u64 = 0xe000_0000;
const STACK: u64 = 0xf000_0000;
/// In truth 251.
const ROOTS: u32 = 7;

/// Behind the inlined call of the last function of the program, where the depth is 56.
const PLACE: u64 = LIST + 0x15;

fn offsets(minor: u32) -> Offsets {
    Offsets::of(GoVersion { minor, patch: 0 }).unwrap()
}

fn layout(minor: u32) -> Layout {
    Layout {
        all_goroutines: LISTED,
        semaphores: Some(Semaphores { table: TABLE, roots: ROOTS, stride: 64 }),
        wait_started: Some(WaitStarted { resumes: vec![PLACE], slot: 0x30 }),
        reasons: ["", "select", "sync.Mutex.Lock"].map(str::to_owned).to_vec(),
        offsets: offsets(minor),
        calibrated: None,
    }
}

/// Words at addresses; the rest cannot be read, except in the table of semaphores. From a certain read on, other words.
#[derive(Clone, Default)]
struct World {
    words: HashMap<u64, u64>,
    reads: usize,
    then: Option<(usize, HashMap<u64, u64>)>,
}

impl Memory for World {
    fn word(&mut self, address: u64) -> Option<u64> {
        self.reads += 1;
        if self.then.as_ref().is_some_and(|(at, _)| self.reads > *at) {
            self.words = self.then.take().unwrap().1;
        }
        let table = (TABLE..TABLE + 64 * u64::from(ROOTS)).contains(&address);
        self.words.get(&address).copied().or(table.then_some(0))
    }
}

impl World {
    /// A whole `g`, at the end of the list.
    fn goroutine(&mut self, o: &Offsets, n: u64, status: u64, sp: u64, fields: &[(u16, u64)]) -> u64 {
        let g = G + 0x1000 * n;
        for at in (0..=u64::from(o.waiting)).step_by(8) {
            self.words.insert(g + at, 0);
        }
        let own = [
            (o.g_stack_lo, STACK + 0x1_0000 * n),
            (o.g_stack_hi, STACK + 0x1_0000 * n + 0x8000),
            (o.sched_pc, PLACE),
            (o.sched_sp, sp),
            (o.syscall_pc, PLACE),
            (o.syscall_sp, sp),
            (o.atomic_status, status),
            (o.goid, 100 + n),
            (o.wait_reason, 2),
        ];
        for &(field, value) in own.iter().chain(fields) {
            self.words.insert(g + u64::from(field), value);
        }
        self.words.insert(ARRAY + 8 * n, g);
        for (at, value) in [(0, ARRAY), (8, n + 1), (16, 64)] {
            self.words.insert(LISTED + at, value);
        }
        g
    }

    /// A stack of two frames whose words all say `mark`, the first with the time its wait began.
    fn stack(&mut self, sp: u64, hi: u64, mark: u64, since: u64) {
        for at in (sp..hi).step_by(8) {
            self.words.insert(at, mark);
        }
        self.words.extend([(sp + 0x30, since), (sp + 56, PLACE), (sp + 64 + 56, 0x10)]);
    }

    fn waiter(&mut self, o: &Offsets, sudog: u64, g: u64, semaphore: u64, next: [u64; 3]) {
        for at in (0..=u64::from(o.sudog_wait_link)).step_by(8) {
            self.words.insert(sudog + at, 0);
        }
        let fields = [
            (o.sudog_g, g),
            (o.sudog_elem, semaphore),
            (o.sudog_prev, next[0]),
            (o.sudog_next, next[1]),
            (o.sudog_wait_link, next[2]),
        ];
        self.words.extend(fields.map(|(field, value)| (sudog + u64::from(field), value)));
    }

    fn root(&mut self, semaphore: u64, sudog: u64) {
        self.words.insert(TABLE + 64 * ((semaphore >> 3) % u64::from(ROOTS)) + 8, sudog);
    }
}

/// One goroutine that waits for a Mutex.
fn waiting(o: &Offsets, sp: u64, mark: u64, since: u64, semaphore: u64) -> World {
    let mut world = World::default();
    let g = world.goroutine(o, 0, 4, sp, &[(o.waiting, SUDOG), (o.go_pc, ACQUIRE + 6), (o.wait_since, 5)]);
    world.stack(sp, STACK + 0x8000, mark, since);
    world.waiter(o, SUDOG, g, semaphore, [0; 3]);
    world.root(semaphore, SUDOG);
    world
}

fn with_binary<T>(run: impl FnOnce(&GoBinary<'_>) -> T) -> T {
    run(&GoBinary::parse(&program(Format::Go120, "go1.27.1", false)).unwrap())
}

fn look_at(minor: u32, world: &mut World) -> Look {
    let limits = Limits { now: 1000, ..Limits::default() };
    with_binary(|binary| look(binary, 0, &layout(minor), world, &limits).unwrap())
}

#[test]
fn a_wait_is_read_with_its_lock_its_time_and_its_stack() {
    for minor in [15, 19, 24, 25, 26, 27] {
        let o = offsets(minor);
        let look = look_at(minor, &mut waiting(&o, STACK + 0x7f00, 7, 900, 0x5004));
        let [seen] = &look.goroutines[..] else { panic!("{look:?}") };
        assert_eq!((seen.goroutine.goid, &*seen.reason), (100, "sync.Mutex.Lock"));
        let waits = seen.waits.unwrap();
        assert_eq!((waits.semaphore, waits.since), (0x5004, Some(900)), "1.{minor}");
        assert_eq!(seen.parked_since, None, "no other goroutine tells of a later collection");
        assert_eq!(seen.stack.frames.len(), 2);
        assert_eq!(seen.stack.frames[0].functions.len(), 3, "two are inlined");
        assert_eq!(seen.stack.cut.as_ref().unwrap().to_string(), "0x10 is in no Go function");
        assert_eq!(seen.created_by.as_ref().unwrap().function.name, "runtime.semacquire1");
        assert_eq!(seen.word_at(seen.goroutine.sp + 56), Some(PLACE));
        assert_eq!(seen.word_at(seen.goroutine.sp + 57), None);
        assert_eq!((look.total, look.left_out.len(), look.waiters.clone()), (1, 0, Ok(1)));
    }
}

#[test]
fn times_that_cannot_be_right_are_not_believed() {
    for since in [0, 1001, u64::MAX] {
        let look = look_at(27, &mut waiting(&offsets(27), STACK + 0x7f00, 7, since, 0x5004));
        assert_eq!(look.goroutines[0].waits.unwrap().since, None, "{since}");
    }
}

/// At whatever moment the program goes on, what is told belongs together.
#[test]
fn a_goroutine_that_moves_on_is_never_half_of_each() {
    for minor in [19, 27] {
        let o = offsets(minor);
        let here = STACK + 0x7f00;
        let before = waiting(&o, here, 7, 900, 0x5004);
        // Its stack was moved; it came to wait for another lock at the same place; it runs.
        let moved = waiting(&o, STACK + 0x7e00, 8, 901, 0x5004);
        let other = waiting(&o, here, 8, 901, 0x9014);
        let mut runs = other.clone();
        runs.words.insert(G + u64::from(o.atomic_status), 2);
        runs.root(0x9014, 0);
        for (after, lock) in [(moved, 0x5004), (other, 0x9014), (runs, 0)] {
            let (mut old, mut new) = (0, 0);
            for at in 0.. {
                let mut world = before.clone();
                world.then = Some((at, after.words.clone()));
                let look = look_at(minor, &mut world);
                let all_read = world.then.is_some();
                let counted = look.goroutines.len() + look.running + look.left_out.len();
                assert_eq!(counted, 1, "1.{minor} at {at}: {look:?}");
                if let Some(seen) = look.goroutines.first() {
                    let mark = seen.words[0];
                    let expected = if mark == 7 { (0x5004, 900) } else { (lock, 901) };
                    if mark == 7 {
                        old += 1
                    } else {
                        new += 1
                    }
                    let told = seen.waits.map(|w| (w.semaphore, w.since.unwrap()));
                    assert!(told.is_none_or(|told| told == expected), "1.{minor} at {at}: {seen:?}");
                    assert!(seen.words.iter().all(|w| *w == mark || *w == PLACE || *w == expected.1));
                }
                if all_read {
                    break;
                }
            }
            assert!(old > 0 && (new > 0 || lock == 0), "1.{minor}: {old} {new}");
        }
    }
}

#[test]
fn a_stack_that_changed_and_looks_parked_again_is_read_again() {
    let o = offsets(15);
    let before = waiting(&o, STACK + 0x7f00, 7, 900, 0x5004);
    let mut torn = before.clone();
    torn.words.insert(STACK + 0x7f00 + 56, 0);
    // The second frame is gone only while the stack is read first.
    let look = look_at(15, &mut torn.clone());
    assert_eq!(look.goroutines[0].stack.frames.len(), 1);
    for at in 0.. {
        let mut world = torn.clone();
        world.then = Some((at, before.words.clone()));
        let look = look_at(15, &mut world);
        let Some(seen) = look.goroutines.first() else { continue };
        let frames = seen.stack.frames.len();
        assert_eq!(frames == 2, seen.word_at(STACK + 0x7f00 + 56) == Some(PLACE), "{at}");
        if world.then.is_some() {
            break;
        }
    }
}

#[test]
fn what_runs_ended_or_cannot_be_read_is_counted() {
    let o = offsets(27);
    let mut world = World::default();
    for (n, status) in (0..).zip([2, 0x1002, 6, 11, 0, 4, 0x1004, 8, 9]) {
        world.goroutine(&o, n, status, STACK + 0x1_0000 * n + 0x7f00, &[]);
    }
    world.words.insert(ARRAY + 8 * 9, 0x123);
    world.words.insert(LISTED + 8, 10);
    let look = look_at(27, &mut world);
    assert_eq!((look.total, look.running, look.dead, look.goroutines.len()), (10, 2, 3, 0));
    let told: Vec<(String, usize)> = look.left_out.iter().map(|(why, n)| (why.to_string(), *n)).collect();
    let expected = [
        ("its stack cannot be read", 1),
        ("the goroutine's stack may move now (status 0x1004)", 1),
        ("the goroutine's stack may move now (status 0x8)", 1),
        ("the goroutine's stack may move now (status 0x9)", 1),
        ("its memory cannot be read", 1),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (why, count) in expected {
        assert!(told.contains(&(why.to_owned(), count)), "{why}: {told:?}");
    }
}

#[test]
fn system_calls_name_their_thread_if_it_says_the_same() {
    let o = offsets(27);
    for (current, thread) in [(G, Some(4711)), (G + 8, None)] {
        let mut world = World::default();
        let sp = STACK + 0x7f00;
        world.goroutine(&o, 0, 3, sp, &[(o.g_m, M)]);
        world.stack(sp, STACK + 0x8000, 1, 0);
        world.words.extend([(M + u64::from(o.m_procid), 4711), (M + u64::from(o.m_curg), current)]);
        let look = look_at(27, &mut world);
        let seen = &look.goroutines[0];
        assert_eq!((seen.goroutine.pause, seen.thread, &*seen.reason), (Pause::Syscall, thread, ""));
    }
}

#[test]
fn the_goroutine_and_the_table_must_agree() {
    let o = offsets(27);
    let mut world = waiting(&o, STACK + 0x7f00, 7, 900, 0x5004);
    world.words.insert(G + u64::from(o.waiting), SUDOG + 0x1000);
    assert_eq!(look_at(27, &mut world).goroutines[0].waits, None);
    // Not in the table at all.
    let mut world = waiting(&o, STACK + 0x7f00, 7, 900, 0x5004);
    world.root(0x5004, 0);
    assert_eq!(look_at(27, &mut world).goroutines[0].waits, None);
}

#[test]
fn a_tree_of_waiters_with_lists_and_cycles_is_walked_once() {
    let o = offsets(27);
    let semaphores = layout(27).semaphores.unwrap();
    let mut world = World::default();
    // Addresses of one root: the hash ignores the low three bits, and repeats after as many eights as there are roots.
    let address = |n: u64| 0x8000 + 8 * u64::from(ROOTS) * n;
    let sudog = |n: u64| SUDOG + 0x100 * n;
    for n in 0..100 {
        let (left, right) = (2 * n + 1, 2 * n + 2);
        let child = |n: u64| if n < 100 { sudog(n) } else { sudog(n % 7) };
        world.waiter(&o, sudog(n), G + n, address(n), [child(left), child(right), sudog(n + 200)]);
        world.waiter(&o, sudog(n + 200), G + 200 + n, address(n), [0, 0, sudog(n)]);
    }
    // One that was taken out meanwhile, and means another root now.
    world.waiter(&o, sudog(203), G + 203, address(3) + 8, [sudog(500); 3]);
    world.root(address(0), sudog(0));
    let found = waiters::read(&semaphores, 0, &o, &mut world, 1000).unwrap();
    assert_eq!(found.len(), 199);
    assert_eq!(found[&(G + 42)].semaphore, address(42));
    assert_eq!(found[&(G + 242)].semaphore, address(42));
    assert!(!found.contains_key(&(G + 203)));
    let too_many = waiters::read(&semaphores, 0, &o, &mut world, 50).unwrap_err().to_string();
    assert_eq!(too_many, "more than 50 wait for semaphores");
}

#[test]
fn bounds_hold_and_are_told() {
    let o = offsets(27);
    let mut world = World::default();
    for n in 0..40 {
        let sp = STACK + 0x1_0000 * n + 0x1000;
        world.goroutine(&o, n, 4, sp, &[(o.wait_reason, 1)]);
        world.stack(sp, STACK + 0x1_0000 * n + 0x8000, n, 0);
    }
    let limits = Limits { goroutines: 30, stack_bytes: 96, words: 100, ..Limits::default() };
    let look = with_binary(|binary| Looker::new(binary, &layout(27), limits).look(0, &mut world)).unwrap();
    assert_eq!((look.goroutines.len(), look.total), (30, 40));
    assert_eq!(look.left_out[0].0.to_string(), "only the first 30 goroutines are read");
    assert_eq!(look.left_out[0].1, 10);
    let cut = look.goroutines[0].stack.cut.as_ref().unwrap().to_string();
    assert_eq!(cut, "only the inner 96 bytes of the stack are read");
    assert_eq!(look.goroutines.iter().map(|seen| seen.words.len()).sum::<usize>(), 100);
    let limits = Limits { stack_bytes: 96, all_frames: 7, ..Limits::default() };
    let look = with_binary(|binary| Looker::new(binary, &layout(27), limits).look(0, &mut world)).unwrap();
    let each = look.goroutines[0].stack.frames.len();
    assert_eq!(look.goroutines.len(), 7 / each);
    assert_eq!(look.left_out, [(Refusal::new("only 7 frames are kept"), 40 - 7 / each)]);
}

/// A process that ends in the middle of a look is told as far as it was read, or not at all.
#[test]
fn memory_that_goes_away_gives_nothing_wrong() {
    for minor in [19, 27] {
        let o = offsets(minor);
        let before = waiting(&o, STACK + 0x7f00, 7, 900, 0x5004);
        let whole = look_at(minor, &mut before.clone());
        let (mut nothing, mut something) = (0, 0);
        for at in 0.. {
            let mut world = before.clone();
            world.then = Some((at, HashMap::new()));
            let limits = Limits { now: 1000, ..Limits::default() };
            let look = with_binary(|binary| look(binary, 0, &layout(minor), &mut world, &limits));
            match look {
                Ok(look) if look.goroutines.is_empty() => {
                    assert_eq!(look.left_out.iter().map(|(_, count)| count).sum::<usize>(), 1, "{at}");
                    nothing += 1;
                }
                Ok(look) => {
                    let waits = look.goroutines[0].waits;
                    assert!(waits.is_none() || waits == whole.goroutines[0].waits, "{at}");
                    assert_eq!(look.goroutines[0].stack, whole.goroutines[0].stack, "{at}");
                    something += 1;
                }
                Err(why) => assert!(why.to_string().contains("cannot be read"), "{at}: {why}"),
            }
            if world.then.is_some() {
                break;
            }
        }
        assert!(nothing > 10 && something > 0, "1.{minor}: {nothing} {something}");
    }
}

/// Memory in which every word is one of a few, by a hash of its address.
struct Noise {
    pool: Vec<u64>,
    reads: usize,
}

impl Memory for Noise {
    fn word(&mut self, address: u64) -> Option<u64> {
        self.reads += 1;
        let hash = (address ^ address >> 17).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        match self.pool.get(hash as usize % (self.pool.len() + 1)) {
            Some(word) => Some(word.wrapping_add(address & 0xf0)),
            None if address.is_multiple_of(4096) => None,
            None => Some(address),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_survived_in_bounded_time(
        pool in prop::collection::vec(prop_oneof![
            any::<u64>(), Just(0u64), Just(4u64), Just(3u64), Just(PLACE), Just(STACK), Just(STACK + 0x2000), Just(G), 0u64..64,
        ], 0..12),
        minor in 15u32..=27,
    ) {
        let mut noise = Noise { pool, reads: 0 };
        let limits = Limits { goroutines: 50, stack_bytes: 2048, waiters: 500, ..Limits::default() };
        with_binary(|binary| {
            let _ = look(binary, 0, &layout(minor), &mut noise, &limits);
        });
        // The table and the waiters in each round, and each goroutine with its stack.
        prop_assert!(noise.reads < 4 * (7 * 8 + 500 * 11 + 50 * (2048 / 4 + 200)), "{}", noise.reads);
    }
}

#[test]
fn parked_since_the_end_of_a_collection_that_had_found_it() {
    let o = offsets(27);
    let mut world = waiting(&o, STACK + 0x7f00, 7, 900, 0x5004);
    let sp = STACK + 0x1_0000 + 0x7f00;
    world.goroutine(&o, 1, 4, sp, &[(o.wait_since, 9)]);
    world.stack(sp, STACK + 0x1_0000 + 0x8000, 8, 0);
    let look = look_at(27, &mut world);
    let parked: Vec<_> = look.goroutines.iter().map(|seen| seen.parked_since).collect();
    // A later one found the second parked, so the one that ended at 9 had found the first; of the second nothing is known.
    assert_eq!(parked, [Some(9), None]);
}
