//! The capture as a picture over time: how long relists were stuck, incidents, dirty memory, what the disks wrote.

use super::svg::Picture;
use crate::correlator::words::{bytes, device, duration};
use crate::correlator::{DeviceName, EndsIn};
use crate::event::Ns;
use crate::report::{Report, Sample};

/// Width of the picture in its own units.
const WIDTH: f64 = 1080.0;
/// Incidents side by side; more share the last line.
const LINES: usize = 6;

/// A place in time.
struct Scale {
    from: Ns,
    to: Ns,
}

impl Scale {
    fn x(&self, at: Ns) -> f64 {
        let at = at.clamp(self.from, self.to);
        (at - self.from) as f64 / (self.to - self.from).max(1) as f64 * WIDTH
    }
}

/// The whole capture.
pub fn timeline(r: &Report) -> String {
    let first = r.timeline.samples.first().map_or(r.captured.from.at, |s| s.at);
    let scale =
        Scale { from: r.captured.from.at.min(first), to: r.captured.to.at.max(first.saturating_add(1)) };
    let mut picture = Picture::new(WIDTH, "timeline", "The capture over time");
    let mut y = relists(&mut picture, r, &scale, 0.0);
    y = incidents(&mut picture, r, &scale, y);
    y = memory(&mut picture, r, &scale, y);
    y = disks(&mut picture, r, &scale, y);
    gaps(&mut picture, r, &scale, y);
    let height = axis(&mut picture, r, &scale, y);
    picture.finish(height)
}

/// A panel with a heading; returns where it begins.
fn panel(picture: &mut Picture, y: f64, height: f64, text: &str) -> f64 {
    picture.text("caption", (0.0, y + 14.0), text);
    picture.rect("panel", (0.0, y + 20.0), (WIDTH, height), "");
    y + 20.0
}

/// One point a sample, at its height within a panel.
fn points(
    samples: &[Sample],
    scale: &Scale,
    top: f64,
    height: f64,
    of: impl Fn(&Sample) -> f64,
) -> Vec<(f64, f64)> {
    samples.iter().map(|s| (scale.x(s.at), top + height * (1.0 - of(s).clamp(0.0, 1.0)))).collect()
}

fn relists(picture: &mut Picture, r: &Report, scale: &Scale, y: f64) -> f64 {
    const HEIGHT: f64 = 110.0;
    let longest = r.timeline.samples.iter().map(|s| s.relist).max().unwrap_or(0);
    let threshold =
        r.incidents.iter().find_map(|one| one.record.not_ready.as_ref()).map(|not_ready| not_ready.threshold);
    let what = if r.relists.stand_in { "list call that stands for the relist" } else { "relist" };
    if longest == 0 {
        let top = panel(picture, y, 24.0, &format!("age of the slow {what} in flight: none was"));
        return top + 24.0 + 10.0;
    }
    // The line is drawn where it is near enough to be compared with.
    let near = threshold.filter(|t| longest.saturating_mul(3) >= *t);
    let most = (longest.max(near.unwrap_or(0)) as f64 * 1.08).max(1.0);
    let caption = format!("age of the slow {what} in flight, at most {}", duration(longest));
    let top = panel(picture, y, HEIGHT, &caption);
    for (begin, end) in &r.timeline.stalled {
        let (from, to) = (scale.x(*begin), scale.x(*end));
        picture.rect(
            "stalled",
            (from, top),
            ((to - from).max(2.0), HEIGHT),
            &duration(end.saturating_sub(*begin)),
        );
    }
    let line = points(&r.timeline.samples, scale, top, HEIGHT, |s| s.relist as f64 / most);
    picture.area("relist", &line, top + HEIGHT);
    if let Some(threshold) = near {
        let at = top + HEIGHT * (1.0 - threshold as f64 / most);
        picture.path("threshold", &[(0.0, at), (WIDTH, at)], false);
        picture.text("note", (6.0, at - 4.0), &format!("NotReady after {}", duration(threshold)));
    }
    top + HEIGHT + 10.0
}

fn incidents(picture: &mut Picture, r: &Report, scale: &Scale, y: f64) -> f64 {
    if r.incidents.is_empty() {
        return y;
    }
    let caption = super::words::counted(r.incidents.len() as u64, "incident");
    picture.text("caption", (0.0, y + 14.0), &caption);
    let mut lines: Vec<f64> = Vec::new();
    for (n, one) in r.incidents.iter().enumerate() {
        let (from, to) = (scale.x(one.record.since), scale.x(one.record.ended.unwrap_or(scale.to)));
        let to = to.max(from + 3.0);
        let free = lines.iter().position(|end| *end <= from);
        let place = match free {
            Some(place) => place,
            None if lines.len() < LINES => {
                lines.push(0.0);
                lines.len() - 1
            }
            None => LINES - 1,
        };
        let label = format!("{} · {}", n + 1, one.record.cause);
        let room = label.chars().count() as f64 * 7.0;
        let end = lines.get_mut(place);
        let top = y + 20.0 + 22.0 * place as f64;
        let class = if one.record.ended.is_some() { "incident" } else { "incident open" };
        picture.rect(class, (from, top), (to - from, 18.0), &one.record.sentence);
        // Beside the bar where it does not fit into it; left out where it would not fit there either.
        let (x, class) = match (room < to - from - 8.0, to + 6.0 + room < WIDTH, from - 6.0 > room) {
            (true, ..) => (from + 6.0, "inside"),
            (_, true, _) => (to + 6.0, "beside"),
            (.., true) => (from - 6.0 - room, "beside"),
            _ => (from + 6.0, ""),
        };
        let number = format!("{}", n + 1);
        match class {
            "" if to - from > 14.0 => picture.text("inside", (x, top + 13.0), &number),
            "" => {}
            class => picture.text(class, (x, top + 13.0), &label),
        }
        if let Some(end) = end {
            *end = end.max(to).max(if class == "beside" && x > from { x + room } else { 0.0 });
        }
    }
    y + 20.0 + 22.0 * lines.len() as f64 + 8.0
}

fn memory(picture: &mut Picture, r: &Report, scale: &Scale, y: f64) -> f64 {
    const HEIGHT: f64 = 70.0;
    let known: Vec<Sample> = r.timeline.samples.iter().filter(|s| s.memory.is_some()).cloned().collect();
    let sum = |s: &Sample| s.memory.map_or(0, |(dirty, writeback)| dirty.saturating_add(writeback));
    let most = known.iter().map(sum).max().unwrap_or(0);
    if most == 0 {
        return y;
    }
    let caption = format!(
        "memory waiting to be written: dirty (light) and under writeback (dark), at most {}",
        bytes(most)
    );
    let top = panel(picture, y, HEIGHT, &caption);
    let most = most as f64 * 1.08;
    let line = points(&known, scale, top, HEIGHT, |s| sum(s) as f64 / most);
    picture.area("dirty", &line, top + HEIGHT);
    let line = points(&known, scale, top, HEIGHT, |s| s.memory.map_or(0, |m| m.1) as f64 / most);
    picture.area("writeback", &line, top + HEIGHT);
    top + HEIGHT + 10.0
}

fn disks(picture: &mut Picture, r: &Report, scale: &Scale, mut y: f64) -> f64 {
    const HEIGHT: f64 = 50.0;
    const SHOWN: usize = 3;
    // Those that incidents end in, else those that write most.
    let blamed: Vec<String> = r
        .incidents
        .iter()
        .filter_map(|one| ending_device(&one.diagnosis.as_ref()?.ends_in))
        .map(device)
        .collect();
    let most =
        |place: usize| r.timeline.samples.iter().filter_map(|s| *s.written.get(place)?).max().unwrap_or(0);
    let mut places: Vec<(usize, &String)> = r.timeline.devices.iter().enumerate().collect();
    places.sort_by_key(|(place, name)| (!blamed.contains(name), std::cmp::Reverse(most(*place))));
    for (place, name) in places.into_iter().take(SHOWN) {
        let fastest = most(place);
        if fastest == 0 {
            continue;
        }
        let blame = if blamed.contains(name) { ", which chains end in" } else { "" };
        let caption = format!("{name}{blame}: written, at most {}/s (over ten seconds each)", bytes(fastest));
        let top = panel(picture, y, HEIGHT, &caption);
        let known: Vec<Sample> = r
            .timeline
            .samples
            .iter()
            .filter(|s| s.written.get(place).is_some_and(Option::is_some))
            .cloned()
            .collect();
        let rate = |s: &Sample| s.written.get(place).copied().flatten().unwrap_or(0) as f64;
        let line = points(&known, scale, top, HEIGHT, |s| rate(s) / (fastest as f64 * 1.08));
        picture.area("written", &line, top + HEIGHT);
        y = top + HEIGHT + 10.0;
    }
    y
}

fn ending_device(ends_in: &EndsIn) -> Option<&DeviceName> {
    match ends_in {
        EndsIn::UnmountSync { device, .. } | EndsIn::Sync { device, .. } | EndsIn::Unmount { device, .. } => {
            device.as_ref()
        }
        _ => None,
    }
}

/// Where nothing is known.
fn gaps(picture: &mut Picture, r: &Report, scale: &Scale, height: f64) {
    for gap in &r.captured.gaps {
        let (from, to) = (scale.x(gap.from.at), scale.x(gap.to.as_ref().map_or(scale.to, |to| to.at)));
        picture.rect("gap", (from, 0.0), ((to - from).max(2.0), height), &super::words::gap(gap));
    }
}

/// Times of day; returns the height of all.
fn axis(picture: &mut Picture, r: &Report, scale: &Scale, y: f64) -> f64 {
    picture.path("axis", &[(0.0, y), (WIDTH, y)], false);
    const TICKS: u64 = 6;
    let span = scale.to - scale.from;
    for n in 0..=TICKS {
        let at = scale.from + (u128::from(span) * u128::from(n) / u128::from(TICKS)) as u64;
        let x = scale.x(at);
        picture.path("axis", &[(x, y), (x, y + 5.0)], false);
        let time = r.time_of(at);
        let clock = time.get(11..if span < 20_000_000_000 { 23 } else { 19 }).unwrap_or_default();
        let class = match n {
            0 => "tick first",
            TICKS => "tick last",
            _ => "tick",
        };
        picture.text(class, (x, y + 20.0), clock);
    }
    y + 28.0
}
