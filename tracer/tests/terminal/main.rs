//! The screen on a real terminal: `plegscope replay` of a capture, driven through tmux and through a pseudo terminal that
//! nobody reads.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

mod tmux;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tmux::{Tmux, wait_for};
use tracer::capture::line::{Clock, End};
use tracer::capture::writer::Writer;
use tracer::capture::{Header, Line, VERSION};
use tracer::correlator::scenario::{Step, parse};
use tracer::thresholds::Thresholds;

const PLEGSCOPE: &str = env!("CARGO_BIN_EXE_plegscope");

/// A capture of a scenario.
fn capture(name: &str) -> PathBuf {
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/{name}.txt"));
    let text = std::fs::read_to_string(scenario).unwrap();
    let steps = parse(text.split("\n---- expected ----\n").next().unwrap()).unwrap();
    // Tests run at the same time, and one must not write anew what another reads.
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let file =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}.pleg", std::process::id()));
    let mut writer = Writer::new(File::create(&file).unwrap()).unwrap();
    let first = match &steps[0] {
        Step::Event(event) => event.at,
        Step::Tick(now, _) => *now,
    };
    let clock =
        Clock { monotonic: first, boottime: first, realtime: 1_709_204_400_000_000_000, offset: 3_600 };
    let header = Header {
        version: VERSION,
        plegscope: "0.1.0".into(),
        host: "node-7".into(),
        kernel: "6.12.9".into(),
        boot_id: "b".into(),
        clock,
        zone: "Europe/Berlin".into(),
        thresholds: Thresholds::DEFAULT,
        redacted: false,
    };
    writer.line(&Line::Header(header)).unwrap();
    let mut heard = first;
    let mut events = 0;
    for step in steps {
        match step {
            Step::Event(event) => {
                heard = heard.max(event.at);
                events += 1;
                writer.line(&Line::Event(event)).unwrap();
            }
            Step::Tick(now, _) => {
                heard = heard.max(now + tracer::thresholds::LATENESS);
                writer.line(&Line::Heard(heard)).unwrap();
            }
        }
    }
    let end = End { at: heard, reason: "the time is up".into(), events, lost: 0 };
    writer.line(&Line::End(end)).unwrap();
    writer.flush().unwrap();
    file
}

/// A terminal in which a shell runs, or why not.
fn terminal(test: &str) -> Option<Tmux> {
    let tmux = Tmux::start(test);
    if tmux.is_none() {
        println!("SKIPPED {test}: tmux is not installed (cargo xtask test installs it as root)");
    }
    tmux
}

#[test]
fn the_capture_that_comes_with_it_opens() {
    let Some(tmux) = terminal("shipped") else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/slow-disk.pleg");
    tmux.run(&format!("{PLEGSCOPE} replay {} --incident 1 --speed 0.01", file.display()));
    tmux.shows("sync of /dev/loop0 in the unmount of");
    tmux.keys(&["Enter"]);
    tmux.shows("the sync is in flight");
    tmux.keys(&["q"]);
    tmux.is_back();
}

#[test]
fn a_replay_is_driven_by_keys_and_leaves_the_terminal_as_it_was() {
    let Some(tmux) = terminal("keys") else { return };
    let file = capture("full-chain-with-kubelet");
    tmux.run(&format!("{PLEGSCOPE} replay {} --incident 1 --speed 0.01", file.display()));
    tmux.shows("STUCK");
    tmux.shows("who waits for what");
    tmux.keys(&["Space"]);
    tmux.shows("PAUSED");
    tmux.keys(&["Right"]);
    tmux.shows("STUCK 13s");
    tmux.keys(&["y"]);
    tmux.shows("for the ticket");
    // The ticket is in the clipboard of whoever looks: tmux took it.
    wait_for(|| tmux.clipboard().contains("do now: "), || tmux.clipboard());
    tmux.keys(&["Escape"]);
    tmux.gone("for the ticket");
    tmux.keys(&["?"]);
    tmux.shows("all keys");
    tmux.keys(&["Escape"]);
    tmux.keys(&["/", "I", "n", "i", "t", "Enter"]);
    tmux.shows("▸ waits for the Init lock");
    tmux.resize(160, 50);
    tmux.shows("7 Probes");
    tmux.resize(30, 6);
    tmux.gone("who waits for what");
    tmux.resize(80, 24);
    tmux.shows("who waits for what");
    assert!(tmux.is_taken());
    tmux.keys(&["q"]);
    tmux.is_back();
}

#[test]
fn the_end_of_a_replay_stays_and_can_be_left_backwards() {
    let Some(tmux) = terminal("end") else { return };
    let file = capture("full-chain-with-kubelet");
    tmux.run(&format!("{PLEGSCOPE} replay {} --speed max", file.display()));
    tmux.shows("END");
    tmux.shows("nothing is stuck");
    tmux.keys(&["I"]);
    tmux.shows("STUCK 3.1s");
    tmux.keys(&["q"]);
    tmux.is_back();
}

#[test]
fn signals_give_the_terminal_back() {
    for signal in ["TERM", "INT", "HUP"] {
        let Some(tmux) = terminal(signal) else { return };
        let file = capture("two-causes");
        // In the shell's place, so that it gets the hangup alone.
        tmux.run(&format!("{PLEGSCOPE} replay {} --incident 1 --speed 0.01", file.display()));
        tmux.shows("STUCK");
        assert!(tmux.is_taken());
        let pid = tmux.child();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
        tmux.is_back();
    }
}

#[test]
fn without_colours_there_are_none() {
    let file = capture("two-causes");
    for (test, how) in [("no-color", "NO_COLOR=1"), ("no-color-flag", "")] {
        let Some(tmux) = terminal(test) else { return };
        let flag = if how.is_empty() { "--no-color" } else { "" };
        tmux.run(&format!("{how} {PLEGSCOPE} replay {} --incident 1 --speed 0.01 {flag}", file.display()));
        tmux.shows("STUCK");
        let screen = tmux.escaped();
        let coloured = ["\u{1b}[31m", "\u{1b}[41m", "\u{1b}[37;41m", "\u{1b}[32m", "\u{1b}[36m"];
        assert!(!coloured.iter().any(|colour| screen.contains(colour)), "{screen:?}");
        assert!(screen.contains("\u{1b}[7m") || screen.contains("\u{1b}[1;7m"), "{screen:?}");
        tmux.keys(&["q"]);
        tmux.is_back();
    }
}

/// Not a test of its own: what [`a_panic_gives_the_terminal_back`] runs on a terminal.
#[test]
fn panics_on_a_terminal() {
    if std::env::var_os("PLEGSCOPE_TEST_PANICS").is_some() {
        let mut stdout = std::io::stdout();
        stdout.write_all(&tracer::tui::terminal::enter().unwrap()).unwrap();
        stdout.write_all(b"nobody can read this afterwards").unwrap();
        stdout.flush().unwrap();
        let thread = std::thread::spawn(|| panic!("this is what a panic says"));
        assert!(thread.join().is_err());
    }
}

#[test]
fn a_panic_gives_the_terminal_back() {
    let Some(tmux) = terminal("panic") else { return };
    let test = std::env::current_exe().unwrap();
    tmux.run(&format!(
        "PLEGSCOPE_TEST_PANICS=1 RUST_BACKTRACE=0 {} --exact panics_on_a_terminal --nocapture",
        test.display()
    ));
    tmux.shows("this is what a panic says");
    tmux.is_back();
}

/// On a pipe, and where the terminal can do nothing, lines are told as before.
#[test]
fn without_a_terminal_it_is_plain() {
    let file = capture("two-causes");
    let output = Command::new(PLEGSCOPE).args(["replay", "--speed", "max"]).arg(&file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("STUCK") && !text.contains('\u{1b}'), "{text}");
    let Some(tmux) = terminal("dumb") else { return };
    tmux.run(&format!("TERM=dumb {PLEGSCOPE} replay {} --speed max", file.display()));
    tmux.shows("ENDED");
    tmux.is_back();
}

/// A pseudo terminal: what the program gets, and what nobody reads.
fn pseudo_terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    let size = libc::winsize { ws_row: 50, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: two places for descriptors, which nobody else owns, and a size.
    unsafe {
        let made = libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &size);
        assert_eq!(made, 0);
        // What other tests start at the same time shall not keep it open.
        for fd in [ours, theirs] {
            assert_eq!(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC), 0);
        }
        (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

/// A program that does not outlive its test.
struct Program(Child);

impl Program {
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn on_terminal(theirs: &OwnedFd, file: &Path, speed: &str) -> Program {
    let stdio = || Stdio::from(theirs.try_clone().unwrap());
    let mut command = Command::new(PLEGSCOPE);
    command.args(["replay", "--speed", speed]).arg(file).env("TERM", "xterm");
    Program(command.stdin(stdio()).stdout(stdio()).stderr(Stdio::null()).spawn().unwrap())
}

/// Bytes that wait to be read.
fn waiting(fd: &OwnedFd) -> usize {
    let mut bytes = 0;
    // SAFETY: an open descriptor and a place for a number.
    assert_eq!(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut bytes) }, 0);
    bytes as usize
}

#[test]
fn a_terminal_that_takes_nothing_holds_up_neither_work_nor_end() {
    let file = capture("full-chain-with-kubelet");
    let (ours, theirs) = pseudo_terminal();
    let mut child = on_terminal(&theirs, &file, "1");
    // Its buffer is full, and stays so.
    wait_for(|| waiting(&ours) > 2_000, || format!("{} bytes", waiting(&ours)));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!child.has_ended(), "it goes on");
    let cpu = cpu_seconds(child.0.id());
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu_seconds(child.0.id()) - cpu;
    assert!(used < 0.5, "{used} s of a core in 2 s while nothing can be shown");
    // SAFETY: a process of ours.
    assert_eq!(unsafe { libc::kill(child.0.id() as i32, libc::SIGTERM) }, 0);
    wait_for(|| child.has_ended(), || "it does not end".to_owned());
}

#[test]
fn a_terminal_that_goes_away_ends_it() {
    let file = capture("full-chain-with-kubelet");
    // While it plays, and when it has come to the end and waits.
    for speed in ["1", "max"] {
        let (ours, theirs) = pseudo_terminal();
        let mut child = on_terminal(&theirs, &file, speed);
        drop(theirs);
        let mut seen = Vec::new();
        let mut from = File::from(ours);
        while !String::from_utf8_lossy(&seen).contains(if speed == "1" { "plegscope" } else { " END " }) {
            let mut some = [0; 4096];
            let n = from.read(&mut some).unwrap();
            seen.extend_from_slice(&some[..n]);
        }
        drop(from);
        wait_for(|| child.has_ended(), || format!("it does not end at speed {speed}"));
    }
}

/// The first picture is there at once, before anything is known: within 300 ms of a processor's time, since the machine may
/// have other work.
#[test]
fn it_starts_quickly() {
    let file = capture("full-chain-with-kubelet");
    let (ours, theirs) = pseudo_terminal();
    let begin = Instant::now();
    let child = on_terminal(&theirs, &file, "1");
    let mut seen = Vec::new();
    let mut from = File::from(ours);
    while !String::from_utf8_lossy(&seen).contains("plegscope") {
        let mut some = [0; 4096];
        let n = from.read(&mut some).unwrap();
        seen.extend_from_slice(&some[..n]);
    }
    let used = cpu_seconds(child.0.id());
    println!("the first picture after {:?}, {used} s of a processor", begin.elapsed());
    assert!(used < 0.3, "{used} s");
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}
