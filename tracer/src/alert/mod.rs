//! Which changes of which incidents are told. Pure: frames in, notices out; the same frames give the same notices.
//!
//! ```text
//! crosses ──> told ──> grows (told at each doubling) ──> ends (told) ──> hold-off of its cause
//! the same cause crosses again in the hold-off ──> held: counted, and told when it is worse, or lasts until the
//!                                                  hold-off is over; else the hold-off ends with how often it was
//! ```
//!
//! Each incident is told once, or is counted in a notice that is: none is lost, none is told twice.

use crate::correlator::{Change, EndsIn, Frame, Incident, words};
use crate::event::Ns;
use crate::thresholds::SECOND;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Hold-off of a cause after its incident has ended, where nothing else is asked for.
pub const HOLD_OFF: Ns = 60 * SECOND;
/// While it keeps coming back the hold-off doubles, up to this.
pub const LONGEST_HOLD_OFF: Ns = 3600 * SECOND;
/// Causes in hold-off at most; beyond it the one that would be over first is.
const CAUSES: usize = 128;
/// What came after an incident is told this often.
const AFTERMATHS: u32 = 8;
/// Incidents that are over and remembered because something may come of them.
const OVER: usize = 256;

/// What is told, and when it is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a cause that was told is held back when it comes again; 0 for not at all.
    pub hold_off: Ns,
    /// NotReady that is this near is told; 0 for never.
    pub not_ready_within: Ns,
}

/// What is told of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// If nothing moves, the node is NotReady soon.
    NotReady,
    /// A threshold was passed; it is still blocked.
    Crossed,
    /// It has lasted twice as long as when it was told last.
    Grew,
    /// It is over.
    Ended,
    /// The same cause has come back in its hold-off, and is over.
    Repeated,
    /// It was over, and something more has come of it.
    After,
}

impl Event {
    /// The word for it in JSON, labels and environment variables.
    pub const fn word(self) -> &'static str {
        match self {
            Event::NotReady => "notready",
            Event::Crossed => "crossed",
            Event::Grew => "grew",
            Event::Ended => "ended",
            Event::Repeated => "repeated",
            Event::After => "after",
        }
    }
}

/// Something that has become known of an incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What.
    pub event: Event,
    /// Whether it is to be told; else it is held back and only kept.
    pub told: bool,
    /// Whether the node is NotReady soon, or already.
    pub urgent: bool,
    /// How often the same cause came back before this and was not told.
    pub repeats: u64,
    /// The incident.
    pub incident: Incident,
}

/// What was told so far.
#[derive(Clone, Debug)]
pub struct Alerts {
    settings: Settings,
    open: BTreeMap<String, Open>,
    /// Causes in hold-off.
    cooling: BTreeMap<String, Cooling>,
    /// Incidents that are over: whether they were told, and how often what came of them was.
    over: VecDeque<(String, bool, u32)>,
    /// Notices that were held back and are counted in another.
    pub held: u64,
}

#[derive(Clone, Debug)]
struct Open {
    cause: String,
    told: bool,
    /// The greatest level told.
    level: u32,
    not_ready: bool,
    /// As it was when a notice was made of it last; without its diagnosis.
    last: Incident,
    /// The first moment that it was told for: what is missing in a frame of before is not gone.
    from: Ns,
}

#[derive(Clone, Debug)]
struct Cooling {
    until: Ns,
    hold: Ns,
    /// The greatest level told.
    level: u32,
    repeats: u64,
    /// The longest of them; without its diagnosis.
    worst: Option<Incident>,
}

impl Alerts {
    /// Nothing was told yet.
    pub fn new(settings: Settings) -> Alerts {
        Alerts { settings, open: BTreeMap::new(), cooling: BTreeMap::new(), over: VecDeque::new(), held: 0 }
    }

    /// Incidents that are open: all, and those of them that were told.
    pub fn open(&self) -> (usize, usize) {
        (self.open.len(), self.open.values().filter(|open| open.told).count())
    }

    /// What is to be told of incidents that have opened ahead of the frames; later frames have them.
    pub fn ahead(&mut self, frame: &Frame) -> Vec<Notice> {
        let soon = self.soon(frame);
        let is_new = |incident: &&Incident| incident.ended.is_none();
        let mut notices: Vec<Notice> = Vec::new();
        for incident in frame.incidents.iter().filter(is_new) {
            let is_soon = soon.get(incident.id.as_str()).copied().unwrap_or(false);
            notices.extend(self.lasts(incident, is_soon, frame.now));
        }
        notices.sort_by_key(|notice| (!notice.urgent, notice.event));
        notices
    }

    /// What is to be told of a frame, the most urgent first. Frames may be left out; no incident is lost by it.
    pub fn tick(&mut self, frame: &Frame) -> Vec<Notice> {
        let now = frame.now;
        let mut notices = Vec::new();
        let soon = self.soon(frame);
        for incident in &frame.incidents {
            let is_soon = soon.get(incident.id.as_str()).copied().unwrap_or(false);
            match (&incident.change, incident.ended) {
                (Some(Change::Aftermath), _) => notices.extend(self.after(incident)),
                (_, Some(_)) => notices.extend(self.ended(incident, now)),
                (_, None) => notices.extend(self.lasts(incident, is_soon, now)),
            }
        }
        let gone: Vec<String> = {
            let is_there = |id: &String| frame.incidents.iter().any(|incident| incident.id == *id);
            let gone = |(id, open): &(&String, &Open)| open.from <= now && !is_there(id);
            self.open.iter().filter(gone).map(|(id, _)| id.clone()).collect()
        };
        for id in gone {
            if let Some(open) = self.open.get(&id) {
                let incident = Incident {
                    ended: Some(now),
                    change: Some(Change::Ended),
                    uncertain_end: Some("its end was not seen".to_owned()),
                    ..open.last.clone()
                };
                notices.extend(self.ended(&incident, now));
            }
        }
        notices.extend(self.cooled(now));
        notices.sort_by_key(|notice| (!notice.urgent, notice.event));
        notices
    }

    /// Incidents on which NotReady hangs, and whether it is near; those where it is far again may tell it again.
    fn soon<'f>(&mut self, frame: &'f Frame) -> BTreeMap<&'f str, bool> {
        let within = self.settings.not_ready_within;
        let mut soon = BTreeMap::new();
        for diagnosis in &frame.diagnoses {
            let (Some(id), Some(not_ready)) = (&diagnosis.incident, &diagnosis.not_ready) else { continue };
            let left = not_ready.at.saturating_sub(frame.now);
            let near = within > 0 && left <= within;
            *soon.entry(id.as_str()).or_insert(false) |= near;
            if left > within.saturating_add(within / 2)
                && let Some(open) = self.open.get_mut(id)
            {
                open.not_ready = false;
            }
        }
        soon
    }

    /// An incident that is still blocked.
    fn lasts(&mut self, incident: &Incident, soon: bool, now: Ns) -> Option<Notice> {
        let Some(open) = self.open.get_mut(&incident.id) else {
            let cause = cause_of(incident);
            let held =
                !soon && self.cooling.get(&cause).is_some_and(|c| c.until > now && incident.level <= c.level);
            self.over.retain(|(id, ..)| *id != incident.id);
            let repeats = if held { 0 } else { self.take_repeats(&cause) };
            let open = Open {
                cause,
                told: !held,
                level: incident.level,
                not_ready: soon,
                last: without_diagnosis(incident),
                from: now,
            };
            self.open.insert(incident.id.clone(), open);
            self.held += u64::from(held);
            let notice = notice(Event::Crossed, incident, !held, repeats);
            return Some(Notice { urgent: soon, ..notice });
        };
        let grew = incident.level > open.level;
        let near = soon && !open.not_ready;
        if !open.told {
            let cooling = self.cooling.get(&open.cause);
            let held = cooling.is_some_and(|c| c.until > now && incident.level <= c.level);
            if held && !near {
                return None;
            }
        } else if !grew && !near {
            return None;
        }
        open.level = open.level.max(incident.level);
        open.not_ready |= soon;
        open.last = without_diagnosis(incident);
        let first = !std::mem::replace(&mut open.told, true);
        let cause = open.cause.clone();
        let repeats = if first { self.take_repeats(&cause) } else { 0 };
        let event = match (first, near) {
            (true, _) => Event::Crossed,
            (false, true) => Event::NotReady,
            (false, false) => Event::Grew,
        };
        Some(Notice { urgent: soon, ..notice(event, incident, true, repeats) })
    }

    /// An incident that is over.
    fn ended(&mut self, incident: &Incident, now: Ns) -> Option<Notice> {
        let open = self.open.remove(&incident.id);
        // Over before it was seen: there was no crossing to tell.
        let cause = open.as_ref().map_or_else(|| cause_of(incident), |open| open.cause.clone());
        let told = match &open {
            Some(open) => open.told,
            None => self.cooling.get(&cause).is_none_or(|c| c.until <= now || incident.level > c.level),
        };
        let merged = matches!(incident.change, Some(Change::MergedInto(_)));
        let mut repeats = 0;
        if told {
            if open.is_none() {
                repeats = self.take_repeats(&cause);
            }
            if !merged {
                self.cool(&cause, incident.level, now);
            }
        } else if let Some(cooling) = self.cooling.get_mut(&cause)
            && !merged
        {
            cooling.repeats += 1;
            if cooling.worst.as_ref().is_none_or(|worst| incident.longest > worst.longest) {
                cooling.worst = Some(without_diagnosis(incident));
            }
        }
        if self.over.len() >= OVER {
            self.over.pop_front();
        }
        self.over.push_back((incident.id.clone(), told, 0));
        self.held += u64::from(!told);
        Some(notice(Event::Ended, incident, told, repeats))
    }

    /// Something more has come of an incident that is over.
    fn after(&mut self, incident: &Incident) -> Option<Notice> {
        let told = match self.over.iter_mut().find(|(id, ..)| *id == incident.id) {
            Some((_, told, times)) => {
                *times += 1;
                *told && *times <= AFTERMATHS
            }
            None => true,
        };
        self.held += u64::from(!told);
        Some(notice(Event::After, incident, told, 0))
    }

    fn take_repeats(&mut self, cause: &str) -> u64 {
        self.cooling.get_mut(cause).map_or(0, |cooling| {
            cooling.worst = None;
            std::mem::take(&mut cooling.repeats)
        })
    }

    /// A cause that was told is over: its hold-off begins.
    fn cool(&mut self, cause: &str, level: u32, now: Ns) {
        let hold = self.settings.hold_off;
        if hold == 0 {
            return;
        }
        let cooling = self.cooling.entry(cause.to_owned()).or_insert(Cooling {
            until: 0,
            hold,
            level,
            repeats: 0,
            worst: None,
        });
        cooling.until = cooling.until.max(now.saturating_add(cooling.hold));
        cooling.level = cooling.level.max(level);
    }

    /// Hold-offs that are over.
    fn cooled(&mut self, now: Ns) -> Vec<Notice> {
        let mut notices = Vec::new();
        if self.cooling.len() > CAUSES
            && let Some(first) = self.cooling.values().map(|c| c.until).min()
        {
            self.cooling.values_mut().filter(|c| c.until == first).for_each(|c| c.until = now);
        }
        let over: Vec<String> =
            self.cooling.iter().filter(|(_, c)| c.until <= now).map(|(cause, _)| cause.clone()).collect();
        for cause in over {
            let Some(cooling) = self.cooling.get_mut(&cause) else { continue };
            if self.open.values().any(|open| !open.told && open.cause == cause) {
                // It is told with the next frame, as one that lasts, with how often it came before.
                continue;
            }
            let repeats = std::mem::take(&mut cooling.repeats);
            match cooling.worst.take() {
                Some(worst) if repeats > 0 => {
                    cooling.hold = cooling.hold.saturating_mul(2).min(LONGEST_HOLD_OFF);
                    cooling.until = now.saturating_add(cooling.hold);
                    notices.push(notice(Event::Repeated, &worst, true, repeats));
                }
                _ => {
                    self.cooling.remove(&cause);
                }
            }
        }
        notices
    }
}

fn notice(event: Event, incident: &Incident, told: bool, repeats: u64) -> Notice {
    Notice { event, told, urgent: false, repeats, incident: incident.clone() }
}

/// The large part of an incident is of no use once it is not the newest.
fn without_diagnosis(incident: &Incident) -> Incident {
    Incident { last: None, ..incident.clone() }
}

/// What is the same when the same cause comes again: what it ends in, on which device, and where that is not a device, of
/// which pod.
fn cause_of(incident: &Incident) -> String {
    let device = match &incident.ends_in {
        EndsIn::UnmountSync { device, .. } | EndsIn::Sync { device, .. } | EndsIn::Unmount { device, .. } => {
            device.as_ref()
        }
        _ => None,
    };
    let place = match device {
        Some(device) => format!("{:?}", device.device),
        None => incident.containers.first().map(words::pod).unwrap_or_default(),
    };
    format!("{} {} {place}", words::class(&incident.ends_in), incident.signature)
}

#[cfg(test)]
mod tests;
