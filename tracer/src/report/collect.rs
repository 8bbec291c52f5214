//! From the lines and frames of a replay to a report, in memory that does not grow with the length of the capture.

use super::relists::{Cover, Follower};
use super::timeline::Sampler;
use super::{
    BLIND_SPOTS, Blind, CHANGES, Captured, Changed, EXITS, FixTotal, GAPS, Gap, INCIDENTS, LateExit, Latency,
    Moment, Report, Reported, Spot, Totals, VERSION, logs,
};
use crate::capture::record::{Node, Record};
use crate::capture::replay::Told;
use crate::capture::{Header, Line, line::Clock};
use crate::correlator::{Change, Diagnosis, Frame, Harm, Incident, advice};
use crate::event::{Kind, Ns};
use crate::thresholds::floor;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Which distribution, or which kind in flight, by its name.
const LATENCIES: [(&str, Kind); 6] = [
    ("unmount", Kind::Unmount),
    ("sync", Kind::Sync),
    ("lock wait", Kind::LockWait),
    ("CRI call", Kind::CriCall),
    ("relist", Kind::Relist),
    ("exit handling", Kind::ExitHandling),
];

/// Collects what a report says.
pub struct Collector {
    /// With the clocks as they are now.
    header: Header,
    /// As they were at first: what is shown over time is told by these.
    clock: Clock,
    first: Option<Ns>,
    heard: Option<Ns>,
    covered: Ns,
    gaps: Vec<Gap>,
    gaps_total: u64,
    /// Something is missing since the last that was heard.
    gap: Option<(u64, String)>,
    ended: Option<String>,
    events: u64,
    lines_lost: u64,
    probes: Option<(u64, u64)>,
    last: Frame,
    /// By id, and when it opened: the same cause may come back.
    incidents: BTreeMap<(Ns, String), Reported>,
    seen: u64,
    merged: u64,
    open: BTreeMap<(Ns, String), Ns>,
    blocked: Cover,
    exits: BTreeMap<String, LateExit>,
    spots: BTreeMap<String, Spot>,
    spots_over: Vec<Spot>,
    relists: Follower,
    samples: Sampler,
}

impl Collector {
    /// Of a capture with this header.
    pub fn new(header: Header) -> Collector {
        Collector {
            clock: header.clock,
            header,
            first: None,
            heard: None,
            covered: 0,
            gaps: Vec::new(),
            gaps_total: 0,
            gap: None,
            ended: None,
            events: 0,
            lines_lost: 0,
            probes: None,
            last: Frame::default(),
            incidents: BTreeMap::new(),
            seen: 0,
            merged: 0,
            open: BTreeMap::new(),
            blocked: Cover::default(),
            exits: BTreeMap::new(),
            spots: BTreeMap::new(),
            spots_over: Vec::new(),
            relists: Follower::default(),
            samples: Sampler::new(),
        }
    }

    fn moment(&self, at: Ns) -> Moment {
        Moment { at, time: self.header.clock.rfc3339(at) }
    }

    /// A line, before the replay gets it.
    pub fn line(&mut self, line: &Line) {
        match line {
            Line::Event(event) => {
                self.events += 1;
                self.first.get_or_insert(event.at);
                self.relists.event(event, self.header.thresholds.shown);
            }
            Line::Heard(now) => self.heard(*now),
            Line::Clock(clock) => self.header.clock = *clock,
            Line::Loss(loss) => {
                self.lines_lost = self.lines_lost.saturating_add(loss.lines);
                let (lines, reasons) = self.gap.get_or_insert_default();
                *lines = lines.saturating_add(loss.lines);
                if reasons.len() < 1_000 && !reasons.contains(&loss.reason) {
                    reasons.push_str(if reasons.is_empty() { "" } else { "; " });
                    reasons.push_str(&loss.reason);
                }
            }
            Line::End(end) => {
                self.ended = Some(end.reason.clone());
                self.lines_lost = self.lines_lost.max(end.lost);
            }
            Line::Survey(survey) => {
                let on = survey.probes.iter().filter(|p| p.how.is_some()).count() as u64;
                self.probes = Some((on, survey.probes.len() as u64 - on));
            }
            // What was known before is in the frames; incidents are found again by the replay, and not taken on trust.
            Line::Known(_) | Line::Header(_) | Line::Log { .. } | Line::Incident(_) => {}
        }
    }

    fn heard(&mut self, now: Ns) {
        let before = *self.heard.get_or_insert(self.first.unwrap_or(now).min(now));
        self.first = Some(self.first.unwrap_or(now).min(now));
        match self.gap.take() {
            None => self.covered = self.covered.saturating_add(now.saturating_sub(before)),
            Some((lines, reason)) => self.keep_gap(before, Some(now), lines, reason),
        }
        self.heard = Some(now.max(before));
    }

    fn keep_gap(&mut self, from: Ns, to: Option<Ns>, lines: u64, reason: String) {
        self.gaps_total += 1;
        if self.gaps.len() < GAPS {
            let gap = Gap { from: self.moment(from), to: to.map(|at| self.moment(at)), lines, reason };
            self.gaps.push(gap);
        }
    }

    /// What the replay tells.
    pub fn told(&mut self, told: Told) {
        if let Told::Frame(frame) = told {
            self.frame(frame);
        }
    }

    fn frame(&mut self, frame: Frame) {
        self.relists.frame(&frame, &self.header.clock);
        self.samples.frame(&frame);
        for incident in &frame.incidents {
            self.incident(&frame, incident);
        }
        if self.open.is_empty() {
            self.blocked.settle();
        }
        self.blind(&frame);
        self.last = frame;
    }

    fn incident(&mut self, frame: &Frame, incident: &Incident) {
        let key = (incident.opened, incident.id.clone());
        let aftermath = incident.change == Some(Change::Aftermath);
        let first = !self.open.contains_key(&key) && !aftermath;
        self.seen += u64::from(first);
        match incident.ended {
            None => {
                self.open.insert(key.clone(), incident.since);
            }
            Some(end) if !aftermath => {
                self.open.remove(&key);
                self.blocked.add(incident.since, end);
            }
            Some(_) => {}
        }
        self.late_exits(incident);
        let Some(change) = &incident.change else { return };
        let what = match change {
            Change::Crossed => format!("passed the threshold: {}", incident.crossed_by),
            Change::Grew => "grew to the next doubling".to_owned(),
            Change::Ended => "over".to_owned(),
            Change::Aftermath => "more has come of it".to_owned(),
            Change::MergedInto(other) => format!("is part of {other}"),
        };
        let changed = Changed { when: self.moment(frame.now), what, longest: incident.longest };
        let (record, diagnosis) = self.record(frame, incident);
        let known = self.incidents.contains_key(&key);
        let full = self.incidents.len() >= INCIDENTS;
        if !known && (aftermath || full && !self.make_room(record.longest)) {
            return;
        }
        let merged_into = match change {
            Change::MergedInto(other) => Some(other.clone()),
            _ => None,
        };
        self.merged += u64::from(merged_into.is_some());
        let entry = self.incidents.entry(key).or_insert_with(|| Reported {
            record: record.clone(),
            changes: Vec::new(),
            merged_into: None,
            logs: Vec::new(),
            diagnosis: None,
        });
        if entry.changes.len() < CHANGES {
            entry.changes.push(changed);
        }
        entry.merged_into = merged_into.or(entry.merged_into.take());
        if aftermath {
            // The frame is one of later: what was blocked is not in it, only what has come of that.
            entry.record.consequences = record.consequences;
        } else {
            entry.record = record;
            entry.diagnosis = diagnosis.or(entry.diagnosis.take());
        }
    }

    fn record(&self, frame: &Frame, incident: &Incident) -> (Record, Option<Box<Diagnosis>>) {
        let diagnosis = Record::diagnosis(frame, incident).cloned().map(Box::new);
        (Record::of(&self.header, frame, incident), diagnosis)
    }

    /// Whether one that lasted this long is among those that are told, in the place of a shorter one that is over.
    fn make_room(&mut self, longest: Ns) -> bool {
        let over = self.incidents.iter().filter(|(key, _)| !self.open.contains_key(*key));
        let shortest = over.min_by_key(|(_, one)| one.record.longest);
        let Some((key, _)) = shortest.filter(|(_, one)| one.record.longest < longest) else { return false };
        let key = key.clone();
        self.incidents.remove(&key);
        true
    }

    fn late_exits(&mut self, incident: &Incident) {
        for c in &incident.consequences {
            let Harm::ExitLate { of, late, attempts, reported } = &c.what else { continue };
            let room = self.exits.len() < 4 * EXITS;
            let before = self.exits.get(&of.id);
            if before.is_none_or(|b| b.late <= *late || *reported) && (room || before.is_some()) {
                let exit = LateExit {
                    of: of.clone(),
                    late: *late,
                    attempts: *attempts,
                    reported: *reported,
                    incident: incident.id.clone(),
                };
                self.exits.insert(of.id.clone(), exit);
            }
        }
    }

    fn blind(&mut self, frame: &Frame) {
        let there = |what: &str| frame.blind_spots.iter().any(|b| b.what == what);
        let gone: Vec<String> = self.spots.keys().filter(|what| !there(what)).cloned().collect();
        for what in gone {
            if let Some(spot) = self.spots.remove(&what)
                && self.spots_over.len() < BLIND_SPOTS
            {
                self.spots_over.push(Spot { until: Some(self.moment(frame.now)), ..spot });
            }
        }
        for b in &frame.blind_spots {
            if let Some(spot) = self.spots.get_mut(&b.what) {
                spot.reason.clone_from(&b.reason);
            } else if self.spots.len() < BLIND_SPOTS {
                let from = self.moment(frame.now);
                let spot = Spot { what: b.what.clone(), reason: b.reason.clone(), from, until: None };
                self.spots.insert(b.what.clone(), spot);
            }
        }
    }

    /// The report; `unread` is what of the file could not be read, in words.
    pub fn finish(mut self, unread: Option<String>) -> Report {
        if let (Some((lines, reason)), Some(heard)) = (self.gap.take(), self.heard.or(self.first)) {
            self.keep_gap(heard, None, lines, reason);
        }
        let last = std::mem::take(&mut self.last);
        let (clock, clock_now) = (self.clock, self.header.clock);
        for incident in last.incidents.iter().filter(|i| i.ended.is_none()) {
            let (record, diagnosis) = self.record(&last, incident);
            if let Some(entry) = self.incidents.get_mut(&(incident.opened, incident.id.clone())) {
                (entry.record, entry.diagnosis) = (record, diagnosis);
            }
        }
        self.open.values().for_each(|since| self.blocked.add(*since, last.now));
        self.blocked.settle();
        let until = self.heard.unwrap_or(last.now);
        let mut incidents: Vec<Reported> = self.incidents.into_values().collect();
        incidents.sort_by(|a, b| (a.record.since, &a.record.id).cmp(&(b.record.since, &b.record.id)));
        for one in &mut incidents {
            one.logs = logs::searches(&one.record, one.diagnosis.as_deref(), until, &one.record.clock);
        }
        let mut late_exits: Vec<LateExit> = self.exits.into_values().collect();
        late_exits.sort_by(|a, b| (Reverse(a.late), &a.of.id).cmp(&(Reverse(b.late), &b.of.id)));
        let (relists, stalled, stretches) = self.relists.finish(&last, &clock_now);
        let totals = Totals {
            incidents: self.seen.saturating_sub(self.merged),
            open: self.open.len() as u64,
            blocked: self.blocked.total,
            stalled,
            late_exits: late_exits.len() as u64,
            latest_exit: late_exits.first().map_or(0, |exit| exit.late),
        };
        late_exits.truncate(EXITS);
        let mut spots: Vec<Spot> = self.spots_over.into_iter().chain(self.spots.into_values()).collect();
        spots.sort_by(|a, b| (a.from.at, &a.what).cmp(&(b.from.at, &b.what)));
        let moment = |at| Moment { at, time: clock.rfc3339(at) };
        Report {
            version: VERSION,
            clock,
            redacted: self.header.redacted,
            thresholds: self.header.thresholds.clone(),
            captured: Captured {
                from: moment(self.first.unwrap_or(until)),
                to: Moment { at: until, time: clock_now.rfc3339(until) },
                covered: self.covered,
                gaps: self.gaps,
                gaps_total: self.gaps_total,
                ended: self.ended,
                events: self.events,
                unread,
            },
            totals,
            fixes: fixes(&incidents),
            incidents,
            relists,
            late_exits,
            latencies: latencies(&last),
            blind: Blind {
                spots,
                probes: self.probes,
                losses: last.losses.iter().map(|l| (l.at, l.count)).collect(),
                dropped: last.dropped,
                uncertain_ends: last.uncertain_ends,
                lines_lost: self.lines_lost,
            },
            timeline: self.samples.finish(stretches),
            node: Node {
                host: self.header.host,
                kernel: self.header.kernel,
                boot_id: self.header.boot_id,
                plegscope: self.header.plegscope,
                programs: last.programs,
            },
        }
    }
}

/// How long things took, and what has not ended.
fn latencies(last: &Frame) -> Vec<Latency> {
    let mut out: Vec<Latency> = last
        .distributions
        .iter()
        .map(|d| Latency {
            of: d.of.clone(),
            at_least: d.at_least,
            count: d.count,
            p50: d.p50,
            p90: d.p90,
            p99: d.p99,
            max: d.max,
            in_flight: 0,
            oldest: 0,
        })
        .collect();
    for (place, (of, kind)) in LATENCIES.into_iter().enumerate() {
        let in_flight = last
            .in_flight
            .iter()
            .filter(|f| f.operation.kind == kind && f.operation.fs_type.as_deref() != Some("overlay"));
        let (count, oldest) = in_flight.fold((0, 0), |(count, oldest), f| (count + 1, f.age.max(oldest)));
        let known = out.iter_mut().find(|l| l.of == of);
        match known {
            Some(latency) => (latency.in_flight, latency.oldest) = (count, oldest),
            None => {
                let none = Latency {
                    of: of.to_owned(),
                    at_least: floor(kind),
                    count: 0,
                    p50: 0,
                    p90: 0,
                    p99: 0,
                    max: 0,
                    in_flight: count,
                    oldest,
                };
                let before = |l: &Latency| LATENCIES[..place].iter().any(|(of, _)| *of == l.of);
                let methods = |l: &Latency| !LATENCIES.iter().any(|(of, _)| *of == l.of);
                let at = out.iter().rposition(|l| before(l) || (place > 3 && methods(l)));
                out.insert(at.map_or(0, |at| at + 1), none);
            }
        }
    }
    out
}

/// The fixes of all incidents, what no release has last, else what saves most first.
fn fixes(incidents: &[Reported]) -> Vec<FixTotal> {
    let mut out: Vec<(FixTotal, Option<Ns>)> = Vec::new();
    for one in incidents.iter().filter(|one| one.merged_into.is_none()) {
        for fix in &one.record.fixes {
            let known = out.iter_mut().find(|(total, _)| total.id == fix.id);
            let Some((total, most)) = known else {
                let total = FixTotal {
                    id: fix.id.clone(),
                    what: fix.what.clone(),
                    saves: fix.saves,
                    incidents: 1,
                    how: fix.how.clone(),
                    since: fix.since.clone(),
                    side_effects: fix.side_effects.clone(),
                };
                out.push((total, fix.saves));
                continue;
            };
            total.incidents += 1;
            total.saves = match (total.saves, fix.saves) {
                (Some(a), Some(b)) => Some(a.saturating_add(b)),
                (a, b) => a.or(b),
            };
            if fix.saves > *most {
                // Its numbers are those of the incident that it would have helped most.
                total.what.clone_from(&fix.what);
                total.how.clone_from(&fix.how);
                total.since.clone_from(&fix.since);
                *most = fix.saves;
            }
        }
    }
    out.sort_by_key(|(fix, _)| advice::rank(&fix.id, fix.saves));
    out.into_iter().map(|(fix, _)| fix).collect()
}
