//! Unmounts and syncs on slow disks, by each means that the kernel offers, against the caller's own clock.

use super::{
    machine::{self, Overlay, now, tid, umount},
    watch::{Told, Watch, of_kernel},
};
use anyhow::{Context, Result, ensure};
use std::{
    cell::Cell,
    fs::{self, File},
    sync::{Arc, Barrier, mpsc},
    thread,
};
use tracer::{
    event::{Body, Device, Event, Kind, LossPoint, Operation, Outcome, SeenBy},
    warden::Settings,
};

/// What the caller knows of a call of its own.
#[derive(Clone, Debug)]
struct Did {
    what: String,
    pid: u32,
    tid: u32,
    begin: u64,
    end: u64,
    errno: i32,
}

impl Did {
    fn took(&self) -> u64 {
        self.end - self.begin
    }
    /// Whether an operation began during this call on the same thread.
    fn holds(&self, o: &Operation) -> bool {
        o.actor.pid == self.pid && o.actor.tid == self.tid && (self.begin..=self.end).contains(&o.begin)
    }
}

/// Runs one call on a thread of its own.
fn does(what: &str, call: impl FnOnce() -> i32 + Send + 'static) -> Did {
    let what = what.to_owned();
    let run = move || {
        let begin = now();
        let errno = call();
        let did = Did { what, pid: std::process::id(), tid: tid(), begin, end: now(), errno };
        linger();
        did
    };
    thread::spawn(run).join().unwrap()
}

/// The thread stays for a while, as a thread of a shim does: the end that no probe tells is asked of the thread itself.
fn linger() {
    thread::sleep(std::time::Duration::from_millis(400));
}

/// One way of seeing, and how well it sees.
struct Case {
    watch: Watch,
    how: SeenBy,
    /// Bytes to be dirty, so that a call lasts long enough for the means of this way.
    bytes: usize,
    /// The kernel drops returns of nested calls when it has one kretprobe instance for each of one processor.
    drops_nested: bool,
    /// How often a scenario had to be repeated.
    again: Cell<u32>,
}

/// Within a twentieth, or 30 ms where that is more.
pub fn close(told: u64, did: u64) -> bool {
    told.abs_diff(did) <= (did / 20).max(30_000_000)
}

/// What waits for a slow disk waits longer than this.
pub const SLOW: u64 = 800_000_000;

/// An end that is found by polling is told so much late at most.
const POLLED: u64 = 600_000_000;

impl Case {
    /// What makes the names of one run of a scenario its own.
    fn mark(&self) -> String {
        match self.again.get() {
            0 => format!("{:?}", self.how),
            again => format!("{:?}-{again}", self.how),
        }
    }

    /// Whether it is told that the kernel has skipped a probe since then; that is asked for once a second.
    fn skipped_since(&self, begin: u64) -> bool {
        let skipped = |told: &Told| {
            let is = |e: &&Event| e.at > begin && matches!(e.body, Body::Lost { at: LossPoint::Skipped, .. });
            told.events.iter().find(is).map(|_| ())
        };
        self.watch.wait("that a probe was skipped", 3, skipped).is_ok()
    }

    /// What was told of one scenario, in words that do not depend on the way it was seen; without what is short, whose
    /// length is chance.
    fn list(&self, scenario: &str, from: u64) -> Vec<String> {
        const LONG: u64 = 500_000_000;
        let roles = ["ext4", "xfs"].map(|disk| (machine::device(&format!("/mnt/{disk}")), disk));
        self.watch.look(|told| {
            let mut ended: Vec<(&Operation, Outcome, u64)> = told
                .events
                .iter()
                .filter_map(|event| match &event.body {
                    Body::Ended(o, outcome) if of_kernel(o.kind) && o.begin >= from => {
                        Some((o, *outcome, event.at))
                    }
                    _ => None,
                })
                .collect();
            if self.drops_nested {
                // Those whose end nobody knows were told as long as they lasted.
                for event in told.events.iter().rev() {
                    if let Body::InFlight(o) = &event.body
                        && of_kernel(o.kind)
                        && o.begin >= from
                        && !ended.iter().any(|(known, ..)| {
                            (known.kind, known.actor, known.begin) == (o.kind, o.actor, o.begin)
                        })
                    {
                        ended.push((o, Outcome::Done, event.at));
                    }
                }
            }
            let unmounts = |o: &Operation| {
                ended.iter().any(|(u, _, end)| {
                    u.kind == Kind::Unmount && u.actor == o.actor && (u.begin..=*end).contains(&o.begin)
                })
            };
            // What the test itself syncs, to go on with nothing dirty, is short or long by chance.
            let tidying = |o: &Operation| o.actor.tid == std::process::id();
            let mut lines: Vec<String> = ended
                .iter()
                .filter(|(o, ..)| !tidying(o))
                .filter(|(o, outcome, at)| at - o.begin > LONG || *outcome == Outcome::Errno(libc::EBUSY))
                .map(|(o, outcome, _)| {
                    let role = roles.iter().find(|(device, _)| Some(*device) == o.device);
                    let on = role.map_or(if o.device.is_some() { "its own" } else { "-" }, |(_, disk)| disk);
                    let path = o.path.as_deref().unwrap_or("-").replace(&format!("-{}", self.mark()), "");
                    let place = if o.kind != Kind::Unmount && unmounts(o) { "in an unmount" } else { "" };
                    let fs = o.fs_type.as_deref().unwrap_or("-");
                    format!("{scenario}: {:?} {outcome:?} {path} {fs} on {on} {place}", o.kind)
                })
                .collect();
            lines.sort();
            lines
        })
    }
}

/// Each way tells what the first one tells, but for what a tracepoint says that it does not see.
fn same_as_by_fentry(how: SeenBy, list: &[String]) -> Result<()> {
    const KEPT: &str = "/run/events-by-fentry";
    ensure!(list.len() > 8, "{list:#?}");
    if how == SeenBy::Fentry {
        return Ok(fs::write(KEPT, list.join("\n"))?);
    }
    let Ok(kept) = fs::read_to_string(KEPT) else {
        println!("note {how:?}: not compared, since nothing was seen by fentry before");
        return Ok(());
    };
    let visible = |line: &&str| {
        let shutdown = line.contains(": SuperShutdown ");
        let sync = line.contains(": Sync ");
        let upper = line.ends_with("in an unmount") && !line.contains(" on its own ");
        // Where nobody asks between two unmounts of a thread, the end of the first is not told.
        let again = line.starts_with("until EINVAL: ");
        how == SeenBy::Kprobe || !(shutdown || sync && !upper || again)
    };
    let mut missing: Vec<&str> = kept.lines().filter(visible).collect();
    let mut more = Vec::new();
    for line in list {
        match missing.iter().position(|other| other == line) {
            Some(at) => drop(missing.remove(at)),
            None => more.push(line),
        }
    }
    ensure!(missing.is_empty() && more.is_empty(), "not as by fentry: missing {missing:#?}, more {more:#?}");
    println!("note {how:?}: the same {} events as by fentry", list.len());
    Ok(())
}

type Scenario = (&'static str, fn(&Case) -> Result<()>);

/// All scenarios.
pub fn all(how: SeenBy) -> Result<()> {
    let without = match how {
        // Which of the two comes first depends on the kernel.
        SeenBy::Fentry => vec![SeenBy::Kprobe],
        SeenBy::Kprobe => vec![SeenBy::Fentry],
        _ => vec![SeenBy::Fentry, SeenBy::Kprobe],
    };
    let watch = Watch::start(Settings { without, ..Settings::default() })?;
    let survey = watch.wait("a survey", 20, |told| told.survey.clone())?;
    for what in ["unmount", "sync with device"] {
        let probe = survey.probes.iter().find(|probe| probe.what == what);
        ensure!(probe.and_then(|p| p.how) == Some(how), "{what} is not seen by {how:?}: {probe:?}");
    }
    let drops_nested = how == SeenBy::Kprobe && machine::kernel() < (6, 1);
    let case = Case {
        watch,
        how,
        // A twentieth of it must be longer than it takes to find an end by polling.
        bytes: if how == SeenBy::Tracepoint || drops_nested { 10_000_000 } else { 5_000_000 },
        drops_nested,
        again: Cell::new(0),
    };
    let all: [Scenario; 12] = [
        ("every call", every_call),
        ("errors", errors),
        ("overlay on ext4", |case| plain(case, "ext4", 0)),
        ("overlay on xfs", |case| plain(case, "xfs", 0)),
        ("until EINVAL", until_einval),
        ("MNT_DETACH", |case| plain(case, "ext4", libc::MNT_DETACH)),
        ("detached while busy", detached_while_busy),
        ("pinned", pinned),
        ("two queued", two_queued),
        ("syncfs", syncfs),
        ("volatile", volatile),
        ("last process of a mount namespace", last_process),
    ];
    let mut list = Vec::new();
    for (name, scenario) in all {
        loop {
            let begin = now();
            let result = scenario(&case).and_then(|()| case.watch.nothing_in_flight(|o| of_kernel(o.kind)));
            match result {
                // Nobody can see what the kernel did not run a probe for; that must be said then, and be rare.
                Err(error) if case.again.get() < 3 && case.skipped_since(begin) => {
                    println!(
                        "note {name}: the kernel skipped a probe, and that is told: once more ({error:#})"
                    );
                    case.again.set(case.again.get() + 1);
                }
                result => {
                    result.with_context(|| name.to_owned())?;
                    list.extend(case.list(name, begin));
                    break;
                }
            }
        }
    }
    same_as_by_fentry(how, &list)?;
    let lost = case.watch.look(|told| {
        let lost = |e: &&Event| matches!(e.body, Body::Lost { at, .. } if at != LossPoint::Skipped);
        told.events.iter().filter(lost).count()
    });
    ensure!(lost == 0, "{lost} losses were told");
    case.watch.stop()
}

fn unique(case: &Case, name: &str) -> String {
    format!("{name}-{}", case.mark())
}

/// The unmount was told as the caller saw it: path, outcome, begin, duration, and once while it lasted.
fn unmount_is_told(case: &Case, did: &Did, path: &str) -> Result<()> {
    ensure!(did.errno == 0, "{did:?}");
    let (told, outcome, at) =
        case.watch.ended(&format!("{did:?}"), |o| o.kind == Kind::Unmount && did.holds(o))?;
    ensure!(outcome == Outcome::Done, "{outcome:?}");
    ensure!(told.path.as_deref() == Some(path), "{told:?}");
    ensure!(told.seen_by == case.how, "{told:?}");
    ensure!(close(at - told.begin, did.took()), "told {} ms, was {did:?}", (at - told.begin) / 1_000_000);
    let seen = case.watch.look(|all| {
        all.events
            .iter()
            .any(|e| matches!(&e.body, Body::InFlight(o) if o.kind == Kind::Unmount && o.begin == told.begin))
    });
    ensure!(seen, "it was not told while it lasted: {told:?}");
    println!(
        "note {:?} {}: {} ms, told {} ms",
        case.how,
        did.what,
        did.took() / 1_000_000,
        (at - told.begin) / 1_000_000
    );
    Ok(())
}

/// A sync of this device and type happened inside the call, and its length fits.
fn sync_is_told(case: &Case, did: &Did, device: Device, fs_type: &str, lasted: bool) -> Result<()> {
    let is = |o: &Operation| o.kind == Kind::Sync && did.holds(o) && o.device == Some(device);
    let told = case.watch.wait(&format!("sync of {device} in {did:?}"), 20, |all| {
        all.events.iter().find_map(|event| match &event.body {
            Body::Ended(o, _) if is(o) => Some((o.clone(), Some(event.at))),
            // Its end may be one of those that nobody knows.
            Body::InFlight(o) if is(o) && case.drops_nested => Some((o.clone(), None)),
            _ => None,
        })
    })?;
    ensure!(told.0.fs_type.as_deref() == Some(fs_type), "{told:?}");
    if let (Some(at), true) = (told.1, lasted) {
        ensure!(close(at - told.0.begin, did.took()), "{told:?} inside {did:?}");
    }
    let last = case.watch.look(|all| {
        let seen =
            all.events.iter().filter(|e| matches!(&e.body, Body::InFlight(o) | Body::Ended(o, _) if is(o)));
        seen.map(|event| event.at).max()
    });
    ensure!(last.is_some_and(|at| at <= did.end + POLLED), "told until {last:?}: {told:?} inside {did:?}");
    Ok(())
}

/// Dirty data in an overlay, one unmount.
fn plain(case: &Case, disk: &str, flags: i32) -> Result<()> {
    let overlay = Overlay::new(disk, &unique(case, &format!("plain{flags}")), "")?;
    let upper = machine::device(&format!("/mnt/{disk}"));
    overlay.dirty(case.bytes)?;
    let at = overlay.at.clone();
    let did = does(&format!("overlay on {disk}, flags {flags}"), move || umount(&at, flags));
    ensure!(did.took() > SLOW, "the disk is not slow: {did:?}");
    unmount_is_told(case, &did, &overlay.at)?;
    sync_is_told(case, &did, upper, disk, true)?;
    if case.how != SeenBy::Tracepoint {
        sync_is_told(case, &did, overlay.device, "overlay", true)?;
        let (shut, _, at) =
            case.watch.ended("shutdown of the overlay", |o| o.kind == Kind::SuperShutdown && did.holds(o))?;
        ensure!(shut.device == Some(overlay.device), "{shut:?}");
        ensure!(shut.fs_type.as_deref() == Some("overlay"), "{shut:?}");
        ensure!(close(at - shut.begin, did.took()), "{shut:?} inside {did:?}");
    }
    Ok(())
}

/// As containerd unmounts: again and again until nothing is mounted there. What comes at once after the unmount does not
/// change what is told of it.
fn until_einval(case: &Case) -> Result<()> {
    let overlay = Overlay::new("ext4", &unique(case, "again"), "")?;
    overlay.dirty(case.bytes)?;
    let at = overlay.at.clone();
    let (send, first) = mpsc::channel();
    let both = does("until EINVAL", move || {
        let begin = now();
        let errno = umount(&at, 0);
        let _ = send.send((begin, errno, now()));
        umount(&at, 0)
    });
    let (begin, errno, end) = first.recv()?;
    ensure!(both.errno == libc::EINVAL, "{both:?}");
    let did = Did { begin, end, errno, ..both.clone() };
    if case.how != SeenBy::Tracepoint {
        return unmount_is_told(case, &did, &overlay.at);
    }
    // Nobody was asked in between: it is told as long as it lasts, and then no more.
    case.watch.nothing_in_flight(|o| of_kernel(o.kind)).context("and the second one is over")?;
    let is = |o: &Operation| o.kind == Kind::Unmount && did.holds(o) && o.begin < both.end;
    let last = case.watch.look(|told| {
        let told = told.events.iter().filter(|e| matches!(&e.body, Body::InFlight(o) if is(o)));
        told.map(|e| e.at).max()
    });
    let last = last.context("it was not told")?;
    ensure!(close(last - begin, did.took()), "told for {} ms, was {did:?}", (last - begin) / 1_000_000);
    Ok(())
}

/// EINVAL at once leaves nothing; each EBUSY is told with its errno.
fn errors(case: &Case) -> Result<()> {
    let did = does("EINVAL", || umount("/run", libc::UMOUNT_NOFOLLOW | 0x4000_0000));
    ensure!(did.errno == libc::EINVAL, "{did:?}");
    let did = does("EINVAL", || umount("/modules", 0));
    ensure!(did.errno == libc::EINVAL, "{did:?}");
    let overlay = Overlay::new("ext4", &unique(case, "busy"), "")?;
    let busy = File::create(format!("{}/open", overlay.at))?;
    let at = overlay.at.clone();
    let did = does("EBUSY", move || umount(&at, 0));
    ensure!(did.errno == libc::EBUSY, "{did:?}");
    // An entry of the kernel half is told once its thread ends or unmounts again.
    let (told, outcome, _) = case.watch.ended("the EBUSY", |o| o.kind == Kind::Unmount && did.holds(o))?;
    ensure!(outcome == Outcome::Errno(libc::EBUSY), "{told:?} {outcome:?}");
    drop(busy);
    machine::sync("/mnt/ext4");
    ensure!(umount(&overlay.at, 0) == 0, "the mount is not free again");
    Ok(())
}

/// Detached while a file is open: the unmount is over at once; whoever closes the file pays, and that is no unmount.
fn detached_while_busy(case: &Case) -> Result<()> {
    let overlay = Overlay::new("ext4", &unique(case, "held"), "")?;
    overlay.dirty(case.bytes)?;
    let file = File::open(format!("{}/dirty", overlay.at))?;
    let at = overlay.at.clone();
    let (send, detached) = std::sync::mpsc::channel();
    let run = move || {
        let begin = now();
        let errno = umount(&at, libc::MNT_DETACH);
        let _ = send.send((begin, errno, now()));
        let begin = now();
        drop(file);
        Did { what: "close".into(), pid: std::process::id(), tid: tid(), begin, end: now(), errno: 0 }
    };
    let did = thread::spawn(run).join().unwrap();
    let (begin, errno, end) = detached.recv()?;
    ensure!(errno == 0 && end - begin < 500_000_000, "the detaching took {} ms", (end - begin) / 1_000_000);
    ensure!(did.took() > SLOW, "closing did not sync: {did:?}");
    if case.how != SeenBy::Tracepoint {
        let (shut, ..) =
            case.watch.ended("its shutdown", |o| o.kind == Kind::SuperShutdown && did.holds(o))?;
        ensure!(shut.device == Some(overlay.device), "{shut:?}");
    }
    case.watch.nothing_in_flight(|o| of_kernel(o.kind))?;
    let longest = case.watch.look(|told| {
        let of = told.events.iter().filter_map(|e| match &e.body {
            Body::Ended(o, _) if o.kind == Kind::Unmount && o.begin >= begin => Some(e.at - o.begin),
            _ => None,
        });
        of.max()
    });
    let far = if case.how == SeenBy::Tracepoint { 600_000_000 } else { 500_000_000 };
    ensure!(longest.is_none_or(|ns| ns < far), "the unmount was told {longest:?} ns long");
    Ok(())
}

/// Mounted in another namespace too: the unmount returns and cleans nothing up.
fn pinned(case: &Case) -> Result<()> {
    let overlay = Overlay::new("ext4", &unique(case, "pinned"), "")?;
    overlay.dirty(2_000_000)?;
    let mut other = std::process::Command::new("/init")
        .arg("pin")
        .env(super::INSIDE, "pin")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut ready = [0u8; 1];
    std::io::Read::read_exact(other.stdout.as_mut().context("its output")?, &mut ready)?;
    let at = overlay.at.clone();
    let did = does("pinned", move || umount(&at, 0));
    ensure!(did.errno == 0 && did.took() < 500_000_000, "{did:?}");
    machine::sync("/mnt/ext4");
    drop(other.stdin.take());
    other.wait()?;
    case.watch.nothing_in_flight(|o| of_kernel(o.kind))?;
    let wrong = case.watch.look(|told| {
        told.events.iter().any(|e| {
            matches!(&e.body, Body::Ended(o, _) if o.kind == Kind::Unmount && did.holds(o)
                && e.at - o.begin > did.took() + 400_000_000)
        })
    });
    ensure!(!wrong, "the unmount was told longer than it was");
    Ok(())
}

/// Two overlays on one upper file system: one unmount waits for the other's sync, and both are told whole.
fn two_queued(case: &Case) -> Result<()> {
    let overlays = ["one", "two"].map(|name| Overlay::new("ext4", &unique(case, name), "").unwrap());
    let upper = machine::device("/mnt/ext4");
    let gate = Arc::new(Barrier::new(2));
    for overlay in &overlays {
        overlay.dirty(case.bytes / 2)?;
    }
    let threads = overlays.each_ref().map(|overlay| {
        let (gate, at) = (Arc::clone(&gate), overlay.at.clone());
        let (did, told) = mpsc::channel();
        let (go, stay) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            gate.wait();
            let begin = now();
            let errno = umount(&at, 0);
            let (pid, tid, end) = (std::process::id(), tid(), now());
            let _ = did.send(Did { what: "queued".into(), pid, tid, begin, end, errno });
            let _ = stay.recv();
        });
        (thread, told, go)
    });
    let did = threads.each_ref().map(|(_, told, _)| told.recv().unwrap());
    for (did, overlay) in did.iter().zip(&overlays) {
        unmount_is_told(case, did, &overlay.at)?;
        sync_is_told(case, did, upper, "ext4", false)?;
    }
    // While the threads live: a thread's end would tell, and tidy up, whatever had no end before.
    case.watch.nothing_in_flight(|o| of_kernel(o.kind)).context("and the threads live")?;
    for (thread, _, go) in threads {
        drop(go);
        thread.join().unwrap();
    }
    for did in &did {
        let ends: Vec<u64> = case.watch.look(|told| {
            let ends = told.events.iter().filter_map(|event| match &event.body {
                Body::Ended(o, _) if o.kind == Kind::Unmount && did.holds(o) => Some(event.at),
                _ => None,
            });
            ends.collect()
        });
        ensure!(ends.iter().all(|end| close(end - did.begin, did.took())), "told {ends:?}, was {did:?}");
    }
    Ok(())
}

/// Threads that call unmount all the time: every call is seen, or counted as one for which the kernel ran no probe.
fn every_call(case: &Case) -> Result<()> {
    const THREADS: u64 = 4;
    const CALLS: u64 = 5_000;
    let (hits, skipped) = (case.watch.hits(Kind::Unmount)?, case.watch.lost(LossPoint::Skipped));
    let threads = [0; THREADS as usize].map(|_| {
        thread::spawn(|| {
            for _ in 0..CALLS {
                ensure!(umount("/proc/self", 0) == libc::EINVAL, "what is mounted on /proc/self?");
            }
            Ok(())
        })
    });
    threads.into_iter().try_for_each(|thread| thread.join().unwrap())?;
    let seen = case.watch.hits(Kind::Unmount)? - hits;
    let skipped = case.watch.lost(LossPoint::Skipped) - skipped;
    let unseen = (THREADS * CALLS).checked_sub(seen).context("more than there were")?;
    println!(
        "note {:?}: {unseen} of {} calls not seen, {skipped} told as skipped",
        case.how,
        THREADS * CALLS
    );
    // Of a call that was seen the end may have been skipped.
    ensure!(unseen <= skipped, "{unseen} calls were not seen, and {skipped} told as skipped");
    Ok(())
}

/// A sync that nobody unmounts for.
fn syncfs(case: &Case) -> Result<()> {
    machine::dirty("/mnt/xfs", case.bytes)?;
    let upper = machine::device("/mnt/xfs");
    let did = does("syncfs", || {
        machine::sync("/mnt/xfs");
        0
    });
    ensure!(did.took() > SLOW, "the disk is not slow: {did:?}");
    // By tracepoints only syncs inside an unmount are seen; and the compiler of 5.10 has put a copy of `sync_filesystem`
    // into syncfs(2), where no probe is. That must be said, there and nowhere else.
    let unseen = case.how == SeenBy::Tracepoint || machine::kernel() < (6, 1);
    let probe = case.watch.wait("the probe of syncs", 20, |told| {
        told.survey.as_ref()?.probes.iter().find(|probe| probe.what == "sync with device").cloned()
    })?;
    ensure!(probe.note.contains("syncfs(2)") == unseen, "{probe:?}");
    if unseen {
        case.watch.nothing_in_flight(|o| of_kernel(o.kind))?;
        let told = case.watch.look(|told| {
            told.events
                .iter()
                .any(|e| matches!(&e.body, Body::Ended(o, _) | Body::InFlight(o) if did.holds(o)))
        });
        ensure!(!told, "it is told, and said not to be seen: {probe:?}");
        return Ok(());
    }
    sync_is_told(case, &did, upper, "xfs", true)?;
    let (told, _, at) = case.watch.ended("the sync", |o| o.kind == Kind::Sync && did.holds(o))?;
    ensure!(close(at - told.begin, did.took()), "{told:?} inside {did:?}");
    Ok(())
}

/// The unmount of a volatile overlay does not sync its upper file system.
fn volatile(case: &Case) -> Result<()> {
    let overlay = Overlay::new("ext4", &unique(case, "volatile"), ",volatile")?;
    let upper = machine::device("/mnt/ext4");
    overlay.dirty(case.bytes)?;
    let at = overlay.at.clone();
    let did = does("volatile", move || umount(&at, 0));
    ensure!(did.errno == 0 && did.took() < 700_000_000, "{did:?}");
    case.watch.nothing_in_flight(|o| of_kernel(o.kind))?;
    let synced = case.watch.look(|told| {
        told.events.iter().any(|e| {
            matches!(&e.body, Body::Ended(o, _) | Body::InFlight(o) if o.kind == Kind::Sync && did.holds(o)
                && o.device == Some(upper))
        })
    });
    ensure!(!synced, "a sync of the upper file system was told");
    machine::sync("/mnt/ext4");
    Ok(())
}

/// The last process of a mount namespace exits: no unmount call, but a shutdown and a sync in the exiting process.
fn last_process(case: &Case) -> Result<()> {
    let mut child = std::process::Command::new("/init")
        .arg("last")
        .env(super::INSIDE, unique(case, "last"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let mut ready = [0u8; 1];
    std::io::Read::read_exact(child.stdout.as_mut().context("its output")?, &mut ready)?;
    let begin = now();
    drop(child.stdin.take());
    child.wait()?;
    let did = Did { what: "exit".into(), pid, tid: pid, begin, end: now(), errno: 0 };
    if case.how == SeenBy::Tracepoint {
        // Only syncs inside an unmount are seen.
        machine::sync("/mnt/ext4");
        return Ok(());
    }
    ensure!(did.took() > SLOW, "the exit did not sync: {did:?}");
    let (shut, _, at) = case.watch.ended("shutdown at exit", |o| {
        o.kind == Kind::SuperShutdown && o.begin >= begin && o.actor.pid == pid
    })?;
    ensure!(shut.fs_type.as_deref() == Some("overlay"), "{shut:?}");
    ensure!(close(at - shut.begin, did.took()), "{shut:?} in {did:?}");
    Ok(())
}

/// With no way left nothing of the kernel is told, and that is said.
pub fn unseen() -> Result<()> {
    let without = vec![SeenBy::Fentry, SeenBy::Kprobe, SeenBy::Tracepoint];
    let watch = Watch::start(Settings { without, ..Settings::default() })?;
    let survey = watch.wait("a survey", 20, |told| told.survey.clone())?;
    for probe in &survey.probes {
        ensure!(probe.how.is_none() && !probe.loss.is_empty() && !probe.note.is_empty(), "{probe:?}");
        watch.wait("the blind spot", 20, |told| {
            told.events.iter().find_map(|event| match &event.body {
                Body::BlindSpot { what, reason } if *what == probe.what && *reason == probe.loss => Some(()),
                _ => None,
            })
        })?;
    }
    ensure!(survey.probes.len() == 4, "{:?}", survey.probes);
    let overlay = Overlay::new("ext4", "unseen", "")?;
    overlay.dirty(5_000_000)?;
    let at = overlay.at.clone();
    let did = does("unseen", move || umount(&at, 0));
    ensure!(did.errno == 0 && did.took() > SLOW, "the disk is not slow: {did:?}");
    let told = watch.look(|told| {
        told.events
            .iter()
            .any(|e| matches!(&e.body, Body::Ended(o, _) | Body::InFlight(o) if of_kernel(o.kind)))
    });
    ensure!(!told, "something was told");
    watch.stop()
}

/// The other process of [`pinned`] and of [`last_process`]: takes a copy of all mounts, or makes one of its own; says
/// so; stays until it is let go.
pub fn helper(role: &str, name: &str) -> Result<()> {
    machine::unshare_mounts()?;
    if role == "last" {
        Overlay::new("ext4", name, "")?.dirty(5_000_000)?;
    }
    println!("r");
    let _ = std::io::stdin().read_line(&mut String::new());
    Ok(())
}
