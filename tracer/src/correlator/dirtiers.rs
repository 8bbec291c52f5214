//! Who has made the disk's work: the control groups with memory waiting to be written. The one whose unmount waits often
//! pays for another, since a sync writes all that is dirty on the file system.

use super::facts::Facts;
use super::frame::{Confidence, EndsIn, Subject};
use super::{limits, words};
use crate::event::{Device, Ns, Writer};
use crate::thresholds::SECOND;
use serde::{Deserialize, Serialize};

/// A sample older than this says nothing of now.
const FRESH: Ns = 15 * SECOND;

/// Somebody with memory waiting to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dirtier {
    /// The pod, where its control group is one's; else the group's path.
    pub source: Source,
    /// Bytes dirty or under writeback, on whichever device.
    pub bytes: u64,
    /// Bytes per second that the group wrote to the device between the last two samples, where that is counted (cgroup
    /// v2).
    pub bytes_per_second: Option<u64>,
    /// How sure it is that this waits for this device.
    pub confidence: Confidence,
    /// What that rests on.
    pub evidence: String,
}

/// Whom a control group belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A container's.
    Container(Subject),
    /// What containers of this pod have left behind that are gone.
    GoneFrom(Subject),
    /// What groups below this one have left behind that are gone, of no pod that is known.
    GoneBelow(String),
    /// Another group, by its path.
    Group(String),
}

impl Source {
    /// The pod it belongs to, where it is one's.
    pub fn subject(&self) -> Option<&Subject> {
        match self {
            Source::Container(s) | Source::GoneFrom(s) => Some(s),
            Source::GoneBelow(_) | Source::Group(_) => None,
        }
    }
}

/// What ties a group's unwritten memory to a device: it is counted for each group, never for each device.
/// `docs/wait-graph.md` has the same table, and a test compares the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tie {
    /// The group wrote to this device between the last two samples (`io.stat`, cgroup v2).
    WritesToIt,
    /// It wrote, but to other devices only.
    WritesElsewhere,
    /// The container's writable layer lies on this device.
    LayerOnIt,
    /// Nothing does.
    None,
    /// It is not known which device it is about.
    NoDevice,
}

impl Tie {
    /// All, in the order of the table.
    #[cfg(test)]
    const ALL: [Tie; 5] = [Tie::WritesToIt, Tie::WritesElsewhere, Tie::LayerOnIt, Tie::None, Tie::NoDevice];

    /// How sure it is that the memory waits for this device.
    fn confidence(self) -> Confidence {
        match self {
            Tie::WritesToIt | Tie::LayerOnIt => Confidence::Inferred,
            Tie::WritesElsewhere | Tie::None | Tie::NoDevice => Confidence::NotVisible,
        }
    }

    /// What that rests on.
    fn evidence(self) -> &'static str {
        match self {
            Tie::WritesToIt => "it writes to this device",
            Tie::WritesElsewhere => "it writes to other devices only",
            Tie::LayerOnIt => "its writable layer is on this device",
            Tie::None => "for which device is not counted",
            Tie::NoDevice => "the device is not known",
        }
    }
}

/// Who has memory waiting to be written to what this ends in, the most first; or why nobody can be named. `None` where
/// it ends in no disk.
pub fn dirtiers(facts: &Facts, ends_in: &EndsIn, now: Ns) -> Option<Result<Vec<Dirtier>, String>> {
    let device = match ends_in {
        EndsIn::UnmountSync { device, .. } | EndsIn::Sync { device, .. } | EndsIn::Unmount { device, .. } => {
            device.as_ref().map(|d| d.device)
        }
        EndsIn::StatusWrite => None,
        _ => return None,
    };
    let Some((at, writers)) = facts.writers[0].as_ref() else {
        return Some(Err("control groups were not looked at yet".to_owned()));
    };
    if now.saturating_sub(*at) > FRESH {
        let ago = words::duration(now.saturating_sub(*at));
        return Some(Err(format!("control groups were last looked at {ago} ago")));
    }
    let mut all: Vec<Dirtier> = writers
        .of
        .iter()
        .filter(|w| w.dirty.saturating_add(w.writeback) > 0)
        .map(|w| dirtier(facts, w, device))
        .collect();
    if all.is_empty() {
        let reason = match writers.reason.as_str() {
            "" => "no control group has memory waiting to be written",
            reason => reason,
        };
        return Some(Err(reason.to_owned()));
    }
    // What is known to lie elsewhere comes last, whatever its size.
    all.sort_by_key(|d| {
        (d.confidence, std::cmp::Reverse(d.bytes), d.bytes_per_second.map(std::cmp::Reverse))
    });
    // A hundredth of the most is noise.
    let most = all.iter().map(|d| d.bytes).max().unwrap_or(0);
    all.retain(|d| d.bytes >= most / 100);
    all.truncate(limits::DIRTIERS_SHOWN);
    Some(Ok(all))
}

fn dirtier(facts: &Facts, w: &Writer, device: Option<Device>) -> Dirtier {
    let source = match (&w.container, w.gone) {
        (Some(id), false) => Source::Container(facts.subject(id)),
        (Some(id), true) => Source::GoneFrom(facts.subject(id)),
        (None, true) => Source::GoneBelow(w.cgroup.clone()),
        (None, false) => Source::Group(w.cgroup.clone()),
    };
    let rates = rates(facts, w);
    let rate = device.and_then(|d| rates.iter().find(|(of, _)| *of == d)).map(|(_, rate)| *rate);
    let upper = w.container.as_deref().and_then(|id| facts.container_of(id)).and_then(|c| c.upper.as_ref());
    let layer_on_it = upper.is_some_and(|(upper, _)| Some(*upper) == device);
    let tie = match (device, rate) {
        (None, _) => Tie::NoDevice,
        (Some(_), Some(rate)) if rate > 0 => Tie::WritesToIt,
        (Some(_), _) if rates.iter().any(|(_, rate)| *rate > 0) => Tie::WritesElsewhere,
        (Some(_), _) if layer_on_it => Tie::LayerOnIt,
        (Some(_), _) => Tie::None,
    };
    Dirtier {
        source,
        bytes: w.dirty.saturating_add(w.writeback),
        bytes_per_second: rate,
        confidence: tie.confidence(),
        evidence: tie.evidence().to_owned(),
    }
}

/// Bytes per second that a group wrote to each device between the last two samples.
fn rates(facts: &Facts, w: &Writer) -> Vec<(Device, u64)> {
    let [Some((now, _)), Some((before, old))] = &facts.writers else { return Vec::new() };
    let Some(then) = old.of.iter().find(|o| o.cgroup == w.cgroup && o.gone == w.gone) else {
        return Vec::new();
    };
    let span = u128::from(now.saturating_sub(*before).max(1));
    let rate = |(device, bytes): &(Device, u64)| {
        let earlier = then.written.iter().find(|(of, _)| of == device).map_or(0, |(_, bytes)| *bytes);
        // Less than before: another group has that path by now.
        let more = u128::from(bytes.checked_sub(earlier)?);
        Some((*device, u64::try_from(more * u128::from(SECOND) / span).unwrap_or(u64::MAX)))
    };
    w.written.iter().filter_map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlator::ground::confidence_word;

    #[test]
    fn the_document_has_the_same_table() {
        let text = include_str!("../../../docs/wait-graph.md");
        let part = text.split("\n## Who has dirtied it\n").nth(1).expect("a part about it");
        let after = part.lines().skip_while(|l| !l.starts_with("|---")).skip(1);
        let rows: Vec<&str> = after.take_while(|l| l.starts_with('|')).collect();
        let row = |t: Tie| format!("| {} | {} |", t.evidence(), confidence_word(t.confidence()));
        assert_eq!(rows, Tie::ALL.map(row));
    }
}
