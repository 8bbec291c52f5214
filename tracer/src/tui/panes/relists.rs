//! Relists: the one in flight against the threshold of NotReady, and the slow ones that have ended.

use super::{Column, Order, Row, column, number};
use crate::correlator::{Head, words};
use crate::event::Ns;
use crate::thresholds::PLEG_THRESHOLD;
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// When it ended, how long it took, what it was waiting for.
pub const COLUMNS: [Column; 3] = [column("ended", 8), number("took", 7), column("waited for", 0)];

/// Slow relists that have ended, newest first.
pub fn rows(model: &Model) -> Vec<Row> {
    let row = |r: &crate::tui::history::SlowRelist| {
        let (ink, cause) = match &r.cause {
            Some(cause) => (Ink::Plain, cause.as_str()),
            None => (Ink::Dim, "not seen: it was over before a chain was drawn"),
        };
        Row {
            id: format!("relist {}", r.at),
            cells: vec![
                Line::new(Ink::Dim, model.time_of_day(r.at)),
                Line::new(Ink::Plain, words::duration(r.age)),
                Line::new(ink, cause),
            ],
            order: vec![Order::most(r.at), Order::most(r.age), Order::Text(cause.to_owned())],
            ..Row::default()
        }
    };
    model.history().relists().map(row).collect()
}

/// What the threshold is, and whether it was read from the kubelet.
pub fn threshold(model: &Model) -> (Ns, bool) {
    let read = model.frame().and_then(|f| f.diagnoses.iter().find_map(|d| d.not_ready.as_ref()));
    read.map_or((PLEG_THRESHOLD, false), |n| {
        (n.threshold, n.confidence == crate::correlator::Confidence::Proven)
    })
}

/// How the relists fare, in lines above the picture.
pub fn summary(model: &Model) -> Vec<Line> {
    let Some(f) = model.frame() else { return Vec::new() };
    let (threshold, _) = threshold(model);
    let is_its = |d: &&crate::correlator::Diagnosis| matches!(d.head, Head::Relist | Head::ListCall);
    let not_ready = f.diagnoses.iter().find(is_its).and_then(|d| d.not_ready.as_ref());
    let name = if f.relists.stand_in { "list call" } else { "relist" };
    let in_flight = |age| format!("{name} in flight for {}", words::duration(age));
    let limit = words::duration(threshold);
    let mut first = match (f.relists.in_flight, not_ready) {
        (Some(age), Some(n)) if n.at > f.now => Line::new(Ink::Bad, in_flight(age))
            .and(Ink::Plain, format!(" · NotReady in {}", words::duration(n.at - f.now))),
        (Some(age), Some(n)) => Line::new(Ink::Bad, in_flight(age))
            .and(Ink::Plain, " ")
            .and(Ink::BadMark, format!(" NotReady since {} ", words::duration(f.now - n.at))),
        (Some(age), None) => {
            Line::new(Ink::Bold, in_flight(age)).and(Ink::Dim, format!(" · NotReady at {limit}"))
        }
        (None, _) => Line::new(Ink::Plain, format!("no slow {name} in flight"))
            .and(Ink::Dim, format!(" · NotReady at {limit}")),
    };
    if f.relists.stand_in {
        first = first.and(Ink::Dim, " · the kubelet's relist is not seen");
    }
    let mut out = vec![first];
    let slow = f.relists.explained + f.relists.unexplained;
    if slow > 0 {
        out.push(Line::new(
            Ink::Plain,
            format!(
                "{slow} slow so far: {} explained, {} not; longest {}",
                f.relists.explained,
                f.relists.unexplained,
                words::duration(f.relists.longest)
            ),
        ));
    }
    out
}

/// The age of the one in flight.
pub fn count(model: &Model) -> String {
    model.frame().and_then(|f| f.relists.in_flight).map(words::duration).unwrap_or_default()
}
