//! The command itself against the same programs: the whole way through the child process, its workers and messages.

use super::program::{Build, Running};
use super::{each_build, program, same};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Whether the command can be tried at all.
fn allowed() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root may look into other processes with this command");
    }
    root
}

/// Runs `now` about these processes.
fn now(pids: &[u32], more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plegscope"));
    command.args(["now", "--within", "30s"]).args(more);
    pids.iter().for_each(|pid| _ = command.args(["--pid", &pid.to_string()]));
    command.output().unwrap()
}

fn report(build: &Build, told: &Output) -> Value {
    serde_json::from_slice(&told.stdout)
        .unwrap_or_else(|why| panic!("{}: {why}: {}", build.name, String::from_utf8_lossy(&told.stderr)))
}

/// What is told of a process, if it was looked at.
fn look(report: &Value, pid: u32) -> &Value {
    let processes = report["processes"].as_array().unwrap();
    let process = processes.iter().find(|one| one["process"]["pid"].as_u64() == Some(u64::from(pid)));
    process.map_or(&Value::Null, |process| &process["look"]["Ok"])
}

/// Waits and system calls of a process against what it said itself.
fn compare(program: &Running, report: &Value, wrong: &mut Vec<String>) {
    let pid = program.pid();
    let Some(goroutines) = look(report, pid)["goroutines"].as_array() else {
        return wrong.push(format!("{pid} was not looked at: {}", report["summary"]));
    };
    let waits: Vec<&Value> = goroutines.iter().filter(|g| g["waits"].is_object()).collect();
    for wait in program.said("WAIT") {
        let (name, lock) = (wait.word(1), wait.number(2));
        // A Mutex has its semaphore behind its first four bytes.
        if !["mutex", "mutexToo", "deep", "inlines", "moved"].contains(&name) {
            continue;
        }
        let (began, parked) = (wait.number(3), wait.number(4));
        let here = waits.iter().any(|g| {
            let since = g["waits"]["since"].as_u64();
            g["waits"]["semaphore"].as_u64() == Some(lock + 4)
                && since.is_some_and(|since| (began..=parked).contains(&since))
        });
        same(wrong, &format!("{pid}: {name} waits for {lock:#x} since then"), here, true);
    }
    let reads: Vec<&Value> = goroutines
        .iter()
        .filter(|g| g["state"] == "syscall" && g["thread"]["syscall"] == libc::SYS_read)
        .map(|g| &g["thread"])
        .collect();
    same(wrong, "goroutines in read", reads.len(), 2);
    for thread in reads {
        // One byte, from a descriptor, to an address; and where that waits in the kernel.
        let arguments: Vec<u64> =
            thread["arguments"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        let tid = thread["tid"].as_u64().unwrap();
        let truth = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap();
        let truth: Vec<u64> = truth
            .split(' ')
            .skip(1)
            .take(6)
            .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap())
            .collect();
        same(wrong, "its arguments", &arguments, &truth);
        same(wrong, "how much it reads", arguments.get(2), Some(&1));
        let stack = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stack")).unwrap();
        let kernel = thread["kernel_stack"].as_array().unwrap();
        let shown = kernel.iter().filter_map(Value::as_str).filter(|name| stack.contains(*name)).count();
        same(wrong, "its kernel stack", shown, stack.lines().filter(|line| line.contains("+0x")).count());
    }
}

#[test]
fn the_command_tells_of_the_same_waits() {
    if !allowed() {
        return;
    }
    each_build(&["-stripped", "-cgo-stripped-pie"], |build, wrong| {
        let running = [Running::start(&build.path, &[]), Running::start(&build.path, &[])];
        let pids = running.each_ref().map(Running::pid);
        let report = report(build, &now(&[pids[0], pids[1], 4_999_999], &["--json"]));
        let counts = &report["summary"]["roles"][0];
        let seen = (counts["there"].as_u64(), counts["looked_at"].as_u64());
        same(wrong, "processes there and looked at", seen, (Some(2), Some(2)));
        running.iter().for_each(|one| compare(one, &report, wrong));
    });
}

/// The program with another version in place of its own: `go1.99` and what follows.
fn of_unknown_version(build: &Build) -> (PathBuf, String) {
    let version = fs::read_to_string(build.goroot.join("VERSION")).unwrap();
    let version = version.lines().next().unwrap().trim();
    let patch = version.strip_prefix("go1.").and_then(|rest| rest.split_once('.')).unwrap().1;
    let unknown = format!("go1.99.{patch}");
    assert_eq!(unknown.len(), version.len());
    let mut bytes = fs::read(&build.path).unwrap();
    let at: Vec<usize> = memchr(&bytes, version.as_bytes());
    assert!(!at.is_empty(), "{version} is not in {}", build.name);
    at.iter().for_each(|at| bytes[*at..*at + unknown.len()].copy_from_slice(unknown.as_bytes()));
    let path = program::kept().join(format!("{}-of-unknown-version", build.name));
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (path, unknown)
}

fn memchr(bytes: &[u8], text: &[u8]) -> Vec<usize> {
    bytes.windows(text.len()).enumerate().filter(|(_, w)| *w == text).map(|(at, _)| at).collect()
}

#[test]
fn a_version_that_is_in_no_table_is_read_once_it_bears_itself_out_and_that_is_said() {
    if !allowed() {
        return;
    }
    each_build(&["-stripped", "-cgo-stripped-pie"], |build, wrong| {
        let (path, version) = of_unknown_version(build);
        let program = Running::start(&path, &[]);
        let pids = [program.pid()];
        let report = report(build, &now(&pids, &["--json"]));
        compare(&program, &report, wrong);
        let note = format!("{version} is not known; its layout was found in the running program");
        let said = look(&report, pids[0])["note"].as_str().unwrap_or_default();
        same(wrong, &format!("said in {said:?}"), said.starts_with(&note), true);
        for form in ["text", "goroutine"] {
            let told = now(&pids, &["--format", form]);
            let text = String::from_utf8_lossy(&told.stdout).into_owned();
            same(wrong, &format!("said in {form}"), text.contains(&note), true);
            same(wrong, "exit code", told.status.code(), Some(0));
        }
        // Nothing bears it out where no goroutine is in a system call.
        let program = Running::start(&path, &["parked"]);
        let told = now(&[program.pid()], &[]);
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        let refused = text.lines().find(|line| line.starts_with("not seen: ")).unwrap_or_default();
        let why = [&version, "the layout of its runtime is not known", "no goroutine is in a system call"];
        same(wrong, &format!("refused in {text:?}"), why.iter().all(|why| refused.contains(*why)), true);
        same(wrong, "exit code", told.status.code(), Some(4));
    });
}

#[test]
fn a_dump_tool_that_people_have_parses_the_tracebacks() {
    let Some(tool) = std::env::var_os("PLEGSCOPE_PANICPARSE") else {
        eprintln!("SKIPPED: PLEGSCOPE_PANICPARSE is not set; `cargo xtask test` sets it");
        return;
    };
    if !allowed() {
        return;
    }
    each_build(&["-plain", "-cgo-stripped-pie"], |build, wrong| {
        let (unknown, _) = of_unknown_version(build);
        for path in [&build.path, &unknown] {
            let program = Running::start(path, &[]);
            let told = now(&[program.pid()], &["--format", "goroutine"]);
            let mut parser = Command::new(&tool)
                .args(["-no-color", "-parse=false", "-rebase=false"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            parser.stdin.take().unwrap().write_all(&told.stdout).unwrap();
            let parsed = parser.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&parsed.stderr).into_owned();
            same(wrong, &format!("it says {said:?}"), parsed.status.success(), true);
            let parsed = String::from_utf8_lossy(&parsed.stdout).into_owned();
            // What it does not understand it passes on; of the same ones it tells how many there are.
            let passed_on =
                parsed.lines().find(|line| line.starts_with(['\t', 'g']) || line.contains("created by"));
            same(wrong, "passed on", passed_on, None);
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            let ours = told.lines().filter(|line| line.starts_with("goroutine ")).count();
            let counts = parsed.lines().filter_map(|line| line.split_once(": ")?.0.parse::<usize>().ok());
            same(wrong, "goroutines", counts.sum::<usize>(), ours);
            for wait in program.said("WAIT") {
                let name = format!(" {}(", wait.word(1));
                same(wrong, &name, parsed.contains(&name), true);
            }
        }
    });
}

/// Peak of the memory of its own that a process and its child take, in kB.
struct Peak {
    over: std::sync::Arc<std::sync::atomic::AtomicBool>,
    watcher: std::thread::JoinHandle<u64>,
}

impl Peak {
    fn of(pid: u32) -> Peak {
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let until = over.clone();
        let own = |pid: u32| -> u64 {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
        };
        let watcher = std::thread::spawn(move || {
            let mut peak = 0;
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
                let children = children.unwrap_or_default();
                let all = children.split(' ').filter_map(|pid| pid.parse().ok()).chain([pid]);
                peak = peak.max(all.map(own).sum());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            peak
        });
        Peak { over, watcher }
    }

    fn end(self) -> u64 {
        self.over.store(true, std::sync::atomic::Ordering::Relaxed);
        self.watcher.join().unwrap()
    }
}

/// More goroutines than are read, with more frames than are kept: what is left out is counted, and the memory is bounded.
#[test]
fn a_crowd_is_told_in_part_and_in_bounded_memory() {
    const MOST: u64 = 96 << 10;
    if !allowed() {
        return;
    }
    each_build(&["1.27-stripped"], |build, wrong| {
        let program = Running::start(&build.path, &["crowd"]);
        let told = Command::new(env!("CARGO_BIN_EXE_plegscope"))
            .args(["now", "--json", "--within", "60s", "--pid", &program.pid().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let peak = Peak::of(told.id());
        let told = told.wait_with_output().unwrap();
        let peak = peak.end();
        println!("{}: {peak} kB at most", build.name);
        let report = report(build, &told);
        let look = look(&report, program.pid());
        let count = |list: &Value| list.as_array().map_or(0, Vec::len) as u64;
        let left_out: Vec<(u64, &str)> = look["left_out"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| (one[1].as_u64().unwrap(), one[0].as_str().unwrap()))
            .collect();
        let out: u64 = left_out.iter().map(|(count, _)| count).sum();
        same(
            wrong,
            &format!("told, and not: {left_out:?}"),
            count(&look["goroutines"]) + out >= 22_000,
            true,
        );
        let whys: Vec<&str> = left_out.iter().map(|(_, why)| *why).collect();
        for why in ["only the first 20000 goroutines", "frames are kept", "would not fit into one message"] {
            same(wrong, &format!("{why} in {whys:?}"), whys.iter().any(|one| one.contains(why)), true);
        }
        same(wrong, &format!("{peak} kB of memory"), (1..MOST).contains(&peak), true);
    });
}
