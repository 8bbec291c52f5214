//! The judge of all stories: holds what plegscope said against the lab's own clocks, by the words of the story's file.
//!
//! Pure: it reads the [`Record`] and the frames in it.

use super::language::{Chain, Link, Story};
use super::links::{Pattern, Pods, What, along, reached};
use super::record::{Interval, Record};
use super::table::Row;
use crate::lab::checks::Verdict;
use crate::lab::kubelet_like::Call;
use crate::lab::stories::checks::said::{consequences, kind, list, now};
use crate::lab::sys::seconds;
use crate::lab::verdict::{self, Seen, foreign, incidents_of, own_incidents, variant, words};
use serde_json::Value;
use std::collections::BTreeSet;

/// Durations agree within this part of the truth, or within [`SLACK`].
const TOLERANCE: f64 = 0.05;
/// What the clocks of different processes are apart, ns.
const SLACK: u64 = 50_000_000;
/// A relist that lasts as long as this is slow, ns.
const SLOW: u64 = 1_000_000_000;
/// A relist of this length is slow to plegscope, but may be over before it is looked at, ns.
const BRIEF: (u64, u64) = (450_000_000, 750_000_000);
/// So long after its end may a link still be shown, ns.
const LATE: u64 = 1_000_000_000;

/// What came of a story.
pub struct Judged {
    /// Whether it was what it should be, by the lab's clocks alone.
    pub truth: Verdict,
    /// What plegscope said of it.
    pub said: Verdict,
    /// The line for the table of all stories.
    pub row: Row,
}

/// Judges a story that was played.
pub fn judge(story: &Story, record: &Record) -> Judged {
    let mut judge = Judge {
        story,
        record,
        frames: record.runs.iter().flat_map(|run| verdict::frames(&run.lines)).collect(),
        truth: Verdict::default(),
        said: Verdict::default(),
        row: Row::new(&story.name, &record.version),
    };
    judge.played();
    if !record.runs.is_empty() {
        story.expect.chains.iter().for_each(|chain| judge.chain(chain));
        judge.names();
        judge.never();
        judge.incidents();
        judge.harm();
        judge.relists();
        judge.ends();
    }
    Judged { truth: judge.truth, said: judge.said, row: judge.row }
}

/// What the longest relist has taken, at least and at most, where a kubelet's metric says so. One that gets next to no CPU time
/// comes to reading its clock seconds after it has begun a relist, which may have begun at any time after the one before.
fn late_clock(record: &Record, [least, most]: [u64; 2]) -> [u64; 2] {
    if record.mark("Starve(\"kubelet\")").is_err() {
        return [least, most];
    }
    let relists: Vec<&Call> = record.calls_of("relist", None).collect();
    let apart = relists.windows(2).filter_map(|two| Some(two[1].end?.saturating_sub(two[0].begin)));
    [least, apart.fold(most, u64::max)]
}

/// Whether two durations (ns) are the same.
fn agree(truth: u64, said: u64) -> bool {
    truth.abs_diff(said) as f64 <= (truth as f64 * TOLERANCE).max(SLACK as f64)
}

struct Judge<'a> {
    story: &'a Story,
    record: &'a Record,
    frames: Vec<Seen>,
    truth: Verdict,
    said: Verdict,
    row: Row,
}

/// Where a chain was found.
struct Found<'f> {
    seen: &'f Seen,
    diagnosis: &'f Value,
    links: Vec<&'f Value>,
}

impl Judge<'_> {
    /// Whether it went as the story says, without plegscope.
    fn played(&mut self) {
        let record = self.record;
        let longest = record.longest("relist").map_or(0, |call| call.age(call.begin));
        if let Some(slow) = self.story.expect.slow_relist {
            let kubelet = record.kubelet.map_or(String::new(), |kubelet| {
                format!(", {} by the kubelet's metric", seconds(kubelet.longest_relist[0]))
            });
            self.truth.check(
                "relists",
                if slow { "slow" } else { "none is slow" },
                format!("longest {}{kubelet}", seconds(longest)),
                (longest >= SLOW) == slow,
            );
        }
        for pod in &record.pods {
            let Some(exited) = pod.exited else { continue };
            let unmount = record.blocked_unmount(pod);
            let said = record.states.first(&pod.container, "EXITED");
            for (begin, gone) in &pod.unpinned {
                let took = seconds(gone - begin);
                self.truth.note(
                    &format!("what kept {} busy", pod.name),
                    format!("was gone {took} after its kill"),
                    "",
                );
            }
            let stuck = pod.unmounts.iter().max_by_key(|stay| stay.waits_in.len());
            self.truth.note(
                &format!("{} exits", pod.name),
                format!(
                    "unmount {}; reported {}; {} failed attempts",
                    unmount.map_or("short".to_owned(), |one| seconds(one.end - one.begin)),
                    said.map_or("-".to_owned(), |at| format!(
                        "{} after it",
                        seconds(at.saturating_sub(exited))
                    )),
                    pod.attempts.iter().filter(|one| one.failed.is_some()).count(),
                ),
                stuck.map_or(String::new(), |stay| {
                    stay.waits_in.iter().take(6).cloned().collect::<Vec<_>>().join(" < ")
                }),
            );
        }
        if !record.unhealthy.is_empty() {
            let begin = record.longest("relist").map_or(0, |call| call.begin);
            let after = record.unhealthy.iter().map(|at| seconds(at.saturating_sub(begin)));
            self.truth.note(
                "PLEG is not healthy",
                format!(
                    "in the kubelet's log {} after the begin of the longest relist",
                    after.take(3).collect::<Vec<_>>().join(", ")
                ),
                "",
            );
        }
    }

    /// All diagnoses with their frames that are about this lab.
    fn own(&self) -> impl Iterator<Item = (&Seen, &Value)> {
        let all =
            self.frames.iter().flat_map(|seen| list(&seen.frame, "diagnoses").map(move |one| (seen, one)));
        all.filter(|(_, diagnosis)| self.is_own(diagnosis))
    }

    fn is_own(&self, diagnosis: &Value) -> bool {
        let own = |id: &Value| self.record.own.iter().any(|own| id == own.as_str());
        list(&diagnosis["chain"], "links").any(|link| {
            link["who"]["pid"].as_u64().is_some_and(|pid| self.record.is_own_process(pid))
                || own(&link["subject"]["id"])
        }) || list(diagnosis, "containers").any(|subject| own(&subject["id"]))
    }

    /// A chain that must be shown.
    fn chain(&mut self, chain: &Chain) {
        let wanted: Vec<&str> = chain.links.iter().map(Link::words).collect();
        let all: Vec<Pattern> = wanted.iter().filter_map(|words| Pattern::parse(words).ok()).collect();
        let Some(window) = self.window(chain, &all) else {
            self.truth.check(wanted[0], "lasts for some time", "the lab's clocks know nothing of it", false);
            self.row.links.1 += all.len();
            return;
        };
        let mut found = self.find(chain, &all, window);
        let mut of = wanted.len();
        let mut blind = Vec::new();
        if found.is_empty() {
            // What cannot be seen may be missing when that is said.
            let must = chain.links.iter().filter(|link| matches!(link, Link::Must(_)));
            let must: Vec<Pattern> = must.filter_map(|link| Pattern::parse(link.words()).ok()).collect();
            if must.len() < all.len() {
                found = self.find(chain, &must, window);
                let said = |seen: &Found<'_>, words: &str| {
                    format!("{} {}", seen.diagnosis, seen.seen.frame["blind_spots"]).contains(words)
                };
                for link in &chain.links {
                    let Link::OrBlind { is, or_blind } = link else { continue };
                    let told = found.iter().any(|one| said(one, or_blind));
                    if found.is_empty() {
                        continue;
                    }
                    blind.push((format!("{is}: {or_blind}"), told));
                    of -= usize::from(told);
                }
            }
        }
        let best = self.frames.iter().flat_map(|seen| list(&seen.frame, "diagnoses")).map(|diagnosis| {
            let links: &[Value] = diagnosis["chain"]["links"].as_array().map_or(&[], Vec::as_slice);
            (reached(&all, links, self.record), words(diagnosis), variant(&diagnosis["ends_in"]).0.to_owned())
        });
        let best = best.max_by_key(|(count, words, _)| (*count, words.len()));
        let complete = !found.is_empty() && blind.iter().all(|(_, told)| *told);
        let (count, shown, end) = best.unwrap_or_default();
        let first = found.first().map(|one| one.seen.at.saturating_sub(window.begin));
        let within = (chain.within * 1e9) as u64;
        let checked: Vec<(String, u64, u64)> = found.iter().flat_map(|one| self.ages(&all, one)).collect();
        let last = found
            .last()
            .map(|one| (one.diagnosis["not_this_chain"].clone(), one.diagnosis["confidence"].clone()));
        let because = chain.not_this_chain.as_ref().map(|text| {
            let said = |one: &&Found<'_>| {
                one.diagnosis["not_this_chain"].as_str().is_some_and(|said| said.contains(text.as_str()))
            };
            found.iter().filter(said).count()
        });
        self.row.links.0 += if complete { of } else { count };
        self.row.links.1 += of;
        self.row.blind.extend(blind.iter().filter(|(_, told)| *told).map(|(words, _)| words.clone()));
        self.said.check(
            "chain",
            format!("{}{}", wanted.join(" > "), ends(&chain.ends_in)),
            if complete { shown } else { format!("{count} of {}: {shown} ({end})", wanted.len()) },
            complete,
        );
        for (words, told) in blind {
            self.said.check("what cannot be seen", words, if told { "told" } else { "not told" }, told);
        }
        if !complete {
            return;
        }
        self.row.shown(first);
        self.said.check(
            "first shown",
            format!("within {}", seconds(within)),
            first.map_or("never".to_owned(), |after| format!("{} after all of it had begun", seconds(after))),
            first.is_some_and(|after| after <= within),
        );
        self.compare_ages(&checked);
        if let (Some(text), Some(count)) = (&chain.not_this_chain, because) {
            let said = last.as_ref().map_or(String::new(), |(because, _)| because.to_string());
            self.said.check("not the unmount chain, because", text.as_str(), said, count > 0);
        }
        if let Some(right) = &chain.confidence {
            let said = last.map_or(String::new(), |(_, confidence)| confidence.to_string());
            self.said.check("how sure", right.as_str(), said.as_str(), said.trim_matches('"') == right);
        }
    }

    /// When a chain must be shown: from the moment when all of it has begun to the first end.
    fn window(&self, chain: &Chain, patterns: &[Pattern]) -> Option<Interval> {
        let marks = &self.record.marks;
        let mut window = match chain.between {
            Some([from, to]) => Interval { begin: marks.get(from - 1)?.begin, end: marks.get(to - 1)?.begin },
            None => {
                let mut clocks = patterns.iter().filter_map(|pattern| self.record.intervals(pattern));
                let longest =
                    |all: Vec<Interval>| all.into_iter().max_by_key(|one| one.end.saturating_sub(one.begin));
                let mut window = longest(clocks.next()?)?;
                for clock in clocks {
                    let overlaps = |one: &Interval| one.begin < window.end && one.end > window.begin;
                    let first = clock.into_iter().filter(overlaps).min_by_key(|one| one.begin)?;
                    window.begin = window.begin.max(first.begin);
                }
                window
            }
        };
        // A plegscope that was started, or started again, in the middle of it is asked from then on.
        if let Some(run) = self.record.runs.iter().find(|run| run.ended > window.begin) {
            window.begin = window.begin.max(run.ready);
        }
        Some(window)
    }

    fn find(&self, chain: &Chain, patterns: &[Pattern], window: Interval) -> Vec<Found<'_>> {
        let seen = self.frames.iter().filter(|seen| (window.begin..=window.end).contains(&seen.at));
        let all = seen.flat_map(|seen| list(&seen.frame, "diagnoses").map(move |one| (seen, one)));
        all.filter(|(_, diagnosis)| {
            let end = variant(&diagnosis["ends_in"]).0;
            chain.ends_in.is_empty() || chain.ends_in.iter().any(|one| one == end)
        })
        .filter_map(|(seen, diagnosis)| {
            let links = diagnosis["chain"]["links"].as_array()?;
            Some(Found { seen, diagnosis, links: along(patterns, links, self.record)? })
        })
        .collect()
    }

    /// What a chain says of the age of each link that the lab has a clock for: the link, the truth, what was said.
    fn ages(&self, patterns: &[Pattern], found: &Found<'_>) -> Vec<(String, u64, u64)> {
        let now = now(found.seen);
        let mut ages = Vec::new();
        if patterns.len() != found.links.len() {
            return ages;
        }
        for (pattern, link) in patterns.iter().zip(&found.links) {
            let Some(clock) = self.record.intervals(pattern) else { continue };
            let Some(said) = link["age"].as_u64() else { continue };
            let inside = |one: &&Interval| one.begin <= now + SLACK && now <= one.end.saturating_add(LATE);
            let truth = clock.iter().filter(inside).map(|one| now.saturating_sub(one.begin));
            let Some(truth) = truth.min_by_key(|truth| truth.abs_diff(said)) else {
                ages.push((format!("{:?} that is not there", pattern.what), 0, said));
                continue;
            };
            // What was found in progress is `at least` that old.
            let at_least = link["operation"]["began"] == "ThenOrBefore";
            let name = [format!("{:?}", pattern.what).to_lowercase(), pattern.names.join("|")].join(" ");
            ages.push((name.trim().to_owned(), truth, if at_least { said.max(truth) } else { said }));
        }
        ages
    }

    fn compare_ages(&mut self, ages: &[(String, u64, u64)]) {
        let names: BTreeSet<&String> = ages.iter().map(|(name, ..)| name).collect();
        for name in names {
            let of = ages.iter().filter(|(one, ..)| one == name);
            let worst = of.clone().max_by(|(_, a, b), (_, c, d)| off(*a, *b).total_cmp(&off(*c, *d)));
            let wrong = of.clone().filter(|(_, truth, said)| !agree(*truth, *said)).count();
            let Some((_, truth, said)) = worst else { continue };
            self.row.off(*truth, *said);
            self.said.check(
                &format!("age of {name}"),
                format!("{} at the worst", seconds(*truth)),
                format!("{}, {wrong} of {} frames too far off", seconds(*said), of.count()),
                wrong == 0,
            );
        }
    }

    /// The right container, pod, device and writer, at all times and in all that is about this lab.
    fn names(&mut self) {
        let record = self.record;
        let expect = &self.story.expect;
        let blame: Vec<String> = expect.blame.iter().flat_map(|pod| self.ids(pod)).collect();
        let own = |id: &str| record.own.iter().any(|one| one == id);
        let (mut names, mut containers, mut sums) = (BTreeSet::new(), BTreeSet::new(), 0u64);
        let (mut writes, mut slow) = (0u64, 0u64);
        let mut wrote: BTreeSet<String> = BTreeSet::new();
        for (seen, diagnosis) in self.own().filter(|(_, one)| !one["ends_in"]["LeakedShims"].is_object()) {
            let links = list(&diagnosis["chain"], "links");
            for subject in links.clone().flat_map(|link| [&link["subject"], &link["lock"]["subject"]]) {
                names.extend(self.misnamed(subject));
                if let Some(id) = subject["id"].as_str().filter(|id| !own(id)) {
                    containers.insert(format!("{} is none of this lab's", short(id)));
                }
            }
            let of = |link: &Value| match link["subject"]["id"].as_str() {
                None => link["lock"]["subject"]["id"].as_str().map(str::to_owned),
                id => id.map(str::to_owned),
            };
            // A sync need not be anybody's: then it is that of the last before it.
            let at_end = match links.clone().last() {
                Some(link) if kind(link) == "Stalled" => of(link),
                _ => links.clone().filter_map(of).next_back(),
            };
            // What is not visible is blamed on nobody.
            let end = variant(&diagnosis["ends_in"]).0;
            let writing = end == "StatusWrite" && self.daemon_writes(now(seen));
            writes += u64::from(writing);
            let at_end = at_end.filter(|_| end != "NotVisible" && !writing);
            let alone = at_end.as_deref().is_some_and(|id| self.slow_alone(id, diagnosis, now(seen)));
            slow += u64::from(alone);
            if let Some(id) = at_end.filter(|id| !alone && !blame.contains(id)) {
                containers.insert(format!("{} at the end of {}", self.name_of(&id), words(diagnosis)));
            }
            let listed = list(diagnosis, "containers")
                .chain(list(diagnosis, "stuck_calls").map(|call| &call["subject"]));
            names.extend(listed.filter_map(|subject| self.misnamed(subject)));
            let device = &variant(&diagnosis["ends_in"]).1["device"]["device"];
            let device = format!("{}:{}", device["major"], device["minor"]);
            if device != "null:null" && device != record.device {
                names.insert(format!("device {device}"));
            }
            if let Some(first) = list(diagnosis, "dirtied_by").next() {
                let (_, subject) = variant(&first["source"]);
                wrote.extend(subject["id"].as_str().map(|id| self.name_of(id)));
                names.extend(self.misnamed(subject));
            }
            let sum: u64 = links.filter_map(|link| link["critical"].as_u64()).sum();
            if diagnosis["chain"]["age"].as_u64() != Some(sum) {
                sums += 1;
            }
        }
        if writes > 0 {
            let told = format!("{writes} diagnoses end there");
            self.said.note("writes of the daemon that a thread of it was in", "the lab saw them too", told);
        }
        if slow > 0 {
            let told = format!("{slow} diagnoses end there");
            self.said.note("updates that were slow by themselves", "by their caller's clock, too", told);
        }
        // Where a process does not run, those that wait for it are named, and none is to blame.
        let about_one = |one: &&Value| !["Frozen", "Starved"].contains(&variant(&one["ends_in"]).0);
        let own_incidents =
            self.frames.iter().flat_map(incidents_of).filter(|one| !foreign(&record.own, one));
        for incident in own_incidents.filter(about_one) {
            if let Some(id) = incident["containers"][0]["id"].as_str()
                && !blame.iter().any(|one| one == id)
            {
                containers.insert(format!("{} first in an incident", self.name_of(id)));
            }
        }
        if let Some(writers) = &expect.writers {
            let wrong: Vec<String> = wrote.iter().filter(|one| !writers.contains(one)).cloned().collect();
            names.extend(wrong.iter().map(|one| format!("writer {one}")));
            self.said.check(
                "writer",
                if writers.is_empty() { "nobody".to_owned() } else { writers.join(", ") },
                if wrote.is_empty() {
                    "-".to_owned()
                } else {
                    wrote.iter().cloned().collect::<Vec<_>>().join(", ")
                },
                wrong.is_empty() && (writers.is_empty() || !wrote.is_empty()),
            );
        }
        let shown = |all: &BTreeSet<String>| match all.len() {
            0 => "none".to_owned(),
            count => format!("{count}: {}", all.iter().take(3).cloned().collect::<Vec<_>>().join("; ")),
        };
        (self.row.wrong_names, self.row.wrong_containers) = (names.len(), containers.len());
        self.said.check("wrong names", "none", shown(&names), names.is_empty());
        let right = if expect.blame.is_empty() { "nobody is".to_owned() } else { expect.blame.join(", ") };
        self.said.check("who is blamed", right, shown(&containers), containers.is_empty());
        self.said.check(
            "seconds per link",
            "sum to the call's age",
            format!("not in {sums} diagnoses"),
            sums == 0,
        );
    }

    /// Whether a chain is one update's own and nobody else's, and whoever called it has seen it last, too: that of a container that
    /// does well takes long on a slow machine, and says so.
    fn slow_alone(&self, id: &str, diagnosis: &Value, at: u64) -> bool {
        let subjects =
            list(&diagnosis["chain"], "links").flat_map(|link| [&link["subject"], &link["lock"]["subject"]]);
        let mut ids = subjects.filter_map(|subject| subject["id"].as_str());
        let is = |call: &Call| {
            call.method == "UpdateContainerResources"
                && call.container.as_deref() == Some(id)
                && call.begin <= at + SLACK
                && call.end.is_none_or(|end| at <= end.saturating_add(LATE) && end - call.begin >= BRIEF.0)
        };
        diagnosis["head"] == "CriCall" && ids.all(|one| one == id) && self.record.calls.iter().any(is)
    }

    /// Whether the lab has seen a thread of the daemon in a long call that writes at that time: whoever's update that is, waits.
    fn daemon_writes(&self, at: u64) -> bool {
        self.record.daemon.iter().any(|stay| {
            let end = stay.end.map_or(u64::MAX, |end| end.saturating_add(LATE));
            stay.call != libc::SYS_umount2 && stay.begin <= at + SLACK && at <= end
        })
    }

    fn ids(&self, pod: &str) -> Vec<String> {
        let created = self.record.created.iter().filter(|one| one.pod == pod);
        let created = created.flat_map(|one| [one.container.clone(), one.sandbox.clone()]);
        self.record.ids(pod).into_iter().chain(created).collect()
    }

    /// A container by the name of its pod in the story, else by its id.
    fn name_of(&self, id: &str) -> String {
        let pod = self.record.pods.iter().find(|pod| pod.container == id || pod.sandbox == id);
        let created = self.record.created.iter().find(|one| one.container == id || one.sandbox == id);
        match (pod, created) {
            (Some(pod), _) => pod.name.clone(),
            (None, Some(created)) => created.pod.clone(),
            (None, None) => short(id),
        }
    }

    /// What is wrong with the names of a container of this lab; not to know them is not wrong.
    fn misnamed(&self, subject: &Value) -> Option<String> {
        let id = subject["id"].as_str()?;
        let pod = self.record.pods.iter().find(|pod| pod.container == id || pod.sandbox == id)?;
        let differs = |key: &str, right: &str| subject[key].as_str().is_some_and(|said| said != right);
        let wrong = differs("pod", &pod.pod)
            || differs("namespace", &pod.namespace)
            || pod.container == id && differs("container", &pod.container_name);
        wrong.then(|| {
            format!("{}/{}/{} for {}", subject["namespace"], subject["pod"], subject["container"], pod.name)
        })
    }

    /// Links that no chain may have.
    fn never(&mut self) {
        for text in &self.story.expect.never {
            let Ok(pattern) = Pattern::parse(text) else { continue };
            let has = |diagnosis: &Value| {
                list(&diagnosis["chain"], "links").any(|link| pattern.is(link, self.record))
            };
            // An unmount that the lab saw at that very time is not wrong, only slower than the story meant it to be.
            let clock = if pattern.what == What::Unmount { self.record.intervals(&pattern) } else { None };
            let was = |seen: &Seen| {
                let now = now(seen);
                let inside = |one: &Interval| one.begin <= now + SLACK && now <= one.end.saturating_add(LATE);
                clock.iter().flatten().any(inside)
            };
            let found = self.own().filter(|(seen, diagnosis)| has(diagnosis) && !was(seen)).count();
            self.said.check(&format!("{text} in a chain"), "never", format!("in {found}"), found == 0);
        }
    }

    fn incidents(&mut self) {
        let ids = own_incidents(&self.record.own, &self.frames);
        let wanted = self.story.expect.incidents;
        let count = ids.len() as u64;
        self.row.incidents = (wanted.nearest(count), count);
        let summaries: Vec<String> = ids
            .iter()
            .filter_map(|id| {
                let of = |one: &&Value| one["id"].as_str() == Some(id);
                let last = self.frames.iter().rev().flat_map(incidents_of).find(of)?;
                Some(last["summary"].as_str()?.to_owned())
            })
            .collect();
        self.said.check(
            "incidents",
            wanted.words(),
            format!(
                "{}{}",
                ids.len(),
                if summaries.is_empty() { String::new() } else { format!(": {}", summaries.join("; ")) }
            ),
            wanted.nearest(count) == count,
        );
        let open: Vec<&Value> = self
            .frames
            .last()
            .into_iter()
            .flat_map(incidents_of)
            .filter(|one| one["ended"].is_null() && one["change"]["MergedInto"].is_null())
            .filter(|one| !foreign(&self.record.own, one))
            .collect();
        let open = open.len();
        self.said.check("open at the end", "none", open.to_string(), open == 0);
    }

    /// What was told to have come of it, and nothing else.
    fn harm(&mut self) {
        const KINDS: [&str; 6] =
            ["Unknown", "Recreated", "ExitLate", "UpdatesFailed", "Restarted", "ShimLeaked"];
        let mut told: BTreeSet<String> = BTreeSet::new();
        for seen in &self.frames {
            for kind in KINDS {
                for detail in consequences(&seen.frame, kind) {
                    match detail["of"]["id"].as_str() {
                        None => drop(told.insert(kind.to_owned())),
                        Some(id) if self.record.own.iter().any(|own| own == id) => {
                            told.insert(format!("{kind} of {}", self.name_of(id)));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        let expect = &self.story.expect;
        let missing: Vec<&str> =
            expect.harm.iter().filter(|one| !told.contains(*one)).map(String::as_str).collect();
        let failed = |text: &str| {
            let pod = text.strip_prefix("UpdatesFailed of ").and_then(|name| self.record.pod(name));
            pod.is_some_and(|pod| {
                self.record.calls_of("UpdateContainerResources", Some(pod)).any(|call| call.error.is_some())
            })
        };
        let allowed =
            |text: &str| expect.harm.iter().chain(&expect.may_harm).any(|one| one == text) || failed(text);
        let wrong: Vec<&str> = told.iter().map(String::as_str).filter(|one| !allowed(one)).collect();
        self.said.check(
            "what has come of it",
            if expect.harm.is_empty() {
                "nothing else than failed updates".to_owned()
            } else {
                expect.harm.join(", ")
            },
            told.iter().cloned().collect::<Vec<_>>().join(", "),
            missing.is_empty() && wrong.is_empty(),
        );
    }

    fn relists(&mut self) {
        let Some(last) = self.frames.last().map(|seen| &seen.frame["relists"]) else {
            // Nothing is said of a node on which nothing happens.
            let quiet = self.story.expect.chains.is_empty();
            self.said.check("frames", if quiet { "perhaps none" } else { "some" }, "none", quiet);
            return;
        };
        let (explained, unexplained) = (last["explained"].as_u64(), last["unexplained"].as_u64());
        let longest = self.record.longest("relist");
        let slow = self.story.expect.slow_relist == Some(true);
        let watched =
            longest.is_some_and(|call| self.record.watched(call.begin, call.end.unwrap_or(u64::MAX)));
        // One that is over before a tick has seen its chain cannot be explained.
        let brief = |call: &&Call| (BRIEF.0..BRIEF.1).contains(&call.age(call.begin));
        let brief = self.record.calls_of("relist", None).filter(brief).count() as u64;
        self.said.check(
            "slow relists",
            format!("all explained but perhaps {brief} brief ones"),
            format!("{} explained, {} not", explained.unwrap_or(0), unexplained.unwrap_or(0)),
            unexplained <= Some(brief) && (!slow || !watched || explained > Some(0)),
        );
        if slow && watched && !self.record.others_list {
            // A client that stands for the kubelet makes no relist that could be seen: its list call stands for it.
            let stall = match self.record.kubelet {
                Some(kubelet) => Some(late_clock(self.record, kubelet.longest_relist)),
                None => self.record.longest("ListContainers").map(|call| [call.age(call.begin); 2]),
            };
            let said = last["longest"].as_u64();
            let stall = stall.map(|[least, most]| said.unwrap_or(least).clamp(least, most.max(least)));
            if let (Some(truth), Some(said)) = (stall, said) {
                self.row.off(truth, said);
            }
            let right = matches!((stall, said), (Some(truth), Some(said)) if agree(truth, said));
            let shown = |one: Option<u64>| one.map_or("-".to_owned(), seconds);
            self.said.check("longest relist, when over", shown(stall), shown(said), right);
        }
    }

    /// How plegscope itself fared.
    fn ends(&mut self) {
        for run in &self.record.runs {
            for line in run.messages.iter().filter(|line| line.text.contains("defect")) {
                self.said.check("no defect is told", "", line.text.as_str(), false);
            }
            if !run.killed {
                self.said.ended(run.exit, run.quit_took, crate::lab::QUIT_WITHIN);
            }
        }
        let losses = self.frames.last().map_or(0, |seen| list(&seen.frame, "losses").count());
        if losses > 0 {
            let last = self.frames.last().map_or(String::new(), |seen| seen.frame["losses"].to_string());
            self.said.note("losses", "", last);
        }
    }
}

/// How far off a duration is, as part of the truth; what lies within the slack counts less.
fn off(truth: u64, said: u64) -> f64 {
    truth.abs_diff(said) as f64 / (truth.max(SLOW) as f64)
}

fn ends(ends: &[String]) -> String {
    if ends.is_empty() { String::new() } else { format!(" ({})", ends.join(" or ")) }
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests;
