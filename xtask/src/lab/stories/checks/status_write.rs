//! Not this chain: all of the daemon's files lie on the slow disk, and what it writes down of a container under that
//! container's Status lock waits behind the data that a pod syncs. The relist hangs at the same lock as ever, but no container exits,
//! nothing is unmounted, and no shim takes part.

use super::said::{between, kind, links, now};
use super::{Beyond, SECOND};
use crate::lab::kubelet_like::Call;
use crate::lab::stories::record::Record;
use crate::lab::sys::seconds;
use crate::lab::unmounts::Stay;
use crate::lab::verdict::{self, Seen, Verdict};
use anyhow::{Context as _, Result};
use serde_json::Value;

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug)]
pub struct Truth {
    containerd: u32,
    calls: Vec<Call>,
    /// Stays of the daemon's threads in calls that write, 100 ms and more.
    writes: Vec<Stay>,
    /// The same in umount2: none.
    unmounts: Vec<Stay>,
}

impl Truth {
    /// What the record has of it.
    pub fn of(record: &Record) -> Result<Truth> {
        let long = |stay: &&Stay| stay.end.is_some_and(|end| end - stay.begin > SECOND / 10);
        let (unmounts, writes) =
            record.daemon.iter().filter(long).cloned().partition(|stay| stay.call == libc::SYS_umount2);
        let containerd = *record.containerd.last().context("no daemon")?;
        Ok(Truth { containerd, calls: record.calls.clone(), writes, unmounts })
    }
}

impl Truth {
    fn longest(&self, method: &str) -> Option<&Call> {
        self.calls.iter().filter(|call| call.method == method).max_by_key(|call| call.age(call.begin))
    }
}

impl Beyond for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        let longest = |method| self.longest(method).map_or(0, |call| call.age(call.begin));
        verdict.check(
            "relist",
            "slow",
            format!("longest {}", seconds(longest("relist"))),
            longest("relist") > 3 * SECOND,
        );
        verdict.check(
            "update",
            "at least as long",
            format!("longest {}", seconds(longest("UpdateContainerResources"))),
            longest("UpdateContainerResources") > 3 * SECOND,
        );
        let waits: Vec<String> = self
            .writes
            .iter()
            .map(|stay| format!("call {} for {}", stay.call, seconds(stay.end.unwrap_or(0) - stay.begin)))
            .collect();
        verdict.check(
            "the daemon's threads",
            "wait in calls that write, in no unmount",
            format!("{}; {} unmounts", waits.join(", "), self.unmounts.len()),
            !self.writes.is_empty() && self.unmounts.is_empty(),
        );
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        let Some(list_call) = self.longest("ListContainers") else { return };
        let (begin, end) = (list_call.begin, list_call.end.unwrap_or(u64::MAX));
        let is_ours = |diagnosis: &Value| {
            links(diagnosis).next().is_some_and(|head| {
                head["operation"]["method"] == "ListContainers" && head["who"]["pid"] == self.containerd
            })
        };
        let ours: Vec<(&Seen, &Value)> =
            between(frames, begin, end).filter(|(_, diagnosis)| is_ours(diagnosis)).collect();
        let first = ours.first().map(|(seen, _)| now(seen).saturating_sub(begin));
        verdict.check(
            "shown while it lasts",
            "within 1 s of the block",
            first.map_or("never".to_owned(), |after| format!("{} after it", seconds(after))),
            first.is_some_and(|after| after <= SECOND),
        );
        // What the update does behind its write, while the list still waits, is another matter.
        let writes = |seen: &Seen| self.writes.iter().any(|stay| stay.surely_at(now(seen)));
        let Some((seen, diagnosis)) = ours.iter().rev().find(|(seen, _)| writes(seen)) else {
            verdict.check("shown while the daemon writes", "yes", "no", false);
            return;
        };
        let status = links(diagnosis).any(|link| link["lock"]["name"] == "Status");
        let unmount = links(diagnosis).any(|link| kind(link) == "Unmount");
        verdict.check(
            "chain",
            "ListContainers > Status lock > UpdateContainerResources, no unmount",
            verdict::words(diagnosis),
            status && !unmount,
        );
        verdict.duration(
            "age of ListContainers",
            Some(now(seen) - begin),
            links(diagnosis).next().and_then(|link| link["age"].as_u64()),
        );
        verdict.check(
            "ends in",
            "StatusWrite",
            diagnosis["ends_in"].to_string(),
            diagnosis["ends_in"] == "StatusWrite",
        );
        let because = diagnosis["not_this_chain"].as_str();
        verdict.check(
            "not this chain",
            "no unmount is in flight",
            because.unwrap_or("-"),
            because.is_some_and(|because| because.contains("no unmount")),
        );
        let relists = frames.last().map_or(&Value::Null, |seen| &seen.frame["relists"]);
        verdict.check(
            "slow relists",
            "all explained",
            format!("{} explained, {} not", relists["explained"], relists["unexplained"]),
            relists["explained"].as_u64() > Some(0) && relists["unexplained"] == 0,
        );
    }
}
