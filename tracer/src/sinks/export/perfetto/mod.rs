//! A trace for ui.perfetto.dev: native protobuf, written as the capture is read.
//!
//! ```text
//! incidents              one slice each, from the begin of what is stuck to its end
//! process, by pid
//!   goroutine, thread    one slice for each operation
//!   lock                 who holds it while others wait
//! dirty, writeback, written by each disk   counters
//! losses                 where something is missing
//! ```
//!
//! An arrow leads from a wait to what it waits for, at the time at which it began to wait; where that is a lock, over the
//! lock's track. What has not ended has no end. Times are those of CLOCK_MONOTONIC, with a snapshot of the others.

mod proto;
mod tracks;

use crate::capture::{Header, Line, line::Clock};
use crate::correlator::{EdgeKind, Frame, Incident, Link, Subject, Who, lasts_by_design, words};
use crate::event::{Actor, Body, Event, Kind, Ns, Operation, OperationId, Outcome};
use crate::sinks::sanitise;
use prost::Message;
use proto::{ClockSnapshot, CounterDescriptor, ProcessDescriptor, ThreadDescriptor, Trace, TracePacket};
use proto::{TrackDescriptor, TrackEvent};
use std::collections::{BTreeMap, BTreeSet};
use tracks::{SLICES, Slice, Timed, Track};

/// Processes whose name is known.
const PROCESSES: usize = 8_192;
/// Tracks with something on them that is not written yet.
const TRACKS: usize = 65_536;

/// What a slice is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Operation(OperationId),
    /// A lock, by process and address, held by an operation.
    Hold(u32, u64, OperationId),
    Incident(Ns, String),
}

/// Writes a trace.
pub struct Perfetto {
    ready: Vec<u8>,
    /// By pid: when it started, and what it is called.
    processes: BTreeMap<u32, (Ns, String)>,
    tracks: BTreeMap<u64, Track<Key>>,
    /// On which track a slice lies that is not written yet.
    places: BTreeMap<Key, u64>,
    flows: u64,
    /// Pairs that an arrow leads between, as long as both are in flight.
    arrows: BTreeSet<(Key, Key)>,
    counters: BTreeMap<u64, i64>,
    left_out: u64,
    /// The last frame.
    now: Ns,
}

impl Perfetto {
    /// Begins with the clocks.
    pub fn new(header: &Header) -> Perfetto {
        let mut perfetto = Perfetto {
            ready: Vec::new(),
            processes: BTreeMap::new(),
            tracks: BTreeMap::new(),
            places: BTreeMap::new(),
            flows: 0,
            arrows: BTreeSet::new(),
            counters: BTreeMap::new(),
            left_out: 0,
            now: 0,
        };
        perfetto.packet(TracePacket {
            clock_snapshot: Some(snapshot(&header.clock)),
            sequence_flags: Some(proto::CLEARED),
            ..TracePacket::default()
        });
        let captured = format!(
            "captured by plegscope {} on {}, kernel {}, boot {}",
            header.plegscope, header.host, header.kernel, header.boot_id
        );
        perfetto.describe(TrackDescriptor {
            uuid: Some(root("incidents")),
            name: Some("incidents".to_owned()),
            description: Some(clean(&captured)),
            ..TrackDescriptor::default()
        });
        perfetto
    }

    /// What is ready to be written.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ready)
    }

    /// A line, before the replay gets it.
    pub fn line(&mut self, line: &Line) {
        match line {
            Line::Event(event) | Line::Known(event) => self.event(event),
            Line::Clock(clock) => {
                let clock_snapshot = Some(snapshot(clock));
                self.packet(TracePacket { clock_snapshot, ..TracePacket::default() });
            }
            Line::Loss(loss) => {
                let descriptor = named("losses");
                let event = TrackEvent {
                    r#type: Some(proto::INSTANT),
                    track_uuid: descriptor.uuid,
                    name: Some(clean(&loss.reason)),
                    ..TrackEvent::default()
                };
                self.describe(descriptor);
                self.at(loss.at.max(self.now), event);
            }
            _ => {}
        }
    }

    fn event(&mut self, event: &Event) {
        match &event.body {
            Body::Process(p) if self.processes.len() < PROCESSES || self.processes.contains_key(&p.pid) => {
                self.processes.insert(p.pid, (p.started, clean(&p.comm)));
            }
            Body::Ended(op, outcome) if !lasts_by_design(op) => {
                self.operation(op, None, None);
                let place = self.places.get(&Key::Operation(op.id())).copied();
                let Some(slice) = place.and_then(|at| self.slice(at, &Key::Operation(op.id()))) else {
                    return;
                };
                if slice.end.is_none() || slice.vanished {
                    slice.end = Some(event.at);
                    slice.vanished = false;
                    match outcome {
                        Outcome::Done => {}
                        Outcome::Errno(n) => slice.notes.push(("failed", format!("errno {n}"))),
                        Outcome::Error => slice.notes.push(("failed", "an error".to_owned())),
                    }
                }
            }
            _ => {}
        }
    }

    /// A frame of the replay.
    pub fn frame(&mut self, frame: &Frame) {
        self.now = frame.now;
        for f in &frame.in_flight {
            self.operation(&f.operation, Some(&f.who), f.subject.as_ref());
            self.there(&Key::Operation(f.operation.id()));
        }
        let listed = frame.in_flight.len() < crate::correlator::limits::IN_FLIGHT_SHOWN;
        for d in &frame.diagnoses {
            for pair in d.chain.links.windows(2) {
                self.edge(&pair[0], &pair[1]);
            }
            // The others that wait for the same: their own way there is not in the frame.
            for call in d.stuck_calls.iter().skip(1) {
                if let Some(to) = call.joins.and_then(|at| d.chain.links.get(at)) {
                    self.arrow(Key::Operation(call.id.clone()), Key::Operation(to.operation.id()));
                }
            }
        }
        for incident in &frame.incidents {
            self.incident(incident);
        }
        self.counters(frame);
        self.settle(listed);
    }

    /// The capture has ended: what is still open stays open.
    pub fn finish(&mut self) {
        for track in std::mem::take(&mut self.tracks).into_values() {
            self.write(track);
        }
        if self.left_out > 0 {
            let name = format!("{} slices were left out", self.left_out);
            let descriptor = named("losses");
            let event = TrackEvent {
                r#type: Some(proto::INSTANT),
                track_uuid: descriptor.uuid,
                name: Some(name),
                ..TrackEvent::default()
            };
            self.describe(descriptor);
            self.at(self.now, event);
        }
    }

    /// Puts an operation on its track, if it is not there yet.
    fn operation(&mut self, op: &Operation, who: Option<&Who>, subject: Option<&Subject>) {
        let key = Key::Operation(op.id());
        if let Some(place) = self.places.get(&key).copied() {
            if let (Some(slice), Some(subject)) = (self.slice(place, &key), subject)
                && !slice.notes.iter().any(|(name, _)| *name == "of")
            {
                slice.notes.push(("of", clean(&words::subject_with_id(subject))));
            }
            return;
        }
        let descriptor = self.actor_track(&op.actor, who);
        let mut notes = vec![("seen by", format!("{:?}", op.seen_by).to_lowercase())];
        notes.extend(op.path.as_ref().map(|path| ("path", clean(path))));
        notes.extend(op.container.as_ref().map(|id| ("container", clean(id))));
        notes.extend(subject.map(|s| ("of", clean(&words::subject_with_id(s)))));
        if op.began == crate::event::Began::ThenOrBefore {
            notes.push(("began", "then or before".to_owned()));
        }
        let category = match op.kind {
            Kind::LockWait => "lock wait",
            kind if kind == Kind::Unmount || kind == Kind::SuperShutdown || kind == Kind::Sync => "kernel",
            _ => "operation",
        };
        let name = clean(&words::operation(op, None));
        self.put(descriptor, key, Slice { name, category, begin: op.begin, notes, ..Slice::default() });
    }

    /// `from` waits for `to`.
    fn edge(&mut self, from: &Link, to: &Link) {
        let (a, b) = (Key::Operation(from.operation.id()), Key::Operation(to.operation.id()));
        let held = to.edge.as_ref().is_some_and(|e| e.kind == EdgeKind::WaitsForHolder);
        let Some(lock) = from.lock.as_ref().filter(|_| held) else {
            self.arrow(a, b);
            return;
        };
        if !self.is_open(&a) || !self.is_open(&b) {
            return;
        }
        let address = lock.base.unwrap_or(from.operation.object);
        let key = Key::Hold(lock.pid, address, to.operation.id());
        if !self.places.contains_key(&key) {
            let parent = self.process_track(lock.pid);
            let descriptor = TrackDescriptor {
                uuid: Some(uuid(&[4, parent, address])),
                name: Some(clean(&words::lock(lock))),
                parent_uuid: Some(parent),
                ..TrackDescriptor::default()
            };
            let who = match to.who.goid {
                Some(goid) => format!(" (goroutine {goid})"),
                None => format!(" (thread {})", to.who.tid),
            };
            let slice = Slice {
                name: format!("held by {}{who}", clean(&words::operation(&to.operation, None))),
                category: "lock",
                begin: from.since.max(to.since),
                notes: vec![("how sure", to.edge.as_ref().map(|e| clean(&e.evidence)).unwrap_or_default())],
                ..Slice::default()
            };
            self.put(descriptor, key.clone(), slice);
        }
        self.there(&key);
        self.arrow(a, key.clone());
        self.arrow(key, b);
    }

    /// Draws an arrow, once, between what is on two tracks and not over.
    fn arrow(&mut self, from: Key, to: Key) {
        let places = (self.places.get(&from).copied(), self.places.get(&to).copied());
        let (Some(a), Some(b)) = places else { return };
        let open = self.is_open(&from) && self.is_open(&to);
        // Both are on one track where one actor does both: the slices are nested, which says it.
        if a == b || !open || self.arrows.contains(&(from.clone(), to.clone())) {
            return;
        }
        self.flows += 1;
        let flow = self.flows;
        let begin = self.slice(a, &from).map(|slice| {
            slice.flows.push(flow);
            slice.begin
        });
        if let (Some(begin), Some(slice)) = (begin, self.slice(b, &to)) {
            slice.ending.push((begin, flow));
        }
        self.arrows.insert((from, to));
    }

    fn incident(&mut self, i: &Incident) {
        let key = Key::Incident(i.opened, i.id.clone());
        if i.change == Some(crate::correlator::Change::Aftermath) {
            return;
        }
        if !self.places.contains_key(&key) {
            let slice = Slice { category: "incident", begin: i.since, ..Slice::default() };
            self.put(named("incidents"), key.clone(), slice);
        }
        let place = self.places.get(&key).copied();
        let Some(slice) = place.and_then(|at| self.slice(at, &key)) else { return };
        slice.name = clean(&i.cause);
        slice.begin = slice.begin.min(i.since);
        slice.end = i.ended;
        slice.there = true;
        slice.notes = vec![
            ("id", clean(&i.id)),
            ("sentence", clean(&i.summary)),
            ("ends in", clean(&words::ends_in(&i.ends_in))),
            ("signature", clean(&i.signature)),
            ("passed", clean(&i.crossed_by)),
            ("longest", words::duration(i.longest)),
            ("calls that waited", i.stuck_calls.to_string()),
        ];
        let harms: Vec<String> = i.consequences.iter().map(words::harm).collect();
        if !harms.is_empty() {
            slice.notes.push(("came of it", clean(&harms.join("; "))));
        }
        slice.notes.extend(i.uncertain_end.as_ref().map(|why| ("end not certain", clean(why))));
    }

    fn counters(&mut self, frame: &Frame) {
        let memory =
            frame.memory.map(|m| [("memory: dirty", m.dirty), ("memory: under writeback", m.writeback)]);
        for (name, bytes) in memory.into_iter().flatten() {
            let unit = CounterDescriptor { unit: Some(proto::BYTES), unit_name: None };
            self.counter(frame.now, name, unit, bytes);
        }
        for device in &frame.devices {
            let Some(rate) = device.bytes_per_second else { continue };
            let name = format!("written to {}", clean(&words::device(&device.device)));
            let unit = CounterDescriptor { unit: None, unit_name: Some("B/s".to_owned()) };
            self.counter(frame.now, &name, unit, rate);
        }
    }

    /// Tells a counter's value, if it is another than before.
    fn counter(&mut self, now: Ns, name: &str, unit: CounterDescriptor, value: u64) {
        let track = root(name);
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        let before = self.counters.insert(track, value);
        if before.is_none() {
            self.describe(TrackDescriptor { counter: Some(unit), ..named(name) });
        }
        if before != Some(value) {
            let event = TrackEvent {
                r#type: Some(proto::COUNTER),
                track_uuid: Some(track),
                counter_value: Some(value),
                ..TrackEvent::default()
            };
            self.at(now, event);
        }
    }

    /// Ends what the frame does not have any more, and writes the tracks on which all is over. What was not listed
    /// because the list is full is not over.
    fn settle(&mut self, listed: bool) {
        let now = self.now;
        let mut over = Vec::new();
        for (uuid, track) in &mut self.tracks {
            for (key, slice) in &mut track.slices {
                let gone = slice.end.is_none() && !slice.there;
                match key {
                    Key::Operation(_) if gone && listed => {
                        slice.end = Some(now);
                        slice.vanished = true;
                    }
                    Key::Hold(..) if gone => slice.end = Some(now.max(slice.begin)),
                    _ => {}
                }
                slice.there = false;
            }
            if track.is_settled(now) {
                over.push(*uuid);
            }
        }
        for uuid in over {
            if let Some(track) = self.tracks.remove(&uuid) {
                self.write(track);
            }
        }
        let places = &self.places;
        self.arrows.retain(|(from, to)| places.contains_key(from) && places.contains_key(to));
    }

    fn write(&mut self, mut track: Track<Key>) {
        for (key, _) in &track.slices {
            self.places.remove(key);
        }
        self.left_out += track.left_out;
        let (descriptors, mut events) = track.write();
        events.sort_by_key(|(at, _): &Timed| *at);
        descriptors.into_iter().for_each(|one| self.describe(one));
        events.into_iter().for_each(|(at, event)| self.at(at, event));
    }

    fn put(&mut self, descriptor: TrackDescriptor, key: Key, slice: Slice) {
        let uuid = descriptor.uuid.unwrap_or_default();
        if self.tracks.len() >= TRACKS && !self.tracks.contains_key(&uuid) {
            self.left_out += 1;
            return;
        }
        let track = self.tracks.entry(uuid).or_insert_with(|| Track::new(descriptor));
        if track.slices.len() >= SLICES {
            track.left_out += 1;
            return;
        }
        track.slices.push((key.clone(), slice));
        self.places.insert(key, uuid);
    }

    fn slice(&mut self, track: u64, key: &Key) -> Option<&mut Slice> {
        let slices = &mut self.tracks.get_mut(&track)?.slices;
        slices.iter_mut().rev().find(|(of, _)| of == key).map(|(_, slice)| slice)
    }

    fn is_open(&mut self, key: &Key) -> bool {
        let place = self.places.get(key).copied();
        place.and_then(|at| self.slice(at, key)).is_some_and(|slice| slice.end.is_none())
    }

    fn there(&mut self, key: &Key) {
        if let Some(slice) = self.places.get(key).copied().and_then(|at| self.slice(at, key)) {
            slice.there = true;
            if std::mem::take(&mut slice.vanished) {
                // It was only out of sight.
                slice.end = None;
            }
        }
    }

    /// The track of a goroutine, or of a thread where it is none.
    fn actor_track(&mut self, actor: &Actor, who: Option<&Who>) -> TrackDescriptor {
        if let Some(comm) = who.and_then(|who| who.comm.as_ref()) {
            let known = self.processes.len() >= PROCESSES || self.processes.contains_key(&actor.pid);
            if !known {
                self.processes.insert(actor.pid, (0, clean(comm)));
            }
        }
        let parent = self.process_track(actor.pid);
        match (actor.goid, actor.g) {
            (None, None) => TrackDescriptor {
                uuid: Some(uuid(&[3, parent, u64::from(actor.tid)])),
                parent_uuid: Some(parent),
                thread: Some(ThreadDescriptor {
                    pid: i32::try_from(actor.pid).ok(),
                    tid: Some(i64::from(actor.tid)),
                    thread_name: Some(format!("thread {}", actor.tid)),
                }),
                ..TrackDescriptor::default()
            },
            (goid, g) => TrackDescriptor {
                uuid: Some(uuid(&[
                    2,
                    parent,
                    goid.unwrap_or(0),
                    if goid.is_none() { g.unwrap_or(0) } else { 0 },
                ])),
                parent_uuid: Some(parent),
                name: Some(match (goid, g) {
                    (Some(goid), _) => format!("goroutine {goid}"),
                    (None, g) => format!("goroutine at {:#x}", g.unwrap_or(0)),
                }),
                ..TrackDescriptor::default()
            },
        }
    }

    /// The track of a process, which is described.
    fn process_track(&mut self, pid: u32) -> u64 {
        let (started, name) = match self.processes.get(&pid) {
            Some((started, name)) => (*started, Some(name.clone())),
            None => (0, None),
        };
        let track = uuid(&[1, u64::from(pid), started]);
        self.describe(TrackDescriptor {
            uuid: Some(track),
            process: Some(ProcessDescriptor { pid: i32::try_from(pid).ok(), process_name: name }),
            ..TrackDescriptor::default()
        });
        track
    }

    fn describe(&mut self, descriptor: TrackDescriptor) {
        self.packet(TracePacket { track_descriptor: Some(descriptor), ..TracePacket::default() });
    }

    fn at(&mut self, at: Ns, event: TrackEvent) {
        self.packet(TracePacket {
            timestamp: Some(at),
            timestamp_clock_id: Some(proto::MONOTONIC),
            track_event: Some(event),
            ..TracePacket::default()
        });
    }

    fn packet(&mut self, packet: TracePacket) {
        let packet = TracePacket { trusted_packet_sequence_id: Some(1), ..packet };
        // Pieces of a file, one after the other, are the file.
        self.ready.extend(Trace { packet: vec![packet] }.encode_to_vec());
    }
}

/// A moment by all clocks.
fn snapshot(clock: &Clock) -> ClockSnapshot {
    let of = |id, at| proto::Clock { clock_id: Some(id), timestamp: Some(at) };
    let clocks = vec![
        of(proto::MONOTONIC, clock.monotonic),
        of(proto::BOOTTIME, clock.boottime),
        of(proto::REALTIME, u64::try_from(clock.realtime).unwrap_or(0)),
    ];
    ClockSnapshot { clocks, primary_trace_clock: Some(proto::MONOTONIC) }
}

/// A track of its own.
fn named(name: &str) -> TrackDescriptor {
    TrackDescriptor { uuid: Some(root(name)), name: Some(name.to_owned()), ..TrackDescriptor::default() }
}

/// The id of a track of its own.
fn root(name: &str) -> u64 {
    let bytes: Vec<u64> = name.bytes().map(u64::from).collect();
    uuid(&bytes)
}

/// An id that is the same for the same thing in every run (FNV-1a), and not 0, which is the whole trace.
fn uuid(of: &[u64]) -> u64 {
    let bytes = of.iter().flat_map(|part| part.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash | 1
}

fn clean(text: &str) -> String {
    sanitise(text).into_owned()
}
