//! What comes next: when the kubelet calls the node NotReady and pods are evicted, and whether it ends by itself.

use super::dirtiers::Dirtier;
use super::facts::Facts;
use super::frame::{Confidence, EndsIn};
use super::{fixes, words};
use crate::event::{Device, Kind, Ns, Operation};
use crate::thresholds::{CRI_TIMEOUT, PLEG_THRESHOLD, SECOND};
use serde::{Deserialize, Serialize};

/// The kubelet waits this long between two relists.
const RELIST_PERIOD: Ns = SECOND;
/// A kubelet with this threshold relies on events (EventedPLEG), and waits [`EVENTED_PERIOD`] between two relists. From
/// 2026 on it may wait a second all the same, which it does not tell.
const EVENTED_THRESHOLD: Ns = 600 * SECOND;
const EVENTED_PERIOD: Ns = 300 * SECOND;
/// The first release of each line whose shim waits 10 s for output (containerd 12364); those before wait 2 s.
const WAITS_LONGER: &[fixes::Version] = &[[1, 7, 29], [2, 0, 7], [2, 1, 5], [2, 2, 0]];
/// Pods get tolerations for this long, unless they bring their own (admission plugin DefaultTolerationSeconds).
const TOLERATED: Ns = 300 * SECOND;

/// When the kubelet calls the node NotReady if nothing moves, and when pods are evicted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotReady {
    /// NotReady from then on (may lie in the past).
    pub at: Ns,
    /// Whether it may come sooner: the relist began at a time before the first that is known of it.
    pub latest: bool,
    /// The age of the last good relist that makes it so; of the last heartbeat, where the kubelet stands still.
    pub threshold: Ns,
    /// Pods that tolerate it for the default 300 s are evicted from then on.
    pub evictions_from: Ns,
    /// How sure the threshold is.
    pub confidence: Confidence,
    /// Where it was read.
    pub evidence: String,
}

/// Whether, and about when, it ends by itself. Always an estimate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outlook {
    /// It ends when the device has written what it has to.
    Drains {
        /// Dirty and writeback memory of the node, in bytes: an upper limit of what this sync has to write.
        bytes: u64,
        /// What the device has written lately, in bytes per second.
        bytes_per_second: u64,
        /// How long that takes at most, if the rate holds and nobody dirties more.
        at_most: Ns,
        /// What of it control groups with their layers on this device have, and how long that takes: more likely, and
        /// without what others have dirtied for it.
        likely: Option<(u64, Ns)>,
        /// By how much that memory has grown lately, if it did: then it may take longer.
        growing: Option<u64>,
    },
    /// It ends by itself at about this time.
    At {
        /// When.
        at: Ns,
        /// What that rests on.
        because: String,
    },
    /// It does not end by itself.
    Never {
        /// Why.
        because: String,
    },
    /// It cannot be told.
    Unknown {
        /// Why.
        because: String,
    },
}

/// When a kubelet calls the node NotReady whose stuck relist began at `begin`: its last good relist began one period
/// earlier, or one before the first of those that failed in a row (`bad`: begin of the first, end of the last). `kubelet`
/// is the process whose relist it is; where a list call stands for it, the only kubelet that is known.
pub fn not_ready(facts: &Facts, kubelet: Option<u32>, begin: Ns, bad: Option<(Ns, Ns)>) -> NotReady {
    let read = facts.kubelet_of(kubelet).and_then(|k| k.pleg_threshold.as_ref());
    let (threshold, mut confidence, mut evidence) = match read {
        // Where its own code or memory did not tell, a default was taken, and the source says so.
        Some((threshold, source)) if source.starts_with("not read") => {
            (*threshold, Confidence::Inferred, source.clone())
        }
        Some((threshold, source)) => (*threshold, Confidence::Proven, source.clone()),
        None => {
            let words = "the kubelet's default, not read from it".to_owned();
            (PLEG_THRESHOLD, Confidence::Inferred, words)
        }
    };
    let mut period = RELIST_PERIOD;
    if threshold >= EVENTED_THRESHOLD {
        // The earliest is told: too late would be the worse error.
        (period, confidence) = (EVENTED_PERIOD, Confidence::Inferred);
        evidence.push_str("; it relists every 5m or every second, 5m is assumed");
    }
    let first = match bad {
        Some((first, last_end)) if begin.saturating_sub(last_end) <= 2 * period => first.min(begin),
        _ => begin,
    };
    let at = first.saturating_add(threshold.saturating_sub(period));
    let evictions_from = at.saturating_add(TOLERATED);
    NotReady { at, latest: false, threshold, evictions_from, confidence, evidence }
}

/// Whether, and about when, what ends there ends by itself. `update` is the update of a container's resources on the way
/// that waits for its shim, which its caller gives up after a while; `last` is the last operation on the way.
pub fn outlook(
    facts: &Facts,
    ends_in: &EndsIn,
    dirtied_by: &[Dirtier],
    update: Option<&Operation>,
    last: &Operation,
    now: Ns,
) -> Outlook {
    let by_itself = match ends_in {
        EndsIn::IoDrain => output_wait(facts, last, now),
        _ => by_itself(facts, ends_in, dirtied_by),
    };
    let Some(update) = update else { return by_itself };
    let read = facts.kubelet_of(None).and_then(|k| k.request_timeout);
    let given_up = update.begin.saturating_add(read.unwrap_or(CRI_TIMEOUT));
    let later = match &by_itself {
        Outlook::Drains { at_most, likely, .. } => {
            now.saturating_add(likely.map_or(*at_most, |(_, time)| time)) > given_up
        }
        Outlook::At { at, .. } => *at > given_up,
        // That it will not end matters more than that one who waits gives up.
        Outlook::Never { .. } => false,
        Outlook::Unknown { .. } => true,
    };
    if !later || given_up <= now {
        return by_itself;
    }
    let limit = words::duration(read.unwrap_or(CRI_TIMEOUT));
    let sure = if read.is_some() { "" } else { " by default" };
    Outlook::At {
        at: given_up,
        because: format!(
            "the kubelet gives up the update after {limit}{sure}; the next update gets stuck again"
        ),
    }
}

fn by_itself(facts: &Facts, ends_in: &EndsIn, dirtied_by: &[Dirtier]) -> Outlook {
    let unknown = |because: &str| Outlook::Unknown { because: because.to_owned() };
    let never = |because: &str| Outlook::Never { because: because.to_owned() };
    match ends_in {
        EndsIn::UnmountSync { device: Some(d), .. } | EndsIn::Sync { device: Some(d), .. } => {
            drains(facts, d.device, dirtied_by).unwrap_or_else(Outlook::unknown)
        }
        EndsIn::UnmountSync { device: None, .. } | EndsIn::Sync { device: None, .. } => {
            unknown("which device it writes to is not visible")
        }
        EndsIn::Unmount { .. } => unknown("what the unmount waits for is not visible"),
        EndsIn::MountBusy { .. } => {
            unknown("it is tried again until nobody keeps the mount busy, or given up")
        }
        EndsIn::RemoteFileSystem { .. } => unknown("it goes on when the other side answers"),
        EndsIn::IoDrain => unknown("how long the shim has waited for output is not visible"),
        EndsIn::StatusWrite => unknown("it goes on when the disk has written what is queued before it"),
        EndsIn::CgroupOrDbus => unknown("it goes on when the kernel or systemd answers"),
        EndsIn::Frozen { by } if by.starts_with("traced") || by.starts_with("held by a tracer") => {
            unknown("it goes on when the tracer lets it")
        }
        EndsIn::Frozen { .. } => never("somebody has to let it go on"),
        EndsIn::Starved { .. } => unknown("it goes on as slowly as it gets what it lacks"),
        EndsIn::ExitRetry { next, .. } => {
            Outlook::At { at: *next, because: "then containerd tries again".to_owned() }
        }
        EndsIn::LeakedShims { .. } => unknown("what ends a shim that is left over is not known"),
        EndsIn::Cycle => never("each of them waits for another of them"),
        EndsIn::NotVisible { .. } => unknown("what it waits for is not visible"),
    }
}

/// When the shim stops waiting for the container's output. `runc delete`, which comes next, has no limit.
fn output_wait(facts: &Facts, delete: &Operation, now: Ns) -> Outlook {
    if delete.kind == Kind::ExitHandling {
        return Outlook::unknown("containerd itself waits for the output without a limit");
    }
    let version = facts.process_of(delete.actor.pid).and_then(|p| p.version.as_deref());
    let (limit, words) = match version.and_then(|v| fixes::is_from(v, WAITS_LONGER)) {
        Some(true) => (10 * SECOND, "this shim waits for output 10s at most, then runs runc delete"),
        Some(false) => (2 * SECOND, "this shim waits for output 2s at most, then runs runc delete"),
        None => {
            (10 * SECOND, "a shim waits for output 2s or 10s at most, by its version, then runs runc delete")
        }
    };
    let at = delete.begin.saturating_add(limit);
    if at > now {
        return Outlook::At { at, because: words.to_owned() };
    }
    Outlook::unknown("it no longer waits for output, it is in runc delete, which has no limit")
}

/// When the device has written what waits for it; else why that cannot be told.
fn drains(facts: &Facts, device: Device, dirtied_by: &[Dirtier]) -> Result<Outlook, &'static str> {
    let memory = facts.memory.ok_or("how much memory waits to be written is not known")?;
    let rate = facts.device_rate(device).ok_or("how fast the device writes is not known yet")?;
    if rate == 0 {
        return Err("the device has written nothing lately");
    }
    let bytes = memory.dirty.saturating_add(memory.writeback);
    let time = |bytes: u64| {
        let time = u128::from(bytes) * u128::from(SECOND) / u128::from(rate);
        Ns::try_from(time).unwrap_or(Ns::MAX)
    };
    let here = dirtied_by.iter().filter(|one| one.confidence != Confidence::NotVisible);
    let here = here.fold(0u64, |sum, one| sum.saturating_add(one.bytes));
    Ok(Outlook::Drains {
        bytes,
        bytes_per_second: rate,
        at_most: time(bytes),
        likely: (here > 0 && here < bytes).then(|| (here, time(here))),
        growing: facts.memory_growth().filter(|grown| *grown > bytes / 20),
    })
}

impl Outlook {
    fn unknown(because: &str) -> Outlook {
        Outlook::Unknown { because: because.to_owned() }
    }
}
