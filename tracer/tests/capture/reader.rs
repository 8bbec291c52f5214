//! Files that are damaged, cut off, foreign or newer: what is whole is read, and what is not is said.

use super::{file, header, story};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{Cursor, Read as _};
use tracer::capture::{Header, Line, ReadError, Reader, VERSION, reader};

fn lines(bytes: &[u8]) -> Result<Vec<Line>, ReadError> {
    Reader::new(bytes)?.collect()
}

/// What a salvaging reader gives: lines, and losses in their places.
fn salvaged(bytes: &[u8]) -> Result<(Vec<Line>, reader::Unread), ReadError> {
    let mut reader = Reader::salvage(Cursor::new(bytes))?;
    let lines = reader.by_ref().collect::<Result<Vec<Line>, _>>()?;
    Ok((lines, reader.unread()))
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 3).unwrap()
}

/// A line as others may write it.
fn text_of(line: &Line) -> String {
    serde_json::to_string(line).unwrap() + "\n"
}

#[test]
fn a_file_that_ends_anywhere_is_read_up_to_there() {
    let story = &story("healthy")[..120];
    let bytes = file(story, 7);
    assert_eq!(lines(&bytes).unwrap(), story);
    let mut ends = 0;
    for length in 0..bytes.len() {
        let part = &bytes[..length];
        let mut reader = match Reader::new(part) {
            Ok(reader) => reader,
            Err(ReadError::Cut { .. } | ReadError::Foreign(_)) => continue,
            Err(error) => panic!("{length}: {error}"),
        };
        let mut read = Vec::new();
        let error = loop {
            match reader.next() {
                Some(Ok(line)) => read.push(line),
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        assert_eq!(read[..], story[..read.len()], "{length}");
        assert!(!reader.has_ended());
        match error {
            // Cut between two frames.
            None => ends += 1,
            Some(ReadError::Cut { after, .. }) => assert_eq!(after, read.len() as u64 + 1),
            Some(error) => panic!("{length}: {error}"),
        }
        assert!(reader.next().is_none(), "an error is the end");
        let (again, _) = salvaged(part).unwrap();
        let whole: Vec<&Line> = again.iter().filter(|line| !matches!(line, Line::Loss(_))).collect();
        assert_eq!(whole, read.iter().collect::<Vec<_>>(), "{length}");
    }
    assert_eq!(ends, story.len().div_ceil(7), "as often as frames end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    /// Whatever is changed in a file, no line comes out that was not written, and all that is whole is salvaged.
    #[test]
    fn damage_never_becomes_an_event(at in 0.0..1.0, bit in 0u8..8, length in 1usize..40, each in 1usize..30) {
        let story = story("late-exit");
        let mut bytes = file(&story, each);
        let begin = (bytes.len() as f64 * at) as usize;
        let untouched = bytes.clone();
        for byte in bytes.iter_mut().skip(begin).take(length) {
            *byte ^= 1 << bit;
        }
        match salvaged(&bytes) {
            Ok((read, unread)) => {
                let losses = read.iter().filter(|line| matches!(line, Line::Loss(_))).count() as u64;
                prop_assert_eq!(losses, unread.stretches);
                let mut rest = story.iter();
                let read: Vec<&Line> = read.iter().filter(|line| !matches!(line, Line::Loss(_))).collect();
                for line in &read {
                    prop_assert!(rest.any(|written| written == *line), "made up, or out of order: {line:?}");
                }
                // Frames are damaged whole: what is touched, and what cannot be found behind it.
                let missing = story.len() - read.len();
                prop_assert!(missing <= each * (length + 2), "{missing} lines of {each} in a frame");
                if read.len() == story.len() {
                    prop_assert!(unread.stretches > 0 || begin + length > untouched.len() || missing == 0);
                }
            }
            Err(ReadError::Foreign(_)) => prop_assert!(begin < 400, "the header was not touched: {begin}"),
            Err(error) => prop_assert!(false, "{error}"),
        }
        // Without it, the first damage is the end, and says where.
        match lines(&bytes) {
            Ok(read) => prop_assert_eq!(read, story),
            Err(ReadError::Io { .. } | ReadError::Closed(_) | ReadError::Newer(_)) => prop_assert!(false),
            Err(_) => {}
        }
    }

    /// Any bytes at all.
    #[test]
    fn no_file_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        let mut file = if magic { vec![0x28, 0xb5, 0x2f, 0xfd] } else { Vec::new() };
        file.extend(bytes);
        prop_assert!(lines(&file).is_err());
        prop_assert!(salvaged(&file).is_err());
    }
}

#[test]
fn what_is_no_capture_is_said_to_be_none() {
    let other = |text: &str| lines(&zstd(text)).unwrap_err().to_string();
    let foreign = "not a capture of plegscope: ";
    assert_eq!(lines(b"").unwrap_err().to_string(), format!("{foreign}it is empty"));
    assert!(other("hello\n").starts_with(&format!("{foreign}its first line is no header")));
    assert!(other(&text_of(&Line::Heard(5))).starts_with(&format!("{foreign}its first line is no header")));
    assert!(other("{\"header\":{}}\n").starts_with(&format!("{foreign}its first line is no header")));
    let error = lines(b"#!/bin/sh\necho plegscope\n").unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{foreign}no zstd frame begins here; if it is one whose beginning is damaged, --salvage reads the rest"
        )
    );
    assert!(salvaged(b"#!/bin/sh\n").unwrap_err().to_string().starts_with(foreign));
}

#[test]
fn a_newer_schema_is_refused_and_newer_lines_and_fields_are_passed_over() {
    let newer = Header { version: VERSION + 1, ..header() };
    let error = lines(&zstd(&text_of(&Line::Header(newer)))).unwrap_err();
    assert!(matches!(error, ReadError::Newer(2)), "{error}");
    let later = Header { plegscope: "9.0.0".into(), ..header() };
    let mut event: Value = serde_json::to_value(&story("healthy")[0]).unwrap();
    event["event"]["at_cpu"] = json!(3);
    let text = format!(
        "{}{}\n{}\n{}\n",
        text_of(&Line::Header(later)),
        event,
        json!({ "weather": { "sun": true } }),
        json!({ "event": { "at": 5, "body": { "Rain": 7 } } }),
    );
    let bytes = zstd(&text);
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let read: Vec<Line> = reader.by_ref().map(Result::unwrap).collect();
    assert_eq!(read, [story("healthy")[0].clone()]);
    let unread = reader.unread();
    assert_eq!((unread.unknown_lines, unread.unknown_fields), (2, 1));
    assert_eq!(unread.words().unwrap(), "not read: 2 lines of an unknown kind, 1 unknown field");
}

#[test]
fn frames_may_be_cut_anywhere_by_other_programs() {
    let story = story("convoy");
    let text: String = [Line::Header(header())].iter().chain(&story).map(text_of).collect();
    for size in [1, 7, 4096, text.len()] {
        // Also without the length in their heads, and with stretches that are not for us.
        let mut bytes = Vec::new();
        for piece in text.as_bytes().chunks(size).take(3000) {
            bytes.extend(zstd::encode_all(piece, 1).unwrap());
            bytes.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        }
        let length = text.len().min(size * 3000);
        let whole = text[..length].matches('\n').count();
        let mut reader = Reader::new(&bytes[..]).unwrap();
        let read: Vec<Line> = reader.by_ref().map_while(Result::ok).collect();
        assert_eq!(read[..], story[..whole.max(1) - 1], "{size}");
    }
}

#[test]
fn a_bomb_is_refused() {
    let big = zstd::encode_all(std::io::repeat(b' ').take(100 << 20), 3).unwrap();
    let mut bytes = file(&[], 1);
    bytes.extend(big);
    assert!(matches!(lines(&bytes), Err(ReadError::Damaged { .. })));
}

#[test]
fn the_last_time_is_found_from_the_end() {
    let story = story("full-chain-with-kubelet");
    let Some(Line::End(end)) = story.last() else { panic!() };
    let bytes = file(&story, 5);
    assert_eq!(reader::last_time(&mut Cursor::new(&bytes)).unwrap(), end.at);
    let cut = &bytes[..bytes.len() - 3];
    let at = reader::last_time(&mut Cursor::new(cut)).unwrap();
    assert!(at > 0 && at <= end.at);
    assert_eq!(reader::last_time(&mut Cursor::new(b"")).unwrap(), 0);
}
