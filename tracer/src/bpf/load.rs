//! Loads the kernel half and attaches it, way by way, as the plan says. Everything here can block for a long time (see
//! pitfalls of attaching in docs/probes.md), so it runs in the warden only.

use super::{
    features::{Answer, Features},
    plan::{Probe, Sight, Way},
    sys,
};
use crate::event::{Kind, SeenBy};
use anyhow::{Context, anyhow, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData},
    programs::{FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint, TracePoint},
};
use aya_obj::{ProgramSection, generated::bpf_insn};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    ffi::CString,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};
use tracer_common::settings;

/// Bytes aligned for a parser of ELF files.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/plegscope.bpf.o")));

/// Programs for sites in Go executables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GoProgram {
    /// `runtime.semacquire1` begins.
    LockWait,
    /// `runtime.semacquire1` ends.
    LockWaitEnd,
    /// `sync.(*RWMutex).Lock` begins.
    WriteLock,
    /// `sync.(*RWMutex).Unlock` begins.
    WriteUnlock,
    /// `runtime.readyWithTime` begins.
    Wake,
    /// A named function begins.
    Operation,
    /// A named function ends.
    OperationEnd,
}

impl GoProgram {
    const ALL: [GoProgram; 7] = [
        GoProgram::LockWait,
        GoProgram::LockWaitEnd,
        GoProgram::WriteLock,
        GoProgram::WriteUnlock,
        GoProgram::Wake,
        GoProgram::Operation,
        GoProgram::OperationEnd,
    ];
    /// Name in the BPF object.
    pub const fn name(self) -> &'static str {
        match self {
            GoProgram::LockWait => "go_lock_wait",
            GoProgram::LockWaitEnd => "go_lock_wait_end",
            GoProgram::WriteLock => "go_write_lock",
            GoProgram::WriteUnlock => "go_write_unlock",
            GoProgram::Wake => "go_wake",
            GoProgram::Operation => "go_operation",
            GoProgram::OperationEnd => "go_operation_end",
        }
    }
    /// Whether it ends something: those are attached first, so that nothing begins that cannot end.
    pub const fn ends(self) -> bool {
        matches!(self, GoProgram::LockWaitEnd | GoProgram::WriteUnlock | GoProgram::OperationEnd)
    }
}

/// One site to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRequest {
    /// By which program.
    pub program: GoProgram,
    /// Offset in the executable file.
    pub offset: u64,
    /// Address in the file, for kernels without cookies.
    pub address: u64,
    /// What the site knows of itself.
    pub cookie: u64,
    /// The file's bytes from there on, as they were when the site was chosen; zeros behind the file's end.
    pub bytes: [u8; SITE_BYTES],
    /// Whether the kernel single-steps the instruction.
    pub stepped: bool,
}

/// Bytes of the file that the kernel reads for a site (`MAX_UINSN_BYTES`).
pub const SITE_BYTES: usize = 16;

/// Attached to one executable, by one link for each program or for each site; dropping it detaches.
pub struct Attached(pub Vec<OwnedFd>);

/// How often the kernel has skipped these programs, all in all.
pub fn skipped(programs: &[OwnedFd]) -> std::io::Result<u64> {
    programs.iter().map(|program| sys::skipped(program.as_fd())).sum()
}

/// The loaded kernel half.
pub struct Kernel {
    ebpf: Ebpf,
    /// Loaded as they are. Where aya finds that the kernel's memory may not be read (lockdown=confidentiality) it takes
    /// the kernel for one that knows only one helper for all memory, and that one is refused there, too.
    golang: BTreeMap<GoProgram, anyhow::Result<OwnedFd>>,
    /// Whether they are for links of many sites.
    multi: bool,
    cookies: bool,
    trampolines: bool,
    /// The kernel's types, from the first fentry program until [`Kernel::forget_types`]: they are read for all of them once.
    types: Option<Btf>,
}

/// The one table of everything that is written into read-only globals.
fn globals(features: &Features, diagnostics: bool) -> Vec<(&'static str, Vec<u8>)> {
    let offset = |name| features.offset(name).unwrap_or(0).to_ne_bytes().to_vec();
    let flag = |answer: &Answer| u32::from(answer.yes()).to_ne_bytes().to_vec();
    vec![
        // The level of aya-log, one byte; 0 lets the verifier drop all diagnostics.
        ("AYA_LOG_LEVEL", vec![if diagnostics { 5 } else { 0 }]),
        ("HAVE_COOKIE", flag(&features.cookies)),
        ("NEVER", 0u32.to_ne_bytes().to_vec()),
        ("READ_KERNEL", flag(&features.kernel_memory)),
        ("OFF_FSBASE", offset("OFF_FSBASE")),
        ("OFF_S_DEV", offset("OFF_S_DEV")),
        ("OFF_S_TYPE", offset("OFF_S_TYPE")),
        ("OFF_FS_NAME", offset("OFF_FS_NAME")),
        ("OFF_REGS_DI", offset("OFF_REGS_DI")),
        ("OFF_REGS_ORIG_AX", offset("OFF_REGS_ORIG_AX")),
        ("OFF_WORK_SB", offset("OFF_WORK_SB")),
        ("OFF_WORK_REASON", offset("OFF_WORK_REASON")),
    ]
}

impl Kernel {
    /// Creates the maps and prepares the programs; attaches nothing. With `diagnostics` the kernel half tells each
    /// refusal in its own log.
    pub fn load(features: &Features, diagnostics: bool) -> anyhow::Result<Kernel> {
        if let Some(reason) = features.bpf.reason().or(features.ring_buffer.reason()) {
            bail!("{reason}");
        }
        let values = globals(features, diagnostics);
        let mut loader = EbpfLoader::new();
        for (name, value) in &values {
            loader.override_global(name, value.as_slice(), true);
        }
        let ebpf = loader.load(&OBJECT.0).map_err(|error| {
            let hint = sys::memory_limit_hint();
            anyhow!(error).context(
                ["creating the maps of the kernel half", &hint].join("; ").trim_end_matches("; ").to_owned(),
            )
        })?;
        let mut kernel = Kernel {
            ebpf,
            golang: BTreeMap::new(),
            multi: features.uprobe_multi.yes(),
            cookies: features.cookies.yes(),
            trampolines: features.trampolines.yes(),
            types: None,
        };
        kernel.golang = kernel.load_golang(&values)?;
        let refused = kernel.golang.values().find_map(|program| program.as_ref().err());
        if let (true, Some(error)) = (kernel.multi, refused) {
            // With maps of its own: a map of programs takes those of one attach type only, and some may be loaded.
            let why = format!("loading the uprobe programs for links of many: {error:#}");
            log::warn!("{why}; uprobes are attached one by one");
            return Kernel::load(
                &Features { uprobe_multi: Answer::No(why), ..features.clone() },
                diagnostics,
            );
        }
        Ok(kernel)
    }

    /// Gives the memory of the kernel's types back: a few MB.
    pub fn forget_types(&mut self) {
        self.types = None;
    }

    /// The object once more, its code relocated to the maps that aya made.
    fn relocated(&self, values: &[(&'static str, Vec<u8>)]) -> anyhow::Result<aya_obj::Object> {
        let mut object = aya_obj::Object::parse(&OBJECT.0)?;
        object
            .patch_map_data(values.iter().map(|(name, value)| (*name, (value.as_slice(), true))).collect())?;
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps: Vec<(String, i32, aya_obj::Map)> = object
            .maps
            .iter()
            .filter_map(|(name, map)| Some((name.clone(), map_fd(self.ebpf.map(name)?)?, map.clone())))
            .collect();
        object.relocate_maps(maps.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &text)?;
        object.relocate_calls(&text)?;
        Ok(object)
    }

    /// Loads each program of the object once more, without attaching it, and tells how many instructions the verifier
    /// looked at; or why it could not be loaded.
    pub fn verifier_costs(
        &self,
        features: &Features,
    ) -> anyhow::Result<BTreeMap<String, std::io::Result<u64>>> {
        let object = self.relocated(&globals(features, false))?;
        let vmlinux = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
        let btf = super::btf::Btf::parse(&vmlinux).ok();
        let sights = super::plan::kernel(features, &[]);
        let ways = || sights.iter().flat_map(|sight| &sight.ways).flat_map(|way| way.programs);
        let cost = |name: &str, program: &aya_obj::Program| {
            let code = &object.functions.get(&program.function_key())?.instructions;
            let function = || {
                let (_, target) = ways().find(|(planned, _)| *planned == name)?;
                btf.as_ref()?.function_id(target)
            };
            let (kind, attach, function) = match program.section {
                ProgramSection::FEntry { .. } => (sys::PROGRAM_TRACING, sys::ATTACH_FENTRY, function()?),
                ProgramSection::FExit { .. } => (sys::PROGRAM_TRACING, sys::ATTACH_FEXIT, function()?),
                ProgramSection::TracePoint => (sys::PROGRAM_TRACEPOINT, 0, 0),
                ProgramSection::RawTracePoint => (sys::PROGRAM_RAW_TRACEPOINT, 0, 0),
                // As they were loaded before: programs that share a map of programs must be of one kind.
                ProgramSection::UProbe { .. } if features.uprobe_multi.yes() => {
                    (sys::PROGRAM_KPROBE, sys::ATTACH_UPROBE_MULTI, 0)
                }
                _ => (sys::PROGRAM_KPROBE, 0, 0),
            };
            Some(sys::count_instructions(&sys::Program { kind, attach, code, function }))
        };
        Ok(object.programs.iter().filter_map(|(name, p)| Some((name.clone(), cost(name, p)?))).collect())
    }

    /// Loads the programs for Go, sharing the maps that aya made; each may be refused for itself.
    fn load_golang(
        &self,
        values: &[(&'static str, Vec<u8>)],
    ) -> anyhow::Result<BTreeMap<GoProgram, anyhow::Result<OwnedFd>>> {
        let object = self.relocated(values)?;
        let attach = if self.multi { sys::ATTACH_UPROBE_MULTI } else { 0 };
        let load = |name: &str| {
            let function = object.programs.get(name).and_then(|p| object.functions.get(&p.function_key()));
            let code: &[bpf_insn] =
                &function.ok_or_else(|| anyhow!("the object has no program {name}"))?.instructions;
            sys::load(&sys::Program { kind: sys::PROGRAM_KPROBE, attach, code, function: 0 })
                .with_context(|| format!("loading {name}"))
        };
        Ok(GoProgram::ALL.into_iter().map(|program| (program, load(program.name()))).collect())
    }

    /// Attaches the best way that works and tells how it went. `allow` can refuse a way with a reason.
    pub fn attach_sight(&mut self, sight: &Sight, allow: impl Fn(&Way) -> Result<(), String>) -> Probe {
        let mut notes: Vec<String> =
            sight.refused.iter().map(|(how, why)| format!("{}: {why}", word(*how))).collect();
        let mut probe = Probe {
            what: sight.what.into(),
            target: String::new(),
            how: None,
            sites: 0,
            emulated: 0,
            loss: String::new(),
            note: String::new(),
        };
        for way in &sight.ways {
            let result = allow(way).map_err(anyhow::Error::msg).and_then(|()| self.attach_way(way));
            match result {
                Ok(()) => {
                    probe.how = Some(way.how);
                    probe.target = way.target();
                    probe.sites = way.programs.len() as u32;
                    notes.extend((!way.weaker.is_empty()).then(|| way.weaker.to_owned()));
                    break;
                }
                Err(error) => notes.push(format!("{}: {error:#}", word(way.how))),
            }
        }
        if probe.how.is_none() {
            probe.loss = sight.loss.into();
        }
        probe.note = notes.join("; ");
        probe
    }

    fn attach_way(&mut self, way: &Way) -> anyhow::Result<()> {
        for (at, (program, target)) in way.programs.iter().enumerate() {
            if let Err(error) = self.attach_program(program, target) {
                // All or none: an end without its begin, or the reverse, would tell wrong times.
                for (program, _) in &way.programs[..at] {
                    self.unload(program);
                }
                return Err(error.context(format!("{program} on {target}")));
            }
        }
        Ok(())
    }

    /// Detaches whatever is attached of a sight.
    pub fn detach_sight(&mut self, sight: &Sight) {
        for (program, _) in sight.ways.iter().flat_map(|way| way.programs) {
            self.unload(program);
        }
    }

    fn attach_program(&mut self, name: &str, target: &str) -> anyhow::Result<()> {
        let program =
            self.ebpf.program_mut(name).ok_or_else(|| anyhow!("the object has no program {name}"))?;
        let traces = matches!(program, Program::FEntry(_) | Program::FExit(_));
        if traces && self.trampolines && self.types.is_none() {
            self.types = Some(Btf::from_sys_fs()?);
        }
        let types = || self.types.as_ref().ok_or_else(|| anyhow!("no BTF"));
        match program {
            Program::FEntry(p) => {
                p.load(target, types()?)?;
                p.attach()?;
            }
            Program::FExit(p) => {
                p.load(target, types()?)?;
                p.attach()?;
            }
            Program::KProbe(p) => {
                p.load()?;
                p.attach(target, 0)?;
            }
            Program::RawTracePoint(p) => {
                p.load()?;
                p.attach(target)?;
            }
            Program::TracePoint(p) => {
                p.load()?;
                let (category, name) =
                    target.split_once('/').ok_or_else(|| anyhow!("{target} is no tracepoint"))?;
                p.attach(category, name)?;
            }
            other => bail!("{name} is a program of an unexpected kind ({:?})", other.prog_type()),
        }
        Ok(())
    }

    fn unload(&mut self, name: &str) {
        let result: Result<(), ProgramError> = match self.ebpf.program_mut(name) {
            Some(Program::FEntry(p)) => FEntry::unload(p),
            Some(Program::FExit(p)) => FExit::unload(p),
            Some(Program::KProbe(p)) => KProbe::unload(p),
            Some(Program::RawTracePoint(p)) => RawTracePoint::unload(p),
            Some(Program::TracePoint(p)) => TracePoint::unload(p),
            _ => Ok(()),
        };
        if let Err(error) = result {
            log::warn!("unloading {name}: {error}");
        }
    }

    /// Attaches all sites of an executable, ends first. `path` must name the file without touching the disk, for
    /// instance `/proc/self/fd/N` of an `O_PATH` descriptor.
    pub fn attach_uprobes(
        &mut self,
        path: &str,
        binary: u32,
        sites: &[SiteRequest],
    ) -> anyhow::Result<Attached> {
        let mut by_program: BTreeMap<(bool, GoProgram), Vec<SiteRequest>> = BTreeMap::new();
        for site in sites {
            by_program.entry((!site.program.ends(), site.program)).or_default().push(*site);
        }
        let path = CString::new(path)?;
        let loaded = |program: &GoProgram| match self.golang.get(program) {
            Some(Ok(program)) => Ok(program.as_fd()),
            Some(Err(error)) => Err(anyhow!("{error:#}")),
            None => Err(anyhow!("{} is not loaded", program.name())),
        };
        if self.multi {
            let links = by_program.iter().map(|((_, program), sites)| {
                let offsets: Vec<u64> = sites.iter().map(|s| s.offset).collect();
                let cookies: Vec<u64> = sites.iter().map(|s| s.cookie).collect();
                sys::link_uprobe_multi(loaded(program)?, &path, &offsets, &cookies)
                    .with_context(|| format!("attaching {} at {} sites", program.name(), sites.len()))
            });
            return links.collect::<anyhow::Result<_>>().map(Attached);
        }
        if !self.cookies {
            let map = self.ebpf.map_mut("SITES").ok_or_else(|| anyhow!("the object has no map SITES"))?;
            let mut map: HashMap<_, SiteKey, u64> = HashMap::try_from(map)?;
            for site in sites {
                let end = matches!(site.program, GoProgram::LockWaitEnd | GoProgram::OperationEnd);
                let key = settings::Site { binary, end: u32::from(end), address: site.address };
                map.insert(SiteKey(key), site.cookie, 0)?;
            }
        }
        let events = sys::probe_events("uprobe").context("asking for uprobes as events")?;
        let mut links = Vec::with_capacity(sites.len());
        for ((_, program), sites) in &by_program {
            for site in sites {
                let cookie = self.cookies.then_some(site.cookie);
                let link = sys::link_uprobe(events, loaded(program)?, &path, site.offset, cookie);
                links.push(link.with_context(|| {
                    format!("attaching {} at file offset {:#x}", program.name(), site.offset)
                })?);
            }
        }
        Ok(Attached(links))
    }

    /// Registers a Go process: its exit is told, and its goroutines are known to kernel probes.
    pub fn register(&mut self, pid: u32, process: settings::Process) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut("PROCESSES").ok_or_else(|| anyhow!("the object has no map PROCESSES"))?;
        let mut map: HashMap<_, u32, ProcessValue> = HashMap::try_from(map)?;
        Ok(map.insert(pid, ProcessValue(process), 0)?)
    }

    /// Forgets a process.
    pub fn forget(&mut self, pid: u32) {
        let map = self.ebpf.map_mut("PROCESSES").map(HashMap::<_, u32, ProcessValue>::try_from);
        if let Some(Ok(mut map)) = map {
            // It may never have been registered.
            let _ = map.remove(&pid);
        }
    }

    /// Sets the floor of every kind.
    pub fn set_floors(&mut self, floor: impl Fn(Kind) -> u64) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut("FLOORS").ok_or_else(|| anyhow!("the object has no map FLOORS"))?;
        let mut map: Array<_, u64> = Array::try_from(map)?;
        for kind in Kind::RECORDED {
            map.set(crate::decode::number_of(kind), floor(kind), 0)?;
        }
        map.set(tracer_common::op::kind::MEASURED, u64::MAX, 0)?;
        Ok(())
    }

    /// What the reading side needs. To be called once.
    pub fn reader(&mut self) -> anyhow::Result<super::read::Reader> {
        let mut take =
            |name: &str| self.ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map {name}"));
        super::read::Reader::new(
            take("RING")?,
            take("WAITS")?,
            take("OPS")?,
            take("STATS")?,
            take("DURATIONS")?,
            take("PASSES")?,
        )
    }

    /// The loaded programs of kernel functions and tracepoints, all of which the kernel may skip ([`sys::skipped`]).
    pub fn skippable(&self) -> anyhow::Result<Vec<OwnedFd>> {
        let mut all = Vec::new();
        for (_, program) in self.ebpf.programs() {
            // Those that are not loaded have none.
            if let Ok(fd) = program.fd() {
                all.push(fd.as_fd().try_clone_to_owned()?);
            }
        }
        Ok(all)
    }

    /// The kernel half's own diagnostics go to the `log` crate.
    pub fn logger(&mut self) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).ok()
    }
}

/// A word for how something is seen.
pub fn word(how: SeenBy) -> &'static str {
    match how {
        SeenBy::Uprobe => "uprobe",
        SeenBy::Fentry => "fentry",
        SeenBy::Kprobe => "kprobe",
        SeenBy::Tracepoint => "tracepoint",
        SeenBy::Proc => "/proc",
        SeenBy::Memory => "memory",
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct SiteKey(settings::Site);
// SAFETY: repr(C), integers only, no padding (asserted in tracer-common).
unsafe impl aya::Pod for SiteKey {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct ProcessValue(settings::Process);
// SAFETY: repr(C), integers only, no padding (asserted in tracer-common).
unsafe impl aya::Pod for ProcessValue {}

pub(super) fn map_data(map: &aya::maps::Map) -> Option<&MapData> {
    use aya::maps::Map;
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::RingBuf(data) | Map::ProgramArray(data) => Some(data),
        _ => None,
    }
}

fn map_fd(map: &aya::maps::Map) -> Option<i32> {
    Some(map_data(map)?.fd().as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `add r9, gs:[…]`: how the kernel's compiler finds a program's private stack on x86-64 (6.13 and later).
    const PRIVATE_STACK: [u8; 5] = [0x65, 0x4c, 0x03, 0x0c, 0x25];

    fn has_private_stack(program: &OwnedFd) -> Option<bool> {
        let code = sys::machine_code(program.as_fd()).unwrap();
        (!code.is_empty()).then(|| code.windows(5).any(|bytes| bytes == PRIVATE_STACK))
    }

    /// A program that keeps a word at the far end of its stack.
    fn deep() -> OwnedFd {
        let instruction = |code: u8, dst: u8, src: u8, off: i16, imm: i32| bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(dst, src),
            off,
            imm,
        };
        let code = [
            instruction(0x7a, 10, 0, -256, 42), // *(u64 *)(r10 - 256) = 42
            instruction(0xb7, 0, 0, 0, 0),      // r0 = 0
            instruction(0x95, 0, 0, 0, 0),      // exit
        ];
        let program = sys::Program { kind: sys::PROGRAM_KPROBE, attach: 0, code: &code, function: 0 };
        sys::load(&program).unwrap()
    }

    #[test]
    fn no_program_for_go_has_a_stack_that_it_could_share_with_another_thread() {
        let features = Features::detect();
        if !features.bpf.yes() || !features.uprobe_multi.yes() {
            eprintln!("not tried: {:?}, {:?}", features.bpf, features.uprobe_multi);
            return;
        }
        let kernel = Kernel::load(&features, false).unwrap();
        assert_eq!(kernel.golang.len(), GoProgram::ALL.len());
        for (program, fd) in &kernel.golang {
            assert_ne!(has_private_stack(fd.as_ref().unwrap()), Some(true), "{program:?}");
        }
        // The control: on such a kernel the look at the machine code does find one.
        let release: Vec<u32> = features.kernel.split('.').map_while(|part| part.parse().ok()).collect();
        if has_private_stack(&deep()) == Some(false) {
            assert!(
                release < vec![6, 13],
                "{} gives no private stacks, or they look different",
                features.kernel
            );
        }
    }
}
