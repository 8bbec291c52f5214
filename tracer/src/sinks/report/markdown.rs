//! A report as Markdown, for an issue, a chat or a post-mortem.

use super::{Told, words as say};
use crate::correlator::words::duration;
use crate::report::{Comparison, Report, Reported};
use crate::sinks::{sanitise, text as frame};
use std::fmt::Write as _;

/// Slow relists and late exits that are listed.
const LISTED: usize = 20;
/// Lines of a chain.
const CHAIN: usize = 40;

/// All of it.
pub fn markdown(told: Told<'_>) -> String {
    let r = told.report;
    let mut out =
        format!("# plegscope report: {}\n\n{}\n\n", escape(&r.node.host), escape(&say::headline(r)));
    for (label, value) in say::node(r) {
        let _ = writeln!(out, "- {label}: {}", escape(&value));
    }
    out.extend(told.against.map(against));
    for (n, one) in r.incidents.iter().enumerate() {
        let _ = write!(out, "\n## Incident {} of {}\n\n{}", n + 1, r.incidents.len(), incident(one));
    }
    let more = r.totals.incidents.saturating_sub(r.incidents.len() as u64);
    if more > 0 {
        let _ = writeln!(out, "\nand {more} shorter ones");
    }
    relists(&mut out, r);
    let rows = r.latencies.iter().map(|l| say::latency(l).to_vec());
    let _ = write!(out, "\n## How long things took\n\n{}", table(&say::LATENCY, true, rows));
    fixes(&mut out, r);
    blind(&mut out, r);
    out
}

/// Text that is shown as it is, whatever it was: every character that Markdown or HTML could take for its own is escaped.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in sanitise(text).chars() {
        // A name with these in its middle is common, and harmless there.
        let special = c.is_ascii_punctuation()
            && !matches!(c, '.' | ',' | ':' | ';' | '/' | '%' | '\'' | '=' | '?' | '-');
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '(' | ')' | '"' => out.push(c),
            c if special => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    // No address is made a link of, whatever comes behind it.
    out.replace("://", "&#58;//").replace("www.", "www&#46;")
}

/// Lines that are shown as they are, in a block with a fence that none of them can close.
fn block<S: AsRef<str>>(lines: &[S]) -> String {
    let mut out = String::from("````text\n");
    for line in lines {
        let _ = writeln!(out, "{}", sanitise(line.as_ref()).replace("```", "'''"));
    }
    out.push_str("````\n");
    out
}

/// A table; all but the first column are numbers, or none is.
fn table<const N: usize>(head: &[&str; N], numbers: bool, rows: impl Iterator<Item = Vec<String>>) -> String {
    let line =
        |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let mut out = line(&mut head.iter().map(|h| escape(h)));
    out.push_str(&line(&mut (0..N).map(|i| if i > 0 && numbers { "---:" } else { "---" }.to_owned())));
    out.extend(rows.map(|row| line(&mut row.iter().map(|cell| escape(cell)))));
    out
}

fn incident(one: &Reported) -> String {
    let record = &one.record;
    let mut out = format!("**{}**\n\n", escape(&say::sentence(record)));
    let _ = writeln!(out, "{} ({})\n", escape(&say::when(record, one.over())), escape(&record.id));
    if let Some(other) = &one.merged_into {
        let _ = writeln!(out, "It turned out to be part of {}.\n", escape(other));
    }
    let lines = match &one.diagnosis {
        Some(d) => frame::tree(d, CHAIN),
        None => record.chain.iter().map(say::step).collect(),
    };
    out.push_str(&block(&lines));
    out.push('\n');
    for (label, text) in say::facts(record) {
        let _ = writeln!(out, "- {label}: {}", escape(&text));
    }
    for (label, steps) in say::steps(record) {
        let _ = writeln!(out, "- {label}: {}", escape(&steps.join("; ")));
    }
    out.push_str("\nHow it went:\n\n");
    for c in &one.changes {
        let (time, what) = (escape(&c.when.time), escape(&c.what));
        let _ = writeln!(out, "- {time} {what} (longest {})", duration(c.longest));
    }
    out.push_str("\nWhere the logs tell of it:\n\n");
    let commands: Vec<&str> = one.logs.iter().map(|log| log.command.as_str()).collect();
    out.push_str(&block(&commands));
    out
}

fn relists(out: &mut String, r: &Report) {
    let all = r.relists.explained + r.relists.unexplained + u64::from(r.relists.in_flight.is_some());
    if all > 0 {
        let rows = r.relists.slow.iter().take(LISTED).map(|one| {
            let open = if one.ended { "" } else { "at least " };
            vec![one.begin.time.clone(), format!("{open}{}", duration(one.took)), say::relist(one)]
        });
        let rows = table(&["began", "took", "what it waited for"], false, rows);
        let _ = write!(out, "\n## Slow relists\n\n{}\n\n{rows}", escape(&say::relists(r)));
        let more = all.saturating_sub(r.relists.slow.len().min(LISTED) as u64);
        if more > 0 {
            let _ = writeln!(out, "\nand {more} more");
        }
    }
    if !r.late_exits.is_empty() {
        out.push_str("\n## Late exits\n\n");
        for exit in r.late_exits.iter().take(LISTED) {
            let _ = writeln!(out, "- {}", escape(&say::late_exit(exit)));
        }
        let more = r.totals.late_exits.saturating_sub(r.late_exits.len().min(LISTED) as u64);
        if more > 0 {
            let _ = writeln!(out, "- and {more} more");
        }
    }
}

fn fixes(out: &mut String, r: &Report) {
    if r.fixes.is_empty() {
        return;
    }
    out.push_str("\n## Fixes, in the order in which to try them\n\n");
    for (n, fix) in r.fixes.iter().enumerate() {
        let saves = match fix.saves {
            Some(ns) => format!("would have saved about {}", duration(ns)),
            None => "how much it saves cannot be told".to_owned(),
        };
        let of = say::counted(fix.incidents, "incident");
        let _ = writeln!(out, "{}. **{}**: {saves} ({of})", n + 1, escape(&fix.what));
        let since = if fix.since.is_empty() { "any version" } else { &fix.since };
        for (label, text) in
            [("how", fix.how.as_str()), ("since", since), ("side effects", &fix.side_effects)]
        {
            let _ = writeln!(out, "   - {label}: {}", escape(text));
        }
    }
}

fn blind(out: &mut String, r: &Report) {
    out.push_str("\n## What was not seen\n\n");
    let losses = say::losses(r);
    say::probes(r).iter().for_each(|line| {
        let _ = writeln!(out, "- {}", escape(line));
    });
    for spot in &r.blind.spots {
        let _ = writeln!(out, "- blind spot: {}", escape(&say::spot(spot)));
    }
    for loss in &losses {
        let _ = writeln!(out, "- {}", escape(loss));
    }
    if r.blind.spots.is_empty() && losses.is_empty() {
        out.push_str("- no blind spot and no loss was noticed\n");
    }
}

fn against(c: &Comparison) -> String {
    let mut out = format!("\n## Before and after\n\n**{}**\n\n", escape(&c.verdict));
    for (name, side) in [("before", &c.before), ("after", &c.after)] {
        let _ = writeln!(
            out,
            "- {name}: {} {} to {}",
            escape(&side.host),
            escape(&side.from.time),
            escape(&side.to.time)
        );
    }
    out.push('\n');
    let numbers = c.rows.iter().map(|row| {
        vec![
            row.what.clone(),
            say::quantity(row.quantity, row.before),
            say::quantity(row.quantity, row.after),
        ]
    });
    let causes = c
        .causes
        .iter()
        .map(|(what, before, after)| vec![what.clone(), before.to_string(), after.to_string()]);
    out.push_str(&table(&["", "before", "after"], true, numbers.chain(causes)));
    if !c.cautions.is_empty() {
        out.push_str("\nCautions:\n\n");
        c.cautions.iter().for_each(|caution| {
            let _ = writeln!(out, "- {}", escape(caution));
        });
    }
    out
}
