//! Why a relist is slow although no unmount under a shim's lock holds it up. Whoever knows that chain thinks of it first,
//! so each diagnosis of a relist either is that chain or says why it is not; and where that cannot be known, it says that.

use super::facts::Facts;
use super::frame::{EndsIn, Head, LockKind};
use super::graph::Graph;
use super::operations::{is_kernel, is_temporary};
use crate::event::{Kind, Ns, Role, Stall};

/// Where the unmount chain could be seen.
const WORDS: [&str; 4] = ["containerd", "lock wait", "shim", "unmount"];
/// Methods that are on that chain.
const METHODS: [&str; 9] = [
    "ListContainers",
    "ListPodSandbox",
    "UpdateContainerResources",
    "Update",
    "UpdateSync",
    "Delete",
    "State",
    "Status",
    "Kill",
];

/// Whether this is nothing that the chain has no use for, such as `shim: Init: Pause`.
fn is_on_the_chain(what: &str) -> bool {
    if what.ends_with("exit handling") || what.contains("write locks") {
        return false;
    }
    match what.rsplit_once(": ") {
        Some((before, method)) if before.ends_with("served") || before.ends_with("Init") => {
            METHODS.contains(&method)
        }
        _ => true,
    }
}

/// What is looked at.
pub struct Case<'a> {
    /// The wait graph.
    pub graph: &'a Graph<'a>,
    /// Facts.
    pub facts: &'a Facts,
    /// The drawn chain.
    pub path: &'a [usize],
    /// What its first link is.
    pub head: Head,
    /// What it ends in.
    pub ends_in: &'a EndsIn,
    /// Why what is in flight is not known at all, if it is not.
    pub blind: Option<&'a str>,
}

impl Case<'_> {
    /// One sentence; `None` for the chain of an unmount in a shim, and for what is no relist.
    pub fn why_not(&self) -> Option<String> {
        if !matches!(self.head, Head::Relist | Head::ListCall) || self.is_this_chain() {
            return None;
        }
        // What is seen directly is so, whatever else cannot be seen. What is told from an absence is not.
        if let Some(sentence) = self.stands_still() {
            return Some(sentence);
        }
        let why = match self.unknown() {
            Some(reason) => return Some(format!("it cannot be excluded: {reason}")),
            None => self.otherwise(),
        };
        Some(why.unwrap_or_else(|| {
            let because = match self.ends_in {
                EndsIn::NotVisible { because } => because,
                _ => "the end of the chain does not tell",
            };
            format!("it cannot be excluded: {because}")
        }))
    }

    fn kind(&self, n: usize) -> Kind {
        self.graph.nodes[n].flight.op.kind
    }

    /// Whether an unmount is on the way, or what the kernel does within one, that is not containerd's own.
    fn is_this_chain(&self) -> bool {
        let busy = matches!(self.ends_in, EndsIn::MountBusy { .. });
        let deleted = self.path.iter().any(|&n| self.kind(n) == Kind::InitMethod);
        let unmount = self.path.iter().any(|&n| {
            let stack = &self.graph.stacks[self.graph.nodes[n].stack];
            is_kernel(self.kind(n)) && stack.members.iter().any(|&m| self.unmounts_for_a_shim(m))
        });
        unmount || (busy && deleted)
    }

    fn unmounts_for_a_shim(&self, n: usize) -> bool {
        let op = &self.graph.nodes[n].flight.op;
        let own = self.facts.process_of(op.actor.pid).is_some_and(|p| p.role == Role::Containerd);
        matches!(op.kind, Kind::Unmount | Kind::SuperShutdown) && !own && !is_temporary(op)
    }

    /// A process on the way that does not run.
    fn stands_still(&self) -> Option<String> {
        let op = &self.graph.nodes[*self.path.last()?].flight.op;
        if op.kind != Kind::Stalled || Stall::of(&op.method) != Stall::Still {
            return None;
        }
        Some(self.stalled(op.actor.pid, &op.method))
    }

    fn stalled(&self, pid: u32, method: &str) -> String {
        let in_containerd = self.path.iter().any(|&n| self.kind(n) == Kind::CriCall);
        match self.facts.process_of(pid).map(|p| p.role) {
            Some(Role::Kubelet) if !in_containerd => {
                format!("it waits for nothing in containerd: the kubelet itself is {method}")
            }
            Some(Role::Kubelet) => format!("the kubelet itself is {method}"),
            Some(Role::Containerd) => format!("containerd itself is {method}"),
            _ => format!("process {pid}, not an unmount, holds it up: it is {method}"),
        }
    }

    /// Why nothing can be told from what was not seen.
    fn unknown(&self) -> Option<String> {
        let since = self.graph.nodes[*self.path.first()?].since;
        if let Some(blind) = self.blind {
            return Some(blind.to_owned());
        }
        let blind = WORDS.iter().find_map(|word| {
            let seen_there = |what: &str| what.contains(word) && is_on_the_chain(what);
            self.facts.blind_where(seen_there)
        });
        blind.or_else(|| self.lost(since).then(|| "records were lost since it began".to_owned()))
    }

    fn lost(&self, since: Ns) -> bool {
        self.graph.last_loss.is_some_and(|loss| loss >= since)
    }

    /// Told from what the chain ends in, where all can be seen.
    fn otherwise(&self) -> Option<String> {
        let &tip = self.path.last()?;
        let op = &self.graph.nodes[tip].flight.op;
        let waits_for = |kind: LockKind| {
            self.path.iter().any(|&n| self.graph.nodes[n].lock.as_ref().is_some_and(|l| l.kind == kind))
        };
        let none = if (0..self.graph.nodes.len()).any(|n| self.unmounts_for_a_shim(n)) {
            "no unmount is on its way"
        } else {
            "no unmount is in flight"
        };
        Some(match self.ends_in {
            EndsIn::StatusWrite if op.kind == Kind::LockHold => {
                format!("{none}: who holds the lock at the end of the chain writes containerd's own state")
            }
            EndsIn::StatusWrite => {
                format!("{none}: who holds the Status lock writes containerd's own state")
            }
            EndsIn::Starved { .. } if op.kind == Kind::Stalled => self.stalled(op.actor.pid, &op.method),
            EndsIn::CgroupOrDbus if waits_for(LockKind::Init) => {
                format!("{none}: who holds the Init lock is in runc ({})", op.method)
            }
            EndsIn::CgroupOrDbus => format!("{none}: the shim's {} is in runc", op.method),
            EndsIn::IoDrain if op.kind == Kind::ExitHandling => {
                format!(
                    "{none}: containerd waits for the container's output to end before it asks for a Delete"
                )
            }
            EndsIn::IoDrain => {
                format!("{none}: Delete holds the Init lock, but drains output or is in runc")
            }
            EndsIn::Cycle => format!("{none}: operations wait for each other in a circle"),
            EndsIn::Sync { .. } => "the sync at its end belongs to no unmount".to_owned(),
            EndsIn::UnmountSync { .. } | EndsIn::Unmount { .. } | EndsIn::MountBusy { .. } => {
                "the unmount is containerd's own; no shim and no Init lock is on its way".to_owned()
            }
            EndsIn::NotVisible { .. } => {
                if self.graph.doubt(tip).is_some() {
                    return None;
                }
                match op.kind {
                    Kind::CriCall => "no wait for a Status lock was seen in containerd".to_owned(),
                    Kind::Relist if self.facts.has_role(Role::Containerd) => {
                        "none of its calls is in flight in containerd: the kubelet is at something else"
                            .to_owned()
                    }
                    Kind::CriClient if self.facts.has_role(Role::Containerd) => {
                        "its call is not in flight in containerd, so it waits for no lock there".to_owned()
                    }
                    _ => return None,
                }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_chain_has_no_use_for_does_not_count() {
        for what in
            ["shim: Init: Pause", "containerd: CRI call served: ExecSync", "containerd: exit handling"]
        {
            assert!(!is_on_the_chain(what), "{what}");
        }
        for what in [
            "shim: Init: Delete",
            "containerd: CRI call served: ListContainers",
            "shim: all of it",
            "unmount",
        ] {
            assert!(is_on_the_chain(what), "{what}");
        }
    }
}
