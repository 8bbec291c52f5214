//! The sentences that all formats of a report share. Nothing here is safe to print yet.

use crate::capture::record::{Record, Step};
use crate::correlator::ground::confidence_word;
use crate::correlator::words::{duration, least};
use crate::correlator::{Program, words};
use crate::event::Ns;
use crate::report::{Captured, Gap, LateExit, Latency, Quantity, Relist, Report, Spot};
use crate::sinks::text::loss_place;

/// What runs there.
pub fn programs(programs: &[Program]) -> String {
    let one = |p: &Program| {
        let version = p.version.as_deref().map(|v| format!(" {v}")).unwrap_or_default();
        let count = if p.processes == 1 { String::new() } else { format!(" x{}", p.processes) };
        format!("{}{version}{count} ({})", words::role(Some(p.role)), p.go_version)
    };
    programs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What the node is.
pub fn node(r: &Report) -> Vec<(&'static str, String)> {
    let mut out = vec![
        ("node", r.node.host.clone()),
        ("kernel", r.node.kernel.clone()),
        ("boot id", r.node.boot_id.clone()),
        ("plegscope", r.node.plegscope.clone()),
    ];
    if !r.node.programs.is_empty() {
        out.push(("programs", programs(&r.node.programs)));
    }
    out.push(("captured", captured(&r.captured)));
    if r.redacted {
        out.push(("names", "replaced by their hashes".to_owned()));
    }
    out
}

fn captured(c: &Captured) -> String {
    let how = match &c.ended {
        Some(reason) => format!("ended: {reason}"),
        None => "no end: it was cut off, or is still being written".to_owned(),
    };
    format!("{} to {} ({}; {} events; {how})", c.from.time, c.to.time, covered(c), c.events)
}

/// How long a capture is: `22s`, and where something is missing, `17s of 22s`.
pub fn covered(c: &Captured) -> String {
    let whole = duration(c.to.at.saturating_sub(c.from.at));
    if c.gaps_total == 0 { duration(c.covered) } else { format!("{} of {whole}", duration(c.covered)) }
}

/// The capture in one line.
pub fn headline(r: &Report) -> String {
    let t = &r.totals;
    let mut parts = vec![match t.incidents {
        0 => "no incident".to_owned(),
        n => counted(n, "incident"),
    }];
    if t.open > 0 {
        parts.push(format!("{} not over", t.open));
    }
    let whose = if r.relists.stand_in { "list calls" } else { "relists" };
    if t.stalled > 0 {
        // A call that goes on over a gap was stalled in it, too: that is no share of what was captured.
        let share =
            if r.captured.gaps_total == 0 { share(t.stalled, r.captured.covered) } else { String::new() };
        parts.push(format!("{whose} stalled for {}{share}", duration(t.stalled)));
    } else {
        parts.push(format!("no slow {}", whose.trim_end_matches('s')));
    }
    match t.late_exits {
        0 => {}
        n => parts.push(format!("{} (at most {} late)", counted(n, "late exit"), duration(t.latest_exit))),
    }
    parts.join(" · ")
}

fn share(of: Ns, all: Ns) -> String {
    match (u128::from(of) * 100).checked_div(u128::from(all)) {
        Some(percent) if percent <= 100 => format!(" of {} ({percent} %)", duration(all)),
        _ => String::new(),
    }
}

/// `1 incident`, `2 incidents`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What a link is, and who does it.
pub fn step(s: &Step) -> String {
    format!("{} · {} · {}{}", s.what, s.who, least(s.at_least), duration(s.age))
}

/// What else is told of an incident: a label and a text each.
pub fn facts(record: &Record) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let e = &record.ends_in;
    let sure = e.confidence.map(|c| format!(" · {}: {}", confidence_word(c), e.evidence)).unwrap_or_default();
    let because = e.because.as_ref().map(|b| format!(" · not visible: because {b}")).unwrap_or_default();
    out.push(("ends in", format!("{}{sure}{because}", e.what)));
    out.extend(record.ahead.iter().map(|ahead| ("ahead", ahead.clone())));
    out.extend(record.dirtied_by.iter().map(|who| ("dirtied by", who.clone())));
    if let Some(why) = &record.not_this_chain {
        out.push(("not the unmount chain", why.clone()));
    }
    if !record.consequences.is_empty() {
        let told: Vec<&str> = record.consequences.iter().map(|c| c.what.as_str()).collect();
        out.push(("came of it", told.join("; ")));
    }
    if record.stuck_calls_total > 0 {
        let of = |c: &crate::capture::record::Call| {
            let pod = c.pod.as_ref().map(|p| format!(" of {p}")).unwrap_or_default();
            let what = match c.what.as_str() {
                "Relist" => "relist",
                "ExitHandling" => "exit",
                "LockWait" => "lock wait",
                other => other,
            };
            format!("{what}{pod} {}{}", least(c.at_least), duration(c.age))
        };
        let told: Vec<String> = record.stuck_calls.iter().take(6).map(of).collect();
        let more = match record.stuck_calls_total.saturating_sub(told.len() as u64) {
            0 => String::new(),
            n => format!("; up to {n} more at once"),
        };
        out.push(("who waited", format!("{}{more}", told.join("; "))));
    }
    if !record.blind_spots.is_empty() {
        out.push(("blind spots", record.blind_spots.join("; ")));
    }
    out.push(("signature", record.signature.clone()));
    if !record.cut.is_empty() {
        out.push(("left out", record.cut.join("; ")));
    }
    out
}

/// An incident in one sentence.
pub fn sentence(record: &Record) -> String {
    match record.ended {
        None => record.sentence.clone(),
        // It speaks of the last moment at which it was blocked.
        Some(_) => format!("as seen last: {}", record.sentence),
    }
}

/// What to do while it lasts, and what not: a label and its steps each. Nothing once it is over.
pub fn steps(record: &Record) -> Vec<(&'static str, Vec<String>)> {
    let of =
        |steps: &[String]| steps.iter().map(|s| s.strip_prefix("do not ").unwrap_or(s).to_owned()).collect();
    let both: [(_, Vec<String>); 2] = [("do now", of(&record.do_now)), ("do not", of(&record.do_not))];
    both.into_iter().filter(|(_, steps)| record.ended.is_none() && !steps.is_empty()).collect()
}

/// When an incident was.
pub fn when(record: &Record, over: Option<&str>) -> String {
    match (over, &record.uncertain_end) {
        (Some(end), None) => {
            format!("{} to {end}, longest wait {}", record.since_time, duration(record.longest))
        }
        (Some(end), Some(why)) => {
            format!("{} to {end} ({why}), longest wait {}", record.since_time, duration(record.longest))
        }
        (None, _) => {
            format!("since {}, not over; longest wait {}", record.since_time, duration(record.longest))
        }
    }
}

/// A slow relist: what it waited for.
pub fn relist(one: &Relist) -> String {
    match (&one.explained, &one.because) {
        (Some(cause), _) => cause.clone(),
        (None, Some(because)) => format!("UNEXPLAINED: {because}"),
        (None, None) => "UNEXPLAINED".to_owned(),
    }
}

/// All slow relists in a sentence.
pub fn relists(r: &Report) -> String {
    let of = &r.relists;
    let what =
        if of.stand_in { "slow list calls (the kubelet's relist was not seen)" } else { "slow relists" };
    let open = match of.in_flight {
        Some(age) => format!(", one in flight at the end for {}", duration(age)),
        None => String::new(),
    };
    let longest = match of.longest {
        0 => String::new(),
        longest => format!("; the longest that ended {}", duration(longest)),
    };
    format!("{what}: {} explained, {} unexplained{open}{longest}", of.explained, of.unexplained)
}

/// The columns of a distribution: of, count, p50, p90, p99, max, in flight at the end.
pub fn latency(l: &Latency) -> [String; 7] {
    let of = match l.at_least {
        0 => l.of.clone(),
        floor => format!("{} (of at least {})", l.of, duration(floor)),
    };
    let number = |ns: Ns| if l.count == 0 { "-".to_owned() } else { duration(ns) };
    let in_flight = match l.in_flight {
        0 => "-".to_owned(),
        n => format!("{n}, oldest {}", duration(l.oldest)),
    };
    let [p50, p90, p99, max] = [l.p50, l.p90, l.p99, l.max].map(number);
    [of, l.count.to_string(), p50, p90, p99, max, in_flight]
}

/// The heads of these columns.
pub const LATENCY: [&str; 7] = ["of", "ended", "p50", "p90", "p99", "longest", "not over at the end"];

/// A late exit.
pub fn late_exit(e: &LateExit) -> String {
    let how = if e.reported { "reported at least" } else { "not reported by the end, so far" };
    format!(
        "{} {how} {} late ({})",
        words::subject_with_id(&e.of),
        duration(e.late),
        counted(u64::from(e.attempts), "attempt")
    )
}

/// A blind spot.
pub fn spot(s: &Spot) -> String {
    let until = s.until.as_ref().map_or("the end", |until| &until.time);
    format!("{}: {} (from {} to {until})", s.what, s.reason, s.from.time)
}

/// A gap.
pub fn gap(g: &Gap) -> String {
    let to = g.to.as_ref().map_or("the end", |to| &to.time);
    let lines = if g.lines == 0 { String::new() } else { format!(", {}", counted(g.lines, "line")) };
    format!("gap from {} to {to}{lines}: {}", g.from.time, g.reason)
}

/// What was lost, a line each; empty when nothing was.
pub fn losses(r: &Report) -> Vec<String> {
    let mut out: Vec<String> = r.captured.gaps.iter().map(gap).collect();
    let more = r.captured.gaps_total.saturating_sub(r.captured.gaps.len() as u64);
    if more > 0 {
        out.push(format!("and {more} gaps more"));
    }
    out.extend(r.captured.unread.iter().cloned());
    out.extend(
        r.blind.losses.iter().map(|(at, n)| format!("lost on the node: {n} records: {}", loss_place(*at))),
    );
    if r.blind.lines_lost > 0 {
        out.push(format!("lost on the way to the file: {}", counted(r.blind.lines_lost, "line")));
    }
    out.extend(
        r.blind
            .dropped
            .iter()
            .map(|d| format!("left out: {} beyond the limit of {} {}", d.count, d.limit, d.what)),
    );
    if r.blind.uncertain_ends > 0 {
        out.push(format!("ends not reported: {}", r.blind.uncertain_ends));
    }
    out
}

/// Whether all that can be seen was.
pub fn probes(r: &Report) -> Option<String> {
    let (on, off) = r.blind.probes?;
    Some(match off {
        0 => format!("all {on} probes were attached"),
        off => format!("{on} probes were attached, {off} were not"),
    })
}

/// A number of a comparison.
pub fn quantity(of: Quantity, n: Option<u64>) -> String {
    let Some(n) = n else { return "-".to_owned() };
    match of {
        Quantity::Nanoseconds => duration(n),
        Quantity::Count => n.to_string(),
        Quantity::MilliPerHour | Quantity::MilliMinutesPerHour => {
            format!("{}.{}", n / 1_000, n % 1_000 / 100)
        }
    }
}
