//! What is known of the node beside operations: processes, containers, locks, threads, devices, blind spots, losses.

use super::frame::{BlindSpot, DeviceName, DeviceState, LockKind, Loss, Memory, Program, Subject, Who};
use super::limits;
use super::pressure::Pressures;
use crate::event::{
    Actor, Body, Container, Device, DeviceFacts, Event, GoroutineSite, KubeletFacts, LockName, LossPoint, Ns,
    OTHERS_ONLY, Operation, Pins, Process, ProgramCost, Role, ThreadSite, Writers,
};
use std::collections::{BTreeMap, VecDeque};

/// Facts, each kind bounded.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    processes: BTreeMap<u32, Process>,
    /// The programs that they run, counted again when it is asked for after a change.
    programs: Option<Vec<Program>>,
    /// Processes that are gone: pid, and when.
    gone: BTreeMap<u32, Ns>,
    containers: BTreeMap<String, (u64, Container)>,
    locks: BTreeMap<(u32, u64), (LockName, Ns)>,
    sites: BTreeMap<(u32, u32), (Ns, ThreadSite)>,
    goroutines: BTreeMap<(u32, u64), (Ns, GoroutineSite)>,
    devices: BTreeMap<Device, Sampled>,
    /// Node-wide memory waiting to be written.
    pub memory: Option<Memory>,
    /// What it was at a time about [`limits::GROWTH_OVER`] ago, and when.
    memory_before: Option<(Ns, u64)>,
    /// How much everybody waits for what the node is short of.
    pub pressures: Pressures,
    losses: BTreeMap<LossPoint, u64>,
    blind: BTreeMap<String, String>,
    costs: BTreeMap<String, ProgramCost>,
    /// Shims that are left over, and since when that is known.
    leaked: BTreeMap<u32, (Ns, String)>,
    /// The kubelets by pid.
    kubelets: BTreeMap<u32, KubeletFacts>,
    /// The last two samples of who has memory to write.
    pub writers: [Option<(Ns, Writers)>; 2],
    pins: BTreeMap<String, (Ns, Pins)>,
    sequence: u64,
    /// Facts left out, by what, because a collection was full.
    pub dropped: BTreeMap<(&'static str, usize), u64>,
}

#[derive(Clone, Debug)]
struct Sampled {
    facts: DeviceFacts,
    /// Samples of the sectors written since boot, the oldest first: never empty.
    written: VecDeque<(Ns, u64)>,
}

impl Sampled {
    fn sample(&mut self, facts: &DeviceFacts, at: Ns) {
        if self.written.back().is_some_and(|(last, _)| *last >= at) {
            return;
        }
        self.facts = facts.clone();
        if self.written.back().is_some_and(|(_, before)| *before > facts.sectors_written) {
            self.written.clear(); // Another device has that number by now.
        }
        self.written.push_back((at, facts.sectors_written));
        let old = |(from, _): &(Ns, u64)| from.saturating_add(limits::RATE_OVER) < at;
        while self.written.len() > limits::RATE_SAMPLES || (self.written.len() > 2 && old(&self.written[0])) {
            self.written.pop_front();
        }
    }

    fn rate(&self) -> Option<u64> {
        let ((from, before), (to, now)) = (self.written.front()?, self.written.back()?);
        let span = u128::from(to.checked_sub(*from).filter(|span| *span > 0)?);
        let bytes = u128::from(now.saturating_sub(*before)) * 512;
        Some(u64::try_from(bytes * 1_000_000_000 / span).unwrap_or(u64::MAX))
    }
}

impl Facts {
    /// All of it as events that make others know it too; what has no time of its own is told as of `now`. Losses are not
    /// told: they were before.
    pub fn all_known(&self, now: Ns) -> Vec<Event> {
        let told = |body| Event { at: now, body };
        let then = |at: Ns, body| Event { at, body };
        let mut all: Vec<Event> = Vec::new();
        all.extend(self.gone.iter().map(|(&pid, &at)| then(at, Body::ProcessGone { pid })));
        all.extend(self.processes.values().map(|p| told(Body::Process(p.clone()))));
        let mut containers: Vec<&(u64, Container)> = self.containers.values().collect();
        containers.sort_by_key(|(sequence, _)| *sequence);
        all.extend(containers.into_iter().map(|(_, c)| told(Body::Container(c.clone()))));
        all.extend(self.locks.iter().map(|(&(pid, base), (lock, at))| {
            then(*at, Body::LockIdentity { pid, base, lock: lock.clone() })
        }));
        all.extend(self.sites.values().map(|(at, site)| then(*at, Body::ThreadSite(site.clone()))));
        all.extend(self.goroutines.values().map(|(at, site)| then(*at, Body::GoroutineSite(site.clone()))));
        for Sampled { facts, written } in self.devices.values() {
            all.extend(written.iter().map(|&(at, sectors_written)| {
                then(at, Body::Device(DeviceFacts { sectors_written, ..facts.clone() }))
            }));
        }
        all.extend(self.memory.map(|Memory { dirty, writeback }| told(Body::Memory { dirty, writeback })));
        all.extend(self.pressures.all_known());
        all.extend(
            self.blind
                .iter()
                .map(|(what, reason)| told(Body::BlindSpot { what: what.clone(), reason: reason.clone() })),
        );
        all.extend(self.costs.values().map(|cost| told(Body::Cost(cost.clone()))));
        all.extend(
            self.leaked.iter().map(|(&pid, (at, id))| then(*at, Body::LeakedShim { pid, id: id.clone() })),
        );
        all.extend(self.kubelets.values().map(|k| told(Body::Kubelet(k.clone()))));
        let writers = self.writers.iter().rev().flatten();
        all.extend(writers.map(|(at, writers)| then(*at, Body::Writers(writers.clone()))));
        all.extend(self.pins.values().map(|(at, pins)| then(*at, Body::Pins(pins.clone()))));
        all
    }

    fn drop_one(&mut self, what: &'static str, limit: usize) {
        let count = self.dropped.entry((what, limit)).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// A process is there. Returns since when, if it replaces an earlier one of the same pid.
    pub fn process(&mut self, process: &Process, at: Ns) -> Option<Ns> {
        if self.gone.get(&process.pid).is_some_and(|&gone| process.started < gone && at <= gone) {
            return None; // A late report of a process that is gone.
        }
        let reused = match self.processes.get(&process.pid) {
            Some(known) if known.started > process.started => return None,
            Some(known) => (known.started < process.started).then_some(process.started),
            None => Some(process.started),
        };
        if !self.processes.contains_key(&process.pid) && self.processes.len() >= limits::PROCESSES {
            self.drop_one("processes", limits::PROCESSES);
            return reused;
        }
        self.processes.insert(process.pid, process.clone());
        self.programs = None;
        reused
    }

    /// A process is gone.
    pub fn process_gone(&mut self, pid: u32, at: Ns) {
        if self.processes.get(&pid).is_some_and(|p| p.started >= at) {
            return; // Another process has that pid by now.
        }
        self.processes.remove(&pid);
        self.programs = None;
        self.leaked.remove(&pid);
        self.kubelets.remove(&pid);
        let locks: Vec<(u32, u64)> = self.locks.range((pid, 0)..=(pid, u64::MAX)).map(|(k, _)| *k).collect();
        for lock in locks {
            self.locks.remove(&lock);
        }
        let sites: Vec<(u32, u32)> = self.sites.range((pid, 0)..=(pid, u32::MAX)).map(|(k, _)| *k).collect();
        for site in sites {
            self.sites.remove(&site);
        }
        let when = self.gone.get(&pid).map_or(at, |&before| before.max(at));
        if self.gone.len() >= limits::GONE && !self.gone.contains_key(&pid) {
            let oldest = self.gone.iter().min_by_key(|(pid, at)| (**at, **pid)).map(|(pid, _)| *pid);
            if let Some(oldest) = oldest {
                self.gone.remove(&oldest);
            }
            self.drop_one("gone processes", limits::GONE);
        }
        self.gone.insert(pid, when);
    }

    /// Whether this operation belongs to a process that is over: the pid's process has gone or has been replaced since.
    pub fn is_of_the_past(&self, op: &Operation) -> bool {
        let pid = op.actor.pid;
        self.gone.get(&pid).is_some_and(|&gone| op.begin < gone)
            || self.processes.get(&pid).is_some_and(|p| op.begin < p.started)
    }

    /// Whether this process was here and has gone, and no other has its pid.
    pub fn is_gone(&self, pid: u32) -> bool {
        self.gone.contains_key(&pid) && !self.processes.contains_key(&pid)
    }

    /// A container is there, or more is known of it.
    pub fn container(&mut self, container: &Container) {
        self.sequence = self.sequence.saturating_add(1);
        if let Some((sequence, known)) = self.containers.get_mut(&container.id) {
            *sequence = self.sequence;
            merge(known, container);
            return;
        }
        let is_gone = |c: &Container| c.shim.is_some_and(|pid| self.gone.contains_key(&pid));
        let gone = self.containers.values().filter(|(_, c)| is_gone(c)).count();
        let full = self.containers.len() >= limits::CONTAINERS;
        if full || gone >= limits::GONE_CONTAINERS {
            // The shim of a removed pod is gone: those go first, the longest known first.
            let victim = self
                .containers
                .iter()
                .min_by_key(|(id, (sequence, c))| (!is_gone(c), *sequence, id.as_str()))
                .map(|(id, _)| id.clone());
            if let Some(victim) = victim {
                self.containers.remove(&victim);
            }
        }
        if full {
            self.drop_one("containers", limits::CONTAINERS);
        }
        self.containers.insert(container.id.clone(), (self.sequence, container.clone()));
    }

    /// Whose lock an address is.
    pub fn lock(&mut self, pid: u32, base: u64, name: &LockName, at: Ns) {
        if self.locks.len() >= limits::LOCKS && !self.locks.contains_key(&(pid, base)) {
            self.drop_one("lock identities", limits::LOCKS);
            return;
        }
        self.locks.insert((pid, base), (name.clone(), at));
    }

    /// Forgets locks that no operation in flight has referred to for [`limits::LOCK_GRACE`]: their memory may hold
    /// something else by now.
    pub fn forget_locks(&mut self, now: Ns, mut referred: impl FnMut(u32, u64) -> bool) {
        self.locks.retain(|&(pid, base), (_, at)| {
            if referred(pid, base) {
                *at = (*at).max(now);
            }
            at.saturating_add(limits::LOCK_GRACE) >= now
        });
    }

    /// Whose lock this is.
    pub fn lock_name(&self, pid: u32, base: u64) -> Option<(LockKind, &str)> {
        self.locks.get(&(pid, base)).map(|(name, _)| match name {
            LockName::Status(id) => (LockKind::Status, id.as_str()),
            LockName::Init(id) => (LockKind::Init, id.as_str()),
        })
    }

    /// Where a thread sits.
    pub fn site(&mut self, site: &ThreadSite, at: Ns) {
        let key = (site.pid, site.tid);
        if self.sites.get(&key).is_some_and(|(seen, _)| *seen > at) {
            return;
        }
        if self.sites.len() >= limits::SITES && !self.sites.contains_key(&key) {
            self.drop_one("thread sites", limits::SITES);
            return;
        }
        self.sites.insert(key, (at, site.clone()));
    }

    /// Where a goroutine sits.
    pub fn goroutine(&mut self, site: &GoroutineSite, at: Ns) {
        let Some(g) = site.actor.g else { return };
        let key = (site.actor.pid, g);
        if self.goroutines.len() >= limits::SITES && !self.goroutines.contains_key(&key) {
            self.drop_one("goroutines", limits::SITES);
            return;
        }
        self.goroutines.insert(key, (at, site.clone()));
    }

    /// Where this goroutine sat when it was last looked at, if that was since `since`.
    pub fn goroutine_of(&self, actor: &Actor, since: Ns) -> Option<&GoroutineSite> {
        let (at, site) = self.goroutines.get(&(actor.pid, actor.g?))?;
        (*at >= since && site.actor.is(actor)).then_some(site)
    }

    /// Where this thread sits, if that was seen after `since`.
    pub fn site_of(&self, pid: u32, tid: u32, since: Ns) -> Option<&ThreadSite> {
        self.sites.get(&(pid, tid)).filter(|(at, _)| *at >= since).map(|(_, site)| site)
    }

    /// Where the threads of a process sit, as far as that was seen after `since`.
    pub fn sites_of(&self, pid: u32, since: Ns) -> impl Iterator<Item = &ThreadSite> {
        self.sites
            .range((pid, 0)..=(pid, u32::MAX))
            .filter(move |(_, (at, _))| *at >= since)
            .map(|(_, (_, site))| site)
    }

    /// Forgets where threads sat, and who kept a mount busy, when that is not fresh any more.
    pub fn forget_sites(&mut self, now: Ns) {
        self.sites.retain(|_, (at, _)| at.saturating_add(limits::SITE_FRESH) >= now);
        self.goroutines.retain(|_, (at, _)| at.saturating_add(limits::LOOK_FRESH) >= now);
        self.pins.retain(|_, (at, _)| at.saturating_add(limits::PINS_FRESH) >= now);
    }

    /// What is known of a device, with a new sample of what it has written.
    pub fn device(&mut self, facts: &DeviceFacts, at: Ns) {
        if let Some(known) = self.devices.get_mut(&facts.device) {
            known.sample(facts, at);
            return;
        }
        if self.devices.len() >= limits::DEVICES {
            self.drop_one("devices", limits::DEVICES);
            return;
        }
        let written = VecDeque::from([(at, facts.sectors_written)]);
        self.devices.insert(facts.device, Sampled { facts: facts.clone(), written });
    }

    /// A device by its name.
    pub fn device_name(&self, device: Device) -> DeviceName {
        DeviceName { device, name: self.devices.get(&device).map(|d| d.facts.name.clone()) }
    }

    /// Bytes per second this device wrote over the last [`limits::RATE_OVER`], as far as it was sampled.
    pub fn device_rate(&self, device: Device) -> Option<u64> {
        self.devices.get(&device).and_then(Sampled::rate)
    }

    /// All devices.
    pub fn device_states(&self) -> Vec<DeviceState> {
        self.devices
            .keys()
            .map(|&d| DeviceState { device: self.device_name(d), bytes_per_second: self.device_rate(d) })
            .collect()
    }

    /// What looking costs a program.
    pub fn cost(&mut self, cost: &ProgramCost) {
        if self.costs.len() >= limits::COSTS && !self.costs.contains_key(&cost.comm) {
            self.drop_one("costs of programs", limits::COSTS);
            return;
        }
        self.costs.insert(cost.comm.clone(), cost.clone());
    }

    /// What looking costs all programs.
    pub fn costs(&self) -> Vec<ProgramCost> {
        self.costs.values().cloned().collect()
    }

    /// A shim is left over.
    pub fn leaked_shim(&mut self, pid: u32, id: &str, at: Ns) {
        if self.leaked.get(&pid).is_some_and(|(_, known)| known == id) {
            return;
        }
        if self.leaked.len() >= limits::LEAKED_SHIMS && !self.leaked.contains_key(&pid) {
            self.drop_one("leaked shims", limits::LEAKED_SHIMS);
            return;
        }
        self.leaked.insert(pid, (at, id.to_owned()));
    }

    /// Shims of which it is known since `since` that they are left over, and the containers they were started for.
    pub fn leaked_since(&self, since: Ns) -> impl Iterator<Item = (u32, &str)> {
        self.leaked.iter().filter(move |(_, (at, _))| *at >= since).map(|(pid, (_, id))| (*pid, id.as_str()))
    }

    /// How many shims are left over.
    pub fn leaked_total(&self) -> u64 {
        self.leaked.len() as u64
    }

    /// Shims that are left over.
    pub fn leaked_shims(&self) -> Vec<(u32, Subject)> {
        let shown = self.leaked.iter().take(limits::SUBJECTS_SHOWN);
        shown.map(|(pid, (_, id))| (*pid, self.subject(id))).collect()
    }

    /// What a kubelet really uses.
    pub fn kubelet(&mut self, kubelet: &KubeletFacts) {
        // A node has one; a few in tests.
        if self.kubelets.len() < 8 || self.kubelets.contains_key(&kubelet.pid) {
            self.kubelets.insert(kubelet.pid, kubelet.clone());
        }
    }

    /// What this kubelet really uses; without a process, the only one that is known.
    pub fn kubelet_of(&self, pid: Option<u32>) -> Option<&KubeletFacts> {
        match pid {
            Some(pid) => self.kubelets.get(&pid),
            None => self.kubelets.values().next().filter(|_| self.kubelets.len() == 1),
        }
    }

    /// Memory waiting to be written, as of now.
    pub fn unwritten(&mut self, memory: Memory, at: Ns) {
        let sum = memory.dirty.saturating_add(memory.writeback);
        self.memory = Some(memory);
        if self.memory_before.is_none_or(|(then, _)| at.saturating_sub(then) >= 2 * limits::GROWTH_OVER) {
            self.memory_before = Some((at, sum));
        }
    }

    /// By how much that memory has grown over the last seconds; `None` when it has not, or that is not known.
    pub fn memory_growth(&self) -> Option<u64> {
        let memory = self.memory?;
        let (_, before) = self.memory_before?;
        memory.dirty.saturating_add(memory.writeback).checked_sub(before).filter(|grown| *grown > 0)
    }

    /// Who has memory to write.
    pub fn writers(&mut self, writers: &Writers, at: Ns) {
        if self.writers[0].as_ref().is_none_or(|(last, _)| *last < at) {
            self.writers[1] = self.writers[0].replace((at, writers.clone()));
        }
    }

    /// Who keeps a mount busy.
    pub fn pins(&mut self, pins: &Pins, at: Ns) {
        if self.pins.len() >= limits::FAILED_UNMOUNTS && !self.pins.contains_key(&pins.path) {
            self.drop_one("busy mounts", limits::FAILED_UNMOUNTS);
            return;
        }
        self.pins.insert(pins.path.clone(), (at, pins.clone()));
    }

    /// Who keeps this mount busy, if that was looked at after `since`.
    pub fn pins_of(&self, path: &str, since: Ns) -> Option<&Pins> {
        self.pins.get(path).filter(|(at, _)| *at >= since).map(|(_, pins)| pins)
    }

    /// Records were lost.
    pub fn lost(&mut self, at: LossPoint, count: u64) {
        let sum = self.losses.entry(at).or_insert(0);
        *sum = sum.saturating_add(count);
    }

    /// All losses so far.
    pub fn losses(&self) -> Vec<Loss> {
        self.losses.iter().map(|(&at, &count)| Loss { at, count }).collect()
    }

    /// Something cannot be seen, or can be seen again.
    pub fn blind_spot(&mut self, what: &str, reason: &str) {
        if reason.is_empty() {
            self.blind.remove(what);
        } else if self.blind.len() >= limits::BLIND_SPOTS && !self.blind.contains_key(what) {
            self.drop_one("blind spots", limits::BLIND_SPOTS);
        } else {
            self.blind.insert(what.to_owned(), reason.to_owned());
        }
    }

    /// All blind spots.
    pub fn blind_spots(&self) -> Vec<BlindSpot> {
        self.blind.iter().map(|(w, r)| BlindSpot { what: w.clone(), reason: r.clone() }).collect()
    }

    /// Why something of containerd or its shims cannot be seen whose name has these words in it (`lock` is in `lock waits
    /// in shims`, not in `block device`), if it cannot.
    pub fn blind_to(&self, words: &str) -> Option<String> {
        self.blind_where(|what| {
            what.match_indices(words).any(|(at, _)| !what[..at].ends_with(|c: char| c.is_alphanumeric()))
        })
    }

    /// The first thing of containerd or its shims that cannot be seen and is such, and why.
    pub fn blind_where(&self, is_such: impl Fn(&str) -> bool) -> Option<String> {
        let mut ours = self.blind.iter().filter(|(_, reason)| !reason.contains(OTHERS_ONLY));
        ours.find(|(what, _)| is_such(what)).map(|(what, reason)| format!("{what}: {reason}"))
    }

    /// A process by its pid.
    pub fn process_of(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// The version that all processes of this role have; `None` where they differ.
    pub fn version_of(&self, role: Role) -> Option<&str> {
        let mut versions = self.processes.values().filter(|p| p.role == role).map(version);
        let first = versions.next()?;
        versions.all(|other| other == first).then_some(first)
    }

    /// The programs that take part, by role and version.
    pub fn programs(&mut self) -> Vec<Program> {
        let processes = &self.processes;
        self.programs.get_or_insert_with(|| programs(processes.values())).clone()
    }

    /// Processes of this role.
    pub fn pids_of(&self, role: Role) -> impl Iterator<Item = u32> {
        self.processes.values().filter(move |p| p.role == role).map(|p| p.pid)
    }

    /// Whether a process of this role is there.
    pub fn has_role(&self, role: Role) -> bool {
        self.pids_of(role).next().is_some()
    }

    /// Whether no relist can be seen, so that containerd's list calls must stand for it: no kubelet is seen, or its
    /// relist is not probed.
    pub fn relists_unseen(&self) -> bool {
        !self.has_role(Role::Kubelet) || self.blind_to("relist").is_some()
    }

    /// An actor with its process.
    pub fn who(&self, actor: &Actor) -> Who {
        let process = self.processes.get(&actor.pid);
        Who {
            pid: actor.pid,
            tid: actor.tid,
            goid: actor.goid,
            comm: process.map(|p| p.comm.clone()),
            role: process.map(|p| p.role),
        }
    }

    /// What is known of a container.
    pub fn container_of(&self, id: &str) -> Option<&Container> {
        self.containers.get(id).map(|(_, c)| c)
    }

    /// Device and type of the upper file system of all containers whose own is known, if that is one.
    pub fn only_upper(&self) -> Option<&(Device, String)> {
        let mut uppers = self.containers.values().filter_map(|(_, c)| c.upper.as_ref());
        let first = uppers.next()?;
        uppers.all(|upper| upper == first).then_some(first)
    }

    /// A container by name.
    pub fn subject(&self, id: &str) -> Subject {
        match self.container_of(id) {
            Some(c) => Subject {
                id: id.to_owned(),
                namespace: c.namespace.clone(),
                pod: c.pod.clone(),
                container: c.name.clone(),
                sandbox: c.sandbox,
            },
            None => {
                Subject { id: id.to_owned(), namespace: None, pod: None, container: None, sandbox: false }
            }
        }
    }

    /// Sizes of the bounded collections beside their bounds, for tests.
    pub fn sizes(&self) -> [(usize, usize); 10] {
        [
            (self.processes.len(), limits::PROCESSES),
            (self.gone.len(), limits::GONE),
            (self.containers.len(), limits::CONTAINERS),
            (self.locks.len(), limits::LOCKS),
            (self.sites.len(), limits::SITES),
            (self.goroutines.len(), limits::SITES),
            (self.devices.len(), limits::DEVICES),
            (self.blind.len(), limits::BLIND_SPOTS),
            (self.leaked.len(), limits::LEAKED_SHIMS),
            (self.pins.len(), limits::FAILED_UNMOUNTS),
        ]
    }
}

/// The programs of these processes; those of the user's own choice last.
fn programs<'a>(processes: impl Iterator<Item = &'a Process>) -> Vec<Program> {
    let mut all: BTreeMap<(Role, Option<&str>, &str), u32> = BTreeMap::new();
    for p in processes {
        *all.entry((p.role, p.version.as_deref(), &p.go_version)).or_default() += 1;
    }
    all.into_iter()
        .take(limits::PROGRAMS_SHOWN)
        .map(|((role, version, go_version), processes)| Program {
            role,
            version: version.map(str::to_owned),
            go_version: go_version.to_owned(),
            processes,
        })
        .collect()
}

/// The version of a process's program, else that of the Go that built it.
pub fn version(process: &Process) -> &str {
    process.version.as_deref().unwrap_or(&process.go_version)
}

/// Adds what is newly known; a later report without a fact (the bundle was gone) does not take it away.
fn merge(known: &mut Container, report: &Container) {
    fn newer<T: Clone>(known: &mut Option<T>, report: &Option<T>) {
        if report.is_some() {
            known.clone_from(report);
        }
    }
    if !report.runtime_namespace.is_empty() {
        known.runtime_namespace.clone_from(&report.runtime_namespace);
    }
    newer(&mut known.pod, &report.pod);
    newer(&mut known.namespace, &report.namespace);
    newer(&mut known.name, &report.name);
    known.sandbox |= report.sandbox;
    newer(&mut known.shim, &report.shim);
    newer(&mut known.upper, &report.upper);
    newer(&mut known.volatile, &report.volatile);
}

/// The container a mount path belongs to: `…/io.containerd.runtime.v2.task/<namespace>/<id>/rootfs`, or the first path
/// component that is 64 hex digits.
pub fn container_of_path(path: &str) -> Option<&str> {
    let parts: Vec<&str> = path.split('/').collect();
    if let Some(at) = parts.iter().position(|p| *p == "io.containerd.runtime.v2.task")
        && let Some(id) = parts.get(at + 2)
        && !id.is_empty()
    {
        return Some(id);
    }
    parts.into_iter().find(|p| p.len() == 64 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::SECOND;

    #[test]
    fn of_containers_that_are_gone_so_many_are_remembered_and_none_counts_as_left_out() {
        let container = |id: String, shim| Container {
            id,
            runtime_namespace: "k8s.io".into(),
            pod: None,
            namespace: None,
            name: None,
            sandbox: false,
            shim: Some(shim),
            upper: None,
            volatile: None,
        };
        let mut facts = Facts::default();
        let lives = 1_000_000;
        facts.container(&container("lives".into(), lives));
        let all = u32::try_from(limits::GONE_CONTAINERS).unwrap() + 100;
        for shim in 0..all {
            facts.container(&container(format!("c{shim}"), shim));
            facts.process_gone(shim, Ns::from(shim));
        }
        assert_eq!(facts.containers.len(), limits::GONE_CONTAINERS + 1);
        assert!(facts.container_of("lives").is_some() && facts.container_of("c0").is_none());
        assert!(facts.container_of(&format!("c{}", all - limits::GONE_CONTAINERS as u32)).is_some());
        assert!(facts.dropped.is_empty(), "{:?}", facts.dropped);
    }

    #[test]
    fn a_device_that_writes_in_bursts_has_its_mean_rate() {
        let device = Device { major: 7, minor: 0 };
        let mut facts = Facts::default();
        let mut sample = |second: Ns, sectors_written: u64| {
            let report = DeviceFacts { device, name: "/dev/loop0".into(), sectors_written };
            facts.device(&report, second * SECOND);
            facts.device_rate(device)
        };
        assert_eq!(sample(0, 0), None);
        // 8 MB in one second out of four.
        let rates: Vec<Option<u64>> =
            (1..=20).map(|second| sample(second, (second.div_ceil(4)) * 15_625)).collect();
        assert!(rates[10..].iter().flatten().all(|rate| (1_500_000..=2_500_000).contains(rate)), "{rates:?}");
        // What it wrote before is forgotten, and another device by the same number begins anew.
        assert_eq!((21..=40).map(|second| sample(second, 100_000)).last(), Some(Some(0)));
        assert_eq!(sample(41, 10), None);
        assert_eq!(sample(42, 20), Some(5120));
    }
}
