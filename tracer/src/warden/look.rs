//! Looks into the memory of containerds, shims and kubelets: which goroutine waits for what, and where each sits. No
//! probe, no signal, no stop; only reads, each on a worker that may hang without holding up the rest.

mod copies;
mod lanes;
mod live;
mod node;
mod one;
mod order;
mod programs;
mod unreturned;

pub use live::run;
pub use node::once;

use crate::{
    golang::goroutines::{Limits, Looker},
    look::LookedAt,
    node::{
        ReadError, clock,
        procs::FileId,
        worker::{WorkerError, Workers},
    },
};
use copies::Copies;
use lanes::{Bounds, Lane};
use one::Target;
use programs::Program;
use std::{
    collections::BTreeMap,
    fs::File,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    time::{Duration, Instant},
};

/// Threads that may hang: with opening and reading programs, and with processes.
const WORKERS: (usize, usize) = (4, 6);
/// Processes looked at at the same time.
const LANES: usize = 3;
/// How long one process may take where nothing else is asked for. A containerd with 10 000 goroutines takes about this long.
const PATIENCE: Duration = Duration::from_millis(400);
/// A program that could not be read is tried again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Program files remembered at most.
const MOST_PROGRAMS: usize = 4096;

/// Opens a program file; may hang.
type Opener = Box<dyn FnOnce() -> Result<File, ReadError> + Send>;

/// A program as far as it is known: `None` when it takes no part.
type Found = Result<Option<Arc<Program>>, String>;

/// What looks: programs that are known, and workers.
struct Looks {
    readers: Workers,
    workers: Workers,
    copies: Arc<Option<Copies>>,
    programs: Arc<Mutex<BTreeMap<FileId, (Found, Instant)>>>,
    /// CPU time of all looks at processes, ns.
    spent: Arc<AtomicU64>,
    /// How long one process may take.
    patience: Duration,
}

impl Looks {
    fn new(patience: Duration) -> Looks {
        Looks {
            readers: Workers::new(WORKERS.0),
            workers: Workers::new(WORKERS.1),
            copies: Arc::new(Copies::open().ok()),
            programs: Arc::default(),
            spent: Arc::default(),
            patience,
        }
    }

    /// What is known of a program.
    fn program(&self, id: FileId) -> Option<Found> {
        self.lock().get(&id).map(|(found, _)| found.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FileId, (Found, Instant)>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads these programs, several at once, and waits for them no longer than until `end`; what comes later is there
    /// later. With `other`, any Go program takes part. Copies are made when nobody waits any more.
    fn read(&self, mut wanted: Vec<(FileId, Opener)>, other: bool, end: Instant) {
        let due = |(found, at): &(Found, Instant)| found.is_err() && at.elapsed() >= RETRY_AFTER;
        wanted.retain(|(id, _)| self.lock().get(id).is_none_or(due));
        while !wanted.is_empty() {
            let rest = wanted.split_off(wanted.len().min(LANES));
            let start = |(id, open): (FileId, Opener)| {
                let (copies, programs) = (Arc::clone(&self.copies), Arc::clone(&self.programs));
                let (tell, told) = sync_channel(1);
                let job = move || {
                    let copies = copies.as_ref().as_ref();
                    let (found, copy) = match open() {
                        Ok(file) => programs::find(file, copies, other),
                        Err(why) => (Err(why.to_string()), None),
                    };
                    keep(&programs, id, found.map(|program| program.map(Arc::new)), true);
                    // Nobody listens any more after a time-out.
                    let _ = tell.send(());
                    if let (Some(copy), Some(copies)) = (copy, copies) {
                        copy.make(copies);
                    }
                };
                (id, Instant::now(), self.readers.start(job), told)
            };
            let started: Vec<_> = wanted.into_iter().map(start).collect();
            for (id, since, started, told) in started {
                let late = told.recv_timeout(end.saturating_duration_since(Instant::now())).is_err();
                let why = match started {
                    Ok(started) if late => match started.wait(Duration::ZERO) {
                        Err(WorkerError::TimedOut(_)) => {
                            let waited = since.elapsed().as_millis();
                            format!("no answer within {waited} ms; its disk may be stuck")
                        }
                        Err(why) => why.to_string(),
                        Ok(()) => continue,
                    },
                    Ok(_) => continue,
                    Err(why) => why.to_string(),
                };
                keep(&self.programs, id, Err(format!("reading its program file: {why}")), false);
            }
            wanted = rest;
        }
    }

    /// Looks at these processes, in this order.
    fn look(&self, targets: Vec<Target>, end: Instant, done: impl FnMut(Target, Result<LookedAt, String>)) {
        let bounds = Bounds { lanes: LANES, patience: self.patience, end };
        let spent = Arc::clone(&self.spent);
        let work = move |turns: &Lane<Target, LookedAt>| {
            let before = clock::of_thread();
            lane(turns);
            spent.fetch_add(clock::of_thread().saturating_sub(before), Ordering::Relaxed);
        };
        lanes::run(&self.workers, bounds, targets, work, done);
    }

    /// Reads that have not come back.
    fn stuck(&self) -> u64 {
        (self.readers.stuck() + self.workers.stuck()) as u64
    }
}

/// Notes what is known of a program; what was `read` counts for more than that it could not be.
fn keep(programs: &Mutex<BTreeMap<FileId, (Found, Instant)>>, id: FileId, found: Found, read: bool) {
    let mut programs = programs.lock().unwrap_or_else(PoisonError::into_inner);
    let room = programs.len() < MOST_PROGRAMS || programs.contains_key(&id);
    if room && (read || programs.get(&id).is_none_or(|(before, _)| before.is_err())) {
        programs.insert(id, (found, Instant::now()));
    }
}

/// Looks at one process after the other: at those that run the same program with what was learned of it.
fn lane(lane: &Lane<Target, LookedAt>) {
    let mut next = lane.next(|_| true);
    while let Some(mut target) = next.take() {
        let without = |why: &str| {
            lane.done(one::without_tables(&target, why));
            lane.next(|_| true)
        };
        let program = match &target.program {
            Ok(program) => Arc::clone(program),
            Err(why) => {
                next = without(why);
                continue;
            }
        };
        let known = program.binary().map_err(|why| why.to_string());
        let known = known
            .and_then(|binary| program.layout(&binary, target.process.pid).map(|layout| (binary, layout)));
        let (binary, layout) = match &known {
            Ok((binary, layout)) => (binary, *layout),
            Err(why) => {
                next = without(why);
                continue;
            }
        };
        let mut looker = Looker::new(binary, layout, Limits::default());
        let same = |other: &Target| matches!(&other.program, Ok(other) if Arc::ptr_eq(other, &program));
        loop {
            lane.done(one::look(&target, &program, &mut looker));
            match lane.next(same) {
                Some(other) if same(&other) => target = other,
                other => {
                    next = other;
                    break;
                }
            }
        }
    }
}
