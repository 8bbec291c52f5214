//! What both pictures of a report need: escaped text, lines that fit, a few shapes. No style but classes, no script.

use crate::sinks::sanitise;
use std::fmt::Write as _;

/// Text that may stand between tags or in a quoted attribute, whatever it was: safe to show, and never markup.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in sanitise(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A picture that grows.
pub struct Picture {
    body: String,
    width: f64,
    /// What it is, for those who do not see it.
    label: String,
    class: &'static str,
}

impl Picture {
    /// An empty one of this width, in its own units.
    pub fn new(width: f64, class: &'static str, label: &str) -> Picture {
        Picture { body: String::new(), width, label: escape(label), class }
    }

    /// A rectangle with round corners.
    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), title: &str) {
        let title = titled(title);
        self.put(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{}\">{title}</rect>",
            if height > 12.0 { 5 } else { 2 }
        ));
    }

    /// A line through points; `marker` puts an arrow at its end.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)], marker: bool) {
        let mut d = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
        }
        let end = if marker { " marker-end=\"url(#arrow)\"" } else { "" };
        self.put(format_args!("<path class=\"{class}\" d=\"{d}\"{end}/>"));
    }

    /// An area between points and the height `base`.
    pub fn area(&mut self, class: &str, points: &[(f64, f64)], base: f64) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let mut d = format!("M{:.1} {base:.1}", first.0);
        for (x, y) in points {
            let _ = write!(d, "L{x:.1} {y:.1}");
        }
        let _ = write!(d, "L{:.1} {base:.1}Z", last.0);
        self.put(format_args!("<path class=\"{class}\" d=\"{d}\"/>"));
    }

    /// A line of text.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let text = escape(text);
        self.put(format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"));
    }

    fn put(&mut self, shape: std::fmt::Arguments<'_>) {
        // Writing into a string does not fail.
        let _ = self.body.write_fmt(shape);
        self.body.push('\n');
    }

    /// The picture, this high.
    pub fn finish(self, height: f64) -> String {
        let Picture { body, width, label, class } = self;
        format!(
            "<svg class=\"{class}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{label}\">\n{body}</svg>\n"
        )
    }
}

/// What is shown where the pointer rests.
fn titled(title: &str) -> String {
    if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) }
}

/// How wide a character of bold text is at most, in tenths of a unit at 13 units: that of the widest font that is asked for
/// (DejaVu Sans).
pub fn bold(c: char) -> u32 {
    match c {
        'i' | 'l' | 'j' | 'I' | ' ' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | '-' => 55,
        '/' | 't' | 'f' | 'r' | '(' | ')' | '[' | ']' | '"' | '`' => 70,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 140,
        '=' | '<' | '>' | '+' | '~' | '#' | '&' | 'Q' | 'O' | 'G' | 'D' | 'H' | 'N' | 'U' => 115,
        // Where characters are as wide as they are high.
        c if c >= '\u{1100}' => 140,
        _ => 96,
    }
}

/// Text in at most `most` lines that are at most this wide, broken between words where there are some; the last line says
/// where more was.
pub fn wrap(text: &str, width: u32, most: usize, of: fn(char) -> u32) -> Vec<String> {
    let wide = |text: &str| text.chars().map(of).sum::<u32>();
    // How many of the first bytes fit; one character always does.
    let fit = |text: &str, room: u32| {
        let mut left = room;
        let fits = text.char_indices().find(|(at, c)| match left.checked_sub(of(*c)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => *at > 0 || room < width,
        });
        fits.map_or(text.len(), |(at, _)| at)
    };
    let mut lines: Vec<String> = Vec::new();
    for mut word in text.split_whitespace() {
        let room = lines.last().map_or(0, |line| width.saturating_sub(wide(line) + of(' ')));
        // A long path is broken where it must be.
        if wide(word) > width
            && room > width / 3
            && let Some(line) = lines.last_mut()
        {
            let (head, rest) = word.split_at(fit(word, room));
            if !head.is_empty() {
                *line = format!("{line} {head}");
            }
            word = rest;
        }
        while wide(word) > width && word.chars().count() > 1 {
            let (head, rest) = word.split_at(fit(word, width));
            lines.push(head.to_owned());
            word = rest;
        }
        match lines.last_mut() {
            _ if word.is_empty() => {}
            Some(line) if wide(line) + of(' ') + wide(word) <= width => *line = format!("{line} {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            let kept = fit(last, width.saturating_sub(of('…')));
            last.truncate(kept);
            last.push('…');
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_stay_whole_where_they_can() {
        let wrap = |text, width, most| wrap(text, width, most, |_| 1);
        assert_eq!(
            wrap("held by shim Delete of prod/job-7", 16, 9),
            ["held by shim", "Delete of", "prod/job-7"]
        );
        assert_eq!(wrap("a abcdefghijklmnop", 6, 9), ["a abcd", "efghij", "klmnop"]);
        assert_eq!(wrap("one two three four", 9, 1), ["one two…"]);
        assert_eq!(wrap("", 9, 2), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn no_line_is_too_long_and_nothing_is_lost_where_there_is_room(
            text in "[a-z/ \u{4e00}]{0,80}", width in 1u32..30
        ) {
            let lines = wrap(&text, width, 1_000, |_| 1);
            prop_assert!(lines.iter().all(|l| l.chars().count() <= width as usize), "{lines:?}");
            let all: String = lines.concat().split_whitespace().collect();
            prop_assert_eq!(all, text.split_whitespace().collect::<String>());
        }

        #[test]
        fn nothing_escapes(text in any::<String>()) {
            let escaped = escape(&text);
            prop_assert!(!escaped.contains(['<', '>', '"', '\'']), "{escaped}");
            prop_assert!(escaped.chars().all(|c| !c.is_control()));
            let back = escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
            let back = back.replace("&#39;", "'").replace("&amp;", "&");
            prop_assert_eq!(back, sanitise(&text));
        }
    }
}
