//! An unmount in the daemon itself: when it creates a container it mounts the new file system for a moment, to read
//! users and groups and to copy what the image has in a `VOLUME`, and unmounts it. On a disk with much to write that
//! unmount waits like any other, and with it the creation of the container. No shim takes part.
//!
//! Newer versions mount it read-only (containerd pull request 6478), and the kernel does not sync what could not be
//! written: with 1.6.20 the same story creates the container in 13 ms, with 1.4.13 in 14.7 s. So it is played with 1.4.

use super::said::{self, between, kind, links, list, now};
use super::{Beyond, RATE, SECOND};
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
    /// MB that are dirty when it is created.
    dirty: u64,
    device: String,
    /// Begin and end of the call to create the container.
    call: (u64, u64),
    /// Stays of the daemon's threads in umount2.
    unmounts: Vec<Stay>,
    /// How long the longest list took meanwhile.
    longest_list: u64,
}

impl Truth {
    /// What the record has of it.
    pub fn of(record: &Record) -> Result<Truth> {
        let unmounts = record.daemon.iter().filter(|stay| stay.call == libc::SYS_umount2);
        Ok(Truth {
            containerd: *record.containerd.last().context("no daemon")?,
            dirty: record.pods.iter().map(|pod| pod.writes).sum(),
            device: record.device.clone(),
            call: record.created.first().context("nothing was created")?.call,
            unmounts: unmounts.cloned().collect(),
            longest_list: record.states.longest,
        })
    }
}

impl Beyond for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        let takes = self.dirty * (1 << 20) * SECOND / RATE;
        let took = self.call.1 - self.call.0;
        let stays: Vec<String> = self
            .unmounts
            .iter()
            .map(|stay| {
                format!(
                    "{} to {}",
                    seconds(stay.begin.saturating_sub(self.call.0)),
                    stay.end.map_or("-".to_owned(), |end| seconds(end.saturating_sub(self.call.0)))
                )
            })
            .collect();
        let inside: u64 =
            self.unmounts.iter().filter_map(|stay| Some(stay.end? - stay.begin)).max().unwrap_or(0);
        verdict.check(
            "CreateContainer",
            format!("about {}, in the daemon's unmount", seconds(takes)),
            format!("{}; in umount2: {}", seconds(took), stays.join(", ")),
            inside > takes / 3 && took > takes / 2,
        );
        verdict.note("lists meanwhile", format!("longest {}", seconds(self.longest_list)), "");
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        let (begin, end) = self.call;
        let is_ours = |diagnosis: &Value| {
            links(diagnosis).next().is_some_and(|head| {
                kind(head) == "CriCall"
                    && head["operation"]["method"] == "CreateContainer"
                    && head["who"]["pid"] == self.containerd
            })
        };
        let ours: Vec<(&Seen, &Value)> =
            between(frames, begin, end).filter(|(_, diagnosis)| is_ours(diagnosis)).collect();
        let first = ours.first().map(|(seen, _)| now(seen).saturating_sub(begin));
        verdict.check(
            "shown while it lasts",
            "within 1.5 s",
            first.map_or("never".to_owned(), |after| format!("{} after its begin", seconds(after))),
            first.is_some_and(|after| after <= SECOND + SECOND / 2),
        );
        // For a moment after its unmount the call goes on.
        let unmounts = |seen: &Seen| self.unmounts.iter().find(|stay| stay.surely_at(now(seen)));
        let found = ours.iter().rev().find_map(|(seen, diagnosis)| Some((seen, diagnosis, unmounts(seen)?)));
        let Some((seen, diagnosis, stay)) = found else {
            verdict.check("shown while the daemon unmounts", "yes", "no", false);
            return;
        };
        let unmount = links(diagnosis).find(|link| kind(link) == "Unmount");
        let shims = links(diagnosis).any(|link| link["who"]["pid"] != self.containerd);
        verdict.check(
            "chain",
            format!("CreateContainer > Unmount, all in containerd {}", self.containerd),
            verdict::words(diagnosis),
            unmount.is_some() && !shims,
        );
        verdict.duration(
            "age of the call",
            Some(now(seen) - begin),
            links(diagnosis).next().and_then(|link| link["age"].as_u64()),
        );
        verdict.duration(
            "age of the unmount",
            Some(now(seen) - stay.begin),
            unmount.and_then(|link| link["age"].as_u64()),
        );
        let (name, detail) = verdict::variant(&diagnosis["ends_in"]);
        let device = said::device(detail);
        verdict.check(
            "ends in",
            format!("UnmountSync or Unmount {}", self.device),
            format!("{name} {device:?}"),
            ["UnmountSync", "Unmount"].contains(&name)
                && device.as_ref().is_none_or(|device| *device == self.device),
        );
        let cause = list(&seen.frame, "incidents")
            .find(|incident| incident["id"] == diagnosis["incident"])
            .and_then(|incident| incident["cause"].as_str());
        verdict.check(
            "in words",
            "containerd's own unmount, at create",
            cause.unwrap_or("-"),
            cause.is_some_and(|cause| cause.contains("containerd's own") && cause.contains("create")),
        );
        let left = between(frames, end + SECOND, u64::MAX).filter(|(_, one)| is_ours(one)).count();
        verdict.check("when it is created", "nothing is stuck", format!("{left} diagnoses"), left == 0);
    }
}
