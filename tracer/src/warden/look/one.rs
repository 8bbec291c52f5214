//! A look at one process: its goroutines, where its tables can be had, and its threads that do not come back from the
//! kernel, in any case. Runs on a worker; whatever it reads may hang.

use super::programs::Program;
use crate::{
    event::{Kind, Process, Role, ThreadSite},
    golang::{
        GoBinary,
        calls::{self, Calls},
        goroutines::{Layout, Limits, Looker, Seen},
        offsets::Offsets,
        pclntab, unwind,
    },
    look::{Call, Frame, Goroutine, Look, LookedAt, Thread, Wait},
    node::{
        clock, locks,
        memory::{LARGEST_READ, Memory, MemoryError, ProcessMemory},
        threads,
    },
    warden::{binaries, protocol::MESSAGE_LIMIT},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// Threads looked at in one process.
const MOST_THREADS: usize = 4_096;
/// Of these, and of goroutines in system calls, so many are looked at closely; more where a thread does not come back
/// from the kernel.
const MOST_SITES: usize = 128;
const MOST_STUCK: usize = 1_024;
/// Longest path the kernel takes.
const LONGEST_PATH: usize = 4096;
/// A message about a process stays well below what is allowed.
const ROOM: usize = MESSAGE_LIMIT / 8 * 7;

/// A process to look at.
#[derive(Clone, Debug)]
pub struct Target {
    /// Which.
    pub process: Process,
    /// Its program, or why its tables cannot be had.
    pub program: Result<Arc<Program>, String>,
}

/// The process's memory, as the Go reader wants it.
struct Words<'m>(&'m ProcessMemory);

impl unwind::Memory for Words<'_> {
    fn word(&mut self, address: u64) -> Option<u64> {
        self.0.u64(address).ok()
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for part in into.chunks_mut(LARGEST_READ) {
            done += match self.0.read(at.wrapping_add(done as u64), part) {
                Ok(()) => part.len(),
                Err(MemoryError::Short { got, .. }) => return done + got,
                Err(_) => return done,
            };
        }
        done
    }
}

/// Looks at a process whose tables cannot be had: at its threads.
pub fn without_tables(target: &Target, why: &str) -> LookedAt {
    let at = clock::monotonic();
    let look = Look { note: why.to_owned(), ..Look::default() };
    let memory = ProcessMemory::open(target.process.pid).ok();
    let look = with_threads(look, target.process.pid, memory.as_ref());
    LookedAt { process: target.process.clone(), at, look: Ok(look) }
}

/// Looks at a process; `looker` is for its program.
pub fn look(target: &Target, program: &Program, looker: &mut Looker<'_, '_>) -> LookedAt {
    let at = clock::monotonic();
    looker.limits = Limits { now: at, ..looker.limits };
    let look = goroutines(target, program, looker);
    LookedAt { process: target.process.clone(), at, look }
}

fn goroutines(target: &Target, program: &Program, looker: &mut Looker<'_, '_>) -> Result<Look, String> {
    let pid = target.process.pid;
    let layout = looker.layout();
    let memory = ProcessMemory::open(pid).map_err(|why| why.to_string())?;
    let bias = binaries::bias(pid, program.facts.entry).map_err(|why| why.to_string())?;
    let seen = looker.look(bias, &mut Words(&memory)).map_err(|why| why.to_string())?;
    let mut notes = Vec::new();
    notes.extend(layout.calibrated.clone());
    notes.extend(seen.waiters.as_ref().err().map(|why| format!("who waits for locks is not known: {why}")));
    notes.extend(program.facts.calls.as_ref().err().map(|why| format!("operations are not known: {why}")));
    let mut reader = Reader {
        pid,
        role: target.process.role,
        memory: &memory,
        calls: program.facts.calls.as_ref().ok(),
        offsets: &layout.offsets,
        sites: 0,
        passed_over: 0,
        by_own_id: None,
    };
    let (mut goroutines, mut weighs, mut cut_out) = (Vec::new(), 0, 0);
    for one in &seen.goroutines {
        let one = reader.goroutine(one);
        weighs += weight(&one);
        goroutines.push(one);
        // What will not be told anyway is not kept.
        if weighs > 2 * ROOM {
            cut_out += cut(&mut goroutines);
            weighs = goroutines.iter().map(weight).sum();
        }
    }
    cut_out += cut(&mut goroutines);
    if reader.passed_over > 0 {
        let passed_over = reader.passed_over;
        notes.push(format!(
            "{passed_over} more threads in system calls sleep, and were not looked at closely"
        ));
    }
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut left_out: Vec<(String, u32)> =
        seen.left_out.iter().map(|(why, count)| (why.to_string(), number(*count))).collect();
    if cut_out > 0 {
        left_out.push(("they would not fit into one message".into(), number(cut_out)));
    }
    let running = number(seen.running);
    let look = Look { goroutines, running, left_out, threads: Vec::new(), note: notes.join("; ") };
    Ok(with_threads(look, pid, Some(&memory)))
}

/// Finds the layout of a Go version that is in no table, in a process that runs it; `entry` is where the program begins
/// by its file.
pub fn calibrate(pid: u32, binary: &GoBinary<'_>, entry: u64) -> Result<Layout, String> {
    let memory = ProcessMemory::open(pid).map_err(|why| why.to_string())?;
    let bias = binaries::bias(pid, entry).map_err(|why| why.to_string())?;
    let threads: Vec<u32> = threads::by_own_id(pid, MOST_THREADS).into_keys().collect();
    Layout::calibrate(binary, bias, &mut Words(&memory), &threads).map_err(|why| why.to_string())
}

/// What is read of one process.
struct Reader<'p> {
    pid: u32,
    role: Role,
    memory: &'p ProcessMemory,
    calls: Option<&'p Calls>,
    offsets: &'p Offsets,
    /// Threads looked at so far.
    sites: usize,
    /// Threads that were not looked at because of [`MOST_SITES`].
    passed_over: usize,
    /// Its threads by their ids in its own pid namespace, once that was asked for.
    by_own_id: Option<BTreeMap<u32, u32>>,
}

impl Reader<'_> {
    fn goroutine(&mut self, seen: &Seen) -> Goroutine {
        let state = match seen.goroutine.pause {
            unwind::Pause::Waiting if seen.reason.is_empty() => "waiting".to_owned(),
            unwind::Pause::Waiting => seen.reason.clone(),
            unwind::Pause::Syscall => "syscall".to_owned(),
            unwind::Pause::Runnable => "runnable".to_owned(),
        };
        let thread = seen.thread.and_then(|own| self.thread(own));
        let mut calls =
            self.calls.map_or_else(Vec::new, |calls| calls.of_stack(seen, &mut Words(self.memory)));
        let mut waits = seen.waits.filter(|_| waits_for_lock(seen)).map(|wait| Wait {
            semaphore: wait.semaphore,
            since: wait.since,
            lock: locks::of_semaphore(self.role, self.memory, wait.semaphore),
            fingerprint: calls::fingerprint(seen, 0..usize::MAX),
        });
        // Names hold only if it has not gone on while they were read.
        let named = waits.is_some() || !calls.is_empty();
        let again = || unwind::Goroutine::read(&mut Words(self.memory), self.offsets, seen.goroutine.g);
        if named && again().as_ref() != Ok(&seen.goroutine) {
            calls.clear();
            waits = None;
        }
        let unmount = thread.as_ref().and_then(|site| unmount(site, self.memory, &mut calls));
        calls.extend(unmount);
        Goroutine {
            g: seen.goroutine.g,
            goid: seen.goroutine.goid,
            state,
            parked_since: seen.parked_since,
            waits,
            thread,
            frames: frames(seen),
            cut: seen.stack.cut.as_ref().map(ToString::to_string).unwrap_or_default(),
            created_by: seen
                .created_by
                .as_ref()
                .map(|made| (frame(&made.function, made.pc, made.offset), made.goroutine)),
            calls,
        }
    }

    /// Where the thread with this id (in the process's own pid namespace) sits.
    fn thread(&mut self, own: u32) -> Option<ThreadSite> {
        let pid = self.pid;
        // Outside of containers it is the same.
        let same = threads::own_id(pid, own) == Some(own);
        let tid = if same {
            own
        } else {
            let all = self.by_own_id.get_or_insert_with(|| threads::by_own_id(pid, MOST_THREADS));
            *all.get(&own)?
        };
        // One that does not come back from the kernel is looked at in any case.
        let most = if self.sites < MOST_SITES || threads::state(pid, tid) == Some('D') {
            MOST_STUCK
        } else {
            MOST_SITES
        };
        if self.sites >= most {
            self.passed_over += 1;
            return None;
        }
        self.sites += 1;
        Some(threads::look(pid, tid).ok()?.site)
    }
}

/// Whether a wait for a semaphore is one for a `sync.Mutex` or `sync.RWMutex`: only these come through functions of these
/// names, in Go 1.15 to 1.27; a `sync.WaitGroup` and the network have others (`runtime/sema.go`).
fn waits_for_lock(seen: &Seen) -> bool {
    /// Frames of the runtime and of `sync` below which one of them must be.
    const INNERMOST: usize = 8;
    let locks = |name: &str| {
        ["runtime_SemacquireMutex", "runtime_SemacquireRWMutex", "runtime_SemacquireRWMutexR"]
            .iter()
            .any(|lock| name.strip_suffix(lock).is_some_and(|package| package.ends_with("sync.")))
    };
    seen.stack.names().take(INNERMOST).any(locks)
}

fn frames(seen: &Seen) -> Vec<Frame> {
    let frames = seen.stack.frames.iter();
    frames.flat_map(|place| place.functions.iter().map(|f| frame(f, place.pc, place.offset))).collect()
}

fn frame(function: &pclntab::Frame, pc: u64, offset: u64) -> Frame {
    Frame {
        function: function.name.clone(),
        file: function.file.clone(),
        line: function.line,
        inlined: function.inlined,
        pc,
        offset,
    }
}

/// What a thread in umount2 unmounts, by its first argument: put into the call that the stack tells, or else a call of its
/// own.
fn unmount(site: &ThreadSite, memory: &ProcessMemory, calls: &mut [Call]) -> Option<Call> {
    if site.syscall != Some(libc::SYS_umount2) {
        return None;
    }
    let path = memory.c_string(*site.arguments.first()?, LONGEST_PATH).filter(|path| path.starts_with(b"/"));
    let path = path.map(|path| String::from_utf8_lossy(&path).into_owned());
    match calls.last_mut().filter(|call| call.kind == Kind::Unmount) {
        Some(call) => {
            call.path = path;
            None
        }
        None => {
            // The path is another copy of it in each call.
            let mut hasher = DefaultHasher::new();
            site.arguments.hash(&mut hasher);
            let fingerprint = Some(hasher.finish() as u32);
            let (kind, method, object) = (Kind::Unmount, String::new(), 0);
            Some(Call { kind, method, object, container: None, path, fingerprint })
        }
    }
}

/// Adds the threads in uninterruptible sleep on which none of the goroutines is.
fn with_threads(mut look: Look, pid: u32, memory: Option<&ProcessMemory>) -> Look {
    let known: BTreeSet<u32> =
        look.goroutines.iter().filter_map(|one| one.thread.as_ref()).map(|site| site.tid).collect();
    let tids = threads::of_process(pid, MOST_THREADS).unwrap_or_default();
    let stuck = tids.into_iter().filter(|tid| !known.contains(tid) && threads::state(pid, *tid) == Some('D'));
    for tid in stuck.take(MOST_SITES) {
        let Some(site) = threads::look(pid, tid).ok().map(|site| site.site).filter(|site| site.state == 'D')
        else {
            continue;
        };
        let calls = memory.and_then(|memory| unmount(&site, memory, &mut [])).into_iter().collect();
        look.threads.push(Thread { site, calls });
    }
    look
}

/// Leaves out goroutines that would not fit into a message, first those that are in the middle of nothing; how many.
fn cut(goroutines: &mut Vec<Goroutine>) -> usize {
    let mut total = goroutines.iter().map(weight).sum::<usize>();
    let mut keep = vec![true; goroutines.len()];
    let in_turn: [fn(bool) -> bool; 2] = [|matters| !matters, |_| true];
    for chosen in in_turn {
        // The last are the youngest.
        for (keep, goroutine) in keep.iter_mut().zip(&*goroutines).rev() {
            if total > ROOM && *keep && chosen(goroutine.matters()) {
                *keep = false;
                total -= weight(goroutine);
            }
        }
    }
    let left_out = keep.iter().filter(|keep| !**keep).count();
    let mut keep = keep.into_iter();
    goroutines.retain(|_| keep.next().unwrap_or(true));
    left_out
}

/// Bytes of a goroutine in a message, rather too many than too few.
fn weight(goroutine: &Goroutine) -> usize {
    const NUMBERS: usize = 64;
    let of_frame = |frame: &Frame| NUMBERS / 2 + frame.function.len() + frame.file.len();
    let site = |site: &ThreadSite| NUMBERS * 2 + site.kernel_stack.iter().map(|f| f.len() + 2).sum::<usize>();
    let text = |text: &Option<String>| text.as_ref().map_or(1, |text| text.len() + 3);
    let call = |call: &Call| NUMBERS + call.method.len() + text(&call.container) + text(&call.path);
    2 * NUMBERS
        + goroutine.state.len()
        + goroutine.cut.len()
        + goroutine.waits.as_ref().map_or(0, |_| 3 * NUMBERS)
        + goroutine.thread.as_ref().map_or(0, site)
        + goroutine.frames.iter().map(of_frame).sum::<usize>()
        + goroutine.created_by.as_ref().map_or(0, |(frame, _)| of_frame(frame))
        + goroutine.calls.iter().map(call).sum::<usize>()
}

/// Whether a second look is worth it: something is in progress.
pub fn in_progress(look: &Look) -> bool {
    look.goroutines.iter().any(|g| g.waits.is_some() || !g.calls.is_empty())
        || look.threads.iter().any(|thread| !thread.calls.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goroutine(goid: u64, frames: usize, calls: Vec<Call>) -> Goroutine {
        let frame = Frame {
            function: "example.com/a/package.(*Type).Method".into(),
            file: "/usr/src/example.com/a/package/file.go".into(),
            line: 1234,
            inlined: false,
            pc: u64::MAX,
            offset: u64::MAX,
        };
        Goroutine {
            g: u64::MAX - goid,
            goid,
            state: "sync.Mutex.Lock".into(),
            parked_since: Some(u64::MAX),
            waits: None,
            thread: None,
            frames: vec![frame.clone(); frames],
            cut: "why".into(),
            created_by: Some((frame, Some(u64::MAX))),
            calls,
        }
    }

    fn call() -> Call {
        let (container, path) = (Some("c0".repeat(32)), Some("/run/rootfs".repeat(9)));
        let (kind, method, object, fingerprint) = (Kind::Unmount, "Delete".into(), u64::MAX, Some(u32::MAX));
        Call { kind, method, object, container, path, fingerprint }
    }

    #[test]
    fn a_goroutine_never_takes_more_than_its_weight() {
        let site = ThreadSite {
            pid: u32::MAX,
            tid: u32::MAX,
            state: 'D',
            syscall: Some(i64::MAX),
            arguments: vec![u64::MAX; 6],
            kernel_stack: vec!["generic_shutdown_super".into(); 64],
        };
        let id = crate::event::LockName::Status("c0".repeat(32));
        let wait = Wait {
            semaphore: u64::MAX,
            since: Some(u64::MAX),
            lock: Some((u64::MAX, id)),
            fingerprint: Some(u32::MAX),
        };
        for frames in [0, 1, 128] {
            let full = Goroutine {
                waits: Some(wait.clone()),
                thread: Some(site.clone()),
                ..goroutine(1, frames, vec![call(); 3])
            };
            for one in [full, goroutine(1, frames, Vec::new())] {
                let bytes = postcard::to_stdvec(&one).unwrap().len();
                assert!(bytes <= weight(&one), "{bytes} of {}", weight(&one));
            }
        }
    }

    #[test]
    fn what_matters_is_cut_last_and_what_is_left_fits() {
        let idle = (1..=400).map(|goid| goroutine(goid, 100, Vec::new()));
        let busy = (1001..=1200).map(|goid| goroutine(goid, 100, vec![call()]));
        let mut look = Look { goroutines: idle.chain(busy).collect(), ..Look::default() };
        let count = look.goroutines.len();
        let left_out = cut(&mut look.goroutines);
        let busy = look.goroutines.iter().filter(|g| !g.calls.is_empty()).count();
        assert_eq!(busy, 200);
        assert!(look.goroutines.len() > 200 && look.goroutines.len() < count);
        assert_eq!(left_out, count - look.goroutines.len());
        assert!(postcard::to_stdvec(&look).unwrap().len() < MESSAGE_LIMIT);
        look.goroutines = (1..=900).map(|goid| goroutine(goid, 100, vec![call()])).collect();
        assert!(cut(&mut look.goroutines) > 0);
        assert!(postcard::to_stdvec(&look).unwrap().len() < MESSAGE_LIMIT);
        assert!(look.goroutines.len() > 300);
    }
}
