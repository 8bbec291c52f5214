//! Incidents so far, the newest first.

use super::{Column, Order, Row, column, fact, from, number};
use crate::correlator::words;
use crate::sinks::text;
use crate::tui::history::Known;
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// When it was opened, whether it is over, its longest stuck call, how many waited, why.
pub const COLUMNS: [Column; 5] = [
    column("opened", 8),
    column("state", 6),
    number("longest", 7),
    from(60, number("calls", 5)),
    column("cause", 0),
];

/// A row for each.
pub fn rows(model: &Model) -> Vec<Row> {
    model.history().incidents().map(|known| row(model, known)).collect()
}

fn is_over(model: &Model, known: &Known) -> bool {
    known.part_of.is_some() || known.incident.ended.is_some_and(|ended| ended <= model.now())
}

fn row(model: &Model, known: &Known) -> Row {
    let i = &known.incident;
    let over = is_over(model, known);
    let state = match (over, &known.part_of) {
        (_, Some(_)) => Line::new(Ink::Dim, "merged"),
        (true, None) => Line::new(Ink::Plain, "over"),
        (false, None) => Line::new(Ink::BadMark, "OPEN"),
    };
    let mut cause = Line::new(if over { Ink::Plain } else { Ink::Bold }, &i.cause);
    if !i.consequences.is_empty() {
        cause = cause.and(Ink::Warn, format!(" · so far: {}", text::harms(&i.consequences)));
    }
    Row {
        id: i.id.clone(),
        cells: vec![
            Line::new(Ink::Dim, model.time_of_day(i.opened)),
            state,
            Line::new(Ink::Plain, words::duration(i.longest)),
            Line::new(Ink::Plain, i.stuck_calls.to_string()),
            cause.clone(),
        ],
        order: vec![
            Order::most(i.opened),
            Order::most(u64::from(!over)),
            Order::most(i.longest),
            Order::most(i.stuck_calls),
            Order::Text(i.cause.clone()),
        ],
        full: Line::new(Ink::Dim, format!("{} · ", i.id)).and_all(cause),
        container: i.containers.first().map(|s| s.id.clone()),
        begins_group: false,
    }
}

/// How many, and how many of them are open.
pub fn count(model: &Model) -> String {
    let (mut all, mut open) = (model.history().forgotten, 0);
    for known in model.history().incidents() {
        all += 1;
        open += u64::from(!is_over(model, known));
    }
    match (all, open) {
        (0, _) => String::new(),
        (all, 0) => all.to_string(),
        (all, open) => format!("{all}, {open} open"),
    }
}

/// All that is known of it.
pub fn detail(model: &Model, id: &str) -> Option<Vec<Line>> {
    let known = model.history().incidents().find(|known| known.incident.id == id)?;
    let i = &known.incident;
    let mut out = vec![Line::new(Ink::Bold, &i.summary)];
    out.push(fact("incident", &i.id));
    out.extend(known.part_of.as_ref().map(|other| fact("part of", other)));
    out.push(fact("opened", format!("{} by {}", model.time_of_day(i.opened), i.crossed_by)));
    out.push(fact("since", model.time_of_day(i.since)));
    out.push(match i.ended {
        Some(ended) if ended <= model.now() => fact("ended", model.time_of_day(ended)),
        _ => fact("ended", "not yet"),
    });
    out.extend(i.uncertain_end.as_ref().map(|why| fact("uncertain", why)));
    out.push(fact("longest", words::duration(i.longest)));
    out.push(fact("calls", format!("up to {} at once", i.stuck_calls)));
    out.push(fact("cause", &i.cause));
    out.extend(i.consequences.iter().map(|c| fact("so far", format!("{}: {}", words::harm(c), c.evidence))));
    out.extend(i.containers.iter().flat_map(super::container));
    out.push(fact("signature", &i.signature));
    let now = model.frame().and_then(|f| {
        let d = f.diagnoses.iter().find(|d| d.incident.as_deref() == Some(id))?;
        Some(text::diagnosis(d, f.now))
    });
    let ticket = now.unwrap_or_else(|| known.ticket.clone());
    if !ticket.is_empty() {
        out.push(Line::default());
        out.extend(ticket.into_iter().map(Line::from));
    }
    Some(out)
}
