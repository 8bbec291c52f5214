//! A pane: its heading, above its rows what they cannot show, its rows, and all of the selected one.

use super::Canvas;
use super::chart;
use crate::tui::model::Model;
use crate::tui::panes::{Column, Pane, Row};
use crate::tui::text::{Ink, Line};
use ratatui::layout::Rect;
use ratatui::style::Modifier;

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
        return;
    }
    let columns = widths(pane, area.width);
    canvas.line(parts.titles, &titles(model, pane, &columns));
    let page = usize::from(parts.rows.height);
    // The selected row stays in the middle where there is more than has room.
    let top = if rows.len() <= page { 0 } else { selected.saturating_sub(page / 2).min(rows.len() - page) };
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
    let name = |p: Pane| {
        let count = p.count(model);
        let count = if count.is_empty() { String::new() } else { format!(" ({count})") };
        format!(" {} {}{count} ", p as usize + 1, p.title())
    };
    let mut line = Line::new(Ink::Dim, "─");
    let has_all = columns == usize::from(model.size.0) && (pane != Pane::Chain || model.pane == pane);
    let alone = model.zoomed || !is_large(model);
    if has_all && alone {
        for p in Pane::ALL {
            let short = format!(" {} {} ", p as usize + 1, p.title());
            let next = if p == pane { Line::new(Ink::Mark, name(p)) } else { Line::new(Ink::Plain, short) };
            line = line.and_all(next).and(Ink::Dim, "─");
        }
        // Where the names have no room, numbers tell that there are others.
        if line.width() > columns {
            line = Line::new(Ink::Dim, "─").and(Ink::Mark, name(pane)).and(Ink::Dim, "─");
            for p in Pane::ALL.into_iter().filter(|p| *p != pane) {
                let room = columns.saturating_sub(line.width());
                let full = format!(" {} {} ", p as usize + 1, p.title());
                let text = if crate::tui::text::width(&full) + 8 <= room {
                    full
                } else {
                    format!(" {} ", p as usize + 1)
                };
                line = line.and(Ink::Plain, text);
            }
        }
    } else {
        let ink = if model.pane == pane { Ink::Mark } else { Ink::Bold };
        line = line.and(ink, name(pane));
    }
    let table = model.table(pane);
    if !table.filter.is_empty() {
        line = line.and(Ink::WarnMark, format!(" only {} ", table.filter));
    }
    let gap = columns.saturating_sub(line.width());
    line.and(Ink::Dim, "─".repeat(gap)).cut(columns)
}

fn is_large(model: &Model) -> bool {
    super::layout::is_large(model.size)
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
