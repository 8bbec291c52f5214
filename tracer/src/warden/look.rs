//! Looks into the memory of containerds, shims and kubelets: which goroutine waits for what, and where each sits. No
//! probe, no signal, no stop; only reads, each on a worker that may hang without holding up the rest.

mod copies;
mod lanes;
mod live;
mod node;
mod one;
mod order;
mod programs;

pub use live::run;
pub use node::once;

use crate::{
    golang::goroutines::{Limits, Looker},
    look::LookedAt,
    node::{ReadError, clock, procs::FileId, worker::Workers},
};
use copies::Copies;
use lanes::{Bounds, Lane};
use one::Target;
use programs::Program;
use std::{
    collections::BTreeMap,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Threads that may hang: with opening and reading programs, and with processes.
const WORKERS: (usize, usize) = (4, 6);
/// Processes looked at at the same time.
const LANES: usize = 3;
/// How long one process may take. A containerd with 10 000 goroutines takes about this long.
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
    programs: BTreeMap<FileId, (Found, Instant)>,
    /// CPU time of all looks at processes, ns.
    spent: Arc<AtomicU64>,
}

impl Looks {
    fn new() -> Looks {
        Looks {
            readers: Workers::new(WORKERS.0),
            workers: Workers::new(WORKERS.1),
            copies: Arc::new(Copies::open().ok()),
            programs: BTreeMap::new(),
            spent: Arc::default(),
        }
    }

    /// What is known of a program.
    fn program(&self, id: FileId) -> Option<&Found> {
        self.programs.get(&id).map(|(found, _)| found)
    }

    /// Reads these programs, several at once; all of it takes no longer than until `end`. With `other`, any Go program takes
    /// part.
    fn read(&mut self, wanted: Vec<(FileId, Opener)>, other: bool, end: Instant) {
        let now = Instant::now();
        let due = |(found, at): &(Found, Instant)| found.is_err() && now.duration_since(*at) >= RETRY_AFTER;
        let mut wanted: Vec<(FileId, Opener)> =
            wanted.into_iter().filter(|(id, _)| self.programs.get(id).is_none_or(due)).collect();
        while !wanted.is_empty() {
            let rest = wanted.split_off(wanted.len().min(LANES));
            let start = |(id, open): (FileId, Opener)| {
                let copies = Arc::clone(&self.copies);
                let job = move || {
                    let file = open().map_err(|why| why.to_string())?;
                    programs::find(&file, copies.as_ref().as_ref(), other)
                };
                (id, self.readers.start(job))
            };
            let started: Vec<_> = wanted.into_iter().map(start).collect();
            for (id, started) in started {
                let left = || end.saturating_duration_since(Instant::now());
                let read = started.and_then(|started| started.wait(left()));
                let found = match read {
                    Ok(found) => found.map(|program| program.map(Arc::new)),
                    Err(why) => Err(format!("reading its program file: {why}; its disk may be stuck")),
                };
                if self.programs.len() < MOST_PROGRAMS {
                    self.programs.insert(id, (found, Instant::now()));
                }
            }
            wanted = rest;
        }
    }

    /// Looks at these processes, in this order.
    fn look(&self, targets: Vec<Target>, end: Instant, done: impl FnMut(Target, Result<LookedAt, String>)) {
        let bounds = Bounds { lanes: LANES, patience: PATIENCE, end };
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
        let binary = program.binary().map_err(|why| why.to_string());
        let (binary, layout) = match (&binary, &program.facts.layout) {
            (Ok(binary), Ok(layout)) => (binary, layout),
            (Err(why), _) | (_, Err(why)) => {
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
