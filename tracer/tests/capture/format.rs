//! docs/capture-format.md: its examples give what they say, and it names every key that is ever written.

use super::{Folder, file, story};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tracer::capture::reader;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/capture-format.md")).unwrap()
}

/// All captures that are checked in.
pub fn captures() -> Vec<PathBuf> {
    let folder = root().join("tracer/captures");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "pleg"))
        .collect();
    files.sort();
    files
}

#[test]
fn the_examples_give_what_they_say() {
    let capture = root().join("tracer/captures/slow-disk.pleg");
    let document = document();
    let mut examples = 0;
    for block in document.split("```console\n$ ").skip(1) {
        let block = block.split("```").next().unwrap();
        let (command, expected) = block.split_once('\n').unwrap();
        let tools = Command::new("sh").args(["-c", "command -v zstdcat && command -v jq"]).output().unwrap();
        if !tools.status.success() {
            eprintln!("skipped: zstdcat and jq are needed (apt-get install zstd jq)");
            return;
        }
        let command = command.replace("FILE", capture.to_str().unwrap());
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let (said, complaints) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(said, expected, "{command}\n{complaints}");
        examples += 1;
    }
    assert!(examples >= 4, "{examples}");
}

/// Keys of objects, and kinds: strings that begin with a capital and are one word, where a kind can stand.
fn words(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                into.insert(key.clone());
                if ["kind", "role", "seen_by", "began", "change", "confidence", "level"]
                    .contains(&key.as_str())
                    && let Value::String(kind) = value
                {
                    into.insert(kind.clone());
                }
                words(value, into);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| words(value, into)),
        _ => {}
    }
}

#[test]
fn every_key_that_is_written_is_explained() {
    let document = document();
    let explained: BTreeSet<&str> = document.split('`').skip(1).step_by(2).collect();
    let mut written = BTreeSet::new();
    let mut look = |path: &Path| {
        for line in reader::open(path, false).unwrap() {
            words(&serde_json::to_value(line.unwrap()).unwrap(), &mut written);
        }
    };
    captures().iter().for_each(|path| look(path));
    let folder = Folder::new("keys");
    for entry in std::fs::read_dir(root().join("tracer/scenarios")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "txt") {
            let capture = folder.0.join("a.pleg");
            std::fs::write(&capture, file(&story(path.file_stem().unwrap().to_str().unwrap()), 100)).unwrap();
            look(&capture);
        }
    }
    assert!(written.len() > 60, "{written:?}");
    let missing: Vec<&String> = written.iter().filter(|word| !explained.contains(word.as_str())).collect();
    assert!(missing.is_empty(), "docs/capture-format.md does not explain {missing:?}");
}
