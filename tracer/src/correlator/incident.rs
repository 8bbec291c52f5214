//! Diagnoses over time: when a threshold is first passed, growth, end. What alerts and reports speak of.

use super::consequences::{Harms, News, Scene};
use super::diagnosis::{Crossing, Found, Key, explains};
use super::exits::Exits;
use super::facts::{Facts, container_of_path};
use super::frame::{Change, Diagnosis, EndsIn, Head, Incident};
use super::limits;
use super::operations::{EndedBy, Finished, Operations, is_temporary};
use super::words;
use crate::event::{Kind, Ns, OperationId};
use crate::thresholds::Thresholds;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Open incidents.
#[derive(Clone, Debug, Default)]
pub struct Incidents {
    open: BTreeMap<String, Open>,
    /// Incidents that are told already, ahead of the tick that is to open them; each opens at that tick by itself.
    announced: BTreeMap<String, Open>,
    /// Incidents that are over and may still have consequences, the oldest first.
    over: VecDeque<Over>,
    /// When one of them grows to its next doubling, as the last tick saw it.
    grows_at: Ns,
    /// Crossings that opened no incident because [`limits::INCIDENTS`] were open.
    pub refused: u64,
}

#[derive(Clone, Debug)]
struct Open {
    incident: Incident,
    /// Key of the diagnosis it was last seen as.
    key: Key,
    /// Operations of that diagnosis.
    members: BTreeSet<OperationId>,
    /// Late exits that were on its chains at any time, bounded like the members.
    exits: BTreeSet<OperationId>,
    /// The last operation of the drawn chain.
    leaf: OperationId,
    /// Greatest age of the leaf so far, of diagnoses that explain.
    leaf_age: Ns,
    last: Diagnosis,
    harms: Harms,
    /// It was announced, and no tick has seen it since.
    announced: bool,
}

/// An incident that is over.
#[derive(Clone, Debug)]
struct Over {
    incident: Incident,
    members: BTreeSet<OperationId>,
    /// Late exits that were on its chains.
    exits: BTreeSet<OperationId>,
    harms: Harms,
}

impl Incidents {
    /// Brings the incidents up to date with what was found at `now`, and writes their ids into the diagnoses.
    pub fn tick(
        &mut self,
        found: &mut [Found],
        ended: &[Finished],
        news: &[News],
        operations: &Operations,
        scene: &Scene<'_>,
        thresholds: &Thresholds,
    ) -> Vec<Incident> {
        let (facts, now) = (scene.facts, scene.now);
        self.open_announced(now);
        for open in self.open.values_mut() {
            open.harms.look(news, &open.members, open.incident.since, scene);
        }
        let aftermaths = self.aftermaths(news, scene);
        let mut out: BTreeMap<String, Incident> = BTreeMap::new();
        let quiet = self.open.is_empty();
        self.grows_at =
            found.iter().filter_map(|f| f.worst.as_ref()).map(|c| grows_at(c, now)).min().unwrap_or(Ns::MAX);
        let mut claimed: BTreeMap<String, usize> = BTreeMap::new();
        let mut of_found: Vec<Option<String>> = vec![None; found.len()];
        for (i, f) in found.iter().enumerate() {
            let same = self.open.iter().find(|(id, o)| o.key == f.key && !claimed.contains_key(*id));
            if let Some((id, _)) = same {
                claimed.insert(id.clone(), i);
                of_found[i] = Some(id.clone());
            }
        }
        // What it ends in may have become visible, or invisible, since: then it is known by its operations.
        for (i, f) in found.iter().enumerate() {
            if of_found[i].is_some() {
                continue;
            }
            let same = self.open.iter().find(|(id, o)| !claimed.contains_key(*id) && o.has_part(f));
            if let Some((id, _)) = same {
                claimed.insert(id.clone(), i);
                of_found[i] = Some(id.clone());
            }
        }
        // While things recover, part of a chain may lead nowhere for a moment: that is no incident of its own.
        let shares = |f: &Found| {
            let open = self.open.iter().find(|(_, open)| open.has_part(f));
            // That an exit is to be retried is what came of it.
            let leads_on = explains(&f.diagnosis.ends_in) && !is_retried(f);
            open.filter(|_| !leads_on).map(|(id, _)| id.clone())
        };
        let parts: Vec<Option<String>> = found
            .iter()
            .zip(&of_found)
            .map(|(f, own)| if own.is_none() { shares(f) } else { None })
            .collect();
        for (i, f) in found.iter_mut().enumerate() {
            let id = match (&of_found[i], &f.worst) {
                (Some(id), _) => id.clone(),
                (None, _) if parts[i].is_some() => continue,
                // A new attempt at an exit has begun, and what it waits for is not visible yet: the exit is known.
                (None, Some(_)) if self.knows_exit(f, now, thresholds) => continue,
                (None, Some(crossing)) => match self.opened(f, crossing, now) {
                    Some(id) => id,
                    None => continue,
                },
                (None, None) => continue,
            };
            f.diagnosis.incident = Some(id.clone());
            if let Some(open) = self.open.get_mut(&id) {
                open.update(f, scene);
                f.diagnosis.consequences.clone_from(&open.incident.consequences);
                out.insert(id, open.incident.clone());
            }
        }
        for (f, part) in found.iter_mut().zip(&parts) {
            if let Some(open) = part.as_ref().and_then(|id| self.open.get_mut(id)) {
                let room = limits::INCIDENT_MEMBERS.saturating_sub(open.members.len());
                open.members.extend(f.members.iter().take(room).cloned());
                f.diagnosis.incident.clone_from(part);
            }
        }
        let unclaimed: Vec<String> = self.open.keys().filter(|id| !out.contains_key(*id)).cloned().collect();
        for id in unclaimed {
            let Some(mut open) = self.open.remove(&id) else { continue };
            // Who waits no longer for this may wait for something else, which is an incident of its own.
            let is_over = explains(&open.incident.ends_in)
                && operations.ended_by(&open.leaf) == Some(EndedBy::Returned);
            let elsewhere = found.iter().filter(|_| !is_over).find_map(|f| {
                (!open.members.is_disjoint(&f.members)).then(|| f.diagnosis.incident.clone()).flatten()
            });
            open.incident.ended = Some(now);
            open.incident.consequences = open.harms.list();
            open.last.consequences.clone_from(&open.incident.consequences);
            open.incident.change = Some(match elsewhere {
                Some(other) => {
                    if let Some(goes_on) = self.open.get_mut(&other) {
                        goes_on.harms.absorb(open.harms);
                    }
                    Change::MergedInto(other)
                }
                None => {
                    open.incident.uncertain_end = uncertainty(operations, scene.exits, &open.leaf);
                    if self.over.len() >= limits::AFTERMATHS {
                        self.over.pop_front();
                    }
                    let incident = Incident { change: Some(Change::Aftermath), ..open.incident.clone() };
                    let Open { members, exits, harms, .. } = open;
                    self.over.push_back(Over { incident, members, exits, harms });
                    Change::Ended
                }
            });
            open.incident.last = Some(Box::new(open.last));
            out.insert(id, open.incident);
        }
        if quiet && out.is_empty() {
            for f in ended.iter().filter(|f| !f.was_seen) {
                if let Some(incident) = unseen(f, facts, thresholds) {
                    out.insert(incident.id.clone(), incident);
                }
                if out.len() >= limits::SUBJECTS_SHOWN {
                    break;
                }
            }
        }
        for incident in aftermaths {
            out.entry(incident.id.clone()).or_insert(incident);
        }
        out.into_values().collect()
    }

    /// Takes over what a copy has opened at `at`, as far as there is room. Gives the ids.
    pub fn announce(&mut self, ahead: &Incidents, at: Ns) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        for (id, open) in ahead.open.iter().filter(|(_, open)| open.incident.opened == at) {
            let known = self.open.contains_key(id) || self.announced.contains_key(id);
            if !known && self.open.len() + self.announced.len() < limits::INCIDENTS {
                self.announced.insert(id.clone(), Open { announced: true, ..open.clone() });
                ids.insert(id.clone());
            }
        }
        ids
    }

    /// Opens what was announced for a time that has come. What is over by then ends with the same tick.
    fn open_announced(&mut self, now: Ns) {
        let due: Vec<String> = self
            .announced
            .iter()
            .filter(|(_, open)| open.incident.opened <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.open_one_announced(&id);
        }
    }

    fn open_one_announced(&mut self, id: &str) -> Option<&mut Open> {
        let open = self.announced.remove(id)?;
        // The same last operation blocks again: what came of it before went with the copy.
        self.over.retain(|over| over.incident.id != id);
        Some(self.open.entry(id.to_owned()).or_insert(open))
    }

    /// Whether an incident is open, or announced, that this operation is a part of.
    pub fn have(&self, id: &OperationId) -> bool {
        self.open.values().chain(self.announced.values()).any(|open| open.members.contains(id))
    }

    /// What has newly come of incidents that are over.
    fn aftermaths(&mut self, news: &[News], scene: &Scene<'_>) -> Vec<Incident> {
        let now = scene.now;
        self.over.retain(|o| o.incident.ended.is_some_and(|at| at.saturating_add(limits::AFTERMATH) > now));
        let mut out = Vec::new();
        for over in &mut self.over {
            if over.harms.look(news, &over.members, over.incident.since, scene) {
                over.incident.consequences = over.harms.list();
                out.push(over.incident.clone());
            }
        }
        out
    }

    /// Whether there is an incident of which something may come.
    pub fn may_have_consequences(&self) -> bool {
        !self.open.is_empty() || !self.over.is_empty()
    }

    /// When the first of them grows to its next doubling, if nothing changes.
    pub fn grows_at(&self) -> Ns {
        self.grows_at
    }

    /// How many are announced and wait for the tick that opens them.
    pub fn announced(&self) -> usize {
        self.announced.len()
    }

    /// How many are open or announced, and how many are over and may still have consequences.
    pub fn len(&self) -> (usize, usize) {
        (self.open.len() + self.announced.len(), self.over.len())
    }

    /// Whether an open incident is, or was, about this late exit; or one that is over, and it is over only just, or what the new
    /// attempt waits for has only just begun.
    fn knows_exit(&self, f: &Found, now: Ns, thresholds: &Thresholds) -> bool {
        if f.diagnosis.head != Head::LateExit || explains(&f.diagnosis.ends_in) {
            return false;
        }
        let leaf = f.diagnosis.chain.links.last();
        let is_new =
            leaf.is_some_and(|link| link.operation.kind != Kind::ExitHandling && link.age < thresholds.cri);
        let is_recent =
            |over: &Over| over.incident.ended.is_some_and(|at| now.saturating_sub(at) < thresholds.cri);
        exits_of(f).any(|id| {
            self.open.values().any(|open| open.exits.contains(id))
                || self.over.iter().any(|over| over.exits.contains(id) && (is_new || is_recent(over)))
        })
    }

    /// Opens an incident for a diagnosis that has passed a threshold.
    fn opened(&mut self, f: &Found, crossing: &Crossing, now: Ns) -> Option<String> {
        let leaf = f.diagnosis.chain.links.last()?.operation.id();
        // Announced for a moment that is still to come: it is that one.
        let is = |open: &Open| open.key == f.key || !open.members.is_disjoint(&f.members);
        let announced = self.announced.iter().find(|(_, open)| is(open)).map(|(id, _)| id.clone());
        if let Some(id) = announced {
            self.open_one_announced(&id)?.incident.opened = now;
            return Some(id);
        }
        let mut id = id_of_root(&f.diagnosis).unwrap_or_else(|| id_of(&leaf));
        while self.open.contains_key(&id) || self.announced.contains_key(&id) {
            id.push('+'); // The same last operation under another end; both are open.
        }
        if self.open.len() + self.announced.len() >= limits::INCIDENTS {
            self.refused = self.refused.saturating_add(1);
            return None;
        }
        // The same last operation blocks again: what came of it before still stands.
        let before = self.over.iter().position(|o| o.incident.id == id);
        let harms = before.and_then(|at| self.over.remove(at)).map(|o| o.harms).unwrap_or_default();
        let incident = Incident {
            id: id.clone(),
            opened: now,
            since: now.saturating_sub(f.diagnosis.chain.age),
            ended: None,
            crossed_by: format!("{} over {}", crossing.what, words::duration(crossing.threshold)),
            ends_in: f.diagnosis.ends_in.clone(),
            signature: f.diagnosis.signature.clone(),
            summary: String::new(),
            cause: String::new(),
            level: level(crossing),
            longest: 0,
            stuck_calls: 0,
            containers: Vec::new(),
            consequences: Vec::new(),
            change: None,
            uncertain_end: None,
            last: None,
        };
        self.open.insert(
            id.clone(),
            Open {
                incident,
                key: f.key.clone(),
                members: BTreeSet::new(),
                exits: BTreeSet::new(),
                leaf,
                leaf_age: 0,
                last: f.diagnosis.clone(),
                harms,
                announced: false,
            },
        );
        Some(id)
    }
}

impl Open {
    /// Whether operations of this incident are in that diagnosis, or it is an exit of it that is still to be retried.
    fn has_part(&self, f: &Found) -> bool {
        !self.members.is_disjoint(&f.members)
            || is_retried(f) && exits_of(f).any(|exit| self.exits.contains(exit))
    }

    fn update(&mut self, f: &Found, scene: &Scene<'_>) {
        let (facts, now) = (scene.facts, scene.now);
        self.harms.concern(f, facts);
        self.harms.look(&[], &f.members, self.incident.since, scene);
        self.incident.consequences = self.harms.list();
        let d = &f.diagnosis;
        let incident = &mut self.incident;
        let oldest = d.stuck_calls.iter().map(|c| c.age).max().unwrap_or(0).max(d.chain.age);
        incident.since = incident.since.min(now.saturating_sub(oldest));
        incident.longest = incident.longest.max(oldest);
        incident.stuck_calls = incident.stuck_calls.max(d.stuck_calls_total);
        let first = self.members.is_empty() || std::mem::take(&mut self.announced);
        incident.change = first.then_some(Change::Crossed);
        if let Some(worst) = &f.worst {
            let now_at = level(worst);
            if now_at > incident.level {
                incident.level = now_at;
                if !first {
                    incident.change = Some(Change::Grew);
                }
            }
        }
        self.members.clone_from(&f.members);
        let room = limits::INCIDENT_MEMBERS.saturating_sub(self.exits.len());
        self.exits.extend(exits_of(f).take(room).cloned());
        self.key.clone_from(&f.key);
        // While things recover the cause is gone from the graph: what explained most stays what it was.
        let leaf = d.chain.links.last();
        let leaf_age = leaf.map_or(0, |l| l.age);
        let explained = explains(&d.ends_in);
        // An exit that is left to be retried is what came of it, not why.
        let weight = |ends_in: &EndsIn| match ends_in {
            EndsIn::NotVisible { .. } => 0,
            EndsIn::ExitRetry { .. } => 1,
            _ => 2,
        };
        let better = match weight(&d.ends_in).cmp(&weight(&incident.ends_in)) {
            Ordering::Less => false,
            Ordering::Equal => !explained || leaf_age >= self.leaf_age,
            Ordering::Greater => true,
        };
        if better || first {
            incident.ends_in = d.ends_in.clone();
            incident.summary = words::sentence(d, now);
            incident.cause = words::cause(d);
            incident.signature.clone_from(&d.signature);
            incident.containers.clone_from(&d.containers);
            self.leaf_age = if explained { leaf_age } else { 0 };
            if let Some(leaf) = leaf {
                self.leaf = leaf.operation.id();
            }
            self.last = d.clone();
        }
    }
}

/// Whether all that is left is an exit that containerd will try again.
fn is_retried(f: &Found) -> bool {
    matches!(f.diagnosis.ends_in, EndsIn::ExitRetry { .. })
}

/// The late exits on the chains of a diagnosis.
fn exits_of(f: &Found) -> impl Iterator<Item = &OperationId> {
    f.members.iter().filter(|id| id.kind == Kind::ExitHandling)
}

/// How often the age has doubled beyond the threshold.
fn level(crossing: &Crossing) -> u32 {
    (crossing.age / crossing.threshold.max(1)).checked_ilog2().unwrap_or(0)
}

/// When its age will have doubled once more.
fn grows_at(crossing: &Crossing, now: Ns) -> Ns {
    let next = crossing.threshold.max(1).saturating_mul(2_u64.saturating_pow(level(crossing) + 1));
    now.saturating_add(next.saturating_sub(crossing.age))
}

/// The id of an incident whose root is the unmount of a container: there is one by that process, so it is the same for a
/// plegscope that was started later and knows neither when it began nor what it does in the kernel.
fn id_of_root(d: &Diagnosis) -> Option<String> {
    let unmount = words::unmount_of(&d.chain.links).filter(|link| !is_temporary(&link.operation))?;
    Some(id_of_unmount(unmount.who.pid, &unmount.subject.as_ref()?.id))
}

fn id_of_unmount(pid: u32, container: &str) -> String {
    format!("unmount-{pid}-{container:.12}")
}

/// An id that is the same whenever the same operation is the root cause.
fn id_of(id: &OperationId) -> String {
    let kind = format!("{:?}", id.kind).to_lowercase();
    format!("{kind}-{}-{:x}-{}", id.pid, id.actor, id.begin)
}

fn uncertainty(operations: &Operations, exits: &Exits, leaf: &OperationId) -> Option<String> {
    if exits.has_reported(leaf) {
        return None;
    }
    match operations.ended_by(leaf) {
        Some(EndedBy::Returned) => None,
        Some(EndedBy::Absent) => Some("its end was not reported; it is not in flight any more".to_owned()),
        Some(EndedBy::MovedOn) => {
            Some("its end was not reported; its goroutine or thread has gone on".to_owned())
        }
        None if operations.contains(leaf) => {
            Some("it goes on, but nothing is seen to wait any more".to_owned())
        }
        None => Some("its process is gone".to_owned()),
    }
}

/// What an operation that is over is called and which threshold it has passed, where it has.
pub fn passed(f: &Finished, t: &Thresholds) -> Option<(&'static str, Ns)> {
    let (what, threshold) = match f.op.kind {
        Kind::Unmount => ("unmount", t.unmount),
        Kind::Relist => ("relist", t.relist),
        Kind::ExitHandling => ("exit", t.exit),
        Kind::CriCall if !super::diagnosis::is_patient(&f.op) => ("CRI call", t.cri),
        _ => return None,
    };
    (f.at.saturating_sub(f.op.begin) >= threshold).then_some((what, threshold))
}

/// An operation that was over a threshold and that nobody had seen in flight.
fn unseen(f: &Finished, facts: &Facts, t: &Thresholds) -> Option<Incident> {
    let took = f.at.saturating_sub(f.op.begin);
    let (what, threshold) = passed(f, t)?;
    let because = "it was over before it was seen in flight".to_owned();
    let named = f.op.container.as_deref().or_else(|| f.op.path.as_deref().and_then(container_of_path));
    let subject = named.map(|id| facts.subject(id));
    let done = match &subject {
        Some(s) => format!("{what} of {}", words::pod(s)),
        None => words::operation(&f.op, None),
    };
    Some(Incident {
        id: match (&subject, f.op.kind) {
            (Some(subject), Kind::Unmount) => id_of_unmount(f.op.actor.pid, &subject.id),
            _ => id_of(&f.op.id()),
        },
        opened: f.at,
        since: f.op.begin,
        ended: Some(f.at),
        crossed_by: format!("{what} over {}", words::duration(threshold)),
        signature: "not-visible".to_owned(),
        summary: format!("{done} took {}; {because}", words::duration(took)),
        cause: format!("{done} ({}), {because}", words::duration(took)),
        ends_in: EndsIn::NotVisible { because },
        level: 0,
        longest: took,
        stuck_calls: 0,
        containers: subject.into_iter().collect(),
        consequences: Vec::new(),
        change: Some(Change::Ended),
        uncertain_end: None,
        last: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_doublings() {
        let at = |age| level(&Crossing { what: "unmount", age, threshold: 5 });
        assert_eq!([5, 9, 10, 19, 20, 39, 40].map(at), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(level(&Crossing { what: "unmount", age: 7, threshold: 0 }), 2);
    }
}
