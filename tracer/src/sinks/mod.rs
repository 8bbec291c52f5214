//! Where frames go: text here, alerts, metrics and files beside it. Sinks render, they decide nothing.

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
