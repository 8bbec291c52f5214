//! Where frames go: text here, alerts, metrics and files beside it. Sinks render, they decide nothing.

pub mod deliver;
pub mod export;
pub mod goroutine;
pub mod json;
pub mod now;
pub mod report;
pub mod text;

use std::borrow::Cow;

/// Makes a string that came from a workload safe for a terminal, a label or a log line: control, escape, bidirectional
/// and invisible format characters become U+FFFD.
pub fn sanitise(text: &str) -> Cow<'_, str> {
    if text.chars().any(unsafe_to_print) {
        Cow::Owned(text.chars().map(|c| if unsafe_to_print(c) { '\u{fffd}' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Characters that move the cursor, reorder what is read, or cannot be seen.
fn unsafe_to_print(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}'                 // soft hyphen
            | '\u{061c}'               // Arabic letter mark
            | '\u{180e}'               // Mongolian vowel separator
            | '\u{200b}'..='\u{200f}'  // zero width, left-to-right and right-to-left marks
            | '\u{2028}'..='\u{202e}'  // line and paragraph separators, embeddings and overrides
            | '\u{2060}'..='\u{206f}'  // word joiner, isolates, deprecated format characters
            | '\u{feff}'               // byte-order mark
            | '\u{fff9}'..='\u{fffb}'  // interlinear annotation
            | '\u{e0000}'..='\u{e007f}' // tags
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_text_is_not_copied() {
        for text in ["", "prod/job-7", "Größe 2 µs · └ …", "数据库"] {
            assert!(matches!(sanitise(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn what_moves_the_cursor_or_turns_the_text_is_replaced() {
        let cases = [
            ("\u{1b}[2J\u{1b}]0;pwned\u{7}", "\u{fffd}[2J\u{fffd}]0;pwned\u{fffd}"),
            ("a\nb\rc\td\0", "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"),
            ("\u{9b}31m", "\u{fffd}31m"),
            ("user\u{202e}gpj.exe", "user\u{fffd}gpj.exe"),
            ("\u{2066}x\u{2069}", "\u{fffd}x\u{fffd}"),
            ("zero\u{200b}width\u{feff}", "zero\u{fffd}width\u{fffd}"),
            ("tag\u{e0041}", "tag\u{fffd}"),
            ("line\u{2028}end\u{7f}", "line\u{fffd}end\u{fffd}"),
        ];
        for (text, expected) in cases {
            assert_eq!(sanitise(text), expected);
        }
    }
}
