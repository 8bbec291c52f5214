//! The kernel half on a kernel of its own: `cargo xtask vm` boots a virtual machine whose first process is this program.
//! Anywhere else it only says that it was skipped.
//!
//! Each test runs in a process of its own, with a time limit, and what it says when it fails goes to the second serial
//! port. Truth comes from elsewhere than plegscope: the caller's clock, `stat`, a Go program's own log, the kernel's lists.
#![allow(clippy::unwrap_used)]

mod attach;
mod defects;
mod hostile;
mod locks;
mod machine;
mod older;
mod restarts;
mod unmounts;
mod watch;
mod wrapper;

use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tracer::event::SeenBy;

/// Set for the processes that run one test.
const INSIDE: &str = "PLEGSCOPE_VM_TEST";

type Test = (&'static str, u64, fn() -> Result<()>);

/// Name, limit in seconds, and the test. The limits end what hangs: several times what it takes on a busy machine.
const TESTS: &[Test] = &[
    ("features", 120, attach::features_are_those_of_this_kernel),
    ("plan", 240, attach::every_probe_attaches_as_planned),
    ("verifier", 240, attach::the_verifier_takes_every_program),
    ("links", 240, attach::both_kinds_of_links),
    ("unmounts by fentry", 400, || unmounts::all(SeenBy::Fentry)),
    ("unmounts by kprobe", 400, || unmounts::all(SeenBy::Kprobe)),
    ("unmounts by tracepoint", 400, || unmounts::all(SeenBy::Tracepoint)),
    ("unmounts unseen", 240, unmounts::unseen),
    ("unmounts by wrapper", 300, wrapper::unmounts),
    ("lock log", 300, || locks::events_agree_with_the_programs_own_log(false)),
    ("lock log, one by one", 300, || locks::events_agree_with_the_programs_own_log(true)),
    ("lock phantoms", 300, || locks::what_dies_leaves_nothing(&[])),
    ("lock phantoms, polled", 300, || locks::what_dies_leaves_nothing(&[SeenBy::Tracepoint])),
    ("recovered panic", 300, locks::a_recovered_panic_leaves_nothing),
    ("no tracefs", 120, hostile::no_tracefs),
    ("tracefs read-only", 120, hostile::tracefs_read_only),
    ("no BTF", 120, hostile::no_btf),
    ("kptr_restrict, perf_event_paranoid", 120, hostile::restrictive_sysctls),
    ("few capabilities", 120, hostile::few_capabilities),
    ("no ring buffers", 120, older::no_ring_buffers),
    ("restarts", 600, restarts::twenty_times),
    // The last one: there is no way back.
    ("lockdown", 120, hostile::lockdown),
];

/// What a machine does that must be noticed from outside; run only when asked for by its whole name.
const DEFECTS: &[Test] = &[("defect: panic", 600, defects::panic), ("defect: hang", 600, defects::hang)];

fn main() {
    if std::env::var_os(INSIDE).is_some() {
        let name = std::env::args().nth(1).unwrap();
        if let role @ ("pin" | "last") = name.as_str() {
            unmounts::helper(role, &std::env::var(INSIDE).unwrap()).unwrap();
            return;
        }
        if name == "attached" {
            restarts::attached(&std::env::var(INSIDE).unwrap()).unwrap();
            return;
        }
        let (_, _, test) = TESTS.iter().chain(DEFECTS).find(|(known, ..)| *known == name).unwrap();
        if let Err(error) = test() {
            eprintln!("{error:#}");
            std::process::exit(1);
        }
        return;
    }
    if std::process::id() != 1 {
        println!("SKIPPED: needs a machine of its own: cargo xtask vm");
        return;
    }
    let mut port = machine::start().unwrap();
    let only = machine::word("plegscope.only").unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    // A word of the command line has no blanks.
    let plain = |name: &str| name.replace(' ', "_");
    let wanted = |name: &str| only.split(',').any(|part| plain(name).contains(part));
    let tests = TESTS.iter().filter(|(name, ..)| wanted(name));
    for (name, limit, _) in tests.chain(DEFECTS.iter().filter(|(name, ..)| plain(name) == only)) {
        let begin = Instant::now();
        let (line, text) = match run(name, Duration::from_secs(*limit)) {
            Ok(said) => {
                passed += 1;
                (format!("ok {name} {:.1} s", begin.elapsed().as_secs_f64()), said)
            }
            Err(error) => {
                failed += 1;
                (format!("FAILED {name}: {error:#}").replace('\n', " | "), String::new())
            }
        };
        // What a test has to report it prints in whole lines.
        let _ = writeln!(port, "{text}{line}");
    }
    let _ = writeln!(port, "VERDICT {passed} {failed}");
    machine::off();
}

/// Runs one test in a process of its own; what it printed.
fn run(name: &str, limit: Duration) -> Result<String> {
    let log = "/run/test.log";
    let output = File::create(log)?;
    let mut child = Command::new("/init")
        .arg(name)
        .env(INSIDE, "1")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("starting the test")?;
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > end {
            let _ = child.kill();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut said = Vec::new();
    File::open(log)?.read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    match status {
        Some(status) if status.success() => Ok(said),
        Some(status) => bail!("{status}: {}", said.trim()),
        None => bail!("not done after {} s: {}", limit.as_secs(), said.trim()),
    }
}
