//! Which processes there are: a cheap scan of `/proc`, of which only what is new is looked at closely.
//!
//! Only `stat` and `status` are read, which wait neither for a disk nor for a lock that the process can hold for long,
//! and the identity of `exe`. The latter asks the server when the file lies on a network file system, so it goes through
//! a worker, and a file whose server does not answer is not asked about again until the first question came back.
//! Process ids are those of the root pid namespace ([`in_root_pid_namespace`]).
//!
//! A pid that was seen before may belong to another process, or to the same one after an exec. Reading `stat` of every
//! process every second to find out would cost tens of milliseconds on a large node. Instead:
//!
//! * the kernel hands pids out in ascending order, so only those between the last pid handed out before the previous
//!   scan (`/proc/loadavg`) and now can have been reused;
//! * a young process is looked at again after 1, 2, 4, … scans: that is when it execs;
//! * a few others are looked at again in each scan, so nothing stays wrong for long;
//! * who learns of an exec or exit by other means calls [`Processes::recheck`]; and as long as no pid is handed out,
//!   nothing can have come, and `/proc` need not be listed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::contained::Outside;
use super::worker::{WorkerError, Workers};
use super::{ReadError, clock, number, proc_folder, read_below, read_file};
use crate::event::{Device, Ns};

/// Processes remembered at most. Beyond it they are counted in [`Scan::beyond_limit`] and not looked at.
const LIMIT: usize = 65_536;
/// Old processes looked at again in each scan.
const RECHECKED: usize = 16;
/// The same in a scan that needs no list.
const RECHECKED_UNLISTED: usize = 4;
/// Scans in a row at most that need no list.
const UNLISTED: u32 = 4;
/// Longest wait for the identity of one file. In memory it takes microseconds.
const EXE_LOOK: Duration = Duration::from_millis(50);
/// Files that do not answer, remembered at most.
const HUNG: usize = 64;
/// `stat` and `status` are smaller than this.
const SMALL: usize = 16 * 1024;
/// Ticks per second of user-visible times. `USER_HZ` is 100 on every architecture that Linux calls x86 or arm64.
const TICK: Ns = 1_000_000_000 / 100;
/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PROC_PID_INIT_INO`: the inode of the root pid namespace, the same on every boot.
const ROOT_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A file's identity: it stays the same when the file is renamed or unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// The file system's device.
    pub device: Device,
    /// Inode number.
    pub inode: u64,
}

/// What a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exe {
    /// This file.
    File(FileId),
    /// Nothing: it is a kernel thread.
    KernelThread,
    /// A file below a container's root, which is left alone.
    Contained,
    /// Not to be seen, and why (it is exiting, or the kernel refuses).
    Unknown(String),
}

/// What is known of a process from the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// Who started it, or who adopted it by the time it was looked at.
    pub parent: u32,
    /// When it started, at most one clock tick (10 ms) too early and never too late.
    pub started: Ns,
    /// The same in clock ticks since boot, as the kernel gives it: with `pid` the identity of the process.
    pub start_ticks: u64,
    /// Its name, at most 15 bytes of its own choosing; kernel threads may have longer ones.
    pub comm: String,
    /// What it runs.
    pub exe: Exe,
    /// Its pid as it sees it itself (Go's `m.procid` counts there), from `NSpid` of `status`.
    pub innermost_pid: Option<u32>,
}

/// What changed since the previous scan. A process that replaced itself by exec, or a pid that now belongs to another
/// process, is in both lists. One whose file could not be told and now can is in `new` again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Not there before.
    pub new: Vec<ProcessFacts>,
    /// Not there any more, as they were last seen.
    pub gone: Vec<ProcessFacts>,
    /// Processes that were not looked at because too many are there already.
    pub beyond_limit: usize,
}

/// The processes of the node, as of the last scan.
pub struct Processes {
    known: BTreeMap<u32, Known>,
    /// The pid handed out last, before the previous scan began.
    last_pid: Option<u32>,
    /// Scans in a row that needed no list.
    unlisted: u32,
    /// Where the look at old processes goes on.
    rotor: u32,
    /// Files about which a question has not come back, while somebody else holds the mark too.
    hung: BTreeMap<PathBuf, Arc<()>>,
    /// Longest wait for the identity of one file.
    patience: Duration,
    outside: Outside,
}

struct Known {
    facts: ProcessFacts,
    /// Scans, or before its first one seconds, since it started or replaced itself.
    age: u32,
}

impl Known {
    /// It is one scan older; whether that is an age at which a young process is looked at again.
    fn grow(&mut self) -> bool {
        self.age = self.age.saturating_add(1);
        self.age <= 64 && self.age.is_power_of_two()
    }
}

impl Default for Processes {
    fn default() -> Self {
        Self::new()
    }
}

impl Processes {
    /// Nothing is known yet; the first scan finds everything new.
    pub fn new() -> Self {
        Processes {
            known: BTreeMap::new(),
            last_pid: None,
            unlisted: 0,
            rotor: 0,
            hung: BTreeMap::new(),
            patience: EXE_LOOK,
            outside: Outside::find(Vec::new()),
        }
    }

    /// The same, but these processes are looked at also when they run in a container.
    pub fn with(wanted: Vec<u32>) -> Self {
        Processes { outside: Outside::find(wanted), ..Self::new() }
    }

    /// What is known of a process as of the last look at it.
    pub fn get(&self, pid: u32) -> Option<&ProcessFacts> {
        self.known.get(&pid).map(|k| &k.facts)
    }

    /// All processes as of the last scan, by pid.
    pub fn iter(&self) -> impl Iterator<Item = &ProcessFacts> {
        self.known.values().map(|k| &k.facts)
    }

    /// Looks at which processes there are.
    ///
    /// With `told`, somebody calls [`Processes::recheck`] when a process that matters ends: then most scans need no list
    /// of processes while nothing is started on the node, and the end of another one may be missed for a few scans.
    pub fn scan(&mut self, workers: &Workers, told: bool) -> Result<Scan, ReadError> {
        let mut scan = Scan::default();
        self.hung.retain(|_, mark| Arc::strong_count(mark) > 1);
        // Read before the listing: what is handed out while we list is suspect in the next scan again.
        let handed_out = read_file("/proc/loadavg", SMALL).ok().and_then(|text| parse_last_pid(&text));
        if !self.needs_list(told, handed_out) {
            self.look_at_known(workers, &mut scan);
            return Ok(scan);
        }
        let mut listed = list()?;
        listed.sort_unstable();
        let newest = read_file("/proc/loadavg", SMALL).ok().and_then(|text| parse_last_pid(&text));

        let missing: Vec<u32> =
            self.known.keys().copied().filter(|pid| listed.binary_search(pid).is_err()).collect();
        for pid in missing {
            // A listing is not a snapshot; that it is gone is asked of the process itself.
            self.look_again(pid, workers, &mut scan);
        }

        let turn = self.turn(RECHECKED);
        for pid in listed {
            match self.known.get_mut(&pid) {
                None => self.look_first(pid, workers, &mut scan),
                Some(known) => {
                    let young = known.grow();
                    let reusable = match (self.last_pid, newest) {
                        (Some(from), Some(to)) => handed_out_between(from, to, pid),
                        _ => true,
                    };
                    if young || reusable || turn.binary_search(&pid).is_ok() {
                        self.look_again(pid, workers, &mut scan);
                    }
                }
            }
        }
        self.last_pid = handed_out;
        Ok(scan)
    }

    /// Looks at one process now: it is said to have started, replaced itself by exec, or ended.
    pub fn recheck(&mut self, pid: u32, workers: &Workers) -> Scan {
        let mut scan = Scan::default();
        if self.known.contains_key(&pid) {
            self.look_again(pid, workers, &mut scan);
        } else {
            self.look_first(pid, workers, &mut scan);
        }
        // Its other threads may take longer to end.
        if let Some(known) = self.known.get_mut(&pid) {
            known.age = 0;
        }
        scan
    }

    /// Whether the processes must be listed, of which the ends that matter are `told`; `handed_out` is the latest pid.
    fn needs_list(&mut self, told: bool, handed_out: Option<u32>) -> bool {
        let same = told && handed_out.is_some() && handed_out == self.last_pid;
        self.unlisted = if same && self.unlisted < UNLISTED { self.unlisted + 1 } else { 0 };
        self.unlisted == 0
    }

    /// Looks again at those whose turn it is: no pid was handed out since the last listing, so there is no other.
    fn look_at_known(&mut self, workers: &Workers, scan: &mut Scan) {
        let mut due = self.turn(RECHECKED_UNLISTED);
        due.extend(self.known.iter_mut().filter_map(|(pid, known)| known.grow().then_some(*pid)));
        due.sort_unstable();
        due.dedup();
        for pid in due {
            self.look_again(pid, workers, scan);
        }
    }

    /// The old processes whose turn it is, so many, ascending.
    fn turn(&mut self, most: usize) -> Vec<u32> {
        let mut turn: Vec<u32> = self.known.range(self.rotor..).map(|(pid, _)| *pid).take(most).collect();
        self.rotor = match turn.last() {
            Some(last) if turn.len() == most => last + 1,
            _ => 0,
        };
        turn.sort_unstable();
        turn
    }

    fn look_first(&mut self, pid: u32, workers: &Workers, scan: &mut Scan) {
        if self.known.len() >= LIMIT {
            scan.beyond_limit += 1;
            return;
        }
        // One that ended between the listing and the look was never there.
        if let Ok(facts) = self.look(pid, workers) {
            scan.new.push(facts.clone());
            // One that has long been running is not about to replace itself.
            let seconds = clock::monotonic().saturating_sub(facts.started) / 1_000_000_000;
            self.known.insert(pid, Known { facts, age: u32::try_from(seconds).unwrap_or(u32::MAX) });
        }
    }

    fn look_again(&mut self, pid: u32, workers: &Workers, scan: &mut Scan) {
        let looked = self.look(pid, workers);
        let Some(known) = self.known.get_mut(&pid) else { return };
        match looked {
            Ok(now) if now.start_ticks == known.facts.start_ticks => match (&known.facts.exe, &now.exe) {
                // A process that exits loses its file before it is gone: that is no change.
                (_, Exe::Unknown(_)) => known.facts = ProcessFacts { exe: known.facts.exe.clone(), ..now },
                (before, after) if before == after => known.facts = now,
                (Exe::Unknown(_), _) => {
                    known.facts = now.clone();
                    scan.new.push(now);
                }
                _ => Self::replace(known, now, scan),
            },
            Ok(now) => Self::replace(known, now, scan),
            Err(e) if e.is_gone() => {
                if let Some(known) = self.known.remove(&pid) {
                    scan.gone.push(known.facts);
                }
            }
            // Refused, or out of descriptors: nothing is concluded from that.
            Err(_) => {}
        }
    }

    fn replace(known: &mut Known, now: ProcessFacts, scan: &mut Scan) {
        scan.gone.push(std::mem::replace(&mut known.facts, now.clone()));
        known.age = 0;
        scan.new.push(now);
    }

    /// Looks at one process.
    fn look(&mut self, pid: u32, workers: &Workers) -> Result<ProcessFacts, ReadError> {
        let folder = proc_folder(pid)?;
        let read = |name: &str| {
            read_below(&folder, name, SMALL).map_err(|e| ReadError::new(format!("/proc/{pid}/{name}"), e))
        };
        let text = read("stat")?;
        let stat = parse_stat(&text).ok_or_else(|| {
            ReadError::malformed(format!("/proc/{pid}/stat"), String::from_utf8_lossy(&text))
        })?;
        if stat.is_over() {
            let gone = std::io::ErrorKind::NotFound;
            return Err(ReadError::new(format!("/proc/{pid}/stat"), gone));
        }
        let innermost_pid = parse_innermost_pid(&read("status")?);
        let exe = match self.outside.excludes(pid, folder.as_fd(), &stat.comm) {
            _ if stat.kernel_thread => Exe::KernelThread,
            Ok(true) => Exe::Contained,
            Ok(false) => self.exe(folder, workers),
            Err(e) => Exe::Unknown(e.to_string()),
        };
        Ok(ProcessFacts {
            pid,
            parent: stat.parent,
            started: stat.started(),
            start_ticks: stat.start_ticks,
            comm: stat.comm,
            exe,
            innermost_pid,
        })
    }

    /// Opens the program that these processes run, by one that has not gone, nor into a container, meanwhile. May hang.
    pub fn opener(&self, pids: &[u32]) -> impl FnOnce() -> Result<File, ReadError> + Send + 'static {
        let named = |pid: &u32| (*pid, self.get(*pid).map(|p| p.comm.clone()).unwrap_or_default());
        let (outside, processes) = (self.outside.clone(), pids.iter().map(named).collect::<Vec<_>>());
        move || outside.open(&processes)
    }

    /// What the process whose folder this is runs.
    fn exe(&mut self, folder: OwnedFd, workers: &Workers) -> Exe {
        // The text of the link comes from memory, whatever it points to.
        let path = match rustix::fs::readlinkat(&folder, "exe", Vec::new()) {
            Ok(path) => PathBuf::from(OsString::from_vec(path.into_bytes())),
            Err(e) => return Exe::Unknown(e.to_string()),
        };
        if self.hung.contains_key(&path) {
            return Exe::Unknown("its file system has not answered yet".into());
        }
        let mark = Arc::new(());
        let theirs = Arc::clone(&mark);
        let answer = workers.run(self.patience, move || {
            let answer = exe_of(folder);
            drop(theirs);
            answer
        });
        match answer {
            Ok(Ok(file)) => Exe::File(file),
            Ok(Err(e)) => Exe::Unknown(e.to_string()),
            Err(e) => {
                if matches!(e, WorkerError::TimedOut(_)) && self.hung.len() < HUNG {
                    self.hung.insert(path, mark);
                }
                Exe::Unknown(e.to_string())
            }
        }
    }
}

/// Address of the first instruction of a process's program, as loaded: `AT_ENTRY` of `/proc/PID/auxv`, which the kernel
/// answers from what it keeps itself, without a lock of the process.
pub fn entry_point(pid: u32) -> Result<u64, ReadError> {
    let path = format!("/proc/{pid}/auxv");
    let text = read_file(&path, SMALL)?;
    parse_entry_point(&text).ok_or_else(|| ReadError::malformed(path, format!("{} bytes", text.len())))
}

/// `AT_ENTRY` (9) in an auxiliary vector: pairs of 8-byte words, key and value.
pub fn parse_entry_point(vector: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    let entry = vector.chunks_exact(16).find(|pair| word(&pair[..8]) == Some(9))?;
    word(&entry[8..])
}

/// Whether the kernel may have handed out `pid` after `from` and up to `to`, if it went round at most once.
fn handed_out_between(from: u32, to: u32, pid: u32) -> bool {
    if from <= to { from < pid && pid <= to } else { from < pid || pid <= to }
}

/// Process ids in `/proc`, in no particular order.
fn list() -> Result<Vec<u32>, ReadError> {
    let entries = fs::read_dir("/proc").map_err(|e| ReadError::new("/proc", e))?;
    let mut pids = Vec::with_capacity(512);
    for entry in entries {
        let entry = entry.map_err(|e| ReadError::new("/proc", e))?;
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Identity of the file a process runs. Opened as a mere path: nothing of the file is read, and the attributes are
/// those in memory. Following the link may still ask a network file system whether the file is there.
fn exe_of(folder: OwnedFd) -> rustix::io::Result<FileId> {
    let file = rustix::fs::openat(folder, "exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let facts = rustix::fs::statx(file, "", flags, StatxFlags::INO)?;
    Ok(FileId {
        device: Device { major: facts.stx_dev_major, minor: facts.stx_dev_minor },
        inode: facts.stx_ino,
    })
}

/// Whether this process is in the root pid namespace, so that its `/proc` and its pids are the node's.
pub fn in_root_pid_namespace() -> Result<bool, ReadError> {
    let path = "/proc/self/ns/pid";
    let target = fs::read_link(path).map_err(|e| ReadError::new(path, e))?;
    Ok(target.as_os_str() == ROOT_PID_NAMESPACE)
}

/// The fields of `/proc/PID/stat` (or of a thread) that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Field 1.
    pub pid: u32,
    /// Field 2, without its parentheses. May hold anything, parentheses, spaces and newlines included.
    pub comm: String,
    /// Field 3: `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Field 4.
    pub parent: u32,
    /// Bit `PF_KTHREAD` of field 9.
    pub kernel_thread: bool,
    /// Field 20: threads, those that have ended and were not collected included.
    pub threads: u32,
    /// Field 22: start time in clock ticks since boot (`CLOCK_BOOTTIME`).
    pub start_ticks: u64,
}

impl Stat {
    /// Whether the process has ended and only its exit status is left, which its parent may never collect. A leader can
    /// end before its threads: then the process lives on.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    /// When it was started, ns of CLOCK_MONOTONIC, to 10 ms.
    pub(super) fn started(&self) -> Ns {
        (self.start_ticks * TICK).saturating_sub(clock::boottime_ahead())
    }
}

/// Reads `/proc/PID/stat`; `None` when it is not such a line. The name ends at the *last* closing parenthesis.
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|b| *b == b'(')?;
    let close = text.iter().rposition(|b| *b == b')')?;
    let pid = number(text.get(..open)?.trim_ascii())?;
    let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
    // Field 3 is the first of these.
    let mut fields = text.get(close + 1..)?.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
    let state = match fields.next()? {
        [letter] if letter.is_ascii_alphabetic() => char::from(*letter),
        _ => return None,
    };
    let parent = number(fields.next()?)?;
    let flags: u64 = number(fields.nth(4)?)?;
    let threads = number(fields.nth(10)?)?;
    let start_ticks: u64 = number(fields.nth(1)?)?;
    // A start time that no clock could hold is no start time.
    start_ticks.checked_mul(TICK)?;
    Some(Stat { pid, comm, state, parent, kernel_thread: flags & PF_KTHREAD != 0, threads, start_ticks })
}

/// The pid in the innermost pid namespace, from `/proc/PID/status`.
pub fn parse_innermost_pid(text: &[u8]) -> Option<u32> {
    // `Name:` escapes newlines, so no process can forge a line.
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"))?;
    number(line.split(u8::is_ascii_whitespace).rfind(|f| !f.is_empty())?)
}

/// The pid handed out last, the final field of `/proc/loadavg`.
pub fn parse_last_pid(text: &[u8]) -> Option<u32> {
    number(text.trim_ascii().rsplit(|b| *b == b' ').next()?)
}

#[cfg(test)]
mod tests;
