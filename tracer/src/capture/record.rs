//! What is known of one incident at one moment, in at most [`MOST`] bytes of JSON: what an alert carries off the node
//! while it is still blocked. It needs nothing else to be understood: no capture, no node, no second look.
//!
//! Where it does not fit, the least worth goes first ([`ROOMS`]) and [`Record::cut`] says what is missing. The sentence,
//! both ends of the chain, what it ends in, the node and the times always stay.

use super::{Header, VERSION};
use crate::correlator::{
    Change, Confidence, Consequence, Diagnosis, Edge, EdgeKind, Fix, Frame, Incident, Link, NotReady,
    Program, StuckCall, Subject, words,
};
use crate::event::{Kind, LossPoint, Ns};
use crate::sinks::json;
use serde::{Deserialize, Serialize};

use super::line::Clock;

/// Bytes that a record has at most, as JSON.
pub const MOST: usize = 16 << 10;

/// One incident at one moment. Strings are as they were seen; [`Record::json`] escapes what is unsafe to print.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the schema, the capture's.
    pub version: u32,
    /// The incident: the same for as long as it lasts, and in every replay.
    pub id: String,
    /// All of it in one sentence: `STUCK 5.0s · …`.
    pub sentence: String,
    /// What changed at this moment, if anything did.
    pub change: Option<Change>,
    /// The moment, as time of day with the node's offset.
    pub time: String,
    /// The moment.
    pub at: Ns,
    /// Begin of the oldest stuck operation, as time of day.
    pub since_time: String,
    /// Begin of the oldest stuck operation.
    pub since: Ns,
    /// When the first threshold was passed.
    pub opened: Ns,
    /// When all of it was over; `None` while it is blocked.
    pub ended: Option<Ns>,
    /// Why the end is not certain.
    pub uncertain_end: Option<String>,
    /// Greatest age of a stuck call so far, in nanoseconds.
    pub longest: Ns,
    /// Which threshold was passed first: `unmount over 5s`.
    pub crossed_by: String,
    /// The culprit, as in the sentence.
    pub cause: String,
    /// What it ends in.
    pub ends_in: Ending,
    /// The same for the same cause on other nodes.
    pub signature: String,
    /// From the symptom to what it ends in. Where links are missing in the middle, the numbers tell.
    pub chain: Vec<Step>,
    /// Links of the chain in all.
    pub links: u64,
    /// Calls that are stuck with the chain, the oldest first.
    pub stuck_calls: Vec<Call>,
    /// How many are or were, at most, at once.
    pub stuck_calls_total: u64,
    /// Containers that are named on the way, the culprit first.
    pub containers: Vec<Subject>,
    /// Who has memory waiting to be written to the disk it ends in, or why that is not known.
    pub dirtied_by: Option<String>,
    /// What has come of it so far, the gravest first.
    pub consequences: Vec<Told>,
    /// Whether and when it ends by itself, and what comes before, in words.
    pub ahead: Option<String>,
    /// When the kubelet calls the node NotReady, where that hangs on it.
    pub not_ready: Option<NotReady>,
    /// Why it is not the chain of an unmount under the shim's lock, where it is another.
    pub not_this_chain: Option<String>,
    /// What eases it now.
    pub do_now: Vec<String>,
    /// What makes it worse.
    pub do_not: Vec<String>,
    /// What prevents it next time, what saves most first.
    pub fixes: Vec<Remedy>,
    /// What could not be seen and may have changed any of this.
    pub blind_spots: Vec<String>,
    /// Records lost since plegscope started, by place.
    pub losses: Vec<(LossPoint, u64)>,
    /// Where this was seen.
    pub node: Node,
    /// A moment by all clocks.
    pub clock: Clock,
    /// Whether names were replaced by their hashes.
    pub redacted: bool,
    /// What was left out so that this fits, in words; empty when it is whole.
    pub cut: Vec<String>,
}

/// What a chain ends in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its class, the same on every node: `unmount-sync`.
    pub class: String,
    /// In words.
    pub what: String,
    /// Why nothing is seen below it, where that is so.
    pub because: Option<String>,
    /// How sure it is; `None` when no diagnosis was made.
    pub confidence: Option<Confidence>,
    /// What that rests on.
    pub evidence: String,
}

/// A link of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number, the symptom is 1.
    pub n: u64,
    /// What is done, in words.
    pub what: String,
    /// The kind of operation.
    pub kind: Kind,
    /// Who does it: process, thread, goroutine.
    pub who: String,
    /// Process id.
    pub pid: u32,
    /// How long it has lasted, in nanoseconds.
    pub age: Ns,
    /// Whether it may have lasted longer.
    pub at_least: bool,
    /// The part of the stuck call's age that was spent here, in nanoseconds.
    pub critical: Ns,
    /// How the way comes here; `None` for the first.
    pub edge: Option<EdgeKind>,
    /// How sure that is.
    pub confidence: Option<Confidence>,
    /// What that rests on.
    pub evidence: String,
    /// Where its goroutine sat.
    pub site: Option<String>,
}

/// A call that is stuck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The method, else the kind of operation.
    pub what: String,
    /// The pod it is about.
    pub pod: Option<String>,
    /// How long it has lasted, in nanoseconds.
    pub age: Ns,
    /// Whether it may have lasted longer.
    pub at_least: bool,
}

/// Something with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What.
    pub what: String,
    /// How sure it is.
    pub confidence: Confidence,
    /// What that rests on.
    pub evidence: String,
}

/// What prevents it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remedy {
    /// Its heading in docs/fixes.md.
    pub id: String,
    /// What to do.
    pub what: String,
    /// How many nanoseconds it would have saved, where that can be told.
    pub saves: Option<Ns>,
    /// How to apply it.
    pub how: String,
    /// Since which version.
    pub since: String,
    /// What it costs.
    pub side_effects: String,
}

/// Where something was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub host: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Id of the boot.
    pub boot_id: String,
    /// Version of plegscope.
    pub plegscope: String,
    /// containerd, its shims and the kubelet, by version.
    pub programs: Vec<Program>,
}

/// How much may be told of what.
struct Room {
    /// Bytes of a string.
    text: usize,
    /// Fixes.
    fixes: usize,
    /// Stuck calls.
    calls: usize,
    /// Of every other list.
    listed: usize,
    /// Links of the chain.
    links: usize,
}

/// From all of it to what always fits: what is worth least goes first.
const ROOMS: [Room; 8] = [
    Room { text: 1024, fixes: 8, calls: 32, listed: 32, links: 48 },
    Room { text: 512, fixes: 3, calls: 32, listed: 16, links: 48 },
    Room { text: 512, fixes: 3, calls: 8, listed: 16, links: 48 },
    Room { text: 256, fixes: 1, calls: 8, listed: 8, links: 48 },
    Room { text: 256, fixes: 1, calls: 2, listed: 4, links: 24 },
    Room { text: 128, fixes: 0, calls: 2, listed: 4, links: 16 },
    Room { text: 96, fixes: 0, calls: 0, listed: 2, links: 12 },
    Room { text: 64, fixes: 0, calls: 0, listed: 1, links: 8 },
];

/// Bytes of the sentence: it is worth more than all of the rest.
const SENTENCE: usize = 2 << 10;

impl Record {
    /// Of an incident of this frame. With names that were replaced by hashes when the frame was made of events that were.
    pub fn of(header: &Header, frame: &Frame, incident: &Incident) -> Record {
        let diagnosis = Record::diagnosis(frame, incident);
        let within = |room| Cutting { room, cut: Vec::new() }.record(header, frame, incident, diagnosis);
        let mut record = within(&ROOMS[0]);
        for room in &ROOMS[1..] {
            if record.json().len() <= MOST {
                break;
            }
            record = within(room);
        }
        record
    }

    /// The diagnosis that the record of an incident of this frame is of.
    pub fn diagnosis<'a>(frame: &'a Frame, incident: &'a Incident) -> Option<&'a Diagnosis> {
        let is_its = |d: &&Diagnosis| d.incident.as_deref() == Some(&incident.id);
        incident.last.as_deref().or_else(|| frame.diagnoses.iter().find(is_its))
    }

    /// One line without its end, safe to print; at most [`MOST`] bytes when it was made by [`Record::of`].
    pub fn json(&self) -> Vec<u8> {
        // Writing plain data into memory does not fail.
        let mut line = json::line(self).unwrap_or_default();
        line.truncate(line.trim_ascii_end().len());
        line
    }
}

/// Makes a record within a room, and notes what did not fit.
struct Cutting<'a> {
    room: &'a Room,
    cut: Vec<String>,
}

impl Cutting<'_> {
    fn record(
        mut self,
        header: &Header,
        frame: &Frame,
        incident: &Incident,
        diagnosis: Option<&Diagnosis>,
    ) -> Record {
        let now = frame.now;
        let links: &[Link] = diagnosis.map_or(&[], |d| &d.chain.links);
        let calls: &[StuckCall] = diagnosis.map_or(&[], |d| &d.stuck_calls);
        let consequences: &[Consequence] = &incident.consequences;
        let fixes: &[Fix] = diagnosis.map_or(&[], |d| &d.advice.fixes);
        let steps = |pick: fn(&Diagnosis) -> &Vec<String>| diagnosis.map_or(&[][..], |d| pick(d));
        let (do_now, do_not) = (steps(|d| &d.advice.do_now), steps(|d| &d.advice.do_not));
        let mut blind: Vec<String> = diagnosis.map_or_else(Vec::new, |d| d.blind_spots.clone());
        let of_frame = frame.blind_spots.iter().map(|b| format!("{}: {}", b.what, b.reason));
        let new: Vec<String> = of_frame.filter(|b| !blind.contains(b)).collect();
        blind.extend(new);
        let losses = frame.losses.iter().map(|l| (l.at, l.count)).collect();
        // After the incident has ended nothing lies ahead.
        let open = diagnosis.filter(|_| incident.ended.is_none());
        let room = self.room;
        let mut record = Record {
            version: VERSION,
            id: self.text(&incident.id),
            sentence: clip(&incident.summary, SENTENCE),
            change: incident.change.as_ref().map(|change| self.change(change)),
            time: header.clock.rfc3339(now),
            at: now,
            since_time: header.clock.rfc3339(incident.since),
            since: incident.since,
            opened: incident.opened,
            ended: incident.ended,
            uncertain_end: incident.uncertain_end.as_deref().map(|why| self.text(why)),
            longest: incident.longest,
            crossed_by: self.text(&incident.crossed_by),
            cause: self.text(&incident.cause),
            ends_in: self.ending(incident, diagnosis),
            signature: self.text(&incident.signature),
            chain: self.chain(links),
            links: links.len() as u64,
            stuck_calls: self.list("stuck calls", calls, room.calls, Self::call),
            stuck_calls_total: incident.stuck_calls,
            containers: self.list("containers", &incident.containers, room.listed, Self::subject),
            dirtied_by: diagnosis.and_then(words::dirtied).map(|who| self.text(&who)),
            consequences: self.list("consequences", consequences, room.listed, Self::consequence),
            ahead: open.map(|d| self.text(&words::ahead(d, now))),
            not_ready: open.and_then(|d| d.not_ready.as_ref()).map(|n| self.not_ready(n)),
            not_this_chain: diagnosis.and_then(|d| d.not_this_chain.as_deref()).map(|why| self.text(why)),
            do_now: self.list("things to do now", do_now, room.listed, |s, one| s.text(one)),
            do_not: self.list("things not to do", do_not, room.listed, |s, one| s.text(one)),
            fixes: self.list("fixes", fixes, room.fixes, Self::fix),
            blind_spots: self.list("blind spots", &blind, room.listed, |s, one| s.text(one)),
            losses,
            node: Node {
                host: self.text(&header.host),
                kernel: self.text(&header.kernel),
                boot_id: self.text(&header.boot_id),
                plegscope: self.text(&header.plegscope),
                programs: self.list("programs", &frame.programs, room.listed, Self::program),
            },
            clock: header.clock,
            redacted: header.redacted,
            cut: Vec::new(),
        };
        if record.sentence.len() < incident.summary.len() {
            self.cut.push("part of the sentence".to_owned());
        }
        record.cut = self.cut;
        record
    }

    /// A string that fits.
    fn text(&mut self, text: &str) -> String {
        let fits = clip(text, self.room.text);
        let said = format!("the middle of strings longer than {} bytes", self.room.text);
        if fits.len() < text.len() && !self.cut.contains(&said) {
            self.cut.push(said);
        }
        fits
    }

    /// The first of a list.
    fn list<T, U>(
        &mut self,
        of: &str,
        all: &[T],
        most: usize,
        mut each: impl FnMut(&mut Self, &T) -> U,
    ) -> Vec<U> {
        if all.len() > most {
            self.cut.push(format!("{} of {} {of}", all.len() - most, all.len()));
        }
        all.iter().take(most).map(|one| each(self, one)).collect()
    }

    /// Both ends of the chain; the end of it says more than the middle.
    fn chain(&mut self, links: &[Link]) -> Vec<Step> {
        let over = links.len().saturating_sub(self.room.links);
        let head = if over == 0 { links.len() } else { self.room.links / 2 };
        if over > 0 {
            self.cut.push(format!("{over} of {} links of the chain", links.len()));
        }
        let kept = links.iter().enumerate().filter(|(i, _)| *i < head || *i >= head + over);
        kept.map(|(i, link)| self.step(i, link)).collect()
    }

    fn step(&mut self, index: usize, link: &Link) -> Step {
        let who = &link.who;
        let by = match (who.goid, who.tid == who.pid) {
            (Some(goid), _) => format!(" goroutine {goid}"),
            (None, true) => String::new(),
            (None, false) => format!(" thread {}", who.tid),
        };
        let name = who.comm.as_deref().unwrap_or(words::role(who.role));
        let edge: Option<&Edge> = link.edge.as_ref();
        Step {
            n: index as u64 + 1,
            what: self.text(&words::link(link)),
            kind: link.operation.kind,
            who: self.text(&format!("{name} {}{by}", who.pid)),
            pid: who.pid,
            age: link.age,
            at_least: link.at_least(),
            critical: link.critical,
            edge: edge.map(|e| e.kind),
            confidence: edge.map(|e| e.confidence),
            evidence: edge.map(|e| self.text(&e.evidence)).unwrap_or_default(),
            site: link.goroutine.as_ref().map(|site| self.text(&words::place(site))),
        }
    }

    fn ending(&mut self, incident: &Incident, diagnosis: Option<&Diagnosis>) -> Ending {
        Ending {
            class: words::class(&incident.ends_in).to_owned(),
            what: self.text(&words::ends_in(&incident.ends_in)),
            because: words::because(&incident.ends_in).map(|why| self.text(why)),
            confidence: diagnosis.map(|d| d.confidence),
            evidence: diagnosis.map(|d| self.text(&d.evidence)).unwrap_or_default(),
        }
    }

    fn change(&mut self, change: &Change) -> Change {
        match change {
            Change::MergedInto(other) => Change::MergedInto(self.text(other)),
            plain => plain.clone(),
        }
    }

    fn call(&mut self, call: &StuckCall) -> Call {
        let method = call.id.method.as_str();
        let what = if method.is_empty() { format!("{:?}", call.id.kind) } else { self.text(method) };
        let pod = call.subject.as_ref().map(|s| self.text(&words::pod(s)));
        Call { what, pod, age: call.age, at_least: call.at_least }
    }

    fn subject(&mut self, s: &Subject) -> Subject {
        Subject {
            id: self.text(&s.id),
            namespace: s.namespace.as_deref().map(|name| self.text(name)),
            pod: s.pod.as_deref().map(|name| self.text(name)),
            container: s.container.as_deref().map(|name| self.text(name)),
            sandbox: s.sandbox,
        }
    }

    fn consequence(&mut self, c: &Consequence) -> Told {
        let (what, evidence) = (self.text(&words::harm(c)), self.text(&c.evidence));
        Told { what, confidence: c.confidence, evidence }
    }

    fn not_ready(&mut self, n: &NotReady) -> NotReady {
        NotReady { evidence: self.text(&n.evidence), ..n.clone() }
    }

    fn fix(&mut self, fix: &Fix) -> Remedy {
        Remedy {
            id: self.text(&fix.id),
            what: self.text(&fix.what),
            saves: fix.saves,
            how: self.text(&fix.how),
            since: self.text(&fix.since),
            side_effects: self.text(&fix.side_effects),
        }
    }

    fn program(&mut self, program: &Program) -> Program {
        Program {
            version: program.version.as_deref().map(|version| self.text(version)),
            go_version: self.text(&program.go_version),
            ..program.clone()
        }
    }
}

/// At most `most` bytes of JSON, without the quotes: the middle of what is longer gives way.
fn clip(text: &str, most: usize) -> String {
    let fits = |chars: &mut dyn Iterator<Item = char>, most: usize| {
        let mut left = most;
        let fit = chars.take_while(|c| left.checked_sub(json::width(*c)).map(|rest| left = rest).is_some());
        fit.map(char::len_utf8).sum::<usize>()
    };
    if fits(&mut text.chars(), most) == text.len() {
        return text.to_owned();
    }
    let (head, tail) = (most / 2, (most / 2).saturating_sub('…'.len_utf8()));
    let (head, tail) = (fits(&mut text.chars(), head), fits(&mut text.chars().rev(), tail));
    let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    format!("{}…{}", part(0..head), part(text.len().saturating_sub(tail)..text.len()))
}
