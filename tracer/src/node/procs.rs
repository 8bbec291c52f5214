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
//! * who learns of an exec or exit by other means calls [`Processes::recheck`].

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
    pub fn scan(&mut self, workers: &Workers) -> Result<Scan, ReadError> {
        let mut scan = Scan::default();
        self.hung.retain(|_, mark| Arc::strong_count(mark) > 1);
        // Read before the listing: what is handed out while we list is suspect in the next scan again.
        let handed_out = read_file("/proc/loadavg", SMALL).ok().and_then(|text| parse_last_pid(&text));
        let mut listed = list()?;
        listed.sort_unstable();
        let newest = read_file("/proc/loadavg", SMALL).ok().and_then(|text| parse_last_pid(&text));

        let missing: Vec<u32> =
            self.known.keys().copied().filter(|pid| listed.binary_search(pid).is_err()).collect();
        for pid in missing {
            // A listing is not a snapshot; that it is gone is asked of the process itself.
            self.look_again(pid, workers, &mut scan);
        }

        let turn = self.turn();
        for pid in listed {
            match self.known.get_mut(&pid) {
                None => self.look_first(pid, workers, &mut scan),
                Some(known) => {
                    known.age = known.age.saturating_add(1);
                    let young = known.age <= 64 && known.age.is_power_of_two();
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
        scan
    }

    /// The old processes whose turn it is, ascending.
    fn turn(&mut self) -> Vec<u32> {
        let mut turn: Vec<u32> =
            self.known.range(self.rotor..).map(|(pid, _)| *pid).take(RECHECKED).collect();
        self.rotor = match turn.last() {
            Some(last) if turn.len() == RECHECKED => last + 1,
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
mod tests {
    use super::*;
    use crate::node::alive::alive_since;

    #[test]
    fn the_entry_point_is_where_the_program_says_it_is() {
        // SAFETY: takes a number only.
        let truth = unsafe { libc::getauxval(libc::AT_ENTRY) };
        assert_eq!(entry_point(std::process::id()).unwrap(), truth);
        assert_eq!(parse_entry_point(&[0; 31]), None);
    }

    use proptest::prelude::*;
    use std::os::linux::fs::MetadataExt;
    use std::process::{Command, Stdio};

    const PLAIN: &[u8] = b"7955 (cat) R 7951 7951 5696 0 -1 4194304 103 0 0 0 0 0 0 0 20 0 1 0 115339 3133440 418 \
        18446744073709551615 94918373081088 94918373100969 140736211113104 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 \
        94918373116976 94918373118592 94918561292288 140736211118838 140736211118838 140736211118838 140736211120107 0\n";

    #[test]
    fn a_plain_line() {
        let stat = parse_stat(PLAIN).unwrap();
        let expected = Stat {
            pid: 7955,
            comm: "cat".into(),
            state: 'R',
            parent: 7951,
            kernel_thread: false,
            threads: 1,
            start_ticks: 115_339,
        };
        assert_eq!(stat, expected);
    }

    #[test]
    fn a_zombie_is_over_but_a_leader_that_left_its_threads_is_not() {
        let line = |state: &str, threads: u32| {
            let text = String::from_utf8_lossy(PLAIN).replace(" R ", &format!(" {state} "));
            parse_stat(text.replace(" 20 0 1 0 ", &format!(" 20 0 {threads} 0 ")).as_bytes()).unwrap()
        };
        assert!(line("Z", 1).is_over() && line("X", 0).is_over());
        assert!(!line("Z", 3).is_over() && !line("S", 1).is_over() && !line("D", 1).is_over());

        let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        // Blocks until the child has ended, and leaves it a zombie.
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
        // SAFETY: `info` takes what waitid writes; WNOWAIT leaves the child to be collected below.
        let ended =
            unsafe { libc::waitid(libc::P_PID, pid, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
        assert_eq!(ended, 0);
        assert_eq!(alive_since(pid), None, "a zombie");
        let mut processes = Processes::new();
        let scan = processes.recheck(pid, &Workers::new(1));
        assert!(scan.new.is_empty() && processes.get(pid).is_none());
        child.wait().unwrap();
        assert!(alive_since(std::process::id()).is_some());
    }

    #[test]
    fn names_that_look_like_fields() {
        let nasty: [&[u8]; 6] = [b"a) S 1 1 (b", b"(((", b")))", b"x\ny z", b"", b"\xff\xfe)"];
        for name in nasty {
            let mut line = b"12 (".to_vec();
            line.extend_from_slice(name);
            line.extend_from_slice(b") D 1 1 1 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 42 0 0\n");
            let stat = parse_stat(&line).unwrap();
            assert_eq!(stat.comm, String::from_utf8_lossy(name));
            assert_eq!((stat.state, stat.parent, stat.start_ticks), ('D', 1, 42));
            assert!(stat.kernel_thread);
        }
    }

    #[test]
    fn cut_or_absurd_lines_are_refused() {
        for end in 0..120 {
            let cut = &PLAIN[..end.min(PLAIN.len())];
            if let Some(stat) = parse_stat(cut) {
                // Only a line cut inside or behind field 22 can be read at all.
                assert!(end >= 68, "{end}: {stat:?}");
            }
        }
        let absurd = b"1 (x) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615 0";
        assert_eq!(parse_stat(absurd), None);
    }

    #[test]
    fn the_innermost_pid_is_the_last_one() {
        assert_eq!(
            parse_innermost_pid(b"Name:\tx\nNStgid:\t10123\t1\nNSpid:\t10123\t7\t1\nNSpgid:\t9\n"),
            Some(1)
        );
        assert_eq!(parse_innermost_pid(b"NSpid:\t52\n"), Some(52));
        assert_eq!(parse_innermost_pid(b"Name:\ta\\nNSpid:\t5\n"), None);
    }

    #[test]
    fn pids_go_round() {
        assert!(handed_out_between(10, 20, 11) && handed_out_between(10, 20, 20));
        assert!(!handed_out_between(10, 20, 10) && !handed_out_between(10, 20, 21));
        assert!(!handed_out_between(10, 10, 10) && !handed_out_between(10, 10, 11));
        assert!(handed_out_between(32_700, 400, 32_701) && handed_out_between(32_700, 400, 301));
        assert!(!handed_out_between(32_700, 400, 5_000));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_stat(&bytes), parse_innermost_pid(&bytes), parse_last_pid(&bytes));
        }

        #[test]
        fn any_name_comes_back(name in proptest::collection::vec(any::<u8>(), 0..40), ticks in 0u64..1 << 40) {
            let mut line = b"3 (".to_vec();
            line.extend_from_slice(&name);
            line.extend_from_slice(format!(") S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0").as_bytes());
            let stat = parse_stat(&line).unwrap();
            prop_assert_eq!(stat.comm, String::from_utf8_lossy(&name));
            prop_assert_eq!(stat.start_ticks, ticks);
        }
    }

    /// Never gives up on a file: a loaded machine is no reason for a test to fail.
    fn patient() -> Processes {
        Processes { patience: Duration::from_secs(600), ..Processes::new() }
    }

    /// A child that waits for its standard input to close.
    fn waiting_child() -> std::process::Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_child_is_seen_with_its_start_time_and_its_end() {
        let (mut processes, workers) = (patient(), Workers::new(2));
        processes.scan(&workers).unwrap();
        let before = clock::monotonic();
        let mut child = waiting_child();
        let after = clock::monotonic();
        let pid = child.id();

        let scan = processes.scan(&workers).unwrap();
        let facts = scan.new.iter().find(|p| p.pid == pid).unwrap();
        assert_eq!(facts.parent, std::process::id());
        // Field 22 is cut to 10 ms, downwards.
        assert!(
            facts.started <= after && facts.started + TICK >= before,
            "{before} {} {after}",
            facts.started
        );
        assert!(!scan.gone.iter().any(|p| p.pid == pid));

        drop(child.stdin.take());
        child.wait().unwrap();
        let scan = processes.scan(&workers).unwrap();
        assert!(scan.gone.iter().any(|p| p.pid == pid));
        assert!(processes.get(pid).is_none());
    }

    #[test]
    fn the_exe_is_the_file_that_stat_names() {
        let facts = patient().look(std::process::id(), &Workers::new(1)).unwrap();
        let file = fs::metadata(std::env::current_exe().unwrap()).unwrap();
        let Exe::File(id) = facts.exe else { panic!("{facts:?}") };
        assert_eq!(id.inode, file.st_ino());
        assert_eq!(
            (id.device.major, id.device.minor),
            (libc::major(file.st_dev()), libc::minor(file.st_dev()))
        );
        assert!(facts.innermost_pid.is_some());
    }

    #[test]
    fn an_exec_is_an_end_and_a_beginning() {
        // The shell waits for a line, then becomes cat.
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut processes, workers) = (patient(), Workers::new(2));
        // spawn() returns after the exec of sh.
        processes.scan(&workers).unwrap();
        let first = processes.get(child.id()).unwrap().clone();
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, b"go\nback\n").unwrap();
        // cat gives the second line back only after it was executed.
        let mut answer = [0u8; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
        assert_eq!(&answer, b"back\n");

        let scan = processes.recheck(child.id(), &workers);
        assert_eq!(scan.gone, vec![first.clone()]);
        assert_eq!(scan.new.len(), 1);
        assert_eq!(scan.new[0].start_ticks, first.start_ticks);
        assert_eq!(scan.new[0].comm, "cat");
        assert_ne!(scan.new[0].exe, first.exe);
        drop(stdin);
        child.wait().unwrap();
        let scan = processes.recheck(child.id(), &workers);
        assert_eq!((scan.new.len(), scan.gone.len()), (0, 1));
    }

    #[test]
    fn another_process_with_the_same_pid_is_another_process() {
        let (mut processes, workers) = (patient(), Workers::new(2));
        let pid = std::process::id();
        let mut old = processes.look(pid, &workers).unwrap();
        old.start_ticks -= 1;
        processes.known.insert(pid, Known { facts: old.clone(), age: 1000 });
        let scan = processes.scan(&workers).unwrap();
        assert_eq!(scan.gone.iter().filter(|p| p.pid == pid).collect::<Vec<_>>(), [&old]);
        assert!(scan.new.iter().any(|p| p.pid == pid && p.start_ticks == old.start_ticks + 1));
    }

    #[test]
    fn a_file_that_cannot_be_told_is_told_later() {
        let pid = std::process::id();
        let mut processes = patient();
        let scan = processes.recheck(pid, &Workers::new(0));
        assert!(
            matches!(&scan.new[0].exe, Exe::Unknown(why) if why.contains("workers are taken")),
            "{scan:?}"
        );
        let scan = processes.recheck(pid, &Workers::new(1));
        assert!(matches!(scan.new[0].exe, Exe::File(_)) && scan.gone.is_empty(), "{scan:?}");
        // Once known it is not forgotten.
        assert_eq!(processes.recheck(pid, &Workers::new(0)), Scan::default());
        assert!(matches!(processes.get(pid).unwrap().exe, Exe::File(_)));
    }

    #[test]
    fn a_file_system_that_hangs_is_asked_once() {
        let (mut processes, workers) = (patient(), Workers::new(1));
        let pid = std::process::id();
        let path = fs::read_link("/proc/self/exe").unwrap();
        let mark = Arc::new(());
        processes.hung.insert(path.clone(), Arc::clone(&mark));
        let scan = processes.recheck(pid, &workers);
        assert!(matches!(&scan.new[0].exe, Exe::Unknown(why) if why.contains("not answered")), "{scan:?}");
        assert_eq!(workers.threads(), 0);
        // It has come back: the next scan asks again.
        drop(mark);
        let scan = processes.scan(&workers).unwrap();
        assert!(!processes.hung.contains_key(&path));
        assert!(scan.new.iter().any(|p| p.pid == pid && matches!(p.exe, Exe::File(_))));
    }
}
