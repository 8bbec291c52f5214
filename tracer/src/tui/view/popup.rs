//! What lies over the panes: a frame with lines that can be scrolled.

use super::Canvas;
use crate::tui::model::{Popup, PopupKind};
use crate::tui::text::{Ink, Line};
use ratatui::layout::Rect;

/// Columns that are enough.
const WIDE: u16 = 132;

/// Where it lies: under the header, over the footer, in the middle; no larger than its lines need.
fn place(screen: Rect, lines: usize) -> Rect {
    let width = screen.width.min(WIDE);
    let needed = u16::try_from(lines + 2).unwrap_or(u16::MAX);
    let height = screen.height.saturating_sub(2).min(needed);
    Rect {
        x: screen.x + (screen.width - width) / 2,
        y: screen.y + u16::from(screen.height > 1),
        width,
        height,
    }
}

/// Lines that have room in it.
pub fn page(screen: Rect) -> usize {
    usize::from(screen.height.saturating_sub(4))
}

/// Its lines as they are drawn.
pub fn wrapped(popup: &Popup, screen: Rect) -> Vec<Line> {
    /// Of one line.
    const MOST: usize = 64;
    let columns = usize::from(screen.width.min(WIDE).saturating_sub(4));
    let indent = match popup.kind {
        PopupKind::Detail(..) | PopupKind::Help => 13,
        PopupKind::Ticket => 4,
    };
    // What is indented stays so where it goes on.
    let before = |line: &Line| line.plain().chars().take_while(|c| *c == ' ').count();
    let wrap = |line: &Line| match line.wrap(columns, MOST, indent.max(before(line) + 2)) {
        empty if empty.is_empty() => vec![Line::default()],
        lines => lines,
    };
    popup.lines.iter().flat_map(wrap).collect()
}

/// Draws it.
pub fn draw(popup: &Popup, screen: Rect, canvas: &mut Canvas<'_>) {
    let lines = wrapped(popup, screen);
    let area = place(screen, lines.len());
    if area.height < 3 || area.width < 8 {
        return;
    }
    canvas.clear(area);
    let (title, hint) = match &popup.kind {
        PopupKind::Help => ("keys".to_owned(), "Esc: close"),
        PopupKind::Detail(pane, _) => (format!("{}: detail", pane.title()), "Esc: close, c: copy id"),
        PopupKind::Ticket => ("for the ticket".to_owned(), "Esc: close, e: all panes to a file"),
    };
    let page = usize::from(area.height - 2);
    let scroll = popup.scroll.min(lines.len().saturating_sub(page));
    let where_in = if lines.len() > page {
        format!(" {}–{} of {} ", scroll + 1, (scroll + page).min(lines.len()), lines.len())
    } else {
        String::new()
    };
    let inner = usize::from(area.width - 2);
    let rule = |left: Line, right: Line| {
        let gap = inner.saturating_sub(left.width() + right.width());
        left.and(Ink::Dim, "─".repeat(gap)).and_all(right).cut(inner)
    };
    let top =
        rule(Line::new(Ink::Dim, "─").and(Ink::Mark, format!(" {title} ")), Line::new(Ink::Dim, where_in));
    let bottom = rule(Line::default(), Line::new(Ink::Dim, format!(" {hint} ─")));
    let edge = |left: &str, middle: Line, right: &str| {
        Line::new(Ink::Dim, left).and_all(middle).and(Ink::Dim, right)
    };
    let mut rows = area.rows();
    if let Some(row) = rows.next() {
        canvas.line(row, &edge("┌", top, "┐"));
    }
    for n in 0..page {
        let Some(row) = rows.next() else { break };
        let text = lines.get(scroll + n).cloned().unwrap_or_default();
        let blank = " ".repeat((inner - 1).saturating_sub(text.width()));
        canvas.line(row, &edge("│ ", text.and(Ink::Plain, blank), "│"));
    }
    if let Some(row) = rows.next() {
        canvas.line(row, &edge("└", bottom, "┘"));
    }
}
