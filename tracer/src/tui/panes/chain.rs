//! The chain: from the symptom through everybody who waits for somebody to what it ends in, and who else waits for that.

use super::{Column, Row, column, fact, from, number, sure};
use crate::correlator::{Diagnosis, EdgeKind, Link, StuckCall, words};
use crate::event::SeenBy;
use crate::sinks::text;
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// Age, share of the critical path, how sure it is, the way with its links, the container.
pub const COLUMNS: [Column; 5] = [
    number("age", 7),
    number("here", 7),
    column("sure", 8),
    column("who waits for what", 0),
    from(120, column("container", 12)),
];

/// The row of what it ends in.
pub const END: &str = "end";

/// A row for each link, one for what it ends in, one for each other call that waits for the same.
pub fn rows(model: &Model) -> Vec<Row> {
    let Some((d, ..)) = model.diagnosis() else { return Vec::new() };
    let mut rows = Vec::new();
    for (depth, step) in steps(model, d).into_iter().enumerate() {
        let links = d.chain.links.get(step.links.clone()).unwrap_or_default();
        let Some(first) = links.first() else { continue };
        let way = if step.way.is_empty() { String::new() } else { format!("{} ", step.way) };
        let tree = if depth == 0 { String::new() } else { format!("{}└ ", " ".repeat(depth - 1)) };
        let who = step.who.clone().unwrap_or_default();
        let aside = if who.is_empty() { String::new() } else { format!(" · {who}") };
        let (ink, word) = step.sure.as_ref().map_or((Ink::Dim, ""), |(c, _)| sure(*c));
        let heavy = u128::from(step.critical) * 4 >= u128::from(d.chain.age.max(1));
        let here = if heavy { Ink::Bold } else { Ink::Dim };
        let least = if step.at_least { "≥" } else { "" };
        let container = links.iter().rev().find_map(|l| l.subject.as_ref());
        let age = format!("{least}{}", words::duration(step.age));
        let mut full = Line::new(Ink::Plain, format!("{way}{}", step.what));
        if !who.is_empty() {
            full = full.and(Ink::Dim, format!(" · {who}"));
        }
        if let Some((confidence, evidence)) = &step.sure {
            let (ink, word) = sure(*confidence);
            full = full.and(ink, format!(" · {word}")).and(Ink::Dim, format!(": {evidence}"));
        }
        rows.push(Row {
            id: key(first),
            cells: vec![
                Line::new(Ink::Plain, age),
                Line::new(here, words::duration(step.critical)),
                Line::new(ink, word),
                Line::new(Ink::Dim, tree).and(Ink::Dim, way).and(Ink::Plain, step.what).and(Ink::Dim, aside),
                Line::new(Ink::Name, container.map(|s| words::short_id(&s.id)).unwrap_or_default()),
            ],
            full,
            container: container.map(|s| s.id.clone()),
            ..Row::default()
        });
    }
    rows.push(end(d));
    rows.extend(d.stuck_calls.iter().skip(1).enumerate().map(|(n, call)| also(d, n, call)));
    rows
}

/// The chain as it is told: where it has few lines, a caller's side is told with the caller.
fn steps(model: &Model, d: &Diagnosis) -> Vec<text::Step> {
    /// Lines of other things on the screen.
    const OTHERS: usize = 14;
    let steps = text::steps(d);
    let room = usize::from(model.size.1).saturating_sub(OTHERS);
    if steps.len() < room { steps } else { text::dense_steps(d) }
}

fn end(d: &Diagnosis) -> Row {
    let (ink, word) = sure(d.confidence);
    let what = words::ends_in(&d.ends_in);
    let because = words::because(&d.ends_in).map(|why| format!(": because {why}")).unwrap_or_default();
    let container = words::unmount_of(&d.chain.links).and_then(|l| l.subject.as_ref());
    let head = Line::new(Ink::Bad, "ends in: ").and(Ink::Bold, what).and(Ink::Plain, because);
    Row {
        id: END.to_owned(),
        cells: vec![
            Line::default(),
            Line::default(),
            Line::new(ink, word),
            head.clone(),
            Line::new(Ink::Name, container.map(|s| words::short_id(&s.id)).unwrap_or_default()),
        ],
        full: head.and(ink, format!(" · {word}")).and(Ink::Dim, format!(": {}", d.evidence)),
        container: container.map(|s| s.id.clone()),
        ..Row::default()
    }
}

/// Another call that waits for the same.
fn also(d: &Diagnosis, n: usize, call: &StuckCall) -> Row {
    let method = call.id.method.as_str();
    let what = match (method, &call.subject) {
        ("", Some(s)) => format!("{} of {}", kind(call.id.kind), words::subject(s)),
        ("", None) => kind(call.id.kind),
        (method, Some(s)) => format!("{method} of {}", words::subject(s)),
        (method, None) => method.to_owned(),
    };
    let least = if call.at_least { "≥" } else { "" };
    let joins = call.joins.and_then(|n| d.chain.links.get(n)).map(words::link);
    let joins = joins.map_or_else(|| "by another way".to_owned(), |at| format!("from here on: {at}"));
    let who = super::who(&call.who);
    let line = Line::new(Ink::Dim, "also waits: ").and(Ink::Plain, what).and(Ink::Dim, format!(" · {who}"));
    Row {
        id: format!("also {:?}", call.id),
        cells: vec![
            Line::new(Ink::Plain, format!("{least}{}", words::duration(call.age))),
            Line::default(),
            Line::default(),
            line.clone(),
            Line::new(Ink::Name, call.subject.as_ref().map(|s| words::short_id(&s.id)).unwrap_or_default()),
        ],
        full: line.and(Ink::Dim, format!(" · {joins}")),
        container: call.subject.as_ref().map(|s| s.id.clone()),
        begins_group: n == 0,
        ..Row::default()
    }
}

/// An operation without a method.
fn kind(kind: crate::event::Kind) -> String {
    use crate::event::Kind;
    match kind {
        Kind::Relist => "relist".to_owned(),
        Kind::ExitHandling => "exit".to_owned(),
        Kind::Unmount => "unmount".to_owned(),
        Kind::LockWait => "lock wait".to_owned(),
        other => format!("{other:?}"),
    }
}

fn key(link: &Link) -> String {
    format!("{:?}", link.operation.id())
}

/// How many calls wait, and which of several things this is.
pub fn count(model: &Model) -> String {
    match model.diagnosis() {
        Some((_, index, total)) if total > 1 => format!("{} of {total}, d: next", index + 1),
        _ => String::new(),
    }
}

/// What is said where nothing is stuck.
pub fn nothing(model: &Model) -> Line {
    match model.frame() {
        Some(_) if model.is_looking() => {
            "nothing is stuck: a chain stands here as soon as a call has waited for half a second".into()
        }
        _ => "not looking yet: probes are being attached".into(),
    }
}

/// All that is known of a link, of the end, or of a call that waits too.
pub fn detail(model: &Model, id: &str) -> Option<Vec<Line>> {
    let (d, ..) = model.diagnosis()?;
    if id == END {
        return Some(detail_of_end(d));
    }
    if let Some(row) = rows(model).into_iter().find(|row| row.id == id && row.id.starts_with("also ")) {
        let id = row.container.map(|id| fact("container", id));
        return Some(std::iter::once(row.full).chain(id).collect());
    }
    let steps = steps(model, d);
    let is_it = |links: &[Link]| links.first().is_some_and(|l| key(l) == id);
    let step = steps.iter().find(|s| d.chain.links.get(s.links.clone()).is_some_and(is_it))?;
    let mut out = Vec::new();
    for (n, link) in d.chain.links.get(step.links.clone())?.iter().enumerate() {
        if n > 0 {
            out.push(Line::default());
        }
        out.extend(detail_of(model, link));
    }
    Some(out)
}

fn detail_of(model: &Model, l: &Link) -> Vec<Line> {
    let op = &l.operation;
    let mut out = vec![Line::new(Ink::Bold, words::link(l))];
    if let Some(edge) = &l.edge {
        let (ink, word) = sure(edge.confidence);
        out.push(fact("way here", format!("{}: ", way(edge.kind))).and(ink, word));
        out.push(fact("evidence", &edge.evidence));
    }
    let comm = l.who.comm.as_ref().map(|comm| format!(" ({comm})")).unwrap_or_default();
    out.push(fact("who", format!("{}{comm}, begun on thread {}", super::who(&l.who), l.who.tid)));
    let least = words::least(l.at_least());
    let since = format!("since {}, {least}{}", model.time_of_day(l.since), words::duration(l.age));
    out.push(fact("age", since));
    out.push(fact("here", format!("{} of the stuck call's age", words::duration(l.critical))));
    out.extend(l.subject.iter().flat_map(super::container));
    if let Some(lock) = &l.lock {
        let base = lock.base.map(|b| format!(" at {b:#x} of process {}", lock.pid)).unwrap_or_default();
        out.push(fact("lock", format!("{}{base}", words::lock(lock))));
    }
    let fs = op.fs_type.as_deref().unwrap_or_default();
    if let Some(device) = &l.device {
        out.push(fact("device", format!("{} ({}) {fs}", words::device(device), device.device)));
    }
    out.extend(op.path.as_ref().map(|path| fact("path", path)));
    if let Some(exit) = l.exit.as_ref().and_then(|exit| words::attempts(exit, l.since + l.age)) {
        out.push(fact("attempts", exit));
    }
    out.push(fact("seen by", seen_by(op.seen_by)));
    match &l.goroutine {
        Some(site) => {
            out.push(fact("goroutine", format!("[{}], innermost first:", site.state)));
            out.extend(site.functions.iter().map(|f| Line::new(Ink::Plain, format!("    {f}"))));
        }
        None if l.who.goid.is_some() => {
            out.push(fact("goroutine", "where it sits was not looked at lately"));
        }
        None => {}
    }
    if let Some(site) = &l.thread {
        let call = site.syscall.map(|n| format!(", in system call {n}")).unwrap_or_default();
        out.push(fact(
            "kernel",
            format!("thread {} in state {}{call}, innermost first:", site.tid, site.state),
        ));
        if site.kernel_stack.is_empty() {
            out.push("    its stack may not be read".into());
        }
        out.extend(site.kernel_stack.iter().map(|f| Line::new(Ink::Plain, format!("    {f}"))));
    }
    out
}

fn detail_of_end(d: &Diagnosis) -> Vec<Line> {
    let (ink, word) = sure(d.confidence);
    let mut out = vec![Line::new(Ink::Bold, format!("ends in: {}", words::ends_in(&d.ends_in)))];
    out.extend(words::because(&d.ends_in).map(|why| fact("because", why)));
    out.push(fact("sure", "").and(ink, word));
    out.push(fact("evidence", &d.evidence));
    out.extend(text::not_this_chain(d).map(|why| fact("alternatives", why)));
    out.extend(d.blind_spots.iter().map(|spot| fact("blind spot", spot)));
    out.extend(words::dirtied(d).map(|who| fact("dirtied by", who)));
    for c in &d.consequences {
        out.push(fact("so far", format!("{}: {}", words::harm(c), c.evidence)));
    }
    out.extend(d.containers.iter().flat_map(super::container));
    for (label, steps) in [("do now", &d.advice.do_now), ("do not", &d.advice.do_not)] {
        let step = |step: &String| fact(label, step.strip_prefix("do not ").unwrap_or(step));
        out.extend(steps.iter().map(step));
    }
    for f in &d.advice.fixes {
        out.push(Line::default());
        let saves = f.saves.map(|s| format!(" (saves about {})", words::duration(s))).unwrap_or_default();
        out.push(Line::new(Ink::Bold, format!("fix: {}{saves}", f.what)));
        let facts = [("effect", &f.effect), ("how", &f.how), ("since", &f.since), ("costs", &f.side_effects)];
        out.extend(facts.iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| fact(name, text)));
    }
    out.push(Line::default());
    out.push(fact("signature", &d.signature));
    out
}

/// How the one before waits for this.
fn way(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::Contains => "done within the one before",
        EdgeKind::WaitsForHolder => "holds the lock that the one before waits for",
        EdgeKind::Calls => "serves the call of the one before",
        EdgeKind::SameSuperBlock => "syncs the same file system, and was first",
        EdgeKind::SameDevice => "syncs the same device, and was first",
        EdgeKind::Behind => "its turn comes before",
        EdgeKind::RunsIn => "the process that does the one before",
    }
}

fn seen_by(by: SeenBy) -> &'static str {
    match by {
        SeenBy::Uprobe => "a probe in the program",
        SeenBy::Fentry => "a probe in the kernel (fentry)",
        SeenBy::Kprobe => "a probe in the kernel (kprobe)",
        SeenBy::Tracepoint => "a tracepoint of the kernel",
        SeenBy::Proc => "/proc",
        SeenBy::Memory => "a look at the program's memory; it may have begun before",
    }
}
