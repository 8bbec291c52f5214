//! Exits that containerd handles late, against a small model of its event loop: one goroutine that retries, ten seconds
//! for each attempt, a back-off that doubles and is looked at once a second. What is shown must be what is pending.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use proptest::prelude::*;
use tracer::correlator::{Confidence, Correlator, EdgeKind, EndsIn, Frame, Harm, Head};
use tracer::event::{
    Actor, Began, Body, Container, Event, Kind, LossPoint, Ns, Operation, Outcome, Process, Role, SeenBy,
};
use tracer::thresholds::{Thresholds, floor};

const MS: Ns = 1_000_000;
const SECOND: Ns = 1_000 * MS;
const STEP: Ns = 100 * MS;
const CONTAINERD: u32 = 100;
/// `g` and number of the goroutine that retries.
const LOOP: u64 = 7;

/// A container: when it exits, and how long its shim then takes to remove it.
type Plan = Vec<(Ns, Ns)>;

fn plans() -> impl Strategy<Value = (Plan, Ns)> {
    let one = (0u64..8_000, prop_oneof![1 => 0u64..9_000, 3 => 9_000u64..70_000]);
    (proptest::collection::vec(one, 1..5), 0u64..1_000).prop_map(|(exits, phase)| {
        // Distinct times that are no multiple of the step.
        let exits = exits
            .iter()
            .enumerate()
            .map(|(i, (at, lasts))| (SECOND + at * MS + 7 + i as u64 * 13, lasts * MS + 3 + i as u64 * 17));
        (exits.collect(), phase * MS + 11)
    })
}

#[derive(Clone, Debug)]
struct Attempt {
    of: usize,
    begin: Ns,
    end: Ns,
    works: bool,
    retry: bool,
}

/// Plays containerd's event loop (internal/cri/server/events/events.go).
fn play((exits, phase): &(Plan, Ns)) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    let attempt = |of: usize, begin: Ns, retry: bool| {
        let (at, lasts): (Ns, Ns) = exits[of];
        let removed = at + lasts;
        let quick = begin.max(removed) + 5 * MS;
        let works = quick <= begin + 10 * SECOND;
        Attempt { of, begin, end: if works { quick } else { begin + 10 * SECOND }, works, retry }
    };
    // By container: when its back-off expires, and how long it was.
    let mut queue: Vec<(usize, Ns, Ns)> = Vec::new();
    for (of, (at, _)) in exits.iter().enumerate() {
        let first = attempt(of, *at, false);
        if !first.works {
            queue.push((of, first.end + SECOND, SECOND));
        }
        attempts.push(first);
    }
    // The ticker keeps one tick for a loop that is busy.
    let (mut tick, mut free) = (*phase, 0);
    while !queue.is_empty() {
        let now = tick.max(free);
        let mut due: Vec<(usize, Ns, Ns)> = queue.iter().copied().filter(|(_, at, _)| *at <= now).collect();
        due.sort_by_key(|(of, at, _)| (at % 3, *of));
        free = now;
        for (of, _, wait) in due {
            let made = attempt(of, free, true);
            free = made.end;
            queue.retain(|(other, ..)| *other != of);
            if !made.works {
                let wait = (2 * wait).min(300 * SECOND);
                queue.push((of, free + wait, wait));
            }
            attempts.push(made);
        }
        // One tick that came meanwhile is kept, further ones are dropped.
        tick += SECOND;
        while tick + SECOND <= free {
            tick += SECOND;
        }
    }
    attempts
}

fn id_of(container: usize) -> String {
    format!("{:x}", container + 10).repeat(64)
}

fn operation(kind: Kind, actor: Actor, begin: Ns, of: usize) -> Operation {
    Operation {
        kind,
        method: if kind == Kind::ExitHandling { String::new() } else { "Delete".to_owned() },
        actor,
        begin,
        object: 0,
        container: Some(id_of(of)),
        path: None,
        device: None,
        fs_type: None,
        began: Began::Then,
        seen_by: SeenBy::Uprobe,
    }
}

/// The operations with their ends and outcomes.
fn operations(exits: &Plan, attempts: &[Attempt]) -> Vec<(Operation, Ns, Outcome)> {
    let goroutine = |pid, g| Actor { pid, tid: pid, g: Some(g), goid: Some(g) };
    let handled = attempts.iter().map(|a| {
        let g = if a.retry { LOOP } else { 20 + a.of as u64 };
        let op = operation(Kind::ExitHandling, goroutine(CONTAINERD, g), a.begin, a.of);
        (op, a.end, if a.works { Outcome::Done } else { Outcome::Error })
    });
    let removed = exits.iter().enumerate().map(|(of, (at, lasts))| {
        let op = operation(Kind::ShimServe, goroutine(300 + of as u32, 1), at + MS, of);
        (op, at + lasts, Outcome::Done)
    });
    handled.chain(removed).filter(|(op, end, _)| op.begin < *end).collect()
}

fn events(operations: &[(Operation, Ns, Outcome)], until: Ns) -> Vec<Event> {
    let process = |pid, role| {
        let (comm, go_version) = (String::new(), "go1.22.1".to_owned());
        Body::Process(Process { pid, started: 0, role, comm, go_version, version: None })
    };
    let mut events = vec![Event { at: 1, body: process(CONTAINERD, Role::Containerd) }];
    for of in 0..5usize {
        let shim = 300 + of as u32;
        events.push(Event { at: 1, body: process(shim, Role::Shim) });
        let container = Container {
            id: id_of(of),
            runtime_namespace: "k8s.io".to_owned(),
            pod: Some(format!("pod-{of}")),
            namespace: Some("prod".to_owned()),
            name: Some("main".to_owned()),
            sandbox: false,
            shim: Some(shim),
            upper: None,
            volatile: None,
        };
        events.push(Event { at: 2, body: Body::Container(container) });
    }
    for (op, end, outcome) in operations {
        if end - op.begin >= floor(op.kind) {
            events.push(Event { at: *end, body: Body::Ended(op.clone(), *outcome) });
        }
    }
    let mut at = STEP;
    while at <= until {
        for (op, end, _) in operations {
            if op.begin + floor(op.kind) <= at && *end > at {
                events.push(Event { at, body: Body::InFlight(op.clone()) });
            }
        }
        for kind in [Kind::ExitHandling, Kind::ShimServe] {
            let older_than = at - floor(kind);
            events.push(Event { at, body: Body::PollComplete { kinds: vec![kind], older_than } });
        }
        at += STEP;
    }
    events.sort_by_key(|e| e.at);
    events
}

fn frames(events: &[Event], until: Ns) -> Vec<Frame> {
    let mut correlator = Correlator::new(Thresholds::default());
    let mut frames = Vec::new();
    let mut events = events.iter().peekable();
    let mut at = STEP;
    while at <= until {
        while let Some(event) = events.next_if(|e| e.at <= at) {
            correlator.apply(event);
        }
        frames.push(correlator.tick(at));
        at += STEP;
    }
    for (size, bound) in correlator.sizes() {
        assert!(size <= bound);
    }
    frames
}

struct Truth {
    attempts: Vec<Attempt>,
}

impl Truth {
    fn of(&self, of: usize) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(move |a| a.of == of)
    }

    /// Begin of the first attempt and end of the one that worked.
    fn span(&self, of: usize) -> (Ns, Ns) {
        let first = self.of(of).map(|a| a.begin).min().unwrap();
        (first, self.of(of).find(|a| a.works).unwrap().end)
    }

    fn at(&self, of: usize, now: Ns) -> Option<&Attempt> {
        self.of(of).find(|a| a.begin <= now && now < a.end)
    }

    fn end(&self) -> Ns {
        self.attempts.iter().map(|a| a.end).max().unwrap()
    }
}

fn number(id: &str, containers: usize) -> usize {
    (0..containers).find(|of| id_of(*of) == id).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_shown_is_what_is_pending(plan in plans()) {
        let truth = Truth { attempts: play(&plan) };
        let exits = &plan.0;
        let until = truth.end() / STEP * STEP + 2 * SECOND;
        let frames = frames(&events(&operations(exits, &truth.attempts), until), until);
        for frame in &frames {
            let now = frame.now;
            let mut shown: Vec<(usize, Ns)> = Vec::new();
            for call in frame.diagnoses.iter().flat_map(|d| &d.stuck_calls).filter(|c| c.head == Head::LateExit) {
                shown.push((number(&call.subject.as_ref().unwrap().id, exits.len()), now - call.age));
            }
            shown.sort();
            let pending: Vec<(usize, Ns)> = (0..exits.len())
                .filter(|of| {
                    let (first, end) = truth.span(*of);
                    first + 500 * MS <= now && now < end
                })
                .map(|of| (of, truth.span(of).0))
                .collect();
            prop_assert_eq!(&shown, &pending, "at {}", now);
            for d in &frame.diagnoses {
                let sum: Ns = d.chain.links.iter().map(|l| l.critical).sum();
                prop_assert_eq!(sum, d.chain.age);
                for (i, link) in d.chain.links.iter().enumerate() {
                    let Some(exit) = &link.exit else { continue };
                    let of = number(&link.subject.as_ref().unwrap().id, exits.len());
                    let begun = truth.of(of).filter(|a| a.begin <= now).count();
                    prop_assert_eq!(exit.begun as usize, begun);
                    prop_assert_eq!(exit.in_flight, truth.at(of, now).is_some());
                    let failed = truth.of(of).filter(|a| !a.works && a.end <= now).count();
                    prop_assert_eq!(exit.failed.is_some(), failed > 0);
                    if let Some(next) = exit.next {
                        let real = truth.of(of).map(|a| a.begin).find(|begin| *begin > now).unwrap();
                        prop_assert!(next <= real, "{} is later than {}", next, real);
                        let others = truth.attempts.iter().any(|a| a.of != of && a.retry && a.begin < real);
                        prop_assert!(others || real <= next + SECOND, "{} is long before {}", next, real);
                    }
                    let Some(then) = d.chain.links.get(i + 1) else { continue };
                    let edge = then.edge.as_ref().unwrap();
                    prop_assert!(edge.confidence != Confidence::Proven || edge.kind == EdgeKind::Contains);
                    let other = number(&then.subject.as_ref().unwrap().id, exits.len());
                    match edge.kind {
                        EdgeKind::Behind => {
                            prop_assert!(truth.at(other, now).is_some_and(|a| a.retry) && other != of);
                            let next = exit.next.unwrap();
                            prop_assert!(next <= now);
                        }
                        EdgeKind::Calls => {
                            prop_assert_eq!(of, other);
                            prop_assert!(exits[of].0 + exits[of].1 > now);
                        }
                        kind => prop_assert!(false, "{:?}", kind),
                    }
                }
                if let EndsIn::ExitRetry { attempts, .. } = d.ends_in {
                    prop_assert!(attempts > 0 && d.confidence == Confidence::Inferred);
                }
            }
        }
        prop_assert!(frames.last().unwrap().diagnoses.is_empty());
        // What was late is told of the incident that it belonged to.
        for of in 0..exits.len() {
            let (first, end) = truth.span(of);
            let attempts = truth.of(of).count() as u32;
            if attempts < 2 {
                continue;
            }
            let told = frames.iter().flat_map(|f| &f.incidents).flat_map(|i| &i.consequences).any(|c| {
                matches!(&c.what, Harm::ExitLate { of: subject, late, attempts: n, reported: true }
                    if subject.id == id_of(of) && *late == end - first && *n == attempts)
            });
            prop_assert!(told, "container {} was {} late", of, end - first);
        }
    }

    /// Whoever comes in the middle counts too few attempts, says so, and still tells about when the next is.
    #[test]
    fn who_comes_in_the_middle_knows_it((plan, after) in (plans(), 1u64..40)) {
        let exits: Plan = plan.0.iter().take(1).copied().collect();
        let truth = Truth { attempts: play(&(exits.clone(), plan.1)) };
        let until = truth.end() / STEP * STEP + 2 * SECOND;
        let from = after * SECOND + 5;
        // What began before it looked has left no trace in its programs.
        let seen: Vec<(Operation, Ns, Outcome)> =
            operations(&exits, &truth.attempts).into_iter().filter(|(op, ..)| op.begin >= from).collect();
        let missed = truth.attempts.iter().filter(|a| a.begin < from).count();
        for frame in frames(&events(&seen, until), until) {
            for exit in frame.diagnoses.iter().flat_map(|d| &d.chain.links).filter_map(|l| l.exit.as_ref()) {
                let begun = truth.attempts.iter().filter(|a| a.begin <= frame.now).count();
                prop_assert_eq!(exit.begun as usize + missed, begun);
                prop_assert!(exit.begun < 2 || exit.more == (missed > 0));
                if let (Some(next), true) = (exit.next, exit.begun > 1) {
                    let real = truth.attempts.iter().map(|a| a.begin).find(|begin| *begin > frame.now).unwrap();
                    prop_assert!(next <= real && real <= next + SECOND, "{} for {}", next, real);
                }
            }
        }
    }

    /// Loss makes it inferred, never wrong with certainty.
    #[test]
    fn loss_never_makes_a_late_exit_certain(
        plan in plans(), lost in proptest::collection::vec(0u8..100, 53), rate in 1u8..80,
    ) {
        let truth = Truth { attempts: play(&plan) };
        let exits = &plan.0;
        let until = truth.end() / STEP * STEP + 2 * SECOND;
        let mut seen: Vec<Event> = Vec::new();
        for (i, event) in events(&operations(exits, &truth.attempts), until).into_iter().enumerate() {
            let may_be_lost = matches!(event.body, Body::InFlight(_) | Body::Ended(..));
            if may_be_lost && lost[i % lost.len()] < rate {
                seen.push(Event { at: event.at, body: Body::Lost { at: LossPoint::Ring, count: 1 } });
            } else {
                seen.push(event);
            }
        }
        for frame in frames(&seen, until) {
            for c in frame.incidents.iter().flat_map(|i| &i.consequences) {
                let Harm::ExitLate { of, late, reported, .. } = &c.what else { continue };
                if c.confidence != Confidence::Proven {
                    continue;
                }
                let (first, end) = truth.span(number(&of.id, exits.len()));
                // It may have begun before the first attempt that was seen.
                prop_assert!(first + late <= end.max(frame.now), "{} late at {}", late, frame.now);
                prop_assert!(!reported || end <= frame.now);
                prop_assert!(*reported || frame.now < end, "at {}, it was reported at {}", frame.now, end);
            }
        }
    }
}
