//! A container is gone, and the runtime goes on saying that it runs: its handler of the exit gives up after ten seconds,
//! waits, tries again. Nobody updates containers, so no lock makes a list call wait: only the exits are late. One pod has
//! written the data and stays; another one exits and pays; a third exits beside it and waits as well.

use super::said::{self, between, consequences, kind, links, list, now};
use super::{Beyond, RATE, SECOND};
use crate::lab::containerd_log::Attempt;
use crate::lab::states::States;
use crate::lab::stories::record::{self, Record};
use crate::lab::sys::seconds;
use crate::lab::unmounts::Stay;
use crate::lab::verdict::{Seen, Verdict, variant};
use anyhow::{Context as _, Result};
use serde_json::Value;

/// How long containerd gives one attempt (`handleEventTimeout`).
const ATTEMPT: u64 = 10 * SECOND;

/// So late may plegscope be with a begin or an end.
const LAG: u64 = SECOND / 2;

/// A container that exits.
#[derive(Clone, Debug)]
pub struct Exit {
    pod: String,
    container: String,
    /// When its init process was gone, by `/proc`.
    exited: u64,
    /// When the runtime first said so.
    reported: u64,
    /// What the daemon logged of its attempts.
    attempts: Vec<Attempt>,
    /// Stays of its shim's threads in umount2.
    unmounts: Vec<Stay>,
}

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug)]
pub struct Truth {
    writer: String,
    /// MB that it writes.
    writes: u64,
    /// Unwritten bytes of the writer's pod and of the payer's when the payer was told to exit, by their `memory.stat`.
    dirty: [u64; 2],
    payer: Exit,
    bystander: Exit,
    device: String,
    states: States,
}

impl Truth {
    /// What the record has of it.
    pub fn of(record: &Record) -> Result<Truth> {
        let writer = record.pod("writer").context("there is no writer")?;
        let unwritten = |pod: Option<&record::Pod>| pod.map_or(0, |pod| pod.unwritten);
        Ok(Truth {
            writer: writer.pod.clone(),
            writes: writer.writes,
            dirty: [writer.unwritten, unwritten(record.pod("payer"))],
            payer: Exit::of(record, "payer")?,
            bystander: Exit::of(record, "bystander")?,
            device: record.device.clone(),
            states: record.states.clone(),
        })
    }
}

impl Exit {
    fn of(record: &Record, name: &str) -> Result<Exit> {
        let pod = record.pod(name).with_context(|| format!("there is no pod {name}"))?;
        Ok(Exit {
            pod: pod.pod.clone(),
            container: pod.container.clone(),
            exited: pod.exited.context("it has not exited")?,
            reported: record.states.first(&pod.container, "EXITED").unwrap_or(u64::MAX),
            attempts: pod.attempts.clone(),
            unmounts: pod.unmounts.clone(),
        })
    }

    /// Attempts that had failed by then.
    fn failed_by(&self, at: u64) -> usize {
        self.attempts.iter().filter(|one| one.failed.is_some_and(|failed| failed <= at)).count()
    }

    /// When its last unmount was over.
    fn unmounted(&self) -> Option<u64> {
        self.unmounts.iter().filter_map(|stay| stay.end).max()
    }

    fn late(&self) -> u64 {
        self.reported.saturating_sub(self.exited)
    }
}

impl Beyond for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        let takes = self.writes * (1 << 20) * SECOND / RATE;
        for exit in [&self.payer, &self.bystander] {
            let attempts: Vec<String> = exit
                .attempts
                .iter()
                .map(|one| {
                    let since = |at: Option<u64>| {
                        at.map_or("-".to_owned(), |at| seconds(at.saturating_sub(exit.exited)))
                    };
                    format!("{} to {}", since(one.begin), since(one.failed))
                })
                .collect();
            verdict.note(
                &format!("attempts for {}", exit.pod),
                attempts.join(", "),
                exit.attempts.first().and_then(|one| one.error.clone()).unwrap_or_default(),
            );
            verdict.check(
                &format!("exit of {} reported", exit.pod),
                format!("late, about {} after it", seconds(takes)),
                format!(
                    "{} after it, {} after its unmount",
                    seconds(exit.late()),
                    exit.unmounted().map_or("-".to_owned(), |end| seconds(exit.reported.saturating_sub(end)))
                ),
                exit.late() > 2 * ATTEMPT && exit.failed_by(u64::MAX) >= 2,
            );
        }
        verdict.check(
            "lists meanwhile",
            "none is slow",
            format!("longest {}", seconds(self.states.longest)),
            self.states.longest < 2 * SECOND,
        );
        verdict.check(
            "unwritten",
            format!("most of {} MB by {}", self.writes, self.writer),
            format!("{} and {} MB", self.dirty[0] >> 20, self.dirty[1] >> 20),
            self.dirty[0] > (self.writes << 20) / 2 && self.dirty[1] < 1 << 20,
        );
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        for (exit, other) in [(&self.payer, &self.bystander), (&self.bystander, &self.payer)] {
            exit.shown(frames, verdict);
            exit.counted(frames, verdict);
            exit.behind(other, frames, verdict);
            exit.told(frames, verdict);
        }
        self.leaf(frames, verdict);
        self.dirtied(frames, verdict);
        let unexplained = frames.last().and_then(|seen| seen.frame["relists"]["unexplained"].as_u64());
        let waiting = between(frames, self.payer.exited, self.payer.reported)
            .filter(|(_, diagnosis)| !diagnosis["not_ready"].is_null() || diagnosis["head"] == "ListCall")
            .count();
        verdict.check(
            "relists",
            "none is slow, the node stays ready",
            format!("{unexplained:?} unexplained, {waiting} diagnoses with one that waits"),
            unexplained == Some(0) && waiting == 0,
        );
    }
}

impl Exit {
    fn stuck<'d>(&self, diagnosis: &'d Value) -> Option<&'d Value> {
        list(diagnosis, "stuck_calls")
            .find(|call| call["head"] == "LateExit" && call["subject"]["id"] == self.container.as_str())
    }

    /// During its attempts and between them, with its age.
    fn shown(&self, frames: &[Seen], verdict: &mut Verdict) {
        let within = |from: u64, to: u64| {
            between(frames, from, to).filter(|(_, diagnosis)| self.stuck(diagnosis).is_some()).count()
        };
        let (mut during, mut between_them) = (0, 0);
        for (one, next) in self.attempts.iter().zip(self.attempts.iter().skip(1)) {
            let Some(failed) = one.failed else { continue };
            during += within(one.begin.unwrap_or(self.exited), failed);
            between_them += within(failed + LAG, next.begin.unwrap_or(failed));
        }
        verdict.check(
            &format!("exit of {} shown", self.pod),
            "during the attempts, and between them",
            format!("in {during} frames, in {between_them}"),
            during > 0 && between_them > 0,
        );
        let last = between(frames, self.exited, self.reported)
            .filter_map(|(seen, diagnosis)| Some((seen, self.stuck(diagnosis)?)))
            .last();
        verdict.duration(
            "its age, when seen last",
            last.map(|(seen, _)| now(seen).saturating_sub(self.exited)),
            last.and_then(|(_, call)| call["age"].as_u64()),
        );
    }

    /// The attempts, where its chain is drawn and where they are told as a consequence; a moment after each begin and
    /// end is left to plegscope.
    fn counted(&self, frames: &[Seen], verdict: &mut Verdict) {
        let mut compared = 0;
        let mut wrong = Vec::new();
        for seen in frames.iter().filter(|seen| (self.exited..self.reported).contains(&now(seen))) {
            let at = now(seen);
            let moments = self.attempts.iter().flat_map(|one| [one.begin, one.failed]);
            if at < self.exited + LAG || moments.flatten().any(|moment| at.abs_diff(moment) < LAG) {
                continue;
            }
            let begun = self.attempts.iter().filter(|one| one.begin.unwrap_or(0) <= at).count();
            let in_flight = self.failed_by(at) < begun;
            let mine = |of: &Value| of["id"] == self.container.as_str();
            let drawn = list(&seen.frame, "diagnoses")
                .filter_map(|diagnosis| links(diagnosis).next())
                .filter(|head| kind(head) == "ExitHandling" && mine(&head["subject"]))
                .map(|head| &head["exit"])
                .map(|exit| (exit, exit["begun"] == begun && exit["in_flight"] == in_flight));
            let told = consequences(&seen.frame, "ExitLate")
                .filter(|late| mine(&late["of"]))
                .map(|late| (late, late["attempts"] == begun));
            for (said, right) in drawn.chain(told) {
                compared += 1;
                if !right {
                    wrong.push(format!("{said} at {}, not {begun}", seconds(at - self.exited)));
                }
            }
        }
        verdict.check(
            "its attempts",
            format!("{} in the daemon's log", self.attempts.len()),
            match wrong.last() {
                None => format!("the same in {compared} places"),
                Some(last) => format!("otherwise in {} of {compared} places: {last}", wrong.len()),
            },
            compared > 0 && wrong.is_empty(),
        );
    }

    /// While one is due and the other's attempt lasts, it waits behind that: one goroutine makes them all.
    fn behind(&self, other: &Exit, frames: &[Seen], verdict: &mut Verdict) {
        let (mut held, mut said, mut seen_in) = (0, 0, 0);
        for (failures, (one, next)) in self.attempts.iter().zip(self.attempts.iter().skip(1)).enumerate() {
            let (Some(failed), Some(begin)) = (one.failed, next.begin) else { continue };
            // The back-off begins with a second and doubles; it is looked at once a second.
            let due = failed + (SECOND << failures) + SECOND;
            for attempt in other.attempts.iter().skip(1) {
                let from = due.max(attempt.begin.unwrap_or(u64::MAX).saturating_add(LAG));
                let to = begin.min(attempt.failed.unwrap_or(other.reported)).saturating_sub(LAG);
                held += to.saturating_sub(from);
                for (_, diagnosis) in between(frames, from, to) {
                    seen_in += usize::from(self.stuck(diagnosis).is_some());
                    said += usize::from(self.stuck(diagnosis).is_some() && other.stuck(diagnosis).is_some());
                }
            }
        }
        verdict.check(
            "behind the other's attempt",
            format!("for {}", seconds(held)),
            format!("in {said} of {seen_in} frames"),
            // Less than a frame's distance may go unseen.
            said == seen_in && (said > 0 || held < 2 * SECOND),
        );
    }

    /// What has come of it, when all is over.
    fn told(&self, frames: &[Seen], verdict: &mut Verdict) {
        let told = frames
            .iter()
            .rev()
            .flat_map(|seen| consequences(&seen.frame, "ExitLate"))
            .find(|late| late["of"]["id"] == self.container.as_str() && late["reported"] == true);
        verdict.duration(
            "its exit reported late by",
            Some(self.late()),
            told.and_then(|late| late["late"].as_u64()),
        );
        verdict.check(
            "after attempts",
            self.attempts.len().to_string(),
            told.map_or("-".to_owned(), |late| late["attempts"].to_string()),
            told.is_some_and(|late| late["attempts"] == self.attempts.len()),
        );
    }
}

impl Truth {
    /// What it all ends in.
    fn leaf(&self, frames: &[Seen], verdict: &mut Verdict) {
        let mut named: Vec<(String, usize)> = Vec::new();
        for (_, diagnosis) in between(frames, self.payer.exited + SECOND, self.payer.reported)
            .filter(|(_, diagnosis)| self.payer.stuck(diagnosis).is_some())
        {
            let (name, detail) = variant(&diagnosis["ends_in"]);
            let name = format!("{name} {}", said::device(detail).unwrap_or_default());
            match named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => named.push((name, 1)),
            }
        }
        let right = [format!("UnmountSync {}", self.device), format!("Unmount {}", self.device)];
        let total: usize = named.iter().map(|(_, count)| count).sum();
        let agreed: usize =
            named.iter().filter(|(name, _)| right.contains(name)).map(|(_, count)| count).sum();
        verdict.check(
            "ends in",
            right[0].as_str(),
            named.iter().map(|(name, count)| format!("{name}: {count}")).collect::<Vec<_>>().join(", "),
            // An attempt that has just begun something else may show no more for a poll.
            total > 0 && agreed * 4 >= total * 3,
        );
    }

    /// Who has written what the payer pays for.
    fn dirtied(&self, frames: &[Seen], verdict: &mut Verdict) {
        let said = between(frames, self.payer.exited, self.payer.reported)
            .filter_map(|(_, diagnosis)| list(diagnosis, "dirtied_by").next())
            .max_by_key(|first| first["bytes"].as_u64());
        let pod = said.map_or("-", |first| first["source"]["Container"]["pod"].as_str().unwrap_or("-"));
        let bytes = said.and_then(|first| first["bytes"].as_u64()).unwrap_or(0);
        verdict.check(
            "dirtied by, first",
            format!("{}, {} MB at the exit", self.writer, self.dirty[0] >> 20),
            format!("{pod}, {} MB", bytes >> 20),
            pod == self.writer && bytes > self.dirty[0] / 2 && bytes <= self.dirty[0] + self.dirty[0] / 20,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attempt(begin: Option<u64>, failed: Option<u64>) -> Attempt {
        let ns = |at: u64| at * SECOND;
        Attempt {
            container: String::new(),
            begin: begin.map(ns),
            failed: failed.map(ns),
            error: failed.map(|_| "context deadline exceeded".to_owned()),
        }
    }

    fn exit(name: &str, exited: u64, attempts: Vec<Attempt>, reported: u64) -> Exit {
        Exit {
            pod: name.to_owned(),
            container: name.to_owned(),
            exited: exited * SECOND,
            reported: reported * SECOND,
            attempts,
            unmounts: Vec::new(),
        }
    }

    /// As it really went: the retries of one wait behind those of the other.
    fn truth() -> Truth {
        let payer = vec![attempt(None, Some(110)), attempt(Some(112), Some(122)), attempt(Some(132), None)];
        let bystander =
            vec![attempt(None, Some(113)), attempt(Some(122), Some(132)), attempt(Some(137), None)];
        Truth {
            writer: "writer".to_owned(),
            writes: 70,
            dirty: [70 << 20, 0],
            payer: exit("payer", 100, payer, 137),
            bystander: exit("bystander", 103, bystander, 138),
            device: "7:0".to_owned(),
            states: States::default(),
        }
    }

    fn frame(truth: &Truth, at: u64) -> Seen {
        let at = at * SECOND;
        let open = |exit: &&Exit| at > exit.exited && at < exit.reported;
        let exits = [&truth.payer, &truth.bystander];
        let begun = |exit: &Exit| exit.attempts.iter().filter(|one| one.begin.unwrap_or(0) <= at).count();
        let calls: Vec<Value> = exits
            .into_iter()
            .filter(open)
            .map(|exit| {
                json!({"head": "LateExit", "subject": {"id": exit.container}, "age": at - exit.exited})
            })
            .collect();
        let late: Vec<Value> = exits
            .into_iter()
            .filter(|exit| at > exit.exited)
            .map(|exit| {
                let late = at.min(exit.reported) - exit.exited;
                let reported = at >= exit.reported;
                let of = json!({"id": exit.container});
                let attempts = begun(exit);
                json!({"what": {"ExitLate": {"of": of, "late": late, "attempts": attempts, "reported": reported}}})
            })
            .collect();
        let device = json!({"device": {"major": 7, "minor": 0}});
        let diagnosis = json!({
            "stuck_calls": calls,
            "chain": {"links": []},
            "ends_in": {"UnmountSync": {"device": device}},
            "dirtied_by": [{"source": {"Container": {"pod": "writer"}}, "bytes": 69 << 20}],
            "head": "LateExit",
            "not_ready": null,
        });
        let diagnoses = if calls.is_empty() { json!([]) } else { json!([diagnosis]) };
        let frame = json!({
            "now": at, "diagnoses": diagnoses, "incidents": [{"consequences": late}],
            "relists": {"unexplained": 0},
        });
        Seen { at, frame }
    }

    fn judged(change: impl Fn(&mut Value)) -> Verdict {
        let truth = truth();
        let frames: Vec<Seen> = (101..140)
            .map(|at| {
                let mut seen = frame(&truth, at);
                change(&mut seen.frame);
                seen
            })
            .collect();
        let mut verdict = Verdict::default();
        truth.said(&frames, &mut verdict);
        verdict
    }

    fn wrong(change: impl Fn(&mut Value)) -> Vec<String> {
        let wrong = judged(change).0.into_iter().filter(|check| check.agree == Some(false));
        wrong.map(|check| check.what).collect()
    }

    #[test]
    fn what_went_as_it_was_said_passes() {
        let verdict = judged(|_| {});
        assert_eq!(verdict.failures(), 0, "\n{}", verdict.table());
    }

    #[test]
    fn an_exit_that_is_forgotten_between_attempts_fails() {
        let wrong = wrong(|frame| {
            let at = frame["now"].as_u64().unwrap_or(0) / SECOND;
            let between = (110..=112).contains(&at) || (122..=132).contains(&at);
            if let Some(first) = frame["diagnoses"].get_mut(0).filter(|_| between)
                && let Some(calls) = first["stuck_calls"].as_array_mut()
            {
                calls.retain(|call| call["subject"]["id"] != "payer");
            }
        });
        assert!(wrong.contains(&"exit of payer shown".to_owned()), "{wrong:?}");
        assert!(wrong.contains(&"behind the other's attempt".to_owned()), "{wrong:?}");
    }

    #[test]
    fn a_wrong_count_a_wrong_pod_and_a_wrong_device_fail() {
        let count = |frame: &mut Value| {
            frame["incidents"][0]["consequences"][0]["what"]["ExitLate"]["attempts"] = json!(7);
        };
        assert_eq!(wrong(count), ["its attempts", "after attempts"]);
        let pod = |frame: &mut Value| {
            if let Some(first) = frame["diagnoses"].get_mut(0) {
                first["dirtied_by"][0]["source"]["Container"]["pod"] = json!("payer");
            }
        };
        assert_eq!(wrong(pod), ["dirtied by, first"]);
        let device = |frame: &mut Value| {
            if let Some(first) = frame["diagnoses"].get_mut(0) {
                first["ends_in"]["UnmountSync"]["device"]["device"]["minor"] = json!(1);
            }
        };
        assert_eq!(wrong(device), ["ends in"]);
    }
}
