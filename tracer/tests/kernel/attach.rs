//! What the kernel offers, and whether what was planned is what is attached.

use super::{
    hostile::{doctor, plain},
    locks::Program,
    machine,
    restarts::SHIM,
    watch::Watch,
};
use anyhow::{Context as _, Result, ensure};
use std::{collections::BTreeSet, os::fd::AsRawFd as _};
use tracer::{
    bpf::{
        features::{Answer, Features},
        load::{GoProgram, Kernel, SITE_BYTES, SiteRequest},
        plan::{self, Probe},
    },
    event::SeenBy,
    node::own,
    warden::Settings,
};

/// From this version on every kernel preempts itself; Debian's cloud kernels before do not.
const PREEMPTS: (u32, u32) = (7, 0);

/// Against the versions in which the kernel got each of them (Debian's kernels are not backports).
pub fn features_are_those_of_this_kernel() -> Result<()> {
    let features = Features::detect();
    let since = |version: (u32, u32)| machine::kernel() >= version;
    for (name, answer, expected) in [
        ("bpf", &features.bpf, true),
        ("btf", &features.btf, true),
        ("trampolines", &features.trampolines, true),
        ("kprobes", &features.kprobes, true),
        ("uprobes", &features.uprobes, true),
        ("ring_buffer", &features.ring_buffer, true),
        ("kernel_memory", &features.kernel_memory, true),
        ("syscall_tracepoints", &features.syscall_tracepoints, true),
        ("cookies", &features.cookies, since((5, 15))),
        ("uprobe_multi", &features.uprobe_multi, since((6, 6))),
    ] {
        ensure!(answer.yes() == expected, "{name} is {answer:?} on {}", features.kernel);
    }
    ensure!(features.preempts == since(PREEMPTS), "preempts is {} on {}", features.preempts, features.kernel);
    // `pt_regs` is user ABI on x86-64 (arch/x86/include/uapi/asm/ptrace.h).
    ensure!(features.offset("OFF_REGS_DI") == Some(112), "{:?}", features.offsets);
    ensure!(features.offset("OFF_REGS_ORIG_AX") == Some(120), "{:?}", features.offsets);
    ensure!(features.offsets.len() == 8, "{:?}", features.offsets);
    Ok(())
}

/// How the functions of this kernel should be seen.
pub fn best_way() -> SeenBy {
    if machine::kernel() >= PREEMPTS { SeenBy::Kprobe } else { SeenBy::Fentry }
}

/// The best way of each sight, and nothing else, is attached; and it is the one that this kernel should allow. What is
/// attached to a program is what doctor has said, site by site.
pub fn every_probe_attaches_as_planned() -> Result<()> {
    let shim = Program::of(SHIM)?;
    let said = doctor(&mut plain())?.0;
    let said: Vec<Probe> = serde_json::from_value(said["survey"]["probes"].clone())?;
    let planned = plan::kernel(&Features::detect(), &[]);
    let watch = Watch::start(Settings { also: vec![shim.pid()], ..Settings::default() })?;
    let survey = watch.wait("a survey", 20, |told| told.survey.clone())?;
    for sight in &planned {
        let best = sight.ways.first().map(|way| way.how);
        let expected = if sight.what.starts_with("process") { SeenBy::Tracepoint } else { best_way() };
        let probe = survey.probes.iter().find(|probe| probe.what == sight.what);
        let how = probe.and_then(|probe| probe.how);
        ensure!(how == Some(expected) && best == how, "{}: planned {best:?}, attached {probe:?}", sight.what);
        // Weaker than elsewhere is only this, and it is said.
        let weaker = sight.what == plan::SYNC_SIGHT && machine::kernel() < (6, 1);
        let note = probe.map_or("", |probe| &probe.note);
        ensure!(note == if weaker { plan::SYNCFS_UNSEEN } else { "" }, "{probe:?}");
        let planned = sight.planned(&Features::detect().kernel);
        ensure!(planned.note.contains("syncfs(2)") == weaker, "doctor would say {planned:?}");
    }
    let probes = |all: &[Probe]| -> BTreeSet<_> {
        let what = |p: &Probe| (p.what.clone(), p.target.clone(), p.how, p.sites, p.emulated);
        all.iter().map(what).collect()
    };
    let attached = watch.look(|told| told.survey.as_ref().map(|survey| probes(&survey.probes)));
    let (said, attached) = (probes(&said), attached.context("no survey")?);
    let differ: Vec<_> = said.symmetric_difference(&attached).collect();
    ensure!(differ.is_empty() && said.len() > 25, "{} probes planned; not in both: {differ:#?}", said.len());
    watch.stop()
}

/// A kernel half for links of many and one for links of one each, in one process, in either order: neither spoils the
/// other's map of programs, which takes programs of one attach type only.
pub fn both_kinds_of_links() -> Result<()> {
    let features = Features::detect();
    let single = Features { uprobe_multi: Answer::No("forced".into()), ..features.clone() };
    for order in [[&features, &single], [&single, &features]] {
        let mut kernels = Vec::new();
        for features in order {
            let mut kernel = Kernel::load(features, false)?;
            // A function of this program that nobody calls while it is probed.
            let address = (both_kinds_of_links as fn() -> Result<()>) as usize as u64;
            let offset = own::file_offset(address).context("finding our own code")?;
            let programs =
                [GoProgram::LockWaitEnd, GoProgram::LockWait, GoProgram::WriteLock, GoProgram::Wake];
            let sites = programs.map(|program| SiteRequest {
                program,
                offset,
                address,
                cookie: 0,
                bytes: [0; SITE_BYTES],
                stepped: false,
            });
            let attached = kernel.attach_uprobes("/proc/self/exe", 1, &sites)?;
            let link = attached.0.first().context("no link")?;
            let link = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
            let many = link.contains("uprobe_multi");
            ensure!(many == features.uprobe_multi.yes(), "links of many: {many}");
            kernels.push((kernel, attached));
        }
    }
    machine::no_probe_is_left()
}

/// Also those that are attached only where others cannot be.
pub fn the_verifier_takes_every_program() -> Result<()> {
    let features = Features::detect();
    let costs = Kernel::load(&features, false)?.verifier_costs(&features)?;
    ensure!(costs.len() == 29, "{} programs: {:?}", costs.len(), costs.keys());
    for (program, cost) in costs {
        match cost {
            Ok(count) => println!("cost {program} {count}"),
            Err(error) => anyhow::bail!("{program}: {error}"),
        }
    }
    Ok(())
}
