//! From the model to cells: nothing is computed here that another view would need, and nothing is changed.
//!
//! ```text
//! header       plegscope · node · mode · time · losses · marks
//! verdict      STUCK 1m48s · NotReady in … · why · who waits;  do now, do not, what comes
//! panes        one of them, or on a large terminal all
//! footer       keys, or what is typed, or what was just done
//! ```

mod chart;
pub mod ink;
mod layout;
mod popup;
mod table;
mod verdict;

use super::keys;
use super::model::{Mode, Model, Popup, Purpose};
use super::panes::Pane;
use super::text::{Ink, Line, width};
use crate::correlator::words;
use crate::sinks::text;
use ink::Palette;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Modifier;

/// Draws the whole screen.
pub fn view(model: &Model, palette: Palette, area: Rect, buffer: &mut Buffer) {
    let mut canvas = Canvas { buffer, palette };
    let plan = layout::plan(model, area);
    canvas.line(plan.header, &header(model, plan.header.width));
    canvas.lines(plan.verdict, &plan.words);
    for (pane, area) in &plan.panes {
        table::draw(model, *pane, *area, &mut canvas);
    }
    if let Some(popup) = &model.popup {
        popup::draw(popup, area, &mut canvas);
    }
    canvas.line(plan.footer, &footer(model, plan.footer.width));
}

/// Where is drawn: never beside its area, whatever is asked for.
pub(crate) struct Canvas<'a> {
    buffer: &'a mut Buffer,
    palette: Palette,
}

impl Canvas<'_> {
    /// One line at the top of an area.
    fn line(&mut self, area: Rect, line: &Line) {
        let area = area.intersection(*self.buffer.area());
        if area.is_empty() {
            return;
        }
        let mut x = area.x;
        for (ink, text) in &line.0 {
            let left = area.right().saturating_sub(x);
            (x, _) = self.buffer.set_stringn(x, area.y, text, left.into(), self.palette.style(*ink));
        }
    }

    /// Lines below each other.
    fn lines(&mut self, area: Rect, lines: &[Line]) {
        for (row, line) in area.rows().zip(lines) {
            self.line(row, line);
        }
    }

    /// Makes an area stand out, or go back.
    fn modify(&mut self, area: Rect, modifier: Modifier) {
        let area = area.intersection(*self.buffer.area());
        self.buffer.set_style(area, ratatui::style::Style::default().add_modifier(modifier));
    }

    /// Empties an area.
    fn clear(&mut self, area: Rect) {
        for position in area.intersection(*self.buffer.area()).positions() {
            if let Some(cell) = self.buffer.cell_mut(position) {
                cell.reset();
            }
        }
    }
}

/// The first line: what this is, where, when, and what is to be known of it.
fn header(model: &Model, columns: u16) -> Line {
    let mut left = Line::new(Ink::Bold, "plegscope");
    if !model.host.is_empty() {
        left = left.and(Ink::Name, format!(" {}", words::clip(&model.host, 40)));
    }
    let now = model.frame().map_or_else(|| "…".to_owned(), |f| model.time_of_day(f.now));
    match &model.mode {
        Mode::Live => left = left.and(Ink::Dim, " live ").and(Ink::Plain, now),
        Mode::Replay(file) => {
            let p = &model.position;
            let (at, all) = (p.at.saturating_sub(p.from), p.to.saturating_sub(p.from));
            left = left
                .and(Ink::Dim, format!(" replay {} ", words::clip(file, 24)))
                .and(Ink::Plain, format!("{now} "))
                .and(Ink::Dim, format!("{}/{} ", clock(at), clock(all)));
            if !p.ended && !p.paused {
                left = left.and(Ink::Dim, format!("×{}", speed(p.speed)));
            }
        }
    }
    let mut marks = Line::default();
    for (ink, mark) in layout::marks(model) {
        marks = marks.and(ink, format!(" {mark} ")).and(Ink::Plain, " ");
    }
    let columns = usize::from(columns);
    let room = columns.saturating_sub(marks.width());
    let left = if room > 12 { left.cut(room) } else { Line::default() };
    let gap = columns.saturating_sub(left.width() + marks.width());
    left.and(Ink::Plain, " ".repeat(gap)).and_all(marks)
}

/// Minutes and seconds.
fn clock(ns: u64) -> String {
    let seconds = ns / crate::thresholds::SECOND;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

fn speed(thousandths: u32) -> String {
    match thousandths {
        u32::MAX => "max".to_owned(),
        n if n % 1_000 == 0 => (n / 1_000).to_string(),
        n => format!("{}", f64::from(n) / 1_000.0),
    }
}

/// The last line: what is typed, what was just done, or keys.
fn footer(model: &Model, columns: u16) -> Line {
    if let Some(input) = &model.input {
        let what = match input.purpose {
            Purpose::Search => "/",
            Purpose::Filter => "only lines with: ",
        };
        let room = usize::from(columns).saturating_sub(width(what) + 24);
        let text = tail(&input.text, room);
        return Line::new(Ink::Bold, what)
            .and(Ink::Plain, text)
            .and(Ink::Mark, " ")
            .and(Ink::Dim, "  Enter: done, Esc: back");
    }
    if let Some((note, _)) = &model.note {
        return Line::new(Ink::Mark, format!(" {note} ")).cut(columns.into());
    }
    let mut line = Line::default();
    for binding in keys::usable(model.is_replay()).filter(|b| !b.short.is_empty()) {
        let next = Line::new(Ink::Bold, binding.name).and(Ink::Dim, format!(" {}  ", binding.short));
        if line.width() + next.width() > usize::from(columns) + 2 {
            break;
        }
        line = line.and_all(next);
    }
    line
}

/// The last characters that have room.
fn tail(text: &str, columns: usize) -> String {
    let mut from = text.len();
    for (at, _) in text.char_indices().rev() {
        if width(text.get(at..).unwrap_or_default()) > columns {
            break;
        }
        from = at;
    }
    text.get(from..).unwrap_or_default().to_owned()
}

/// All keys, from the table that is looked up.
pub fn help(model: &Model) -> Vec<Line> {
    let line = |b: &keys::Binding| {
        let room = 11usize.saturating_sub(width(b.name));
        Line::new(Ink::Bold, format!("{}{}", " ".repeat(room), b.name))
            .and(Ink::Plain, format!("  {}", b.help))
    };
    keys::usable(model.is_replay()).map(line).collect()
}

/// Plain lines for the ticket, at most [`text::LINES`].
pub fn ticket(model: &Model) -> Vec<String> {
    let Some(frame) = model.frame() else { return vec!["nothing is known yet".to_owned()] };
    let mut lines = match model.diagnosis() {
        Some((d, ..)) => text::diagnosis(d, frame.now),
        None => text::frame(frame),
    };
    lines.truncate(text::LINES);
    if let Some(first) = lines.first_mut() {
        let host = super::text::clean(&words::clip(&model.host, 40));
        let at = model.clock.map(|clock| clock.rfc3339(frame.now)).unwrap_or_default();
        *first = [host, at, std::mem::take(first)]
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
    }
    lines
}

/// Everything that all panes say, as plain lines.
pub fn export(model: &Model) -> String {
    let mut out = ticket(model);
    for (_, index, total) in model.diagnosis().iter().filter(|(_, _, total)| *total > 1) {
        out.push(format!("({} of {total} things that are stuck)", index + 1));
    }
    for pane in Pane::ALL {
        let rows = pane.rows(model);
        out.push(String::new());
        out.push(format!("== {} {}", pane.title(), pane.count(model)));
        if rows.is_empty() {
            out.push(pane.nothing(model).plain());
        }
        for row in rows {
            let cells: Vec<String> =
                row.cells.iter().map(Line::plain).filter(|c| !c.trim().is_empty()).collect();
            out.push(cells.join("  "));
            if pane == Pane::Chain {
                let detail = pane.detail(model, &row.id).unwrap_or_default();
                out.extend(detail.iter().map(|line| format!("        {}", line.plain())));
            }
        }
    }
    let plain = |line: String| super::text::clean(line.trim_end());
    out.into_iter().map(plain).collect::<Vec<_>>().join("\n") + "\n"
}

/// Rows that the pane shows.
pub fn page(model: &Model) -> usize {
    let plan = layout::plan(model, Rect::new(0, 0, model.size.0, model.size.1));
    let area = plan.panes.iter().find(|(pane, _)| *pane == model.pane).map(|(_, area)| *area);
    area.map_or(1, |area| table::page(model, model.pane, area))
}

/// Lines that what lies over the panes shows.
pub fn popup_page(size: (u16, u16)) -> usize {
    popup::page(Rect::new(0, 0, size.0, size.1))
}

/// Lines that it has.
pub fn popup_lines(popup: &Popup, size: (u16, u16)) -> usize {
    popup::wrapped(popup, Rect::new(0, 0, size.0, size.1)).len()
}
