//! The daemon does not run: first its group is frozen, later it gets next to no CPU. Nothing is unmounted, no lock is
//! held; the relist is slow all the same.

use super::said::{kind, links, list, now};
use super::{Beyond, SECOND};
use crate::lab::kubelet_like::Call;
use crate::lab::stories::record::Record;
use crate::lab::sys::seconds;
use crate::lab::verdict::{Seen, Verdict};
use anyhow::{Context as _, Result};
use serde_json::Value;

/// A call that lasts longer is an incident (`--cri-over`, `--relist-over`), ns.
const THRESHOLD: u64 = 5 * SECOND;
/// How far the clocks of the caller and of the daemon may be apart, ns: the daemon begins late where it gets no CPU time.
const CLOCKS: u64 = SECOND;

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug)]
pub struct Truth {
    containerd: u32,
    /// The real kubelet, when one made the calls.
    kubelet: Option<u32>,
    frozen: (u64, u64),
    starved: (u64, u64),
    /// Periods in which the daemon had to wait for CPU time, and how long in all (ns), by the kernel.
    throttled: (u64, u64),
    calls: Vec<Call>,
}

impl Truth {
    /// What the record has of it.
    pub fn of(record: &Record) -> Result<Truth> {
        Ok(Truth {
            containerd: *record.containerd.last().context("no daemon")?,
            kubelet: record.kubelet.map(|kubelet| kubelet.pid),
            frozen: (record.mark("Freeze")?.begin, record.mark("Thaw")?.end),
            starved: (record.mark("Starve")?.begin, record.mark("Feed")?.end),
            throttled: record.throttled,
            calls: record.calls.clone(),
        })
    }
}

impl Truth {
    /// The longest relist that lasted in that time.
    fn relist(&self, (from, to): (u64, u64)) -> Option<&Call> {
        self.calls
            .iter()
            .filter(|call| {
                call.method == "relist" && call.begin < to && call.end.is_none_or(|end| end > from)
            })
            .max_by_key(|call| call.age(to))
    }
}

impl Beyond for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        for (what, when) in [("frozen", self.frozen), ("starved", self.starved)] {
            let relist = self.relist(when).map_or(0, |call| call.age(call.begin));
            verdict.check(
                &format!("relist while {what}"),
                format!("slow, the daemon was so for {}", seconds(when.1 - when.0)),
                format!("longest {}", seconds(relist)),
                relist > SECOND,
            );
        }
        verdict.check(
            "waited for CPU time",
            "most of the time",
            format!("{} periods, {} in all", self.throttled.0, seconds(self.throttled.1)),
            self.throttled.0 > 10 && self.throttled.1 > 6 * SECOND,
        );
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        self.stall("Frozen", self.frozen, 2 * SECOND, "Proven", frames, verdict);
        self.stall("Starved", self.starved, 6 * SECOND, "Inferred", frames, verdict);
    }
}

impl Truth {
    /// That it was called by its name in time, for what it is, and no longer than it was so.
    fn stall(
        &self,
        name: &str,
        (from, to): (u64, u64),
        within: u64,
        confidence: &str,
        frames: &[Seen],
        verdict: &mut Verdict,
    ) {
        // Frames of a moment before a freeze is over may come after it.
        let all: Vec<(&Seen, &Value)> = frames
            .iter()
            .flat_map(|seen| list(&seen.frame, "diagnoses").map(move |one| (seen, one)))
            .collect();
        let named = |diagnosis: &Value| {
            !diagnosis["ends_in"][name].is_null()
                && links(diagnosis).any(|link| link["who"]["pid"] == self.containerd)
        };
        let during: Vec<&(&Seen, &Value)> = all
            .iter()
            .filter(|(seen, diagnosis)| (from..=to).contains(&now(seen)) && named(diagnosis))
            .collect();
        let first = during.first().map(|(seen, _)| now(seen) - from);
        verdict.check(
            &format!("{name}: said"),
            format!("within {}", seconds(within)),
            first.map_or("never".to_owned(), |after| format!("{} after it began", seconds(after))),
            first.is_some_and(|after| after <= within),
        );
        let after = all.iter().filter(|(seen, one)| now(seen) > to + 3 * SECOND && named(one));
        let outside = after.count() + all.iter().filter(|(seen, one)| now(seen) < from && named(one)).count();
        verdict.check(
            &format!("{name}: at other times"),
            "never",
            format!("in {outside} diagnoses"),
            outside == 0,
        );
        self.incident(name, (from, to), frames, verdict);
        let Some((seen, diagnosis)) =
            during.iter().rev().find(|(_, one)| self.kubelet.is_none() || one["head"] == "Relist")
        else {
            verdict.check(&format!("{name}: whose relist"), "the kubelet's", "of nobody", false);
            return;
        };
        if let Some(kubelet) = self.kubelet {
            let head = links(diagnosis).next().unwrap_or(&Value::Null);
            verdict.check(
                &format!("{name}: whose relist"),
                format!("of kubelet {kubelet}"),
                format!("{} of {}", kind(head), head["who"]["pid"]),
                kind(head) == "Relist" && head["who"]["pid"] == kubelet,
            );
            let truth = self
                .relist((now(seen), now(seen)))
                .map(|call| call.age(now(seen)).min(now(seen) - call.begin));
            verdict.duration(&format!("{name}: age of the relist"), truth, head["age"].as_u64());
        }
        verdict.check(
            &format!("{name}: how sure"),
            confidence,
            format!("{}: {}", diagnosis["confidence"], diagnosis["evidence"]),
            diagnosis["confidence"] == confidence,
        );
        let because = diagnosis["not_this_chain"].as_str();
        verdict.check(
            &format!("{name}: not this chain"),
            "containerd itself is so",
            because.unwrap_or("-"),
            // It is said of relists; a client that stands for the kubelet makes none that can be seen.
            because.map_or(self.kubelet.is_none(), |because| {
                because.contains("containerd itself is") && because.contains(&name.to_lowercase())
            }),
        );
    }
}

impl Truth {
    /// That it is an incident if, and only if, a call lasted longer because of it than plegscope lets one.
    fn incident(&self, name: &str, (from, to): (u64, u64), frames: &[Seen], verdict: &mut Verdict) {
        let overlaps = |call: &&Call| call.begin < to && call.end.is_none_or(|end| end > from);
        let longest = self.calls.iter().filter(overlaps).map(|call| call.age(to)).max().unwrap_or(0);
        let told = frames
            .iter()
            .flat_map(|seen| list(&seen.frame, "incidents"))
            .any(|incident| !incident["ends_in"][name].is_null());
        let must = longest.saturating_sub(CLOCKS) > THRESHOLD;
        let may = longest + CLOCKS > THRESHOLD;
        verdict.check(
            &format!("{name}: an incident"),
            format!("the longest call lasted {}, {} is one", seconds(longest), seconds(THRESHOLD)),
            if told { "told" } else { "not told" },
            if told { may } else { !must },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wrong(change: impl Fn(&mut Value)) -> Vec<String> {
        let relist = |begin: u64, end: u64| Call {
            method: "relist".to_owned(),
            container: None,
            begin: begin * SECOND,
            end: Some(end * SECOND),
            error: None,
        };
        let truth = Truth {
            containerd: 100,
            kubelet: Some(50),
            frozen: (10 * SECOND, 18 * SECOND),
            starved: (30 * SECOND, 42 * SECOND),
            throttled: (100, SECOND),
            calls: vec![relist(10, 18), relist(31, 43)],
        };
        let frames: Vec<Seen> = (5..50)
            .map(|at| {
                let stall = match at {
                    11..18 => Some(("Frozen", "Proven", "frozen", 10)),
                    33..42 => Some(("Starved", "Inferred", "starved", 31)),
                    _ => None,
                };
                let diagnoses = stall.map_or(json!([]), |(name, confidence, word, begin)| {
                    let links = json!([
                        {"operation": {"kind": "Relist"}, "who": {"pid": 50}, "age": (at - begin) * SECOND},
                        {"operation": {"kind": "Stalled"}, "who": {"pid": 100}},
                    ]);
                    json!([{
                        "head": "Relist", "ends_in": {name: {"by": word}}, "confidence": confidence,
                        "evidence": "", "chain": {"links": links},
                        "not_this_chain": format!("containerd itself is {word}"),
                    }])
                });
                let incidents = stall.filter(|(.., begin)| at - begin > 5);
                let incidents = incidents.map(|(name, ..)| json!({"ends_in": {name: {}}}));
                let incidents: Vec<Value> = incidents.into_iter().collect();
                let mut frame = json!({"now": at * SECOND, "diagnoses": diagnoses, "incidents": incidents});
                change(&mut frame);
                Seen { at: at * SECOND, frame }
            })
            .collect();
        let mut verdict = Verdict::default();
        truth.said(&frames, &mut verdict);
        verdict.0.into_iter().filter(|check| check.agree == Some(false)).map(|check| check.what).collect()
    }

    #[test]
    fn both_stalls_by_their_names_pass() {
        assert!(wrong(|_| {}).is_empty());
    }

    #[test]
    fn another_name_another_process_and_another_time_fail() {
        let starved = wrong(|frame| {
            let frozen = frame["diagnoses"][0]["ends_in"]["Frozen"].is_object();
            if frozen {
                frame["diagnoses"][0]["ends_in"] = json!({"NotVisible": {"because": ""}});
            }
        });
        assert_eq!(starved, ["Frozen: said", "Frozen: whose relist"]);
        let of_another = wrong(|frame| {
            if frame["diagnoses"][0].is_object() {
                frame["diagnoses"][0]["chain"]["links"][0]["who"]["pid"] = json!(51);
            }
        });
        assert_eq!(of_another, ["Frozen: whose relist", "Starved: whose relist"]);
        let always = wrong(|frame| {
            if frame["diagnoses"][0].is_null() {
                let links = json!([{"operation": {"kind": "Stalled"}, "who": {"pid": 100}}]);
                frame["diagnoses"] = json!([{"ends_in": {"Frozen": {"by": ""}}, "chain": {"links": links}}]);
            }
        });
        assert_eq!(always, ["Frozen: at other times"]);
        let silent = wrong(|frame| frame["incidents"] = json!([]));
        assert_eq!(silent, ["Frozen: an incident", "Starved: an incident"]);
    }
}
