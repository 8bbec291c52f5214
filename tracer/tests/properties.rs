//! What must hold whatever happens: order within the lateness window does not matter, loss never yields a wrong name,
//! seconds sum to the age, memory is bounded, nothing outlives its process.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

mod world;

use proptest::prelude::*;
use tracer::correlator::{Confidence, Correlator, EdgeKind, Frame, TieBreak, limits};
use tracer::event::{
    Actor, Began, Body, Event, Kind, LossPoint, Ns, Operation, OperationId, Outcome, SeenBy,
};
use tracer::order::{Orderer, Released};
use tracer::thresholds::{LATENESS, Thresholds};
use world::{Call, Plan, STEP, Truth, plans, play};

/// Applies events and ticks every [`STEP`], each tick after all events of its time.
fn frames(events: &[Event], end: Ns) -> Vec<Frame> {
    let mut correlator = Correlator::new(Thresholds::default());
    let mut frames = Vec::new();
    let mut tick = STEP;
    for event in events {
        while tick < event.at {
            frames.push(correlator.tick(tick));
            tick += STEP;
        }
        correlator.apply(event);
    }
    while tick <= end {
        frames.push(correlator.tick(tick));
        tick += STEP;
    }
    frames
}

/// Edges of all drawn chains: from, to, kind, confidence.
fn edges(frame: &Frame) -> impl Iterator<Item = (&Operation, &Operation, EdgeKind, Confidence)> {
    frame.diagnoses.iter().flat_map(|d| {
        d.chain.links.windows(2).filter_map(|pair| {
            let edge = pair[1].edge.as_ref()?;
            Some((&pair[0].operation, &pair[1].operation, edge.kind, edge.confidence))
        })
    })
}

/// Every proven edge is true at the frame's time.
fn check_proven(truth: &Truth, frames: &[Frame]) -> Result<[u64; 3], TestCaseError> {
    let mut seen = [0; 3];
    for frame in frames {
        for (from, to, kind, confidence) in edges(frame) {
            if confidence != Confidence::Proven {
                continue;
            }
            let (a, b) = (from.id(), to.id());
            prop_assert!(truth.lasted(&a, frame.now), "{:?} was over at {}", a, frame.now);
            prop_assert!(truth.lasted(&b, frame.now), "{:?} was over at {}", b, frame.now);
            match kind {
                EdgeKind::Contains => {
                    seen[0] += 1;
                    prop_assert!(from.actor.is(&to.actor) && from.begin <= to.begin);
                }
                EdgeKind::WaitsForHolder => {
                    seen[1] += 1;
                    prop_assert!(
                        truth.holds(&a, &to.actor, frame.now),
                        "at {}: {:?} does not hold what {:?} waits for",
                        frame.now,
                        b,
                        a
                    );
                }
                EdgeKind::Calls => {
                    seen[2] += 1;
                    prop_assert!(truth.serves(&a, &b), "{:?} is not served by {:?}", a, b);
                }
                EdgeKind::SameSuperBlock | EdgeKind::SameDevice | EdgeKind::Behind | EdgeKind::RunsIn => {
                    prop_assert!(false, "never proven, or not in this world");
                }
            }
        }
    }
    Ok(seen)
}

fn check_sums(frames: &[Frame]) -> Result<(), TestCaseError> {
    for frame in frames {
        for d in &frame.diagnoses {
            let sum: Ns = d.chain.links.iter().map(|l| l.critical).sum();
            prop_assert_eq!(sum, d.chain.age);
            prop_assert!(
                d.chain.links.iter().all(|l| l.age >= l.critical || l.since > frame.now - d.chain.age)
            );
        }
    }
    Ok(())
}

/// The published incident: the simulated node really makes the chain, and all of it is found and proven.
#[test]
fn the_simulated_incident_is_found_and_proven() {
    let ms = 1_000_000;
    let plan = Plan {
        containers: 2,
        calls: vec![
            (1_000 * ms, Call::Exit(0, 3_000 * ms)),
            (1_200 * ms, Call::Update(0)),
            (1_300 * ms, Call::List),
            (1_400 * ms, Call::List),
        ],
    };
    let truth = play(&plan);
    let frames = frames(&truth.events, truth.end);
    let seen = check_proven(&truth, &frames).expect("all true");
    assert!(seen.iter().all(|&n| n > 10), "{seen:?}");
    let at = frames.iter().find(|f| f.now == 3_000 * ms).expect("there is such a tick");
    let kinds: Vec<Kind> = at.diagnoses[0].chain.links.iter().map(|l| l.operation.kind).collect();
    assert_eq!(
        kinds,
        [
            Kind::CriCall,
            Kind::LockWait,
            Kind::CriCall,
            Kind::StatusUpdate,
            Kind::ShimCall,
            Kind::ShimServe,
            Kind::InitMethod,
            Kind::LockWait,
            Kind::ShimServe,
            Kind::InitMethod,
            Kind::Unmount,
            Kind::Sync
        ]
    );
    assert!(edges(at).all(|(_, _, _, c)| c == Confidence::Proven));
    assert_eq!(at.diagnoses.len(), 1);
    assert_eq!(at.diagnoses[0].stuck_calls_total, 4, "two lists, the update, the exit");
    let last = frames.last().expect("frames");
    assert_eq!((last.diagnoses.len(), last.in_flight.len(), last.uncertain_ends), (0, 0, 0));
}

/// Plan, and for each event a delay below the lateness window.
fn shuffled() -> impl Strategy<Value = (Plan, Vec<Ns>)> {
    (plans(), proptest::collection::vec(0..LATENESS, 64))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn without_loss_every_proven_edge_is_true(plan in plans()) {
        let truth = play(&plan);
        let frames = frames(&truth.events, truth.end);
        check_proven(&truth, &frames)?;
        check_sums(&frames)?;
        let last = frames.last().expect("frames");
        prop_assert_eq!(last.in_flight_total, 0);
        prop_assert_eq!(last.uncertain_ends, 0);
        prop_assert!(last.diagnoses.is_empty());
    }

    #[test]
    fn any_order_within_the_window_gives_the_same_frames((plan, delays) in shuffled()) {
        let truth = play(&plan);
        let straight = frames(&truth.events, truth.end);
        let mut arrivals: Vec<(Ns, usize)> =
            truth.events.iter().enumerate().map(|(i, e)| (e.at + delays[i % delays.len()], i)).collect();
        arrivals.sort();
        let mut orderer = Orderer::new(LATENESS, 1_000_000, TieBreak::of);
        let mut ordered = Vec::new();
        for (_, i) in arrivals {
            let event = &truth.events[i];
            if let Some(released) = orderer.push(event.at, event.clone()) {
                prop_assert!(false, "nothing is late: {:?}", released);
            }
            while let Some(Released::InOrder(_, e)) = orderer.pop() { ordered.push(e); }
        }
        ordered.extend(orderer.finish().into_iter().map(Released::into_item));
        prop_assert_eq!(frames(&ordered, truth.end), straight);
    }

    #[test]
    fn duplicates_change_nothing(plan in plans(), which in proptest::collection::vec(any::<bool>(), 31)) {
        let truth = play(&plan);
        let mut doubled = Vec::new();
        for (i, event) in truth.events.iter().enumerate() {
            doubled.push(event.clone());
            if which[i % which.len()] { doubled.push(event.clone()); }
        }
        prop_assert_eq!(frames(&doubled, truth.end), frames(&truth.events, truth.end));
    }

    /// Loss makes things inferred or not visible, never falsely proven. What was lost is counted where it was lost.
    #[test]
    fn loss_never_yields_a_wrong_name(
        plan in plans(), lost in proptest::collection::vec(0u8..100, 97), rate in 1u8..60,
    ) {
        let truth = play(&plan);
        let mut events = Vec::new();
        for (i, event) in truth.events.iter().enumerate() {
            let may_be_lost = matches!(event.body, Body::InFlight(_) | Body::Ended(..) | Body::Woken { .. });
            if may_be_lost && lost[i % lost.len()] < rate {
                let body = Body::Lost { at: LossPoint::Ring, count: 1 };
                events.push(Event { at: event.at, body });
            } else {
                events.push(event.clone());
            }
        }
        let frames = frames(&events, truth.end);
        check_proven(&truth, &frames)?;
        check_sums(&frames)?;
    }

    /// The same when operations are lost whole, from begin to end, because a map in the kernel was full: nothing later
    /// makes up for it.
    #[test]
    fn operations_lost_whole_never_yield_a_wrong_name(
        plan in plans(), lost in proptest::collection::vec(0u8..100, 41), rate in 1u8..70,
    ) {
        let truth = play(&plan);
        let gone: std::collections::BTreeSet<OperationId> = truth
            .spans
            .keys()
            .enumerate()
            .filter(|(i, _)| lost[i % lost.len()] < rate)
            .map(|(_, id)| id.clone())
            .collect();
        let mut events: Vec<Event> = truth
            .events
            .iter()
            .filter(|e| match &e.body {
                Body::InFlight(o) | Body::Ended(o, _) => !gone.contains(&o.id()),
                _ => true,
            })
            .cloned()
            .collect();
        events.extend(
            gone.iter().map(|id| Event { at: id.begin, body: Body::Lost { at: LossPoint::Map, count: 1 } }),
        );
        events.sort_by_key(|e| (e.at, TieBreak::of(e)));
        let frames = frames(&events, truth.end);
        check_proven(&truth, &frames)?;
        check_sums(&frames)?;
    }

    /// Ends that never come leave nothing behind once the process is gone, whatever stale reports say after it.
    #[test]
    fn nothing_outlives_its_process(plan in plans(), kept in proptest::collection::vec(any::<bool>(), 13), cut in 1_000u64..6_000) {
        let truth = play(&plan);
        let cut = cut * 1_000_000 / STEP * STEP;
        let mut correlator = Correlator::new(Thresholds::default());
        let mut last_reports = Vec::new();
        for (i, event) in truth.events.iter().enumerate().filter(|(_, e)| e.at <= cut) {
            if matches!(event.body, Body::Ended(..) | Body::PollComplete { .. }) && !kept[i % kept.len()] {
                continue;
            }
            if matches!(event.body, Body::InFlight(_)) { last_reports.push(event.clone()); }
            correlator.apply(event);
        }
        for pid in [100, 300, 301, 302, 303] {
            correlator.apply(&Event { at: cut + 1, body: Body::ProcessGone { pid } });
        }
        for report in &last_reports {
            correlator.apply(&Event { at: cut + 2, body: report.body.clone() });
        }
        let frame = correlator.tick(cut + STEP);
        prop_assert_eq!(frame.in_flight_total, 0);
        prop_assert!(frame.diagnoses.is_empty());
        prop_assert!(frame.incidents.iter().all(|i| i.ended.is_some()));
    }

    /// Anything at all, in any order: no panic, bounded memory, sums that hold.
    #[test]
    fn nonsense_is_survived(events in proptest::collection::vec(nonsense(), 0..300)) {
        let mut correlator = Correlator::new(Thresholds::default());
        let mut frames = Vec::new();
        for (i, event) in events.iter().enumerate() {
            correlator.apply(event);
            if i % 7 == 0 { frames.push(correlator.tick(event.at)); }
        }
        frames.push(correlator.tick(Ns::MAX));
        check_sums(&frames)?;
        for (size, bound) in correlator.sizes() { prop_assert!(size <= bound); }
        for frame in &frames { tracer::sinks::text::frame(frame); }
    }
}

fn actors() -> impl Strategy<Value = Actor> {
    (1u32..4, 1u32..4, proptest::option::of(1u64..4), proptest::option::of(1u64..3))
        .prop_map(|(pid, tid, g, goid)| Actor { pid, tid, g, goid })
}

fn operations() -> impl Strategy<Value = Operation> {
    let method = prop::sample::select(vec![
        "",
        "Delete",
        "Update",
        "UpdateContainerResources",
        "ListContainers",
        "UpdateSync",
        "Wait",
        "frozen",
    ]);
    let object =
        prop::sample::select(vec![0u64, 0x1000, 0x1004, 0x1008, 0x100c, 0x1020, 0x1024, u64::MAX, 3]);
    let container = prop::sample::select(vec![None, Some("aa".to_owned()), Some("bb".to_owned())]);
    (prop::sample::select(Kind::ALL.to_vec()), method, actors(), 0u64..20, object, container).prop_map(
        |(kind, method, actor, begin, object, container)| Operation {
            kind,
            method: method.to_owned(),
            actor,
            begin: begin * 1_000_000_000,
            object,
            container,
            path: (kind == Kind::Unmount)
                .then(|| "/x/io.containerd.runtime.v2.task/k8s.io/aa/rootfs".to_owned()),
            device: (kind == Kind::Sync).then_some(tracer::event::Device { major: 8, minor: 0 }),
            fs_type: None,
            began: Began::Then,
            seen_by: SeenBy::Uprobe,
        },
    )
}

fn nonsense() -> impl Strategy<Value = Event> {
    let body = prop_oneof![
        8 => operations().prop_map(Body::InFlight),
        4 => operations().prop_map(|o| Body::Ended(o, Outcome::Done)),
        1 => operations().prop_map(|o| Body::Ended(o, Outcome::Errno(16))),
        2 => operations().prop_map(|o| Body::Ended(o, Outcome::Error)),
        1 => (1u32..5, 0u64..20).prop_map(|(pid, s)| Body::Process(tracer::event::Process {
            pid,
            started: s * 1_000_000_000,
            role: if pid % 2 == 0 { tracer::event::Role::Containerd } else { tracer::event::Role::Kubelet },
            comm: String::new(),
            go_version: "go1.19.8".to_owned(),
            version: None,
        })),
        1 => prop::sample::select(vec!["aa", "bb", "cc"]).prop_map(|id| Body::Container(tracer::event::Container {
            id: id.to_owned(),
            runtime_namespace: String::new(),
            pod: Some("pod".to_owned()),
            namespace: Some("prod".to_owned()),
            name: Some("main".to_owned()),
            sandbox: false,
            shim: Some(2),
            upper: None,
            volatile: None,
        })),
        1 => (1u32..4).prop_map(|pid| Body::LeakedShim { pid, id: "aa".to_owned() }),
        1 => (1u32..4).prop_map(|pid| Body::Pins(tracer::event::Pins {
            path: "/x/io.containerd.runtime.v2.task/k8s.io/aa/rootfs".to_owned(),
            of: vec![tracer::event::Pin { pid, comm: String::new(), container: None, how: String::new() }],
            reason: String::new(),
        })),
        2 => (actors(), actors(), 0x1000u64..0x1030)
            .prop_map(|(by, waiter, semaphore)| Body::Woken { by, waiter, semaphore }),
        1 => (0u64..20).prop_map(|s| Body::PollComplete {
            kinds: Kind::ALL.to_vec(),
            older_than: s * 1_000_000_000
        }),
        1 => (1u32..4).prop_map(|pid| Body::ProcessGone { pid }),
        1 => Just(Body::Lost { at: LossPoint::Ring, count: u64::MAX }),
        1 => (0u64..3).prop_map(|some| Body::Pressure(vec![tracer::event::PressureFacts {
            of: tracer::event::Resource::Io,
            some: (some > 0).then_some(some * (u64::MAX / 3)),
            full: Some(some),
            reason: String::new(),
        }])),
        1 => Just(Body::Memory { dirty: u64::MAX, writeback: u64::MAX }),
        1 => (0u64..3).prop_map(|sectors| Body::Device(tracer::event::DeviceFacts {
            device: tracer::event::Device { major: 8, minor: 0 },
            name: "/dev/sda".to_owned(),
            sectors_written: sectors * (u64::MAX / 3),
        })),
    ];
    (0u64..20, body).prop_map(|(s, body)| Event { at: s * 1_000_000_000, body })
}

/// A flood of everything a workload can choose: each collection stays at its bound and what did not fit is counted.
#[test]
fn a_flood_is_bounded_and_counted() {
    let mut correlator = Correlator::new(Thresholds::default());
    let op = |n: u64, kind: Kind| Operation {
        kind,
        method: format!("m{n}"),
        actor: Actor { pid: 1, tid: 1, g: Some(n), goid: None },
        begin: n,
        object: n,
        container: None,
        path: None,
        device: None,
        fs_type: None,
        began: Began::Then,
        seen_by: SeenBy::Uprobe,
    };
    let beyond = 1_000u64;
    let at = 1_000_000_000;
    let flights = limits::OPERATIONS as u64 + beyond;
    for n in 0..flights {
        correlator.apply(&Event { at, body: Body::InFlight(op(n, Kind::LockWait)) });
    }
    for n in 0..limits::ENDED as u64 + beyond {
        correlator.apply(&Event { at, body: Body::Ended(op(1_000_000 + n, Kind::LockWait), Outcome::Done) });
        correlator.apply(&Event { at, body: Body::Ended(op(3_000_000 + n, Kind::CriCall), Outcome::Done) });
        correlator
            .apply(&Event { at, body: Body::Ended(op(4_000_000 + n, Kind::Unmount), Outcome::Errno(16)) });
    }
    for n in 0..limits::EXITS as u64 + 50 {
        let exit =
            Operation { container: Some(format!("{n:064x}")), ..op(6_000_000 + n, Kind::ExitHandling) };
        correlator.apply(&Event { at, body: Body::Ended(exit, Outcome::Error) });
        let leaked = Body::LeakedShim { pid: n as u32, id: String::new() };
        correlator.apply(&Event { at, body: leaked });
    }
    for n in 0..limits::CONTAINERS as u32 + 50 {
        correlator.apply(&Event { at, body: Body::ProcessGone { pid: 100_000 + n } });
        let process = tracer::event::Process {
            pid: 10_000 + n,
            started: 0,
            role: tracer::event::Role::Shim,
            comm: String::new(),
            go_version: String::new(),
            version: None,
        };
        correlator.apply(&Event { at, body: Body::Process(process) });
        let container = tracer::event::Container {
            id: format!("{n:064x}"),
            runtime_namespace: String::new(),
            pod: None,
            namespace: None,
            name: None,
            sandbox: false,
            shim: None,
            upper: None,
            volatile: None,
        };
        correlator.apply(&Event { at, body: Body::Container(container) });
        let lock = tracer::event::LockName::Init(String::new());
        correlator.apply(&Event { at, body: Body::LockIdentity { pid: 1, base: u64::from(n), lock } });
        let site = tracer::event::ThreadSite {
            pid: 1,
            tid: n,
            state: 'D',
            syscall: None,
            arguments: vec![],
            kernel_stack: vec![],
        };
        correlator.apply(&Event { at, body: Body::ThreadSite(site) });
        correlator.apply(&Event {
            at,
            body: Body::BlindSpot { what: format!("thing {n}"), reason: "because".to_owned() },
        });
        correlator.apply(&Event {
            at,
            body: Body::Device(tracer::event::DeviceFacts {
                device: tracer::event::Device { major: 1, minor: n },
                name: String::new(),
                sectors_written: 0,
            }),
        });
    }
    for (size, bound) in correlator.sizes() {
        assert!(size <= bound, "{size} > {bound}");
    }
    let frame = correlator.tick(60_000_000_000);
    let dropped = |what: &str| frame.dropped.iter().find(|d| d.what == what).map_or(0, |d| d.count);
    assert_eq!(dropped("operations in flight"), beyond);
    assert_eq!(dropped("containers"), 50);
    assert_eq!(dropped("processes"), 50);
    assert_eq!(dropped("gone processes"), 50);
    assert_eq!(dropped("lock identities"), 50);
    assert_eq!(dropped("thread sites"), (limits::CONTAINERS - limits::SITES) as u64 + 50);
    assert_eq!(dropped("blind spots"), (limits::CONTAINERS - limits::BLIND_SPOTS) as u64 + 50);
    assert_eq!(dropped("devices"), (limits::CONTAINERS - limits::DEVICES) as u64 + 50);
    assert!(dropped("ended operations") > 0);
    assert!(dropped("lock waits that may go on") > 0);
    assert!(dropped("distributions of CRI methods") > 0);
    assert!(dropped("failed unmounts") > 0);
    assert_eq!(dropped("exits that are not handled yet"), 50);
    assert!(dropped("leaked shims") > 0);
    assert!(frame.diagnoses.len() <= limits::DIAGNOSES);
    assert!(frame.in_flight.len() <= limits::IN_FLIGHT_SHOWN);
    let ids: std::collections::BTreeSet<OperationId> =
        frame.in_flight.iter().map(|f| f.operation.id()).collect();
    assert_eq!(ids.len(), frame.in_flight.len());
}
