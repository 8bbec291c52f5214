//! From one picture to the next: only what has changed goes to the terminal.

use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use std::io;

/// The picture on the terminal.
#[derive(Debug, Default)]
pub struct Painter {
    shown: Option<Buffer>,
}

impl Painter {
    /// Forgets what is on the terminal: the next picture is painted as a whole.
    pub fn forget(&mut self) {
        self.shown = None;
    }

    /// The bytes that make the terminal show what `draw` draws; empty when it does already.
    pub fn paint(&mut self, size: (u16, u16), draw: impl FnOnce(Rect, &mut Buffer)) -> io::Result<Vec<u8>> {
        let area = Rect::new(0, 0, size.0, size.1);
        let mut next = Buffer::empty(area);
        draw(area, &mut next);
        let mut bytes = Vec::new();
        let mut backend = CrosstermBackend::new(&mut bytes);
        let before = self.shown.take().filter(|shown| *shown.area() == area);
        let before = match before {
            Some(before) => before,
            None => {
                backend.clear()?;
                Buffer::empty(area)
            }
        };
        let mut changed = before.diff_iter(&next).peekable();
        if changed.peek().is_some() {
            backend.draw(changed)?;
        }
        self.shown = Some(next);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::style::Style;

    fn paint(painter: &mut Painter, size: (u16, u16), text: &str) -> String {
        let draw = |area: Rect, buffer: &mut Buffer| {
            buffer.set_stringn(0, 0, text, area.width.into(), Style::default());
        };
        String::from_utf8(painter.paint(size, draw).unwrap()).unwrap()
    }

    #[test]
    fn only_what_has_changed_is_painted_and_all_after_a_change_of_size() {
        let mut painter = Painter::default();
        let first = paint(&mut painter, (20, 2), "STUCK 5s");
        assert!(first.contains("\u{1b}[2J") && first.contains("STUCK") && first.contains("5s"), "{first:?}");
        assert_eq!(paint(&mut painter, (20, 2), "STUCK 5s"), "");
        let next = paint(&mut painter, (20, 2), "STUCK 6s");
        assert!(next.contains('6') && !next.contains("STUCK"), "{next:?}");
        let resized = paint(&mut painter, (10, 1), "STUCK 6s");
        assert!(resized.contains("\u{1b}[2J") && resized.contains("STUCK"), "{resized:?}");
        painter.forget();
        assert!(paint(&mut painter, (10, 1), "STUCK 6s").contains("STUCK"));
    }
}
