//! The verdict: whether the node is in trouble, since when, because of what, what comes, and what to do.

use crate::correlator::{Diagnosis, Frame, words};
use crate::sinks::text;
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// The verdict in at most `lines` lines: what matters most first, and each part cut rather than the next left out.
pub fn words(model: &Model, columns: u16, lines: u16) -> Vec<Line> {
    let (columns, lines) = (usize::from(columns), usize::from(lines));
    let Some(frame) = model.frame() else { return attaching(model, columns, lines) };
    match model.diagnosis() {
        Some((d, index, total)) if d.is_stuck() => stuck(frame, d, (index, total), columns, lines),
        Some((d, ..)) => {
            let sentence = text::headline(d, frame.now);
            let mut out = Line::new(Ink::Warn, sentence).wrap(columns, lines, 2);
            out.extend(parts(d, frame, columns, lines.saturating_sub(out.len())));
            out
        }
        None if model.is_looking() => healthy(model, frame, columns, lines),
        None => attaching(model, columns, lines),
    }
}

fn attaching(model: &Model, columns: usize, lines: usize) -> Vec<Line> {
    let what = match &model.probing {
        _ if model.is_replay() => "reading the capture…".to_owned(),
        Some(p) if p.attached_after.is_none() => {
            let on = p.probes.iter().filter(|p| p.how.is_some()).count();
            format!("attaching… {on} probes so far; nothing can be said yet")
        }
        _ => "attaching… nothing can be said yet".to_owned(),
    };
    let said = model.log.back().map(|line| Line::new(Ink::Dim, line));
    let mut out = Line::new(Ink::Bold, what).wrap(columns, lines, 2);
    out.extend(said.into_iter().flat_map(|line| line.wrap(columns, 3, 2)));
    out.truncate(lines);
    out
}

/// All is well, as far as is seen: and what is looked at, so that silence is not taken for blindness.
fn healthy(model: &Model, frame: &Frame, columns: usize, lines: usize) -> Vec<Line> {
    let mut out = Vec::new();
    let warning = model.probing.as_ref().and_then(|p| p.warning.as_ref());
    if let Some(warning) = warning {
        out.extend(
            Line::new(Ink::WarnMark, " SEES NOTHING ")
                .and(Ink::Warn, format!(" {warning}"))
                .wrap(columns, 3, 2),
        );
    }
    let said = text::healthy(frame);
    let (verdict, rest) = said.split_once(" · ").unwrap_or((&said, ""));
    let mark = if warning.is_some() { Ink::Mark } else { Ink::GoodMark };
    let rest = if rest.is_empty() { String::new() } else { format!(" · {rest}") };
    out.extend(Line::new(mark, format!(" {verdict} ")).and(Ink::Plain, rest).wrap(columns, 2, 2));
    if let Some(p) = &model.probing {
        let [containerds, shims, kubelets] = p.processes;
        let on = p.probes.iter().filter(|p| p.how.is_some()).count();
        let off = p.probes.len() - on;
        let off = if off == 0 { String::new() } else { format!(", {off} off (7 says why)") };
        let line = format!(
            "looking at {containerds} containerd, {shims} shims, {kubelets} kubelet with {on} probes{off}"
        );
        out.extend(Line::new(Ink::Dim, line).wrap(columns, 1, 0));
    }
    out.extend(
        text::relists(frame)
            .map(|line| Line::new(Ink::Dim, line))
            .into_iter()
            .flat_map(|l| l.wrap(columns, 1, 0)),
    );
    out.truncate(lines);
    out
}

fn stuck(
    frame: &Frame,
    d: &Diagnosis,
    (index, total): (usize, usize),
    columns: usize,
    lines: usize,
) -> Vec<Line> {
    let sentence = text::headline(d, frame.now);
    let mut pieces = sentence.split(" · ");
    let mut line = Line::new(Ink::BadMark, format!(" {} ", pieces.next().unwrap_or_default()));
    for (n, piece) in pieces.enumerate() {
        let ink = if n == 0 && d.not_ready.is_some() { Ink::Bad } else { Ink::Bold };
        line = line.and(Ink::Plain, if n == 0 { " " } else { " · " }).and(ink, piece);
    }
    if let Some(dirty) = dirty(frame, d) {
        line = line.and(Ink::Plain, " · ").and(Ink::Bold, dirty);
    }
    if total > 1 {
        let more = format!("{} of {total} things that are stuck (d: next)", index + 1);
        line = line.and(Ink::Plain, " · ").and(Ink::Warn, more);
    }
    let most = if lines >= 7 { 3 } else { lines.saturating_sub(2).max(1) };
    let mut out = line.wrap(columns, if lines <= 3 { lines } else { most }, 2);
    out.extend(parts(d, frame, columns, lines.saturating_sub(out.len())));
    out
}

/// How much waits to be written, and who has dirtied the most of it, where it ends in a device.
fn dirty(frame: &Frame, d: &Diagnosis) -> Option<String> {
    let first = d.dirtied_by.first()?;
    let memory = frame.memory?;
    let all = words::bytes(memory.dirty.saturating_add(memory.writeback));
    Some(format!("{all} dirty, {} by {}", words::bytes(first.bytes), words::source(&first.source)))
}

/// What to do, what not to do, what comes, and what is known beside; as much as fits.
fn parts(d: &Diagnosis, frame: &Frame, columns: usize, lines: usize) -> Vec<Line> {
    let steps = |steps: &[String]| steps.join("; ").replace("do not ", "");
    let mut all: Vec<(Ink, &str, String)> = Vec::new();
    if !d.advice.do_now.is_empty() {
        all.push((Ink::GoodMark, "do now", steps(&d.advice.do_now)));
    }
    if !d.advice.do_not.is_empty() {
        all.push((Ink::WarnMark, "do not", steps(&d.advice.do_not)));
    }
    all.push((Ink::Mark, "ahead ", words::ahead(d, frame.now)));
    all.extend(words::dirtied(d).map(|who| (Ink::Bold, "dirtied by", who)));
    if !d.consequences.is_empty() {
        all.push((Ink::Warn, "so far", text::harms(&d.consequences)));
    }
    all.extend(text::not_this_chain(d).map(|why| (Ink::Bold, "because", why)));
    if !d.blind_spots.is_empty() {
        all.push((Ink::Warn, "not seen", d.blind_spots.join("; ")));
    }
    all.extend(d.advice.fixes.iter().map(|f| (Ink::Bold, "fix", text::fix(f))));
    // Where there is little room, what to do and what comes, but that whole; else each has a line.
    const SMALL: usize = 8;
    let shown = all.len().min(if lines < SMALL { 3 } else { lines }).min(lines);
    let mut spare = lines - shown;
    let mut out = Vec::new();
    for (ink, label, text) in all.into_iter().take(shown) {
        let line = Line::new(
            ink,
            if ink == Ink::Bold || ink == Ink::Warn { format!("{label}:") } else { format!(" {label} ") },
        )
        .and(Ink::Plain, format!(" {text}"));
        let wrapped = line.wrap(columns, 1 + spare, 2);
        spare -= wrapped.len().saturating_sub(1);
        out.extend(wrapped);
    }
    out
}
