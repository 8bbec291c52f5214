//! An unmount that fails because somebody is in there: a process that works in the container's root file system, one
//! that has a file of it open, a mount below it. The runtime tries fifty times in 2.5 s, gives up, tries the exit again.

use super::said::{between, list, now};
use super::{Beyond, SECOND};
use crate::lab::containerd_log::Attempt;
use crate::lab::stories::language::Pin;
use crate::lab::stories::record::Record;
use crate::lab::sys::seconds;
use crate::lab::verdict::{Seen, Verdict};
use anyhow::{Context as _, Result};
use serde_json::Value;

/// How often the runtime calls umount2 in one attempt.
const CALLS: u64 = 50;

/// A container whose root file system is kept busy.
#[derive(Clone, Debug)]
pub struct Kept {
    how: Pin,
    pod: String,
    container: String,
    /// The lab's process that is in there; `None` for a mount.
    by: Option<u32>,
    exited: u64,
    reported: u64,
    attempts: Vec<Attempt>,
}

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug)]
pub struct Truth {
    kept: Vec<Kept>,
    released: u64,
}

impl Truth {
    /// What the record has of it.
    pub fn of(record: &Record) -> Result<Truth> {
        let pinned = record.pods.iter().filter_map(|pod| Some((pod, *pod.pins.first()?)));
        let kept = pinned.map(|(pod, (how, by))| {
            Ok(Kept {
                how,
                pod: pod.pod.clone(),
                container: pod.container.clone(),
                by,
                exited: pod.exited.context("a pod has not exited")?,
                reported: record.states.first(&pod.container, "EXITED").unwrap_or(u64::MAX),
                attempts: pod.attempts.clone(),
            })
        });
        Ok(Truth { kept: kept.collect::<Result<_>>()?, released: record.mark("Unpin")?.begin })
    }
}

impl Beyond for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        for one in &self.kept {
            let failed: Vec<String> = one
                .attempts
                .iter()
                .filter_map(|attempt| Some(seconds(attempt.failed?.saturating_sub(one.exited))))
                .collect();
            let busy = one
                .attempts
                .iter()
                .filter(|attempt| attempt.error.as_ref().is_some_and(|error| error.contains("busy")))
                .count();
            verdict.note(
                &format!("{}: attempts failed", one.pod),
                failed.join(", "),
                one.attempts.first().and_then(|attempt| attempt.error.clone()).unwrap_or_default(),
            );
            verdict.check(
                &format!("exit of {} reported", one.pod),
                "only when nobody is in there any more",
                format!(
                    "{} after it, {} after that; {busy} attempts failed with EBUSY",
                    seconds(one.reported.saturating_sub(one.exited)),
                    seconds(one.reported.saturating_sub(self.released))
                ),
                one.reported > self.released && busy >= 2 && one.reported - self.released < 30 * SECOND,
            );
        }
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        for one in &self.kept {
            one.said(self.released, frames, verdict);
        }
        let after = self.kept.iter().map(|one| one.reported).max().unwrap_or(0) + SECOND;
        let left = between(frames, after, u64::MAX)
            .filter(|(_, diagnosis)| self.kept.iter().any(|one| one.is_of(diagnosis)))
            .count();
        verdict.check("when all are reported", "nothing is stuck", format!("{left} diagnoses"), left == 0);
    }
}

impl Kept {
    fn is_of(&self, diagnosis: &Value) -> bool {
        list(diagnosis, "stuck_calls").any(|call| call["subject"]["id"] == self.container.as_str())
    }

    /// Whether the chain ends at this container; others may wait their turn behind its exit.
    fn ends_here(&self, diagnosis: &Value) -> bool {
        let last = diagnosis["chain"]["links"].as_array().and_then(|links| links.last());
        last.is_some_and(|link| link["subject"]["id"] == self.container.as_str())
    }

    fn said(&self, released: u64, frames: &[Seen], verdict: &mut Verdict) {
        let busy: Vec<(&Seen, &Value)> = between(frames, self.exited, released)
            .filter(|(_, diagnosis)| self.is_of(diagnosis) && self.ends_here(diagnosis))
            .map(|(seen, diagnosis)| (seen, &diagnosis["ends_in"]["MountBusy"]))
            .filter(|(_, busy)| !busy.is_null())
            .collect();
        let first = busy.first().map(|(seen, _)| now(seen).saturating_sub(self.exited));
        verdict.check(
            &format!("{}: the mount is busy", self.pod),
            "said within 2 s of the exit",
            first.map_or("never".to_owned(), |after| format!("{} after it", seconds(after))),
            first.is_some_and(|after| after <= 2 * SECOND),
        );
        // Fifty calls make an attempt; those in flight are not in the log yet.
        let most = |at: u64| {
            let begun = self.attempts.iter().filter(|one| one.begin.unwrap_or(0) <= at).count() as u64;
            begun * CALLS
        };
        let wrong = busy.iter().find(|(seen, busy)| {
            let failures = busy["failures"].as_u64().unwrap_or(0);
            failures < 1 || failures > most(now(seen))
        });
        verdict.check(
            "failures in a row",
            format!("at most {CALLS} for each of {} attempts", self.attempts.len()),
            match wrong {
                Some((seen, busy)) => {
                    format!("{} at {}", busy["failures"], seconds(now(seen).saturating_sub(self.exited)))
                }
                None => {
                    format!("up to {:?}", busy.iter().filter_map(|(_, one)| one["failures"].as_u64()).max())
                }
            },
            wrong.is_none() && !busy.is_empty(),
        );
        // Who it is is read from /proc after the first failures; each new attempt begins without knowing.
        let named = busy.iter().rev().find(|(_, busy)| list(busy, "pins").next().is_some());
        let pins: Vec<&Value> = named.map(|(_, busy)| list(busy, "pins").collect()).unwrap_or_default();
        let how = |pin: &Value| pin["how"].as_str().unwrap_or_default().to_owned();
        let right = pins.iter().any(|pin| match (self.how, self.by) {
            (Pin::WorksIn, Some(pid)) => pin["pid"] == pid && how(pin).contains("works in"),
            (Pin::HasOpen, Some(pid)) => pin["pid"] == pid && how(pin).contains("open"),
            _ => how(pin).contains("mount below"),
        });
        verdict.check(
            "by whom",
            format!("{:?}, process {:?}", self.how, self.by),
            pins.iter()
                .map(|pin| format!("{} {} {}", pin["pid"], pin["comm"], how(pin)))
                .collect::<Vec<_>>()
                .join(", "),
            right,
        );
    }
}
