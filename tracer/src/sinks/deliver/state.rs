//! The state file: what is blocked right now, in one line for health checks, and in JSON below it. On a tmpfs, so that
//! it can be read while every disk hangs; replaced as a whole, by a thread of its own.

use super::Count;
use crate::alert::Alerts;
use crate::correlator::{Frame, Incident};
use crate::event::Ns;
use crate::thresholds::SECOND;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Version of the file.
pub const VERSION: u32 = 1;
/// It is written again after this time also when nothing has changed.
pub const EVERY: Ns = 2 * SECOND;
/// What is older than this is not believed: its writer is gone, or stands still itself.
pub const STALE: Ns = 15 * SECOND;
/// Incidents that are listed.
const LISTED: usize = 16;
/// Bytes that the file has at most.
pub const MOST: usize = 64 << 10;
/// Where it is, and where else when that is no tmpfs.
pub const FOLDERS: [&str; 2] = ["/run", "/dev/shm"];
/// The folder of all that plegscope keeps there.
pub const FOLDER: &str = "plegscope";
/// The name of the state file in it.
pub const FILE: &str = "state";
/// The name of the folder with incidents in it.
pub const INCIDENTS: &str = "incidents";

/// What a health check wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing is blocked for too long.
    Fine,
    /// Something is.
    Problem,
    /// It cannot be told.
    Unknown,
}

/// The JSON of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`].
    pub version: u32,
    /// Whether something is blocked.
    pub health: Health,
    /// The first line of the file.
    pub line: String,
    /// When it was written, `CLOCK_MONOTONIC` of this boot.
    pub at: Ns,
    /// The same as time of day.
    pub time: String,
    /// Id of the boot.
    pub boot_id: String,
    /// Process that wrote it.
    pub pid: u32,
    /// Incidents that are open, the longest first; at most 16.
    pub open: Vec<Blocked>,
    /// How many are open in all.
    pub open_total: u64,
    /// Incidents that were told since the start.
    pub told: u64,
    /// Notices that were held back since the start.
    pub held: u64,
    /// What has become of the alerts.
    pub deliveries: Vec<Count>,
    /// What cannot be seen, in words.
    pub blind_spots: Vec<String>,
    /// Records lost since the start.
    pub lost: u64,
}

/// An incident that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Its id.
    pub id: String,
    /// How long its oldest stuck call has lasted, ns.
    pub age: Ns,
    /// Its sentence.
    pub sentence: String,
}

/// What the frames do not tell.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Id of the boot.
    pub boot_id: String,
    /// The moment of the frame as time of day.
    pub time: String,
    /// Incidents told since the start.
    pub told: u64,
    /// What has become of the alerts.
    pub deliveries: Vec<Count>,
    /// Why nothing can be told yet, or any more: it is not attached yet, no containerd is there.
    pub blind: Option<String>,
}

impl State {
    /// The state at a frame.
    pub fn of(frame: &Frame, alerts: &Alerts, beside: Beside) -> State {
        let mut open: Vec<&Incident> = frame.incidents.iter().filter(|i| i.ended.is_none()).collect();
        open.sort_by_key(|incident| incident.since);
        let blocked = |incident: &&Incident| Blocked {
            id: incident.id.clone(),
            age: frame.now.saturating_sub(incident.since),
            sentence: incident.summary.clone(),
        };
        let blind_spots: Vec<String> =
            frame.blind_spots.iter().take(LISTED).map(|b| format!("{}: {}", b.what, b.reason)).collect();
        // NotReady is what a node's health hangs on; then what has lasted longest.
        let worst =
            open.iter().max_by_key(|i| (i.summary.contains("NotReady"), frame.now.saturating_sub(i.since)));
        let (health, line) = match (worst, beside.blind) {
            (Some(worst), _) => (Health::Problem, plain(&worst.summary)),
            (None, Some(why)) => (Health::Unknown, format!("UNKNOWN {why}")),
            (None, None) if blind_spots.is_empty() => (Health::Fine, "OK nothing is stuck".to_owned()),
            (None, None) => {
                (Health::Fine, format!("OK nothing is seen to be stuck; {} blind spots", blind_spots.len()))
            }
        };
        State {
            version: VERSION,
            health,
            line: super::sanitise(&line).into_owned(),
            at: frame.now,
            time: beside.time,
            boot_id: beside.boot_id,
            pid: std::process::id(),
            open_total: open.len() as u64,
            open: open.iter().take(LISTED).map(blocked).collect(),
            told: beside.told,
            held: alerts.held,
            deliveries: beside.deliveries,
            blind_spots,
            lost: frame.losses.iter().map(|loss| loss.count).sum(),
        }
    }

    /// The file: the line, and the JSON below it.
    pub fn file(&self) -> Vec<u8> {
        let mut out = format!("{}\n", self.line).into_bytes();
        // Writing plain data into memory does not fail.
        let _ = super::json::append(&mut out, self);
        out
    }

    /// Reads a file, and what it means at `now` of this boot. An error says why it cannot be told.
    pub fn read(file: &[u8], now: Ns, boot_id: &str) -> Result<State, String> {
        let json = file.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
        let state: State =
            serde_json::from_slice(json).map_err(|error| format!("the state file is damaged: {error}"))?;
        if state.version != VERSION {
            return Err(format!("the state file has version {}, not {VERSION}", state.version));
        }
        if state.boot_id != boot_id {
            return Err("the state file is of another boot".to_owned());
        }
        let age = now.saturating_sub(state.at);
        if age > STALE {
            let words = crate::correlator::words::duration(age);
            return Err(format!("plegscope watch has told nothing for {words}: it has ended, or hangs"));
        }
        Ok(state)
    }
}

/// Two bytes less for each dot: a health check cuts the line at 80 bytes.
fn plain(sentence: &str) -> String {
    sentence.replace(" · ", "; ")
}

/// The folder for what must be readable while every disk hangs. An error says why there is none.
pub fn folder() -> Result<PathBuf, String> {
    let mut why = Vec::new();
    for base in FOLDERS {
        match is_in_memory(Path::new(base)) {
            Ok(true) => return Ok(Path::new(base).join(FOLDER)),
            Ok(false) => why.push(format!("{base} is no tmpfs")),
            Err(error) => why.push(format!("{base}: {error}")),
        }
    }
    Err(why.join(", "))
}

/// Whether a folder is in memory alone.
pub fn is_in_memory(folder: &Path) -> io::Result<bool> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(folder)?.f_type as u64;
    Ok(kind == TMPFS || kind == RAMFS)
}

/// Writes the newest state, by a thread of its own; what is older and was not written yet is left out.
pub struct StateFile {
    slot: Arc<Slot>,
}

#[derive(Default)]
struct Slot {
    newest: Mutex<Newest>,
    changed: Condvar,
}

#[derive(Default)]
struct Newest {
    bytes: Option<Vec<u8>>,
    closed: bool,
    /// Nobody will write it any more: it is taken away.
    over: bool,
    failures: u64,
    error: Option<String>,
}

impl StateFile {
    /// Starts the thread.
    pub fn start(path: PathBuf) -> io::Result<StateFile> {
        let slot = Arc::<Slot>::default();
        let theirs = Arc::clone(&slot);
        thread::Builder::new()
            .name("state".into())
            .stack_size(128 << 10)
            .spawn(move || theirs.work(&path))?;
        Ok(StateFile { slot })
    }

    /// The state is this now; never waits.
    pub fn set(&self, bytes: Vec<u8>) {
        self.slot.newest.lock().unwrap_or_else(PoisonError::into_inner).bytes = Some(bytes);
        self.slot.changed.notify_all();
    }

    /// Nobody watches any more, and nobody shall believe that somebody does: the file goes. Not waited for longer than
    /// `patience`.
    pub fn end(self, patience: Duration) {
        let mut newest = self.slot.newest.lock().unwrap_or_else(PoisonError::into_inner);
        (newest.closed, newest.over, newest.bytes) = (true, true, None);
        self.slot.changed.notify_all();
        let gone = self.slot.changed.wait_timeout_while(newest, patience, |newest| newest.over);
        drop(gone);
    }

    /// How often it could not be written, and why not lately.
    pub fn failures(&self) -> (u64, Option<String>) {
        let newest = self.slot.newest.lock().unwrap_or_else(PoisonError::into_inner);
        (newest.failures, newest.error.clone())
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        self.slot.newest.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.slot.changed.notify_all();
    }
}

impl Slot {
    fn work(&self, path: &Path) {
        /// After a failure: others may need what is scarce.
        const PAUSE: Duration = Duration::from_secs(1);
        loop {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = loop {
                match newest.bytes.take() {
                    Some(bytes) => break bytes,
                    None if newest.over => {
                        drop(newest);
                        let _ = fs::remove_file(path);
                        self.newest.lock().unwrap_or_else(PoisonError::into_inner).over = false;
                        self.changed.notify_all();
                        return;
                    }
                    None if newest.closed => return,
                    None => newest = self.changed.wait(newest).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(newest);
            let result = replace(path, &bytes);
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(()) => newest.error = None,
                Err(error) => {
                    newest.failures += 1;
                    newest.error = Some(format!("{}: {error}", path.display()));
                    if !newest.closed {
                        drop(newest);
                        thread::sleep(PAUSE);
                    }
                }
            }
        }
    }
}

/// Replaces a file by a whole one, or leaves it. Everybody may read it: it says no more than a node's events do.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    if folder.ends_with(FOLDER) {
        // Whoever made it, with whatever mask: what is for root alone in it says so itself.
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    }
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = folder.join(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let write = || {
        let mut file = File::from(rustix::fs::open(&new, flags, mode)?);
        // Also where the mask of a service says otherwise.
        rustix::fs::fchmod(&file, mode)?;
        file.write_all(bytes)?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Settings;
    use crate::correlator::{BlindSpot, EndsIn};
    use std::time::Instant;

    fn state(frame: &Frame, blind: Option<&str>) -> State {
        let alerts = Alerts::new(Settings { hold_off: 0, not_ready_within: 0 });
        let beside = Beside {
            boot_id: "boot".into(),
            time: "now".into(),
            blind: blind.map(str::to_owned),
            ..Beside::default()
        };
        State::of(frame, &alerts, beside)
    }

    fn incident(id: &str, since: Ns, summary: &str) -> Incident {
        Incident {
            id: id.into(),
            opened: since,
            since,
            ended: None,
            crossed_by: String::new(),
            ends_in: EndsIn::StatusWrite,
            signature: String::new(),
            summary: summary.into(),
            cause: String::new(),
            level: 0,
            longest: 0,
            stuck_calls: 0,
            containers: Vec::new(),
            consequences: Vec::new(),
            change: None,
            uncertain_end: None,
            last: None,
        }
    }

    #[test]
    fn the_line_says_the_worst_within_80_bytes() {
        let mut frame = Frame { now: 100 * SECOND, ..Frame::default() };
        assert_eq!(state(&frame, None).line, "OK nothing is stuck");
        assert_eq!(state(&frame, Some("it is not attached yet")).health, Health::Unknown);
        frame.blind_spots = vec![BlindSpot { what: "Go locks".into(), reason: "off".into() }];
        assert_eq!(state(&frame, None).line, "OK nothing is seen to be stuck; 1 blind spots");
        frame.incidents = vec![
            incident("old", SECOND, "STUCK 1m39s · mount busy of other/pod"),
            incident(
                "bad",
                50 * SECOND,
                "STUCK 50s · NotReady in 2m10s · sync of /dev/nvme1n1 in the unmount of prod/job-7 · 3 calls wait",
            ),
        ];
        let state = state(&frame, Some("it is not attached yet"));
        assert_eq!((state.health, state.open_total), (Health::Problem, 2), "what is seen counts");
        let first: String = state.line.chars().take(80).collect();
        assert_eq!(first, "STUCK 50s; NotReady in 2m10s; sync of /dev/nvme1n1 in the unmount of prod/job-7;");
        assert_eq!(state.open[0].id, "old", "the longest first");
    }

    #[test]
    fn what_is_stale_foreign_or_damaged_is_not_believed() {
        let frame = Frame { now: 100 * SECOND, ..Frame::default() };
        let file = state(&frame, None).file();
        assert!(file.starts_with(b"OK nothing is stuck\n{"));
        let read = |file: &[u8], now, boot| State::read(file, now, boot).map(|state| state.health);
        assert_eq!(read(&file, 101 * SECOND, "boot"), Ok(Health::Fine));
        assert_eq!(read(&file, 115 * SECOND, "boot"), Ok(Health::Fine));
        assert!(read(&file, 116 * SECOND, "boot").unwrap_err().contains("for 16s"));
        assert!(read(&file, 101 * SECOND, "other").unwrap_err().contains("another boot"));
        for damaged in [&file[..file.len() / 2], b"", b"OK\n", b"OK\n{}\n"] {
            assert!(read(damaged, 101 * SECOND, "boot").unwrap_err().contains("damaged"));
        }
    }

    fn until(mut is: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is() {
            assert!(Instant::now() < end, "it never came to that");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_newest_is_written_and_a_folder_that_cannot_be_is_told() {
        let folder = std::env::temp_dir().join(format!("plegscope-state-{}", std::process::id()));
        let path = folder.join("deeper/state");
        let file = StateFile::start(path.clone()).unwrap();
        for n in 0..1000 {
            file.set(format!("{n}\n").into_bytes());
        }
        until(|| fs::read_to_string(&path).is_ok_and(|text| text == "999\n"));
        assert_eq!(file.failures(), (0, None));
        assert_eq!(fs::read_dir(folder.join("deeper")).unwrap().count(), 1, "nothing else is left");
        file.end(Duration::from_secs(60));
        assert!(!path.exists(), "nobody watches any more");
        fs::write(&path, "").unwrap();

        // A file where a folder should be: nobody can write there, root included.
        let refused = StateFile::start(path.join("state")).unwrap();
        let begin = Instant::now();
        (0..100).for_each(|n| refused.set(vec![n]));
        assert!(begin.elapsed() < Duration::from_secs(1), "nobody waits for it");
        until(|| refused.failures().0 > 0);
        assert!(refused.failures().1.is_some_and(|why| why.contains("state/state")));
        fs::remove_dir_all(folder).unwrap();
    }
}
