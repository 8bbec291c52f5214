//! Attaches: the kernel's side once, Go programs as they come. Runs on a thread of its own, since attaching can take
//! long; everybody else goes on.

mod fasten;

use super::{
    Settings,
    binaries::{self, Examined, Target},
    child::{Known, Shared, lock, take},
    cost::{Metered, Price, SHARED_METER},
    guard::Pace,
    index::{Identity, Index},
    outbox::Outbox,
    price,
    protocol::{GoProgram, Level, Message, Survey},
    trim_memory,
};
use crate::{
    bpf::{
        features::{Answer, Features},
        known_bad,
        load::Kernel,
        plan::{self, PROCESS_SIGHT, Probe, SYNC_SIGHT, SYNCFS_UNSEEN, UNMOUNT_SIGHT},
        read::Reader,
    },
    event::{Body, Event, Kind, Ns, Process, Role, SeenBy},
    node::{
        ReadError, alive, clock,
        procs::{Exe, FileId, ProcessFacts, Processes},
        worker::Workers,
    },
    thresholds,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::{Arc, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

/// How often the node is looked at for new programs.
const SCAN_EVERY: Duration = Duration::from_secs(1);
/// A site whose page was not in memory is tried again after this many scans.
const RETRY_AFTER: u32 = 10;
/// Scans after which an executable that nobody runs is detached from.
const DETACH_AFTER: u32 = 60;
/// Executables remembered at most; beyond it none are looked at.
const MOST_BINARIES: usize = 4096;
/// How long reading an executable may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long opening one may take: a disk is not asked, a network file system is.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);
/// Threads that may hang with that.
const READERS: usize = 4;

/// Finds programs, decides, attaches.
pub struct Attacher {
    settings: Settings,
    outbox: Outbox,
    shared: Arc<Shared>,
    started: Ns,
    features: Option<Features>,
    kernel: Option<Kernel>,
    kernel_probes: Vec<Probe>,
    /// Set when the kernel itself sees unmounts, so that the Go wrapper need not be probed.
    kernel_sees_unmounts: bool,
    processes: Processes,
    binaries: BTreeMap<FileId, Binary>,
    /// How many executables have been numbered: a number is never used again.
    numbered: u32,
    readers: Workers,
    pace: Pace,
    /// What earlier runs have found in program files.
    index: Option<Index>,
    /// Why no program is probed on this kernel.
    known_bad: Option<String>,
    attached_after: Option<Ns>,
    told: Option<Survey>,
}

/// An executable as far as it is known.
enum Binary {
    /// Does not take part.
    Foreign,
    /// Could not be read; tried again after some scans.
    Unreadable {
        why: String,
        role_of: String,
        scans: u32,
        /// Alive while a reader still waits for an answer about it.
        asked: Weak<()>,
    },
    /// Takes part.
    Ours(Box<Ours>),
}

struct Ours {
    examined: Examined,
    comm: String,
    number: u32,
    /// Where its hits are counted.
    meter: u8,
    pids: Vec<u32>,
    probes: Vec<Probe>,
    attached: Vec<fasten::Fastened>,
    /// Pages of the file that have, or had, a probe.
    pages: BTreeSet<u64>,
    /// Targets that are off for a reason that passes.
    waiting: Vec<Target>,
    /// Some of them wait for a thread that may go on at any moment: tried again at the next scan.
    soon: bool,
    /// Kinds that the fuse has taken off, and why.
    blown: BTreeMap<Kind, String>,
    scans: u32,
    /// Scans since the last process that ran it ended.
    idle: u32,
}

impl Attacher {
    /// Nothing is known and nothing attached yet.
    pub fn new(settings: Settings, outbox: Outbox, shared: Arc<Shared>) -> Attacher {
        let index = Index::open()
            .map_err(|why| outbox.log(Level::Debug, format!("what is found in programs is not kept: {why}")))
            .ok();
        Attacher {
            processes: Processes::with(settings.also.clone()),
            settings,
            outbox,
            shared,
            started: clock::monotonic(),
            features: None,
            kernel: None,
            kernel_probes: Vec::new(),
            kernel_sees_unmounts: false,
            binaries: BTreeMap::new(),
            numbered: 0,
            readers: Workers::new(READERS),
            pace: Pace::default(),
            index,
            known_bad: None,
            attached_after: None,
            told: None,
        }
    }

    /// Finds out what the kernel allows and loads the kernel half.
    pub fn load(&mut self) -> anyhow::Result<Reader> {
        let mut features = Features::detect();
        if self.settings.one_by_one {
            features.uprobe_multi = Answer::No(plan::LEFT_OUT.into());
        }
        let mut kernel = Kernel::load(&features, self.settings.diagnostics)?;
        kernel.set_floors(thresholds::floor)?;
        let reader = kernel.reader()?;
        for sight in plan::kernel(&features, &self.settings.without) {
            let mut probe = kernel.attach_sight(&sight, |way| {
                // The tracepoint of unmounts is attached last, and only if nothing else sees any.
                if sight.what == UNMOUNT_SIGHT && way.how == SeenBy::Tracepoint {
                    Err(TAXING.into())
                } else {
                    Ok(())
                }
            });
            self.kernel_sees_unmounts |= sight.what == UNMOUNT_SIGHT && probe.how.is_some();
            let syncs =
                sight.what == SYNC_SIGHT && matches!(probe.how, Some(SeenBy::Fentry | SeenBy::Kprobe));
            match syncs.then(|| reader.sees_syncfs()) {
                Some(Ok(false)) => probe.weaken(SYNCFS_UNSEEN),
                Some(Err(error)) => self.outbox.log(Level::Warning, format!("trying syncfs(2): {error}")),
                _ => {}
            }
            self.kernel_probes.push(probe);
        }
        kernel.forget_types();
        *lock(&self.shared.skippable) = kernel.skippable()?;
        for defect in known_bad::defects(&features.kernel) {
            let text = format!("kernel {}: {} ({})", features.kernel, defect.what, defect.citation);
            if defect.verdict == known_bad::Verdict::Refuse {
                self.known_bad = Some(text.clone());
            }
            self.outbox.log(Level::Warning, text);
        }
        self.features = Some(features);
        self.kernel = Some(kernel);
        Ok(reader)
    }

    /// Follows the node until the process ends.
    pub fn run(&mut self) {
        trim_memory();
        let mut diagnostics = self.kernel.as_mut().and_then(Kernel::logger);
        loop {
            let examined = self.numbered;
            for blown in take(&self.shared.blown) {
                self.take_off(&blown);
            }
            self.scan();
            if self.numbered > examined {
                trim_memory();
            }
            self.settle_unmount_tracepoint();
            if self.attached_after.is_none() {
                self.attached_after = Some(clock::monotonic() - self.started);
                self.shared.surveyed.store(true, Ordering::Release);
            }
            self.tell();
            self.measure();
            if let Some(log) = diagnostics.as_mut() {
                log.flush();
            }
            std::thread::sleep(SCAN_EVERY);
        }
    }

    /// Finds out what a hit costs, once, after all there was to attach is attached.
    fn measure(&mut self) {
        if lock(&self.shared.price).is_some() || self.features.as_ref().is_none_or(|f| !f.uprobes.yes()) {
            return;
        }
        let Some(kernel) = self.kernel.as_mut() else { return };
        let mut attached = Vec::new();
        let measured = self.shared.touch("itself".into(), || price::measure(kernel, &mut attached));
        self.shared.let_go("detaching from itself".into(), || attached.clear());
        let price = measured.unwrap_or_else(|error| {
            self.outbox.log(
                Level::Warning,
                format!("what a probe costs could not be measured ({error:#}); the most that was seen elsewhere is assumed"),
            );
            Price::ASSUMED
        });
        self.outbox.log(
            Level::Debug,
            format!(
                "a hit costs {} ns where its instruction is emulated, {} ns where it is single-stepped ({})",
                price.emulated,
                price.stepped,
                if price.measured { "measured now" } else { "assumed" }
            ),
        );
        *lock(&self.shared.price) = Some(price);
    }

    /// A meter that no executable has, or the one that all further ones share.
    fn free_meter(&self) -> u8 {
        let used = |meter: &u8| {
            self.binaries.values().any(|b| matches!(b, Binary::Ours(ours) if ours.meter == *meter))
        };
        (0..SHARED_METER).find(|meter| !used(meter)).unwrap_or(SHARED_METER)
    }

    /// Looks once and tells, without attaching anything.
    pub fn survey(&mut self) {
        let features = Features::detect();
        let sights = plan::kernel(&features, &self.settings.without);
        self.kernel_probes = sights.iter().map(|sight| sight.planned(&features.kernel)).collect();
        self.kernel_sees_unmounts = self
            .kernel_probes
            .iter()
            .any(|p| p.what == UNMOUNT_SIGHT && matches!(p.how, Some(SeenBy::Fentry | SeenBy::Kprobe)));
        self.features = Some(features);
        self.scan();
        let wrapper = self.sees_unmounts_in_go();
        for probe in &mut self.kernel_probes {
            if wrapper && probe.what == UNMOUNT_SIGHT && probe.how == Some(SeenBy::Tracepoint) {
                probe.how = None;
                probe.loss = plan::UNMOUNT_LOSS.into();
                probe.note = format!("{}; tracepoint: {TAXING}", probe.note);
            }
        }
        self.attached_after = Some(clock::monotonic() - self.started);
        self.tell();
    }

    /// Looks for programs that have come or gone.
    fn scan(&mut self) {
        self.pace.begin();
        let mut scans = Vec::new();
        for pid in take(&self.shared.recheck) {
            let scan = self.processes.recheck(pid, &self.readers);
            // It may have become the same program once more.
            if let (true, Some(known)) = (scan.gone.is_empty(), self.shared.get(pid)) {
                self.register(pid, known.exe);
            }
            scans.push(scan);
        }
        // The kernel half tells of each process that takes part when it ends or becomes another program.
        let told = self.kernel_probes.iter().any(|probe| probe.what == PROCESS_SIGHT && probe.how.is_some());
        match self.processes.scan(&self.readers, told) {
            Ok(scan) => scans.push(scan),
            Err(error) => self.outbox.log(Level::Error, format!("processes cannot be listed: {error}")),
        }
        for scan in scans {
            for process in scan.gone {
                self.gone(process.pid);
            }
            let mut new = scan.new;
            // What is most likely ours first: the rest can wait, should a disk be slow.
            new.sort_by_key(|p| !likely(&p.comm));
            for process in new {
                self.came(&process);
            }
        }
        self.retry();
    }

    fn gone(&mut self, pid: u32) {
        let known = self.shared.known.write().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        if known.is_none() {
            return;
        }
        for binary in self.binaries.values_mut() {
            if let Binary::Ours(ours) = binary {
                ours.pids.retain(|p| *p != pid);
            }
        }
        if let Some(kernel) = self.kernel.as_mut() {
            kernel.forget(pid);
        }
        self.outbox.events(vec![Event { at: clock::monotonic(), body: Body::ProcessGone { pid } }]);
    }

    fn came(&mut self, process: &ProcessFacts) {
        let Exe::File(id) = process.exe else { return };
        let other = self.settings.also.contains(&process.pid);
        let known = self.binaries.contains_key(&id);
        if !known && self.binaries.len() >= MOST_BINARIES {
            // Short-lived programs come and go; what does not take part can be looked at again.
            self.binaries.retain(|_, binary| matches!(binary, Binary::Ours(_)));
        }
        if !known || (other && matches!(self.binaries.get(&id), Some(Binary::Foreign))) {
            let binary = self.examine(process, id, other);
            let late = matches!(&binary, Binary::Unreadable { why, .. } if !why.is_empty());
            self.binaries.insert(id, binary);
            if late && !self.settings.survey_only {
                // It may have taken long, and the next may too.
                self.tell();
            }
        }
        let Some(Binary::Ours(ours)) = self.binaries.get_mut(&id) else { return };
        if !ours.pids.contains(&process.pid) {
            ours.pids.push(process.pid);
        }
        let known = Known {
            process: Process {
                pid: process.pid,
                started: process.started,
                role: ours.examined.role,
                comm: process.comm.clone(),
                go_version: ours.examined.go_version.clone(),
                version: ours.examined.version.clone(),
            },
            offsets: ours.examined.offsets,
            health: ours.examined.health.clone(),
            exe: id,
            image: alive::image(process.pid),
            entry: ours.examined.entry,
            all_goroutines: ours.examined.all_goroutines,
        };
        let event = Event { at: clock::monotonic(), body: Body::Process(known.process.clone()) };
        self.shared.known.write().unwrap_or_else(PoisonError::into_inner).insert(process.pid, known);
        let (pid, role, number) = (process.pid, ours.examined.role, ours.number);
        self.outbox.log(Level::Debug, format!("process {pid} is taken up as {role:?}, executable {number}"));
        self.register(pid, id);
        self.outbox.events(vec![event]);
    }

    /// Tells the kernel half what it has to know of a process that runs this executable.
    fn register(&mut self, pid: u32, id: FileId) {
        let (Some(kernel), Some(Binary::Ours(ours))) = (self.kernel.as_mut(), self.binaries.get(&id)) else {
            return;
        };
        let goid_offset = ours.examined.offsets.map_or(0, |o| u32::from(o.goid));
        // Only kernels without cookies use it, and there a process that cannot be asked is not probed: its sites are not
        // found, which is counted. It is another one after each exec.
        let bias = binaries::bias(pid, ours.examined.entry).unwrap_or(0);
        let value = tracer_common::settings::Process { binary: ours.number, goid_offset, bias };
        if let Err(error) = kernel.register(pid, value) {
            self.outbox.log(Level::Warning, format!("process {pid} cannot be registered: {error:#}"));
        }
    }

    /// Reads an executable that was not seen before, and attaches.
    fn examine(&mut self, process: &ProcessFacts, id: FileId, other: bool) -> Binary {
        let asked = Arc::new(());
        let unreadable = |why: String| Binary::Unreadable {
            why,
            role_of: process.comm.clone(),
            scans: 0,
            asked: Arc::downgrade(&asked),
        };
        let (file, length) = match self.open(process.pid, &asked) {
            Ok(opened) => opened,
            Err(why) => return unreadable(why),
        };
        if length < binaries::SMALLEST && !other {
            return Binary::Foreign;
        }
        let identity = Identity::of(&file);
        let known = identity.as_ref().and_then(|identity| self.known(identity, other));
        let kept = known.is_some();
        let pid = process.pid;
        let read = match known {
            Some(examined) => Ok(Ok(Some(examined))),
            None => match file.try_clone() {
                Ok(reading) => {
                    let asked = Arc::clone(&asked);
                    self.readers.run(PATIENCE, move || {
                        let _asked = asked;
                        binaries::examine(&reading, pid, other)
                    })
                }
                Err(error) => return unreadable(error.to_string()),
            },
        };
        let examined = match read {
            Ok(Ok(None)) => return Binary::Foreign,
            Ok(Ok(Some(examined))) => examined,
            Ok(Err(why)) => return unreadable(why),
            Err(error) => {
                return unreadable(format!("reading its program file: {error}; its disk may be stuck"));
            }
        };
        if let (false, Some(identity)) = (kept, &identity) {
            self.keep(identity, &examined);
        }
        self.numbered += 1;
        let mut ours = Box::new(Ours {
            comm: process.comm.clone(),
            number: self.numbered,
            meter: self.free_meter(),
            pids: Vec::new(),
            probes: Vec::new(),
            attached: Vec::new(),
            pages: BTreeSet::new(),
            waiting: Vec::new(),
            soon: false,
            blown: BTreeMap::new(),
            scans: 0,
            idle: 0,
            examined,
        });
        for target in &mut ours.examined.targets {
            target.note.clone_from(&ours.examined.note);
        }
        let targets = ours.examined.targets.clone();
        let differs = self.attach(&mut ours, id, &file, targets);
        if let (true, true, Some(index), Some(identity)) = (differs, kept, &self.index, &identity) {
            self.outbox
                .log(Level::Warning, format!("what was kept of {} is not true; it is read again", ours.comm));
            index.forget(identity);
            self.shared.let_go(format!("detaching from {}", ours.comm), || ours.attached.clear());
            return self.examine(process, id, other);
        }
        Binary::Ours(ours)
    }

    /// Opens a program file and tells its length; no words when the process is gone. A network file system is asked for
    /// both, so a reader does it.
    fn open(&self, pid: u32, asked: &Arc<()>) -> Result<(File, u64), String> {
        let (asked, opener) = (Arc::clone(asked), self.processes.opener(&[pid]));
        let opened = self.readers.run(OPEN_PATIENCE, move || {
            let _asked = asked;
            let file = opener()?;
            let length =
                file.metadata().map_err(|error| ReadError::new(format!("/proc/{pid}/exe"), error))?.len();
            Ok::<_, ReadError>((file, length))
        });
        match opened {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(error)) if error.is_gone() => Err(String::new()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("opening its program file: {error}; its file system may be stuck")),
        }
    }

    /// What an earlier run has found in this file.
    fn known(&self, identity: &Identity, other: bool) -> Option<Examined> {
        let found = self.index.as_ref()?.find(identity).unwrap_or_else(|why| {
            self.outbox.log(Level::Warning, why);
            None
        })?;
        // An earlier run may have been told to trace any program.
        if found.role == Role::Other && !other {
            return None;
        }
        self.outbox
            .log(Level::Debug, format!("{:?} {}: its table need not be read", found.role, found.go_version));
        Some(found)
    }

    /// Keeps what was found in a file for later runs.
    fn keep(&self, identity: &Identity, examined: &Examined) {
        // A doubt about one process is no knowledge of the file; and a survey leaves nothing behind.
        let (Some(index), true, false) = (&self.index, examined.note.is_empty(), self.settings.survey_only)
        else {
            return;
        };
        if let Err(why) = index.keep(identity, examined) {
            self.outbox
                .log(Level::Debug, format!("what was found in {:?} is not kept: {why}", examined.role));
        }
    }

    /// Tries again what was off only because a page was not in memory, or because a file could not be read.
    fn retry(&mut self) {
        let takes_part = |(_, binary): &(&FileId, &Binary)| !matches!(binary, Binary::Foreign);
        let ids: Vec<FileId> = self.binaries.iter().filter(takes_part).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(mut binary) = self.binaries.remove(&id) else { continue };
            match &mut binary {
                Binary::Foreign => {}
                Binary::Unreadable { scans, asked, .. } => {
                    *scans += 1;
                    let running = self.processes.iter().filter(|p| p.exe == Exe::File(id));
                    let running: Vec<ProcessFacts> = running.cloned().collect();
                    if running.is_empty() {
                        continue;
                    }
                    if *scans >= RETRY_AFTER && asked.strong_count() == 0 {
                        // The first reads it, the others find it read.
                        running.iter().for_each(|process| self.came(process));
                        continue;
                    }
                }
                // Nobody has run it for a while: detach, so that a program that was replaced is not kept on the disk.
                // Not where the fuse has blown: that is remembered.
                Binary::Ours(ours)
                    if ours.pids.is_empty() && ours.idle >= DETACH_AFTER && ours.blown.is_empty() =>
                {
                    self.shared.let_go(format!("detaching from {}", ours.comm), || ours.attached.clear());
                    continue;
                }
                Binary::Ours(ours) => {
                    ours.scans += 1;
                    ours.idle = if ours.pids.is_empty() { ours.idle + 1 } else { 0 };
                    let due = std::mem::take(&mut ours.soon) || ours.scans.is_multiple_of(RETRY_AFTER);
                    if due
                        && !ours.waiting.is_empty()
                        && let Some(Ok((file, _))) =
                            ours.pids.first().map(|pid| self.open(*pid, &Arc::default()))
                    {
                        let waiting = std::mem::take(&mut ours.waiting);
                        let is_waiting =
                            |p: &Probe| waiting.iter().any(|t| t.what == p.what && t.function == p.target);
                        ours.probes.retain(|p| !(p.how.is_none() && is_waiting(p)));
                        self.attach(ours, id, &file, waiting);
                    }
                }
            }
            self.binaries.insert(id, binary);
        }
    }

    fn sees_unmounts_in_go(&self) -> bool {
        let ours = |b: &Binary| matches!(b, Binary::Ours(o) if o.probes.iter().any(|p| p.what.ends_with(": unmount") && p.how.is_some()));
        self.binaries.values().any(ours)
    }

    /// The tracepoint of unmounts taxes every system call of the node: it is on only while nothing else sees unmounts.
    fn settle_unmount_tracepoint(&mut self) {
        if self.kernel_sees_unmounts {
            return;
        }
        let wanted = !self.sees_unmounts_in_go();
        let (Some(kernel), Some(features)) = (self.kernel.as_mut(), self.features.as_ref()) else { return };
        let Some(at) = self.kernel_probes.iter().position(|p| p.what == UNMOUNT_SIGHT) else { return };
        let on = self.kernel_probes[at].how.is_some();
        if on == wanted {
            return;
        }
        let sights = plan::kernel(features, &self.settings.without);
        let sight = sights.into_iter().find(|s| s.what == UNMOUNT_SIGHT);
        let Some(sight) = sight else { return };
        if wanted && self.kernel_probes[at].note.contains(TAXING) {
            let mut probe = kernel.attach_sight(&sight, |_| Ok(()));
            if probe.how.is_some() {
                probe.note = format!("{}; taxes every system call of the node by about 50 ns", probe.note);
            }
            self.kernel_probes[at] = probe;
        } else if on {
            kernel.detach_sight(&sight);
            self.kernel_probes[at] = kernel.attach_sight(&sight, |_| Err(TAXING.into()));
        }
        match kernel.skippable() {
            Ok(programs) => *lock(&self.shared.skippable) = programs,
            Err(error) => {
                self.outbox.log(Level::Warning, format!("what is skipped is not counted: {error:#}"))
            }
        }
        kernel.forget_types();
    }

    /// Sends the survey if it has changed, and what became blind or seeing.
    fn tell(&mut self) {
        let mut survey = Survey {
            features: self.features.clone(),
            probes: self.kernel_probes.clone(),
            programs: Vec::new(),
            attached_after: self.attached_after,
            unreadable: binaries::unreadable(&self.processes),
            stuck_reads: self.readers.stuck() as u64,
        };
        for binary in self.binaries.values() {
            match binary {
                Binary::Ours(ours) if !ours.pids.is_empty() => {
                    survey.probes.extend(ours.probes.iter().cloned());
                    survey.programs.push(GoProgram {
                        role: ours.examined.role,
                        comm: ours.comm.clone(),
                        go_version: ours.examined.go_version.clone(),
                        pids: ours.pids.clone(),
                        build_id: ours.examined.build_id.clone(),
                        pages: ours.pages.len() as u32,
                    });
                }
                Binary::Unreadable { why, role_of, .. } if !why.is_empty() && likely(role_of) => {
                    survey.probes.push(Probe {
                        what: format!("{role_of}: all of it"),
                        target: String::new(),
                        how: None,
                        sites: 0,
                        emulated: 0,
                        loss: String::new(),
                        note: why.clone(),
                    })
                }
                _ => {}
            }
        }
        let metered = self.binaries.values().filter_map(|binary| match binary {
            Binary::Ours(ours) if !ours.pages.is_empty() => Some(Metered {
                number: ours.number,
                meter: ours.meter,
                comm: ours.comm.clone(),
                role: ours.examined.role,
                processes: ours.pids.len() as u32,
                pages: ours.pages.len() as u32,
            }),
            _ => None,
        });
        *lock(&self.shared.metered) = metered.collect();
        if self.told.as_ref() == Some(&survey) {
            return;
        }
        let before = self.told.take().map(|s| s.probes).unwrap_or_default();
        let now = clock::monotonic();
        let blind = |probes: &[Probe]| -> BTreeMap<String, String> {
            // What is not seen is said in each diagnosis; why it is so, with all ways tried, is for doctor.
            let words = |p: &Probe| if p.loss.is_empty() { p.note.clone() } else { p.loss.clone() };
            probes.iter().filter(|p| matters(p)).map(|p| (p.what.clone(), words(p))).collect()
        };
        let (was, is) = (blind(&before), blind(&survey.probes));
        let gone =
            was.keys().filter(|what| !is.contains_key(*what)).map(|what| (what.clone(), String::new()));
        let new =
            is.iter().filter(|(what, why)| was.get(*what) != Some(why)).map(|(w, r)| (w.clone(), r.clone()));
        let events: Vec<Event> = gone
            .chain(new)
            .map(|(what, reason)| Event { at: now, body: Body::BlindSpot { what, reason } })
            .collect();
        self.outbox.events(events);
        self.outbox.send(&Message::Survey(survey.clone()));
        self.told = Some(survey);
    }
}

/// Why the tracepoint of unmounts is not the first choice.
const TAXING: &str = "would tax every system call of the node; unmounts of containerd and its shims are seen in their own code";

/// A probe that is off and leaves something unseen.
fn matters(probe: &Probe) -> bool {
    probe.how.is_none() && !probe.note.starts_with("not needed")
}

fn likely(comm: &str) -> bool {
    comm.contains("containerd") || comm.contains("kubelet")
}

fn probe(target: &Target, how: Option<SeenBy>, sites: usize, why: String) -> Probe {
    Probe {
        what: target.what.clone(),
        target: target.function.clone(),
        how,
        sites: sites as u32,
        emulated: if how.is_some() { target.emulated } else { 0 },
        loss: String::new(),
        note: [target.note.clone(), why].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("; "),
    }
}
