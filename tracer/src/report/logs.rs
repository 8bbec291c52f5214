//! Where the logs of containerd, the kubelet and the kernel tell of an incident: the exact commands, and what to look for.

use super::Moment;
use crate::capture::line::Clock;
use crate::capture::record::Record;
use crate::correlator::Diagnosis;
use crate::event::{Kind, Ns};
use crate::thresholds::SECOND;
use serde::Serialize;

/// Lines are written before the first thing that is stuck began, and after the last has ended.
const BEFORE: Ns = 10 * SECOND;
/// See [`BEFORE`]; an attempt at an exit that failed is logged ten seconds later.
const AFTER: Ns = 30 * SECOND;
/// From this on the kernel itself complains about a task that is blocked (`kernel.hung_task_timeout_secs`).
const HUNG: Ns = 120 * SECOND;
/// Containers that are looked for by id.
const IDS: usize = 8;

/// A look into one log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogSearch {
    /// Whose: `kubelet`, `containerd`, `kernel`.
    pub of: &'static str,
    /// From when on.
    pub from: Moment,
    /// Until when.
    pub until: Moment,
    /// The command, to be run on the node.
    pub command: String,
    /// What the lines say: words in them, and what they mean.
    pub means: Vec<(&'static str, &'static str)>,
}

/// What the kubelet writes, in the words that old and new releases share; the case has changed over time.
const KUBELET: [(&str, &str); 6] = [
    ("PLEG is not healthy", "no relist has come back for the threshold; the node is called NotReady"),
    ("skipping pod synchronization", "no pod is started or stopped meanwhile"),
    ("Unable to retrieve pods", "a relist was given up"),
    ("with filter.*from runtime service failed", "a list call was given up, after two minutes by default"),
    ("UpdateContainerResources.*failed", "an update of the CPU manager was given up"),
    ("NodeNotReady|became not ready", "the node's condition has changed"),
];

/// What containerd writes about the calls it serves.
const CALLS: [(&str, &str); 2] = [
    ("with filter .* failed", "a list call that its caller gave up"),
    ("UpdateContainerResources for", "the update that holds the Status lock: begin, and how it ended"),
];

/// What containerd writes about exits.
const EXITS: [(&str, &str); 4] = [
    ("(received container exit|TaskExit) event", "a container has exited, or its exit is tried again"),
    ("failed to handle container TaskExit", "the first attempt to handle an exit failed"),
    ("Failed to handle backOff event", "a further attempt failed"),
    ("shim disconnected", "a shim has gone"),
];

/// What the kernel writes.
const KERNEL: [(&str, &str); 1] =
    [("blocked for more than", "a task that is in an uninterruptible wait for so long, with its stack")];

/// Where to look for one incident.
pub(super) fn searches(
    record: &Record,
    diagnosis: Option<&Diagnosis>,
    until: Ns,
    clock: &Clock,
) -> Vec<LogSearch> {
    let from = record.since.saturating_sub(BEFORE);
    let until = record.ended.unwrap_or(until).saturating_add(AFTER);
    let moment = |at| Moment { at, time: clock.rfc3339(at) };
    let search = |of, means: Vec<(&'static str, &'static str)>, ids: &[String]| {
        let source = match of {
            "kernel" => "-k".to_owned(),
            unit => format!("-u {unit}"),
        };
        let words: Vec<&str> =
            means.iter().map(|(words, _)| *words).chain(ids.iter().map(String::as_str)).collect();
        let (since, to) = (journal_time(clock, from, 0), journal_time(clock, until, 1));
        let command = format!(
            "journalctl {source} -o short-iso-precise --since '{since}' --until '{to}' | grep -iE '{}'",
            words.join("|")
        );
        LogSearch { of, from: moment(from), until: moment(until), command, means }
    };
    // Hashes of names are in no log.
    let ids: Vec<String> = match record.redacted {
        true => Vec::new(),
        false => record.containers.iter().take(IDS).filter_map(|s| short(&s.id)).collect(),
    };
    let kinds: Vec<Kind> = diagnosis
        .iter()
        .flat_map(|d| {
            d.chain.links.iter().map(|l| l.operation.kind).chain(d.stuck_calls.iter().map(|c| c.id.kind))
        })
        .collect();
    let any = |of: &[Kind]| kinds.iter().any(|kind| of.contains(kind));
    let calls = any(&[Kind::Relist, Kind::CriClient, Kind::CriCall]);
    let mut containerd: Vec<(&str, &str)> = if calls { CALLS.to_vec() } else { Vec::new() };
    containerd.extend(EXITS);
    let mut out = Vec::new();
    if calls {
        out.push(search("kubelet", KUBELET.to_vec(), &[]));
    }
    out.push(search("containerd", containerd, &ids));
    let oldest = record.chain.iter().map(|s| s.age).max().unwrap_or(0).max(record.longest);
    if oldest >= HUNG {
        out.push(search("kernel", KERNEL.to_vec(), &[]));
    }
    out
}

/// As journalctl reads it, whatever the zone of the machine it runs on; `more` seconds later.
fn journal_time(clock: &Clock, at: Ns, more: u64) -> String {
    let utc = Clock { offset: 0, ..*clock };
    let time = utc.rfc3339(at.saturating_add(more * SECOND));
    match (time.get(..10), time.get(11..19)) {
        (Some(day), Some(clock)) => format!("{day} {clock} UTC"),
        // Not a time that journalctl could look for; nothing is found rather than everything.
        _ => "@0".to_owned(),
    }
}

/// An id as it may stand in a command: whatever it is called, it is nothing but letters and digits.
fn short(id: &str) -> Option<String> {
    let short: String = id.chars().take(12).collect();
    (short.len() >= 8 && short.chars().all(|c| c.is_ascii_alphanumeric())).then_some(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_utc_and_no_line_is_cut_off() {
        let clock =
            Clock { monotonic: 5 * SECOND, boottime: 0, realtime: 1_709_204_400_250_000_000, offset: 3_600 };
        assert_eq!(journal_time(&clock, 5 * SECOND, 0), "2024-02-29 11:00:00 UTC");
        assert_eq!(journal_time(&clock, 5 * SECOND, 1), "2024-02-29 11:00:01 UTC");
        assert_eq!(journal_time(&Clock { realtime: i64::MAX, ..clock }, u64::MAX, 0).len(), 23);
    }

    #[test]
    fn nothing_but_letters_and_digits_comes_into_a_command() {
        assert_eq!(short(&"0123456789abcdef".repeat(4)).as_deref(), Some("0123456789ab"));
        for hostile in ["'; rm -rf x; '", "$(reboot)abc", "a|b|c|d|e|f|g", "", "0123456é89ab"] {
            assert_eq!(short(hostile), None, "{hostile}");
        }
    }
}
