//! Who holds the lock that somebody waits for. A Go mutex has no owner field: what is known is who waits, and which
//! operations take which lock. The rules are in `docs/wait-graph.md`.

use super::frame::{Confidence, LockKind};
use super::graph::{Graph, Next, WaitedLock};
use super::ground::Ground;
use super::limits;
use super::operations::{held_base, is_found, may_be_at};
use crate::event::Kind;
use std::collections::BTreeMap;

/// How a lock is known.
#[derive(Default)]
struct Known {
    /// Nodes whose operation holds it or waits for it within.
    users: Vec<usize>,
    /// Whether it is certainly a plain mutex.
    mutex: bool,
}

/// By process and base address, who may hold a lock.
pub type Locks = BTreeMap<(u32, u64), Contenders>;

/// Who may hold a lock.
#[derive(Default)]
pub struct Contenders {
    /// Operations that do not wait for it and have not let it go, one for each actor (by stack).
    candidates: BTreeMap<usize, usize>,
    /// Writers that wait for readers to leave.
    pending: Vec<usize>,
}

impl Graph<'_> {
    /// Tells for every lock wait which lock it is for, and for every lock who is at it.
    pub(super) fn name_locks(&mut self) -> Locks {
        let mut known: BTreeMap<(u32, u64), Known> = BTreeMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if let Some(base) = held_base(&node.flight.op) {
                let entry = known.entry((node.flight.op.actor.pid, base)).or_default();
                entry.users.push(i);
                entry.mutex |= node.flight.op.kind == Kind::InitMethod;
            }
        }
        for i in 0..self.nodes.len() {
            if self.kind(i) != Kind::LockWait {
                continue;
            }
            let op = &self.nodes[i].flight.op;
            let (pid, semaphore) = (op.actor.pid, op.object);
            let mut fits = Vec::new();
            for offset in [4u64, 8, 12] {
                let Some(base) = semaphore.checked_sub(offset) else { continue };
                let named = self.facts.lock_name(pid, base);
                let used = known.get(&(pid, base));
                let mutex = used.is_some_and(|k| k.mutex) || matches!(named, Some((LockKind::Init, _)));
                if (named.is_some() || used.is_some()) && (offset == 4 || !mutex) {
                    fits.push((offset, base));
                }
            }
            let lock = match fits.as_slice() {
                &[(offset, base)] => {
                    let users = known.get(&(pid, base)).map(|k| k.users.as_slice()).unwrap_or_default();
                    let named = self.facts.lock_name(pid, base);
                    let container = named
                        .map(|(_, id)| id.to_owned())
                        .or_else(|| users.iter().find_map(|&u| self.nodes[u].container.clone()));
                    let kind = named.map(|(kind, _)| kind).unwrap_or_else(|| {
                        users.iter().fold(LockKind::Other, |kind, &u| match self.kind(u) {
                            Kind::StatusUpdate => LockKind::Status,
                            Kind::InitMethod => LockKind::Init,
                            _ => kind,
                        })
                    });
                    WaitedLock { base: Some(base), kind, container, offset }
                }
                _ => WaitedLock { base: None, kind: LockKind::Other, container: None, offset: 0 },
            };
            self.nodes[i].lock = Some(lock);
        }
        known.into_iter().map(|((pid, base), k)| ((pid, base), self.contenders(base, &k.users))).collect()
    }

    /// Who of those at a lock may hold it, once for all that wait for it.
    fn contenders(&self, base: u64, users: &[usize]) -> Contenders {
        let mut contenders = Contenders::default();
        for &user in users {
            if self.nodes[user].flight.released_at.is_some() {
                continue;
            }
            let stack = self.nodes[user].stack;
            let waits_as = self.stacks[stack].members.iter().find_map(|&m| {
                let lock = self.nodes[m].lock.as_ref()?;
                (lock.base == Some(base) && self.nodes[m].flight.woken.is_none()).then_some(lock.offset)
            });
            match waits_as {
                Some(8) => contenders.pending.push(user),
                Some(_) => {}
                None => {
                    contenders.candidates.entry(stack).or_insert(user);
                }
            }
        }
        contenders
    }

    /// Who holds the lock that this operation waits for.
    pub(super) fn holder_of(&self, wait: usize, locks: &Locks) -> Next {
        let flight = self.nodes[wait].flight;
        if flight.woken.is_some() {
            return Self::unseen(Ground::Woken, "");
        }
        let pid = flight.op.actor.pid;
        let Some(WaitedLock { base: Some(base), offset, .. }) = self.nodes[wait].lock else {
            return Self::unseen(Ground::UnknownLock, &self.describe(wait));
        };
        if offset == 8 {
            return Self::unseen(Ground::ReadersHold, "");
        }
        let Some(Contenders { candidates, pending }) = locks.get(&(pid, base)) else {
            return Self::unseen(Ground::NobodyOnLock, "");
        };
        let (user, ground) = match (candidates.len(), pending.first()) {
            (0, Some(&writer)) => (writer, Ground::PendingWriter),
            (0, None) => return Self::unseen(Ground::NobodyOnLock, ""),
            (1, None) => {
                let Some((_, &user)) = candidates.first_key_value() else {
                    return Self::unseen(Ground::NobodyOnLock, "");
                };
                (user, self.ground_of_sole(user, base))
            }
            _ => {
                let all: Vec<&usize> = candidates.values().chain(pending).collect();
                let names: Vec<String> = all
                    .iter()
                    .take(3)
                    .map(|&&u| {
                        let op = &self.nodes[u].flight.op;
                        match op.actor.goid {
                            Some(goid) => format!("{} of goroutine {goid}", op.method),
                            None => format!("{} on thread {}", op.method, op.actor.tid),
                        }
                    })
                    .collect();
                let more = if all.len() > 3 { format!(" and {} more", all.len() - 3) } else { String::new() };
                return Self::unseen(Ground::SeveralOnLock, &format!(": {}{more}", names.join(", ")));
            }
        };
        let holder = self.nodes[user].flight;
        let since = flight.since.max(holder.held_since.unwrap_or(holder.op.begin));
        // The chain goes on with all that the holder's actor is in the middle of.
        let to = self.stacks[self.nodes[user].stack].members.first().copied().unwrap_or(user);
        self.edge(wait, to, ground, since)
    }

    /// What is known of a lock that is nobody's we know: its address, who waits, and who released it last.
    fn describe(&self, wait: usize) -> String {
        let op = &self.nodes[wait].flight.op;
        let (pid, semaphore) = (op.actor.pid, op.object);
        let same = |n: &&super::graph::Node<'_>| {
            let other = &n.flight.op;
            other.kind == Kind::LockWait && other.actor.pid == pid && other.object == semaphore
        };
        let waiters = self.nodes.iter().filter(same).count();
        let mut words =
            format!(" (semaphore {semaphore:#x}, {waiters} waiter{}", if waiters == 1 { "" } else { "s" });
        // Of several, the chain shows one.
        const SHOWN: usize = 5;
        let ids = self.nodes.iter().filter(same).filter_map(|n| n.flight.op.actor.goid);
        let ids: Vec<String> = ids.take(SHOWN).map(|id| id.to_string()).collect();
        if waiters > 1 && !ids.is_empty() {
            let more = waiters - ids.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            words.push_str(&format!(": goroutines {}{more}", ids.join(", ")));
        }
        if let Some(by) = self.operations.last_release(pid, semaphore) {
            let who = match by.goid {
                Some(goid) => format!("goroutine {goid}"),
                None => format!("thread {}", by.tid),
            };
            words.push_str(&format!("; last released by {who}"));
        }
        words + ")"
    }

    /// How sure it is that the only operation seen on a lock holds it.
    fn ground_of_sole(&self, user: usize, base: u64) -> Ground {
        let holder = self.nodes[user].flight;
        if is_found(&holder.op) {
            return Ground::SoleOnLockFound;
        }
        // Whoever does something within the operation has gone past the lock, which is the first thing it takes.
        let stack = &self.stacks[self.nodes[user].stack];
        let joined_surely = stack.joint.is_none_or(|(_, ground)| ground.confidence() == Confidence::Proven);
        let witness = stack.members.iter().any(|&m| {
            self.begin(m) > holder.op.begin
                && (self.nodes[m].flight.op.actor.g.is_some() || joined_surely)
                && !matches!(self.kind(m), Kind::LockWait | Kind::LockHold)
                && self.confirmed(m)
        });
        if witness {
            return Ground::SoleOnLock;
        }
        if self.last_loss.is_some_and(|loss| loss >= holder.op.begin) {
            return Ground::SoleOnLockLossy;
        }
        if self.waited_just_now(user, base) { Ground::SoleOnLockFresh } else { Ground::SoleOnLock }
    }

    /// Whether the actor's wait for the lock ended so lately that a renewed one could not have been reported yet.
    pub(super) fn waited_just_now(&self, node: usize, base: u64) -> bool {
        self.operations.settling(&self.nodes[node].flight.op.actor).is_some_and(|w| {
            may_be_at(base, w.semaphore) && w.ended.saturating_add(limits::SETTLE) > self.now
        })
    }
}
