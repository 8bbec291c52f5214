//! Attaching to one program, in small steps, each of which is looked at before and timed after; and taking off again what
//! costs too much.

use super::{Attacher, Ours, probe};
use crate::{
    bpf::{
        load::{Attached, SITE_BYTES, SiteRequest},
        plan::LEFT_OUT,
    },
    event::{Kind, SeenBy},
    node::{
        procs::{Exe, FileId},
        residency::{Pinned, Residency, pin, residency},
    },
    warden::{Ladder, binaries::Target, cost::PAGE, fuse::Blown, guard, protocol::Level},
};
use std::{
    fs::File,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};
use tracer_common::cookie::Cookie;

/// Sites that are attached at once.
const BATCH: usize = 8;
/// A look at the threads of a program holds for this long.
const LOOK_HOLDS: Duration = Duration::from_millis(100);
/// Looks before a thread that waits is taken for stuck, and the time between them.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// How long that look, or pinning the pages of a batch, may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a target is not attached now.
struct Refused {
    why: String,
    /// Whether it is worth another try.
    again: bool,
}

/// Probes of one kind that were attached together; detached when dropped.
pub(super) struct Fastened {
    kind: Kind,
    _attached: Attached,
}

/// How much a kind of operation is worth when not all can be had: what the chain is made of first.
fn worth(kind: Kind) -> u8 {
    match kind {
        Kind::LockWait => 0,
        Kind::InitMethod => 1,
        Kind::StatusUpdate => 2,
        Kind::CriCall | Kind::Relist => 3,
        Kind::Unmount => 4,
        Kind::ShimCall => 5,
        Kind::ExitHandling => 6,
        Kind::ShimServe => 7,
        Kind::CriClient => 8,
        _ => 9,
    }
}

/// Splits what is to be attached into batches of one kind and few sites, the most valuable first. A target is never
/// split: an end without its begin, or the reverse, would tell wrong times.
fn batches(mut targets: Vec<Target>) -> Vec<Vec<Target>> {
    let sites = |target: &Target| target.sites.as_ref().map_or(0, Vec::len);
    targets.sort_by_key(|target| (worth(target.kind), target.kind));
    let mut batches: Vec<Vec<Target>> = Vec::new();
    for target in targets {
        match batches.last_mut() {
            Some(batch)
                if batch.first().is_some_and(|first| first.kind == target.kind)
                    && batch.iter().map(sites).sum::<usize>() + sites(&target) <= BATCH =>
            {
                batch.push(target);
            }
            _ => batches.push(vec![target]),
        }
    }
    batches
}

impl Attacher {
    /// Attaches what can be attached without touching the disk and without waiting for anybody; the rest is off with its
    /// reason. Says whether the file has something else at a site than what was found there when it was read.
    pub(super) fn attach(&mut self, ours: &mut Ours, id: FileId, file: &File, targets: Vec<Target>) -> bool {
        let (mut wanted, mut differs) = (Vec::new(), false);
        for target in targets {
            match self.wanted(ours, &target) {
                Ok(()) => wanted.push(target),
                Err(why) => ours.probes.push(probe(&target, None, 0, why)),
            }
        }
        let pids: Vec<u32> =
            self.processes.iter().filter(|p| p.exe == Exe::File(id)).map(|p| p.pid).collect();
        let mut looked: Option<Instant> = None;
        for batch in batches(wanted) {
            let admitted = self.admit(&pids, &mut looked);
            ours.soon |= admitted.is_err();
            let pinned = match &admitted {
                Ok(()) => self.pin(file, &batch),
                Err(_) => Vec::new(),
            };
            let mut ready: Vec<Target> = Vec::new();
            let mut pins: Vec<Pinned> = Vec::new();
            for (at, target) in batch.into_iter().enumerate() {
                let refused = match (&admitted, pinned.get(at)) {
                    (Err(why), _) => Refused { why: why.clone(), again: true },
                    (Ok(()), Some(Err(refused))) => {
                        Refused { why: refused.why.clone(), again: refused.again }
                    }
                    _ => {
                        ready.push(target);
                        continue;
                    }
                };
                differs |= !refused.again;
                ours.probes.push(probe(&target, None, 0, refused.why));
                if refused.again {
                    ours.waiting.push(target);
                }
            }
            pins.extend(pinned.into_iter().filter_map(Result::ok).flatten());
            if !ready.is_empty() {
                self.fasten(ours, file, ready);
            }
            // Only now may the pages go.
            drop(pins);
        }
        differs
    }

    /// Whether a target is to be probed at all, or why not.
    fn wanted(&self, ours: &Ours, target: &Target) -> Result<(), String> {
        if let Some(reason) = self.features.as_ref().and_then(|f| f.uprobes.reason()) {
            return Err(reason.to_owned());
        }
        if let Some(reason) = &self.known_bad {
            return Err(reason.clone());
        }
        // As high as it must be: what sees no unmount sees nothing begin.
        let needed = self.settings.patrol && target.kind == Kind::Unmount && !self.kernel_sees_unmounts;
        if self.settings.ladder != Ladder::All && !needed {
            let instead = if self.settings.patrol { ", but to look at them from outside" } else { "" };
            return Err(format!("--probes says not to probe programs{instead}"));
        }
        if target.kind == Kind::Unmount && self.kernel_sees_unmounts {
            return Err("not needed: a kernel probe sees every unmount".into());
        }
        if target.kind == Kind::Unmount && self.settings.without.contains(&SeenBy::Uprobe) {
            let tracepoint = self.features.as_ref().is_some_and(|f| f.syscall_tracepoints.yes())
                && !self.settings.without.contains(&SeenBy::Tracepoint);
            let seen = "not needed: a tracepoint sees every unmount, and this is ";
            return Err(format!("{}{LEFT_OUT}", if tracepoint { seen } else { "" }));
        }
        if let Some(why) = ours.blown.get(&target.kind) {
            return Err(why.clone());
        }
        target.sites.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Whether attaching to these processes would wait for anybody, or has been slow.
    fn admit(&mut self, pids: &[u32], looked: &mut Option<Instant>) -> Result<(), String> {
        let now = Instant::now();
        let again = |why: &str| format!("{why}; tried again every second");
        if let Some(why) = self.pace.refusal(now) {
            return Err(again(why));
        }
        if looked.is_some_and(|at| now.duration_since(at) < LOOK_HOLDS) {
            return Ok(());
        }
        let pids = pids.to_vec();
        // A healthy program faults, too, for moments.
        let look = move || {
            for _ in 1..LOOKS {
                if guard::look(&pids).is_ok() {
                    return Ok(());
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
            guard::look(&pids)
        };
        match self.readers.run(PATIENCE, look) {
            Ok(Ok(())) => {
                *looked = Some(now);
                Ok(())
            }
            Ok(Err(why)) => Err(again(&why)),
            Err(error) => {
                Err(again(&format!("whether its threads wait for the disk cannot be told: {error}")))
            }
        }
    }

    /// Pins the pages of all sites of a batch, target by target, so that they cannot leave while the kernel reads them.
    /// A survey only looks.
    fn pin(&self, file: &File, batch: &[Target]) -> Vec<Result<Vec<Pinned>, Refused>> {
        let refused = |site: &SiteRequest, state: Residency| {
            let why = match state {
                Residency::Unknown(why) => format!("whether its page is in memory cannot be told: {why}"),
                Residency::NotResident | Residency::Resident => format!(
                    "its page (file offset {:#x}) is not in memory; probing it would read the disk while holding a lock \
                     that every fork() needs; tried again every {} s",
                    site.offset,
                    super::RETRY_AFTER
                ),
            };
            Refused { why, again: true }
        };
        let sites = |target: &Target| target.sites.clone().unwrap_or_default();
        if self.kernel.is_none() {
            let look = |site: &SiteRequest| match residency(file, site.offset, 1) {
                Residency::Resident => Ok(()),
                state => Err(refused(site, state)),
            };
            return batch.iter().map(|t| sites(t).iter().try_for_each(look).map(|()| Vec::new())).collect();
        }
        let all: Vec<Vec<SiteRequest>> = batch.iter().map(sites).collect();
        let unable = |why: String| Refused { why, again: true };
        let pinned = file.try_clone().map_err(|error| error.to_string()).and_then(|file| {
            let one = move |site: &SiteRequest| match pin(&file, site.offset, SITE_BYTES as u64) {
                Ok(pinned) if site.bytes.starts_with(pinned.bytes()) => Ok(pinned),
                Ok(_) => Err(Refused {
                    why: format!("its file has other code at offset {:#x} than was read there", site.offset),
                    again: false,
                }),
                Err(state) => Err(refused(site, state)),
            };
            let job = move || all.iter().map(|sites| sites.iter().map(&one).collect()).collect();
            self.readers.run(PATIENCE, job).map_err(|error| error.to_string())
        });
        pinned.unwrap_or_else(|why| {
            let why = format!("its pages could not be pinned: {why}");
            batch.iter().map(|_| Err(unable(why.clone()))).collect()
        })
    }

    /// Attaches a batch whose pages are pinned.
    fn fasten(&mut self, ours: &mut Ours, file: &File, batch: Vec<Target>) {
        let on = |target: &Target| {
            let sites = target.sites.as_ref().map_or(0, Vec::len);
            probe(target, Some(SeenBy::Uprobe), sites, String::new())
        };
        let pages = |target: &Target| -> Vec<u64> {
            target.sites.iter().flatten().map(|site| site.offset / PAGE).collect()
        };
        if self.kernel.is_none() {
            // A survey: what would be attached counts as on.
            ours.pages.extend(batch.iter().flat_map(pages));
            ours.probes.extend(batch.iter().map(on));
            return;
        }
        if self.link(ours, file, &batch).is_ok() {
            ours.pages.extend(batch.iter().flat_map(pages));
            ours.probes.extend(batch.iter().map(on));
            return;
        }
        // One bad site refuses them all; one by one tells which.
        for target in &batch {
            match self.link(ours, file, std::slice::from_ref(target)) {
                Ok(()) => {
                    ours.pages.extend(pages(target));
                    ours.probes.push(on(target));
                }
                Err(error) => ours.probes.push(probe(target, None, 0, format!("{error:#}"))),
            }
        }
    }

    fn link(&mut self, ours: &mut Ours, file: &File, batch: &[Target]) -> anyhow::Result<()> {
        let (Some(kernel), Some(first)) = (self.kernel.as_mut(), batch.first()) else { return Ok(()) };
        let metered = |site: &SiteRequest| SiteRequest {
            cookie: Cookie(site.cookie).with_meter(ours.meter, site.stepped).0,
            ..*site
        };
        let sites: Vec<SiteRequest> =
            batch.iter().flat_map(|target| target.sites.iter().flatten()).map(metered).collect();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let what = format!("{} ({} sites, {:?})", ours.comm, sites.len(), first.kind);
        let (attached, begin, end) = self.shared.touch(what.clone(), || {
            let begin = Instant::now();
            (kernel.attach_uprobes(&path, ours.number, &sites), begin, Instant::now())
        });
        self.pace.took(&what, end - begin, end);
        ours.attached.push(Fastened { kind: first.kind, _attached: attached? });
        Ok(())
    }

    /// Takes off what the fuse says, for the rest of this run.
    pub(super) fn take_off(&mut self, blown: &Blown) {
        let mut lines = Vec::new();
        for binary in self.binaries.values_mut() {
            let super::Binary::Ours(ours) = binary else { continue };
            if ours.meter != blown.meter {
                continue;
            }
            let limit = self.settings.max_target_cost.unwrap_or(u32::MAX);
            let why = format!(
                "taken off for the rest of this run: probes took {} of a core from {} (--max-target-cost {})",
                percent(blown.share_ppm),
                ours.comm,
                percent(limit)
            );
            let gone = |kind: &Kind| blown.kinds.contains(kind);
            let what = format!("detaching from {}", ours.comm);
            self.shared.let_go(what, || ours.attached.retain(|fastened| !gone(&fastened.kind)));
            ours.waiting.retain(|target| !gone(&target.kind));
            ours.blown.extend(blown.kinds.iter().map(|kind| (*kind, why.clone())));
            let mut names = Vec::new();
            for probe in &mut ours.probes {
                let of =
                    ours.examined.targets.iter().find(|t| t.what == probe.what && t.function == probe.target);
                if of.is_some_and(|target| gone(&target.kind)) && probe.how.take().is_some() {
                    (probe.sites, probe.emulated, probe.note) = (0, 0, why.clone());
                    names.push(probe.what.clone());
                }
            }
            lines.push(format!("{why}: {}", names.join(", ")));
        }
        for line in lines {
            self.outbox.log(Level::Warning, line);
        }
    }
}

/// Millionths as people read them.
fn percent(ppm: u32) -> String {
    let text = format!("{:.4}", f64::from(ppm) / 10_000.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::load::GoProgram;

    fn target(kind: Kind, name: &str, sites: usize) -> Target {
        let site = SiteRequest {
            program: GoProgram::Operation,
            offset: 0,
            address: 0,
            cookie: 0,
            bytes: [0; SITE_BYTES],
            stepped: false,
        };
        Target {
            kind,
            what: name.into(),
            function: name.into(),
            sites: Ok(vec![site; sites]),
            emulated: 0,
            note: String::new(),
        }
    }

    #[test]
    fn batches_are_small_of_one_kind_and_the_most_valuable_come_first() {
        let targets = vec![
            target(Kind::LockHold, "Lock", 1),
            target(Kind::CriCall, "a", 3),
            target(Kind::CriCall, "b", 4),
            target(Kind::CriCall, "c", 2),
            target(Kind::CriCall, "d", 30),
            target(Kind::LockWait, "semacquire1", 4),
            target(Kind::LockWait, "readyWithTime", 1),
            target(Kind::Relist, "relist", 2),
        ];
        let seen: Vec<Vec<String>> =
            batches(targets).iter().map(|b| b.iter().map(|t| t.what.clone()).collect()).collect();
        let expected: [&[&str]; 6] =
            [&["semacquire1", "readyWithTime"], &["relist"], &["a", "b"], &["c"], &["d"], &["Lock"]];
        assert_eq!(seen, expected);
    }

    #[test]
    fn shares_are_told_without_needless_digits() {
        assert_eq!([20_000, 100, 1, 1_234_567].map(percent), ["2 %", "0.01 %", "0.0001 %", "123.4567 %"]);
    }
}
