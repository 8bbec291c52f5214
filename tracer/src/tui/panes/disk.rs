//! Memory that waits to be written, how much everybody waits, the disks it goes to, and who has dirtied it.

use super::{Column, Order, Row, column, from, number, sure};
use crate::correlator::{DeviceState, Diagnosis, EndsIn, Frame, Pressure, words};
use crate::event::{Device, Ns, Resource};
use crate::tui::history::Second;
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// What, how much now, how it was in the last minutes, a word on it.
pub const COLUMNS: [Column; 4] = [
    column("what", 22),
    number("now", 10),
    from(70, column("last 2 minutes", PICTURE as u16)),
    column("", 0),
];

/// Characters of the picture, and seconds that each stands for.
const PICTURE: usize = 24;
const STEP: u64 = 5;

/// Memory, then devices, then who dirties, then what else there is too little of.
pub fn rows(model: &Model) -> Vec<Row> {
    let Some(frame) = model.frame() else { return Vec::new() };
    let mut rows = Vec::new();
    if let Some(memory) = frame.memory {
        let series = |of: fn(&Second) -> Option<u64>| model.history().series(PICTURE, STEP, of);
        let dirty = series(|s| s.memory.map(|m| m.0));
        let writeback = series(|s| s.memory.map(|m| m.1));
        rows.push(row(
            "dirty",
            memory.dirty,
            bars(&dirty),
            Line::new(Ink::Dim, "memory that waits to be written"),
        ));
        rows.push(row(
            "under writeback",
            memory.writeback,
            bars(&writeback),
            Line::new(Ink::Dim, "being written"),
        ));
    }
    // Waits for the disk first, the other pressures last: what else there is explains them.
    let (disk, others): (Vec<&Pressure>, Vec<&Pressure>) =
        frame.pressures.iter().partition(|pressure| pressure.of == Resource::Io);
    rows.extend(disk.into_iter().map(|of| pressure(model, of)));
    let mut devices: Vec<&DeviceState> = frame.devices.iter().collect();
    let ends = |d: &DeviceState| ends_here(frame, d.device.device);
    devices.sort_by_key(|d| (std::cmp::Reverse((ends(d), d.bytes_per_second)), d.device.clone()));
    for (n, d) in devices.into_iter().enumerate() {
        let of =
            |s: &Second| s.rates.iter().find(|(device, _)| *device == d.device.device).map(|(_, rate)| *rate);
        let rates = model.history().series(PICTURE, STEP, of);
        let note = if ends(d) { Line::new(Ink::Bad, "the chain ends here") } else { Line::default() };
        let mut row = match d.bytes_per_second {
            Some(rate) => row(&words::device(&d.device), rate, bars(&rates), note),
            None => row(&words::device(&d.device), 0, bars(&rates), note),
        };
        let now = d.bytes_per_second.map_or("?".to_owned(), |rate| format!("{}/s", words::bytes(rate)));
        row.cells[1] = Line::new(Ink::Plain, now);
        row.begins_group = n == 0;
        rows.push(row);
    }
    for (n, (row, d)) in dirtiers(frame).into_iter().enumerate() {
        rows.push(Row { begins_group: n == 0, id: format!("{} {d}", row.id), ..row });
    }
    for (n, of) in others.into_iter().enumerate() {
        rows.push(Row { begins_group: n == 0, ..pressure(model, of) });
    }
    rows
}

fn row(what: &str, now: u64, picture: Line, note: Line) -> Row {
    Row {
        id: what.to_owned(),
        cells: vec![Line::new(Ink::Name, what), Line::new(Ink::Plain, words::bytes(now)), picture, note],
        order: vec![
            Order::Text(what.to_owned()),
            Order::most(now),
            Order::most(now),
            Order::Text(String::new()),
        ],
        ..Row::default()
    }
}

/// For how much of the time everybody waited.
fn pressure(model: &Model, pressure: &Pressure) -> Row {
    let (what, does) = match pressure.of {
        Resource::Io => ("I/O pressure", "waits for reads and writes"),
        Resource::Memory => ("memory pressure", "waits for memory"),
        Resource::Cpu => ("CPU pressure", "waits for a processor"),
    };
    let percent = |ppm: u32| format!("{:.1} %", f64::from(ppm) / 10_000.0);
    let of =
        |s: &Second| s.pressures.iter().find(|(of, _)| *of == pressure.of).map(|(_, ppm)| u64::from(*ppm));
    let mut note = Line::new(Ink::Dim, format!("of the time somebody {does}"));
    if let Some(full) = pressure.full_ppm {
        note = note.and(Ink::Dim, format!(", {} everybody", percent(full)));
    }
    if !pressure.reason.is_empty() {
        note = Line::new(Ink::Warn, "not known").and(Ink::Dim, format!(": {}", pressure.reason));
    }
    let picture = shares(&model.history().series(PICTURE, STEP, of));
    let mut row = row(what, u64::from(pressure.some_ppm.unwrap_or(0)), picture, note);
    row.cells[1] = Line::new(Ink::Plain, pressure.some_ppm.map_or("?".to_owned(), percent));
    row
}

/// Who dirties, by what everything waits for.
fn dirtiers(frame: &Frame) -> Vec<(Row, usize)> {
    let mut rows = Vec::new();
    for (index, d) in frame.diagnoses.iter().enumerate() {
        for one in &d.dirtied_by {
            let (ink, word) = sure(one.confidence);
            let who = words::source(&one.source);
            let rate = one.bytes_per_second.filter(|rate| *rate > 0);
            let rate = rate.map(|rate| format!("{}/s · ", words::bytes(rate))).unwrap_or_default();
            let note =
                Line::new(Ink::Plain, rate).and(ink, word).and(Ink::Dim, format!(": {}", one.evidence));
            let mut row = row(&who, one.bytes, Line::new(Ink::Dim, "dirtied by"), note.clone());
            row.full = Line::new(Ink::Plain, format!("dirtied by {who}: {} · ", words::bytes(one.bytes)))
                .and_all(note);
            row.container = one.source.subject().map(|s| s.id.clone());
            rows.push((row, index));
        }
        if let Some(why) = &d.dirtied_unknown {
            let note = Line::new(Ink::Warn, "not seen").and(Ink::Dim, format!(": because {why}"));
            let mut row = row("dirtied by", 0, Line::default(), note);
            row.cells[1] = Line::new(Ink::Plain, "?");
            rows.push((row, index));
        }
    }
    rows
}

/// Whether something that is stuck ends in this device.
fn ends_here(frame: &Frame, device: Device) -> bool {
    let of = |d: &Diagnosis| match &d.ends_in {
        EndsIn::UnmountSync { device, .. } | EndsIn::Sync { device, .. } | EndsIn::Unmount { device, .. } => {
            device.as_ref().map(|d| d.device)
        }
        _ => None,
    };
    frame.diagnoses.iter().any(|d| of(d) == Some(device))
}

/// A bar for each value, the greatest as high as a line; a dot where nothing is known.
pub fn bars(values: &[Option<Ns>]) -> Line {
    bars_up_to(values, values.iter().flatten().copied().max().unwrap_or(0))
}

/// The same of millionths, all of the time as high as a line.
fn shares(values: &[Option<u64>]) -> Line {
    bars_up_to(values, 1_000_000)
}

fn bars_up_to(values: &[Option<u64>], most: u64) -> Line {
    let of = |value: &Option<u64>| value.map_or("·", |value| bar(value, most));
    Line::new(Ink::Plain, values.iter().map(of).collect::<String>())
}

/// A bar that is as high as its part of the most; what there is at all is seen.
pub fn bar(value: u64, most: u64) -> &'static str {
    const BARS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    let eighths = u128::from(value) * 7 / u128::from(most.max(1));
    if value == 0 { " " } else { BARS[eighths.min(7) as usize] }
}

/// What is dirty.
pub fn count(model: &Model) -> String {
    let memory = model.frame().and_then(|f| f.memory);
    memory.map(|m| format!("{} dirty", words::bytes(m.dirty.saturating_add(m.writeback)))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_what_they_stand_for() {
        assert_eq!(bars(&[None, Some(0), Some(1), Some(50), Some(100)]).plain(), "· ▁▄█");
        assert_eq!(bars(&[Some(0)]).plain(), " ");
        assert_eq!(bars(&[Some(u64::MAX), Some(u64::MAX / 2)]).plain(), "█▄");
    }
}
