//! A small simulated node that knows the truth: containers with their locks, goroutines that hold and wait for them,
//! shims that unmount. It makes the events that probes and polls would make of it, and answers what really was the case.

use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use tracer::event::{
    Actor, Began, Body, Container, Device, Event, Kind, LockName, Ns, Operation, OperationId, Outcome,
    Process, Role, SeenBy,
};
use tracer::thresholds::floor;

const MS: Ns = 1_000_000;
/// Every poll and tick of the test.
pub const STEP: Ns = 100 * MS;
const CONTAINERD: u32 = 100;

/// A call that arrives at containerd (or a container that exits).
#[derive(Clone, Debug)]
pub enum Call {
    /// Reads the Status lock of every container, one after another.
    List,
    /// Takes the container's Status lock for writing, calls the shim, which takes the Init lock for a moment.
    Update(usize),
    /// The exit handler: the shim takes the Init lock and unmounts for this long, the sync takes all but 5 ms of it.
    Exit(usize, Ns),
}

/// What is to happen: when, and what.
#[derive(Clone, Debug)]
pub struct Plan {
    pub containers: usize,
    pub calls: Vec<(Ns, Call)>,
}

/// Plans with a few containers and up to a dozen calls within four seconds.
pub fn plans() -> impl Strategy<Value = Plan> {
    (1usize..4).prop_flat_map(|containers| {
        let call = prop_oneof![
            3 => Just(Call::List),
            3 => (0..containers).prop_map(Call::Update),
            2 => (0..containers, 200u64..3_000).prop_map(|(c, ms)| Call::Exit(c, ms * MS)),
        ];
        proptest::collection::vec((0u64..4_000, call), 1..12).prop_map(move |mut calls| {
            calls.sort_by_key(|(at, _)| *at);
            // Distinct times, so that nothing depends on how ties are broken.
            let calls = calls
                .into_iter()
                .enumerate()
                .map(|(i, (ms, c))| (1_000 * MS + ms * MS + i as u64 * 7_919, c));
            Plan { containers, calls: calls.collect() }
        })
    })
}

/// What an actor does next.
#[derive(Clone, Debug)]
enum Do {
    Begin(Operation),
    /// Ends the innermost open operation.
    End,
    Read(usize),
    Unread(usize),
    Write(usize),
    Unwrite(usize),
    Lock(usize),
    Unlock(usize),
    Sleep(Ns),
    /// Starts the other actor and waits until it is done.
    Call(usize),
}

/// Who waits for or holds which lock; one for each Status lock and each Init lock.
#[derive(Clone, Debug, Default)]
struct Lock {
    writer: Option<usize>,
    readers: usize,
    queue: VecDeque<(usize, bool)>,
}

struct Someone {
    actor: Actor,
    todo: VecDeque<Do>,
    open: Vec<Operation>,
    caller: Option<usize>,
}

/// Everything that was the case.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Begin and end of every operation.
    pub spans: BTreeMap<OperationId, (Operation, Ns)>,
    /// Which lock wait was for a lock held by whom: wait, holder's actor, from, to.
    pub held: Vec<(OperationId, Actor, Ns, Ns)>,
    /// Which client operation was served by which.
    pub served: Vec<(OperationId, OperationId)>,
    /// Events in the order of their times.
    pub events: Vec<Event>,
    /// When it was all over.
    pub end: Ns,
}

pub fn id_of(container: usize) -> String {
    format!("{container:x}").repeat(64)
}

fn status_base(container: usize) -> u64 {
    0xc000_2000_0000 + container as u64 * 0x100
}

fn init_base(container: usize) -> u64 {
    0xc000_1000_0000 + container as u64 * 0x100
}

fn shim(container: usize) -> u32 {
    300 + container as u32
}

fn op(kind: Kind, method: &str, actor: Actor) -> Operation {
    Operation {
        kind,
        method: method.to_owned(),
        actor,
        begin: 0,
        object: 0,
        container: None,
        path: None,
        device: None,
        fs_type: None,
        began: Began::Then,
        seen_by: SeenBy::Uprobe,
    }
}

struct World {
    now: Ns,
    people: Vec<Someone>,
    status: Vec<Lock>,
    init: Vec<Lock>,
    agenda: BTreeMap<(Ns, u64), usize>,
    number: u64,
    truth: Truth,
    /// Open lock waits by person: the operation.
    waits: BTreeMap<usize, Operation>,
    raw: Vec<Event>,
}

/// Plays a plan to its end.
pub fn play(plan: &Plan) -> Truth {
    let mut w = World {
        now: 0,
        people: Vec::new(),
        status: vec![Lock::default(); plan.containers],
        init: vec![Lock::default(); plan.containers],
        agenda: BTreeMap::new(),
        number: 0,
        truth: Truth::default(),
        waits: BTreeMap::new(),
        raw: Vec::new(),
    };
    w.introduce(plan.containers);
    for (at, call) in &plan.calls {
        w.enlist(*at, call, plan.containers);
    }
    while let Some(((at, _), person)) = w.agenda.pop_first() {
        w.now = at;
        w.go_on(person);
    }
    w.truth.end = w.now + 1_000 * MS;
    w.polls();
    w.raw.sort_by_key(|e| (e.at, tracer::correlator::TieBreak::of(e)));
    w.truth.events = std::mem::take(&mut w.raw);
    w.truth
}

impl World {
    fn introduce(&mut self, containers: usize) {
        let process = |pid, role, comm: &str| Process {
            pid,
            started: 0,
            role,
            comm: comm.to_owned(),
            go_version: "go1.19.8".to_owned(),
            version: None,
        };
        self.raw.push(Event {
            at: 500 * MS,
            body: Body::Process(process(CONTAINERD, Role::Containerd, "containerd")),
        });
        for c in 0..containers {
            self.raw.push(Event {
                at: 500 * MS,
                body: Body::Process(process(shim(c), Role::Shim, "containerd-shim")),
            });
            self.raw.push(Event {
                at: 500 * MS,
                body: Body::Container(Container {
                    id: id_of(c),
                    runtime_namespace: "k8s.io".to_owned(),
                    pod: Some(format!("job-{c}")),
                    namespace: Some("prod".to_owned()),
                    name: Some("main".to_owned()),
                    sandbox: false,
                    shim: Some(shim(c)),
                    upper: None,
                    volatile: None,
                }),
            });
        }
    }

    fn person(&mut self, pid: u32) -> usize {
        let n = self.people.len() as u64;
        let actor = Actor { pid, tid: pid * 100 + n as u32, g: Some(0xc000 + n * 16), goid: Some(n + 1) };
        self.people.push(Someone { actor, todo: VecDeque::new(), open: Vec::new(), caller: None });
        self.people.len() - 1
    }

    fn schedule(&mut self, at: Ns, person: usize) {
        self.number += 1;
        self.agenda.insert((at, self.number), person);
    }

    /// Writes down what a call consists of.
    fn enlist(&mut self, at: Ns, call: &Call, containers: usize) {
        let p = self.person(CONTAINERD);
        let actor = self.people[p].actor;
        let gap = Do::Sleep(MS);
        let mut todo = vec![];
        match call {
            Call::List => {
                todo.push(Do::Begin(op(Kind::CriCall, "ListContainers", actor)));
                for c in 0..containers {
                    todo.extend([gap.clone(), Do::Read(c), gap.clone(), Do::Unread(c)]);
                }
                todo.push(Do::End);
            }
            Call::Update(c) => {
                let s = self.person(shim(*c));
                let sa = self.people[s].actor;
                let of = |o: Operation| Operation { container: Some(id_of(*c)), ..o };
                let status =
                    Operation { object: status_base(*c), ..op(Kind::StatusUpdate, "UpdateSync", actor) };
                todo.extend([
                    Do::Begin(of(op(Kind::CriCall, "UpdateContainerResources", actor))),
                    gap.clone(),
                    Do::Begin(of(status)),
                    Do::Sleep(1_000),
                    Do::Write(*c),
                    gap.clone(),
                    Do::Begin(of(op(Kind::ShimCall, "Update", actor))),
                    gap.clone(),
                    Do::Call(s),
                    gap.clone(),
                    Do::End,
                    gap.clone(),
                    Do::Unwrite(*c),
                    Do::Sleep(1_000),
                    Do::End,
                    gap.clone(),
                    Do::End,
                ]);
                let init = Operation {
                    object: init_base(*c),
                    container: Some(id_of(*c)),
                    ..op(Kind::InitMethod, "Update", sa)
                };
                self.people[s].todo = VecDeque::from([
                    Do::Begin(of(op(Kind::ShimServe, "Update", sa))),
                    gap.clone(),
                    Do::Begin(init),
                    Do::Sleep(1_000),
                    Do::Lock(*c),
                    Do::Sleep(80 * MS),
                    Do::Unlock(*c),
                    Do::Sleep(1_000),
                    Do::End,
                    gap.clone(),
                    Do::End,
                ]);
            }
            Call::Exit(c, took) => {
                let s = self.person(shim(*c));
                let sa = self.people[s].actor;
                let thread = Actor { g: None, goid: None, ..sa };
                let of = |o: Operation| Operation { container: Some(id_of(*c)), ..o };
                todo.extend([
                    Do::Begin(of(op(Kind::ExitHandling, "", actor))),
                    gap.clone(),
                    Do::Begin(of(op(Kind::ShimCall, "Delete", actor))),
                    gap.clone(),
                    Do::Call(s),
                    gap.clone(),
                    Do::End,
                    gap.clone(),
                    Do::End,
                ]);
                let init = Operation { object: init_base(*c), ..op(Kind::InitMethod, "Delete", sa) };
                let unmount = Operation {
                    path: Some(format!(
                        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}/rootfs",
                        id_of(*c)
                    )),
                    began: Began::Then,
                    seen_by: SeenBy::Fentry,
                    ..op(Kind::Unmount, "", thread)
                };
                // Each container has a file system of its own: the locks are what is tested here.
                let sync = Operation {
                    object: 0xffff_0000 + *c as u64,
                    device: Some(Device { major: 8, minor: *c as u32 }),
                    fs_type: Some("ext4".to_owned()),
                    began: Began::Then,
                    seen_by: SeenBy::Fentry,
                    ..op(Kind::Sync, "", thread)
                };
                self.people[s].todo = VecDeque::from([
                    Do::Begin(of(op(Kind::ShimServe, "Delete", sa))),
                    gap.clone(),
                    Do::Begin(of(init)),
                    Do::Sleep(1_000),
                    Do::Lock(*c),
                    gap.clone(),
                    Do::Begin(unmount),
                    Do::Sleep(2 * MS),
                    Do::Begin(sync),
                    Do::Sleep(took.saturating_sub(5 * MS)),
                    Do::End,
                    Do::Sleep(3 * MS),
                    Do::End,
                    gap.clone(),
                    Do::Unlock(*c),
                    Do::Sleep(1_000),
                    Do::End,
                    gap.clone(),
                    Do::End,
                ]);
            }
        }
        self.people[p].todo = todo.into();
        self.schedule(at, p);
    }

    fn go_on(&mut self, p: usize) {
        while let Some(next) = self.people[p].todo.pop_front() {
            match next {
                Do::Begin(o) => {
                    let o = Operation { begin: self.now, ..o };
                    // The caller's innermost operation is served by the first one of the callee.
                    if self.people[p].open.is_empty()
                        && let Some(caller) = self.people[p].caller
                        && let Some(client) = self.people[caller].open.last()
                    {
                        self.truth.served.push((client.id(), o.id()));
                    }
                    self.people[p].open.push(o);
                }
                Do::End => {
                    if let Some(o) = self.people[p].open.pop() {
                        self.over(o);
                    }
                }
                Do::Sleep(d) => return self.schedule(self.now + d, p),
                Do::Call(s) => {
                    self.people[s].caller = Some(p);
                    return self.schedule(self.now, s);
                }
                Do::Read(c) | Do::Write(c) | Do::Lock(c) => {
                    let read = matches!(next, Do::Read(_));
                    let mutex = matches!(next, Do::Lock(_));
                    let lock = if mutex { &mut self.init[c] } else { &mut self.status[c] };
                    let free = lock.writer.is_none() && lock.queue.is_empty() && (read || lock.readers == 0);
                    if free {
                        if read {
                            lock.readers += 1
                        } else {
                            lock.writer = Some(p)
                        }
                        continue;
                    }
                    // A writer that only waits for readers holds `w`; everybody else queues behind it.
                    let behind_readers = !read && lock.writer.is_none() && lock.queue.is_empty();
                    lock.queue.push_back((p, read));
                    let base = if mutex { init_base(c) + 0x20 } else { status_base(c) };
                    let offset = if read {
                        12
                    } else if behind_readers {
                        8
                    } else {
                        4
                    };
                    let mut wait = op(Kind::LockWait, "", self.people[p].actor);
                    wait.begin = self.now;
                    wait.object = base + offset;
                    self.waits.insert(p, wait);
                    let name = if mutex { LockName::Init(id_of(c)) } else { LockName::Status(id_of(c)) };
                    let pid = self.people[p].actor.pid;
                    self.raw.push(Event { at: self.now, body: Body::LockIdentity { pid, base, lock: name } });
                    self.note_holders(c, mutex);
                    return;
                }
                Do::Unread(c) => {
                    self.status[c].readers -= 1;
                    self.hand_on(c, false, p);
                }
                Do::Unwrite(c) => {
                    self.status[c].writer = None;
                    self.hand_on(c, false, p);
                }
                Do::Unlock(c) => {
                    self.init[c].writer = None;
                    self.hand_on(c, true, p);
                }
            }
        }
        if let Some(caller) = self.people[p].caller.take() {
            self.schedule(self.now, caller);
        }
    }

    /// The lock is let go: whoever is first in the queue gets it; of readers, all that are next.
    fn hand_on(&mut self, c: usize, mutex: bool, by: usize) {
        loop {
            let lock = if mutex { &mut self.init[c] } else { &mut self.status[c] };
            let Some(&(next, read)) = lock.queue.front() else { break };
            if lock.writer.is_some() || (!read && lock.readers > 0) {
                break;
            }
            lock.queue.pop_front();
            if read {
                lock.readers += 1
            } else {
                lock.writer = Some(next)
            }
            self.close_holders(next);
            if let Some(wait) = self.waits.remove(&next) {
                let woken = Body::Woken {
                    by: self.people[by].actor,
                    waiter: self.people[next].actor,
                    semaphore: wait.object,
                };
                self.raw.push(Event { at: self.now, body: woken });
                self.over(wait);
            }
            self.schedule(self.now, next);
        }
        self.note_holders(c, mutex);
    }

    /// Writes down who holds the lock that somebody waits for, from now on.
    fn note_holders(&mut self, c: usize, mutex: bool) {
        let lock = if mutex { &self.init[c] } else { &self.status[c] };
        let waiting: Vec<usize> = lock.queue.iter().map(|(p, _)| *p).collect();
        // A pending writer blocks all that queue behind it as well as any holder does.
        let writer = lock.writer;
        for (i, &p) in waiting.iter().enumerate() {
            let holder = writer.or_else(|| waiting[..i].first().copied());
            self.close_holders(p);
            if let (Some(wait), Some(holder)) = (self.waits.get(&p), holder) {
                self.truth.held.push((wait.id(), self.people[holder].actor, self.now, Ns::MAX));
            }
        }
    }

    fn close_holders(&mut self, p: usize) {
        let Some(id) = self.waits.get(&p).map(Operation::id) else { return };
        for (wait, _, _, to) in self.truth.held.iter_mut().rev() {
            if *wait == id && *to == Ns::MAX {
                *to = self.now;
            }
        }
    }

    fn over(&mut self, o: Operation) {
        if self.now - o.begin >= floor(o.kind) {
            self.raw.push(Event { at: self.now, body: Body::Ended(o.clone(), Outcome::Done) });
        }
        self.truth.spans.insert(o.id(), (o, self.now));
    }

    /// What the polls report, every [`STEP`].
    fn polls(&mut self) {
        let mut t = STEP;
        while t <= self.truth.end {
            for (o, end) in self.truth.spans.values() {
                if o.begin + floor(o.kind) <= t && t < *end {
                    self.raw.push(Event { at: t, body: Body::InFlight(o.clone()) });
                }
            }
            for kind in Kind::ALL {
                let body =
                    Body::PollComplete { kinds: vec![kind], older_than: t.saturating_sub(floor(kind)) };
                self.raw.push(Event { at: t, body });
            }
            t += STEP;
        }
    }
}

impl Truth {
    /// Whether this operation was in flight at that time.
    pub fn lasted(&self, id: &OperationId, at: Ns) -> bool {
        self.spans.get(id).is_some_and(|(o, end)| o.begin <= at && at < *end)
    }

    /// Whether that goroutine held, at that time, the lock that this operation waited for.
    pub fn holds(&self, wait: &OperationId, holder: &Actor, at: Ns) -> bool {
        self.held.iter().any(|(w, a, from, to)| w == wait && a.is(holder) && *from <= at && at < *to)
    }

    /// Whether the client's operation was served by that one.
    pub fn serves(&self, client: &OperationId, server: &OperationId) -> bool {
        self.served.iter().any(|(c, s)| c == client && s == server)
    }
}
