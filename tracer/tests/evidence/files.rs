//! The program itself: where it writes to, what it says of files that are damaged, foreign, newer or cut off, and every
//! capture that is checked in.

use crate::make::{capture, folder, header, plegscope, scenario, written};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tracer::capture::{Header, VERSION};

fn put(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_report_goes_to_standard_output_or_into_a_private_file() {
    let folder = folder("outputs");
    let file = put(&folder, "a.plegscope", &capture(&scenario("full-chain-with-kubelet")));
    let out = plegscope(&["report", &file]);
    assert_eq!((out.status.code(), text(&out.stderr).as_str()), (Some(0), ""));
    assert!(text(&out.stdout).starts_with("plegscope report: 1 incident"), "{}", text(&out.stdout));
    let html = folder.join("a.html");
    let same = plegscope(&["report", &file, "--format", "html", "-o", html.to_str().unwrap()]);
    assert_eq!((same.status.code(), same.stdout.len()), (Some(0), 0), "{}", text(&same.stderr));
    assert_eq!(std::fs::metadata(&html).unwrap().permissions().mode() & 0o777, 0o600);
    let piped = plegscope(&["report", &file, "--format", "html", "--output", "-"]);
    assert_eq!(piped.stdout, std::fs::read(&html).unwrap());
    let itself = plegscope(&["report", &file, "-o", &file]);
    assert_eq!(itself.status.code(), Some(1));
    assert!(text(&itself.stderr).contains("is the capture itself"), "{}", text(&itself.stderr));
    let against = plegscope(&["report", &file, "--against", &file]);
    assert!(text(&against.stdout).contains("before and after"), "{}", text(&against.stdout));
}

#[test]
fn each_export_is_what_it_says() {
    let folder = folder("exports");
    let script = scenario("full-chain-with-kubelet");
    let file = put(&folder, "a.plegscope", &capture(&script));
    let perfetto = plegscope(&["export", &file, "--format", "perfetto"]);
    assert_eq!((perfetto.status.code(), perfetto.stdout.first()), (Some(0), Some(&0x0a)));
    let folded = plegscope(&["export", &file, "--format", "folded"]);
    assert!(text(&folded.stdout).lines().all(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().is_ok()));
    let jsonl = plegscope(&["export", &file, "--format", "jsonl"]);
    let plain = zstd::decode_all(std::fs::File::open(&file).unwrap()).unwrap();
    assert_eq!(text(&jsonl.stdout), text(&plain), "the lines of the capture");
    let none = plegscope(&["export", &file]);
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = folder("closed");
    let file = put(&folder, "a.plegscope", &capture(&scenario("full-chain-with-kubelet")));
    let mut child = Command::new(env!("CARGO_BIN_EXE_plegscope"))
        .args(["export", &file, "--format", "jsonl"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 16];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Nothing that is no text comes onto a terminal.
#[test]
fn a_trace_is_not_written_to_a_terminal() {
    let folder = folder("terminal");
    let file = put(&folder, "a.plegscope", &capture(&scenario("healthy")));
    let mut pair = (0, 0);
    // SAFETY: both are valid places for a descriptor; the other pointers may be null.
    let made = unsafe {
        let none = std::ptr::null_mut();
        libc::openpty(&raw mut pair.0, &raw mut pair.1, none, std::ptr::null(), std::ptr::null())
    };
    assert_eq!(made, 0);
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: openpty made both, and nobody else has them.
    let (_master, terminal) = unsafe { (OwnedFd::from_raw_fd(pair.0), OwnedFd::from_raw_fd(pair.1)) };
    let out = Command::new(env!("CARGO_BIN_EXE_plegscope"))
        .args(["export", &file, "--format", "perfetto"])
        .stdout(Stdio::from(terminal))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text(&out.stderr).contains("is not written to a terminal: name a file with -o"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn what_cannot_be_read_is_said_and_what_can_be_is_saved() {
    let folder = folder("damaged");
    let whole = capture(&scenario("full-chain-with-kubelet"));
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 20].fill(0x5a);
    let newer = written(Header { version: VERSION + 1, ..header() }, &[]);
    let cases: [(&str, &[u8], &str, bool); 5] = [
        ("cut", &whole[..whole.len() - 100], "cut off at its end", true),
        ("damaged", &damaged, "is damaged in the frame at byte", true),
        ("foreign", b"hello, world, this is no capture at all", "not a capture of plegscope", false),
        ("newer", &newer, "use a newer one", false),
        ("empty", b"", "not a capture of plegscope", false),
    ];
    for (name, bytes, words, saved) in cases {
        let file = put(&folder, name, bytes);
        for verb in [&["report"][..], &["report", "--format", "html"], &["export", "--format", "folded"]] {
            let plain = plegscope(&[verb, &[&file]].concat());
            let said = text(&plain.stderr);
            assert_eq!(plain.status.code(), Some(5), "{name}: {said}");
            assert!(said.contains(words) && said.contains(&file), "{name}: {said}");
            let salvaged = plegscope(&[verb, &[&file, "--salvage"]].concat());
            let said = text(&salvaged.stderr);
            assert_eq!(salvaged.status.code(), Some(if saved { 0 } else { 5 }), "{name}: {said}");
            assert_eq!(!salvaged.stdout.is_empty(), saved, "{name}");
            if saved && verb[0] == "report" {
                assert!(
                    text(&salvaged.stdout).contains("cannot be read"),
                    "{name}: {}",
                    text(&salvaged.stdout)
                );
            }
        }
    }
    let none = plegscope(&["report", folder.join("none").to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(5));
    assert!(text(&none.stderr).contains("No such file"), "{}", text(&none.stderr));
}

/// Every capture that is checked in is reported and exported, in every format.
#[test]
fn every_capture_that_is_checked_in() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let files: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(dir) => {
            dir.map(|entry| entry.unwrap().path()).filter(|p| !p.to_str().unwrap().ends_with(".md")).collect()
        }
        Err(_) => Vec::new(),
    };
    println!("{} captures", files.len());
    for file in files {
        let file = file.to_str().unwrap();
        for format in ["text", "json", "md", "html"] {
            let out = plegscope(&["report", file, "--format", format]);
            assert_eq!(out.status.code(), Some(0), "{file} {format}: {}", text(&out.stderr));
            assert!(!out.stdout.is_empty(), "{file} {format}");
        }
        for format in ["perfetto", "folded", "jsonl"] {
            let out = plegscope(&["export", file, "--format", format]);
            assert_eq!(out.status.code(), Some(0), "{file} {format}: {}", text(&out.stderr));
        }
    }
}
