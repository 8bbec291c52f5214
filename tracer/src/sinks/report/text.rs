//! A report as plain text, for a terminal or a ticket.

use super::{Told, words as say};
use crate::correlator::words::{clip, duration};
use crate::report::{Comparison, Report, Reported};
use crate::sinks::{sanitise, text as frame};
use std::fmt::Write as _;

/// At most this many characters in a line; only names of unheard-of length, and commands, come to that.
const WIDTH: usize = 600;
/// Lines of a chain.
const CHAIN: usize = 40;
/// Slow relists and late exits that are listed.
const LISTED: usize = 20;

/// All of it.
pub fn text(told: Told<'_>) -> String {
    let mut out = Lines::default();
    let r = told.report;
    out.line(0, &format!("plegscope report: {}", say::headline(r)));
    out.line(0, "");
    for (label, value) in say::node(r) {
        out.line(0, &format!("{label:<10} {value}"));
    }
    if let Some(comparison) = told.against {
        against(&mut out, comparison);
    }
    for (n, one) in r.incidents.iter().enumerate() {
        out.head(&format!("incident {} of {}", n + 1, r.incidents.len()));
        incident(&mut out, one);
    }
    let more = r.totals.incidents.saturating_sub(r.incidents.len() as u64);
    if more > 0 {
        out.line(0, &format!("and {more} shorter ones"));
    }
    relists(&mut out, r);
    latencies(&mut out, r);
    fixes(&mut out, r);
    blind(&mut out, r);
    out.text
}

/// Collects lines that are safe to print.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, indent: usize, text: &str) {
        let line = format!("{:indent$}{}", "", clip(text, WIDTH));
        // Writing into a string does not fail.
        let _ = writeln!(self.text, "{}", sanitise(line.trim_end()));
    }

    /// What is to be copied: never cut.
    fn whole(&mut self, indent: usize, text: &str) {
        let _ = writeln!(self.text, "{:indent$}{}", "", sanitise(text));
    }

    fn head(&mut self, text: &str) {
        self.line(0, "");
        self.line(0, &format!("== {text}"));
    }

    /// Columns as wide as what is in them; the first is text, the others are numbers.
    fn table(&mut self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(i, (text, &width))| match i {
                0 => format!("{text:<width$}"),
                _ => format!("{text:>width$}"),
            });
            self.line(2, &cells.collect::<Vec<_>>().join("  "));
        }
    }
}

fn incident(out: &mut Lines, one: &Reported) {
    let record = &one.record;
    out.line(0, &say::sentence(record));
    let over = one.over();
    out.line(2, &format!("{} · {}", record.id, say::when(record, over)));
    if let Some(other) = &one.merged_into {
        out.line(2, &format!("turned out to be part of {other}"));
    }
    match &one.diagnosis {
        Some(d) => frame::tree(d, CHAIN).iter().for_each(|line| out.line(2, line)),
        None => {
            for step in &record.chain {
                out.line(
                    2 * step.n as usize,
                    &format!("{} ({} here)", say::step(step), duration(step.critical)),
                );
            }
        }
    }
    for (label, text) in say::facts(record) {
        out.line(2, &format!("{label}: {text}"));
    }
    for (label, steps) in say::steps(record) {
        out.line(2, &format!("{label}: {}", steps.join("; ")));
    }
    for changed in &one.changes {
        out.line(
            2,
            &format!("{}  {} (longest {})", changed.when.time, changed.what, duration(changed.longest)),
        );
    }
    for log in &one.logs {
        out.line(2, &format!("in the log of {}:", log.of));
        out.whole(4, &log.command);
    }
}

fn relists(out: &mut Lines, r: &Report) {
    if r.relists.explained + r.relists.unexplained > 0 || r.relists.in_flight.is_some() {
        out.head("slow relists");
        out.line(0, &say::relists(r));
        for one in r.relists.slow.iter().take(LISTED) {
            let open = if one.ended { "" } else { "at least " };
            out.line(2, &format!("{}  {open}{}  {}", one.begin.time, duration(one.took), say::relist(one)));
        }
        let all = r.relists.explained + r.relists.unexplained + u64::from(r.relists.in_flight.is_some());
        let more = all.saturating_sub(r.relists.slow.len().min(LISTED) as u64);
        if more > 0 {
            out.line(2, &format!("and {more} more"));
        }
    }
    if !r.late_exits.is_empty() {
        out.head("late exits");
        r.late_exits.iter().take(LISTED).for_each(|e| out.line(2, &say::late_exit(e)));
        let more = r.totals.late_exits.saturating_sub(r.late_exits.len().min(LISTED) as u64);
        if more > 0 {
            out.line(2, &format!("and {more} more"));
        }
    }
}

fn latencies(out: &mut Lines, r: &Report) {
    out.head("how long things took");
    let head = say::LATENCY.map(str::to_owned).to_vec();
    let rows = r.latencies.iter().map(|l| say::latency(l).to_vec());
    out.table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
}

fn fixes(out: &mut Lines, r: &Report) {
    if r.fixes.is_empty() {
        return;
    }
    out.head("fixes, in the order in which to try them");
    for (n, fix) in r.fixes.iter().enumerate() {
        let saves = match fix.saves {
            Some(ns) => format!("would have saved about {}", duration(ns)),
            None => "how much it saves cannot be told".to_owned(),
        };
        let of = say::counted(fix.incidents, "incident");
        out.line(0, &format!("{}. {}: {saves} ({of})", n + 1, fix.what));
        out.whole(3, &format!("how: {}", fix.how));
        if !fix.since.is_empty() {
            out.line(3, &format!("since: {}", fix.since));
        }
        out.line(3, &format!("side effects: {}", fix.side_effects));
        out.line(3, &format!("more: docs/fixes.md#{}", fix.id));
    }
}

fn blind(out: &mut Lines, r: &Report) {
    out.head("what was not seen");
    say::probes(r).iter().for_each(|line| out.line(0, line));
    let losses = say::losses(r);
    if r.blind.spots.is_empty() && losses.is_empty() {
        out.line(0, "no blind spot and no loss was noticed");
    }
    r.blind.spots.iter().for_each(|spot| out.line(2, &format!("blind spot: {}", say::spot(spot))));
    losses.iter().for_each(|loss| out.line(2, loss));
}

fn against(out: &mut Lines, c: &Comparison) {
    out.head("before and after");
    out.line(0, &c.verdict);
    out.line(2, &format!("before: {} {} to {}", c.before.host, c.before.from.time, c.before.to.time));
    out.line(2, &format!("after:  {} {} to {}", c.after.host, c.after.from.time, c.after.to.time));
    let head = ["", "before", "after"].map(str::to_owned).to_vec();
    let rows = c.rows.iter().map(|row| {
        vec![
            row.what.clone(),
            say::quantity(row.quantity, row.before),
            say::quantity(row.quantity, row.after),
        ]
    });
    out.table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    for (signature, before, after) in &c.causes {
        out.line(2, &format!("ends in {signature}: {before} before, {after} after"));
    }
    c.cautions.iter().for_each(|caution| out.line(2, &format!("caution: {caution}")));
}
