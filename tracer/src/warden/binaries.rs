//! From an executable to the sites that are probed in it: reads the file once, keeps only what is needed.

use super::verify::{self, Verdict};
use crate::{
    bpf::load::{GoProgram, SITE_BYTES, SiteRequest},
    event::{Kind, Role},
    golang::{
        GoBinary,
        catalog::{self, CATALOG, Job, Lookup, Place, Resolved},
        health::{self, Health},
        offsets::{Abi, Offsets},
        probe_site::{Cost, How, Site},
        unwind, version,
    },
    node::{
        ReadError,
        memory::ProcessMemory,
        procs::{self, Exe, Processes},
    },
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use tracer_common::cookie::Cookie;

/// Smaller files hold no Go program that matters (the smallest shim seen has 8 MiB); they are not read.
pub const SMALLEST: u64 = 4 << 20;

/// What is kept of an executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examined {
    /// What it is.
    pub role: Role,
    /// Its Go version, or why that is not usable.
    pub go_version: String,
    /// The program's own version, where it can be told.
    pub version: Option<String>,
    /// How a kubelet judges its PLEG, or why that cannot be told; `None` for other programs.
    pub health: Option<Result<Health, String>>,
    /// Address of `runtime.allgs` as the file has it.
    pub all_goroutines: Option<u64>,
    /// Its build id.
    pub build_id: Option<String>,
    /// Where its runtime keeps things.
    pub offsets: Option<Offsets>,
    /// Address of its first instruction as the file has it.
    pub entry: u64,
    /// Why goroutine numbers are not known although the version is; empty when they are.
    pub note: String,
    /// What can be probed in it, and what not and why.
    pub targets: Vec<Target>,
}

/// One function to probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What it tells of.
    pub kind: Kind,
    /// In words.
    pub what: String,
    /// Name of the function.
    pub function: String,
    /// Its sites, or why there are none.
    pub sites: Result<Vec<SiteRequest>, String>,
    /// How many of them the kernel emulates.
    pub emulated: u32,
    /// Why it is weaker than it could be; empty when it is not.
    pub note: String,
}

/// Reads an executable that process `pid` runs. `None` when it is not a Go program that takes part. May wait for the
/// disk: for a worker.
pub fn examine(file: &File, pid: u32, other: bool) -> Result<Option<Examined>, String> {
    // SAFETY: the file is being executed, so the kernel refuses to write to it or truncate it (ETXTBSY).
    let bytes = unsafe { memmap2::Mmap::map(file) }.map_err(|e| format!("its file cannot be mapped: {e}"))?;
    let binary = match GoBinary::parse(&bytes) {
        Ok(binary) => binary,
        // Most programs are not Go programs.
        Err(why) if other => return Err(why.to_string()),
        Err(_) => return Ok(None),
    };
    let lookup = Lookup::of(&binary);
    let Some(role) = lookup.roles().first().copied().or(other.then_some(Role::Other)) else {
        return Ok(None);
    };
    let mut offsets = binary.offsets();
    let mut note = String::new();
    if let Ok(table) = &mut offsets
        && let Verdict::Refuted(why) = verify(&binary, pid, table)
    {
        // Everything else in the table is as doubtful as this; the probes themselves need only the goroutine's address.
        note = format!(
            "goroutine numbers are not shown: the process disagrees with the table for {} ({why})",
            binary.build.go
        );
        table.goid = 0;
    }
    let abi = binary.abi();
    let mut targets: Vec<Target> = match (&abi, &offsets) {
        (Ok(abi), Ok(offsets)) => {
            lookup.resolve(role).iter().filter_map(|r| target(role, r, *abi, offsets)).collect()
        }
        (Err(why), _) | (_, Err(why)) => {
            let refused = |entry: &catalog::Entry| Target {
                kind: entry.kind,
                what: describe(role, entry),
                function: String::new(),
                sites: Err(why.to_string()),
                emulated: 0,
                note: String::new(),
            };
            catalog::entries(role).filter(|e| e.job != Job::Release).map(refused).collect()
        }
    };
    for site in targets.iter_mut().flat_map(|target| target.sites.iter_mut().flatten()) {
        site.bytes = bytes_at(&bytes, site.offset);
    }
    Ok(Some(Examined {
        role,
        go_version: match &binary.version {
            Ok(_) => binary.build.go.clone(),
            Err(why) => why.to_string(),
        },
        version: version::of(&binary, role),
        health: (role == Role::Kubelet).then(|| health::of(&binary).map_err(|why| why.to_string())),
        all_goroutines: unwind::all_goroutines(&binary).ok(),
        build_id: binary.build_id(),
        offsets: offsets.ok().filter(|_| note.is_empty()),
        entry: binary.elf.entry(),
        note,
        targets,
    }))
}

/// Holds the table of offsets against the running process.
fn verify(binary: &GoBinary<'_>, pid: u32, table: &Offsets) -> Verdict {
    let place = || {
        let slice = unwind::all_goroutines(binary).map_err(|why| why.to_string())?;
        let bias = bias(pid, binary.elf.entry()).map_err(|why| why.to_string())?;
        let memory = ProcessMemory::open(pid).map_err(|why| why.to_string())?;
        Ok::<_, String>((memory, slice.wrapping_add(bias)))
    };
    match place() {
        Ok((memory, slice)) => verify::offsets(&memory, table, slice),
        Err(why) => Verdict::Unknown(why),
    }
}

/// How far a process's program was moved when it was loaded; 0 for one that is not position independent.
pub fn bias(pid: u32, entry: u64) -> Result<u64, ReadError> {
    Ok(procs::entry_point(pid)?.wrapping_sub(entry))
}

/// How many processes have a program that this user may not look at and root might.
pub fn unreadable(processes: &Processes) -> u32 {
    if rustix::process::geteuid().is_root() {
        return 0;
    }
    let refused = rustix::io::Errno::ACCESS.to_string();
    processes.iter().filter(|p| matches!(&p.exe, Exe::Unknown(why) if *why == refused)).count() as u32
}

/// Name of a method by its number, which is its place in the catalogue.
pub fn method_name(_: Kind, number: u8) -> &'static str {
    CATALOG.get(usize::from(number)).map_or("", |entry| entry.method)
}

fn number_of(entry: &'static catalog::Entry) -> Option<u8> {
    CATALOG.iter().position(|e| std::ptr::eq(e, entry)).and_then(|at| u8::try_from(at).ok())
}

fn describe(role: Role, entry: &catalog::Entry) -> String {
    let program = match role {
        Role::Containerd => "containerd",
        Role::Shim => "shim",
        Role::Kubelet => "kubelet",
        Role::Other => "program",
    };
    let what = match (entry.kind, entry.job) {
        (Kind::LockWait, Job::Wake) => "wake-ups of lock waits",
        (Kind::LockWait, _) => "lock waits",
        (Kind::LockHold, Job::HoldEnd) => "write locks released",
        (Kind::LockHold, _) => "write locks taken",
        (Kind::Relist, _) => "PLEG relist",
        (Kind::CriClient, _) => "CRI call made:",
        (Kind::CriCall, _) => "CRI call served:",
        (Kind::StatusUpdate, _) => "Status lock:",
        (Kind::ExitHandling, _) => "exit handling",
        (Kind::ShimCall, _) => "calls to shims",
        (Kind::ShimServe, _) => "request served:",
        (Kind::InitMethod, _) => "Init:",
        (Kind::Unmount, _) => "unmount",
        (Kind::SuperShutdown | Kind::Sync | Kind::Stalled, _) => "",
    };
    format!("{program}: {what} {}", entry.method).trim_end().to_owned()
}

/// What is asked of the kernel half for one function; `None` for what is not attached on purpose.
fn target(role: Role, resolved: &Resolved, abi: Abi, offsets: &Offsets) -> Option<Target> {
    let entry = resolved.entry;
    // What semrelease1 tells (which semaphore is released) is read from the wait that readyWithTime ends.
    if entry.job == Job::Release {
        return None;
    }
    let sites = match (&resolved.function, &resolved.begin, &resolved.ends) {
        (_, Err(why), _) | (_, _, Err(why)) => Err(why.to_string()),
        (None, ..) => Err("the program does not have it".into()),
        (Some(_), Ok(begin), Ok(ends)) => Ok((*begin, ends)),
    };
    let number = number_of(entry)?;
    let mut emulated = 0;
    let sites = sites.map(|(begin, ends)| {
        let mut requests =
            vec![request(begin_program(entry), begin, begin_cookie(number, resolved, begin, abi, offsets))];
        requests.extend(
            ends.iter().map(|site| request(end_program(entry), *site, end_cookie(number, entry, *site, abi))),
        );
        emulated = [begin].iter().chain(ends).filter(|site| site.cost == Cost::Emulated).count() as u32;
        requests
    });
    Some(Target {
        kind: entry.kind,
        what: describe(role, entry),
        function: resolved.function.as_ref().map(|(name, _)| name.clone()).unwrap_or_default(),
        sites,
        emulated,
        note: String::new(),
    })
}

fn request(program: GoProgram, site: Site, cookie: Cookie) -> SiteRequest {
    SiteRequest {
        program,
        offset: site.file_offset,
        address: site.va,
        cookie: cookie.0,
        bytes: [0; SITE_BYTES],
        stepped: site.cost != Cost::Emulated,
    }
}

/// What the file has at a site.
fn bytes_at(file: &[u8], offset: u64) -> [u8; SITE_BYTES] {
    let mut bytes = [0; SITE_BYTES];
    let rest = usize::try_from(offset).ok().and_then(|at| file.get(at..)).unwrap_or_default();
    bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    bytes
}

fn begin_program(entry: &catalog::Entry) -> GoProgram {
    match (entry.job, entry.kind) {
        (Job::Span, Kind::LockWait) => GoProgram::LockWait,
        (Job::Span, _) => GoProgram::Operation,
        (Job::HoldBegin, _) => GoProgram::WriteLock,
        (Job::HoldEnd, _) => GoProgram::WriteUnlock,
        (Job::Release | Job::Wake, _) => GoProgram::Wake,
    }
}

fn end_program(entry: &catalog::Entry) -> GoProgram {
    if entry.kind == Kind::LockWait { GoProgram::LockWaitEnd } else { GoProgram::OperationEnd }
}

fn common(number: u8, kind: Kind, site: Site, abi: Abi) -> Cookie {
    Cookie::new(crate::decode::number_of(kind), number)
        .with_stack_abi(abi == Abi::Stack)
        .with_stack_check(site.how == How::StackCheckBranch)
}

fn begin_cookie(number: u8, resolved: &Resolved, site: Site, abi: Abi, offsets: &Offsets) -> Cookie {
    let entry = resolved.entry;
    let mut cookie = common(number, entry.kind, site, abi).with_goid_offset(offsets.goid);
    if let Some(word) = entry.object {
        cookie = cookie.with_object(word);
    }
    if let Some(word) = entry.method_words {
        cookie = cookie.with_name_argument(word);
    }
    let mut places = resolved.places.iter();
    match places.next() {
        Some(Place::Words(word)) => cookie = cookie.with_text_argument(*word),
        Some(Place::Field { word, offset }) => cookie = cookie.with_text_field(*word, *offset),
        None => {}
    }
    match places.next() {
        Some(Place::Words(word)) => cookie.with_second(u16::from(*word)),
        Some(Place::Field { offset, .. }) => cookie.with_second(*offset),
        None => cookie,
    }
}

fn end_cookie(number: u8, entry: &catalog::Entry, site: Site, abi: Abi) -> Cookie {
    let cookie = common(number, entry.kind, site, abi);
    match (entry.error_result, abi) {
        (Some(result), Abi::Register) => cookie.with_error_result(result.register),
        // The first word above the return address is word 0.
        (Some(catalog::ErrorResult { stack: Some(stack), .. }), Abi::Stack) => {
            cookie.with_error_result(stack / 8 - 1)
        }
        (_, _) => cookie,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_the_catalogue_has_a_number_and_a_name_for_people() {
        for entry in CATALOG {
            let number = number_of(entry).expect("the catalogue fits into a byte");
            assert_eq!(method_name(entry.kind, number), entry.method);
            assert!(!describe(Role::Shim, entry).ends_with(':'), "{entry:?}");
        }
    }

    #[test]
    fn a_lock_wait_is_begun_and_ended_by_its_own_programs() {
        let entry = CATALOG.iter().find(|e| e.kind == Kind::LockWait && e.job == Job::Span).unwrap();
        assert_eq!((begin_program(entry), end_program(entry)), (GoProgram::LockWait, GoProgram::LockWaitEnd));
        // The kernel half tests the profile flags itself, so the catalogue must not ask for anything else.
        let filter = entry.only_if.unwrap();
        assert_eq!((filter.word, filter.mask, filter.equals), (2, 3, 3));
        assert!(CATALOG.iter().filter(|e| e.only_if.is_some()).count() == 1);
    }
}
