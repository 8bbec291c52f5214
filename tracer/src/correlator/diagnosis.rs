//! From the wait graph to diagnoses: stuck calls, their chains, seconds per link, and one diagnosis for each distinct
//! end.

use super::dirtiers::dirtiers;
use super::facts::{self, Facts};
use super::frame::{
    Advice, Chain, Confidence, Diagnosis, Edge, EdgeKind, EndsIn, Head, Link, Lock, LockKind, StuckCall,
    Subject,
};
use super::graph::{Graph, Next, RELIST_CALLS};
use super::leaf::{self, FailedUnmounts, Leaf, leaf_of};
use super::other_cause::Case;
use super::outlook::{NotReady, not_ready, outlook};
use super::{exits, leaked, limits, stalls, words};
use crate::event::{Began, Kind, Ns, Operation, OperationId, Role};
use crate::thresholds::Thresholds;
use std::collections::{BTreeMap, BTreeSet};

/// CRI methods that take as long as somebody likes (a pull, a grace period, a command): by themselves never stuck.
const PATIENT: [&str; 12] = [
    "PullImage",
    "StopContainer",
    "StopPodSandbox",
    "RunPodSandbox",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "GetContainerEvents",
    "CheckpointContainer",
    "ImageFsInfo",
    "RemoveImage",
];

/// What a blind spot is called that says that what is in flight was not read lately.
pub const STALE: &str = "operations in flight";

/// What the relists tell beyond the graph.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelistHealth {
    /// Begin of the first of the relists in a row that failed, and the end of the last of them.
    pub bad: Option<(Ns, Ns)>,
}

/// A diagnosis together with what the incidents need to know of it.
pub struct Found {
    /// For users.
    pub diagnosis: Diagnosis,
    /// What makes it the same diagnosis at another time.
    pub key: Key,
    /// All operations on all its chains, bounded.
    pub members: BTreeSet<OperationId>,
    /// Containers on its chains, and whether their removal is in flight in a shim; bounded.
    pub containers: BTreeMap<String, bool>,
    /// The greatest age of a member beside its threshold.
    pub worst: Option<Crossing>,
    /// Stuck relists (or list calls that stand for them) among the members.
    pub relists: Vec<OperationId>,
}

/// By what a diagnosis is known again.
pub type Key = (u8, u64, u64, String);

/// A member operation that has passed its threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// What it is: `unmount`, `lock wait`, …
    pub what: &'static str,
    /// Its age.
    pub age: Ns,
    /// The threshold.
    pub threshold: Ns,
}

/// A walk through the graph.
struct Walk {
    head: Head,
    path: Vec<usize>,
    leaf: Leaf,
    key: Key,
}

/// All diagnoses at one moment, and how many there are in all.
pub struct Diagnoses {
    /// The first [`limits::DIAGNOSES`] of them.
    pub found: Vec<Found>,
    /// How many there are.
    pub total: u64,
    /// Whether list calls stand for the relist.
    pub stand_in: bool,
}

/// What the diagnoses are made of.
pub struct Inputs<'a> {
    /// The wait graph.
    pub graph: &'a Graph<'a>,
    /// Facts.
    pub facts: &'a Facts,
    /// Unmounts that failed lately.
    pub failed: &'a FailedUnmounts,
    /// Limits.
    pub thresholds: &'a Thresholds,
    /// How the relists fared.
    pub health: RelistHealth,
    /// Sentences on what could not be seen that hold for every diagnosis.
    pub blind: &'a [String],
    /// The time.
    pub now: Ns,
}

impl Inputs<'_> {
    /// Finds everything that is stuck.
    pub fn diagnose(&self) -> Diagnoses {
        let graph = self.graph;
        let relist_seen = graph.nodes.iter().any(|n| n.flight.op.kind == Kind::Relist);
        let stand_in = !relist_seen && self.facts.relists_unseen();
        let mut walks = Vec::new();
        let mut reached = vec![false; graph.nodes.len()];
        for i in 0..graph.nodes.len() {
            let Some(head) = self.head_of(i, stand_in) else { continue };
            let path = self.walk(i);
            for &step in &path {
                // All that an actor on the way is in the middle of belongs to the way.
                for &m in &graph.stacks[graph.nodes[step].stack].members {
                    reached[m] = true;
                }
            }
            if self.age(i) < self.thresholds.shown || (self.is_patient(i) && !self.goes_somewhere(&path)) {
                continue;
            }
            // All calls of a convoy come back at once, and a caller's side ends a moment later: it is not stuck any
            // more. A relist goes on after its call.
            if head == Head::CriCall && self.has_returned(&path) {
                continue;
            }
            walks.push(self.end_walk(head, path));
        }
        // What no stuck call leads to is shown by itself.
        for (i, node) in graph.nodes.iter().enumerate() {
            let op = &node.flight.op;
            let alone = !reached[i]
                && !graph.inner[i]
                && op.kind != Kind::LockHold
                && self.age(i) >= self.thresholds.shown
                && self.head_of(i, stand_in).is_none();
            if alone {
                let path = self.walk(i);
                walks.push(self.end_walk(Head::Alone, path));
            }
        }
        let mut groups: BTreeMap<Key, Vec<Walk>> = BTreeMap::new();
        for walk in walks {
            groups.entry(walk.key.clone()).or_default().push(walk);
        }
        let mut found: Vec<Found> = groups.into_iter().map(|(key, walks)| self.found(key, walks)).collect();
        found.sort_by(|a, b| {
            let rank = |f: &Found| {
                let relist = matches!(f.diagnosis.head, Head::Relist | Head::ListCall);
                (f.diagnosis.head == Head::Alone, !relist, std::cmp::Reverse(f.diagnosis.chain.age))
            };
            rank(a).cmp(&rank(b)).then_with(|| a.key.cmp(&b.key))
        });
        found.extend(leaked::found(self.facts, self.blind));
        let total = found.len() as u64;
        found.truncate(limits::DIAGNOSES);
        Diagnoses { found, total, stand_in }
    }

    fn age(&self, node: usize) -> Ns {
        self.now.saturating_sub(self.graph.nodes[node].since)
    }

    /// What symptom this operation is, if it is one by itself and not a part of another.
    fn head_of(&self, node: usize, stand_in: bool) -> Option<Head> {
        if self.graph.inner[node] {
            return None;
        }
        let op = &self.graph.nodes[node].flight.op;
        match op.kind {
            Kind::Relist => Some(Head::Relist),
            Kind::CriCall | Kind::CriClient
                if stand_in && RELIST_CALLS[..2].contains(&op.method.as_str()) =>
            {
                Some(Head::ListCall)
            }
            Kind::CriCall | Kind::CriClient => Some(Head::CriCall),
            Kind::ExitHandling => Some(Head::LateExit),
            _ => None,
        }
    }

    fn is_patient(&self, node: usize) -> bool {
        is_patient(&self.graph.nodes[node].flight.op)
    }

    /// Whether a chain reaches a wait for somebody else.
    fn goes_somewhere(&self, path: &[usize]) -> bool {
        path.iter().any(|&i| {
            matches!(
                self.graph.nodes[i].flight.op.kind,
                Kind::LockWait
                    | Kind::Unmount
                    | Kind::SuperShutdown
                    | Kind::Sync
                    | Kind::ShimServe
                    | Kind::InitMethod
                    | Kind::Stalled
            )
        })
    }

    fn has_returned(&self, path: &[usize]) -> bool {
        path.last().is_some_and(|&tip| matches!(self.graph.nodes[tip].next, Next::Returned { .. }))
    }

    /// Whether what a call waited for has only just let go of it: the lock was handed to it, or it has the lock. That it waits
    /// for something else cannot have been reported yet.
    fn is_let_go(&self, path: &[usize]) -> bool {
        let Some(tip) = path.last().map(|&tip| &self.graph.nodes[tip]) else { return false };
        let has_lock = self.graph.operations.settling(&tip.flight.op.actor);
        let has_lock = has_lock.filter(|wait| wait.since >= tip.since).map(|wait| wait.ended);
        let since = tip.flight.woken.max(has_lock);
        !matches!(tip.next, Next::To { .. })
            && since.is_some_and(|at| at.saturating_add(limits::SETTLE) > self.now)
    }

    /// From an operation to where its chain ends. A node that comes again is the last of the path a second time.
    fn walk(&self, from: usize) -> Vec<usize> {
        let mut path = vec![from];
        let mut at = from;
        while let Next::To { node, .. } = self.graph.nodes[at].next {
            let again = path.contains(&node);
            path.push(node);
            if again || path.len() >= limits::LINKS {
                break;
            }
            at = node;
        }
        path
    }

    fn end_walk(&self, head: Head, mut path: Vec<usize>) -> Walk {
        let repeated = path.split_last().and_then(|(last, rest)| rest.iter().position(|n| n == last));
        if let Some(start) = repeated {
            path.pop();
            let ids = path[start..].iter().map(|&n| self.graph.nodes[n].flight.op.id());
            let key = ids.min().map(|id| op_key(&id)).unwrap_or_default();
            let leaf = Leaf {
                ends_in: EndsIn::Cycle,
                confidence: self.weakest(&path[start..]),
                evidence: format!("{} operations wait for each other", path.len() - start),
            };
            return Walk { head, path, leaf, key };
        }
        let cut = path.len() >= limits::LINKS
            && path.last().is_some_and(|&n| matches!(self.graph.nodes[n].next, Next::To { .. }));
        let leaf = if cut {
            let because = format!("the chain is longer than {} links", limits::LINKS);
            Leaf {
                ends_in: EndsIn::NotVisible { because: because.clone() },
                confidence: Confidence::NotVisible,
                evidence: because,
            }
        } else {
            leaf_of(self.graph, &path, self.facts, self.failed, self.now)
        };
        let key = self.key_of(&path, &leaf.ends_in);
        Walk { head, path, leaf, key }
    }

    fn weakest(&self, path: &[usize]) -> Confidence {
        path.iter()
            .filter_map(|&n| match &self.graph.nodes[n].next {
                Next::To { confidence, .. } => Some(*confidence),
                _ => None,
            })
            .max()
            .unwrap_or(Confidence::Proven)
    }

    /// By what chains are put together: the device where there is one, the lock, the process that is waited for, else
    /// the last operation itself.
    fn key_of(&self, path: &[usize], ends_in: &EndsIn) -> Key {
        let Some(&tip) = path.last() else { return Key::default() };
        let node = &self.graph.nodes[tip];
        let op = &node.flight.op;
        let pid = u64::from(op.actor.pid);
        match ends_in {
            EndsIn::UnmountSync { device: Some(d), .. } | EndsIn::Unmount { device: Some(d), .. } => {
                (1, u64::from(d.device.major), u64::from(d.device.minor), String::new())
            }
            EndsIn::StatusWrite => (2, pid, 0, String::new()),
            EndsIn::ExitRetry { .. } => (7, pid, 0, String::new()),
            EndsIn::Frozen { .. } | EndsIn::Starved { .. } if op.kind == Kind::Stalled => {
                (8, pid, 0, words::class(ends_in).to_owned())
            }
            EndsIn::NotVisible { .. } => match (op.kind, &node.lock) {
                (Kind::LockWait, Some(lock)) => match lock.base {
                    Some(base) => (3, pid, base, String::new()),
                    None => (4, pid, op.object, String::new()),
                },
                (Kind::ShimCall, _) => match &node.container {
                    Some(id) => (5, 0, 0, id.clone()),
                    None => op_key(&op.id()),
                },
                (Kind::CriCall | Kind::CriClient, _) => (6, pid, op.kind as u64, op.method.clone()),
                _ => op_key(&op.id()),
            },
            _ => op_key(&op.id()),
        }
    }

    fn found(&self, key: Key, mut walks: Vec<Walk>) -> Found {
        let rank = |w: &Walk| {
            let symptom = match w.head {
                Head::Relist => 0,
                Head::ListCall => 1,
                Head::LateExit | Head::CriCall => 2,
                Head::Alone => 3,
            };
            let first = &self.graph.nodes[w.path[0]];
            // Of operations that nobody is seen to wait for, the one that waits for the others tells most.
            let shorter = if w.head == Head::Alone { limits::LINKS.saturating_sub(w.path.len()) } else { 0 };
            (symptom, shorter, first.since, w.path[0])
        };
        walks.sort_by_key(rank);
        let drawn_path: Vec<usize> = walks[0].path.clone();
        // Calls that are stuck; what is only found alone counts when nothing else is there.
        let any_call = walks.iter().any(|w| w.head != Head::Alone);
        let calls: Vec<&Walk> = walks.iter().filter(|w| !any_call || w.head != Head::Alone).collect();
        let mut stuck: Vec<&Walk> = calls.clone();
        stuck[1..].sort_by_key(|w| (self.graph.nodes[w.path[0]].since, w.path[0]));
        let stuck_calls: Vec<StuckCall> = stuck
            .iter()
            .take(limits::STUCK_CALLS_SHOWN)
            .map(|w| {
                let first = &self.graph.nodes[w.path[0]];
                StuckCall {
                    head: w.head,
                    id: first.flight.op.id(),
                    who: self.facts.who(&first.flight.op.actor),
                    subject: first.container.as_deref().map(|id| self.facts.subject(id)),
                    age: self.age(w.path[0]),
                    at_least: first.flight.op.began == Began::ThenOrBefore,
                    exit: first.exit.clone(),
                    joins: w.path.iter().find_map(|n| drawn_path.iter().position(|d| d == n)),
                }
            })
            .collect();
        let stuck_calls_total = if any_call { calls.len() as u64 } else { 0 };
        let chain = self.chain(&drawn_path);
        let leaf = walks[0].leaf.clone();
        let containers = self.containers(&walks);
        let relists: Vec<OperationId> = walks
            .iter()
            .filter(|w| matches!(w.head, Head::Relist | Head::ListCall))
            .map(|w| {
                let mut way = w.path.iter().map(|&n| &self.graph.nodes[n].flight.op);
                // A list call that stands for a relist is counted by its side in containerd, which is always recorded.
                let counted = way.find(|op| matches!(op.kind, Kind::Relist | Kind::CriCall));
                counted.unwrap_or(&self.graph.nodes[w.path[0]].flight.op).id()
            })
            .collect();
        let not_ready = walks
            .iter()
            .filter(|w| matches!(w.head, Head::Relist | Head::ListCall))
            .map(|w| {
                let op = &self.graph.nodes[w.path[0]].flight.op;
                let kubelet = self.facts.process_of(op.actor.pid).filter(|p| p.role == Role::Kubelet);
                let mut ready = not_ready(self.facts, kubelet.map(|p| p.pid), op.begin, self.health.bad);
                ready.latest = op.began == Began::ThenOrBefore;
                ready
            })
            .min_by_key(|n| n.at);
        let not_ready = self.with_stall(not_ready, &drawn_path);
        let (members, concerned) = self.parts(&walks);
        let not_this_chain = Case {
            graph: self.graph,
            facts: self.facts,
            path: &drawn_path,
            head: walks[0].head,
            ends_in: &leaf.ends_in,
            blind: self.blind.iter().find(|b| b.starts_with(STALE)).map(String::as_str),
        }
        .why_not();
        let way: Vec<&Operation> = drawn_path.iter().map(|&n| &self.graph.nodes[n].flight.op).collect();
        // A call to the shim is given up with the update that makes it, a write of containerd's own state is not.
        let update = way
            .iter()
            .rposition(|op| op.method == "UpdateContainerResources" && op.kind == Kind::CriCall)
            .filter(|_| way.len() > 1 && walks[0].head != Head::CriCall)
            .filter(|&at| way[at..].iter().any(|op| op.kind == Kind::ShimCall))
            .map(|at| way[at]);
        let (dirtied_by, dirtied_unknown) = match dirtiers(self.facts, &leaf.ends_in, self.now) {
            Some(Ok(dirtiers)) => (dirtiers, None),
            Some(Err(reason)) => (Vec::new(), Some(reason)),
            None => (Vec::new(), None),
        };
        let signature = signature(&leaf.ends_in, &chain, self.facts);
        let worst = self.worst(&walks).or_else(|| self.near(not_ready.as_ref()?));
        Found {
            diagnosis: Diagnosis {
                outlook: outlook(
                    self.facts,
                    &leaf.ends_in,
                    &dirtied_by,
                    update,
                    way[way.len() - 1],
                    self.now,
                ),
                ends_in: leaf.ends_in,
                confidence: leaf.confidence,
                evidence: leaf.evidence,
                chain,
                head: walks[0].head,
                stuck_calls,
                stuck_calls_total,
                containers,
                not_ready,
                pods_waiting: if any_call { self.pods(&calls) } else { 0 },
                dirtied_by,
                dirtied_unknown,
                consequences: Vec::new(),
                not_this_chain,
                signature,
                blind_spots: self.blind.to_vec(),
                advice: Advice::default(),
                incident: None,
            },
            key,
            members,
            containers: concerned,
            worst,
            relists,
        }
    }

    /// All operations on the chains of a diagnosis, and the containers on them; both are bounded. Where there is no room for
    /// all, those of the drawn chain come first, then those of calls for one container: a call that lists them is over as
    /// soon as it is let go of, and opens nothing of its own.
    fn parts(&self, walks: &[Walk]) -> (BTreeSet<OperationId>, BTreeMap<String, bool>) {
        let mut members = BTreeSet::new();
        let mut concerned: BTreeMap<String, bool> = BTreeMap::new();
        let lists = |walk: &&Walk| self.graph.nodes[walk.path[0]].container.is_none();
        let (others, of_one): (Vec<&Walk>, Vec<&Walk>) = walks.iter().skip(1).partition(lists);
        // Most walks share most of their way: nothing comes of a node a second time.
        let mut taken = vec![false; self.graph.nodes.len()];
        for walk in walks.iter().take(1).chain(of_one).chain(others) {
            let first = &self.graph.nodes[walk.path[0]];
            if walk.head == Head::LateExit && members.len() < limits::INCIDENT_MEMBERS {
                // Each attempt is another operation; between two there is none.
                members.insert(exits::identity(first.flight.op.actor.pid, first.since));
            }
            for &n in walk.path.iter().rev() {
                if members.len() >= limits::INCIDENT_MEMBERS {
                    break;
                }
                if std::mem::replace(&mut taken[n], true) {
                    continue;
                }
                let node = &self.graph.nodes[n];
                members.insert(node.flight.op.id());
                let op = &node.flight.op;
                if let Some(id) = &node.container
                    && (concerned.len() < limits::INCIDENT_CONTAINERS || concerned.contains_key(id))
                {
                    let removal = op.kind == Kind::Unmount
                        || (matches!(op.kind, Kind::ShimServe | Kind::InitMethod) && op.method == "Delete");
                    *concerned.entry(id.clone()).or_insert(false) |= removal;
                }
            }
        }
        (members, concerned)
    }

    /// The drawn chain. Seconds per link: link *i* is reached when it and all before it have begun; its part of the
    /// stuck call's age is from then until the next is reached, so the parts sum to the age.
    fn chain(&self, path: &[usize]) -> Chain {
        let begin = self.graph.nodes[path[0]].since;
        let mut reached = Vec::with_capacity(path.len());
        let mut latest = begin;
        for (i, &n) in path.iter().enumerate() {
            if i > 0 {
                let since = match &self.graph.nodes[path[i - 1]].next {
                    Next::To { since, .. } => *since,
                    _ => self.graph.nodes[n].since,
                };
                latest = latest.max(since).min(self.now);
            }
            reached.push(latest);
        }
        reached.push(self.now);
        let links = path
            .iter()
            .enumerate()
            .map(|(i, &n)| {
                let edge = i.checked_sub(1).and_then(|before| match &self.graph.nodes[path[before]].next {
                    Next::To { ground, confidence, evidence, .. } => Some(Edge {
                        kind: ground.edge(),
                        confidence: *confidence,
                        evidence: evidence.clone(),
                    }),
                    _ => None,
                });
                self.link(n, edge, reached[i + 1] - reached[i])
            })
            .collect();
        Chain { links, age: self.now.saturating_sub(begin) }
    }

    fn link(&self, n: usize, edge: Option<Edge>, critical: Ns) -> Link {
        let node = &self.graph.nodes[n];
        let op = &node.flight.op;
        let lock = node.lock.as_ref().map(|l| Lock {
            pid: op.actor.pid,
            base: l.base,
            name: if l.base.is_some() { l.kind } else { LockKind::Other },
            subject: l.container.as_deref().map(|id| self.facts.subject(id)),
        });
        Link {
            edge,
            operation: op.clone(),
            who: self.facts.who(&op.actor),
            subject: node.container.as_deref().map(|id| self.facts.subject(id)),
            device: op.device.map(|d| self.facts.device_name(d)),
            lock,
            exit: node.exit.clone(),
            goroutine: self.facts.goroutine_of(&op.actor, op.begin).cloned(),
            thread: leaf::site_of(self.graph, n, self.facts, self.now)
                .filter(|(_, is_certain)| *is_certain)
                .map(|(site, _)| site.clone()),
            since: node.since,
            age: self.age(n),
            critical,
        }
    }

    /// Containers on the way, from the end of the drawn chain to its beginning, then those of the other chains.
    fn containers(&self, walks: &[Walk]) -> Vec<Subject> {
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        let mut taken = vec![false; self.graph.nodes.len()];
        for walk in walks {
            for &n in walk.path.iter().rev() {
                if !std::mem::replace(&mut taken[n], true)
                    && let Some(id) = self.graph.nodes[n].container.as_deref()
                    && out.len() < limits::SUBJECTS_SHOWN
                    && seen.insert(id)
                {
                    out.push(self.facts.subject(id));
                }
            }
        }
        out
    }

    /// A kubelet that stands still is not heard of long before its relist is too old; without a relist that is seen,
    /// a containerd that stands still tells as much as one.
    fn with_stall(&self, relist: Option<NotReady>, path: &[usize]) -> Option<NotReady> {
        let op = &self.graph.nodes[*path.last()?].flight.op;
        let role = self.facts.process_of(op.actor.pid).map(|p| p.role);
        let stall = stalls::not_ready(op, role);
        if role == Some(Role::Kubelet) { stall.or(relist) } else { relist.or(stall) }
    }

    /// How many pods these calls are about. A call that is about none in particular counts for none.
    fn pods(&self, calls: &[&Walk]) -> u64 {
        let pods: BTreeSet<String> = calls
            .iter()
            .filter_map(|w| self.graph.nodes[w.path[0]].container.as_deref())
            .map(|id| words::pod(&self.facts.subject(id)))
            .collect();
        pods.len() as u64
    }

    /// NotReady that is near is a crossing by itself, however patient the thresholds are. It is not near before half of the
    /// time is over: a kubelet that sends no heartbeats has less than a minute in all.
    fn near(&self, not_ready: &NotReady) -> Option<Crossing> {
        let within = self.thresholds.not_ready_within.min(not_ready.threshold / 2);
        let left = not_ready.at.saturating_sub(self.now);
        (within > 0 && left <= within).then(|| Crossing {
            what: "time since the last good relist",
            age: not_ready.threshold.saturating_sub(left),
            threshold: not_ready.threshold.saturating_sub(within),
        })
    }

    /// The member that is farthest beyond its threshold.
    fn worst(&self, walks: &[Walk]) -> Option<Crossing> {
        let t = self.thresholds;
        let mut worst: Option<Crossing> = None;
        let mut consider = |what: &'static str, age: Ns, threshold: Ns| {
            let farther = |w: &Crossing| {
                u128::from(age) * u128::from(w.threshold.max(1))
                    > u128::from(w.age) * u128::from(threshold.max(1))
            };
            if age >= threshold && worst.as_ref().is_none_or(farther) {
                worst = Some(Crossing { what, age, threshold });
            }
        };
        let mut taken = vec![false; self.graph.nodes.len()];
        for walk in walks {
            // Hundreds are let go of at once, more than an incident remembers as its own: they cross nothing once more.
            if matches!(walk.head, Head::CriCall | Head::ListCall) && self.is_let_go(&walk.path) {
                continue;
            }
            for (i, &n) in walk.path.iter().enumerate() {
                // A list call counts for a relist only where a way begins.
                if i > 0 && std::mem::replace(&mut taken[n], true) {
                    continue;
                }
                let age = self.age(n);
                match self.graph.nodes[n].flight.op.kind {
                    Kind::Unmount => consider("unmount", age, t.unmount),
                    Kind::SuperShutdown => consider("unmount", age, t.unmount),
                    Kind::LockWait => consider("lock wait", age, t.lock),
                    Kind::Relist => consider("relist", age, t.relist),
                    Kind::ExitHandling => consider("exit", age, t.exit),
                    // Nobody need be seen to wait for it: the node waits.
                    Kind::Stalled if self.with_stall(None, &[n]).is_some() => {
                        consider("stall", age, t.relist)
                    }
                    Kind::CriCall if walk.head == Head::ListCall && i == 0 => {
                        consider("relist", age, t.relist)
                    }
                    Kind::CriCall | Kind::CriClient if !self.is_patient(n) => {
                        consider("CRI call", age, t.cri)
                    }
                    _ => {}
                }
            }
        }
        worst
    }
}

/// Whether a CRI call takes as long as somebody likes.
pub fn is_patient(op: &Operation) -> bool {
    matches!(op.kind, Kind::CriCall | Kind::CriClient) && PATIENT.contains(&op.method.as_str())
}

fn op_key(id: &OperationId) -> Key {
    (9, u64::from(id.pid), id.begin, format!("{:?} {} {:x} {:x}", id.kind, id.method, id.actor, id.object))
}

/// What is the same for the same cause on other nodes.
fn signature(ends_in: &EndsIn, chain: &Chain, facts: &Facts) -> String {
    let mut parts = vec![words::class(ends_in).to_owned()];
    let (device, fs_type) = match ends_in {
        EndsIn::UnmountSync { device, fs_type } | EndsIn::Sync { device, fs_type } => {
            (device.as_ref(), fs_type.as_ref())
        }
        EndsIn::Unmount { device, .. } => (device.as_ref(), None),
        _ => (None, None),
    };
    parts.extend(fs_type.cloned());
    parts.extend(device.and_then(|d| d.name.as_deref()).map(words::device_class));
    for (role, word) in [(Role::Kubelet, "kubelet"), (Role::Containerd, "containerd"), (Role::Shim, "shim")] {
        let on_the_way = chain.links.iter().find(|l| l.who.role == Some(role));
        let its = on_the_way.and_then(|l| facts.process_of(l.who.pid)).map(facts::version);
        // Whichever of them is on the way at this moment.
        if let Some(version) = its.or_else(|| facts.version_of(role)) {
            parts.push(format!("{word}/{version}"));
        }
    }
    parts.join(" ")
}

/// Whether a chain says what its stuck call waits for.
pub fn explains(ends_in: &EndsIn) -> bool {
    !matches!(ends_in, EndsIn::NotVisible { .. })
}

/// Whether any edge of this kind is on a chain.
pub fn has_edge(chain: &Chain, kind: EdgeKind) -> bool {
    chain.links.iter().any(|l| l.edge.as_ref().is_some_and(|e| e.kind == kind))
}
