//! `watch --capture-on-incident`: a recorder that keeps what was before in memory, writes it with what follows when an
//! incident begins, and is followed by another when all of it is over. Files and folders are touched by threads of their
//! own: one that hangs costs captures and nothing else.

use crate::{
    capture::{
        Place, Reader, Recorder,
        place::{self, PlaceError},
        recorder::{Ended, Options, RING_BYTES},
    },
    event::Ns,
    sinks::deliver::Count,
    source::Source,
};
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, TryRecvError, sync_channel},
    thread,
    time::Duration,
};

/// Begin of the name of a file that has a header at most: what it waits for has not come.
const ARMED: &str = "armed-";
/// Begin of the name of a capture.
const CAPTURE: &str = "incident-";
/// End of both.
const ENDING: &str = ".pleg";
/// All captures together have room for this many that are as large as one may be.
const SHARE: u64 = 4;
/// How long the last lines of a capture may take to be written.
const PATIENCE: Duration = Duration::from_secs(10);
/// Files of the folder that are looked at.
const LOOKED_AT: usize = 4096;

/// Captures of incidents, one after the other.
pub struct Captures {
    folder: PathBuf,
    before: Ns,
    bytes: u64,
    state: State,
    /// How many files were made ready.
    made: u64,
    /// An incident is open.
    open: bool,
    count: Count,
}

enum State {
    /// A thread makes a file ready, after it has closed the one before.
    Waiting(Receiver<Made>),
    /// A file is ready; nothing is kept yet.
    Ready(Place),
    /// The recorder is with the source.
    Recording,
    /// It cannot be used; tried again when an incident has come and gone, since it would be told over and over.
    Failed {
        /// Whether one has come.
        seen: bool,
    },
}

/// What a thread has done.
struct Made {
    /// How the capture before turned out, if there was one.
    before: Option<Result<(), String>>,
    /// The next file; none after one that went wrong: the next would not fare better.
    next: Option<Result<Place, String>>,
}

impl Captures {
    /// In this folder: so much of what was before, and so many bytes in all.
    pub fn new(folder: PathBuf, before: Ns, bytes: u64) -> Captures {
        let count = Count { name: "capture".to_owned(), ..Count::default() };
        Captures { folder, before, bytes, state: State::Failed { seen: true }, made: 0, open: false, count }
    }

    /// What has become of them so far.
    pub fn count(&self) -> &Count {
        &self.count
    }

    /// Whether an incident is open now.
    pub fn frame(&mut self, open: bool) {
        self.open = open;
        if let State::Failed { seen } = &mut self.state {
            *seen |= open;
        }
    }

    /// To be called often, also before the first frame. Never waits.
    pub fn turn(&mut self, source: &mut Source) {
        match &self.state {
            State::Waiting(made) => match made.try_recv() {
                Ok(made) => self.take(made),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.fail("the thread that makes files has died"),
            },
            // What has begun is not captured in pieces: the first piece has its beginning and all that fits.
            State::Failed { seen: true } if !self.open => self.prepare(None),
            State::Ready(_) if !self.open => self.begin(source),
            State::Failed { .. } | State::Ready(_) => {}
            State::Recording => {
                let Some(live) = source.live() else { return };
                if live.recorder().is_some_and(|recorder| recorder.is_over().is_some())
                    && let Some(recorder) = live.take_recorder()
                {
                    self.prepare(Some(recorder));
                }
            }
        }
    }

    /// It is over: what was captured is closed, without waiting for it longer than `patience`.
    pub fn end(&mut self, source: &mut Source, patience: Duration) {
        let recorder = source.live().and_then(|live| live.take_recorder());
        let ready = match std::mem::replace(&mut self.state, State::Failed { seen: false }) {
            State::Ready(place) => Some(place),
            State::Waiting(made) => {
                let made = made.recv_timeout(patience).ok();
                made.and_then(|made| made.next).and_then(Result::ok)
            }
            State::Recording | State::Failed { .. } => None,
        };
        if recorder.is_none() && ready.is_none() {
            return;
        }
        let folder = self.folder.clone();
        let (done, told) = sync_channel(1);
        let work = move || {
            if let Some(place) = ready {
                let _ = fs::remove_file(place.into_parts().1);
            }
            let closed = recorder.map(|recorder| close(&folder, recorder, "watch has ended"));
            let _ = done.send(closed);
        };
        if thread::Builder::new().name("captures".into()).spawn(work).is_ok() {
            let _ = told.recv_timeout(patience);
        }
    }

    fn take(&mut self, made: Made) {
        match made.before {
            None => {}
            Some(Ok(())) => self.count.delivered += 1,
            Some(Err(why)) => return self.fail(&why),
        }
        match made.next {
            Some(Ok(place)) => self.state = State::Ready(place),
            Some(Err(why)) => self.fail(&why),
            None => self.fail("no file was made"),
        }
    }

    fn fail(&mut self, why: &str) {
        self.count.failed += 1;
        self.count.error = why.to_owned();
        self.state = State::Failed { seen: false };
    }

    /// Closes a capture and makes the next file ready.
    fn prepare(&mut self, before: Option<Recorder>) {
        self.count.taken += u64::from(before.is_some());
        self.made += 1;
        let (tell, told) = sync_channel(1);
        let (folder, bytes, number) = (self.folder.clone(), self.bytes, self.made);
        let work = move || {
            let before = before.map(|recorder| close(&folder, recorder, "the incident is over"));
            let next = before.as_ref().is_none_or(Result::is_ok).then(|| next(&folder, bytes, number));
            let _ = tell.send(Made { before, next });
        };
        match thread::Builder::new().name("captures".into()).spawn(work) {
            Ok(_) => self.state = State::Waiting(told),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// From now on what is heard is kept.
    fn begin(&mut self, source: &mut Source) {
        let Some(live) = source.live() else { return };
        let State::Ready(place) = std::mem::replace(&mut self.state, State::Recording) else { return };
        let most = self.bytes / SHARE;
        let options = Options {
            before: Some(self.before),
            ring: RING_BYTES.min(most),
            most,
            until_incident: true,
            ..Options::new(live.header().clone())
        };
        match Recorder::start(place, options, live.known()) {
            Ok(recorder) => drop(live.record(recorder)),
            Err(error) => self.fail(&format!("starting to record: {error}")),
        }
    }
}

/// Ends a capture, and gives it its name; one that nothing was written to goes.
fn close(folder: &Path, recorder: Recorder, reason: &str) -> Result<(), String> {
    let triggered = recorder.is_triggered();
    let status = recorder.stop(reason, PATIENCE);
    let kept = match triggered {
        true => keep(folder, &status.path),
        false => fs::remove_file(&status.path).map_err(|error| format!("{}: {error}", status.path.display())),
    };
    match status.ended {
        Some(Ended::Whole(_)) => kept,
        Some(ended) => Err(ended.words().to_owned()),
        None => Err(format!("{}: its disk does not keep up", folder.display())),
    }
}

/// Gives a capture the name of now.
fn keep(folder: &Path, file: &Path) -> Result<(), String> {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%.3fZ").to_string();
    let name = folder.join(format!("{CAPTURE}{time}{ENDING}"));
    fs::rename(file, &name).map_err(|error| format!("{}: {error}", name.display()))
}

/// A file for the next capture, after room was made for it.
fn next(folder: &Path, bytes: u64, number: u64) -> Result<Place, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    tidy_up(folder, bytes - bytes / SHARE).map_err(failed)?;
    let name = format!("{ARMED}{}-{number}{ENDING}", std::process::id());
    let made = place::create(Some(&folder.join(name)), "", false);
    made.map(|(place, _)| place).map_err(|error| match error {
        PlaceError::OnTheDisk { what, .. } => format!(
            "{} is on {what}, the disk that unmounts sync and that may be stuck: name a folder on another one",
            folder.display()
        ),
        error => error.to_string(),
    })
}

/// Whether a capture has a header and nothing else: what it waited for had not come.
fn is_empty(file: &Path) -> bool {
    let capture = fs::File::open(file).ok().and_then(|file| Reader::new(file).ok());
    capture.is_some_and(|mut capture| capture.next().is_none())
}

/// What was left by a run that was killed is kept if there is anything in it; the oldest captures go until the rest has no
/// more than so many bytes.
fn tidy_up(folder: &Path, bytes: u64) -> std::io::Result<()> {
    let mut captures = Vec::new();
    for entry in fs::read_dir(folder)?.take(LOOKED_AT) {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(stem) = name.strip_suffix(ENDING) else { continue };
        let size = entry.metadata()?.len();
        if let Some(of) = stem.strip_prefix(ARMED) {
            let pid = of.split('-').next().unwrap_or_default();
            if Path::new("/proc").join(pid).exists() {
                continue;
            }
            if size == 0 || is_empty(&entry.path()) {
                fs::remove_file(entry.path())?;
            } else {
                let _ = keep(folder, &entry.path());
            }
        } else if stem.starts_with(CAPTURE) {
            captures.push((name, size));
        }
    }
    // Their names sort by time.
    captures.sort();
    let mut total: u64 = captures.iter().map(|(_, size)| size).sum();
    for (name, size) in captures {
        if total <= bytes {
            break;
        }
        fs::remove_file(folder.join(name))?;
        total -= size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("plegscope-captures-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_oldest_captures_make_room_and_nothing_else_is_touched() {
        let folder = Folder::new("room");
        for n in 1..=5 {
            fs::write(folder.0.join(format!("incident-2024010{n}T000000.000Z.pleg")), [0; 1000]).unwrap();
        }
        fs::write(folder.0.join("foreign.pleg"), [0; 9000]).unwrap();
        fs::write(folder.0.join("incident-20200101T000000.000Z"), [0; 9000]).unwrap();
        tidy_up(&folder.0, 3_500).unwrap();
        assert_eq!(
            folder.names(),
            [
                "foreign.pleg",
                "incident-20200101T000000.000Z",
                "incident-20240103T000000.000Z.pleg",
                "incident-20240104T000000.000Z.pleg",
                "incident-20240105T000000.000Z.pleg",
            ]
        );
    }

    #[test]
    fn what_a_killed_run_has_left_is_kept_if_there_is_anything_in_it() {
        let folder = Folder::new("killed");
        // No process has this number: it is beyond what the kernel gives.
        fs::write(folder.0.join("armed-4194305-1.pleg"), "").unwrap();
        fs::write(folder.0.join("armed-4194305-2.pleg"), "evidence").unwrap();
        let mut header = Vec::new();
        let mut writer = crate::capture::writer::Writer::new(&mut header).unwrap();
        writer.line(&crate::capture::Line::Header(crate::capture::Header::default())).unwrap();
        writer.flush().unwrap();
        drop(writer);
        fs::write(folder.0.join("armed-4194305-3.pleg"), header).unwrap();
        let ours = format!("armed-{}-1.pleg", std::process::id());
        fs::write(folder.0.join(&ours), "").unwrap();
        tidy_up(&folder.0, 1_000).unwrap();
        let names = folder.names();
        assert_eq!((names.len(), &names[0]), (2, &ours));
        assert!(names[1].starts_with("incident-2"), "{names:?}");
        assert_eq!(fs::read(folder.0.join(&names[1])).unwrap(), b"evidence");
    }
}
