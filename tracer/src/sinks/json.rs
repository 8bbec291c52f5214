//! Frames as JSON that is safe to look at: a string that came from a workload cannot move the cursor, turn the text
//! around or hide anything, also where somebody reads the JSON in a terminal.
//!
//! The values are unchanged: every character that [`super::sanitise`] would replace is written as `\uXXXX`, which a
//! parser gives back as it was.

use super::unsafe_to_print;
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// One line, with its end.
pub fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    append(&mut out, value)?;
    Ok(out)
}

/// The same behind what stands in `out` already. After an error `out` is as it was.
pub fn append(out: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    let before = out.len();
    let done = value.serialize(&mut Serializer::with_formatter(&mut *out, Safe(CompactFormatter)));
    match done {
        Ok(()) => out.push(b'\n'),
        Err(_) => out.truncate(before),
    }
    Ok(done?)
}

/// Indented, without a last line end.
pub fn pretty(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut out, Safe(PrettyFormatter::new())))?;
    Ok(out)
}

/// Writes like the formatter inside, but for strings.
struct Safe<F>(F);

/// Forwards what is not about strings.
macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty)?);)*) => {$(
        fn $name<W: ?Sized + Write>(&mut self, writer: &mut W $(, $argument: $type)?) -> io::Result<()> {
            self.0.$name(writer $(, $argument)?)
        }
    )*};
}

impl<F: Formatter> Formatter for Safe<F> {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| unsafe_to_print(*c)) {
            let (before, from) = rest.split_at(at);
            self.0.write_string_fragment(writer, before)?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = from.get(c.len_utf8()..).unwrap_or_default();
        }
        self.0.write_string_fragment(writer, rest)
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        self.0.write_char_escape(writer, escape)
    }

    forward! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Strings of which half the characters are dangerous.
    fn hostile() -> impl Strategy<Value = String> {
        let dangerous = proptest::char::ranges(std::borrow::Cow::Borrowed(&[
            '\0'..='\u{1f}',
            '\u{7f}'..='\u{9f}',
            '\u{200b}'..='\u{200f}',
            '\u{2028}'..='\u{202e}',
            '\u{2060}'..='\u{206f}',
            '\u{e0000}'..='\u{e007f}',
        ]));
        let one = prop_oneof![dangerous, any::<char>(), Just('"'), Just('\\')];
        proptest::collection::vec(one, 0..40).prop_map(|chars| chars.into_iter().collect())
    }

    #[test]
    fn dangerous_characters_are_written_as_numbers() {
        let written = String::from_utf8(line(&"a\u{9b}31m\u{202e}b\u{e0041}\u{1b}\"\n").unwrap()).unwrap();
        assert_eq!(written, "\"a\\u009b31m\\u202eb\\udb40\\udc41\\u001b\\\"\\n\"\n");
    }

    proptest! {
        #[test]
        fn nothing_dangerous_is_written_and_nothing_is_changed(
            map in proptest::collection::btree_map(hostile(), proptest::collection::vec(hostile(), 0..3), 0..4)
        ) {
            for bytes in [line(&map).unwrap(), pretty(&map).unwrap()] {
                let text = String::from_utf8(bytes.clone()).unwrap();
                prop_assert!(text.chars().all(|c| c == '\n' || !unsafe_to_print(c)), "{text:?}");
                let back: BTreeMap<String, Vec<String>> = serde_json::from_slice(&bytes).unwrap();
                prop_assert_eq!(&back, &map);
            }
            prop_assert_eq!(line(&map).unwrap().iter().filter(|b| **b == b'\n').count(), 1);
        }
    }
}
