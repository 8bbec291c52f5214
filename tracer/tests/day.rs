//! A node's day, time compressed: a hundred incidents among a thousand unmounts, through the pipeline, what
//! decides what is told, and the store. Nothing is lost, nothing is told twice, memory stays flat.
//!
//! The truth is the list of unmounts that was made up; what is told is held against it by arithmetic alone. A program of
//! its own, so that its memory is that of the day.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};
use tracer::{
    alert::{Alerts, Event as Tell, HOLD_OFF, Settings},
    capture::{Header, Record},
    event::{Actor, Began, Body, Device, Event, Kind, Ns, Operation, Outcome, SeenBy},
    pipeline::Pipeline,
    sinks::deliver::{
        Alert, Delivery,
        store::{self, Store},
    },
    thresholds::{LATENESS, MILLISECOND, SECOND, TICK_EVERY, Thresholds},
};

/// Hours that are played.
const HOURS: u64 = 24;
const HOUR: Ns = 3600 * SECOND;
/// When it begins: a node has been up for a while.
const START: Ns = 10 * HOUR;
/// Disks. What ends in the same disk at the same time is one incident, so on each there is one at a time.
const DISKS: u32 = 3;

/// An unmount that was made up, with the sync it consists of.
#[derive(Clone, Debug)]
struct Made {
    begin: Ns,
    end: Ns,
    disk: u32,
    pid: u32,
}

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// On each disk one unmount after the other: most are quick, some last for seconds, a few for minutes.
fn day() -> Vec<Made> {
    let mut dice = Dice(7);
    let mut all = Vec::new();
    for disk in 0..DISKS {
        let mut at = START + SECOND;
        while at < START + HOURS * HOUR - 600 * SECOND {
            at += (180 + dice.throw(240)) * SECOND + dice.throw(1000) * MILLISECOND;
            let lasts = match dice.throw(100) {
                0..12 => (6 + dice.throw(20)) * SECOND,
                12 => (60 + dice.throw(100)) * SECOND,
                _ => (20 + dice.throw(900)) * MILLISECOND,
            };
            let pid = 1000 + all.len() as u32;
            all.push(Made { begin: at, end: at + lasts, disk, pid });
            at += lasts;
        }
    }
    all.sort_by_key(|made| made.begin);
    all
}

fn operation(made: &Made, kind: Kind) -> Operation {
    Operation {
        kind,
        method: String::new(),
        actor: Actor { pid: made.pid, tid: made.pid, g: None, goid: None },
        begin: made.begin + if kind == Kind::Sync { MILLISECOND } else { 0 },
        object: u64::from(made.disk) + 1,
        container: None,
        path: None,
        device: Some(Device { major: 8, minor: 16 * made.disk }),
        fs_type: None,
        began: Began::Then,
        seen_by: SeenBy::Fentry,
    }
}

/// What was told in a day.
#[derive(Default)]
struct Told {
    /// By incident: what, when, at which doubling.
    of: BTreeMap<String, Vec<(Tell, Ns, u32)>>,
    /// Incidents that were counted in what is told.
    counted: u64,
    /// Resident memory at the end of each hour, kB.
    memory: Vec<u64>,
    /// Most incidents that were open at once.
    most: usize,
}

fn play(all: &[Made], hours: u64, hold_off: Ns, mut store: Option<&mut Store>) -> Told {
    let mut pipeline = Pipeline::new(Thresholds::DEFAULT);
    let mut alerts = Alerts::new(Settings { hold_off, not_ready_within: 60 * SECOND });
    let (mut told, mut seq) = (Told::default(), 0);
    let header = Header::default();
    let (mut next, mut open): (usize, Vec<&Made>) = (0, Vec::new());
    let (mut at, mut busy) = (START, START);
    while at < START + hours * HOUR {
        // While nothing is in flight the polls have nothing to tell: one a second will do. What has just ended is told at
        // the usual pace: nobody hears of the next second before this one is over.
        if !open.is_empty() {
            busy = at;
        }
        let quiet = at > busy + SECOND && all.get(next).is_none_or(|made| made.begin > at + SECOND);
        at += if quiet && at.is_multiple_of(SECOND) { SECOND } else { TICK_EVERY };
        let mut events = Vec::new();
        while next < all.len() && all[next].begin < at {
            open.push(&all[next]);
            next += 1;
        }
        for made in open.extract_if(.., |made| made.end < at) {
            for kind in [Kind::Sync, Kind::Unmount] {
                events.push(Event { at: made.end, body: Body::Ended(operation(made, kind), Outcome::Done) });
            }
        }
        for made in open.iter().filter(|made| at - made.begin > 20 * MILLISECOND) {
            for kind in [Kind::Unmount, Kind::Sync] {
                events.push(Event { at, body: Body::InFlight(operation(made, kind)) });
            }
        }
        events.push(Event { at, body: Body::PollComplete { kinds: Kind::ALL.to_vec(), older_than: at } });
        pipeline.push(events);
        let mut frames = Vec::new();
        let ahead = pipeline.advance(at + 10 * MILLISECOND, |frame| frames.push((frame, false)));
        frames.extend(ahead.map(|frame| (frame, true)));
        for (frame, is_ahead) in frames {
            let notices = if is_ahead { alerts.ahead(&frame) } else { alerts.tick(&frame) };
            for notice in notices {
                seq += 1;
                told.counted += notice.repeats;
                let alert = Alert::of(seq, &notice, &header, &frame);
                if notice.told && notice.event != Tell::Repeated {
                    let of = told.of.entry(notice.incident.id.clone()).or_default();
                    of.push((notice.event, frame.now, notice.incident.level));
                }
                if let Some(store) = store.as_deref_mut() {
                    store.deliver(&alert, &|_| {}).unwrap();
                }
            }
            told.most = told.most.max(alerts.open().0);
        }
        if (at - START).is_multiple_of(HOUR) {
            told.memory.push(resident());
        }
    }
    told
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The unmounts that passed the threshold, by the id their incident must have.
fn incidents(all: &[Made]) -> BTreeMap<String, &Made> {
    let long = all.iter().filter(|made| made.end - made.begin >= Thresholds::DEFAULT.unmount + SECOND / 2);
    // The root cause is the sync that it consists of.
    long.map(|made| (format!("sync-{}-{:x}-{}", made.pid, made.pid, made.begin + MILLISECOND), made))
        .collect()
}

#[test]
fn a_day_loses_no_alert_tells_none_twice_and_takes_no_more_memory_than_an_hour() {
    let all = day();
    let truth = incidents(&all);
    assert!(all.len() > 600 && truth.len() > 70, "{} unmounts, {} incidents", all.len(), truth.len());
    let folder = std::env::temp_dir().join(format!("plegscope-day-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    // Fewer than there are, so that the oldest make room.
    const KEPT: usize = 64;
    let mut store = Store::open(&folder, KEPT, store::BYTES).unwrap();
    let told = play(&all, HOURS, 0, Some(&mut store));

    assert_eq!(told.of.keys().collect::<BTreeSet<_>>(), truth.keys().collect::<BTreeSet<_>>());
    for (id, made) in &truth {
        let of = &told.of[id];
        let (threshold, lasted) = (Thresholds::DEFAULT.unmount, made.end - made.begin);
        let crossed: Vec<Ns> =
            of.iter().filter(|(e, ..)| *e == Tell::Crossed).map(|(_, at, _)| *at).collect();
        let expected = made.begin + threshold;
        assert!(
            matches!(crossed[..], [at] if (expected..=expected + TICK_EVERY).contains(&at)),
            "{id}: {crossed:?}, not {expected}"
        );
        let grew: Vec<u32> = of.iter().filter(|(e, ..)| *e == Tell::Grew).map(|(.., level)| *level).collect();
        let doublings = (lasted.saturating_sub(2 * TICK_EVERY) / threshold).ilog2();
        let whole: Vec<u32> = (1..=doublings).collect();
        // One more, where it ended at the moment of a doubling.
        assert!(grew.starts_with(&whole) && grew.len() <= whole.len() + 1, "{id}: {grew:?} after {lasted}");
        let ended: Vec<Ns> = of.iter().filter(|(e, ..)| *e == Tell::Ended).map(|(_, at, _)| *at).collect();
        assert!(
            matches!(ended[..], [at] if (made.end..=made.end + LATENESS + 2 * TICK_EVERY).contains(&at)),
            "{id}: ended {ended:?}, not {}",
            made.end
        );
        assert_eq!(of.last().map(|(e, ..)| *e), Some(Tell::Ended));
    }
    assert!((1..=DISKS as usize).contains(&told.most), "{} at once", told.most);

    // What is kept are the newest, each with its end.
    let (lines, unreadable) = store::read(&folder).unwrap();
    let kept: BTreeSet<String> = lines
        .iter()
        .map(|line| {
            let record: Record = serde_json::from_slice(line).unwrap();
            assert!(record.ended.is_some(), "{}", record.id);
            record.id
        })
        .collect();
    let mut newest: Vec<(&Ns, &String)> = truth.iter().map(|(id, made)| (&made.begin, id)).collect();
    newest.sort();
    let newest: BTreeSet<String> = newest.iter().rev().take(KEPT).map(|(_, id)| (*id).clone()).collect();
    assert_eq!((unreadable, kept), (0, newest));
    fs::remove_dir_all(&folder).unwrap();

    let (first, last) = (told.memory[1], *told.memory.last().unwrap());
    assert!(last <= first + 2048, "resident memory grows: {:?} kB", told.memory);

    // With a hold-off, each is told or counted.
    const PART: u64 = 8;
    let until = START + (PART - 3) * HOUR;
    let part: Vec<Made> = all.iter().filter(|made| made.end < until).cloned().collect();
    let truth = incidents(&part);
    let held = play(&part, PART, 60 * HOLD_OFF, None);
    let told: BTreeSet<&String> = held.of.keys().collect();
    assert!(told.iter().all(|id| truth.contains_key(*id)));
    assert_eq!(told.len() as u64 + held.counted, truth.len() as u64);
    assert!(held.counted > 0, "nothing came back within its hold-off");
}
