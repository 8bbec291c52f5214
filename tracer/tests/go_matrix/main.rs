//! A look into running programs, built here by every Go that Debian ships and in every link mode, against what the
//! programs say of themselves: the addresses of their locks, when their waits began, and the account of all stacks
//! that Go prints on SIGQUIT.
//!
//! `PLEGSCOPE_GO_TOOLCHAINS` names the toolchains, colon-separated GOROOTs; without it these tests say that they were
//! skipped. What is built is kept in `PLEGSCOPE_GO_BUILDS`. Neither root nor network is needed.
#![allow(clippy::unwrap_used)]

mod account;
mod command;
mod fields;
mod program;

use account::Account;
use program::{Build, Running};
use std::collections::HashMap;
use std::path::Path;
use tracer::golang::GoBinary;
use tracer::golang::goroutines::{self, Layout, Limits, Look, Looker, Seen};
use tracer::golang::unwind::Pause;

/// Runs `check` on each build in one of these modes; two at a time, all to the end, and tells everything that was wrong.
fn each_build(modes: &[&str], check: impl Fn(&Build, &mut Vec<String>) + Sync) {
    let builds: Vec<&Build> = program::builds()
        .iter()
        .filter(|build| modes.iter().any(|mode| build.name.ends_with(mode)))
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut wrong = Vec::new();
        while let Some(build) = builds.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            let mut found = Vec::new();
            check(build, &mut found);
            wrong.extend(found.into_iter().map(|what| format!("{}: {what}", build.name)));
        }
        wrong
    };
    let wrong = std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Tells a difference.
fn same<T: PartialEq + std::fmt::Debug>(wrong: &mut Vec<String>, what: &str, found: T, expected: T) {
    if found != expected {
        wrong.push(format!("{what}: {found:?}, expected {expected:?}"));
    }
}

/// The names a wait has in a version's own source.
fn words_in_source(goroot: &Path) -> Vec<String> {
    let source = std::fs::read_to_string(goroot.join("src/runtime/runtime2.go")).unwrap();
    let between =
        |from: &str, to: &str| source.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    let table = between("var waitReasonStrings = [...]string{\n", "\n}");
    let texts: HashMap<&str, &str> = table
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .map(|(name, text)| (name, text.split('"').nth(1).unwrap()))
        .collect();
    // The order of the constants is that of the numbers.
    let constants = between("waitReasonZero ", "\n)");
    let names = constants.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let names = names.filter(|name| name.starts_with("waitReason"));
    ["waitReasonZero"].into_iter().chain(names).map(|name| texts[name].to_owned()).collect()
}

#[test]
fn a_look_agrees_with_go_itself() {
    each_build(&[""], |build, wrong| {
        let bytes = std::fs::read(&build.path).unwrap();
        let binary = GoBinary::parse(&bytes).unwrap();
        let layout = Layout::of(&binary).unwrap();
        same(wrong, "words for waits", layout.reasons.clone(), words_in_source(&build.goroot));
        if layout.semaphores.is_none() || layout.wait_started.is_none() {
            wrong.push(format!("not found: {layout:?}"));
        }
        let mut program = Running::start(&build.path, &[]);
        let bias = program.bias(&binary);
        let limits = Limits { now: program::now(), ..Limits::default() };
        let look = goroutines::look(&binary, bias, &layout, &mut program.memory(), &limits).unwrap();
        same(wrong, "left out", &look.left_out, &Vec::new());
        compare_waits(&program, &look, wrong);
        compare_stacks(&look, &program.quit(), wrong);
    });
}

/// Numbers, reasons, frames, files, lines, creators against Go's account.
fn compare_stacks(look: &Look, account: &HashMap<u64, Account>, wrong: &mut Vec<String>) {
    let mut compared = 0;
    for seen in &look.goroutines {
        let goid = seen.goroutine.goid;
        let names: Vec<&str> = seen.stack.names().collect();
        let Some(truth) = account.get(&goid) else {
            wrong.push(format!("Go has no goroutine {goid}: {names:?}"));
            continue;
        };
        // The runtime's own goroutines, and the one that has just said all, may go on until they are asked.
        if goid == 1 || !names.iter().any(|name| name.starts_with("main.")) {
            continue;
        }
        compared += 1;
        let what = format!("goroutine {goid} in {}", names[names.len() - 2]);
        let reason = if seen.goroutine.pause == Pause::Syscall { "syscall" } else { &seen.reason };
        same(wrong, &format!("{what}: reason"), reason, &truth.reason);
        let found: Vec<account::Line> = seen
            .stack
            .frames
            .iter()
            .flat_map(|frame| {
                frame.functions.iter().map(|function| account::Line {
                    name: function.name.clone(),
                    place: format!("{}:{}", function.file, function.line),
                    inlined: function.inlined,
                    at: (!function.inlined).then_some((frame.offset, frame.sp, frame.pc)),
                })
            })
            .collect();
        // Of deep stacks Go prints the inner fifty or hundred, and some of the outer ones; Go 1.15 does not say so.
        let deep = truth.elided || truth.lines.len() > 100;
        let (found, expected) =
            if deep { (&found[..50], &truth.lines[..50]) } else { (&*found, &*truth.lines) };
        same(wrong, &format!("{what}: frames"), found.len(), expected.len());
        let differs = found.iter().zip(expected).find(|(found, expected)| found != expected);
        same(wrong, &format!("{what}: frames"), differs, None);
        same(wrong, &format!("{what}: cut"), seen.stack.cut.is_some(), deep);
        let creator = seen.created_by.as_ref().unwrap();
        let f = &creator.function;
        let found = (f.name.clone(), format!("{}:{}", f.file, f.line), creator.offset);
        same(wrong, &format!("{what}: creator"), Some(found), truth.creator.clone());
        same(wrong, &format!("{what}: parent"), creator.goroutine, truth.parent);
    }
    same(wrong, "goroutines of the program", compared, 22);
}

/// Locks, times, threads against what the program printed.
fn compare_waits(program: &Running, look: &Look, wrong: &mut Vec<String>) {
    let stack = program.said("STACK").next().unwrap().number(1);
    let collected = program.said("COLLECTED").next().unwrap();
    for said in program.said("WAIT") {
        let [name, lock, began, parked] = [1, 2, 3, 4].map(|n| said.word(n));
        let [lock, began, parked] = [lock, began, parked].map(program::number);
        let function = format!("main.{name}");
        let found: Vec<&Seen> =
            look.goroutines.iter().filter(|seen| seen.stack.names().any(|f| f == function)).collect();
        let [seen] = found[..] else {
            wrong.push(format!("{name}: {} goroutines are in it", found.len()));
            continue;
        };
        let at = seen.waits.map(|waits| waits.semaphore.wrapping_sub(lock));
        let since = seen.waits.and_then(|waits| waits.since);
        let semaphore = match name {
            "mutex" | "mutexToo" | "mutexAsWell" | "writer" | "deep" | "inlines" | "moved" => Some(4),
            "reader" => Some(12),
            "drains" => Some(8),
            "waitGroup" if at.is_some_and(|at| at < 16) => at,
            _ => None,
        };
        same(wrong, &format!("{name}: semaphore"), at, semaphore);
        // The program keeps the time only for its waits for a Mutex.
        same(wrong, &format!("{name}: its time is known"), since.is_some(), semaphore == Some(4));
        if since.is_some_and(|since| !(began..=parked).contains(&since)) {
            wrong.push(format!("{name}: since {since:?}, not between {began} and {parked}"));
        }
        let thread = matches!(name, "holdsMutex" | "blocksInC");
        same(wrong, &format!("{name}: in a system call"), seen.goroutine.pause == Pause::Syscall, thread);
        let task = seen.thread.map(|thread| program.syscall(thread));
        let expected = match name {
            "holdsMutex" => Some(libc::SYS_read.to_string()),
            "blocksInC" => Some(libc::SYS_pause.to_string()),
            _ => None,
        };
        same(wrong, &format!("{name}: what its thread does"), task, expected);
        match seen.parked_since {
            // No later collection has found anybody.
            None if name == "late" => {}
            Some(at) if (collected.number(1)..=collected.number(2)).contains(&at) => {}
            other => wrong.push(format!("{name}: parked since {other:?}, not {collected:?}")),
        }
        match name {
            "deep" => same(
                wrong,
                "deep: cut",
                seen.stack.cut.as_ref().map(ToString::to_string),
                Some("more than 128 frames".into()),
            ),
            "moved" => {
                let apart = seen.goroutine.sp.abs_diff(stack);
                same(wrong, "its stack was moved", apart > 4096, true);
            }
            _ => {}
        }
        // The raw words are those of the frames: a return address lies below each frame.
        for frame in seen.stack.frames.iter().skip(1) {
            same(wrong, &format!("{name}: words"), seen.word_at(frame.sp - 8), Some(frame.pc));
        }
    }
    same(wrong, "waits", program.said("WAIT").count(), 22);
}

/// Without the table of versions, the running program gives the same offsets.
#[test]
fn offsets_are_found_in_the_running_program() {
    each_build(&["-plain", "-cgo-stripped-pie"], |build, wrong| {
        let bytes = std::fs::read(&build.path).unwrap();
        let binary = GoBinary::parse(&bytes).unwrap();
        let known = Layout::of(&binary).unwrap();
        let program = Running::start(&build.path, &[]);
        let bias = program.bias(&binary);
        let found = match Layout::calibrate(&binary, bias, &mut program.memory(), &program.threads()) {
            Ok(found) => found,
            Err(why) => return wrong.push(why.to_string()),
        };
        println!("{}: {}", build.name, found.calibrated.as_deref().unwrap());
        let mut offsets = found.offsets;
        // Not looked for.
        offsets.syscall_bp = known.offsets.syscall_bp;
        if known.reasons.iter().all(|word| word != "sync.Mutex.Lock") {
            offsets.wait_reasons = known.offsets.wait_reasons;
        }
        same(wrong, "offsets", offsets, known.offsets);
        // Of another program nothing is believed.
        let other = Layout::calibrate(&binary, bias + 16, &mut program.memory(), &program.threads());
        same(wrong, "moved by 16 bytes", other.is_err(), true);
        let other = Layout::calibrate(&binary, bias, &mut program.memory(), &[1]);
        same(wrong, "with other threads", other.is_err(), true);
    });
}

/// What is read while goroutines, stacks and locks change all the time is whole, or left out.
#[test]
fn a_look_into_a_program_that_does_not_rest() {
    each_build(&["-plain", "-cgo-stripped-pie"], |build, wrong| {
        let bytes = std::fs::read(&build.path).unwrap();
        let binary = GoBinary::parse(&bytes).unwrap();
        let layout = Layout::of(&binary).unwrap();
        let program = Running::start(&build.path, &["churn"]);
        let bias = program.bias(&binary);
        let locks = program.said("LOCKS").next().unwrap();
        let (a, b, size) = (locks.number(1), locks.number(2), locks.number(3));
        let (mut waits, mut left_out, mut cut) = (0, 0, Vec::new());
        let mut looker = Looker::new(&binary, &layout, Limits::default());
        for _ in 0..300 {
            looker.limits.now = program::now();
            let look = looker.look(bias, &mut program.memory()).unwrap();
            left_out += look.left_out.iter().map(|(_, count)| count).sum::<usize>();
            let counted = look.goroutines.len() + look.running + look.dead;
            let out: usize = look.left_out.iter().map(|(_, count)| count).sum();
            same(wrong, "all are accounted for", counted + out, look.total);
            for seen in &look.goroutines {
                let names: Vec<&str> = seen.stack.names().collect();
                if let Some(why) = &seen.stack.cut {
                    cut.push(format!("{why}: {names:?}"));
                }
                let Some(wait) = &seen.waits else { continue };
                waits += 1;
                let inside = |of: u64| (of..of + size).contains(&wait.semaphore);
                let right = match names.iter().find(|name| name.starts_with("main.lock")) {
                    Some(&"main.lockA") => inside(a),
                    Some(&"main.lockB") => inside(b),
                    _ => !inside(a) && !inside(b),
                };
                if !right {
                    wrong.push(format!("{:#x} in {names:?}", wait.semaphore));
                }
                if wait.since.is_some_and(|since| since > looker.limits.now || since == 0) {
                    wrong.push(format!("since {:?}, now {}", wait.since, looker.limits.now));
                }
            }
        }
        same(wrong, "stacks that were cut", cut, Vec::new());
        if waits < 100 {
            wrong.push(format!("only {waits} waits were seen"));
        }
        println!("{}: {waits} waits seen, {left_out} goroutines left out", build.name);
    });
}
