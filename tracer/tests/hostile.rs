//! Whatever a workload calls itself, its containers and its paths: nothing of it moves the cursor, turns the text around,
//! adds a line or changes the structure, in text and in JSON.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;
use tracer::correlator::scenario::{Step, parse};
use tracer::correlator::{Correlator, Frame};
use tracer::event::Event;
use tracer::sinks::{json, sanitise, text};
use tracer::thresholds::Thresholds;

const SEPARATOR: &str = "\n---- expected ----\n";

/// The steps of all scenarios.
fn scenarios() -> Vec<Vec<Step>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|e| e == "txt"));
    files
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let events = text.split_once(SEPARATOR).map_or(text.as_str(), |(events, _)| events);
            parse(events).unwrap()
        })
        .collect()
}

/// Puts `poison` behind every string in an event, except where that would be no event any more (names of kinds).
fn poisoned(event: &Event, poison: &str) -> Event {
    let mut value = serde_json::to_value(event).unwrap();
    let mut pointers = Vec::new();
    strings(&value, String::new(), &mut pointers);
    for pointer in pointers {
        let at =
            |value: &mut Value, text: String| *value.pointer_mut(&pointer).unwrap() = Value::String(text);
        let before = value.pointer(&pointer).and_then(Value::as_str).unwrap().to_owned();
        at(&mut value, format!("{before}{poison}"));
        if serde_json::from_value::<Event>(value.clone()).is_err() {
            at(&mut value, before);
        }
    }
    serde_json::from_value(value).unwrap()
}

/// JSON pointers to all strings.
fn strings(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(at),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| strings(item, format!("{at}/{n}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, item)| strings(item, format!("{at}/{key}"), found));
        }
        _ => {}
    }
}

/// Characters that [`sanitise`] replaces.
fn is_dangerous(c: char) -> bool {
    sanitise(c.encode_utf8(&mut [0; 4])) == "\u{fffd}" && c != '\u{fffd}'
}

fn check(frame: &Frame) -> Result<(), TestCaseError> {
    for line in text::frame(frame) {
        prop_assert!(!line.chars().any(is_dangerous), "{line:?}");
    }
    let written = json::line(frame).unwrap();
    let shown = String::from_utf8(written.clone()).unwrap();
    let body = shown.strip_suffix('\n').unwrap();
    prop_assert!(!body.chars().any(is_dangerous), "{body:?}");
    prop_assert_eq!(&serde_json::from_slice::<Frame>(&written).unwrap(), frame);
    for incident in &frame.incidents {
        let line = json::line(incident).unwrap();
        prop_assert!(!String::from_utf8(line).unwrap().trim_end().chars().any(is_dangerous));
    }
    Ok(())
}

fn poisons() -> impl Strategy<Value = String> {
    let known = [
        "\u{1b}[2J\u{1b}]0;pwned\u{7}",
        "\nSTUCK 1.0s · all is well",
        "\r\u{1b}[A",
        "\u{202e}gnihton",
        "\",\"diagnoses\":[],\"x\":\"",
        "\u{9b}31m\u{85}\u{2028}",
        "\u{e0041}\u{200b}\u{feff}",
        "\0",
        "'; rm -rf / #",
    ];
    prop_oneof![
        proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
        proptest::collection::vec(any::<char>(), 1..12)
            .prop_map(|chars| chars.into_iter().collect::<String>()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn no_string_of_a_workload_gets_out_of_its_place(poison in poisons()) {
        let (mut shown, mut carried) = (0, false);
        for steps in scenarios() {
            let mut correlator = Correlator::new(Thresholds::default());
            for step in steps {
                match step {
                    Step::Event(event) => correlator.apply(&poisoned(&event, &poison)),
                    Step::Tick(now, marked) => {
                        let frame = correlator.tick(now);
                        if !marked && frame.incidents.iter().all(|incident| incident.change.is_none()) {
                            continue;
                        }
                        shown += frame.diagnoses.len();
                        carried |= frame.diagnoses.iter().any(|d| {
                            d.chain.links.iter().any(|l| l.operation.method.ends_with(&poison))
                        });
                        check(&frame)?;
                    }
                }
            }
        }
        // The poison has reached what is shown, else this would prove nothing.
        prop_assert!(shown > 10 && carried, "{shown} diagnoses");
    }
}
