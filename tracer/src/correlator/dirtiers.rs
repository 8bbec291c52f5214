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
    let rate = device.and_then(|d| rate(facts, &w.cgroup, d));
    let upper = w.container.as_deref().and_then(|id| facts.container_of(id)).and_then(|c| c.upper.as_ref());
    // Dirty memory is counted by group, whatever device it is for.
    let (confidence, evidence) = match (device, rate, upper) {
        (None, ..) => (Confidence::NotVisible, "the device is not known"),
        (Some(_), Some(rate), _) if rate > 0 => (Confidence::Inferred, "it writes to this device"),
        (Some(d), _, Some((upper, _))) if *upper == d => {
            (Confidence::Inferred, "its writable layer is on this device")
        }
        _ => (Confidence::NotVisible, "for which device is not counted"),
    };
    Dirtier {
        source,
        bytes: w.dirty.saturating_add(w.writeback),
        bytes_per_second: rate,
        confidence,
        evidence: evidence.to_owned(),
    }
}

/// Bytes per second that a group wrote to a device between the last two samples.
fn rate(facts: &Facts, cgroup: &str, device: Device) -> Option<u64> {
    let [Some((now, new)), Some((before, old))] = &facts.writers else { return None };
    let written = |of: &[Writer]| -> Option<u64> {
        let writer = of.iter().find(|w| w.cgroup == cgroup && !w.gone)?;
        writer.written.iter().find(|(d, _)| *d == device).map(|(_, bytes)| *bytes)
    };
    let bytes = written(&new.of)?.checked_sub(written(&old.of)?)?;
    let rate = u128::from(bytes) * u128::from(SECOND) / u128::from(now.saturating_sub(*before).max(1));
    u64::try_from(rate).ok()
}
