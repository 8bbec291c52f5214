//! A report as one page of HTML that needs nothing else: no script, no font, no other address. Its own policy says so, so
//! that even what should slip through the escaping could neither run nor be loaded.

use super::svg::escape;
use super::{Told, chain, timeline, words as say};
use crate::correlator::ground::confidence_word;
use crate::correlator::words::{duration, least};
use crate::report::{Comparison, LogSearch, Quantity, Report, Reported, Row, Side};
use crate::sinks::text;
use std::fmt::Write as _;

/// How it looks.
const STYLE: &str = include_str!("style.css");
/// SHA-256 of [`STYLE`], as the page's policy wants it; a test compares.
const STYLE_HASH: &str = "sha256-okRxhmNmGdDiFGsRH4hTdsbzNdyIkdC1d+Xy3XNrDG0=";
/// Slow relists and late exits that are listed.
const LISTED: usize = 100;

/// The whole page.
pub fn html(told: Told<'_>) -> String {
    let r = told.report;
    let host = escape(&r.node.host);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{STYLE_HASH}'; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>plegscope report: {host}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{MARKERS}<main>\n"
    );
    let _ = writeln!(out, "<header>\n<p class=\"kicker\">plegscope report</p>\n<h1>{host}</h1>");
    let from = escape(&r.captured.from.time);
    let _ = writeln!(
        out,
        "<p class=\"when\">{from} to {} · {} captured · boot {}</p>",
        escape(&r.captured.to.time),
        say::covered(&r.captured),
        escape(&r.node.boot_id)
    );
    let _ = writeln!(out, "<p class=\"headline\">{}</p>\n{}</header>", escape(&say::headline(r)), tiles(r));
    out.extend(told.against.map(against));
    let _ = writeln!(
        out,
        "<section><h2>Over time</h2>\n<div class=\"scroll\">{}</div></section>",
        timeline::timeline(r)
    );
    for (n, one) in r.incidents.iter().enumerate() {
        out.push_str(&incident(one, n + 1, r.incidents.len()));
    }
    let more = r.totals.incidents.saturating_sub(r.incidents.len() as u64);
    if more > 0 {
        let _ = writeln!(out, "<p class=\"note\">and {more} shorter incidents</p>");
    }
    out.push_str(&fixes(r));
    out.push_str(&relists(r));
    out.push_str(&latencies(r));
    out.push_str(&blind(r));
    out.push_str(&facts("Where and when", &say::node(r)));
    out.push_str(
        "<footer>Ages and seconds are of CLOCK_MONOTONIC; times of day are the node's own.</footer>\n",
    );
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The arrow that all chains share.
const MARKERS: &str = "<svg class=\"markers\" width=\"0\" height=\"0\" aria-hidden=\"true\"><defs><marker id=\"arrow\" \
     viewBox=\"0 0 8 8\" refX=\"5\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\" \
     markerUnits=\"userSpaceOnUse\"><path class=\"arrow\" d=\"M0 0L8 4L0 8Z\"/></marker></defs></svg>\n";

fn tiles(r: &Report) -> String {
    let t = &r.totals;
    let relists = if r.relists.stand_in { "list calls stalled" } else { "relists stalled" };
    let longest = r.relists.longest.max(r.relists.in_flight.unwrap_or(0));
    let unexplained = r.relists.unexplained;
    let tiles = [
        ("incidents", t.incidents.to_string(), t.incidents > 0),
        (relists, duration(t.stalled), t.stalled > 0),
        ("longest", duration(longest), false),
        ("late exits", t.late_exits.to_string(), t.late_exits > 0),
        ("slow and unexplained", unexplained.to_string(), unexplained > 0),
    ];
    let one = |(label, value, bad): &(&str, String, bool)| {
        let class = if *bad { "tile bad" } else { "tile" };
        format!("<div class=\"{class}\"><b>{value}</b><span>{label}</span></div>\n")
    };
    format!("<div class=\"tiles\">{}</div>\n", tiles.iter().map(one).collect::<String>())
}

/// A list of labels and texts.
fn facts(title: &str, of: &[(&str, String)]) -> String {
    let rows: String = of
        .iter()
        .map(|(label, text)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(label), escape(text)))
        .collect();
    format!("<section><h2>{}</h2>\n<dl>{rows}</dl></section>\n", escape(title))
}

/// A table; the first column is text, the others are numbers.
fn table(class: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = String>| -> String {
        let cells: String = cells.map(|cell| format!("<{tag}>{cell}</{tag}>")).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = cells("th", &mut head.iter().map(|h| escape(h)));
    let body: String = rows.map(|row| cells("td", &mut row.iter().map(|c| escape(c)))).collect();
    format!(
        "<div class=\"scroll\"><table class=\"{class}\"><thead>{head}</thead><tbody>{body}</tbody></table></div>\n"
    )
}

fn incident(one: &Reported, n: usize, of: usize) -> String {
    let record = &one.record;
    let over = one.over();
    let state = if over.is_some() { "over" } else { "not over" };
    let mut out = format!(
        "<section class=\"incident\"><h2>Incident {n} of {of} <span class=\"state {}\">{state}</span></h2>\n\
         <p class=\"sentence\">{}</p>\n<p class=\"when\">{} · <code>{}</code></p>\n",
        if over.is_some() { "is-over" } else { "is-open" },
        escape(&say::sentence(record)),
        escape(&say::when(record, over)),
        escape(&record.id),
    );
    if let Some(other) = &one.merged_into {
        let _ = writeln!(
            out,
            "<p class=\"note\">It turned out to be part of <code>{}</code>.</p>",
            escape(other)
        );
    }
    if let Some(d) = one.diagnosis.as_deref().filter(|d| !d.chain.links.is_empty()) {
        let _ = writeln!(
            out,
            "<h3>The chain</h3>\n<p class=\"legend\"><span class=\"key proven\">proven</span> <span class=\"key \
             inferred\">inferred</span> <span class=\"key not-visible\">not visible</span> · each red bar is the part of \
             the {} that was spent there</p>\n<div class=\"scroll\">{}</div>",
            duration(d.chain.age),
            chain::chain(d)
        );
        out.push_str(&evidence(d));
    }
    let rows: String = say::facts(record)
        .iter()
        .map(|(label, text)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(label), escape(text)))
        .collect();
    let _ = writeln!(out, "<dl>{rows}</dl>");
    for (label, steps) in say::steps(record) {
        let steps: String = steps.iter().map(|s| format!("<li>{}</li>", escape(s))).collect();
        let _ = writeln!(out, "<h3>{label}</h3>\n<ul>{steps}</ul>");
    }
    let changes: String = one
        .changes
        .iter()
        .map(|c| {
            let longest = duration(c.longest);
            let (time, what) = (escape(&c.when.time), escape(&c.what));
            format!("<li><time>{time}</time> {what} <span class=\"note\">longest {longest}</span></li>\n")
        })
        .collect();
    let _ = writeln!(out, "<h3>How it went</h3>\n<ol class=\"changes\">{changes}</ol>");
    let _ =
        writeln!(out, "<h3>Where the logs tell of it</h3>\n{}", one.logs.iter().map(log).collect::<String>());
    out.push_str("</section>\n");
    out
}

/// The chain in words, with what each step rests on: for those who do not see the picture, and for paper.
fn evidence(d: &crate::correlator::Diagnosis) -> String {
    let one = |s: &text::Step| {
        let who = s.who.as_ref().map(|who| format!(" · {}", escape(who))).unwrap_or_default();
        let way = if s.way.is_empty() { String::new() } else { format!("<i>{}</i> ", s.way) };
        let sure = match &s.sure {
            Some((confidence, why)) => {
                format!("<span class=\"note\">{}: {}</span>", confidence_word(*confidence), escape(why))
            }
            None => String::new(),
        };
        let took = format!("{}{} ({} here)", least(s.at_least), duration(s.age), duration(s.critical));
        format!("<li>{way}{}{who} · {took} {sure}</li>\n", escape(&s.what))
    };
    let steps: String = text::steps(d).iter().map(one).collect();
    format!(
        "<details><summary>What each step rests on</summary><ol class=\"evidence\">{steps}</ol></details>\n"
    )
}

fn log(l: &LogSearch) -> String {
    let means: String = l
        .means
        .iter()
        .map(|(words, means)| format!("<li><code>{}</code> {}</li>\n", escape(words), escape(means)))
        .collect();
    format!(
        "<p class=\"log\">{} <span class=\"note\">{} to {}</span></p>\n<pre>{}</pre>\n<details><summary>What its lines \
         say</summary><ul class=\"means\">{means}</ul></details>\n",
        escape(l.of),
        escape(&l.from.time),
        escape(&l.until.time),
        escape(&l.command)
    )
}

fn fixes(r: &Report) -> String {
    if r.fixes.is_empty() {
        return String::new();
    }
    let most = r.fixes.iter().filter_map(|f| f.saves).max().unwrap_or(0).max(1);
    let one = |f: &crate::report::FixTotal| {
        let saves = match f.saves {
            Some(ns) => format!(
                "<meter min=\"0\" max=\"100\" value=\"{}\"></meter> would have saved about {}",
                u128::from(ns) * 100 / u128::from(most),
                duration(ns)
            ),
            None => "how much it saves cannot be told".to_owned(),
        };
        let since = if f.since.is_empty() { "any version" } else { &f.since };
        format!(
            "<li><p class=\"fix\">{}</p><p>{saves} <span class=\"note\">{} · docs/fixes.md#{}</span></p>\n\
             <dl><dt>how</dt><dd>{}</dd><dt>since</dt><dd>{}</dd><dt>side effects</dt><dd>{}</dd></dl></li>\n",
            escape(&f.what),
            say::counted(f.incidents, "incident"),
            escape(&f.id),
            escape(&f.how),
            escape(since),
            escape(&f.side_effects)
        )
    };
    let list: String = r.fixes.iter().map(one).collect();
    format!(
        "<section><h2>Fixes, in the order in which to try them</h2>\n<ol class=\"fixes\">{list}</ol></section>\n"
    )
}

fn relists(r: &Report) -> String {
    let mut out = String::new();
    let all = r.relists.explained + r.relists.unexplained + u64::from(r.relists.in_flight.is_some());
    if all > 0 {
        let rows = r.relists.slow.iter().take(LISTED).map(|one| {
            let open = if one.ended { "" } else { "at least " };
            vec![one.begin.time.clone(), format!("{open}{}", duration(one.took)), say::relist(one)]
        });
        let rows = table("relists", &["began", "took", "what it waited for"], rows);
        let more = all.saturating_sub(r.relists.slow.len().min(LISTED) as u64);
        let more = if more > 0 { format!("<p class=\"note\">and {more} more</p>") } else { String::new() };
        let sum = escape(&say::relists(r));
        let _ = writeln!(out, "<section><h2>Slow relists</h2>\n<p>{sum}</p>\n{rows}{more}</section>");
    }
    if !r.late_exits.is_empty() {
        let list: String = r
            .late_exits
            .iter()
            .take(LISTED)
            .map(|e| format!("<li>{}</li>\n", escape(&say::late_exit(e))))
            .collect();
        let more = r.totals.late_exits.saturating_sub(r.late_exits.len().min(LISTED) as u64);
        let more = if more > 0 { format!("<p class=\"note\">and {more} more</p>") } else { String::new() };
        let _ = writeln!(out, "<section><h2>Late exits</h2>\n<ul>{list}</ul>{more}</section>");
    }
    out
}

fn latencies(r: &Report) -> String {
    let rows = r.latencies.iter().map(|l| say::latency(l).to_vec());
    let rows = table("numbers", &say::LATENCY, rows);
    format!(
        "<section><h2>How long things took</h2>\n<p class=\"note\">Of what ended. Shorter ones than named are not in it.</p>\n\
         {rows}</section>\n"
    )
}

fn blind(r: &Report) -> String {
    let mut lines: Vec<String> = say::probes(r).into_iter().collect();
    lines.extend(r.blind.spots.iter().map(|spot| format!("blind spot: {}", say::spot(spot))));
    lines.extend(say::losses(r));
    if r.blind.spots.is_empty() && say::losses(r).is_empty() {
        lines.push("no blind spot and no loss was noticed".to_owned());
    }
    let list: String = lines.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    format!("<section><h2>What was not seen</h2>\n<ul>{list}</ul></section>\n")
}

fn against(c: &Comparison) -> String {
    let side = |name: &str, side: &Side| {
        let (from, to) = (escape(&side.from.time), escape(&side.to.time));
        format!(
            "<dt>{name}</dt><dd>{} · {from} to {to} · {} captured</dd>\n",
            escape(&side.host),
            duration(side.covered)
        )
    };
    let row = |row: &Row| {
        let better =
            match (row.before, row.after) {
                (Some(before), Some(after)) if row.what != "captured" && before != after => {
                    if after < before { " class=\"better\"" } else { " class=\"worse\"" }
                }
                _ => "",
            };
        let strong = row.quantity == Quantity::MilliMinutesPerHour;
        let what = if strong { format!("<b>{}</b>", escape(&row.what)) } else { escape(&row.what) };
        let [before, after] = [row.before, row.after].map(|n| say::quantity(row.quantity, n));
        format!("<tr><td>{what}</td><td>{before}</td><td{better}>{after}</td></tr>\n")
    };
    let rows: String = c.rows.iter().map(row).collect();
    let causes: String = c
        .causes
        .iter()
        .map(|(what, before, after)| {
            format!("<tr><td>{}</td><td>{before}</td><td>{after}</td></tr>\n", escape(what))
        })
        .collect();
    let cautions: String = c.cautions.iter().map(|text| format!("<li>{}</li>\n", escape(text))).collect();
    let cautions =
        if cautions.is_empty() { cautions } else { format!("<ul class=\"cautions\">{cautions}</ul>") };
    format!(
        "<section><h2>Before and after</h2>\n<p class=\"sentence\">{}</p>\n<dl>{}{}</dl>\n\
         <div class=\"scroll\"><table class=\"numbers\"><thead><tr><th></th><th>before</th><th>after</th></tr></thead>\
         <tbody>{rows}{causes}</tbody></table></div>\n{cautions}</section>\n",
        escape(&c.verdict),
        side("before", &c.before),
        side("after", &c.after)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use sha2::Digest as _;

    #[test]
    fn the_policy_allows_this_style_and_no_other() {
        let hash = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(STYLE));
        assert_eq!(STYLE_HASH, format!("sha256-{hash}"));
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import") && !STYLE.contains("</"));
    }
}
