//! The recorder: what was handed over can be read again, whatever happens to it or to its file.

use super::{Folder, header};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tracer::capture::recorder::{Ended, MOST_WAITING, Options, Status};
use tracer::capture::{Line, Reader, Recorder, place, reader};
use tracer::correlator::{Change, Frame, Incident};
use tracer::event::{Actor, Began, Body, Container, Device, Event, Kind, Ns, Operation, Outcome, SeenBy};
use tracer::thresholds::{MILLISECOND, SECOND};

/// Set in the process that is killed or hindered; names the file.
const INNER: &str = "PLEGSCOPE_TEST_RECORDER";
/// Where that process copies its file to in the end, since nobody else sees the file system it is on.
const COPY: &str = "PLEGSCOPE_TEST_RECORDER_COPY";
const PATIENCE: Duration = Duration::from_secs(60);

fn start(path: &Path, options: Options) -> Recorder {
    // The disk of the temporary folder may be any.
    let (place, _) = place::create(Some(path), "", true).unwrap();
    Recorder::start(place, options, Vec::new()).unwrap()
}

/// An event that does not compress well.
fn event(n: u64) -> Line {
    let begin = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let op = Operation {
        kind: Kind::LockWait,
        method: format!("{begin:x}"),
        actor: Actor { pid: n as u32, tid: begin as u32, g: Some(begin), goid: Some(n) },
        begin,
        began: Began::Then,
        object: begin.rotate_left(17),
        container: None,
        path: None,
        device: None,
        fs_type: None,
        seen_by: SeenBy::Uprobe,
    };
    Line::Event(Event { at: n, body: Body::Ended(op, Outcome::Done) })
}

/// A tenth of a second with so many events.
fn moment(n: u64, events: u64) -> Vec<Line> {
    (n * events..(n + 1) * events).map(event).chain([Line::Heard(n * 100 * MILLISECOND)]).collect()
}

fn known() -> Vec<Line> {
    vec![Line::Known(Event { at: 1, body: Body::ProcessGone { pid: 77 } })]
}

/// Hands over moments until the recorder does not go on, as fast as it takes them without loss.
fn flood(recorder: &mut Recorder, most: u64) -> u64 {
    for n in 0..most {
        recorder.lines(&moment(n, 100));
        recorder.settle(known);
        if recorder.is_over().is_some() {
            return n;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    most
}

fn read(path: &Path) -> (Vec<Line>, bool) {
    let mut reader = reader::open(path, false).unwrap();
    let lines = reader.by_ref().collect::<Result<Vec<Line>, _>>().unwrap();
    (lines, reader.has_ended())
}

fn events(lines: &[Line]) -> Vec<u64> {
    lines
        .iter()
        .filter_map(|line| match line {
            Line::Event(event) => Some(event.at),
            _ => None,
        })
        .collect()
}

#[test]
fn all_that_was_handed_over_is_in_the_file_in_order() {
    let folder = Folder::new("whole");
    let path = folder.0.join("a.pleg");
    let mut recorder = start(&path, Options::new(header()));
    for n in 0..50 {
        recorder.lines(&moment(n, 100));
        recorder.settle(|| panic!("nothing was lost"));
    }
    let status = recorder.stop("interrupted", PATIENCE);
    let (lines, ended) = read(&path);
    assert_eq!(events(&lines), (0..5000).collect::<Vec<u64>>());
    assert!(ended);
    let Some(Line::End(end)) = lines.last() else { panic!("{:?}", lines.last()) };
    assert_eq!((end.reason.as_str(), end.events, end.lost), ("interrupted", 5000, 0));
    assert_eq!(end.at, 49 * 100 * MILLISECOND);
    let length = std::fs::metadata(&path).unwrap().len();
    let ended = Some(Ended::Whole("interrupted".into()));
    assert_eq!(status, Status { path, bytes: length, events: 5000, waiting: 0, lost: 0, ring: None, ended });
}

#[test]
fn what_does_not_fit_is_counted_and_what_follows_on_it_can_be_understood() {
    let folder = Folder::new("gap");
    let path = folder.0.join("a.pleg");
    // A pipe that nobody reads is a disk that is stuck.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    // Opened without waiting for the other end, then read as files are.
    use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
    let read_end = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    fcntl_setfl(&read_end, OFlags::empty()).unwrap();
    let mut read_end = std::fs::File::from(read_end);
    let write_end = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let place = place::Place::of(write_end, path.clone()).unwrap();
    let mut recorder = Recorder::start(place, Options::new(header()), Vec::new()).unwrap();
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    let mut handed = 0;
    while recorder.status().lost == 0 {
        let moment = moment(handed, 100);
        let one = Instant::now();
        recorder.lines(&moment);
        recorder.settle(known);
        longest = longest.max(one.elapsed());
        handed += 1;
        assert!(begin.elapsed() < PATIENCE, "it takes everything");
    }
    assert!(longest < Duration::from_secs(2), "the caller waited {longest:?}");
    // Now it is read: all of what was taken, then the gap, then what is known.
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut read_end, &mut bytes).unwrap();
        Reader::new(&bytes[..]).unwrap().collect::<Result<Vec<Line>, _>>().unwrap()
    });
    while recorder.status().lost > 0 && begin.elapsed() < PATIENCE {
        recorder.lines(&moment(handed, 1));
        let mut asked = false;
        recorder.settle(|| {
            asked = true;
            known()
        });
        if asked {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    recorder.lines(&moment(handed, 1));
    let lost = recorder.status().lost;
    let status = recorder.stop("interrupted", PATIENCE);
    let lines = reader.join().unwrap();
    let at = lines.iter().position(|line| matches!(line, Line::Loss(_))).unwrap();
    let Line::Loss(loss) = &lines[at] else { unreachable!() };
    assert_eq!(loss.lines, lost);
    assert_eq!(lines[at + 1], known()[0]);
    assert_eq!(status.lost, lost);
    let before = lines[..at].len() as u64;
    assert_eq!(before % 101, 0, "{before} lines: moments are whole");
    assert!(before as usize >= MOST_WAITING - 101, "{before} lines");
    assert!(matches!(lines.last(), Some(Line::End(end)) if end.lost == lost));
}

#[test]
fn the_ring_holds_what_was_before_the_trigger_and_only_that_is_written() {
    let folder = Folder::new("ring");
    let path = folder.0.join("a.pleg");
    let options = Options { before: Some(60 * SECOND), until_incident: true, ..Options::new(header()) };
    let mut recorder = start(&path, options);
    let incident = |ended: Option<Ns>| Incident {
        id: "i".into(),
        opened: 0,
        since: 0,
        ended,
        crossed_by: String::new(),
        ends_in: tracer::correlator::EndsIn::StatusWrite,
        signature: String::new(),
        summary: String::new(),
        cause: String::new(),
        level: 0,
        longest: 0,
        stuck_calls: 0,
        containers: Vec::new(),
        consequences: Vec::new(),
        change: Some(if ended.is_some() { Change::Ended } else { Change::Crossed }),
        uncertain_end: None,
        last: None,
    };
    // Ten minutes, an incident at the end of them.
    for n in 0..6000 {
        recorder.lines(&moment(n, 10));
        recorder.settle(known);
        // As slowly as the thread takes it.
        while n % 10 == 0 && recorder.status().waiting > 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    assert!(!recorder.is_triggered());
    let frame = |ended| Frame { incidents: vec![incident(ended)], ..Frame::default() };
    recorder.frame(&frame(None));
    assert!(recorder.is_triggered());
    for n in 6000..6100 {
        recorder.lines(&moment(n, 10));
        recorder.settle(known);
    }
    assert_eq!(recorder.is_over(), None);
    recorder.frame(&Frame { now: 6100 * 100 * MILLISECOND, ..frame(Some(1)) });
    assert_eq!(recorder.is_over(), None);
    for n in 6100..6160 {
        recorder.lines(&moment(n, 10));
    }
    assert_eq!(recorder.is_over().as_deref(), Some("the incident is over"));
    recorder.stop("the incident is over", PATIENCE);
    let (lines, ended) = read(&path);
    assert!(ended);
    assert_eq!(lines[0], known()[0], "what was known comes first");
    let events = events(&lines);
    let (first, last) = (events[0], *events.last().unwrap());
    assert_eq!(last, 61_599);
    assert_eq!(events.len() as u64, last - first + 1, "nothing is missing in between");
    let before = (60_000 - first) / 100;
    assert!((60..=75).contains(&before), "{before} s before");
    let records = lines.iter().filter(|line| matches!(line, Line::Incident(_))).count();
    assert_eq!(records, 2, "its begin and its end");
}

#[test]
fn the_file_keeps_within_its_size_and_says_so() {
    let folder = Folder::new("size");
    let path = folder.0.join("a.pleg");
    let mut recorder = start(&path, Options { most: 1 << 20, ..Options::new(header()) });
    flood(&mut recorder, 10_000);
    assert_eq!(recorder.is_over().as_deref(), Some("the file has its size"));
    let status = recorder.stop("interrupted", PATIENCE);
    assert_eq!(status.ended, Some(Ended::Whole("the file has its size".into())));
    let length = std::fs::metadata(&path).unwrap().len();
    assert!((900_000..=1 << 20).contains(&length), "{length} bytes");
    let (lines, ended) = read(&path);
    assert!(ended);
    assert!(matches!(lines.last(), Some(Line::End(end)) if end.reason == "the file has its size"));
}

#[test]
fn it_does_not_write_where_a_chain_or_a_container_is() {
    let folder = Folder::new("guard");
    let path = folder.0.join("a.pleg");
    let mut recorder = start(&path, Options::new(header()));
    let number = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(&path).unwrap());
    let device = Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) };
    let container = |upper| {
        let body = Body::Container(Container {
            id: "c".into(),
            runtime_namespace: "k8s.io".into(),
            pod: None,
            namespace: None,
            name: None,
            sandbox: false,
            shim: None,
            upper: Some((upper, "ext4".into())),
            volatile: None,
        });
        [Line::Event(Event { at: 1, body })]
    };
    recorder.lines(&container(Device { major: 999, ..device }));
    assert_eq!(recorder.is_over(), None);
    recorder.lines(&container(device));
    assert!(recorder.is_over().unwrap().contains("the writable layers of containers are on it"));
    let status = recorder.stop("interrupted", PATIENCE);
    assert!(matches!(status.ended, Some(Ended::OnTheDisk(_))), "{status:?}");
    let forced = folder.0.join("b.pleg");
    let mut recorder = start(&forced, Options { force: true, ..Options::new(header()) });
    recorder.lines(&container(device));
    assert_eq!(recorder.is_over(), None);
}

/// The process that is killed or hindered: does nothing unless it is asked to.
#[test]
fn inner() {
    let Some(path) = std::env::var_os(INNER) else { return };
    let mut recorder = start(Path::new(&path), Options::new(header()));
    flood(&mut recorder, u64::MAX);
    let status = recorder.stop("interrupted", PATIENCE);
    if let Some(copy) = std::env::var_os(COPY) {
        std::fs::copy(&path, copy).unwrap();
    }
    println!("ended: {:?}", status.ended);
}

fn inner_process(path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "recorder::inner", "--nocapture"]).env(INNER, path).stdout(Stdio::piped());
    command
}

#[test]
fn after_a_kill_what_was_written_is_whole() {
    let folder = Folder::new("kill");
    let path = folder.0.join("a.pleg");
    let mut child = inner_process(&path).spawn().unwrap();
    let begin = Instant::now();
    while std::fs::metadata(&path).map_or(0, |is| is.len()) < 1_000_000 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (lines, ended) = read(&path);
    assert!(!ended, "it says that it was cut off");
    let events = events(&lines);
    assert!(events.len() > 10_000, "{}", events.len());
    assert_eq!(events, (0..events.len() as u64).collect::<Vec<_>>());
}

/// Runs it where the file may have half a megabyte only, and reads what is at `path` then.
fn where_it_is_full(full: &str, path: &Path, mut command: Command) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains(&format!("Failed({full:?})")), "{output:?}");
    let (lines, ended) = read(path);
    assert!(ended, "the last words found room");
    let missing = lines.iter().find_map(|line| match line {
        Line::Loss(loss) if loss.reason == full => Some(loss.lines),
        _ => None,
    });
    assert!(missing.is_some_and(|lines| lines > 0), "what was lost is said");
    assert!(matches!(lines.last(), Some(Line::End(end)) if end.reason == full));
    let events = events(&lines);
    assert_eq!(events, (0..events.len() as u64).collect::<Vec<_>>());
    assert!(events.len() > 1_000, "{}", events.len());
}

#[test]
fn a_limit_of_the_file_s_size_leaves_a_whole_capture() {
    use std::os::unix::process::CommandExt as _;
    let folder = Folder::new("limit");
    let path = folder.0.join("a.pleg");
    let mut command = inner_process(&path);
    // SAFETY: setrlimit may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 512 << 10, rlim_max: 512 << 10 };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    where_it_is_full("the file may not become larger (ulimit -f)", &path, command);
}

#[test]
fn a_full_disk_leaves_a_whole_capture() {
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small file system");
        return;
    }
    let folder = Folder::new("full");
    let small = folder.0.join("small");
    std::fs::create_dir(&small).unwrap();
    let copy = folder.0.join("a.pleg");
    let mut command = inner_process(&small.join("a.pleg"));
    command.env(COPY, &copy);
    let target = std::ffi::CString::new(small.to_str().unwrap()).unwrap();
    // SAFETY: unshare and mount may be called between fork and exec; all pointers are to strings that live as long.
    unsafe {
        command.pre_exec(move || {
            let (none, private) = (c"none".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
            let null = std::ptr::null::<libc::c_char>();
            let size = c"size=512k".as_ptr().cast();
            let done = libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, c"/".as_ptr(), null, private, null.cast()) == 0
                && libc::mount(none, target.as_ptr(), c"tmpfs".as_ptr(), 0, size) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    where_it_is_full("the disk is full", &copy, command);
}
