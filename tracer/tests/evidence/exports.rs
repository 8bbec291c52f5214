//! Exports against what the scenarios say.

use crate::make::{SMALL, capture, folder, header, later, lines, scenario, scenarios};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use tracer::capture::{Line, Reader, replay::Replay, replay::Told};
use tracer::correlator::Frame;
use tracer::event::{Body, Ns};
use tracer::sinks::export::{folded::Folded, perfetto::Perfetto};
use tracer::thresholds::SECOND;

/// A trace of a capture, and its frames.
fn perfetto(capture: &[u8]) -> (Vec<u8>, Vec<Frame>) {
    let reader = Reader::new(capture).unwrap();
    let mut perfetto = Perfetto::new(reader.header());
    let mut replay = Replay::new(reader.header().thresholds.clone());
    let (mut trace, mut frames) = (Vec::new(), Vec::new());
    for line in reader {
        let line = line.unwrap();
        perfetto.line(&line);
        replay.line(line, |told| {
            if let Told::Frame(frame) = told {
                perfetto.frame(&frame);
                frames.push(frame);
            }
        });
        trace.extend(perfetto.take());
    }
    perfetto.finish();
    trace.extend(perfetto.take());
    (trace, frames)
}

/// Folded stacks with their weights in microseconds.
fn folded(capture: &[u8]) -> BTreeMap<String, u64> {
    let reader = Reader::new(capture).unwrap();
    let mut folded = Folded::default();
    let replay = Replay::new(reader.header().thresholds.clone());
    replay
        .all(reader, |told| {
            if let Told::Frame(frame) = told {
                folded.frame(&frame);
            }
        })
        .unwrap();
    folded.finish();
    let text = String::from_utf8(folded.take()).unwrap();
    text.lines()
        .map(|line| {
            let (stack, weight) = line.rsplit_once(' ').unwrap();
            (stack.to_owned(), weight.parse().unwrap())
        })
        .collect()
}

/// Python with Perfetto's own classes; the reason why nothing is decoded where there is none.
fn python() -> Result<PathBuf, &'static str> {
    let python = std::env::var_os("PLEGSCOPE_PERFETTO_PYTHON").filter(|value| !value.is_empty());
    python.map(PathBuf::from).ok_or("PLEGSCOPE_PERFETTO_PYTHON is not set (cargo xtask test gets one)")
}

/// Decodes traces with Perfetto's own classes, strictly: what they do not know is an error.
const DECODE: &str = r#"
import json, sys
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

def repeated(field):
    return field.is_repeated if hasattr(field, 'is_repeated') else field.label == field.LABEL_REPEATED

def unknown(message):
    from google.protobuf import unknown_fields
    found = len(unknown_fields.UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            found += sum(unknown(one) for one in (value if repeated(field) else [value]))
    return found

out = {}
for path in sys.argv[1:]:
    trace = pb.Trace()
    trace.ParseFromString(open(path, 'rb').read())
    tracks, slices, open_slices, flows, ends, counters, clocks, incidents = {}, [], {}, {}, {}, {}, {}, []
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id == 1
        for clock in packet.clock_snapshot.clocks:
            clocks[clock.clock_id] = clock.timestamp
        if packet.HasField('track_descriptor'):
            d = packet.track_descriptor
            kind = 'process' if d.HasField('process') else 'thread' if d.HasField('thread') else 'counter' if d.HasField('counter') else 'track'
            name = d.name or d.process.process_name or d.thread.thread_name
            known = tracks.setdefault(d.uuid, [kind, name, d.parent_uuid])
            assert known[0] == kind and known[2] == d.parent_uuid, (known, d)
    events = [p for p in trace.packet if p.HasField('track_event')]
    for p in events:
        assert p.timestamp_clock_id == 3, p
    for p in sorted(events, key=lambda p: p.timestamp):
        e, at = p.track_event, p.timestamp
        assert e.track_uuid in tracks, e
        stack = open_slices.setdefault(e.track_uuid, [])
        if e.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
            notes = {a.name: a.string_value for a in e.debug_annotations}
            one = {'track': tracks[e.track_uuid][1], 'parent': tracks.get(tracks[e.track_uuid][2], [None, None])[1],
                   'name': e.name, 'begin': at, 'end': None, 'category': e.categories[0], 'notes': notes}
            slices.append(one)
            stack.append(one)
        elif e.type == pb.TrackEvent.TYPE_SLICE_END:
            stack.pop()['end'] = at
        elif e.type == pb.TrackEvent.TYPE_COUNTER:
            counters.setdefault(tracks[e.track_uuid][1], []).append([at, e.counter_value])
        inside = stack[-1] if stack else None
        if e.type == pb.TrackEvent.TYPE_INSTANT and e.terminating_flow_ids:
            assert inside is not None, 'an arrow into nothing'
        for f in e.flow_ids:
            assert f not in flows
            flows[f] = [at, inside['track'], inside['name']]
        for f in e.terminating_flow_ids:
            assert f not in ends
            ends[f] = [at, inside['track'], [one['name'] for one in stack]]
    assert flows.keys() == ends.keys(), (flows, ends)
    arrows = sorted(flows[f] + ends[f] for f in flows)
    out[path] = {'tracks': sorted(map(list, tracks.values()), key=str), 'slices': slices, 'arrows': arrows,
                 'counters': counters, 'clocks': clocks, 'unknown': unknown(trace)}
json.dump(out, sys.stdout)
"#;

/// What Perfetto's classes read of each trace.
fn decoded(python: &PathBuf, name: &str, traces: &[(String, Vec<u8>)]) -> BTreeMap<String, Value> {
    let folder = folder(name);
    let script = folder.join("decode.py");
    std::fs::write(&script, DECODE).unwrap();
    let mut command = Command::new(python);
    command.arg(&script);
    for (name, trace) in traces {
        let file = folder.join(format!("{name}.pftrace"));
        std::fs::write(&file, trace).unwrap();
        command.arg(file);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    let stem = |path: String| PathBuf::from(path).file_stem().unwrap().to_str().unwrap().to_owned();
    all.into_iter().map(|(path, value)| (stem(path), value)).collect()
}

fn words(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn perfetto_reads_tracks_slices_and_arrows() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return;
        }
    };
    let script = scenario("full-chain-with-kubelet");
    let cut = script.split("42.0 end").next().unwrap();
    let traces =
        [("whole".to_owned(), perfetto(&capture(&script)).0), ("cut".to_owned(), perfetto(&capture(cut)).0)];
    let all = decoded(&python, "perfetto", &traces);
    let whole = &all["whole"];
    assert_eq!(whole["unknown"], 0);
    assert_eq!(whole["clocks"], serde_json::json!({"1": 1_700_000_000_000_000_000_u64, "3": 0, "6": 0}));
    let tracks: BTreeSet<(&str, &str)> =
        whole["tracks"].as_array().unwrap().iter().map(|t| (words(&t[0]), words(&t[1]))).collect();
    for track in [
        ("process", "containerd"),
        ("process", "kubelet"),
        ("track", "goroutine 12"),
        ("thread", "thread 310"),
        ("track", "the Status lock of prod/job-7/main"),
        ("track", "the Init lock of prod/job-7/main"),
        ("track", "incidents"),
        ("counter", "memory: dirty"),
        ("counter", "written to /dev/nvme1n1"),
    ] {
        assert!(tracks.contains(&track), "{track:?} is missing in {tracks:?}");
    }
    let slices = whole["slices"].as_array().unwrap();
    // Every operation of the scenario, with the times that stand in it.
    let expected: BTreeMap<(String, u64), u64> = lines(&script)
        .into_iter()
        .filter_map(|line| match line {
            Line::Event(event) => match event.body {
                Body::Ended(op, _) => Some(((format!("{:?}", op.kind), op.begin), event.at)),
                _ => None,
            },
            _ => None,
        })
        .collect();
    let operations: Vec<&Value> = slices
        .iter()
        .filter(|s| matches!(words(&s["category"]), "operation" | "kernel" | "lock wait"))
        .collect();
    let read: BTreeSet<(u64, u64)> =
        operations.iter().filter_map(|s| Some((s["begin"].as_u64()?, s["end"].as_u64()?))).collect();
    let wanted: BTreeSet<(u64, u64)> = expected.iter().map(|((_, begin), end)| (*begin, *end)).collect();
    assert!(wanted.len() > 15 && wanted.is_subset(&read), "{:?}", wanted.difference(&read));
    assert_eq!(operations.len(), expected.len(), "{operations:#?}");
    // What lies around the place where an arrow ends: it ends in all of that.
    let arrows: BTreeSet<(&str, &str)> = whole["arrows"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|a| a[5].as_array().unwrap().iter().map(|to| (words(&a[2]), words(to))))
        .collect();
    for arrow in [
        ("CRI ListContainers (client)", "CRI ListContainers"),
        ("wait for a lock", "held by CRI UpdateContainerResources (goroutine 11)"),
        ("held by CRI UpdateContainerResources (goroutine 11)", "CRI UpdateContainerResources"),
        ("held by shim Delete (goroutine 7)", "shim Delete"),
        ("call to the shim: Update", "shim Update"),
    ] {
        assert!(arrows.contains(&arrow), "{arrow:?} is missing in {arrows:#?}");
    }
    for arrow in whole["arrows"].as_array().unwrap() {
        assert!(arrow[0].as_u64() <= arrow[3].as_u64(), "backwards in time: {arrow}");
    }
    let incidents: Vec<&Value> = slices.iter().filter(|s| s["track"] == "incidents").collect();
    assert_eq!(incidents.len(), 1);
    assert_eq!(incidents[0]["begin"], 20 * SECOND);
    assert!(words(&incidents[0]["notes"]["ends in"]).contains("/dev/nvme1n1"), "{incidents:?}");
    // Where the capture ends in the middle, what is blocked has no end.
    let cut = &all["cut"];
    let names = |end: bool| -> BTreeSet<&str> {
        let of = cut["slices"].as_array().unwrap().iter().filter(|s| s["end"].is_null() != end);
        of.map(|s| words(&s["name"])).collect()
    };
    let open = names(false);
    for name in ["PLEG relist", "CRI ListContainers", "wait for a lock", "sync of device 259:1 (ext4)"] {
        assert!(open.contains(name), "{name} is over in {open:?}");
    }
    assert!(names(true).is_empty(), "{:?}", names(true));
}

/// Every scenario gives a trace that Perfetto's classes read, in which every end and every arrow has its begin.
#[test]
fn perfetto_reads_every_scenario() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return;
        }
    };
    let all: Vec<(String, Vec<u8>, Vec<Frame>)> = scenarios()
        .into_iter()
        .map(|(name, script)| {
            let (trace, frames) = perfetto(&capture(&script));
            (name, trace, frames)
        })
        .collect();
    let traces: Vec<(String, Vec<u8>)> =
        all.iter().map(|(name, trace, _)| (name.clone(), trace.clone())).collect();
    let read = decoded(&python, "perfetto-all", &traces);
    for (name, _, frames) in &all {
        let value = &read[name];
        assert_eq!(value["unknown"], 0, "{name}");
        let slices = value["slices"].as_array().unwrap();
        let last = frames.last().unwrap();
        let open = slices.iter().filter(|s| s["end"].is_null() && words(&s["category"]) != "incident");
        let open = open.filter(|s| words(&s["category"]) != "lock").count();
        assert_eq!(open, last.in_flight.len(), "{name}: {:?}", last.in_flight);
        let incidents: BTreeSet<(Ns, &str)> = frames
            .iter()
            .flat_map(|f| &f.incidents)
            .filter(|i| i.change != Some(tracer::correlator::Change::Aftermath))
            .map(|i| (i.opened, i.id.as_str()))
            .collect();
        assert_eq!(slices.iter().filter(|s| s["category"] == "incident").count(), incidents.len(), "{name}");
    }
}

#[test]
fn stacks_weigh_as_much_as_calls_were_stuck() {
    let stacks = folded(&capture(&scenario("full-chain-with-kubelet")));
    let relist: u64 =
        stacks.iter().filter(|(stack, _)| stack.starts_with("PLEG relist")).map(|(_, us)| us).sum();
    // It lasted from 22.0 to 42.12; what is told of last is the tick before.
    assert!((19_900_000..=20_120_000).contains(&relist), "{relist}: {stacks:#?}");
    let sync = |stack: &str| stack.ends_with("sync of /dev/nvme1n1 (ext4)");
    let in_sync: u64 = stacks
        .iter()
        .filter(|(stack, _)| stack.starts_with("PLEG relist") && sync(stack))
        .map(|(_, us)| us)
        .sum();
    assert!(in_sync * 100 >= relist * 99, "{in_sync} of {relist}");
    let (longest, _) =
        stacks.iter().find(|(stack, _)| stack.starts_with("PLEG relist") && sync(stack)).unwrap();
    let order = [
        "PLEG relist",
        "CRI ListContainers",
        "the Status lock",
        "shim Update",
        "the Init lock",
        "unmount",
        "sync of",
    ];
    let places: Vec<usize> = order
        .iter()
        .map(|word| longest.find(word).unwrap_or_else(|| panic!("no {word} in {longest}")))
        .collect();
    assert!(places.is_sorted(), "{longest}");
    let update: u64 =
        stacks.iter().filter(|(s, _)| s.starts_with("UpdateContainerResources")).map(|(_, us)| us).sum();
    assert!((20_800_000..=21_080_000).contains(&update), "{update}");
}

#[test]
fn where_goroutines_sat_is_in_the_stack() {
    let stacks = folded(&capture(&scenario("found-in-progress")));
    let go = stacks.keys().find(|stack| stack.contains(".(*") || stack.contains("sync.")).cloned();
    let go = go.unwrap_or_else(|| panic!("no goroutine frames in {stacks:#?}"));
    // Outermost first, and what is called last stands last before the next link.
    assert!(go.split(';').count() > 3, "{go}");
    // A goroutine that takes part in two links is in one place.
    for stack in stacks.keys() {
        assert!(stack.matches("sync.(*RWMutex).RLock").count() <= 1, "{stack}");
    }
}

#[test]
fn every_scenario_gives_stacks_that_can_be_read() {
    for (name, script) in scenarios() {
        for (stack, weight) in folded(&capture(&script)) {
            assert!(weight > 0, "{name}");
            assert!(!stack.is_empty() && stack.split(';').all(|frame| !frame.is_empty()), "{name}: {stack}");
            assert!(stack.chars().all(|c| !c.is_control()), "{name}: {stack}");
        }
    }
}

#[test]
fn a_long_day_is_written_as_it_is_read() {
    let one = lines(SMALL);
    let mut perfetto = Perfetto::new(&header());
    let mut replay = Replay::new(header().thresholds);
    for round in 0..50 {
        for line in later(&one, round * 20 * SECOND) {
            perfetto.line(&line);
            replay.line(line, |told| {
                if let Told::Frame(frame) = told {
                    perfetto.frame(&frame);
                }
            });
        }
        let written = perfetto.take().len();
        assert!(round == 0 || written > 500, "{written} bytes were written in round {round}");
    }
    perfetto.finish();
    let rest = perfetto.take().len();
    assert!(rest < 5_000, "{rest} bytes were held back to the end");
}
