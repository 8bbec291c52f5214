//! A pane: its heading, above its rows what they cannot show, its rows, and all of the selected one.

use super::Canvas;
use super::chart;
use crate::tui::model::Model;
use crate::tui::panes::{Column, Pane, Row};
use crate::tui::text::{Ink, Line};
use ratatui::layout::Rect;
use ratatui::style::Modifier;

/// Lines of the picture of relists where nothing else is to be shown.
const CHART: u16 = 14;

/// How the lines of a pane are used.
struct Parts {
    heading: Rect,
    above: Rect,
    titles: Rect,
    rows: Rect,
    full: Rect,
}

/// Lines at the bottom in which the selected row is told in full.
const FULL: u16 = 2;

fn parts(model: &Model, pane: Pane, area: Rect) -> Parts {
    let mut left = area;
    let mut take = |lines: u16| {
        let taken = Rect { height: lines.min(left.height), ..left };
        left = Rect { y: taken.bottom(), height: left.height - taken.height, ..left };
        taken
    };
    let heading = take(1);
    let above = take(chart::height(model, pane, area));
    let titles = take(1);
    let full = if area.height >= 10 && model.pane == pane { FULL + u16::from(area.height >= 16) } else { 0 };
    let rows = take(area.height.saturating_sub(heading.height + above.height + titles.height + full));
    let full = take(full);
    Parts { heading, above, titles, rows, full }
}

/// Rows that have room.
pub fn page(model: &Model, pane: Pane, area: Rect) -> usize {
    usize::from(parts(model, pane, area).rows.height)
}

/// Draws a pane.
pub fn draw(model: &Model, pane: Pane, area: Rect, canvas: &mut Canvas<'_>) {
    let parts = parts(model, pane, area);
    let has_keys = model.pane == pane;
    canvas.line(parts.heading, &heading(model, pane, area.width));
    chart::draw(model, pane, parts.above, canvas);
    let (rows, selected) = model.rows(pane);
    if rows.is_empty() {
        let filter = &model.table(pane).filter;
        let line = match filter.is_empty() {
            true => pane.nothing(model),
            false => Line::new(Ink::Plain, format!("nothing contains {filter}")),
        };
        let room =
            Rect { y: parts.titles.y, height: parts.titles.height + parts.rows.height, ..parts.titles };
        let (columns, most) = (usize::from(room.width.saturating_sub(1)), usize::from(room.height));
        let lines: Vec<Line> =
            line.wrap(columns, most, 0).into_iter().map(|l| Line::new(Ink::Plain, " ").and_all(l)).collect();
        canvas.lines(room, &lines);
        if pane == Pane::Chain && (model.zoomed || !super::layout::is_large(model.size)) {
            // Nothing is stuck: how relists have fared says more than an empty place.
            let used = (lines.len() as u16 + 1).min(room.height);
            let below = Rect { y: room.y + used, height: room.height - used, ..room };
            chart::draw(model, Pane::Relists, Rect { height: below.height.min(CHART), ..below }, canvas);
        }
        return;
    }
    let columns = widths(pane, area.width);
    canvas.line(parts.titles, &titles(model, pane, &columns));
    let page = usize::from(parts.rows.height);
    // As far down as it takes to see the selected row, and a few behind it.
    let behind = if model.table(pane).selected.is_some() { (page / 4).min(2) } else { 0 };
    let top = (selected + 1 + behind).saturating_sub(page).min(rows.len().saturating_sub(page));
    for (line, (n, row)) in parts.rows.rows().zip(rows.iter().enumerate().skip(top)) {
        let is_selected = has_keys && n == selected;
        canvas.line(line, &cells(row, &columns, is_selected));
        let found = has_keys && !model.search.is_empty() && row.contains(&model.search);
        if is_selected {
            canvas.modify(line, Modifier::REVERSED);
        }
        if found {
            canvas.modify(line, Modifier::UNDERLINED);
        }
    }
    let hidden = rows.len().saturating_sub(page);
    if parts.full.height > 0
        && let Some(row) = rows.get(selected)
    {
        let full = if row.full.0.is_empty() { joined(row) } else { row.full.clone() };
        let full = Line::new(Ink::Bold, "▸ ").and_all(full);
        let lines = full.wrap(usize::from(area.width), usize::from(parts.full.height), 2);
        canvas.lines(parts.full, &lines);
    } else if hidden > 0
        && let Some(last) = parts.rows.rows().next_back()
    {
        let more = format!(" {} more ", hidden);
        let at = Rect { x: last.right().saturating_sub(more.len() as u16), ..last };
        canvas.line(at.intersection(last), &Line::new(Ink::Mark, more));
    }
}

fn joined(row: &Row) -> Line {
    let mut line = Line::default();
    for cell in row.cells.iter().filter(|cell| !cell.0.is_empty()) {
        let dot = if line.0.is_empty() { "" } else { " · " };
        line = line.and(Ink::Plain, dot).and_all(cell.clone());
    }
    line
}

/// Where other panes can be gone to, when this one has all of the screen; else only its own name.
fn heading(model: &Model, pane: Pane, columns: u16) -> Line {
    let columns = usize::from(columns);
    let mut line = Line::new(Ink::Dim, "─");
    if model.zoomed || !super::layout::is_large(model.size) {
        line = line.and_all(names(model, columns.saturating_sub(1)));
    } else {
        let ink = if model.pane == pane { Ink::Mark } else { Ink::Bold };
        line = line.and(ink, name(model, pane, true));
    }
    let table = model.table(pane);
    if !table.filter.is_empty() {
        line = line.and(Ink::WarnMark, format!(" only {} ", table.filter));
    }
    let gap = columns.saturating_sub(line.width());
    line.and(Ink::Dim, "─".repeat(gap)).cut(columns)
}

/// What a pane is called, with its number and perhaps how much there is in it.
fn name(model: &Model, pane: Pane, counted: bool) -> String {
    let count = if counted { pane.count(model) } else { String::new() };
    let count = if count.is_empty() { count } else { format!(" ({count})") };
    format!(" {} {}{count} ", pane as usize + 1, pane.title())
}

/// The names of all panes as far as they have room: the one that is shown first of all, then counts.
fn names(model: &Model, columns: usize) -> Line {
    let line = |counted: bool, count_of_shown: bool, named: bool| {
        let mut line = Line::default();
        for pane in Pane::ALL {
            let is_shown = pane == model.pane;
            let text = match is_shown || named {
                true => name(model, pane, counted || (is_shown && count_of_shown)),
                false => format!(" {} ", pane as usize + 1),
            };
            line = line.and(if is_shown { Ink::Mark } else { Ink::Plain }, text);
        }
        line
    };
    let ways =
        [line(true, true, true), line(false, true, true), line(false, false, true), line(false, true, false)];
    let fits = |line: &Line| line.width() <= columns;
    ways.into_iter().find(fits).unwrap_or_else(|| line(false, false, false))
}

/// Columns that are shown, with what each has.
fn widths(pane: Pane, width: u16) -> Vec<(usize, &'static Column, usize)> {
    let shown: Vec<(usize, &Column)> =
        pane.columns().iter().enumerate().filter(|(_, c)| c.from <= width).collect();
    let fixed: usize = shown.iter().map(|(_, c)| usize::from(c.width) + 1).sum();
    let growing = shown.iter().filter(|(_, c)| c.width == 0).count().max(1);
    let rest = usize::from(width).saturating_sub(fixed) / growing;
    shown.into_iter().map(|(n, c)| (n, c, if c.width == 0 { rest } else { c.width.into() })).collect()
}

fn titles(model: &Model, pane: Pane, columns: &[(usize, &'static Column, usize)]) -> Line {
    let table = model.table(pane);
    let mut line = Line::default();
    for (n, column, width) in columns {
        let arrow = match (table.sort == Some(*n), table.reversed) {
            (true, false) => "▼",
            (true, true) => "▲",
            (false, _) => "",
        };
        let ink = if arrow.is_empty() { Ink::Dim } else { Ink::Bold };
        line = line.and_all(cell(Line::new(ink, format!("{}{arrow}", column.title)), *width, column.right));
    }
    line
}

fn cells(row: &Row, columns: &[(usize, &'static Column, usize)], is_selected: bool) -> Line {
    let mut line = Line::default();
    for (n, column, width) in columns {
        let text = row.cells.get(*n).cloned().unwrap_or_default();
        line = line.and_all(cell(text, *width, column.right));
    }
    if is_selected {
        // Reversed as a whole: colours of its own would have to be read on a ground that is another colour.
        let plain = line.0.into_iter().map(|(_, text)| (Ink::Plain, text)).collect();
        return Line(plain);
    }
    line
}

/// A cell with the blank that follows it.
fn cell(text: Line, width: usize, right: bool) -> Line {
    let text = text.cut(width);
    let blank = " ".repeat(width.saturating_sub(text.width()));
    match right {
        true => Line::new(Ink::Plain, blank).and_all(text).and(Ink::Plain, " "),
        false => text.and(Ink::Plain, format!("{blank} ")),
    }
}
