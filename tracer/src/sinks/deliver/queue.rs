//! A bounded queue in front of a delivery, and the thread behind it. When it is full the oldest gives way: what is newest
//! says most. All that is lost is counted. Where several deliver at once, the alerts of one incident still go one after
//! the other, in their order; only what hangs is overtaken.

use super::{Alert, Delivery};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Alerts that may wait for one delivery.
pub const WAITING: usize = 256;
/// Stack of a delivering thread; TLS takes most.
const STACK: usize = 512 << 10;

/// What has become of the alerts of one delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Which.
    pub name: String,
    /// Alerts that came to it.
    pub taken: u64,
    /// Alerts it has brought away.
    pub delivered: u64,
    /// Alerts it could not bring away.
    pub failed: u64,
    /// Alerts that found no room, or made room for others.
    pub dropped: u64,
    /// Attempts that failed and were made again, or are going to be.
    #[serde(default)]
    pub again: u64,
    /// Why the last one failed, was dropped, or is tried again; empty when none was.
    pub error: String,
}

/// Counts that others can read meanwhile.
type Counts = Arc<Mutex<Count>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Alerts that wait, and whether more can come.
#[derive(Default)]
struct Waiting {
    alerts: VecDeque<Arc<Alert>>,
    /// What is being delivered.
    busy: Vec<Busy>,
    closed: bool,
}

/// An alert that is being delivered.
struct Busy {
    seq: u64,
    incident: String,
    /// From then on it hangs; `None` for never.
    hangs: Option<Instant>,
}

impl Waiting {
    /// Takes the first that may go now.
    fn take(&mut self, now: Instant) -> Option<Arc<Alert>> {
        let busy = &self.busy;
        let in_turn = |alert: &Arc<Alert>| {
            let before = |one: &Busy| one.incident == alert.id && one.hangs.is_none_or(|at| now < at);
            !busy.iter().any(before)
        };
        let first = self.alerts.iter().position(in_turn)?;
        self.alerts.remove(first)
    }

    /// When one that is being delivered counts as hanging, and others may overtake it.
    fn next_hang(&self, now: Instant) -> Option<Duration> {
        self.busy.iter().filter_map(|one| one.hangs?.checked_duration_since(now)).min()
    }
}

struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    counts: Counts,
}

/// A delivery at work.
pub struct Queue {
    shared: Arc<Shared>,
    held_too: bool,
}

impl Queue {
    /// Starts a thread for each of these, which deliver the same alerts in turns.
    pub fn start(name: &str, deliveries: Vec<Box<dyn Delivery>>) -> io::Result<Queue> {
        let counts = Arc::new(Mutex::new(Count { name: name.to_owned(), ..Count::default() }));
        let shared = Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new(), counts });
        let held_too = deliveries.iter().any(|delivery| delivery.wants_held());
        for delivery in deliveries {
            let theirs = Arc::clone(&shared);
            thread::Builder::new()
                .name(name.to_owned())
                .stack_size(STACK)
                .spawn(move || theirs.work(delivery))?;
        }
        Ok(Queue { shared, held_too })
    }

    /// Hands over an alert; never waits.
    pub fn hand(&self, alert: &Arc<Alert>) {
        if !alert.told && !self.held_too {
            return;
        }
        let lost = {
            let mut waiting = locked(&self.shared.waiting);
            let lost = if waiting.alerts.len() >= WAITING { waiting.alerts.pop_front() } else { None };
            waiting.alerts.push_back(Arc::clone(alert));
            lost
        };
        let mut counts = locked(&self.shared.counts);
        counts.taken += 1;
        if lost.is_some() {
            counts.dropped += 1;
            counts.error = format!("more than {WAITING} alerts were waiting");
        }
        drop(counts);
        self.shared.changed.notify_one();
    }

    /// What it has done so far.
    pub fn count(&self) -> Count {
        locked(&self.shared.counts).clone()
    }

    /// The same, to be read also after its end.
    #[cfg(test)]
    pub fn counts(&self) -> impl Fn() -> Count + use<> {
        let counts = Arc::clone(&self.shared.counts);
        move || locked(&counts).clone()
    }

    /// Lets it deliver what waits, for at most `patience`; what is left then is counted as dropped. Returns whether all
    /// was delivered or has failed.
    pub fn finish(self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut waiting = locked(&self.shared.waiting);
        waiting.closed = true;
        self.shared.changed.notify_all();
        while !waiting.alerts.is_empty() || !waiting.busy.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let lost = waiting.alerts.len() + waiting.busy.len();
                waiting.alerts.clear();
                locked(&self.shared.counts).dropped += lost as u64;
                return false;
            }
            waiting = self
                .shared
                .changed
                .wait_timeout(waiting, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
        true
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        locked(&self.shared.waiting).closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn work(&self, mut delivery: Box<dyn Delivery>) {
        loop {
            let mut waiting = locked(&self.waiting);
            let alert = loop {
                let now = Instant::now();
                if let Some(alert) = waiting.take(now) {
                    break alert;
                }
                if waiting.closed && waiting.alerts.is_empty() {
                    return;
                }
                waiting = match waiting.next_hang(now) {
                    Some(left) if !waiting.alerts.is_empty() => self
                        .changed
                        .wait_timeout(waiting, left.max(Duration::from_millis(1)))
                        .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard),
                    _ => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                };
            };
            let hangs = delivery.limit().map(|limit| Instant::now() + limit);
            waiting.busy.push(Busy { seq: alert.seq, incident: alert.id.clone(), hangs });
            drop(waiting);
            let again = |why: &str| {
                let mut counts = locked(&self.counts);
                counts.again += 1;
                why.clone_into(&mut counts.error);
            };
            let result = delivery.deliver(&alert, &again);
            {
                let mut counts = locked(&self.counts);
                match result {
                    Ok(()) => counts.delivered += 1,
                    Err(why) => {
                        counts.failed += 1;
                        counts.error = why;
                    }
                }
            }
            locked(&self.waiting).busy.retain(|one| one.seq != alert.seq);
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Event;
    use crate::sinks::deliver::{Again, tests::alert};
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Delivers when it is told to.
    struct Gate {
        go: Receiver<Result<(), String>>,
        done: Sender<u64>,
        held_too: bool,
    }

    impl Delivery for Gate {
        fn deliver(&mut self, alert: &Alert, _: Again<'_>) -> Result<(), String> {
            let result = self.go.recv().unwrap_or(Err("nobody is left".into()));
            let _ = self.done.send(alert.seq);
            result
        }
        fn wants_held(&self) -> bool {
            self.held_too
        }
    }

    fn gate(held_too: bool) -> (Queue, Sender<Result<(), String>>, Receiver<u64>) {
        let (open, go) = channel();
        let (done, delivered) = channel();
        let queue = Queue::start("gate", vec![Box::new(Gate { go, done, held_too })]).unwrap();
        (queue, open, delivered)
    }

    fn some(seq: u64) -> Arc<Alert> {
        Arc::new(alert(seq, Event::Crossed, "a"))
    }

    #[test]
    fn a_delivery_that_hangs_holds_nobody_up_and_the_oldest_gives_way() {
        let (queue, open, delivered) = gate(false);
        queue.hand(&some(0));
        // The first is with the delivery, which hangs.
        while locked(&queue.shared.waiting).busy.is_empty() {
            thread::yield_now();
        }
        let begin = Instant::now();
        for seq in 1..=WAITING as u64 + 10 {
            queue.hand(&some(seq));
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert_eq!(locked(&queue.shared.waiting).alerts.len(), WAITING);
        let counts = queue.count();
        assert_eq!((counts.taken, counts.dropped), (WAITING as u64 + 11, 10));
        for _ in 0..=WAITING {
            open.send(Ok(())).unwrap();
        }
        let counts = queue.counts();
        assert!(queue.finish(Duration::from_secs(60)));
        let order: Vec<u64> = delivered.iter().collect();
        let expected: Vec<u64> = std::iter::once(0).chain(11..=WAITING as u64 + 10).collect();
        assert_eq!(order, expected, "the newest, in their order");
        assert_eq!(counts().delivered, WAITING as u64 + 1);
    }

    #[test]
    fn what_fails_is_counted_and_the_rest_goes_on() {
        let (queue, open, delivered) = gate(false);
        for (seq, result) in [(1, Ok(())), (2, Err("no".to_owned())), (3, Ok(()))] {
            queue.hand(&some(seq));
            open.send(result).unwrap();
        }
        let counts = queue.counts();
        assert!(queue.finish(Duration::from_secs(60)));
        assert_eq!(delivered.iter().collect::<Vec<_>>(), [1, 2, 3]);
        let expected = Count {
            name: "gate".into(),
            taken: 3,
            delivered: 2,
            failed: 1,
            error: "no".into(),
            ..Count::default()
        };
        assert_eq!(counts(), expected);
    }

    #[test]
    fn what_is_left_at_the_end_is_counted_and_not_waited_for() {
        let (queue, open, _delivered) = gate(false);
        (0..5).for_each(|seq| queue.hand(&some(seq)));
        let counts = queue.counts();
        assert!(!queue.finish(Duration::from_millis(20)));
        assert_eq!(counts().dropped, 5);
        drop(open);
    }

    /// Tells when it begins with one and when it is done, each when it is let go; beyond its limit it hangs.
    struct Slow {
        told: Sender<(u64, bool)>,
        go: Arc<Mutex<Receiver<()>>>,
        limit: Option<Duration>,
    }

    impl Delivery for Slow {
        fn deliver(&mut self, alert: &Alert, _: Again<'_>) -> Result<(), String> {
            let _ = self.told.send((alert.seq, false));
            if alert.seq == 1 {
                let _ = locked(&self.go).recv();
            }
            let _ = self.told.send((alert.seq, true));
            Ok(())
        }
        fn limit(&self) -> Option<Duration> {
            self.limit
        }
    }

    #[test]
    fn alerts_of_one_incident_keep_their_order_beside_others_and_overtake_what_hangs() {
        let of = |seq, incident: &str| Arc::new(alert(seq, Event::Grew, incident));
        for limit in [None, Some(Duration::from_millis(300))] {
            let (told, heard) = channel();
            let (let_go, go) = channel();
            let go = Arc::new(Mutex::new(go));
            let one =
                || -> Box<dyn Delivery> { Box::new(Slow { told: told.clone(), go: Arc::clone(&go), limit }) };
            let queue = Queue::start("slow", vec![one(), one(), one()]).unwrap();
            [(1, "a"), (2, "a"), (3, "b"), (4, "a")]
                .iter()
                .for_each(|(seq, incident)| queue.hand(&of(*seq, incident)));
            let next = || heard.recv_timeout(Duration::from_secs(60)).unwrap();
            let mut first: Vec<(u64, bool)> = (0..3).map(|_| next()).collect();
            first.sort_unstable();
            assert_eq!(first, [(1, false), (3, false), (3, true)], "another goes past it");
            match limit {
                // As long as it lasts.
                None => assert!(heard.recv_timeout(Duration::from_millis(400)).is_err()),
                Some(_) => {
                    let rest: Vec<(u64, bool)> = (0..4).map(|_| next()).collect();
                    assert_eq!(rest, [(2, false), (2, true), (4, false), (4, true)], "it hangs");
                }
            }
            let_go.send(()).unwrap();
            assert_eq!(next(), (1, true));
            if limit.is_none() {
                let rest: Vec<(u64, bool)> = (0..4).map(|_| next()).collect();
                assert_eq!(rest, [(2, false), (2, true), (4, false), (4, true)]);
            }
            assert!(queue.finish(Duration::from_secs(60)));
        }
    }

    #[test]
    fn what_is_held_back_goes_only_where_it_is_wanted() {
        for (held_too, expected) in [(false, 1), (true, 2)] {
            let (queue, open, _delivered) = gate(held_too);
            queue.hand(&Arc::new(Alert { told: false, ..alert(1, Event::Crossed, "a") }));
            queue.hand(&some(2));
            (0..2).for_each(|_| open.send(Ok(())).unwrap());
            let counts = queue.counts();
            assert!(queue.finish(Duration::from_secs(60)));
            assert_eq!(counts().delivered, expected);
        }
    }
}
