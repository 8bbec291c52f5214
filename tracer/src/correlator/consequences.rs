//! What comes of an incident: exits that are reported late, updates that fail, containers that are made anew, a restart of
//! containerd and what it leaves Unknown, shims that are left over. Some of it comes to light when the rest is over.

use super::diagnosis::Found;
use super::exits::Exits;
use super::facts::Facts;
use super::frame::{Confidence, Consequence, Harm};
use super::limits;
use super::operations::Finished;
use super::words;
use crate::event::{Container, Kind, Ns, OperationId, Outcome, Role};
use std::collections::{BTreeMap, BTreeSet};

/// What happened since the last tick that may be a consequence.
#[derive(Clone, Debug)]
pub enum News {
    /// An update of a container came back with an error.
    UpdateFailed {
        /// The call.
        id: OperationId,
        /// Of which container.
        container: String,
        /// How long it took.
        took: Ns,
    },
    /// A container is there, or more is known of it.
    Container(Container),
}

impl News {
    /// Of an operation that has ended.
    pub fn of(f: &Finished) -> Option<News> {
        let update = f.op.kind == Kind::CriCall && f.op.method == "UpdateContainerResources";
        if !update || f.outcome == Outcome::Done {
            return None;
        }
        let container = f.op.container.clone()?;
        Some(News::UpdateFailed { id: f.op.id(), container, took: f.at.saturating_sub(f.op.begin) })
    }
}

/// What is known of the node when consequences are looked for.
pub struct Scene<'a> {
    /// Facts.
    pub facts: &'a Facts,
    /// Exits.
    pub exits: &'a Exits,
    /// When records were last lost that may be missed here.
    pub last_loss: Option<Ns>,
    /// An exit is late from this age on.
    pub late: Ns,
    /// The time.
    pub now: Ns,
}

/// What has come of one incident.
#[derive(Clone, Debug, Default)]
pub struct Harms {
    /// Containers it was about.
    containers: BTreeSet<String>,
    /// Containers whose removal is in flight in their shims.
    removed: BTreeSet<String>,
    /// The containerds on its chains.
    daemons: BTreeSet<u32>,
    /// By kind and object.
    all: BTreeMap<(u8, String), Consequence>,
}

impl Harms {
    /// Takes note of what the incident is about now.
    pub fn concern(&mut self, found: &Found, facts: &Facts) {
        for (id, removed) in &found.containers {
            if self.containers.len() < limits::INCIDENT_CONTAINERS {
                self.containers.insert(id.clone());
            }
            if *removed && self.removed.len() < limits::INCIDENT_CONTAINERS {
                self.removed.insert(id.clone());
            }
        }
        self.removed.retain(|id| found.containers.get(id).copied().unwrap_or(false));
        let is_daemon = |pid: &u32| facts.process_of(*pid).is_some_and(|p| p.role == Role::Containerd);
        for pid in found.members.iter().map(|id| id.pid).filter(is_daemon) {
            if self.daemons.len() < limits::INCIDENT_CONTAINERS {
                self.daemons.insert(pid);
            }
        }
    }

    /// What came of another incident that turned out to be this one.
    pub fn absorb(&mut self, other: Harms) {
        for (key, harm) in other.all {
            if self.all.len() < limits::HARMS {
                self.all.entry(key).or_insert(harm);
            }
        }
        let room = limits::INCIDENT_CONTAINERS.saturating_sub(self.containers.len());
        self.containers.extend(other.containers.into_iter().take(room));
    }

    /// All so far, the gravest first.
    pub fn list(&self) -> Vec<Consequence> {
        let mut list: Vec<Consequence> = self.all.values().cloned().collect();
        list.sort_by(|a, b| a.what.cmp(&b.what));
        list.truncate(limits::CONSEQUENCES_SHOWN);
        list
    }

    /// Looks for consequences of an incident that began at `since` and whose operations were `members` at the last tick.
    /// Returns whether something new has come to light; that something lasts on is not new.
    pub fn look(
        &mut self,
        news: &[News],
        members: &BTreeSet<OperationId>,
        since: Ns,
        scene: &Scene<'_>,
    ) -> bool {
        let facts = scene.facts;
        let mut new = self.exits(since, scene);
        for item in news {
            new |= match item {
                News::UpdateFailed { id, container, took } if members.contains(id) => {
                    self.update_failed(container, *took, facts)
                }
                News::Container(container) => self.made_anew(container, since, scene),
                News::UpdateFailed { .. } => false,
            };
        }
        new |= self.restart(since, scene);
        let leaked: Vec<(u32, String)> = facts
            .leaked_since(since)
            .filter(|(_, id)| self.containers.contains(*id))
            .map(|(pid, id)| (pid, id.to_owned()))
            .collect();
        for (pid, id) in leaked {
            let of = facts.subject(&id);
            let evidence = "its bundle is gone and it still runs; its container was in this incident";
            new |=
                self.add((5, pid.to_string()), Harm::ShimLeaked { pid, of }, Confidence::Inferred, evidence);
        }
        new
    }

    /// Puts a consequence in place of an earlier one of the same kind and object. Returns whether there was none.
    fn add(&mut self, key: (u8, String), what: Harm, confidence: Confidence, evidence: &str) -> bool {
        if self.all.len() >= limits::HARMS && !self.all.contains_key(&key) {
            return false;
        }
        self.all.insert(key, Consequence { what, confidence, evidence: evidence.to_owned() }).is_none()
    }

    fn exits(&mut self, since: Ns, scene: &Scene<'_>) -> bool {
        let mut new = false;
        for id in self.containers.clone() {
            let key = (2, id.clone());
            let of = scene.facts.subject(&id);
            if let Some((first, attempts)) = scene.exits.pending_of(&id) {
                let late = scene.now.saturating_sub(first);
                let evidence = match &attempts.failed {
                    Some(failed) => format!(
                        "an attempt to handle it failed after {}{}",
                        words::duration(failed.took),
                        if failed.deadline { ", containerd's limit" } else { "" }
                    ),
                    None if late >= scene.late => "containerd is still at its first attempt".to_owned(),
                    None => continue,
                };
                // What was lost since may have been its end.
                let sure = attempts.failed.as_ref().is_none_or(|f| f.seen)
                    && scene.last_loss.is_none_or(|loss| loss < first);
                let confidence = if sure { Confidence::Proven } else { Confidence::Inferred };
                let harm = Harm::ExitLate { of, late, attempts: attempts.begun, reported: false };
                new |= self.add(key, harm, confidence, &evidence);
            } else if let Some(done) = scene.exits.reported_of(&id) {
                let late = done.at.saturating_sub(done.first);
                if done.at < since || (late < scene.late && done.attempts < 2) {
                    continue;
                }
                let open = |c: &Consequence| matches!(c.what, Harm::ExitLate { reported, .. } if !reported);
                new |= self.all.get(&key).is_none_or(open);
                let harm = Harm::ExitLate { of, late, attempts: done.attempts, reported: true };
                self.add(
                    key,
                    harm,
                    Confidence::Proven,
                    "from the first attempt's begin to the last one's end",
                );
            }
        }
        new
    }

    fn update_failed(&mut self, id: &str, took: Ns, facts: &Facts) -> bool {
        let key = (3, id.to_owned());
        let count = match self.all.get(&key).map(|c| &c.what) {
            Some(Harm::UpdatesFailed { count, .. }) => count.saturating_add(1),
            _ => 1,
        };
        let evidence = format!("the last came back with an error after {}", words::duration(took));
        let harm = Harm::UpdatesFailed { of: facts.subject(id), count };
        self.add(key, harm, Confidence::Proven, &evidence);
        true
    }

    /// A container of the same pod and name as one that is still being removed.
    fn made_anew(&mut self, container: &Container, since: Ns, scene: &Scene<'_>) -> bool {
        let (Some(pod), Some(namespace)) = (&container.pod, &container.namespace) else { return false };
        let same = |id: &&String| {
            **id != container.id
                && scene.facts.container_of(id).is_some_and(|old| {
                    old.pod.as_ref() == Some(pod)
                        && old.namespace.as_ref() == Some(namespace)
                        && old.name == container.name
                        && old.sandbox == container.sandbox
                })
        };
        let Some(old) = self.removed.iter().find(same).cloned() else { return false };
        let evidence = format!(
            "it was seen first {} after the incident began, and the old one is still being removed",
            words::duration(scene.now.saturating_sub(since))
        );
        let harm = Harm::Recreated { of: scene.facts.subject(&old), by: container.id.clone() };
        let key = (1, format!("{old} {}", container.id));
        !self.all.contains_key(&key) && self.add(key, harm, Confidence::Inferred, &evidence)
    }

    /// A containerd in the place of one that was on the way.
    fn restart(&mut self, since: Ns, scene: &Scene<'_>) -> bool {
        let facts = scene.facts;
        let Some(old) = self.daemons.iter().copied().find(|pid| facts.is_gone(*pid)) else { return false };
        let mut later = facts
            .pids_of(Role::Containerd)
            .filter_map(|pid| facts.process_of(pid))
            .filter(|p| p.started > since && p.pid != old);
        let Some(process) = later.next() else { return false };
        let (pid, into) = (process.pid, words::duration(process.started.saturating_sub(since)));
        let sole = facts.pids_of(Role::Containerd).nth(1).is_none();
        drop(later);
        self.daemons.remove(&old);
        let evidence = format!("containerd {old} is gone, {pid} was started {into} after the incident began");
        let confidence = if sole { Confidence::Proven } else { Confidence::Inferred };
        let mut new = self.add((4, pid.to_string()), Harm::Restarted { pid }, confidence, &evidence);
        for id in self.removed.clone() {
            // internal/cri/server/restart.go: loadContainer asks the shim, for ten seconds at most, and whatever goes wrong
            // makes it Unknown.
            let evidence = "containerd was restarted while its shim was at its Delete, whose lock the question for its state needs";
            let harm = Harm::Unknown { of: facts.subject(&id) };
            new |= self.add((0, id), harm, Confidence::Inferred, evidence);
        }
        new
    }
}
