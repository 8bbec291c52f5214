//! Models that have seen a scenario.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracer::capture::Reader;
use tracer::capture::line::Clock;
use tracer::capture::replay::{Replay, Told};
use tracer::correlator::scenario::{Step, parse};
use tracer::correlator::{Correlator, Frame};
use tracer::event::{Event, Ns};
use tracer::thresholds::{SECOND, Thresholds};
use tracer::tui::message::{Own, Position, Probe, Probing};
use tracer::tui::model::Mode;
use tracer::tui::update::update;
use tracer::tui::{Effect, Key, Message, Model};

/// All scenario files.
pub fn scenarios() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    files.sort();
    files
}

/// The frames of a scenario, changed on the way in.
pub fn frames_of(file: &Path, change: impl Fn(Event) -> Event) -> Vec<Arc<Frame>> {
    let text = std::fs::read_to_string(file).unwrap();
    let events = text.split("\n---- expected ----\n").next().unwrap();
    let mut correlator = Correlator::new(Thresholds::default());
    let mut frames = Vec::new();
    for step in parse(events).unwrap() {
        match step {
            Step::Event(event) => correlator.apply(&change(event)),
            Step::Tick(now, _) => frames.push(Arc::new(correlator.tick(now))),
        }
    }
    frames
}

/// The frames of the scenario of this name, up to a time in seconds.
pub fn frames(name: &str, until: f64) -> Vec<Arc<Frame>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/{name}.txt"));
    let until = (until * SECOND as f64) as Ns;
    let mut frames = frames_of(&file, |event| event);
    frames.retain(|frame| frame.now <= until);
    frames
}

/// A screen of this size that replays a real capture, and has seen it up to so many seconds after something was stuck.
pub fn replayed(size: (u16, u16), seconds: u64) -> Model {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/slow-disk.pleg");
    let reader = Reader::new(std::fs::File::open(file).unwrap()).unwrap();
    let header = reader.header().clone();
    let mut frames = Vec::new();
    let each = |told| match told {
        Told::Frame(frame) => frames.push(Arc::new(frame)),
        Told::Ahead(_) | Told::Passed(_) | Told::Line(_) => {}
    };
    Replay::new(header.thresholds).all(reader, each).unwrap();
    let stuck = frames.iter().find(|frame| !frame.diagnoses.is_empty()).unwrap().now;
    let (from, to) = (frames[0].now, frames.last().unwrap().now);
    let mut model = Model::new(Mode::Replay("slow-disk.pleg".to_owned()), &header.host, size);
    tell(&mut model, Message::Clock(header.clock));
    for frame in frames.into_iter().filter(|frame| frame.now <= stuck + seconds * SECOND) {
        let position = Position { from, to, at: frame.now, paused: false, speed: 1_000, ended: false };
        tell(&mut model, Message::Position(position));
        tell(&mut model, Message::Frame(frame));
    }
    model
}

/// A live screen of this size that has attached and seen these frames.
pub fn live(size: (u16, u16), frames: &[Arc<Frame>]) -> Model {
    let mut model = Model::new(Mode::Live, "node-7", size);
    let clock = Clock { monotonic: 0, boottime: 0, realtime: 1_709_204_400_000_000_000, offset: 3_600 };
    tell(&mut model, Message::Clock(clock));
    tell(&mut model, Message::Probing(Arc::new(probing())));
    tell(
        &mut model,
        Message::Own(Own {
            cpu_ppm: [Some(2_100), Some(8_400)],
            resident: [Some(12_000_000), Some(31_000_000)],
        }),
    );
    for frame in frames {
        tell(&mut model, Message::Frame(Arc::clone(frame)));
    }
    model
}

pub fn tell(model: &mut Model, message: Message) -> Vec<Effect> {
    update(model, message)
}

/// Types characters, and gives what is wished for.
pub fn type_in(model: &mut Model, text: &str) -> Vec<Effect> {
    text.chars().flat_map(|c| press(model, Key::Char(c))).collect()
}

pub fn press(model: &mut Model, key: Key) -> Vec<Effect> {
    update(model, Message::Key(key))
}

fn probing() -> Probing {
    let on = |what: &str, target: &str, how: &str, sites| Probe {
        what: what.into(),
        target: target.into(),
        how: Some(how.into()),
        sites,
        ..Probe::default()
    };
    let off = Probe {
        what: "CRI calls of the kubelet".into(),
        loss: "the kubelet's own relist is not seen".into(),
        note: "3 of 4 pages are not in memory".into(),
        ..Probe::default()
    };
    let probes = vec![
        on("unmount", "cleanup_mnt, __x64_sys_umount", "fentry", 4),
        on("sync with device", "sync_filesystem", "fentry", 2),
        on("lock waits", "runtime.semacquire1", "uprobe", 9),
        off,
    ];
    Probing { attached_after: Some(41_000_000), probes, processes: [1, 31, 1], warning: None }
}
