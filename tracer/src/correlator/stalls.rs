//! Processes that do not run: frozen, stopped, held by a tracer, or starved. What waits for nothing else waits for them.

use super::facts::Facts;
use super::frame::{Confidence, EndsIn};
use super::graph::{Graph, Next};
use super::ground::Ground;
use super::leaf::Leaf;
use super::operations::is_kernel;
use super::outlook::NotReady;
use crate::event::{Kind, Ns, Operation, Role, Stall};
use crate::thresholds::{PLEG_THRESHOLD, SECOND};
use std::collections::BTreeMap;

/// The control plane calls a node's Ready condition Unknown when nothing was heard of it for this long
/// (`node-monitor-grace-period`; 50 s from Kubernetes 1.32 on).
const GRACE: Ns = 40 * SECOND;
/// Pods that tolerate an unreachable node for the default time are evicted after this.
const TOLERATED: Ns = 300 * SECOND;

impl Graph<'_> {
    /// Leads every chain whose last operation belongs to a process that does not run there, and so every call that such a
    /// process has not begun. What the kernel does goes on without the process.
    pub(super) fn link_stalled(&mut self) {
        let mut stalled: BTreeMap<u32, usize> = BTreeMap::new();
        for i in 0..self.nodes.len() {
            if self.kind(i) == Kind::Stalled {
                // Of several reasons the one that leaves nothing running.
                let better = |old: &usize| self.stall(i) < self.stall(*old);
                let pid = self.nodes[i].flight.op.actor.pid;
                if stalled.get(&pid).is_none_or(better) {
                    stalled.insert(pid, i);
                }
            }
        }
        if stalled.is_empty() {
            return;
        }
        let tips: Vec<usize> = self.stacks.iter().filter_map(|s| s.members.last().copied()).collect();
        for tip in tips {
            let kind = self.kind(tip);
            if kind == Kind::Stalled || is_kernel(kind) || matches!(self.nodes[tip].next, Next::To { .. }) {
                continue;
            }
            let own = stalled.get(&self.nodes[tip].flight.op.actor.pid).copied();
            let (to, ground) = match own.map(|to| (to, self.stall(to))) {
                Some((to, Stall::Still)) => (to, Ground::StandsStill),
                Some((to, Stall::Starved)) => (to, Ground::Starves),
                None => match self.stalled_server_of(tip, &stalled).map(|to| (to, self.stall(to))) {
                    Some((to, Stall::Still)) => (to, Ground::ServerStandsStill),
                    Some((to, Stall::Starved)) => (to, Ground::ServerStarves),
                    None => continue,
                },
            };
            let since = self.begin(to).max(self.begin(tip));
            self.nodes[tip].next = self.edge(tip, to, ground, since);
        }
    }

    fn stall(&self, node: usize) -> Stall {
        Stall::of(&self.nodes[node].flight.op.method)
    }

    /// The process that does not run and that should serve this call, which was not seen to begin there.
    fn stalled_server_of(&self, call: usize, stalled: &BTreeMap<u32, usize>) -> Option<usize> {
        let node = &self.nodes[call];
        if !matches!(node.next, Next::Unseen { .. }) {
            return None;
        }
        stalled.get(&server_of(&node.flight.op, node.container.as_deref(), self.facts)?).copied()
    }
}

/// The process that should serve a call.
pub fn server_of(call: &Operation, container: Option<&str>, facts: &Facts) -> Option<u32> {
    match call.kind {
        Kind::Relist | Kind::CriClient => {
            let mut daemons = facts.pids_of(Role::Containerd);
            daemons.next().filter(|_| daemons.next().is_none())
        }
        Kind::ShimCall => facts.container_of(container?)?.shim,
        _ => None,
    }
}

/// What a chain ends in whose last operation is a process that does not run.
pub fn leaf(op: &Operation) -> Leaf {
    let by = op.method.clone();
    let evidence = "the state of the process in /proc and its control group".to_owned();
    match Stall::of(&op.method) {
        Stall::Still => Leaf { ends_in: EndsIn::Frozen { by }, confidence: Confidence::Proven, evidence },
        Stall::Starved => {
            Leaf { ends_in: EndsIn::Starved { by }, confidence: Confidence::Inferred, evidence }
        }
    }
}

/// When the node is called NotReady because this process stands still: nothing is heard of a kubelet, whose relists and own
/// checks stand still too; and no relist gets past a containerd. `None` for what is only starved, and for others.
pub fn not_ready(op: &Operation, role: Option<Role>) -> Option<NotReady> {
    if op.kind != Kind::Stalled || Stall::of(&op.method) != Stall::Still {
        return None;
    }
    let (threshold, evidence) = match role? {
        Role::Kubelet => (
            GRACE,
            "it sends no heartbeats; 40s is the default grace period of the control plane (50s from Kubernetes 1.32 on), which cannot be read here",
        ),
        Role::Containerd => {
            (PLEG_THRESHOLD, "no relist gets past it; the default threshold, from when it came to a stand")
        }
        Role::Shim | Role::Other => return None,
    };
    let at = op.begin.saturating_add(threshold);
    Some(NotReady {
        latest: false,
        at,
        threshold,
        evictions_from: at.saturating_add(TOLERATED),
        confidence: Confidence::Inferred,
        evidence: evidence.to_owned(),
    })
}
