//! What is in flight: unmounts, lock waits, CRI calls, relists, with their ages.

use super::{Column, Order, Row, column, fact, from, name, number};
use crate::correlator::{InFlight, words};
use crate::event::Kind;
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// Age, what kind, what, on whom, by whom.
pub const COLUMNS: [Column; 5] = [
    number("age", 7),
    column("kind", 9),
    column("what", 0),
    from(60, column("container", 26)),
    from(110, column("who", 34)),
];

/// A row for each, oldest first.
pub fn rows(model: &Model) -> Vec<Row> {
    let Some(frame) = model.frame() else { return Vec::new() };
    frame.in_flight.iter().map(row).collect()
}

fn row(f: &InFlight) -> Row {
    let what = words::operation(&f.operation, None);
    let (container, who) = (name(f.subject.as_ref()), super::who(&f.who));
    let slow = if f.age >= crate::thresholds::Thresholds::DEFAULT.unmount { Ink::Bold } else { Ink::Plain };
    let of = if container.is_empty() { String::new() } else { format!(" of {container}") };
    Row {
        id: format!("{:?}", f.operation.id()),
        cells: vec![
            Line::new(slow, words::duration(f.age)),
            Line::new(Ink::Dim, kind(f.operation.kind)),
            Line::new(Ink::Plain, &what),
            Line::new(Ink::Name, &container),
            Line::new(Ink::Dim, &who),
        ],
        order: vec![
            Order::most(f.age),
            Order::Text(kind(f.operation.kind).to_owned()),
            Order::Text(what.clone()),
            Order::Text(container.clone()),
            Order::Text(who.clone()),
        ],
        full: Line::new(Ink::Plain, format!("{what}{of}")).and(Ink::Dim, format!(" · {who}")),
        container: f.subject.as_ref().map(|s| s.id.clone()),
        begins_group: false,
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Relist => "relist",
        Kind::CriClient | Kind::CriCall => "CRI call",
        Kind::StatusUpdate | Kind::LockHold => "lock hold",
        Kind::ExitHandling => "exit",
        Kind::ShimCall | Kind::ShimServe | Kind::InitMethod => "shim call",
        Kind::LockWait => "lock wait",
        Kind::Unmount | Kind::SuperShutdown => "unmount",
        Kind::Sync => "sync",
        Kind::Stalled => "stalled",
    }
}

/// How many of each kind.
pub fn count(model: &Model) -> String {
    model.frame().map(|f| f.in_flight_total.to_string()).filter(|n| n != "0").unwrap_or_default()
}

/// All that is known of it.
pub fn detail(model: &Model, id: &str) -> Option<Vec<Line>> {
    let all = &model.frame()?.in_flight;
    let f = all.iter().find(|f| format!("{:?}", f.operation.id()) == id)?;
    let op = &f.operation;
    let mut out = vec![Line::new(Ink::Bold, words::operation(op, None))];
    let comm = f.who.comm.as_ref().map(|comm| format!(" ({comm})")).unwrap_or_default();
    out.push(fact("who", format!("{}{comm}, begun on thread {}", super::who(&f.who), f.who.tid)));
    out.push(fact("age", format!("since {}, {}", model.time_of_day(op.begin), words::duration(f.age))));
    out.extend(f.subject.iter().flat_map(super::container));
    out.extend(op.path.as_ref().map(|path| fact("path", path)));
    out.extend(op.device.map(|d| fact("device", d.to_string())));
    out.extend(op.fs_type.as_ref().map(|fs| fact("file system", fs)));
    if op.object != 0 {
        out.push(fact("object", format!("{:#x}", op.object)));
    }
    Some(out)
}
