//! What only a kernel with all of its own probes shows: each probe as planned, and chains that end in the sync of a device.
//!
//! Truth: the kernel's own lists of what is attached, and the kernel stacks of the shim's thread.

use super::checks::said::{device, kind, links, list, now};
use super::language::{Pin, Step, Story};
use super::record::{Interval, Pod, Record};
use crate::lab::attached::Attached;
use crate::lab::checks::Verdict;
use crate::lab::sys::seconds;
use crate::lab::verdict::{self, Seen, variant};
use std::collections::{BTreeMap, BTreeSet};

/// The first frames of an unmount may come before its sync has lasted as long as it must to be told, ns.
const AT_FIRST: u64 = 1_500_000_000;
/// Sights of the kernel, as operations are called in frames, and as the plan calls what sees them.
const KERNEL: [(&str, &str); 3] =
    [("Unmount", "unmount"), ("SuperShutdown", "super-block shutdown"), ("Sync", "sync with device")];
/// What sees an unmount where nothing in the kernel does: a probe in the program.
const IN_PROGRAMS: &str = "Uprobe";
/// What a thread does in a sync, by its kernel stack.
const SYNC: &str = "sync_filesystem";

/// A story on such a kernel.
pub struct Whole<'r> {
    story: &'r Story,
    record: &'r Record,
    frames: Vec<Seen>,
    /// What was attached, and what it saw.
    pub attached: Attached,
    /// Frames in which the chain ends in the sync of the slow disk, of those in which it must.
    pub to_device: Option<(usize, usize)>,
}

impl Whole<'_> {
    /// Gathers it.
    pub fn of<'r>(story: &'r Story, record: &'r Record) -> Whole<'r> {
        let frames: Vec<Seen> = record.runs.iter().flat_map(|run| verdict::frames(&run.lines)).collect();
        let mut attached = record.attached.clone().unwrap_or_default();
        attached.seen_by = seen_by(&frames);
        Whole { story, record, frames, attached, to_device: None }
    }

    /// Holds it against the truth.
    pub fn judge(&mut self) -> Verdict {
        let mut verdict = Verdict::default();
        self.probes(&mut verdict);
        let syncs =
            self.story.expect.chains.iter().any(|one| one.ends_in.iter().any(|end| end == "UnmountSync"));
        if syncs {
            self.syncs(&mut verdict);
        }
        if self.story.steps.iter().any(|step| matches!(step, Step::Exit(pods) if pods.len() > 1)) {
            self.queue(&mut verdict);
        }
        self.shutdowns(&mut verdict);
        verdict
    }

    /// Of several unmounts that sync one super block, all but one queue for a lock of the kernel: a chain must end in the one that
    /// holds it, and goes on to it from another only while that one queues.
    fn queue(&self, verdict: &mut Verdict) {
        let queued: Vec<(u32, u64, u64)> = self
            .record
            .pods
            .iter()
            .flat_map(|pod| pod.unmounts.iter().filter_map(|stay| Some((pod.shim, stay.queued?))))
            .map(|(shim, (from, to))| (shim, from, to))
            .collect();
        verdict.check(
            "unmounts in a queue for the kernel's lock",
            queued
                .iter()
                .map(|(shim, from, to)| format!("shim {shim} for {} and more", seconds(to - from)))
                .collect::<Vec<_>>()
                .join(", "),
            "",
            !queued.is_empty(),
        );
        let (mut right, mut wrong) = (0, 0);
        let (mut at_holder, mut at_queued) = (0, 0);
        let shim = |link: &serde_json::Value| link["who"]["pid"].as_u64();
        for seen in &self.frames {
            let at = now(seen);
            for diagnosis in list(&seen.frame, "diagnoses") {
                let unmounts: Vec<_> = links(diagnosis).filter(|link| kind(link) == "Unmount").collect();
                if let Some(last) = unmounts.last() {
                    let surely =
                        |from: u64, to: u64| (from + AT_FIRST..=to.saturating_sub(AT_FIRST)).contains(&at);
                    let all = queued.iter().filter(|(_, from, to)| surely(*from, *to));
                    let pids: Vec<u64> = all.map(|(pid, ..)| u64::from(*pid)).collect();
                    match shim(last).is_some_and(|pid| pids.contains(&pid)) {
                        true => at_queued += 1,
                        false => at_holder += usize::from(!pids.is_empty()),
                    }
                }
                for pair in unmounts.windows(2) {
                    let by_lock =
                        matches!(pair[1]["edge"]["kind"].as_str(), Some("SameSuperBlock" | "SameDevice"));
                    let queues = queued.iter().any(|(pid, from, to)| {
                        shim(pair[0]) == Some(u64::from(*pid))
                            && (from.saturating_sub(AT_FIRST)..=to + AT_FIRST).contains(&at)
                    });
                    match by_lock && queues && shim(pair[0]) != shim(pair[1]) {
                        true => right += 1,
                        false => wrong += 1,
                    }
                }
            }
        }
        verdict.check(
            "one unmount waits for another",
            "only while the kernel's stack says so",
            format!("in {right} chains, in {wrong} more where it does not"),
            wrong == 0,
        );
        verdict.check(
            "chains end in the one that holds the lock",
            "always",
            format!("{at_holder}, {at_queued} in one that queues"),
            at_holder > 0 && at_queued == 0,
        );
    }

    /// A super block that goes with the last process of its namespace: no unmount call leads to that, and it is seen.
    fn shutdowns(&self, verdict: &mut Verdict) {
        let pinned = |pod: &&Pod| pod.pins.iter().any(|(how, _)| *how == Pin::InNamespace);
        for pod in self.record.pods.iter().filter(pinned) {
            let Some((from, to)) = pod.unpinned.first().copied() else { continue };
            let (mut frames, mut worst) = (0, None::<(u64, u64)>);
            for seen in self.frames.iter().filter(|seen| (from + AT_FIRST..=to).contains(&now(seen))) {
                let shutdown =
                    list(&seen.frame, "in_flight").find(|one| one["operation"]["kind"] == "SuperShutdown");
                let Some(begin) = shutdown.and_then(|one| one["operation"]["begin"].as_u64()) else {
                    continue;
                };
                frames += 1;
                let (truth, said) = (now(seen) - from, now(seen).saturating_sub(begin));
                if worst.is_none_or(|(a, b)| truth.abs_diff(said) > a.abs_diff(b)) {
                    worst = Some((truth, said));
                }
            }
            let (truth, said) = worst.unwrap_or_default();
            verdict.check(
                &format!("shutdown of {}'s super block, without an unmount call", pod.name),
                format!("{} after the kill of who kept it", seconds(truth)),
                format!("{} old at the worst, in {frames} frames", seconds(said)),
                frames > 0 && truth.abs_diff(said) <= 200_000_000,
            );
        }
    }

    /// The plan against the kernel's lists.
    fn probes(&self, verdict: &mut Verdict) {
        let attached = &self.attached;
        verdict.check(
            "a plan of probes",
            "some",
            format!("{} on {}", attached.planned.len(), attached.kernel),
            !attached.planned.is_empty(),
        );
        let (fentry, kprobe) = (attached.sites("Fentry"), attached.sites("Kprobe"));
        verdict.check(
            "fentry, fexit",
            format!("{} links in the kernel", attached.count("tracing")),
            format!("{fentry} planned"),
            attached.count("tracing") == fentry,
        );
        verdict.check(
            "kprobes",
            format!("{} in the kernel", attached.kprobes),
            format!("{kprobe} planned"),
            attached.kprobes == kprobe,
        );
        // A uprobe has a link or a perf event of its own, or shares a link with others; a kprobe has one of its own.
        let (tracepoint, uprobe) = (attached.sites("Tracepoint"), attached.sites("Uprobe"));
        let events =
            ["perf_event", "perf", "raw_tracepoint"].map(|kind| attached.count(kind)).iter().sum::<u32>();
        let many = attached.count("uprobe_multi");
        let right = match many {
            0 => events == tracepoint + kprobe + uprobe,
            _ => events == tracepoint + kprobe && many <= uprobe,
        };
        verdict.check(
            "tracepoints and uprobes",
            format!("{events} links and perf events, {many} links of many in the kernel"),
            format!("{tracepoint} tracepoints, {kprobe} kprobes and {uprobe} uprobes planned"),
            right,
        );
        for (kind, sight) in KERNEL {
            let Some(seen_by) = attached.seen_by.get(kind) else { continue };
            let planned = attached.planned.iter().find(|probe| probe.what == sight);
            let planned =
                planned.and_then(|probe| probe.how.as_deref()).or((kind == "Unmount").then_some(IN_PROGRAMS));
            verdict.check(
                &format!("{kind} seen by"),
                "what was planned",
                format!("{}, {} planned", seen_by.join(", "), planned.unwrap_or("nothing")),
                seen_by.iter().all(|how| Some(how.as_str()) == planned),
            );
        }
        for probe in attached.planned.iter().filter(|probe| probe.how.is_none()) {
            verdict.note(&probe.what, "", format!("cannot be had: {}", probe.note));
        }
    }

    /// When the kernel had a shim's thread in a sync of its unmount: pods' long unmounts with that on their stacks.
    fn intervals(&self) -> Vec<(u32, Interval)> {
        let of = |pod: &Pod| {
            // Of a function that the compiler has split the kernel names the part: `sync_filesystem.part.0`.
            let is = |function: &String| function.split('.').next() == Some(SYNC);
            let synced = pod.unmounts.iter().any(|stay| stay.waits_in.iter().any(is));
            let all = self.record.blocked_unmount(pod)?;
            synced.then_some((pod.shim, all))
        };
        self.record.pods.iter().filter_map(of).collect()
    }

    /// Chains that end in a shim's unmount must lead on to the sync, and to the device.
    fn syncs(&mut self, verdict: &mut Verdict) {
        let intervals = self.intervals();
        verdict.check(
            "unmounts with a sync on the kernel's stack",
            format!("{} pods", intervals.len()),
            "",
            !intervals.is_empty(),
        );
        let (mut of, mut right, mut wrong_ages, mut worst) = (0, 0, 0, None::<(u64, u64)>);
        let mut others = BTreeSet::new();
        for seen in &self.frames {
            let at = now(seen);
            let during = |one: &Interval| one.begin + AT_FIRST <= at && at <= one.end;
            for diagnosis in list(&seen.frame, "diagnoses") {
                let Some(unmount) = links(diagnosis).find(|link| kind(link) == "Unmount") else { continue };
                let shim = unmount["who"]["pid"].as_u64();
                let Some((_, interval)) =
                    intervals.iter().find(|(pid, one)| shim == Some(u64::from(*pid)) && during(one))
                else {
                    continue;
                };
                of += 1;
                let (end, what) = variant(&diagnosis["ends_in"]);
                let sync = links(diagnosis).find(|link| matches!(kind(link), "Sync" | "SuperShutdown"));
                if end != "UnmountSync"
                    || device(what).as_deref() != Some(&self.record.device)
                    || sync.is_none()
                {
                    others.insert(format!("{end} {}", device(what).unwrap_or_default()));
                    continue;
                }
                right += 1;
                let truth = at - interval.begin;
                let said = sync.and_then(|link| link["age"].as_u64()).unwrap_or(0);
                wrong_ages += usize::from(!verdict::close(truth, said) && truth.abs_diff(said) > 100_000_000);
                if worst.is_none_or(|(a, b)| truth.abs_diff(said) > a.abs_diff(b)) {
                    worst = Some((truth, said));
                }
            }
        }
        self.to_device = Some((right, of));
        verdict.check(
            "ends in the sync of the slow disk",
            format!("{} in all {of} frames of the unmount", self.record.device),
            format!(
                "in {right}{}",
                if others.is_empty() { String::new() } else { format!("; else {others:?}") }
            ),
            right == of && of > 0,
        );
        let (truth, said) = worst.unwrap_or_default();
        verdict.check(
            "age of the sync",
            format!("{} at the worst (its unmount's)", seconds(truth)),
            format!("{}, {wrong_ages} of {right} frames too far off", seconds(said)),
            wrong_ages == 0 && right > 0,
        );
    }
}

/// What saw the kernel's operations, in any frame.
fn seen_by(frames: &[Seen]) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let operations = frames.iter().flat_map(|seen| list(&seen.frame, "diagnoses")).flat_map(links);
    for link in operations.filter(|link| KERNEL.iter().any(|(one, _)| *one == kind(link))) {
        let how = link["operation"]["seen_by"].as_str().or(link["operation"]["seen_by"]["how"].as_str());
        if let Some(how) = how {
            all.entry(kind(link).to_owned()).or_default().insert(how.to_owned());
        }
    }
    all.into_iter().map(|(kind, how)| (kind, how.into_iter().collect())).collect()
}
