//! What can be seen: probes on and off and why, what was lost, what it costs the programs that are probed, and plegscope.

use super::{Column, Order, Row, column, from};
use crate::correlator::words;
use crate::event::ProgramCost;
use crate::sinks::text;
use crate::tui::message::{Own, Probe};
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// Whether it is on, what it sees, how, and a word on it.
pub const COLUMNS: [Column; 4] =
    [column("state", 6), column("what", 30), from(90, column("how", 24)), column("", 0)];

/// What is off or lost first, then costs, then what is on.
pub fn rows(model: &Model) -> Vec<Row> {
    let mut groups: Vec<Vec<Row>> = Vec::new();
    let probes: &[Probe] = model.probing.as_ref().map_or(&[], |p| &p.probes);
    let mut blind: Vec<Row> = probes.iter().filter(|p| p.how.is_none()).map(probe).collect();
    if let Some(frame) = model.frame() {
        // A probe that is off is told by the plan with its reason already.
        let told = |what: &str| probes.iter().any(|p| p.how.is_none() && p.what == what);
        blind.extend(
            frame
                .blind_spots
                .iter()
                .filter(|b| !told(&b.what))
                .map(|b| row("BLIND", Ink::WarnMark, &b.what, "", &b.reason)),
        );
        blind.extend(text::losses(frame).iter().map(|loss| {
            let (what, rest) = loss.split_once(": ").unwrap_or((loss.as_str(), ""));
            row("LOST", Ink::WarnMark, what, "", rest)
        }));
    }
    if model.skipped > 0 {
        let why = "pictures came faster than the screen takes them; nothing else is lost";
        blind.push(row("LEFT", Ink::WarnMark, "moments not shown", "", &format!("{}: {why}", model.skipped)));
    }
    groups.push(blind);
    let costs = model.frame().map_or(&[][..], |f| &f.costs);
    groups.push(own(model.own).into_iter().chain(costs.iter().map(cost)).collect());
    groups.push(probes.iter().filter(|p| p.how.is_some()).map(probe).collect());
    if let Some(f) = model.frame() {
        let program = |p: &crate::correlator::Program| {
            let version = p.version.as_deref().unwrap_or("version not known");
            row(
                "seen",
                Ink::Dim,
                words::role(Some(p.role)),
                version,
                &format!("{}, {}", processes(p.processes), p.go_version),
            )
        };
        groups.push(f.programs.iter().map(program).collect());
    }
    groups.push(model.log.iter().rev().map(|line| row("said", Ink::Dim, line, "", "")).collect());
    let mut rows = Vec::new();
    for group in groups {
        let begin = rows.len();
        rows.extend(group);
        if let Some(first) = rows.get_mut(begin).filter(|_| begin > 0) {
            first.begins_group = true;
        }
    }
    for (n, row) in rows.iter_mut().enumerate() {
        row.id = format!("{n} {}", row.id);
    }
    rows
}

fn row(state: &str, ink: Ink, what: &str, how: &str, note: &str) -> Row {
    let dash = if note.is_empty() { "" } else { ": " };
    let by = if how.is_empty() { String::new() } else { format!(" ({how})") };
    Row {
        id: format!("{state} {what} {how}"),
        cells: vec![
            Line::new(ink, state),
            Line::new(Ink::Plain, what),
            Line::new(Ink::Dim, how),
            Line::new(Ink::Dim, note),
        ],
        order: [state, what, how, note].map(|text| Order::Text(text.to_owned())).to_vec(),
        full: Line::new(Ink::Plain, format!("{what}{by}")).and(Ink::Dim, format!("{dash}{note}")),
        ..Row::default()
    }
}

fn probe(p: &Probe) -> Row {
    let parts = [p.loss.as_str(), p.note.as_str()];
    let note = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("; ");
    match &p.how {
        Some(how) => {
            let sites = if p.sites == 1 { "1 site".to_owned() } else { format!("{} sites", p.sites) };
            let on = if note.is_empty() { Ink::Good } else { Ink::Plain };
            row(
                "on",
                on,
                &p.what,
                &format!("{how}, {sites}"),
                &if note.is_empty() { p.target.clone() } else { note },
            )
        }
        None => row("OFF", Ink::WarnMark, &p.what, "", &note),
    }
}

/// What it costs a program that is probed.
fn cost(c: &ProgramCost) -> Row {
    let share = format!("{} of a core", percent(c.share_ppm));
    let rest = format!("{} hits, {} in {}", c.hits, words::bytes(c.memory), processes(c.processes));
    let ink = if c.share_ppm >= 10_000 { Ink::Warn } else { Ink::Dim };
    row("costs", ink, &c.comm, &share, &format!("{share}; {rest}"))
}

/// What plegscope itself takes.
fn own(own: Own) -> Vec<Row> {
    let names = ["plegscope, this screen", "plegscope, its warden"];
    let each = (0..2).filter_map(|n| {
        let share = format!("{} of a core", percent(own.cpu_ppm[n]?));
        let memory =
            own.resident[n].map(|bytes| format!("; {} in memory", words::bytes(bytes))).unwrap_or_default();
        Some(row("costs", Ink::Dim, names[n], &share, &format!("{share}{memory}")))
    });
    each.collect()
}

fn processes(n: u32) -> String {
    if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }
}

/// Millionths as people read them.
fn percent(ppm: u32) -> String {
    format!("{:.2} %", f64::from(ppm) / 10_000.0)
}

/// How many are on and off.
pub fn count(model: &Model) -> String {
    let Some(probing) = &model.probing else { return String::new() };
    let off = probing.probes.iter().filter(|p| p.how.is_none()).count();
    let lost = model.frame().is_some_and(|f| !f.losses.is_empty());
    let lost = if lost { ", LOSSES" } else { "" };
    match off {
        0 => format!("all on{lost}"),
        off => format!("{off} off{lost}"),
    }
}
