//! The picture above the rows of a pane: relists over time.

use super::Canvas;
use crate::correlator::words;
use crate::event::Ns;
use crate::thresholds::{MILLISECOND, SECOND};
use crate::tui::model::Model;
use crate::tui::panes::{Pane, relists};
use crate::tui::text::{Ink, Line};
use ratatui::layout::Rect;

/// Columns left of the picture, for what its height means.
const SCALE: u16 = 8;
/// The height of the picture begins here.
const LEAST: Ns = 50 * MILLISECOND;

/// Lines that it takes.
pub fn height(model: &Model, pane: Pane, area: Rect) -> u16 {
    match pane {
        Pane::Relists => {
            let words = relists::summary(model).len() as u16;
            // Heading and titles, and some of those that have ended.
            let ended = model.history().relists().take(3).count().max(1) as u16;
            let rest = area.height.saturating_sub(words + 2 + ended);
            words + if rest < 3 { 0 } else { rest.min(12) }
        }
        _ => 0,
    }
}

/// Draws it.
pub fn draw(model: &Model, pane: Pane, area: Rect, canvas: &mut Canvas<'_>) {
    if pane != Pane::Relists || area.height == 0 {
        return;
    }
    let columns = usize::from(area.width);
    let words: Vec<Line> = relists::summary(model).into_iter().map(|line| line.cut(columns)).collect();
    canvas.lines(area, &words);
    let used = (words.len() as u16).min(area.height);
    let picture = Rect { y: area.y + used, height: area.height - used, ..area };
    if picture.height >= 3 && area.width > SCALE + 4 {
        draw_relists(model, picture, canvas);
    }
}

/// Age of the relist in flight over time, on a scale on which each power of ten has the same height; the threshold is the top.
fn draw_relists(model: &Model, area: Rect, canvas: &mut Canvas<'_>) {
    let (threshold, is_read) = relists::threshold(model);
    let columns = usize::from(area.width - SCALE);
    // All that is known has room.
    let known = model.history().span() / SECOND + 1;
    let step = known.div_ceil(columns as u64).max(1);
    let series = model.history().series(columns, step, |s| Some(s.relist.unwrap_or(0)));
    let lines = usize::from(area.height - 1);
    let eighths = (lines.saturating_sub(1) * 8).max(1);
    let high = |age: Ns| scaled(age, threshold, eighths);
    let top = format!("{:>7} ", words::duration(threshold));
    let default = if is_read { "" } else { " (default)" };
    let label = format!(" NotReady{default} ");
    let rule = "╌".repeat(columns.saturating_sub(crate::tui::text::width(&label)));
    let mut rows = area.rows();
    if let Some(row) = rows.next() {
        canvas.line(row, &Line::new(Ink::Bad, top).and(Ink::Bad, rule).and(Ink::Bad, label));
    }
    let ticks = [100 * MILLISECOND, SECOND, 10 * SECOND, 60 * SECOND];
    for n in 0..lines.saturating_sub(1) {
        let Some(row) = rows.next() else { return };
        let floor = (lines - 2 - n) * 8;
        let tick = ticks.iter().rev().find(|t| **t < threshold && (floor..floor + 8).contains(&high(**t)));
        let scale = tick.map_or_else(|| " ".repeat(8), |t| format!("{:>7} ", words::duration(*t)));
        let mut line = Line::new(Ink::Dim, scale);
        for value in &series {
            let (ink, mark) = mark(*value, threshold, high, floor);
            line.0.push((ink, mark.to_owned()));
        }
        canvas.line(row, &line);
    }
    if let Some(row) = rows.next() {
        let past = words::duration(step * columns as u64 * SECOND);
        let gap = columns.saturating_sub(past.len() + 8);
        let axis = format!("{}-{past}{}now", " ".repeat(SCALE.into()), " ".repeat(gap + 4));
        canvas.line(row, &Line::new(Ink::Dim, axis));
    }
}

fn mark(value: Option<Ns>, threshold: Ns, high: impl Fn(Ns) -> usize, floor: usize) -> (Ink, &'static str) {
    const BARS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    match value {
        // Nothing is known of that time.
        None => (Ink::Dim, " "),
        // None was slow.
        Some(0) => (Ink::Dim, if floor == 0 { "·" } else { " " }),
        Some(age) => {
            let ink = match () {
                () if age >= threshold => Ink::Bad,
                () if age >= threshold / 4 => Ink::Warn,
                () => Ink::Plain,
            };
            (ink, BARS[high(age).saturating_sub(floor).min(8)])
        }
    }
}

/// How high an age stands, in eighths of a line.
fn scaled(age: Ns, threshold: Ns, eighths: usize) -> usize {
    if age < LEAST {
        return 0;
    }
    let (least, most) = ((LEAST as f64).log10(), (threshold.max(LEAST + 1) as f64).log10());
    let part = ((age as f64).log10() - least) / (most - least);
    ((part * eighths as f64).round() as usize).clamp(1, eighths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_the_top_and_what_is_quick_stays_at_the_bottom() {
        let threshold = 180 * SECOND;
        assert_eq!(scaled(0, threshold, 64), 0);
        assert_eq!(scaled(LEAST, threshold, 64), 1);
        assert_eq!(scaled(threshold, threshold, 64), 64);
        assert_eq!(scaled(u64::MAX, threshold, 64), 64);
        let heights: Vec<usize> =
            [100 * MILLISECOND, SECOND, 10 * SECOND, 60 * SECOND].map(|t| scaled(t, threshold, 64)).to_vec();
        assert!(heights.is_sorted() && heights[0] > 1 && heights[3] < 64, "{heights:?}");
    }
}
