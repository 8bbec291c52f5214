//! How fast decoded events go through the orderer and the correlator, how that grows, and what a capture of them takes:
//! a synthetic day of a node.
//!
//! `cargo xtask bench --only throughput,growth,capture` runs this and puts it beside the goals: one line of JSON for each
//! measurement. The arguments say which.
#![allow(clippy::unwrap_used, reason = "a bench may fail loudly")]

use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};
use tracer::capture::player::{Speed, Wait};
use tracer::capture::{Header, Line, Player, VERSION, writer::Writer};
use tracer::event::{Actor, Began, Body, Device, Event, Kind, Ns, Operation, Outcome, Process, Role, SeenBy};
use tracer::node::clock::of_thread;
use tracer::pipeline::Pipeline;
use tracer::thresholds::{MILLISECOND, POLL_EVERY, SECOND, Thresholds};

/// What happens on the node.
#[derive(Clone, Copy)]
struct Day {
    events: u64,
    /// Containers, each with a shim of its own.
    containers: u64,
    /// Operations that go on at once while something is stuck.
    in_flight: u64,
    /// Lock waits one behind the other in that.
    depth: u64,
    /// Operations that end in a second.
    ends: u64,
    /// Every so many minutes something is stuck for half a minute; 0 for never.
    stuck_every: u64,
}

const NODE: Day =
    Day { events: 10_000_000, containers: 1_000, in_flight: 40, depth: 6, ends: 100, stuck_every: 60 };

/// Makes the events of one second after the other.
struct Node {
    day: Day,
    now: Ns,
    random: u64,
}

impl Node {
    fn new(day: Day) -> Node {
        Node { day, now: 1_000 * SECOND, random: 0x2545_f491_4f6c_dd1d }
    }

    /// xorshift64: the same day in each run.
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    fn container(number: u64) -> String {
        format!("{number:064x}")
    }

    fn operation(
        kind: Kind,
        method: &str,
        pid: u32,
        goid: u64,
        begin: Ns,
        container: Option<u64>,
    ) -> Operation {
        Operation {
            kind,
            method: method.to_owned(),
            actor: Actor { pid, tid: pid + 1, g: Some(0xc000_0000_0000 + goid * 0x1c0), goid: Some(goid) },
            begin,
            began: Began::Then,
            object: 0,
            container: container.map(Node::container),
            path: None,
            device: None,
            fs_type: None,
            seen_by: SeenBy::Uprobe,
        }
    }

    /// Processes and containers, as they are told at the start.
    fn start(&self) -> Vec<Event> {
        let process = |pid, role, comm: &str| {
            let (comm, go_version) = (comm.to_owned(), "go1.22.1".to_owned());
            Body::Process(Process { pid, started: 1, role, comm, go_version, version: None })
        };
        let shims =
            (0..self.day.containers).map(|n| process(10_000 + n as u32, Role::Shim, "containerd-shim"));
        let all = [process(100, Role::Containerd, "containerd"), process(50, Role::Kubelet, "kubelet")];
        all.into_iter().chain(shims).map(|body| Event { at: self.now, body }).collect()
    }

    /// The next second, in the order in which it is heard of.
    fn second(&mut self) -> Vec<Event> {
        let (begin, day) = (self.now, self.day);
        self.now += SECOND;
        let mut events =
            vec![Event { at: begin, body: Body::Memory { dirty: begin % 999_983, writeback: 0 } }];
        for _ in 0..day.ends {
            let number = self.random(day.containers);
            let (pid, goid) = (10_000 + number as u32, 20 + self.random(500));
            let took = 20 * MILLISECOND + self.random(80) * MILLISECOND;
            let at = begin + self.random(SECOND);
            let (kind, method, pid) = [
                (Kind::CriCall, "ListContainers", 100),
                (Kind::CriCall, "ContainerStatus", 100),
                (Kind::LockWait, "", 100),
                (Kind::ShimCall, "State", 100),
                (Kind::ShimServe, "State", pid),
                (Kind::InitMethod, "Status", pid),
                (Kind::Unmount, "", pid),
                (Kind::Relist, "", 50),
            ][self.random(8) as usize];
            let mut op = Node::operation(kind, method, pid, goid, at - took, Some(number));
            if kind == Kind::LockWait {
                op.object = 0xc000_1000_0000 + number * 0x100;
            }
            events.push(Event { at, body: Body::Ended(op, Outcome::Done) });
        }
        let minute = begin / (60 * SECOND);
        let stuck = day.stuck_every > 0 && minute.is_multiple_of(day.stuck_every) && begin / SECOND % 60 < 30;
        for poll in 0..SECOND / POLL_EVERY {
            let at = begin + poll * POLL_EVERY;
            if stuck {
                events.extend(
                    self.stuck(minute * 60 * SECOND)
                        .into_iter()
                        .map(|op| Event { at, body: Body::InFlight(op) }),
                );
            }
            let kinds = Kind::RECORDED.to_vec();
            events.push(Event { at, body: Body::PollComplete { kinds, older_than: at - 50 * MILLISECOND } });
        }
        events.sort_by_key(|event| event.at);
        events
    }

    /// What goes on while something is stuck: a chain of locks that ends in an unmount, and list calls that wait for it.
    fn stuck(&self, since: Ns) -> Vec<Operation> {
        let base = |n: u64| 0xc000_2000_0000 + n * 0x100;
        let mut all = Vec::new();
        for n in 0..self.day.depth {
            let begin = since + (self.day.depth - n) * MILLISECOND;
            let mut held = Node::operation(Kind::StatusUpdate, "UpdateSync", 100, 1_000 + n, begin, Some(n));
            held.object = base(n);
            let mut wait = Node::operation(Kind::LockWait, "", 100, 1_000 + n, begin + MILLISECOND, None);
            wait.object = base(n + 1) + 12;
            all.extend([held, wait]);
        }
        let mut unmount =
            Node::operation(Kind::StatusUpdate, "UpdateSync", 100, 1_000 + self.day.depth, since, Some(1));
        unmount.object = base(self.day.depth);
        let mut leaf = Node::operation(Kind::Unmount, "", 100, 1_000 + self.day.depth, since + 1, Some(1));
        leaf.device = Some(Device { major: 259, minor: 1 });
        all.extend([unmount, leaf]);
        while (all.len() as u64) < self.day.in_flight {
            let n = all.len() as u64;
            all.push(Node::operation(
                Kind::CriCall,
                "ListContainers",
                100,
                5_000 + n,
                since + n * MILLISECOND,
                None,
            ));
            let mut wait =
                Node::operation(Kind::LockWait, "", 100, 5_000 + n, since + n * MILLISECOND + 1, None);
            wait.object = base(0) + 12;
            all.push(wait);
        }
        all
    }
}

/// Field of `/proc/self/status` in kB.
fn memory(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// Plays a day; making the events is not counted.
fn play(name: &str, day: Day) {
    let mut node = Node::new(day);
    let mut pipeline = Pipeline::new(Thresholds::DEFAULT);
    let (mut events, mut frames, mut spent, mut incidents) = (0, 0_u64, 0.0, 0_u64);
    pipeline.push(node.start());
    let mut early = None;
    while events < day.events {
        let second = node.second();
        events += second.len() as u64;
        // Of this thread, so that what else the machine does is not counted.
        let begin = of_thread();
        pipeline.push(second);
        pipeline.advance(node.now, |frame| {
            frames += 1;
            incidents += frame.incidents.iter().filter(|i| i.ended.is_some()).count() as u64;
        });
        spent += of_thread().saturating_sub(begin) as f64 / SECOND as f64;
        if early.is_none() && events * 10 >= day.events {
            early = Some(memory("VmRSS"));
        }
    }
    let rate = events as f64 / spent;
    let line = json!({
        "measurement": name, "events": events, "frames": frames, "incidents": incidents,
        "events_per_second": rate, "seconds": spent,
        "rss_after_a_tenth_kb": early, "rss_at_the_end_kb": memory("VmRSS"),
    });
    println!("{line}");
}

/// A capture of a busy minute: its size, what writing costs, how fast it is replayed, how long a large one takes to open.
fn capture(folder: &std::path::Path) {
    const SECONDS: u64 = 60;
    const LARGE: u64 = 1 << 30;
    let day = Day { ends: 10_000, in_flight: 20, stuck_every: 1, ..NODE };
    let mut node = Node::new(day);
    let path = folder.join("busy-minute.pleg");
    let header = Header {
        version: VERSION,
        plegscope: env!("CARGO_PKG_VERSION").into(),
        thresholds: Thresholds::DEFAULT,
        clock: tracer::capture::line::Clock { monotonic: node.now, ..Default::default() },
        ..Header::default()
    };
    let mut writer = Writer::new(File::create(&path).unwrap()).unwrap();
    writer.line(&Line::Header(header)).unwrap();
    let mut lines: Vec<Line> = node.start().into_iter().map(Line::Event).collect();
    let (mut events, mut spent) = (0, 0.0);
    for _ in 0..SECONDS {
        let begin = node.now;
        let mut poll = 1;
        for event in node.second() {
            while event.at >= begin + poll * POLL_EVERY {
                lines.push(Line::Heard(begin + poll * POLL_EVERY));
                poll += 1;
            }
            events += 1;
            lines.push(Line::Event(event));
        }
        lines.push(Line::Heard(node.now));
        let before = Instant::now();
        lines.drain(..).for_each(|line| writer.line(&line).unwrap());
        spent += before.elapsed().as_secs_f64();
    }
    writer.flush().unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    let before = Instant::now();
    let mut player = Player::open(&path, false).unwrap();
    player.set_speed(Speed::Max);
    let mut frames = 0_u64;
    while player.wait() != Wait::Over {
        player.play(Duration::ZERO, |_| frames += 1).unwrap();
    }
    let replayed = before.elapsed().as_secs_f64();
    // Frames can be read by themselves, so a large capture is many small ones.
    let large = folder.join("large.pleg");
    let content = std::fs::read(&path).unwrap();
    let mut file = BufWriter::new(File::create(&large).unwrap());
    for _ in 0..LARGE.div_ceil(bytes) {
        file.write_all(&content).unwrap();
    }
    file.flush().unwrap();
    let before = Instant::now();
    let opened = Player::open(&large, false).unwrap();
    let open = before.elapsed().as_secs_f64();
    assert!(opened.span().1 > opened.span().0);
    std::fs::remove_file(&large).unwrap();
    std::fs::remove_file(&path).unwrap();
    let line = json!({
        "measurement": "capture", "events": events, "bytes_per_event": bytes as f64 / events as f64,
        "write_ns_per_event": spent * 1e9 / events as f64, "times_real_time": SECONDS as f64 / replayed,
        "frames": frames, "open_ms": open * 1e3,
    });
    println!("{line}");
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |what: &str| asked.is_empty() || asked.iter().any(|word| word == what);
    if wants("throughput") {
        play("a node's day", NODE);
    }
    if wants("growth") {
        // Each ten times as much as in the plain one.
        let plain =
            Day { events: 1_000_000, containers: 100, in_flight: 40, depth: 2, ends: 100, stuck_every: 1 };
        play("plain", plain);
        play("ten times the events", Day { events: plain.events * 10, ..plain });
        play("ten times the containers", Day { containers: plain.containers * 10, ..plain });
        play(
            "ten times in flight",
            Day { in_flight: plain.in_flight * 10, events: plain.events * 5, ..plain },
        );
        play("ten times the depth", Day { depth: plain.depth * 10, in_flight: 60, ..plain });
    }
    if wants("capture") {
        let folder = std::env::temp_dir().join(format!("plegscope-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        capture(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
