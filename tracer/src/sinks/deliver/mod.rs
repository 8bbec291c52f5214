//! Ways on which alerts leave: a file each. Every one has a bounded queue and a thread of its own, so that none holds up
//! another, or the tracing; what is lost or fails is counted and told.

pub mod exec;
pub mod journal;
pub mod queue;
pub mod retry;
pub mod state;
pub mod store;
pub mod webhook;

pub use queue::{Count, Queue};

use super::{json, sanitise, text};
use crate::alert::{Event, Notice};
use crate::capture::{Header, Record};
use crate::correlator::{Frame, words};
use crate::event::Ns;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bytes that an alert has at most, as JSON: those of its record, and its own few.
pub const MOST: usize = crate::capture::record::MOST + 1024;

/// What is told of an incident at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Counts the alerts of this run, from 1, also those that are only kept.
    pub seq: u64,
    /// What is told.
    pub event: Event,
    /// Whether it is told; else it is held back, and only kept in the store.
    pub told: bool,
    /// Whether the node is NotReady soon, or already.
    pub urgent: bool,
    /// The incident.
    pub id: String,
    /// One line for people, safe to print.
    pub text: String,
    /// When the first threshold was passed, in milliseconds since 1970: with the id it names the incident for good.
    pub opened: i64,
    /// One line of JSON without its end, safe to print: the fields of [`Record`], and `event`, `seq`, `urgent`,
    /// `repeats`. At most [`MOST`] bytes.
    pub json: Vec<u8>,
}

/// The JSON of an alert.
#[derive(Serialize)]
struct Told<'a> {
    event: Event,
    seq: u64,
    urgent: bool,
    /// How often the same cause came back before this and was not told.
    repeats: u64,
    #[serde(flatten)]
    record: &'a Record,
}

impl Alert {
    /// Of something that has become known with this frame.
    pub fn of(seq: u64, notice: &Notice, header: &Header, frame: &Frame) -> Alert {
        let incident = &notice.incident;
        let record = Record::of(header, frame, incident);
        let (event, urgent, repeats) = (notice.event, notice.urgent, notice.repeats);
        // Writing plain data into memory does not fail.
        let mut json = json::line(&Told { event, seq, urgent, repeats, record: &record }).unwrap_or_default();
        json.truncate(json.trim_ascii_end().len());
        Alert {
            seq,
            event,
            told: notice.told,
            urgent,
            id: incident.id.clone(),
            text: line(notice, frame.now),
            opened: header.clock.realtime_of(incident.opened) / 1_000_000,
            json,
        }
    }
}

/// An alert in one line.
fn line(notice: &Notice, now: Ns) -> String {
    let incident = &notice.incident;
    let before = match notice.repeats {
        0 => String::new(),
        times => format!(" · came back {times} times before"),
    };
    let id = &incident.id;
    let line = match notice.event {
        Event::Crossed => format!("CROSSED {id} ({}): {}{before}", incident.crossed_by, incident.summary),
        Event::Grew => {
            format!("GROWS {id} (longest {}): {}", words::duration(incident.longest), incident.summary)
        }
        Event::NotReady => format!("NOTREADY SOON {id}: {}", incident.summary),
        Event::Repeated => format!(
            "REPEATED {} times since it was told, last as {id}, longest {}: {}",
            notice.repeats,
            words::duration(incident.longest),
            incident.cause
        ),
        Event::Ended | Event::After => match text::change(incident) {
            Some(line) => line + &before,
            None => format!("ENDED {id} after {}", words::duration(now.saturating_sub(incident.since))),
        },
    };
    sanitise(&words::clip(&line, text::WIDTH)).into_owned()
}

/// Takes in words why an attempt has failed that is made again.
pub type Again<'a> = &'a dyn Fn(&str);

/// A way on which alerts leave. Called on a thread of its own, which it may keep for as long as it has a bound for.
pub trait Delivery: Send {
    /// Brings an alert away, or says in words why it could not; and before that, of each attempt that it makes again.
    fn deliver(&mut self, alert: &Alert, _: Again<'_>) -> Result<(), String>;

    /// Whether it also wants what is only kept.
    fn wants_held(&self) -> bool {
        false
    }

    /// How long one may take before it hangs, and later ones of its incident overtake it; `None` where it never does.
    fn limit(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
pub mod tests {
    //! Alerts for the tests of deliveries.

    use super::*;
    use crate::correlator::{Change, EndsIn, Incident};
    use crate::thresholds::SECOND;

    fn notice(event: Event, change: Option<Change>) -> Notice {
        let incident = Incident {
            id: "unmount-5-5-1".to_owned(),
            opened: 15 * SECOND,
            since: 10 * SECOND,
            ended: (event == Event::Ended).then_some(20 * SECOND),
            crossed_by: "unmount over 5.0s".to_owned(),
            ends_in: EndsIn::StatusWrite,
            signature: "status-write".to_owned(),
            summary: format!("STUCK 5.0s · \u{1b}[2J{}", "x".repeat(40_000)),
            cause: "a write".to_owned(),
            level: 0,
            longest: 10 * SECOND,
            stuck_calls: 1,
            containers: Vec::new(),
            consequences: Vec::new(),
            change,
            uncertain_end: None,
            last: None,
        };
        Notice { event, told: true, urgent: true, repeats: 3, incident }
    }

    #[test]
    fn an_alert_is_the_record_and_what_makes_it_one_within_its_bound() {
        let frame = Frame { now: 20 * SECOND, ..Frame::default() };
        let header = Header { host: "node-7".to_owned(), ..Header::default() };
        for (event, change, line) in [
            (
                Event::Crossed,
                Some(Change::Crossed),
                "CROSSED unmount-5-5-1 (unmount over 5.0s): STUCK 5.0s · \u{fffd}[2Jxx",
            ),
            (Event::Grew, Some(Change::Grew), "GROWS unmount-5-5-1 (longest 10s): STUCK 5.0s"),
            (Event::NotReady, None, "NOTREADY SOON unmount-5-5-1: STUCK 5.0s"),
            (
                Event::Ended,
                Some(Change::Ended),
                "ENDED unmount-5-5-1 after 10s: a write · 1 call waited · came back 3 times before",
            ),
            (
                Event::Repeated,
                Some(Change::Ended),
                "REPEATED 3 times since it was told, last as unmount-5-5-1, longest 10s: a write",
            ),
        ] {
            let alert = Alert::of(7, &notice(event, change.clone()), &header, &frame);
            assert!(alert.text.starts_with(line) && alert.text.len() < 2_000, "{}", alert.text);
            assert!(alert.json.len() <= MOST && !alert.json.contains(&b'\n'), "{} bytes", alert.json.len());
            let json: serde_json::Value = serde_json::from_slice(&alert.json).unwrap();
            assert_eq!(
                (&json["event"], &json["seq"], &json["urgent"], &json["repeats"], &json["node"]["host"]),
                (&event.word().into(), &7.into(), &true.into(), &3.into(), &"node-7".into())
            );
            // Who knows the record can read it.
            let record: Record = serde_json::from_slice(&alert.json).unwrap();
            assert_eq!((record.id.as_str(), record.change), ("unmount-5-5-1", change));
        }
    }

    /// An alert that says something.
    pub fn alert(seq: u64, event: Event, id: &str) -> Alert {
        Alert {
            seq,
            event,
            told: true,
            urgent: false,
            id: id.to_owned(),
            text: format!("{} {id}", event.word()),
            opened: 1_709_204_400_000,
            json: format!("{{\"event\":\"{}\",\"seq\":{seq},\"id\":\"{id}\"}}", event.word()).into_bytes(),
        }
    }
}
