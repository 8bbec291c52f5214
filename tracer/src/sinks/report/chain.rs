//! The chain as a picture: a column for each program and the kernel, an arrow for each wait, and where the seconds went.

use super::svg::{Picture, bold, wrap};
use crate::correlator::ground::confidence_word;
use crate::correlator::words::{duration, least};
use crate::correlator::{Confidence, Diagnosis};
use crate::event::{Kind, Ns, Role};
use crate::sinks::text::{Step, steps};

/// Width of the picture in its own units.
const WIDTH: f64 = 1080.0;
/// Widest column.
const COLUMN: f64 = 330.0;
/// Between two columns.
const BETWEEN: f64 = 22.0;
/// Between two rows, where the arrow is.
const GAP: f64 = 44.0;
/// Height of a line of text.
const LINE: f64 = 17.0;
/// Links that are drawn; more are left out in the middle.
const LINKS: usize = 24;

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Kubelet,
    Containerd,
    Shim,
    Other,
    Kernel,
}

impl Lane {
    const ALL: [Lane; 5] = [Lane::Kubelet, Lane::Containerd, Lane::Shim, Lane::Other, Lane::Kernel];

    fn of(step: &Step) -> Lane {
        match (step.kind, step.role) {
            (Kind::Unmount | Kind::SuperShutdown | Kind::Sync, _) => Lane::Kernel,
            (_, Some(Role::Kubelet)) => Lane::Kubelet,
            (_, Some(Role::Containerd)) => Lane::Containerd,
            (_, Some(Role::Shim)) => Lane::Shim,
            _ => Lane::Other,
        }
    }

    /// What it is called, and its class.
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Lane::Kubelet => ("kubelet", "kubelet"),
            Lane::Containerd => ("containerd", "containerd"),
            Lane::Shim => ("shim", "shim"),
            Lane::Other => ("others", "other"),
            Lane::Kernel => ("kernel", "kernel"),
        }
    }
}

/// What is drawn in a row: a link, or how many are left out.
enum Drawn<'a> {
    Link(&'a Step),
    LeftOut(usize, Ns),
}

/// The chain of a diagnosis.
pub fn chain(d: &Diagnosis) -> String {
    let all = steps(d);
    let over = all.len().saturating_sub(LINKS);
    let head = if over == 0 { all.len() } else { LINKS - 6 };
    let mut drawn: Vec<Drawn<'_>> = all[..head].iter().map(Drawn::Link).collect();
    if over > 0 {
        let hidden = &all[head..head + over];
        drawn.push(Drawn::LeftOut(over, hidden.iter().map(|s| s.critical).sum()));
        drawn.extend(all[head + over..].iter().map(Drawn::Link));
    }
    let lanes: Vec<Lane> =
        Lane::ALL.into_iter().filter(|lane| all.iter().any(|s| Lane::of(s) == *lane)).collect();
    let columns = lanes.len().max(1) as f64;
    let column = ((WIDTH - BETWEEN * (columns - 1.0)) / columns).min(COLUMN);
    let left = |lane: Lane| {
        let place = lanes.iter().position(|l| *l == lane).unwrap_or(0) as f64;
        place * (column + BETWEEN)
    };
    let width = columns * column + (columns - 1.0) * BETWEEN;
    let last = all.last().map(|s| s.what.as_str()).unwrap_or_default();
    let label = format!("The chain, from {} to {last}", all.first().map_or("nothing", |s| s.what.as_str()));
    let mut picture = Picture::new(width, "chain", &label);
    for lane in &lanes {
        let (name, class) = lane.name();
        picture.rect(&format!("lane {class}"), (left(*lane), 0.0), (column, 24.0), "");
        picture.text("lane-name", (left(*lane) + 10.0, 16.5), name);
    }
    let mut y = 24.0 + 16.0;
    let mut from: Option<(f64, f64)> = None;
    let count = drawn.len();
    for (row, one) in drawn.into_iter().enumerate() {
        match one {
            Drawn::LeftOut(n, critical) => {
                let text = format!("… {n} links more ({} here)", duration(critical));
                picture.text("note", (8.0, y + LINE), &text);
                y += GAP;
            }
            Drawn::Link(step) => {
                let x = left(Lane::of(step));
                if let Some(from) = from {
                    arrow(&mut picture, step, from, (x + column / 2.0, y), width);
                }
                let height = block(&mut picture, step, (x, y), column, d.chain.age, row + 1 == count);
                from = Some((x + column / 2.0, y + height));
                y += height + GAP;
            }
        }
    }
    picture.finish((y - GAP + 4.0).max(40.0))
}

/// The way from one link to the next.
fn arrow(picture: &mut Picture, step: &Step, from: (f64, f64), to: (f64, f64), width: f64) {
    let style = match &step.sure {
        Some((Confidence::Inferred, _)) => "way inferred",
        Some((Confidence::NotVisible, _)) => "way not-visible",
        _ => "way",
    };
    let end = (to.0, to.1 - 5.0);
    let label = match &step.sure {
        Some((confidence, _)) if step.way.is_empty() => confidence_word(*confidence).to_owned(),
        Some((confidence, _)) => format!("{} · {}", step.way, confidence_word(*confidence)),
        None => step.way.to_owned(),
    };
    if (from.0 - to.0).abs() < 1.0 {
        picture.path(style, &[from, end], true);
        picture.text("way-name", (from.0 + 8.0, from.1 + GAP / 2.0 + 3.0), &label);
        return;
    }
    let middle = from.1 + GAP / 2.0;
    picture.path(style, &[from, (from.0, middle), (to.0, middle), end], true);
    // Above the line, from its left end on, and never beyond the edge.
    let room = label.chars().count() as f64 * 6.6;
    let x = (from.0.min(to.0) + 8.0).min(width - room);
    picture.text("way-name", (x, middle - 5.0), &label);
}

/// A link; returns its height.
fn block(picture: &mut Picture, s: &Step, (x, y): (f64, f64), width: f64, age: Ns, last: bool) -> f64 {
    // Its border is half outside of it.
    let width = width - 1.0;
    let room = ((width - 22.0) * 10.0) as u32;
    let what = wrap(&s.what, room, 4, bold);
    let who = s.who.as_ref().map(|who| wrap(who, room, 2, bold)).unwrap_or_default();
    let height = 10.0 + LINE * (what.len() + who.len() + 1) as f64 + 16.0;
    let (_, lane) = Lane::of(s).name();
    let title = match &s.sure {
        Some((confidence, evidence)) => format!("{}: {evidence}", confidence_word(*confidence)),
        None => String::new(),
    };
    picture.rect(if last { "link leaf" } else { "link" }, (x, y), (width, height), &title);
    picture.rect(&format!("edge {lane}"), (x, y), (5.0, height), "");
    let mut line = y + 6.0;
    for (class, lines) in [("what", what), ("who", who)] {
        for text in lines {
            line += LINE;
            picture.text(class, (x + 14.0, line), &text);
        }
    }
    line += LINE;
    let took = format!("{}{}", least(s.at_least), duration(s.age));
    let here =
        if s.critical > 0 { format!(" · {} of it here", duration(s.critical)) } else { String::new() };
    picture.text("took", (x + 14.0, line), &(took + &here));
    let bar = width - 28.0;
    let share = s.critical as f64 / age.max(1) as f64;
    let said = format!("{} of the {} that the stuck call lasts", duration(s.critical), duration(age));
    picture.rect("bar", (x + 14.0, line + 7.0), (bar, 4.0), &said);
    if share > 0.002 {
        picture.rect("bar-filled", (x + 14.0, line + 7.0), ((bar * share.min(1.0)).max(2.0), 4.0), &said);
    }
    height
}
