//! Contended locks of a Go program, against the program's own log; and programs that die with waits in flight.

use super::{
    machine::now,
    restarts::SHIM,
    watch::{Told, Watch},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
};
use tracer::{
    event::{Body, Kind, Operation, SeenBy},
    warden::Settings,
};

/// The running program.
pub struct Program {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it; it waits for commands.
    pub fn start() -> Result<Program> {
        Program::of("/locks")
    }
    /// Starts another one that talks like it.
    pub fn of(path: &str) -> Result<Program> {
        let mut child = Command::new(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the program")?;
        let lines = BufReader::new(child.stdout.take().context("its output")?);
        let mut program = Program { child, lines };
        program.until("pid")?;
        Ok(program)
    }
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    pub fn tell(&mut self, command: &str) -> Result<()> {
        Ok(writeln!(self.child.stdin.as_mut().context("its input")?, "{command}")?)
    }
    /// Its lines until one begins with `word`.
    pub fn until(&mut self, word: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                bail!("the program ended before it said {word}: {all:?}, {:?}", self.child.wait());
            }
            if line.starts_with(word) {
                return Ok(all);
            }
            all.push(line);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One acquisition, as the program saw it.
#[derive(Clone, Debug)]
struct Took {
    kind: char,
    goid: u64,
    lock: u64,
    before: u64,
    got: u64,
    released: u64,
}

fn parse(line: &str) -> Option<Took> {
    let mut words = line.split_whitespace();
    let kind = words.next()?.chars().next()?;
    let mut number = || words.next()?.parse().ok();
    Some(Took {
        kind,
        goid: number()?,
        lock: number()?,
        before: number()?,
        got: number()?,
        released: number()?,
    })
}

/// Within a twentieth, or the 15 ms that one emulated processor may give to somebody else. The program holds each lock for
/// 800 ms, so that a busy machine does not show.
fn close(told: u64, did: u64) -> bool {
    told.abs_diff(did) <= (did / 20).max(15_000_000)
}

/// Every wait, hold and waker that the program logged is told, with its goroutine; and nothing else is. `one_by_one`:
/// attached with a link for each site, as kernels without links of many do.
pub fn events_agree_with_the_programs_own_log(one_by_one: bool) -> Result<()> {
    let mut program = Program::start()?;
    let pid = program.pid();
    let watch = Watch::start(Settings { also: vec![pid], one_by_one, ..Settings::default() })?;
    let many =
        watch.look(|told| told.survey.as_ref().and_then(|s| s.features.clone())).context("features")?;
    ensure!(!(one_by_one && many.uprobe_multi.yes()), "{:?}", many.uprobe_multi);
    program.tell("run 3")?;
    let log: Vec<Took> = program.until("done")?.iter().filter_map(|line| parse(line)).collect();
    ensure!(log.len() == 15, "{} lines", log.len());
    watch.nothing_in_flight(|o| o.actor.pid == pid)?;
    let of = |o: &Operation, kind: Kind, t: &Took| {
        o.kind == kind && o.actor.goid == Some(t.goid) && (t.lock..t.lock + 24).contains(&o.object)
    };
    let (mut waits, mut holds, mut wakes) = (0, 0, 0);
    let mut far = Vec::new();
    for took in &log {
        let waited = took.got - took.before;
        // Somebody had the lock in between: what else takes time is the machine's affair.
        let contended = log.iter().any(|other| {
            other.lock == took.lock
                && other.goid != took.goid
                && other.got < took.got
                && other.released > took.before
        });
        if contended && waited >= 25_000_000 {
            // A writer waits for the writer before it, and then for readers: one acquisition, two waits.
            let find = |all: &Told| -> Vec<(Operation, u64)> {
                all.events
                    .iter()
                    .filter_map(|event| match &event.body {
                        Body::Ended(o, _) if of(o, Kind::LockWait, took) => Some((o.clone(), event.at)),
                        _ => None,
                    })
                    .collect()
            };
            let sum = |told: &[(Operation, u64)]| told.iter().map(|(o, at)| at - o.begin).sum::<u64>();
            let told =
                watch.wait("waits", 20, |all| Some(find(all)).filter(|told| sum(told) * 5 >= waited * 4));
            let told = told.with_context(|| {
                let told = watch.look(find);
                format!("waited {waited} ns, told {} ns: {took:?}; {told:?}", sum(&told))
            })?;
            if !close(sum(&told), waited) {
                far.push(format!("waited {waited} ns, told {} ns: {took:?}; {told:?}", sum(&told)));
            }
            waits += told.len();
            for (told, at) in told {
                ensure!(told.begin >= took.before && at <= took.got, "{told:?} to {at}, log {took:?}");
                let (by, woken) = watch.wait(&format!("a waker for {told:?}"), 20, |all| {
                    all.events.iter().find_map(|event| match &event.body {
                        Body::Woken { by, waiter, semaphore }
                            if waiter.goid == Some(took.goid)
                                && *semaphore == told.object
                                && (told.begin..=at).contains(&event.at) =>
                        {
                            Some((*by, event.at))
                        }
                        _ => None,
                    })
                })?;
                // Who let go of this lock just before.
                let releasers: BTreeSet<u64> = log
                    .iter()
                    .filter(|other| other.lock == took.lock && other.goid != took.goid)
                    .filter(|other| other.released <= woken && woken - other.released < 100_000_000)
                    .map(|other| other.goid)
                    .collect();
                let by = by.goid.context("a waker without a goroutine")?;
                ensure!(releasers.contains(&by), "woken by {by}, released by {releasers:?}: {told:?}");
                wakes += 1;
            }
        }
        if took.kind == 'W' {
            let (told, _, at) = watch
                .ended(&format!("a hold like {took:?}"), |o| of(o, Kind::LockHold, took))
                .context("write lock")?;
            ensure!(told.begin >= took.before && told.begin <= took.got, "{told:?}, log {took:?}");
            ensure!(
                at >= took.released && at - took.released < 100_000_000,
                "{told:?} to {at}, log {took:?}"
            );
            holds += 1;
        }
    }
    // Between the program's look at its clock and the call that is probed a busy machine may do something else.
    ensure!(far.len() <= 1, "{far:#?}");
    ensure!(waits >= 9 && holds == 6 && wakes == waits, "{waits} waits, {holds} holds, {wakes} wakes");
    let goids: BTreeSet<u64> = log.iter().map(|took| took.goid).collect();
    let strange = watch.look(|told| {
        told.events.iter().find_map(|event| match &event.body {
            Body::Ended(o, _) if o.actor.pid == pid => {
                let known = o.actor.goid.is_some_and(|goid| goids.contains(&goid));
                let locks = log.iter().any(|took| (took.lock..took.lock + 24).contains(&o.object));
                (!known || !locks).then(|| format!("{o:?}"))
            }
            _ => None,
        })
    });
    ensure!(strange.is_none(), "nobody logged {strange:?}");
    println!("note {waits} waits, {holds} holds, {wakes} wakers agree with the program's log");
    drop(program);
    watch.stop()
}

/// A panic, SIGKILL and exec while goroutines wait: the waits are seen, and are gone with the program. `without` is not
/// used: the last resort is looking at `/proc`.
pub fn what_dies_leaves_nothing(without: &[SeenBy]) -> Result<()> {
    let mut programs = [Program::start()?, Program::start()?, Program::start()?];
    let pids = programs.each_ref().map(Program::pid);
    let without = without.to_vec();
    let watch = Watch::start(Settings { also: pids.to_vec(), without, ..Settings::default() })?;
    for (at, command) in ["panic", "park", "exec"].into_iter().enumerate() {
        let (program, pid) = (&mut programs[at], pids[at]);
        let begin = now();
        program.tell(command)?;
        program.until("parked")?;
        watch.wait(&format!("waits before {command}"), 30, |told| {
            let waits = told.events.iter().filter(|event| {
                matches!(&event.body, Body::InFlight(o) if o.kind == Kind::LockWait && o.actor.pid == pid)
            });
            (waits.count() > 3).then_some(())
        })?;
        match command {
            "park" => program.child.kill()?,
            // The program has become itself anew, and says so.
            "exec" => drop(program.until("pid")?),
            _ => {}
        }
        if command != "exec" {
            program.child.wait()?;
        }
        watch
            .wait(&format!("the end of the program after {command}"), 30, |told| {
                told.events
                    .iter()
                    .any(|event| {
                        event.at > begin
                            && matches!(event.body, Body::ProcessGone { pid: gone } if gone == pid)
                    })
                    .then_some(())
            })
            .with_context(|| command.to_owned())?;
        std::thread::sleep(std::time::Duration::from_millis(700));
        watch.nothing_in_flight(|o| o.actor.pid == pid).with_context(|| command.to_owned())?;
        if command == "exec" {
            // What it has become is seen like any other: it lies somewhere else in memory.
            program.tell("park")?;
            program.until("parked")?;
            let again = now();
            watch.wait("waits after exec", 30, |told| {
                let waits = told.events.iter().filter(|event| {
                    matches!(&event.body, Body::InFlight(o) if o.kind == Kind::LockWait && o.actor.pid == pid)
                        && event.at > again
                });
                (waits.count() > 3).then_some(())
            })?;
        }
    }
    drop(programs);
    watch.stop()
}

/// A panic that somebody further out recovers: the functions in between never return, and nobody is in them any more.
pub fn a_recovered_panic_leaves_nothing() -> Result<()> {
    let mut shim = Program::of(SHIM)?;
    let pid = shim.pid();
    let watch = Watch::start(Settings { also: vec![pid], ..Settings::default() })?;
    let begin = now();
    shim.tell("recover")?;
    shim.until("recovered")?;
    let end = now();
    let its = |o: &Operation| {
        o.actor.pid == pid
            && o.kind == Kind::ShimServe
            && (begin..=end).contains(&o.begin)
            && o.method == "State"
    };
    // A look at its goroutines tells, when it is two seconds old, and again whenever its age has doubled.
    super::machine::until("it is forgotten", 60, || Ok(watch.nothing_in_flight(its).is_ok()))?;
    watch.stop()
}
