//! `replay` as users run it, on files of every condition.

use super::{Folder, file, story};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdout, Command, Output, Stdio};

fn replay(path: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plegscope")).arg("replay").arg(path).args(more).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn twice_the_same_to_the_last_byte_at_any_speed_to_any_reader() {
    let folder = Folder::new("twice");
    let path = folder.0.join("a.pleg");
    std::fs::write(&path, file(&story("full-chain-with-kubelet"), 20)).unwrap();
    let first = replay(&path, &["--json"]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert!(text(&first.stdout).lines().count() > 5, "{}", text(&first.stdout));
    for more in [&["--json"][..], &["--json", "--speed", "5000"]] {
        assert_eq!(text(&replay(&path, more).stdout), text(&first.stdout), "{more:?}");
    }
    // A reader who takes his time loses nothing.
    let script = "\"$0\" replay \"$1\" --json | (sleep 1; cat)";
    let program = env!("CARGO_BIN_EXE_plegscope");
    let slow = Command::new("sh").args(["-c", script, program]).arg(&path).output().unwrap();
    assert_eq!(text(&slow.stdout), text(&first.stdout));
    let plain = replay(&path, &[]);
    assert_eq!(text(&plain.stdout), text(&replay(&path, &["--plain"]).stdout));
    assert!(text(&plain.stdout).contains("STUCK"), "{}", text(&plain.stdout));
    assert!(text(&plain.stderr).contains("the capture ends: interrupted"), "{}", text(&plain.stderr));
}

#[test]
fn it_begins_where_it_is_told_to() {
    let folder = Folder::new("begin");
    let path = folder.0.join("a.pleg");
    std::fs::write(&path, file(&story("two-causes"), 20)).unwrap();
    let all = text(&replay(&path, &["--json"]).stdout);
    let incident = replay(&path, &["--json", "--incident", "1"]);
    let first = text(&incident.stdout);
    let first = first.lines().next().unwrap_or_else(|| panic!("{}", text(&incident.stderr)));
    assert!(first.contains("\"change\":\"Crossed\""), "{first}");
    assert!(all.contains(first), "a frame that was not told before");
    let none = replay(&path, &["--incident", "77"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("incidents in it"), "{}", text(&none.stderr));
    let late = replay(&path, &["--at", "12h"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(text(&late.stderr).contains("there is nothing at that time"), "{}", text(&late.stderr));
}

#[test]
fn what_cannot_be_read_ends_with_status_5_and_says_what_helps() {
    let folder = Folder::new("broken");
    let path = folder.0.join("a.pleg");
    let bytes = file(&story("full-chain-with-kubelet"), 20);
    let check = |bytes: &[u8], said: &str| {
        std::fs::write(&path, bytes).unwrap();
        let output = replay(&path, &[]);
        assert_eq!(output.status.code(), Some(5), "{said}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{said}: {}", text(&output.stderr));
    };
    check(b"", "not a capture of plegscope: it is empty");
    check(b"PK\x03\x04", "not a capture of plegscope");
    check(&bytes[..bytes.len() - 5], "cut off at its end");
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    check(&damaged, "--salvage reads what is whole");
    let salvaged = replay(&path, &["--salvage"]);
    assert_eq!(salvaged.status.code(), Some(0));
    let said = text(&salvaged.stderr);
    assert!(said.contains("missing here") && said.contains("not read: 1 damaged stretch of"), "{said}");
    std::fs::remove_file(&path).unwrap();
    let none = replay(&path, &[]);
    assert!(text(&none.stderr).contains("No such file"), "{}", text(&none.stderr));
    assert_eq!(none.status.code(), Some(5));
}

/// Runs it as slowly as it happened until something was told, signals it, and hands on what it says from then on.
fn signalled(
    path: &Path,
    signal: libc::c_int,
    outlives: bool,
) -> (std::process::Child, BufReader<ChildStdout>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plegscope"));
    command
        .arg("replay")
        .arg(path)
        .args(["--json", "--speed", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // As under nohup, or as in a shell: whoever runs this test may be under nohup itself.
    let hang_up = if outlives { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: one system call, which may be made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGHUP, hang_up);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap());
    told.read_line(&mut String::new()).unwrap();
    // SAFETY: a signal to a child that was not waited for.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
    (child, told)
}

#[test]
fn signals_end_it_well_and_a_terminal_that_goes_does_but_for_nohup() {
    let folder = Folder::new("signals");
    let path = folder.0.join("a.pleg");
    std::fs::write(&path, file(&story("full-chain-with-kubelet"), 20)).unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let (mut child, mut told) = signalled(&path, signal, false);
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "signal {signal}");
        assert!(rest.lines().count() < 20, "signal {signal} did not end it");
    }
    let (mut child, mut told) = signalled(&path, libc::SIGHUP, true);
    for _ in 0..3 {
        assert!(told.read_line(&mut String::new()).unwrap() > 0, "it does not outlive its terminal");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
