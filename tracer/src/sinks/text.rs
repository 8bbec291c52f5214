//! Frames as plain text, without colour: for `live --plain`, `watch`, and the scenario tests.
//!
//! A diagnosis takes at most [`LINES`] lines. The first is a sentence that says everything; the chain follows as a
//! tree, one link a line, from the symptom to what it ends in.

use super::sanitise;
use crate::correlator::ground::confidence_word;
use crate::correlator::words;
use crate::correlator::{
    Change, Confidence, Consequence, Diagnosis, EdgeKind, Fix, Frame, Head, Incident, Link, Subject, Who,
    explains,
};
use crate::event::{Kind, LossPoint, Ns, Role};

/// At most this many lines for a diagnosis.
pub const LINES: usize = 20;
/// At most this many characters in a line of it. Only names and reasons of unheard-of length come to that.
pub const WIDTH: usize = 400;
/// Fixes told, those that save most.
const FIXES: usize = 3;
/// A line that is longer without it does not say how to apply a fix, only where that is written.
const FIX_WIDTH: usize = 160;

/// Links that are told in one line: a shim call with the method it consists of, an unmount with the shutdown it comes
/// down to, an overlay's sync with that of its upper file system.
struct Told<'a> {
    links: Vec<&'a Link>,
    main: &'a Link,
}

impl Told<'_> {
    fn critical(&self) -> Ns {
        self.links.iter().map(|l| l.critical).sum()
    }
}

/// A diagnosis, at most [`LINES`] lines.
pub fn diagnosis(d: &Diagnosis, now: Ns) -> Vec<String> {
    let below = below(d, now);
    let mut out = vec![headline(d, now)];
    out.extend(tree(d, LINES.saturating_sub(1 + below.len())));
    out.extend(below);
    out.into_iter().map(|line| sanitise(&words::clip(&line, WIDTH)).into_owned()).collect()
}

/// The chain in at most `lines` lines; what does not fit is told in one.
pub fn tree(d: &Diagnosis, lines: usize) -> Vec<String> {
    let mut out = Vec::new();
    let mut told = told(d, false);
    if told.len() > lines {
        told = self::told(d, true);
    }
    let (first, last) =
        if told.len() > lines { (lines.saturating_sub(5).max(1), 4) } else { (told.len(), 0) };
    for i in 0..first {
        out.push(link_line(d, &told, i, i));
    }
    if first + last < told.len() {
        let hidden = &told[first..told.len() - last];
        let critical: Ns = hidden.iter().map(Told::critical).sum();
        let indent = "  ".repeat(first + 1);
        out.push(format!("{indent}… {} links more ({} here)", hidden.len(), words::duration(critical)));
        for i in 0..last {
            out.push(link_line(d, &told, told.len() - last + i, first + 1 + i));
        }
    }
    out
}

/// What is said below the chain.
fn below(d: &Diagnosis, now: Ns) -> Vec<String> {
    let mut out: Vec<String> = also_stuck(d).into_iter().collect();
    out.push(ends_in_line(d));
    out.push(format!("  ahead: {}", words::ahead(d, now)));
    out.extend(words::dirtied(d).map(|who| format!("  dirtied by: {who}")));
    if !d.consequences.is_empty() {
        out.push(format!("  so far: {}", harms(&d.consequences)));
    }
    out.extend(not_this_chain(d).map(|why| format!("  {why}")));
    if !d.blind_spots.is_empty() {
        let shown: Vec<&str> = d.blind_spots.iter().take(2).map(String::as_str).collect();
        let more = match d.blind_spots.len() {
            0..=2 => String::new(),
            n => format!("; {} more", n - 2),
        };
        out.push(format!("  blind spots: {}{more}", shown.join("; ")));
    }
    for (label, steps) in [("do now", &d.advice.do_now), ("do not", &d.advice.do_not)] {
        if !steps.is_empty() {
            out.push(format!("  {label}: {}", steps.join("; ").replace("do not ", "")));
        }
    }
    out.extend(d.advice.fixes.iter().take(FIXES).map(|f| format!("  fix: {}", fix(f))));
    let more = d.advice.fixes.len().saturating_sub(FIXES);
    if let Some(last) = out.last_mut().filter(|_| more > 0) {
        last.push_str(&format!("; {more} more in the JSON and in docs/fixes.md"));
    }
    out
}

/// Why it is another chain than that of an unmount, where it is.
pub fn not_this_chain(d: &Diagnosis) -> Option<String> {
    d.not_this_chain.as_ref().map(|why| match why.strip_prefix("it cannot be excluded: ") {
        Some(reason) => format!("the unmount chain cannot be excluded: {reason}"),
        None => format!("not the unmount chain, because {why}"),
    })
}

/// What has come of it, the gravest first.
pub fn harms(consequences: &[Consequence]) -> String {
    let told: Vec<String> = consequences.iter().take(4).map(words::harm).collect();
    let more = match consequences.len().saturating_sub(4) {
        0 => String::new(),
        n => format!("; {n} more"),
    };
    told.join("; ") + &more
}

/// The first line of a diagnosis: one sentence.
pub fn headline(d: &Diagnosis, now: Ns) -> String {
    sanitise(&words::sentence(d, now)).into_owned()
}

/// The links by the lines they are told in; where `dense`, a caller's side is told with the caller.
fn told(d: &Diagnosis, dense: bool) -> Vec<Told<'_>> {
    let mut out: Vec<Told<'_>> = Vec::new();
    for link in &d.chain.links {
        let contained = link.edge.as_ref().is_some_and(|e| e.kind == EdgeKind::Contains);
        if contained && let Some(before) = out.last_mut() {
            let (a, b) = (&before.main.operation, &link.operation);
            let keeps_first = match (a.kind, b.kind) {
                (Kind::ShimServe, Kind::InitMethod) => a.method == b.method,
                (Kind::CriCall, Kind::StatusUpdate) => true,
                (Kind::Unmount, Kind::SuperShutdown) => true,
                // The same unmount, seen in the Go program and in the kernel.
                (Kind::Unmount, Kind::Unmount) => true,
                (_, Kind::CriClient | Kind::ShimCall) => dense,
                _ => false,
            };
            if keeps_first {
                before.links.push(link);
                continue;
            }
            let overlay = a.fs_type.as_deref() == Some("overlay");
            let keeps_second = overlay && matches!((a.kind, b.kind), (Kind::Sync, Kind::Sync));
            if keeps_second {
                before.links.push(link);
                before.main = link;
                continue;
            }
        }
        out.push(Told { links: vec![link], main: link });
    }
    out
}

/// A link of the drawn chain as it is told: in parts, for those who draw it otherwise than as a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How the way comes here from the link before: `waits for`, `held by`, …; empty when the same actor just does it.
    pub way: &'static str,
    /// The operation.
    pub what: String,
    /// The links of the chain that are told here.
    pub links: std::ops::Range<usize>,
    /// What kind it is.
    pub kind: Kind,
    /// Who does it, where the way comes to somebody else.
    pub who: Option<String>,
    /// What that process is.
    pub role: Option<Role>,
    /// How long it has lasted.
    pub age: Ns,
    /// Whether it may have lasted longer.
    pub at_least: bool,
    /// The part of the stuck call's age that was spent here.
    pub critical: Ns,
    /// How sure the way here is, and what that rests on.
    pub sure: Option<(Confidence, String)>,
}

/// The whole drawn chain, from the symptom to what it ends in.
pub fn steps(d: &Diagnosis) -> Vec<Step> {
    let told = told(d, false);
    (0..told.len()).map(|i| step(d, &told, i, i)).collect()
}

/// The same in fewer steps: a caller's side is told with the caller.
pub fn dense_steps(d: &Diagnosis) -> Vec<Step> {
    let told = told(d, true);
    (0..told.len()).map(|i| step(d, &told, i, i)).collect()
}

fn step(d: &Diagnosis, told: &[Told<'_>], index: usize, depth: usize) -> Step {
    let t = &told[index];
    let l = t.main;
    let edge = t.links.first().and_then(|l| l.edge.as_ref());
    let way = edge.map_or("", |edge| match edge.kind {
        EdgeKind::Contains if l.operation.kind == Kind::LockWait => "waits for",
        EdgeKind::Contains => "",
        EdgeKind::WaitsForHolder => "held by",
        EdgeKind::Calls | EdgeKind::SameSuperBlock | EdgeKind::SameDevice => "waits for",
        EdgeKind::Behind => "waits its turn behind",
        EdgeKind::RunsIn => "is done by",
    });
    // The id is said once; after that the name will do.
    let mentioned = told[..index].iter().any(|t| t.main.subject == l.subject && names_subject(t.main));
    // The weakest edge of those told in this line; the one by which the way comes here when they are equal.
    let weakest = t.links.iter().filter_map(|l| l.edge.as_ref()).rev().max_by_key(|e| e.confidence);
    let sure = weakest.filter(|e| l.edge.is_some() || e.confidence != Confidence::Proven);
    let before: usize = told[..index].iter().map(|t| t.links.len()).sum();
    Step {
        way,
        what: what(d, l, depth, mentioned),
        links: before..before + t.links.len(),
        kind: l.operation.kind,
        // The same actor is named once, where the way comes to it.
        who: edge.is_none_or(|e| e.kind != EdgeKind::Contains).then(|| who(&l.who)),
        role: l.who.role,
        age: l.age,
        at_least: l.at_least(),
        critical: t.critical(),
        sure: sure.map(|edge| (edge.confidence, edge.evidence.clone())),
    }
}

fn link_line(d: &Diagnosis, told: &[Told<'_>], index: usize, depth: usize) -> String {
    let s = step(d, told, index, depth);
    let mut line = "  ".repeat(depth + 1);
    if told[index].links.first().is_some_and(|l| l.edge.is_some()) {
        line.push_str("└ ");
    }
    if !s.way.is_empty() {
        line.push_str(s.way);
        line.push(' ');
    }
    line.push_str(&s.what);
    if let Some(who) = s.who {
        line.push_str(&format!(" · {who}"));
    }
    let least = words::least(s.at_least);
    line.push_str(&format!(" · {least}{} ({} here)", words::duration(s.age), words::duration(s.critical)));
    if let Some((confidence, evidence)) = s.sure {
        line.push_str(&format!(" · {}: {evidence}", confidence_word(confidence)));
    }
    line
}

/// Whether the line of this link says which container it is about.
fn names_subject(l: &Link) -> bool {
    !matches!(l.operation.kind, Kind::LockWait | Kind::Sync | Kind::Relist)
}

fn what(d: &Diagnosis, l: &Link, depth: usize, mentioned: bool) -> String {
    let op = &l.operation;
    let named = |s: &Subject| if mentioned { words::subject(s) } else { words::subject_with_id(s) };
    let of = |s: &Option<Subject>| s.as_ref().map(|s| format!(" of {}", named(s)));
    match op.kind {
        Kind::LockWait => match &l.lock {
            Some(lock) => words::lock(lock),
            None => "a lock".to_owned(),
        },
        Kind::CriCall | Kind::CriClient if depth == 0 && d.head == Head::ListCall => format!(
            "relist, as seen by its {} call{}; the kubelet's own is not seen",
            if op.method.is_empty() { "list" } else { &op.method },
            if op.kind == Kind::CriCall { " in containerd" } else { "" }
        ),
        Kind::Unmount => match (&l.subject, &op.path) {
            (Some(s), _) => format!("unmount of {}", named(s)),
            (None, _) => words::operation(op, None),
        },
        Kind::Sync => words::operation(op, l.device.as_ref()),
        Kind::StatusUpdate | Kind::ShimCall | Kind::InitMethod | Kind::ShimServe | Kind::LockHold => {
            format!("{}{}", words::operation(op, None), of(&l.subject).unwrap_or_default())
        }
        Kind::Relist => words::operation(op, None),
        Kind::ExitHandling => {
            let what = match &l.subject {
                Some(s) => format!("handling of the exit of {}", named(s)),
                None => words::operation(op, None),
            };
            match l.exit.as_ref().and_then(|exit| words::attempts(exit, l.since.saturating_add(l.age))) {
                Some(attempts) => format!("{what} ({attempts})"),
                None => what,
            }
        }
        Kind::CriClient | Kind::CriCall | Kind::SuperShutdown | Kind::Stalled => {
            format!("{}{}", words::operation(op, None), of(&l.subject).unwrap_or_default())
        }
    }
}

fn who(w: &Who) -> String {
    let name = match (&w.role, &w.comm) {
        (Some(Role::Other) | None, Some(comm)) => comm.clone(),
        (role, _) => words::role(*role).to_owned(),
    };
    match w.goid {
        Some(goid) => format!("{name} {} goroutine {goid}", w.pid),
        None if w.tid == w.pid => format!("{name} {}", w.pid),
        None => format!("{name} {} thread {}", w.pid, w.tid),
    }
}

/// Which other calls are stuck in the same.
pub fn also_stuck(d: &Diagnosis) -> Option<String> {
    let others = d.stuck_calls.get(1..).filter(|o| !o.is_empty())?;
    // A kubelet asks for the same list every other second: once with the oldest age says as much as twenty times.
    let mut kinds: Vec<(String, u64, Ns, bool)> = Vec::new();
    for c in others {
        let what = match c.head {
            Head::LateExit => match c.exit.as_ref().map_or(0, |exit| exit.begun) {
                0 | 1 => "an exit".to_owned(),
                n => format!("an exit (attempt {n})"),
            },
            Head::Relist => "a relist".to_owned(),
            _ if c.id.method.is_empty() => match c.id.kind {
                Kind::LockWait => "a lock wait".to_owned(),
                Kind::Unmount => "an unmount".to_owned(),
                Kind::SuperShutdown => "a shutdown of a file system".to_owned(),
                Kind::Sync => "a sync".to_owned(),
                other => format!("{other:?}"),
            },
            _ => c.id.method.to_string(),
        };
        let of = c.subject.as_ref().map(|s| format!(" of {}", words::pod(s))).unwrap_or_default();
        let what = what + &of;
        match kinds.iter_mut().find(|(known, ..)| *known == what) {
            Some((_, count, age, _)) if *age >= c.age => *count += 1,
            Some((_, count, age, least)) => (*count, *age, *least) = (*count + 1, c.age, c.at_least),
            None => kinds.push((what, 1, c.age, c.at_least)),
        }
    }
    let told: u64 = kinds.iter().take(4).map(|(_, count, ..)| count).sum();
    let named: Vec<String> = kinds
        .iter()
        .take(4)
        .map(|(what, count, age, least)| match (count, words::least(*least)) {
            (1, least) => format!("{what} {least}{}", words::duration(*age)),
            (_, least) => format!("{count} times {what}, the oldest {least}{}", words::duration(*age)),
        })
        .collect();
    let total = d.stuck_calls_total.max(d.stuck_calls.len() as u64);
    let more = match total.saturating_sub(1 + told) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let between = if named.iter().any(|n| n.contains(", the oldest")) { "; " } else { ", " };
    Some(format!("  also stuck: {}{more}", named.join(between)))
}

/// What the chain ends in, and how sure that is.
pub fn ends_in_line(d: &Diagnosis) -> String {
    let mut line = if explains(&d.ends_in) {
        format!("  ends in: {}", words::ends_in(&d.ends_in))
    } else {
        "  ends in: not visible".to_owned()
    };
    use crate::correlator::EndsIn::{Sync, UnmountSync};
    if let UnmountSync { fs_type: Some(fs), .. } | Sync { fs_type: Some(fs), .. } = &d.ends_in {
        line.push_str(&format!(" ({fs})"));
    }
    match words::because(&d.ends_in) {
        Some(because) if d.confidence == Confidence::NotVisible => {
            line.push_str(&format!(": because {because}"))
        }
        Some(because) => line.push_str(&format!(
            " · {}: {} · below it not visible: because {because}",
            confidence_word(d.confidence),
            d.evidence
        )),
        None => line.push_str(&format!(" · {}: {}", confidence_word(d.confidence), d.evidence)),
    }
    line
}

/// A fix in one line.
pub fn fix(f: &Fix) -> String {
    // What it changes and what it costs is in the frame: here the line must stay one that is read.
    let mut text = f.what.clone();
    if let Some(saves) = f.saves {
        text.push_str(&format!(" (saves about {})", words::duration(saves)));
    }
    if !f.since.is_empty() {
        text.push_str(&format!(" [{}]", f.since));
    }
    let short = text.chars().count() + f.how.chars().count() <= FIX_WIDTH;
    match short && !f.how.is_empty() {
        true => text.push_str(&format!(": {}", f.how)),
        false => text.push_str(&format!(": docs/fixes.md#{}", f.id)),
    }
    text
}

/// How many calls waited in an incident, as the end of a sentence.
pub fn waited(i: &Incident) -> String {
    match i.stuck_calls {
        0 => String::new(),
        1 => " · 1 call waited".to_owned(),
        n => format!(" · up to {n} calls waited"),
    }
}

/// What changed about an incident, in one line; `None` when nothing did.
pub fn change(i: &Incident) -> Option<String> {
    let line = match i.change.as_ref()? {
        Change::Crossed => format!("CROSSED {} ({}): {}", i.id, i.crossed_by, i.summary),
        Change::Grew => format!("GROWS {} (longest {}): {}", i.id, words::duration(i.longest), i.summary),
        Change::Ended => {
            let uncertain = i.uncertain_end.as_ref().map(|u| format!(" · {u}")).unwrap_or_default();
            let harms = match i.consequences.is_empty() {
                true => String::new(),
                false => format!(" · {}", harms(&i.consequences)),
            };
            let (longest, waited) = (words::duration(i.longest), waited(i));
            format!("ENDED {} after {longest}: {}{waited}{harms}{uncertain}", i.id, i.cause)
        }
        Change::Aftermath => {
            format!("AFTER {}: {}", i.id, harms(&i.consequences))
        }
        Change::MergedInto(other) => {
            format!("ENDED {}: it is part of {other}", i.id)
        }
    };
    Some(sanitise(&line).into_owned())
}

/// What is said when nothing is stuck.
pub fn healthy(f: &Frame) -> String {
    let mut parts = vec!["nothing is stuck".to_owned()];
    if let Some(oldest) = f.in_flight.first() {
        parts.push(format!(
            "{} operations in flight, the oldest {} for {}",
            f.in_flight_total,
            words::operation(&oldest.operation, None),
            words::duration(oldest.age)
        ));
    }
    for name in ["unmount", "relist"] {
        if let Some(d) = f.distributions.iter().find(|d| d.of == name) {
            parts.push(format!(
                "{}s of at least {}: {}, p50 {}, max {}",
                d.of,
                words::duration(d.at_least),
                d.count,
                words::duration(d.p50),
                words::duration(d.max)
            ));
        }
    }
    sanitise(&parts.join(" · ")).into_owned()
}

/// What is lost or cannot be seen, a line each; empty when all is seen.
pub fn notes(f: &Frame) -> Vec<String> {
    let mut out: Vec<String> =
        f.blind_spots.iter().map(|b| format!("blind spot: {}: {}", b.what, b.reason)).collect();
    out.extend(losses(f));
    out.into_iter().map(|line| sanitise(&line).into_owned()).collect()
}

/// Where records were lost, and how.
pub fn loss_place(at: LossPoint) -> &'static str {
    match at {
        LossPoint::Ring => "the ring was full",
        LossPoint::Map => "a map in the kernel was full or memory could not be read",
        LossPoint::Skipped => "the kernel skipped a probe that was interrupted in its middle",
        LossPoint::Queue => "our own queue was full",
        LossPoint::Late => "came late, were used all the same",
    }
}

/// What is lost, a line each.
pub fn losses(f: &Frame) -> Vec<String> {
    let mut out = Vec::new();
    for l in &f.losses {
        out.push(format!("lost: {} records: {}", l.count, loss_place(l.at)));
    }
    for d in &f.dropped {
        out.push(format!("left out: {} beyond the limit of {} {}", d.count, d.limit, d.what));
    }
    if f.uncertain_ends > 0 {
        out.push(format!("ends not reported: {}", f.uncertain_ends));
    }
    out
}

/// How the relists fared, in one line; `None` while none was slow.
pub fn relists(f: &Frame) -> Option<String> {
    let r = &f.relists;
    if r.explained + r.unexplained == 0 {
        return None;
    }
    let what = if r.stand_in { "slow list calls (the kubelet's relist is not seen)" } else { "slow relists" };
    Some(format!(
        "{what}: {} explained, {} unexplained, longest {}",
        r.explained,
        r.unexplained,
        words::duration(r.longest)
    ))
}

/// Everything that is to be said about a frame.
pub fn frame(f: &Frame) -> Vec<String> {
    let mut out: Vec<String> = f.incidents.iter().filter_map(change).collect();
    for d in &f.diagnoses {
        out.extend(diagnosis(d, f.now));
    }
    let hidden = f.diagnoses_total.saturating_sub(f.diagnoses.len() as u64);
    if hidden > 0 {
        out.push(format!("and {hidden} more things are stuck"));
    }
    if !f.diagnoses.iter().any(Diagnosis::is_stuck) {
        out.push(healthy(f));
    }
    out.extend(relists(f));
    out.extend(notes(f));
    out
}
