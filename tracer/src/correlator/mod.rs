//! The heart: from events to diagnoses. A pure function of events and `tick(now)`: same events in, same frames out,
//! byte for byte. No I/O, no clock, no threads.
//!
//! ```text
//! event ─┬─> operations   what is in flight, what is over                 (operations.rs)
//!        ├─> exits        which container exits are not handled yet       (exits.rs)
//!        └─> facts        processes, containers, locks, devices, losses   (facts.rs)
//! tick ───> graph         who waits for whom, and what that rests on      (graph.rs, ground.rs)
//!                         and who holds what others wait for              (locks.rs)
//!                         and which processes do not run                  (stalls.rs)
//!        ─> diagnoses     chains from stuck calls to their ends           (diagnosis.rs, leaf.rs)
//!                         and what each link has cost so far              (critical.rs)
//!                         and what helps, and how much it would have      (advice.rs, fixes.rs)
//!                         and why it is not the unmount chain             (other_cause.rs)
//!                         and shims that are left over                    (leaked.rs)
//!                         and which slow relists they explain             (relists.rs)
//!        ─> incidents     diagnoses over time, and what comes of them     (incident.rs, consequences.rs)
//!        ─> frame         all of it as plain data                         (frame.rs)
//! ```
//!
//! Events should come in the order of their times ([`crate::order`]); what comes later than that does no harm: a report
//! of something that is over never brings it back.

pub mod advice;
mod consequences;
mod critical;
mod diagnosis;
mod dirtiers;
mod exits;
mod facts;
pub mod fixes;
pub mod frame;
mod graph;
pub mod ground;
mod incident;
mod leaf;
mod leaked;
pub mod limits;
mod locks;
mod operations;
mod other_cause;
mod outlook;
mod pressure;
mod relists;
#[doc(hidden)]
pub mod scenario;
mod stalls;
pub mod words;

pub use diagnosis::{explains, has_edge};
pub use dirtiers::{Dirtier, Source};
pub use exits::{Attempts, Failed};
pub use frame::*;
pub use operations::lasts_by_design;
pub use outlook::{NotReady, Outlook};

use crate::event::{Body, Event, Kind, Ns, OperationId, Outcome};
use crate::stats::Stats;
use crate::thresholds::{CRI_TIMEOUT, SECOND, Thresholds, floor};
use consequences::{News, Scene};
use critical::Critical;
use diagnosis::{Inputs, RelistHealth};
use exits::Exits;
use facts::Facts;
use graph::{Graph, RELIST_CALLS};
use incident::Incidents;
use leaf::{Busy, FailedUnmounts};
use operations::{Finished, Operations};
use relists::Relists;
use std::collections::BTreeSet;

/// `EBUSY`.
const EBUSY: i32 = 16;

/// Turns events into frames.
#[derive(Clone, Debug)]
pub struct Correlator {
    thresholds: Thresholds,
    operations: Operations,
    facts: Facts,
    stats: Stats,
    incidents: Incidents,
    exits: Exits,
    failed: FailedUnmounts,
    failed_dropped: u64,
    /// What ended since the last tick beyond its threshold, without having been seen in flight.
    unseen: Vec<Finished>,
    /// What happened since the last tick that may have come of an incident.
    news: Vec<News>,
    health: RelistHealth,
    critical: Critical,
    relists: Relists,
}

impl Correlator {
    /// A correlator that knows nothing yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Correlator {
            thresholds,
            operations: Operations::default(),
            facts: Facts::default(),
            stats: Stats::default(),
            incidents: Incidents::default(),
            exits: Exits::default(),
            failed: FailedUnmounts::new(),
            failed_dropped: 0,
            unseen: Vec::new(),
            news: Vec::new(),
            health: RelistHealth::default(),
            critical: Critical::default(),
            relists: Relists::default(),
        }
    }

    /// Takes note of what happened.
    pub fn apply(&mut self, event: &Event) {
        self.take(event.clone());
    }

    /// The same of an event that nobody else needs.
    pub fn take(&mut self, Event { at, body }: Event) {
        self.operations.next_event();
        match body {
            Body::InFlight(op) => {
                if !operations::lasts_by_design(&op) && !self.facts.is_of_the_past(&op) {
                    let settled = self.operations.report(&op, at);
                    settled.iter().for_each(|f| self.finished(f));
                    if op.kind == Kind::ExitHandling && self.operations.contains(&op.id()) {
                        self.exits.begun(&op);
                    }
                }
            }
            Body::Ended(op, outcome) => {
                if !operations::lasts_by_design(&op) {
                    for f in self.operations.end(op, outcome, at).iter().flatten() {
                        self.finished(f);
                        let counts = !f.was_seen && incident::passed(f, &self.thresholds).is_some();
                        if counts && self.unseen.len() < limits::SUBJECTS_SHOWN {
                            self.unseen.push(f.clone());
                        }
                    }
                }
            }
            Body::Woken { by, waiter, semaphore } => self.operations.woken(&by, &waiter, semaphore, at),
            Body::Looked { pid } => self.operations.looked(pid, at),
            Body::GoroutineSite(site) => self.facts.goroutine(&site, at),
            Body::PollComplete { kinds, older_than } => self.operations.complete(&kinds, older_than, at),
            Body::Process(process) => {
                if let Some(started) = self.facts.process(&process, at) {
                    self.operations.process_gone(process.pid, started);
                    self.exits.process_gone(process.pid, started);
                }
            }
            Body::ProcessGone { pid } => {
                self.operations.process_gone(pid, at);
                self.exits.process_gone(pid, at);
                self.facts.process_gone(pid, at);
            }
            Body::Container(container) => {
                self.facts.container(&container);
                self.hear(Some(News::Container(container)));
            }
            Body::LockIdentity { pid, base, lock } => self.facts.lock(pid, base, &lock, at),
            Body::ThreadSite(site) => self.facts.site(&site, at),
            Body::Device(device) => self.facts.device(&device, at),
            Body::Memory { dirty, writeback } => {
                self.facts.unwritten(Memory { dirty, writeback }, at);
            }
            Body::Pressure(all) => self.facts.pressures.sample(&all, at),
            Body::Lost { at: point, count } => {
                self.facts.lost(point, count);
                // What came late was passed on all the same: nothing is missing.
                if point != crate::event::LossPoint::Late && count > 0 {
                    self.operations.lost(at);
                }
            }
            Body::BlindSpot { what, reason } => self.facts.blind_spot(&what, &reason),
            Body::Cost(cost) => self.facts.cost(&cost),
            Body::LeakedShim { pid, id } => self.facts.leaked_shim(pid, &id, at),
            Body::Kubelet(kubelet) => self.facts.kubelet(&kubelet),
            Body::Writers(writers) => self.facts.writers(&writers, at),
            Body::Pins(pins) => self.facts.pins(&pins, at),
        }
    }

    /// What is known at `now` of the node and of what is in flight, as events, oldest first: another correlator that they
    /// are applied to knows it too. Not told is what is over.
    pub fn all_known(&self, now: Ns) -> Vec<Event> {
        let mut events = self.facts.all_known(now);
        let in_flight = self.operations.iter();
        events.extend(in_flight.map(|f| Event { at: f.reported_at, body: Body::InFlight(f.op.clone()) }));
        // Stable: a process comes before its locks, of which it is told at the same time.
        events.sort_by_key(|event| event.at);
        events
    }

    /// Takes over the incidents that `ahead`, a copy of this one that has heard more, has opened at `at`: they are told
    /// already. Gives their ids. See [`crate::pipeline`].
    pub fn announce(&mut self, ahead: &Correlator, at: Ns) -> BTreeSet<String> {
        self.incidents.announce(&ahead.incidents, at)
    }

    /// Whether an incident is open, or announced, that this operation is a part of.
    pub fn is_told(&self, id: &OperationId) -> bool {
        self.incidents.have(id)
    }

    /// An operation has ended.
    fn finished(&mut self, f: &Finished) {
        let took = f.at.saturating_sub(f.op.begin);
        self.stats.record(&f.op, f.outcome, took);
        self.hear(News::of(f));
        let list = f.op.kind == Kind::CriCall && RELIST_CALLS[..2].contains(&f.op.method.as_str());
        match f.op.kind {
            Kind::Unmount => self.unmounted(f),
            Kind::ExitHandling => self.exits.ended(f, self.facts.process_of(f.op.actor.pid)),
            Kind::Relist => self.relisted(f, took),
            Kind::CriCall if list && self.facts.relists_unseen() => self.relisted(f, took),
            _ => {}
        }
    }

    /// Keeps what may be a consequence until the next tick, while there is something that it may be one of.
    fn hear(&mut self, news: Option<News>) {
        if self.incidents.may_have_consequences() && self.news.len() < limits::NEWS {
            self.news.extend(news);
        }
    }

    fn unmounted(&mut self, f: &Finished) {
        let actor = f.op.actor.g.unwrap_or(u64::from(f.op.actor.tid));
        let key = (f.op.actor.pid, actor);
        if f.outcome != Outcome::Errno(EBUSY) {
            self.failed.remove(&key);
            return;
        }
        if self.failed.len() >= limits::FAILED_UNMOUNTS && !self.failed.contains_key(&key) {
            self.failed_dropped = self.failed_dropped.saturating_add(1);
            return;
        }
        let entry = self.failed.entry(key).or_insert(Busy { failures: 0, last: f.at, path: None });
        let in_a_row = entry.last.saturating_add(limits::RETRY_GAP) >= f.at;
        let failures = if in_a_row { entry.failures.saturating_add(1) } else { 1 };
        *entry = Busy { failures, last: f.at, path: f.op.path.clone() };
    }

    fn relisted(&mut self, f: &Finished, took: Ns) {
        self.relists.ended(f, &self.facts, self.thresholds.shown);
        let limit = self.facts.kubelet_of(None).and_then(|k| k.request_timeout).unwrap_or(CRI_TIMEOUT);
        if f.outcome == Outcome::Done && took < limit {
            self.health.bad = None;
            return;
        }
        let first = match self.health.bad {
            Some((first, last_end)) if f.op.begin.saturating_sub(last_end) <= 2 * SECOND => {
                first.min(f.op.begin)
            }
            _ => f.op.begin,
        };
        self.health.bad = Some((first, f.at));
    }

    /// Whether nothing is in flight, blocked or about to be told: a tick would say what the last one has said, but for how
    /// long things took that have ended.
    pub fn is_quiet(&self) -> bool {
        let (open, _) = self.incidents.len();
        let exits = self.exits.sizes()[0].0;
        // Lock waits that have ended may wait for a tick, as long as there is room for more.
        let settling = self.operations.sizes()[2].saturating_sub(limits::SETTLING / 2);
        self.operations.len() + settling + open + exits + self.failed.len() + self.unseen.len() == 0
    }

    /// Whether at `now` only ages differ from what a tick at `before` said, as long as [`Correlator::changes`] stays the same:
    /// all that is in flight has lasted for long, and nothing waits for a tick.
    pub fn is_steady(&self, before: Ns, now: Ns) -> bool {
        let old = |f: &operations::Flight| now.saturating_sub(f.since) >= crate::thresholds::STEADY_AGE;
        let pending =
            self.operations.sizes()[2] + self.failed.len() + self.unseen.len() + self.incidents.announced();
        pending == 0 && self.operations.iter().all(old) && self.next_news(before) > now
    }

    /// When age alone makes something known that a tick at `before` has not said: something passes a threshold, or an incident
    /// grows to its next doubling.
    pub fn next_news(&self, before: Ns) -> Ns {
        let crossings = self
            .operations
            .iter()
            .flat_map(|f| self.thresholds.of(f.op.kind).map(|threshold| f.since.saturating_add(threshold)));
        crossings.filter(|at| *at > before).min().unwrap_or(Ns::MAX).min(self.incidents.grows_at())
    }

    /// How often what is in flight has changed, beyond being reported again.
    pub fn changes(&self) -> u64 {
        self.operations.changes()
    }

    /// Whether a poll that is complete would end something that it has not found any more.
    pub fn misses(&self, kinds: &[Kind], older_than: Ns) -> bool {
        self.operations.misses(kinds, older_than)
    }

    /// Whether this operation is in flight.
    pub fn knows(&self, id: &OperationId) -> bool {
        self.operations.contains(id)
    }

    /// Says what is known at `now`.
    pub fn tick(&mut self, now: Ns) -> Frame {
        for f in self.operations.settle(now) {
            self.finished(&f);
        }
        self.failed.retain(|_, busy| busy.last.saturating_add(limits::RETRY_GAP) >= now);
        self.facts.forget_sites(now);
        let blind_spots = self.blind_spots(now);
        let blind: Vec<String> = blind_spots.iter().map(|b| format!("{}: {}", b.what, b.reason)).collect();

        self.exits.tick(now, |id| self.operations.contains(id));
        let waiting = self.exits.waiting(now);
        let graph = Graph::build(&self.operations, &self.exits, &waiting, &self.facts, now);
        let mut diagnoses = Inputs {
            graph: &graph,
            facts: &self.facts,
            failed: &self.failed,
            thresholds: &self.thresholds,
            health: self.health,
            blind: &blind,
            now,
        }
        .diagnose();
        let (in_flight, in_flight_total) = self.in_flight(&graph, now);
        let lock_bases: BTreeSet<(u32, u64)> = graph
            .nodes
            .iter()
            .flat_map(|n| {
                let pid = n.flight.op.actor.pid;
                let held = operations::held_base(&n.flight.op).map(|base| (pid, base));
                let waited = (n.flight.op.kind == Kind::LockWait)
                    .then(|| [4, 8, 12].map(|o| (pid, n.flight.op.object.wrapping_sub(o))));
                held.into_iter().chain(waited.into_iter().flatten())
            })
            .collect();
        drop(graph);
        self.facts.forget_locks(now, |pid, base| lock_bases.contains(&(pid, base)));

        let (operations, exits) = (&self.operations, &self.exits);
        let drawn = diagnoses.found.iter_mut().map(|found| &mut found.diagnosis);
        self.critical.tick(drawn, now, |id| operations.contains(id) || exits.contains(id));
        // What a fix would have saved is told from the seconds of the links.
        for found in &mut diagnoses.found {
            advice::advise(&mut found.diagnosis, &self.facts);
        }
        self.note_losses(&mut diagnoses.found, now);
        let scene = Scene {
            facts: &self.facts,
            exits: &self.exits,
            last_loss: self.operations.last_loss(),
            late: self.thresholds.exit,
            now,
        };
        let incidents = self.incidents.tick(
            &mut diagnoses.found,
            &self.unseen,
            &self.news,
            &self.operations,
            &scene,
            &self.thresholds,
        );
        self.unseen.clear();
        self.news.clear();
        let relists = self.relists.tick(&diagnoses, &self.operations, &self.facts, now);
        Frame {
            now,
            diagnoses: diagnoses.found.into_iter().map(|f| f.diagnosis).collect(),
            diagnoses_total: diagnoses.total,
            incidents,
            in_flight,
            in_flight_total,
            relists,
            losses: self.facts.losses(),
            dropped: self.dropped(),
            uncertain_ends: self.operations.uncertain_ends,
            blind_spots,
            distributions: self.stats.distributions(),
            memory: self.facts.memory,
            pressures: self.facts.pressures.shown(),
            devices: self.facts.device_states(),
            costs: self.facts.costs(),
            leaked_shims: self.facts.leaked_shims(),
            programs: self.facts.programs(),
        }
    }

    fn blind_spots(&self, now: Ns) -> Vec<BlindSpot> {
        let mut all = self.facts.blind_spots();
        if let Some(last) = self.operations.polls_older(now.saturating_sub(limits::POLL_STALE)) {
            let ago = words::duration(now.saturating_sub(last));
            all.push(BlindSpot {
                what: diagnosis::STALE.to_owned(),
                reason: format!("last read completely {ago} ago"),
            });
        }
        all
    }

    /// A diagnosis over a time in which records were lost says so.
    fn note_losses(&self, found: &mut [diagnosis::Found], now: Ns) {
        let Some(last) = self.operations.last_loss() else { return };
        let lost: u64 = self.facts.losses().iter().map(|l| l.count).sum();
        for f in found {
            if last >= now.saturating_sub(f.diagnosis.chain.age) {
                f.diagnosis.blind_spots.push(format!(
                    "{lost} records were lost, the last {} ago",
                    words::duration(now.saturating_sub(last))
                ));
            }
        }
    }

    fn in_flight(&self, graph: &Graph<'_>, now: Ns) -> (Vec<InFlight>, u64) {
        let mut nodes: Vec<usize> = (0..graph.nodes.len())
            .filter(|&i| {
                let f = graph.nodes[i].flight;
                graph.nodes[i].waiting.is_none() && now.saturating_sub(f.op.begin) >= floor(f.op.kind)
            })
            .collect();
        nodes.sort_by_key(|&i| (graph.nodes[i].flight.since, i));
        let total = self.operations.len() as u64;
        let list = nodes
            .into_iter()
            .take(limits::IN_FLIGHT_SHOWN)
            .map(|i| {
                let node = &graph.nodes[i];
                InFlight {
                    operation: node.flight.op.clone(),
                    who: self.facts.who(&node.flight.op.actor),
                    subject: node.container.as_deref().map(|id| self.facts.subject(id)),
                    age: now.saturating_sub(node.flight.since),
                }
            })
            .collect();
        (list, total)
    }

    fn dropped(&self) -> Vec<Dropped> {
        let own = [
            ("operations in flight", limits::OPERATIONS, self.operations.refused),
            ("ended operations", limits::ENDED, self.operations.forgotten),
            ("lock waits that may go on", limits::SETTLING, self.operations.unsettled),
            ("incidents", limits::INCIDENTS, self.incidents.refused),
            ("failed unmounts", limits::FAILED_UNMOUNTS, self.failed_dropped),
            ("exits that are not handled yet", limits::EXITS, self.exits.dropped),
            ("distributions of CRI methods", limits::METHODS, self.stats.dropped),
        ];
        own.into_iter()
            .chain(self.facts.dropped.iter().map(|(&(what, limit), &count)| (what, limit, count)))
            .filter(|(_, _, count)| *count > 0)
            .map(|(what, limit, count)| Dropped { what: what.to_owned(), limit: limit as u64, count })
            .collect()
    }

    /// Sizes of all bounded collections beside their bounds, for tests.
    #[doc(hidden)]
    pub fn sizes(&self) -> Vec<(usize, usize)> {
        let [flights, past, settling] = self.operations.sizes();
        let (open, over) = self.incidents.len();
        let mut all = vec![
            (flights, limits::OPERATIONS),
            (past, limits::ENDED),
            (settling, limits::SETTLING),
            (self.failed.len(), limits::FAILED_UNMOUNTS),
            (open, limits::INCIDENTS),
            (over, limits::AFTERMATHS),
            (self.unseen.len(), limits::SUBJECTS_SHOWN),
            (self.news.len(), limits::NEWS),
        ];
        all.extend(self.relists.sizes());
        all.extend(self.exits.sizes());
        all.extend(self.facts.sizes());
        all
    }
}

/// What decides between events of the same time, so that the order of arrival does not: facts first, then operations
/// in flight, then ends, then what sums them up. For [`crate::order::Orderer`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TieBreak(u8, Option<OperationId>, u64, u64, String);

impl TieBreak {
    /// Of this event.
    pub fn of(event: &Event) -> Self {
        let plain = |class, a, b| TieBreak(class, None, a, b, String::new());
        match &event.body {
            Body::Process(p) => plain(0, u64::from(p.pid), p.started),
            Body::Container(c) => TieBreak(1, None, 0, 0, c.id.clone()),
            Body::Device(d) => plain(2, u64::from(d.device.major), u64::from(d.device.minor)),
            Body::Memory { dirty, writeback } => plain(3, *dirty, *writeback),
            Body::Pressure(all) => TieBreak(4, None, 5, 0, format!("{all:?}")),
            Body::BlindSpot { what, .. } => TieBreak(4, None, 0, 0, what.clone()),
            Body::Kubelet(k) => plain(4, u64::from(k.pid), 0),
            Body::LeakedShim { pid, .. } => plain(4, u64::from(*pid), 1),
            Body::Cost(c) => TieBreak(4, None, 2, c.hits, c.comm.clone()),
            Body::Pins(p) => TieBreak(4, None, 3, 0, p.path.clone()),
            Body::Writers(_) => plain(4, 0, 4),
            Body::LockIdentity { pid, base, .. } => plain(5, u64::from(*pid), *base),
            Body::ThreadSite(s) => plain(6, u64::from(s.pid), u64::from(s.tid)),
            Body::GoroutineSite(s) => plain(6, u64::from(s.actor.pid), s.actor.g.unwrap_or(0)),
            Body::InFlight(op) => TieBreak(7, Some(op.id()), 0, 0, String::new()),
            Body::Woken { by, waiter, semaphore } => TieBreak(
                8,
                None,
                *semaphore,
                waiter.g.unwrap_or(0),
                format!("{} {}", waiter.pid, by.g.unwrap_or(0)),
            ),
            Body::Ended(op, _) => TieBreak(9, Some(op.id()), 0, 0, String::new()),
            Body::Lost { at, count } => plain(10, *at as u64, *count),
            Body::PollComplete { kinds, older_than } => {
                TieBreak(11, None, *older_than, 0, format!("{kinds:?}"))
            }
            Body::Looked { pid } => plain(11, u64::from(*pid), 0),
            Body::ProcessGone { pid } => plain(12, u64::from(*pid), 0),
        }
    }
}
