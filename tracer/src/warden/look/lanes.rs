//! Works through a queue on a few workers at once, each of which may hang with one item: that item is given up after its
//! time, the rest goes on elsewhere, and all of it ends in time.

use crate::node::worker::{Started, WorkerError, Workers};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

/// Why an item was not reached: nothing was wrong with it.
pub const NOT_REACHED: &str = "not reached within the time for the whole look";

/// How much at once, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Lanes at the same time.
    pub lanes: usize,
    /// How long one item may take.
    pub patience: Duration,
    /// When all must be over.
    pub end: Instant,
}

/// One lane's side of the queue.
pub struct Lane<I, R> {
    number: usize,
    queue: Arc<Mutex<VecDeque<I>>>,
    given_up: Arc<AtomicBool>,
    tell: Sender<Told<I, R>>,
}

enum Told<I, R> {
    Took(usize, I),
    Done(usize, R),
    Over(usize),
}

impl<I: Clone, R> Lane<I, R> {
    /// The next item that suits, the first of all if none does.
    pub fn next(&self, suits: impl Fn(&I) -> bool) -> Option<I> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if self.given_up.load(Ordering::Acquire) {
            return None;
        }
        let at = queue.iter().position(suits).unwrap_or(0);
        let item = queue.remove(at)?;
        // The receiver is gone only when all is over.
        let _ = self.tell.send(Told::Took(self.number, item.clone()));
        Some(item)
    }

    /// The item taken last is done.
    pub fn done(&self, result: R) {
        let _ = self.tell.send(Told::Done(self.number, result));
    }
}

impl<I, R> Drop for Lane<I, R> {
    fn drop(&mut self) {
        let _ = self.tell.send(Told::Over(self.number));
    }
}

/// A lane as its watcher knows it.
struct Watched<I> {
    number: usize,
    started: Option<Started<()>>,
    given_up: Arc<AtomicBool>,
    with: Option<(I, Instant)>,
}

impl<I> Watched<I> {
    /// Why it has no answer: it panicked, or is still at it after this time.
    fn why(&mut self, waited: Duration) -> String {
        match self.started.take().map(|started| started.wait(Duration::ZERO)) {
            Some(Err(WorkerError::Failed(why))) => format!("the worker failed: {why}"),
            _ => {
                format!("no answer within {} ms; the read is still waiting in the kernel", waited.as_millis())
            }
        }
    }
}

/// All lanes.
struct Watch<I, R, D> {
    queue: Arc<Mutex<VecDeque<I>>>,
    lanes: Vec<Watched<I>>,
    told: Receiver<Told<I, R>>,
    done: D,
}

impl<I, R, D: FnMut(I, Result<R, String>)> Watch<I, R, D> {
    fn queue(&self) -> MutexGuard<'_, VecDeque<I>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a lane tells; whether it is one that is still watched.
    fn hear(&mut self, told: Told<I, R>) -> bool {
        let number = match &told {
            Told::Took(number, _) | Told::Done(number, _) | Told::Over(number) => *number,
        };
        // One that was given up may come back with what nobody wants any more.
        let Some(at) = self.lanes.iter().position(|lane| lane.number == number) else {
            return false;
        };
        match told {
            Told::Took(_, item) => self.lanes[at].with = Some((item, Instant::now())),
            Told::Done(_, result) => {
                if let Some((item, _)) = self.lanes[at].with.take() {
                    (self.done)(item, Ok(result));
                }
            }
            Told::Over(_) => {
                let mut lane = self.lanes.swap_remove(at);
                // Over with an item in hand: it panicked, and its worker is back with that in a moment.
                if let Some((item, _)) = lane.with.take() {
                    let why = lane.started.take().map(|started| started.wait(Duration::from_millis(100)));
                    let why = why.and_then(Result::err).map_or_else(String::new, |why| why.to_string());
                    (self.done)(item, Err(why));
                }
            }
        }
        true
    }

    /// Leaves all lanes that are late; what they have told until then counts.
    fn leave(&mut self, late: impl Fn(&Watched<I>) -> bool) {
        {
            let _no_item_is_taken_meanwhile = self.queue();
            self.lanes
                .iter()
                .filter(|lane| late(lane))
                .for_each(|l| l.given_up.store(true, Ordering::Release));
        }
        while let Ok(told) = self.told.try_recv() {
            self.hear(told);
        }
        for at in (0..self.lanes.len()).rev() {
            if !late(&self.lanes[at]) {
                self.lanes[at].given_up.store(false, Ordering::Release);
                continue;
            }
            let mut lane = self.lanes.swap_remove(at);
            let with = lane.with.take();
            let why = lane.why(with.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed()));
            if let Some((item, _)) = with {
                (self.done)(item, Err(why));
            }
        }
    }
}

/// Works through the items, in order as far as [`Lane::next`] is not asked for other ones. `work` runs on each lane; `done`
/// is told each item once, with its result or why there is none.
pub fn run<I: Clone + Send + 'static, R: Send + 'static>(
    workers: &Workers,
    bounds: Bounds,
    items: Vec<I>,
    work: impl Fn(&Lane<I, R>) + Clone + Send + 'static,
    done: impl FnMut(I, Result<R, String>),
) {
    let (tell, told) = channel();
    let mut watch = Watch { queue: Arc::new(Mutex::new(items.into())), lanes: Vec::new(), told, done };
    let mut refused = None;
    let due = |lane: &Watched<I>| lane.with.as_ref().map(|(_, since)| *since + bounds.patience);
    for number in 0.. {
        let taking = watch.lanes.iter().filter(|lane| lane.with.is_none()).count();
        let waiting = watch.queue().len();
        if watch.lanes.len() < bounds.lanes && waiting > taking && refused.is_none() {
            let given_up = Arc::new(AtomicBool::new(false));
            let (queue, tell) = (Arc::clone(&watch.queue), tell.clone());
            let lane = Lane { number, queue, given_up: Arc::clone(&given_up), tell };
            let work = work.clone();
            match workers.start(move || work(&lane)) {
                Ok(started) => {
                    watch.lanes.push(Watched { number, started: Some(started), given_up, with: None });
                }
                Err(why) => refused = Some(why.to_string()),
            }
            continue;
        }
        if watch.lanes.is_empty() {
            break;
        }
        let next = watch.lanes.iter().filter_map(due).min().unwrap_or(bounds.end).min(bounds.end);
        if let Ok(told) = watch.told.recv_timeout(next.saturating_duration_since(Instant::now())) {
            // A lane that could not be started tells that it is over, too.
            if watch.hear(told) {
                refused = None;
            }
            continue;
        }
        let now = Instant::now();
        if now >= bounds.end {
            watch.leave(|_| true);
            break;
        }
        watch.leave(|lane| due(lane).is_some_and(|due| now >= due));
        refused = None;
    }
    let rest = std::mem::take(&mut *watch.queue());
    for item in rest {
        (watch.done)(item, Err(refused.clone().unwrap_or_else(|| NOT_REACHED.to_owned())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const LONG: Duration = Duration::from_secs(60);

    fn bounds(lanes: usize, patience: Duration) -> Bounds {
        Bounds { lanes, patience, end: Instant::now() + LONG }
    }

    /// Doubles what it is given; hangs with 13 until the receiver's other end is dropped; panics with 666.
    fn doubles(hold: Arc<Mutex<Receiver<()>>>) -> impl Fn(&Lane<u32, u32>) + Clone + Send + 'static {
        move |lane| {
            while let Some(item) = lane.next(|_| true) {
                match item {
                    13 => _ = hold.lock().unwrap().recv(),
                    666 => std::panic::panic_any("bad item"),
                    _ => lane.done(2 * item),
                }
            }
        }
    }

    #[test]
    fn one_that_hangs_costs_its_worker_and_nothing_else() {
        let workers = Workers::new(2);
        let (release, hold) = channel::<()>();
        let mut told = Vec::new();
        let items = vec![1, 2, 13, 4, 5];
        let work = doubles(Arc::new(Mutex::new(hold)));
        run(&workers, bounds(1, Duration::from_millis(20)), items, work, |item, result| {
            told.push((item, result))
        });
        let words = told.iter().find(|(item, _)| *item == 13).unwrap().1.clone().unwrap_err();
        assert!(words.contains("still waiting in the kernel"), "{words}");
        told.retain(|(item, _)| *item != 13);
        assert_eq!(told, [(1, Ok(2)), (2, Ok(4)), (4, Ok(8)), (5, Ok(10))]);
        assert_eq!(workers.stuck(), 1);
        drop(release);
        while workers.stuck() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn with_all_workers_stuck_the_rest_is_told_why() {
        let workers = Workers::new(1);
        let (_release, hold) = channel::<()>();
        let mut told = Vec::new();
        let work = doubles(Arc::new(Mutex::new(hold)));
        let items = vec![13, 7, 8];
        run(&workers, bounds(2, Duration::from_millis(20)), items, work, |item, result| {
            told.push((item, result))
        });
        assert_eq!(told.iter().map(|(item, _)| *item).collect::<Vec<_>>(), [13, 7, 8]);
        assert!(told[1].1.as_ref().unwrap_err().contains("1 of them stuck"), "{told:?}");
    }

    #[test]
    fn the_end_ends_it() {
        let workers = Workers::new(1);
        let (_release, hold) = channel::<()>();
        let mut told = Vec::new();
        let work = doubles(Arc::new(Mutex::new(hold)));
        let end = Instant::now() + Duration::from_millis(20);
        let bounds = Bounds { lanes: 1, patience: LONG, end };
        run(&workers, bounds, vec![13, 7], work, |item, result| told.push((item, result)));
        assert_eq!(told.len(), 2);
        assert_eq!(told[1], (7, Err(NOT_REACHED.into())));
    }

    #[test]
    fn a_panic_is_told_and_the_rest_goes_on() {
        let workers = Workers::new(1);
        let (_release, hold) = channel::<()>();
        let mut told = BTreeMap::new();
        let work = doubles(Arc::new(Mutex::new(hold)));
        run(&workers, bounds(1, LONG), vec![666, 3, 666, 4], work, |item, result| {
            _ = told.insert(item, result)
        });
        assert_eq!((&told[&3], &told[&4]), (&Ok(6), &Ok(8)));
        assert!(told[&666].as_ref().unwrap_err().contains("bad item"), "{told:?}");
        assert_eq!(workers.threads(), 1);
    }

    #[test]
    fn each_item_is_done_once_whoever_takes_it() {
        let workers = Workers::new(4);
        let (_release, hold) = channel::<()>();
        let work = doubles(Arc::new(Mutex::new(hold)));
        let mut told = Vec::new();
        run(&workers, bounds(4, LONG), (100..400).collect(), work, |item, result| told.push((item, result)));
        told.sort_by_key(|(item, _)| *item);
        assert_eq!(told, (100..400).map(|n| (n, Ok(2 * n))).collect::<Vec<_>>());
    }
}
