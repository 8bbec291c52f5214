//! The wait graph at one moment: which operation waits for which other, and what that rests on.
//!
//! Built anew at every tick from the operations in flight. Each operation has at most one successor, so a chain is a
//! walk and never a search. The operations of one actor form a *stack*, outermost first; only the innermost one can
//! wait for another actor.

use super::exits::{Attempts, Exits, Waiting};
use super::facts::{Facts, container_of_path};
use super::frame::{Confidence, EdgeKind, LockKind};
use super::ground::{Ground, LOSSY};
use super::limits;
use super::locks::Locks;
use super::operations::{
    Flight, Operations, held_base, is_found, is_kernel, is_temporary, may_follow, outermost_first,
};
use crate::event::{Began, Kind, Ns, Role};
use std::collections::{BTreeMap, BTreeSet};

/// CRI methods of which a relist consists.
pub const RELIST_CALLS: [&str; 4] =
    ["ListContainers", "ListPodSandbox", "PodSandboxStatus", "ContainerStatus"];

/// An operation in the graph.
pub struct Node<'a> {
    /// The operation in flight.
    pub flight: &'a Flight,
    /// Index of the stack of its actor.
    pub stack: usize,
    /// The container it is about, its own or its actor's.
    pub container: Option<String>,
    /// The lock it waits for.
    pub lock: Option<WaitedLock>,
    /// Since when it lasts, all attempts and merged waits counted.
    pub since: Ns,
    /// How far containerd has got with the exit that it is about.
    pub exit: Option<Attempts>,
    /// For an exit between two attempts: whether the next is due.
    pub(super) waiting: Option<bool>,
    /// Where the chain goes on.
    pub next: Next,
}

/// A lock that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitedLock {
    /// Base address, where it could be told.
    pub base: Option<u64>,
    /// What it is.
    pub kind: LockKind,
    /// Whose.
    pub container: Option<String>,
    /// Offset of the semaphore: 4 for a mutex or another writer, 8 for a writer waiting for readers, 12 for a reader.
    pub offset: u64,
}

/// Where a chain goes on from an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nowhere: what it waits for is told by what it is.
    Leaf,
    /// Somewhere that is not visible.
    Unseen {
        /// Why.
        because: String,
    },
    /// To a call that has come back a moment ago: the answer is on its way.
    Returned {
        /// Which call.
        method: String,
    },
    /// To another operation.
    To {
        /// Index of that operation.
        node: usize,
        /// What the edge rests on.
        ground: Ground,
        /// How sure that makes it now.
        confidence: Confidence,
        /// That, in words.
        evidence: String,
        /// Since when this edge certainly holds.
        since: Ns,
    },
}

/// The operations of one actor, outermost first.
pub struct Stack {
    /// Indices of nodes.
    pub members: Vec<usize>,
    /// Lock holds that are not links because another operation of the actor says more.
    pub holds: Vec<usize>,
    /// How the part that was recorded on a thread belongs to the goroutine, and from which member on.
    pub(super) joint: Option<(usize, Ground)>,
}

/// The wait graph at one moment.
pub struct Graph<'a> {
    /// All operations in flight, in the order of their identities.
    pub nodes: Vec<Node<'a>>,
    /// All stacks.
    pub stacks: Vec<Stack>,
    /// For each node whether a *contains* or *calls* edge leads to it: then it is part of another operation.
    pub inner: Vec<bool>,
    pub(super) facts: &'a Facts,
    pub(super) operations: &'a Operations,
    pub(super) now: Ns,
    pub(super) last_loss: Option<Ns>,
}

impl<'a> Graph<'a> {
    /// The graph of all operations in flight at `now`.
    pub fn build(
        operations: &'a Operations,
        exits: &'a Exits,
        waiting: &'a [Waiting],
        facts: &'a Facts,
        now: Ns,
    ) -> Self {
        let flights = operations.iter().map(|flight| (flight, None));
        let waiting = waiting.iter().map(|w| (&w.flight, Some(w.due)));
        let nodes: Vec<Node<'a>> = flights
            .chain(waiting)
            .filter(|(f, _)| f.op.begin <= now)
            .map(|(flight, waiting)| {
                let exit = (flight.op.kind == Kind::ExitHandling).then(|| exits.of(&flight.op)).flatten();
                Node {
                    flight,
                    stack: usize::MAX,
                    container: own_container(flight),
                    lock: None,
                    since: exit.as_ref().map_or(flight.since, |(first, _)| flight.since.min(*first)),
                    exit: exit.map(|(_, attempts)| attempts),
                    waiting,
                    next: Next::Leaf,
                }
            })
            .collect();
        let inner = vec![false; nodes.len()];
        let last_loss = operations.last_loss();
        let mut graph = Graph { nodes, stacks: Vec::new(), inner, facts, operations, now, last_loss };
        graph.make_stacks();
        graph.name_containers();
        let locks = graph.name_locks();
        let servers = graph.servers();
        for stack in 0..graph.stacks.len() {
            graph.link_stack(stack, &locks, &servers);
        }
        graph.queue_syncs();
        graph.link_late_exits(exits);
        graph.link_stalled();
        graph.bound_begins();
        for node in 0..graph.nodes.len() {
            if let Next::To { node: to, ground, .. } = &graph.nodes[node].next
                && matches!(ground.edge(), EdgeKind::Contains | EdgeKind::Calls)
            {
                graph.inner[*to] = true;
            }
        }
        graph
    }

    pub(super) fn begin(&self, node: usize) -> Ns {
        self.nodes[node].flight.op.begin
    }

    /// Whether one operation can have begun within another.
    fn may_follow(&self, inner: usize, outer: usize) -> bool {
        may_follow(&self.nodes[inner].flight.op, &self.nodes[outer].flight.op)
    }

    pub(super) fn kind(&self, node: usize) -> Kind {
        self.nodes[node].flight.op.kind
    }

    /// What was found in progress began before anything that certainly happens within it.
    fn bound_begins(&mut self) {
        let mut changed = true;
        // Each round carries a begin over one link.
        for _ in 0..limits::LINKS {
            if !std::mem::take(&mut changed) {
                break;
            }
            for outer in 0..self.nodes.len() {
                if let Next::To { node: inner, ground, confidence: Confidence::Proven, .. } =
                    self.nodes[outer].next
                    && matches!(ground.edge(), EdgeKind::Contains | EdgeKind::Calls)
                    && self.nodes[outer].flight.op.began == Began::ThenOrBefore
                    && self.nodes[inner].since < self.nodes[outer].since
                {
                    self.nodes[outer].since = self.nodes[inner].since;
                    changed = true;
                }
            }
        }
    }

    /// Groups operations by actor, then joins what was recorded on a thread to the goroutine that runs there.
    fn make_stacks(&mut self) {
        let mut groups: BTreeMap<(u32, bool, u64), Vec<usize>> = BTreeMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let a = &node.flight.op.actor;
            let key = match a.g {
                Some(g) => (a.pid, true, g),
                None => (a.pid, false, u64::from(a.tid)),
            };
            // A whole process is none of its threads, and nobody is at an exit that waits.
            if node.waiting.is_some() || node.flight.op.kind == Kind::Stalled {
                self.stacks.push(Stack { members: vec![i], holds: Vec::new(), joint: None });
            } else {
                groups.entry(key).or_default().push(i);
            }
        }
        let mut thread_stacks = Vec::new();
        // Goroutine stacks per process, to look for owners of thread stacks.
        let mut goroutines: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for ((pid, is_goroutine, _), mut members) in groups {
            let all: Vec<_> = members.iter().map(|&i| &self.nodes[i].flight.op).collect();
            members.sort_by_cached_key(|&i| (outermost_first(&self.nodes[i].flight.op, &all), i));
            let (holds, others): (Vec<usize>, Vec<usize>) =
                members.iter().partition(|&&i| self.kind(i) == Kind::LockHold);
            let says_more = others.iter().any(|&i| self.kind(i) != Kind::LockWait);
            let (members, holds) = if says_more { (others, holds) } else { (members, Vec::new()) };
            let index = self.stacks.len();
            self.stacks.push(Stack { members, holds, joint: None });
            if is_goroutine {
                goroutines.entry(pid).or_default().push(index);
            } else {
                thread_stacks.push((pid, index));
            }
        }
        let mut taken = BTreeSet::new();
        for (pid, thread) in thread_stacks {
            let Some(owners) = goroutines.get(&pid) else { continue };
            let Some((owner, ground)) = self.owner_of_thread(thread, owners) else { continue };
            if !taken.insert(owner) {
                continue; // Two threads cannot both run one goroutine; the first by thread id keeps it.
            }
            let mut members = std::mem::take(&mut self.stacks[thread].members);
            self.stacks[owner].joint = Some((self.stacks[owner].members.len(), ground));
            self.stacks[owner].members.append(&mut members);
        }
        for (i, stack) in self.stacks.iter().enumerate() {
            for &node in stack.members.iter().chain(&stack.holds) {
                self.nodes[node].stack = i;
            }
        }
    }

    /// The goroutine that runs on a thread whose kernel operations were recorded, and how that is known.
    fn owner_of_thread(&self, thread: usize, owners: &[usize]) -> Option<(usize, Ground)> {
        let &outermost = self.stacks[thread].members.first()?;
        let k = &self.nodes[outermost].flight.op;
        if !is_kernel(k.kind) {
            return None;
        }
        let container = self.stacks[thread].members.iter().find_map(|&m| self.nodes[m].container.clone());
        let mut best: Vec<(u8, usize, Ground)> = Vec::new();
        for &owner in owners {
            let Some(&tip) = self.stacks[owner].members.last() else { continue };
            let o = &self.nodes[tip].flight.op;
            // A parked goroutine is not in the kernel; one that has begun something later has left it.
            if o.kind == Kind::LockWait
                || o.begin > k.begin
                || o.kind == Kind::ShimCall
                || o.kind == Kind::CriClient
            {
                continue;
            }
            let same_thread = o.actor.tid == k.actor.tid;
            if is_kernel(o.kind) {
                if same_thread {
                    best.push((0, owner, Ground::PinnedThread));
                }
                continue;
            }
            let theirs =
                self.stacks[owner].members.iter().rev().find_map(|&m| self.nodes[m].container.clone());
            match (&container, &theirs) {
                (Some(a), Some(b)) if a == b && same_thread => {
                    best.push((1, owner, Ground::ThreadAndContainer))
                }
                (Some(a), Some(b)) if a == b && k.kind == Kind::Unmount && o.method == "Delete" => {
                    best.push((2, owner, Ground::PathNamesContainer));
                }
                (Some(_), Some(_)) => {}
                _ if same_thread => best.push((3, owner, Ground::ThreadAtBegin)),
                _ => {}
            }
        }
        let rank = best.iter().map(|b| b.0).min()?;
        let mut of_rank = best.into_iter().filter(|b| b.0 == rank);
        match (of_rank.next(), of_rank.next()) {
            (Some((_, owner, ground)), None) => Some((owner, ground)),
            _ => None,
        }
    }

    /// Gives every operation the container of the nearest operation of its actor that tells one.
    fn name_containers(&mut self) {
        for stack in &self.stacks {
            let mut outer: Option<String> = None;
            for &m in &stack.members {
                if is_temporary(&self.nodes[m].flight.op) {
                    break; // Neither it nor what the kernel does for it is about the container it is mounted for.
                }
                match &self.nodes[m].container {
                    Some(c) => outer = Some(c.clone()),
                    None => self.nodes[m].container.clone_from(&outer),
                }
            }
            let mut within: Option<String> = None;
            for &m in stack.members.iter().rev() {
                match &self.nodes[m].container {
                    Some(c) => within = Some(c.clone()),
                    // A list call is about no container, whatever one it is at.
                    None if !RELIST_CALLS[..2].contains(&self.nodes[m].flight.op.method.as_str())
                        && self.nodes[m].flight.op.kind != Kind::Relist =>
                    {
                        self.nodes[m].container.clone_from(&within);
                    }
                    None => {}
                }
            }
        }
    }

    /// Calls that are being served, by method, oldest first.
    fn servers(&self) -> BTreeMap<(Kind, String), Vec<usize>> {
        let mut servers: BTreeMap<(Kind, String), Vec<usize>> = BTreeMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let op = &node.flight.op;
            match op.kind {
                Kind::CriCall | Kind::ShimServe | Kind::CriClient => {
                    servers.entry((op.kind, op.method.clone())).or_default().push(i);
                }
                // A shim whose service is not probed shows only the method of its init process.
                Kind::InitMethod if !self.is_within_service(i) => {
                    servers.entry((Kind::ShimServe, op.method.clone())).or_default().push(i);
                }
                _ => {}
            }
        }
        for calls in servers.values_mut() {
            calls.sort_by_key(|&i| (self.begin(i), i));
        }
        servers
    }

    fn is_within_service(&self, node: usize) -> bool {
        let stack = &self.stacks[self.nodes[node].stack];
        stack.members.iter().any(|&m| self.kind(m) == Kind::ShimServe && self.begin(m) <= self.begin(node))
    }

    fn link_stack(&mut self, stack: usize, locks: &Locks, servers: &BTreeMap<(Kind, String), Vec<usize>>) {
        let members = self.stacks[stack].members.clone();
        for (at, pair) in members.windows(2).enumerate() {
            let (outer, nested) = (pair[0], pair[1]);
            let ground = match self.stacks[stack].joint {
                Some((from, ground)) if at + 1 == from => ground,
                _ if self.nodes[nested].flight.op.actor.g.is_some() => Ground::SameGoroutine,
                _ => Ground::SameThread,
            };
            self.nodes[outer].next = self.edge(outer, nested, ground, self.nodes[nested].since);
        }
        let Some(&tip) = members.last() else { return };
        self.nodes[tip].next = match self.kind(tip) {
            Kind::LockWait => self.holder_of(tip, locks),
            Kind::Relist => self.server_of_relist(tip, servers),
            Kind::CriClient => self.server_of_client(tip, servers),
            Kind::ShimCall => self.server_of_shim_call(tip, servers),
            _ => Next::Leaf,
        };
    }

    /// Whether both operations are known to be what they seem, in spite of lost records.
    pub(super) fn confirmed(&self, node: usize) -> bool {
        let f = self.nodes[node].flight;
        self.last_loss.is_none_or(|loss| loss < f.op.begin || loss < f.reported_at)
    }

    pub(super) fn edge(&self, from: usize, to: usize, ground: Ground, since: Ns) -> Next {
        let mut confidence = ground.confidence();
        let mut evidence = ground.words().to_owned();
        if confidence == Confidence::Proven && !(self.confirmed(from) && self.confirmed(to)) {
            confidence = Confidence::Inferred;
            evidence.push_str(LOSSY);
        }
        Next::To { node: to, ground, confidence, evidence, since }
    }

    pub(super) fn unseen(ground: Ground, detail: &str) -> Next {
        Next::Unseen { because: format!("{}{detail}", ground.words()) }
    }

    /// Why it cannot be concluded from the absence of anything below this operation what it does.
    pub fn doubt(&self, node: usize) -> Option<&'static str> {
        let flight = self.nodes[node].flight;
        if self.last_loss.is_some_and(|loss| loss >= flight.op.begin) {
            return Some("records were lost since it began, what it waits for may be among them");
        }
        // What it may have begun since could be below its floor, or on its way here.
        if is_found(&flight.op) {
            return None; // Its whole stack was read.
        }
        let quiet_since = flight.idle_since.unwrap_or(0).max(flight.op.begin);
        if quiet_since.saturating_add(limits::UNREPORTED) > self.now {
            return Some("it has just begun something else, which was not reported yet");
        }
        let base = held_base(&flight.op)?;
        self.waited_just_now(node, base).then_some("it got its lock just now")
    }

    /// The call in containerd that this relist waits for, when the kubelet's client side is not recorded.
    fn server_of_relist(&self, relist: usize, servers: &BTreeMap<(Kind, String), Vec<usize>>) -> Next {
        let mut calls = Vec::new();
        for method in RELIST_CALLS {
            for &call in servers.get(&(Kind::CriCall, method.to_owned())).into_iter().flatten() {
                if self.may_follow(call, relist) {
                    calls.push(call);
                }
            }
        }
        // A relist makes one call at a time, lists first. Which of several is its own cannot be told for sure: the
        // first that began within it.
        let lists: Vec<usize> = calls
            .iter()
            .copied()
            .filter(|&c| RELIST_CALLS[..2].contains(&self.nodes[c].flight.op.method.as_str()))
            .collect();
        let of = if lists.is_empty() { calls } else { lists };
        match of.iter().copied().min_by_key(|&c| (self.begin(c), c)) {
            Some(call) => self.edge(relist, call, Ground::ListWithinRelist, self.begin(call)),
            None => Next::Unseen { because: "no CRI call of this relist was seen".to_owned() },
        }
    }

    /// The call in containerd that serves this call of the kubelet.
    fn server_of_client(&self, client: usize, servers: &BTreeMap<(Kind, String), Vec<usize>>) -> Next {
        let method = self.nodes[client].flight.op.method.clone();
        let container = self.nodes[client].flight.op.container.clone();
        let fits = |&&s: &&usize| match (&container, &self.nodes[s].flight.op.container) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let none = Vec::new();
        let clients = servers.get(&(Kind::CriClient, method.clone())).unwrap_or(&none);
        let all = servers.get(&(Kind::CriCall, method.clone())).unwrap_or(&none);
        let after: Vec<usize> =
            all.iter().filter(fits).copied().filter(|&s| self.may_follow(s, client)).collect();
        let Some(&server) = after.first() else {
            let lately = self.now.saturating_sub(limits::UNREPORTED);
            return if self.operations.has_ended(Kind::CriCall, &method, self.begin(client), lately) {
                Next::Returned { method }
            } else {
                Next::Unseen { because: format!("its {method} call was not seen in containerd") }
            };
        };
        let sole =
            all.len() == 1 && clients.len() == 1 && self.last_loss.is_none_or(|l| l < self.begin(client));
        let found = is_found(&self.nodes[client].flight.op) || is_found(&self.nodes[server].flight.op);
        let ground = match (sole, found) {
            (true, false) => Ground::SoleCallOfMethod,
            (true, true) => Ground::SoleCallFound,
            (false, _) => Ground::CallByOrder,
        };
        self.edge(client, server, ground, self.begin(server))
    }

    /// The call in the shim that serves this call of containerd.
    fn server_of_shim_call(&self, call: usize, servers: &BTreeMap<(Kind, String), Vec<usize>>) -> Next {
        let op = &self.nodes[call].flight.op;
        let container = self.nodes[call].container.as_deref();
        let shim = container.and_then(|id| self.facts.container_of(id)).and_then(|c| c.shim);
        let none = Vec::new();
        let after: Vec<usize> = servers
            .get(&(Kind::ShimServe, op.method.clone()))
            .unwrap_or(&none)
            .iter()
            .copied()
            .filter(|&s| self.may_follow(s, call) && self.nodes[s].flight.op.actor.pid != op.actor.pid)
            .collect();
        let same: Vec<usize> = after
            .iter()
            .copied()
            .filter(|&s| container.is_some() && self.nodes[s].container.as_deref() == container)
            .collect();
        if let Some(&server) = same.first() {
            // With another call of the same method to the same container the order decides.
            let calls = self
                .nodes
                .iter()
                .filter(|n| {
                    n.flight.op.kind == Kind::ShimCall
                        && n.flight.op.method == op.method
                        && n.container.as_deref() == container
                })
                .count();
            let sole = same.len() == 1 && calls == 1 && self.last_loss.is_none_or(|l| l < op.begin);
            let ground = if sole { Ground::SameContainerAndMethod } else { Ground::SameContainerByOrder };
            return self.edge(call, server, ground, self.begin(server));
        }
        let by_shim: Vec<usize> = after
            .iter()
            .copied()
            .filter(|&s| {
                let server = &self.nodes[s];
                shim == Some(server.flight.op.actor.pid)
                    && (server.container.is_none() || container.is_none())
            })
            .collect();
        if let [server] = by_shim.as_slice() {
            return self.edge(call, *server, Ground::SameShimAndMethod, self.begin(*server));
        }
        Next::Unseen { because: self.why_no_shim(&op.method, shim) }
    }

    fn why_no_shim(&self, method: &str, shim: Option<u32>) -> String {
        match shim {
            Some(pid) if self.facts.is_gone(pid) => format!("the shim (pid {pid}) has exited"),
            Some(pid) => match self.facts.blind_to("shim") {
                Some(reason) => reason,
                None => format!("no {method} was seen in the shim (pid {pid})"),
            },
            None => match self.facts.blind_to("shim") {
                Some(reason) => reason,
                None if !self.facts.has_role(Role::Shim) => "no shim is seen".to_owned(),
                None => format!("no {method} for this container was seen in a shim"),
            },
        }
    }

    /// What a sync does with `s_sync_lock` of its super block, by its kernel stack. `sync_inodes_sb` waits by itself for nothing
    /// else; it waits for pages with the lock held, and for the writers of the device without. Functions that take a mutex are
    /// on no stack (`__sched`). `None` when that cannot be told.
    fn turn(&self, node: usize) -> Option<Turn> {
        let op = &self.nodes[node].flight.op;
        let site = self.facts.site_of(op.actor.pid, op.actor.tid, op.begin);
        let site = site.filter(|site| op.kind == Kind::Sync && site.state == 'D')?;
        match site.kernel_stack.iter().position(|name| name == "sync_inodes_sb")? {
            0 => Some(Turn::Awaits),
            at => {
                let waits_for_pages = site.kernel_stack[..at].iter().any(|name| name.contains("fdatawait"));
                waits_for_pages.then_some(Turn::Has)
            }
        }
    }

    /// Of several syncs or shutdowns of one super block (else one device), all wait for the one that holds the lock of the super
    /// block. Where the stacks do not tell, for the earliest that does not wait for it; which of them comes first to the lock
    /// is chance.
    fn queue_syncs(&mut self) {
        let mut by_super: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut by_device: BTreeMap<crate::event::Device, Vec<usize>> = BTreeMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let op = &node.flight.op;
            if !matches!(op.kind, Kind::Sync | Kind::SuperShutdown) {
                continue;
            }
            if op.object != 0 {
                by_super.entry(op.object).or_default().push(i);
            }
            if let Some(device) = op.device
                && op.kind == Kind::Sync
                && op.fs_type.as_deref() != Some("overlay")
            {
                by_device.entry(device).or_default().push(i);
            }
        }
        let earliest =
            |graph: &Self, queue: &[usize]| queue.iter().copied().min_by_key(|&i| (graph.begin(i), i));
        let mut edges = Vec::new();
        for (queues, ground) in [
            (by_super.into_values().collect::<Vec<_>>(), Ground::EarlierOnSuperBlock),
            (by_device.into_values().collect(), Ground::EarlierOnDevice),
        ] {
            for queue in queues {
                let with = |turn: Turn| -> Vec<usize> {
                    queue.iter().copied().filter(|&i| self.turn(i) == Some(turn)).collect()
                };
                let (holders, awaiting) = (with(Turn::Has), with(Turn::Awaits));
                let acts: Vec<usize> = match holders.len() {
                    1 => holders,
                    _ => queue.iter().copied().filter(|i| !awaiting.contains(i)).collect(),
                };
                let Some(first) = earliest(self, if acts.is_empty() { &queue } else { &acts }) else {
                    continue;
                };
                for i in queue {
                    if i != first
                        && self.nodes[i].stack != self.nodes[first].stack
                        && self.stacks[self.nodes[i].stack].members.last() == Some(&i)
                    {
                        let by_stack = ground == Ground::EarlierOnSuperBlock
                            && awaiting.contains(&i)
                            && !awaiting.contains(&first);
                        if by_stack {
                            edges.push((i, first, Ground::TurnOnSuperBlock));
                        } else if self.begin(first) <= self.begin(i) {
                            // Nothing but the order tells that it waits, so it must be in that order.
                            edges.push((i, first, ground));
                        }
                    }
                }
            }
        }
        for (from, first, ground) in edges {
            if self.nodes[from].next == Next::Leaf {
                let since = self.begin(from).max(self.begin(first));
                // The chain goes on with the unmount that the earliest belongs to, so that it is named.
                let members = &self.stacks[self.nodes[first].stack].members;
                let to = members.iter().copied().find(|&m| is_kernel(self.kind(m))).unwrap_or(first);
                self.nodes[from].next = self.edge(from, to, ground, since);
            }
        }
    }
}

/// What a sync does with the lock of its super block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Has,
    Awaits,
}

fn own_container(flight: &Flight) -> Option<String> {
    flight.op.container.clone().or_else(|| {
        (flight.op.kind == Kind::Unmount)
            .then(|| flight.op.path.as_deref().and_then(container_of_path).map(str::to_owned))
            .flatten()
    })
}
