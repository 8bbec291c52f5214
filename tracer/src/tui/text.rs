//! Text for cells: made safe, measured by what it takes on the screen, cut and wrapped by that.

use crate::sinks::sanitise;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What a piece of text means. How that looks is decided in one place, [`super::view::ink`]; the words say it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ink {
    /// Nothing in particular.
    #[default]
    Plain,
    /// Beside the point.
    Dim,
    /// To be found first.
    Bold,
    /// It is stuck.
    Bad,
    /// It cannot be seen, or will be bad.
    Warn,
    /// All is well.
    Good,
    /// Names of containers, devices, keys.
    Name,
    /// A mark on its own ground: bad.
    BadMark,
    /// A mark on its own ground: take notice.
    WarnMark,
    /// A mark on its own ground: well.
    GoodMark,
    /// A mark on its own ground.
    Mark,
}

/// A line of pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(pub Vec<(Ink, String)>);

impl Line {
    /// One piece.
    pub fn new(ink: Ink, text: impl AsRef<str>) -> Line {
        Line::default().and(ink, text)
    }

    /// And another.
    pub fn and(mut self, ink: Ink, text: impl AsRef<str>) -> Line {
        let text = clean(text.as_ref());
        if !text.is_empty() {
            self.0.push((ink, text));
        }
        self
    }

    /// And all of another line.
    pub fn and_all(mut self, other: Line) -> Line {
        self.0.extend(other.0);
        self
    }

    /// Without its inks.
    pub fn plain(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// Columns it takes.
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| width(text)).sum()
    }

    /// In at most this many columns; what is longer ends with `…`.
    pub fn cut(self, most: usize) -> Line {
        if self.width() <= most {
            return self;
        }
        let mut left = most;
        let mut out = Vec::new();
        for (ink, text) in self.0 {
            if width(&text) < left {
                left -= width(&text);
                out.push((ink, text));
            } else {
                out.push((ink, ended(&text, left)));
                break;
            }
        }
        Line(out)
    }

    /// In lines of at most `columns`, at most `lines` of them; the last ends with `…` when more would follow. Lines after
    /// the first begin with `indent` blanks.
    pub fn wrap(&self, columns: usize, lines: usize, indent: usize) -> Vec<Line> {
        let mut out: Vec<Line> = Vec::new();
        let mut line = Line::default();
        let mut used = 0;
        let words = self.0.iter().flat_map(|(ink, text)| words(text).map(move |word| (*ink, word)));
        for (ink, word) in words {
            let mut rest = word;
            while !rest.is_empty() {
                let fits = width(rest.trim_end()) <= columns.saturating_sub(used);
                let begun = used > if out.is_empty() { 0 } else { indent };
                if !fits && begun {
                    out.push(std::mem::take(&mut line));
                    (line, used) = start(indent.min(columns / 2));
                    rest = rest.trim_start();
                    continue;
                }
                let (head, tail) = if fits { (rest, "") } else { split(rest, columns.saturating_sub(used)) };
                if head.is_empty() {
                    break; // Not even one character has room.
                }
                // The blank behind the last word needs no room.
                let room = columns.saturating_sub(used);
                let shown = if width(head) > room { head.trim_end() } else { head };
                used += width(shown);
                line.0.push((ink, shown.to_owned()));
                rest = tail;
            }
        }
        if !line.0.is_empty() {
            out.push(line);
        }
        if out.len() > lines {
            out.truncate(lines);
            if let Some(last) = out.last_mut() {
                let ink = last.0.last().map_or(Ink::Plain, |(ink, _)| *ink);
                let text = std::mem::take(last).cut(columns.saturating_sub(1));
                let open = !text.plain().ends_with('…');
                *last = if open { text.and(ink, "…") } else { text };
            }
        }
        out
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Line {
        Line::new(Ink::Plain, text)
    }
}

impl From<String> for Line {
    fn from(text: String) -> Line {
        Line::new(Ink::Plain, text)
    }
}

fn start(indent: usize) -> (Line, usize) {
    if indent == 0 { (Line::default(), 0) } else { (Line(vec![(Ink::Plain, " ".repeat(indent))]), indent) }
}

/// Words with the blanks that follow them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

/// As much as fits into this many columns, and the rest.
fn split(text: &str, columns: usize) -> (&str, &str) {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += c.width().unwrap_or(0);
        if used > columns {
            return text.split_at(at);
        }
    }
    (text, "")
}

/// In at most `columns`, with `…` at its end when that is not all of it.
pub fn ended(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    match columns {
        0 => String::new(),
        _ => format!("{}…", split(text, columns - 1).0),
    }
}

/// Columns that a text takes on the screen, as it is drawn: character by character, so that what is measured here and what
/// a terminal does differ as little as they can.
pub fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum::<usize>().max(text.width())
}

/// Makes a text safe to draw: nothing moves the cursor or turns the text around ([`sanitise`]); what makes terminals disagree
/// about widths (variation selectors) is replaced, and no more than [`COMBINED`] marks pile up on one character.
pub fn clean(text: &str) -> String {
    /// Marks on one character.
    const COMBINED: usize = 2;
    let mut piled = 0;
    let safe = sanitise(text);
    if safe.is_ascii() {
        return safe.into_owned();
    }
    let selects = |c: &char| matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}');
    let keep = safe.chars().filter(|c| !selects(c)).filter(|c| {
        piled = if c.width() == Some(0) { piled + 1 } else { 0 };
        piled <= COMBINED
    });
    keep.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(lines: &[Line]) -> Vec<String> {
        lines.iter().map(Line::plain).collect()
    }

    #[test]
    fn a_line_is_wrapped_at_words_and_says_when_more_follows() {
        let line = Line::new(Ink::Bad, "STUCK 5s").and(Ink::Plain, " · sync of /dev/sda");
        assert_eq!(plain(&line.wrap(12, 9, 2)), ["STUCK 5s · ", "  sync of ", "  /dev/sda"]);
        assert_eq!(plain(&line.wrap(12, 2, 2)), ["STUCK 5s · ", "  sync of …"]);
        assert_eq!(plain(&Line::from("averylongword").wrap(5, 9, 0)), ["avery", "longw", "ord"]);
        assert_eq!(plain(&Line::from("数据库数据库").wrap(5, 9, 0)), ["数据", "库数", "据库"]);
        assert_eq!(Line::from("").wrap(5, 9, 0), []);
        assert_eq!(Line::from("数").wrap(1, 9, 0), []);
        assert_eq!(Line::from("abcdef").cut(4).plain(), "abc…");
        assert_eq!(Line::from("数据库").cut(4).plain(), "数…");
    }

    #[test]
    fn what_a_workload_is_called_cannot_break_the_layout() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(clean(&format!("e{}x", "\u{301}".repeat(50))), "e\u{301}\u{301}x");
        assert_eq!(clean("\u{2764}\u{fe0f}"), "\u{2764}");
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_it_may_be(text in "\\PC{0,60}", columns in 0usize..40, indent in 0usize..6) {
            let line = Line::new(Ink::Plain, &text).and(Ink::Bold, "tail of it");
            prop_assert!(line.clone().cut(columns).width() <= columns);
            for piece in line.wrap(columns, 5, indent) {
                prop_assert!(piece.width() <= columns.max(1), "{piece:?}");
            }
        }
    }
}
