//! What is left where the kernel's own probes cannot be had: unmounts in a shim's own code, and looking at `/proc`.

use super::{
    locks::Program,
    machine::{Overlay, umount},
    restarts::SHIM,
    unmounts::{SLOW, close},
    watch::{Watch, of_kernel},
};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use tracer::{
    event::{Body, Kind, Outcome, SeenBy},
    warden::Settings,
};

/// When the shim called unmount and was back, by its own clock.
fn clock(said: &[String]) -> Result<(u64, u64)> {
    let line = said.iter().find_map(|line| line.strip_prefix("unmount ")).context("it did not say when")?;
    let (begin, end) = line.trim().split_once(' ').context("one time only")?;
    Ok((begin.parse()?, end.parse()?))
}

/// The shim's wrapper of the system call tells of its unmounts as its own clock does, an EBUSY with its errno; and that the
/// shim is no more is found by looking.
pub fn unmounts() -> Result<()> {
    let mut shim = Program::of(SHIM)?;
    let pid = shim.pid();
    let without = vec![SeenBy::Fentry, SeenBy::Kprobe, SeenBy::Tracepoint];
    let watch = Watch::start(Settings { without, also: vec![pid], ..Settings::default() })?;
    for disk in ["ext4", "xfs"] {
        let overlay = Overlay::new(disk, "wrapper", "")?;
        overlay.dirty(5_000_000)?;
        shim.tell(&overlay.at)?;
        let (begin, end) = clock(&shim.until("deleted")?)?;
        ensure!(end - begin > SLOW, "the disk is not slow: {} ms", (end - begin) / 1_000_000);
        let (told, outcome, at) = watch.ended("the unmount", |o| {
            o.kind == Kind::Unmount && o.actor.pid == pid && (begin..=end).contains(&o.begin)
        })?;
        ensure!(outcome == Outcome::Done && told.seen_by == SeenBy::Uprobe, "{told:?} {outcome:?}");
        ensure!(told.path.as_deref() == Some(overlay.at.as_str()) && told.actor.goid == Some(1), "{told:?}");
        ensure!(close(at - told.begin, end - begin), "{told:?} to {at}, the shim says {begin} to {end}");
        let seen = watch.look(|all| {
            let is = |body: &Body| matches!(body, Body::InFlight(o) if o.id() == told.id());
            all.events.iter().any(|event| is(&event.body))
        });
        ensure!(seen, "it was not told while it lasted: {told:?}");
        println!("note {disk}: {} ms, told {} ms", (end - begin) / 1_000_000, (at - told.begin) / 1_000_000);
    }
    let overlay = Overlay::new("ext4", "wrapper-busy", "")?;
    let busy = File::create(format!("{}/open", overlay.at))?;
    shim.tell(&overlay.at)?;
    let (told, outcome, at) = watch.ended("the EBUSY", |o| {
        o.kind == Kind::Unmount && o.actor.pid == pid && o.path.as_deref() == Some(overlay.at.as_str())
    })?;
    ensure!(outcome == Outcome::Errno(libc::EBUSY), "{told:?} {outcome:?}");
    // It ends when it cannot.
    shim.child.wait()?;
    watch.wait("the end of the shim", 30, |told| {
        let gone = |body: &Body| matches!(body, Body::ProcessGone { pid: gone } if *gone == pid);
        told.events.iter().any(|event| event.at > at && gone(&event.body)).then_some(())
    })?;
    watch.nothing_in_flight(|o| o.actor.pid == pid)?;
    let strange = watch.look(|told| {
        let kernel = told.events.iter().find_map(|event| match &event.body {
            Body::Ended(o, _) | Body::InFlight(o) if of_kernel(o.kind) && o.seen_by != SeenBy::Uprobe => {
                Some(o)
            }
            _ => None,
        });
        kernel.cloned()
    });
    ensure!(strange.is_none(), "told by what was left out: {strange:?}");
    drop(busy);
    ensure!(umount(&overlay.at, 0) == 0, "the mount is not free again");
    watch.stop()
}
