//! Reports against what the scenarios say, and against the frames that they are made of.

use crate::make::{SMALL, capture, header, later, lines, report_of, scenario, scenarios, written};
use std::collections::BTreeSet;
use tracer::capture::{Header, Line, Loss, Reader, replay::Replay, replay::Told as Heard};
use tracer::correlator::words::duration;
use tracer::correlator::{Change, Frame, Harm};
use tracer::event::{Body, Kind};
use tracer::report::{Comparison, Quantity, Report};
use tracer::sinks::report::{Told, html, json, markdown, text};
use tracer::thresholds::SECOND;

fn told(report: &Report) -> Told<'_> {
    Told { report, against: None }
}

/// The frames of a capture.
fn frames(capture: &[u8]) -> Vec<Frame> {
    let reader = Reader::new(capture).unwrap();
    let mut frames = Vec::new();
    let replay = Replay::new(reader.header().thresholds.clone());
    replay
        .all(reader, |told| {
            if let Heard::Frame(frame) = told {
                frames.push(frame);
            }
        })
        .unwrap();
    frames
}

#[test]
fn the_whole_incident_as_text() {
    let report = report_of(&capture(&scenario("full-chain-with-kubelet")));
    insta::assert_snapshot!("full_chain_text", text(told(&report)));
}

#[test]
fn the_whole_incident_as_markdown() {
    let report = report_of(&capture(&scenario("full-chain-with-kubelet")));
    insta::assert_snapshot!("full_chain_markdown", markdown(told(&report)));
}

#[test]
fn an_incident_that_is_not_over_as_text() {
    // Cut where all is blocked.
    let script = scenario("full-chain-with-kubelet");
    let report = report_of(&capture(script.split("42.0 end").next().unwrap()));
    insta::assert_snapshot!("not_over_text", text(told(&report)));
}

#[test]
fn before_and_after_a_fix() {
    let before = report_of(&capture(&scenario("full-chain-with-kubelet")));
    let after = report_of(&capture(&scenario("volatile")));
    let comparison = Comparison::of(&before, &after);
    let told = Told { report: &after, against: Some(&comparison) };
    insta::assert_snapshot!("against_text", text(told));
    let row = |what: &str| comparison.rows.iter().find(|row| row.what == what).unwrap();
    // By the scenario's own clock: the relist lasted from 22 to 42.12 in 33.3 seconds.
    let stalled = row("stall minutes per hour");
    assert_eq!(stalled.quantity, Quantity::MilliMinutesPerHour);
    let expected = 20.12 / 33.3 * 60.0;
    assert!(
        (stalled.before.unwrap() as f64 / 1_000.0 - expected).abs() < 0.2,
        "{stalled:?} is not {expected}"
    );
    assert_eq!(stalled.after, Some(0));
    assert_eq!((row("incidents").before, row("late exits").before), (Some(1), Some(1)));
    let p99 = row("unmount p99").before.unwrap();
    assert!(p99.abs_diff(21_910_000_000) <= p99 / 50, "{p99}");
    let value: serde_json::Value = serde_json::from_slice(&json(told).unwrap()).unwrap();
    assert_eq!(value["against"]["rows"].as_array().unwrap().len(), comparison.rows.len());
    for page in [markdown(told), html(told)] {
        assert!(page.contains("stall minutes per hour"), "{page}");
    }
}

#[test]
fn too_little_is_not_taken_for_a_cure() {
    let before = report_of(&capture(&scenario("full-chain-with-kubelet")));
    let after = report_of(&capture(&scenario("healthy")));
    let comparison = Comparison::of(&before, &after);
    assert!(comparison.verdict.contains("too little to tell"), "{}", comparison.verdict);
    assert!(comparison.cautions.iter().any(|c| c.contains("rates per hour say little")), "{comparison:?}");
    let same = Comparison::of(&before, &before);
    assert!(same.cautions.iter().any(|c| c.contains("overlap")), "{same:?}");
}

/// What a report counts is what the frames have said, and what was captured.
#[test]
fn every_scenario_is_reported_as_its_frames_say() {
    let (mut slow, mut exits, mut open) = (0, 0, 0);
    for (name, script) in scenarios() {
        let file = capture(&script);
        let report = report_of(&file);
        let frames = frames(&file);
        let last = frames.last().unwrap();
        let changes = || frames.iter().flat_map(|f| &f.incidents).filter(|i| i.change.is_some());
        let begun: BTreeSet<(u64, &str)> = changes().map(|i| (i.opened, i.id.as_str())).collect();
        let merged = changes().filter(|i| matches!(i.change, Some(Change::MergedInto(_)))).count();
        assert_eq!(report.totals.incidents as usize, begun.len() - merged, "{name}");
        assert_eq!(report.incidents.len(), begun.len(), "{name}");
        let lasting: BTreeSet<(u64, &str)> =
            last.incidents.iter().filter(|i| i.ended.is_none()).map(|i| (i.opened, i.id.as_str())).collect();
        assert_eq!(report.totals.open as usize, lasting.len(), "{name}");
        open += lasting.len();
        for one in &report.incidents {
            let sum: u64 = one.record.chain.iter().map(|s| s.critical).sum();
            let age = one.diagnosis.as_ref().map_or(0, |d| d.chain.age);
            assert_eq!(sum, age, "{name}: {}", one.record.sentence);
            assert_eq!(
                one.record.ended.is_none(),
                lasting.contains(&(one.record.opened, one.record.id.as_str())),
                "{name}"
            );
            assert!(!one.logs.is_empty() && !one.changes.is_empty(), "{name}");
        }
        // Each slow relist is listed, with what the correlator counts it as.
        assert_eq!(
            (report.relists.explained, report.relists.unexplained),
            (last.relists.explained, last.relists.unexplained)
        );
        let over: Vec<bool> = report
            .relists
            .slow
            .iter()
            .filter(|r| r.begin.at + r.took < last.now)
            .map(|r| r.explained.is_some())
            .collect();
        let explained = over.iter().filter(|explained| **explained).count() as u64;
        assert_eq!(explained, last.relists.explained, "{name}: {:?}", report.relists);
        assert_eq!(
            over.len() as u64,
            last.relists.explained + last.relists.unexplained,
            "{name}: {:?}",
            report.relists
        );
        slow += over.len();
        // The stall is the union of them, which cannot be longer than their sum, nor than the capture.
        let sum: u64 = report.relists.slow.iter().map(|r| r.took).sum();
        let longest = report.relists.slow.iter().map(|r| r.took).max().unwrap_or(0);
        assert!((longest..=sum).contains(&report.totals.stalled), "{name}: {:?}", report.totals);
        let late: BTreeSet<&str> = frames
            .iter()
            .flat_map(|f| &f.incidents)
            .flat_map(|i| &i.consequences)
            .filter_map(|c| if let Harm::ExitLate { of, .. } = &c.what { Some(of.id.as_str()) } else { None })
            .collect();
        assert_eq!(report.late_exits.len(), late.len(), "{name}");
        exits += late.len();
        let told: Vec<&str> =
            report.latencies.iter().filter(|l| l.count > 0).map(|l| l.of.as_str()).collect();
        let known: Vec<&str> = last.distributions.iter().map(|d| d.of.as_str()).collect();
        assert_eq!(told, known, "{name}");
        let stuck: u64 = report.latencies.iter().take(2).map(|l| l.in_flight).sum();
        let lasting = last.in_flight.iter().filter(|f| {
            let overlay = f.operation.fs_type.as_deref() == Some("overlay");
            matches!(f.operation.kind, Kind::Unmount | Kind::Sync) && !overlay
        });
        assert_eq!(stuck as usize, lasting.count(), "{name}");
    }
    assert!(
        slow > 5 && exits > 5 && open > 3,
        "{slow} slow relists, {exits} late exits, {open} incidents not over"
    );
}

/// The same bytes each time, in all formats, and nothing unsafe in any of them.
#[test]
fn every_scenario_is_told_in_every_format_and_the_same_each_time() {
    for (name, script) in scenarios() {
        let file = capture(&script);
        let (first, second) = (report_of(&file), report_of(&file));
        assert_eq!(first, second, "{name}");
        let all = |r: &Report| {
            [
                text(told(r)),
                markdown(told(r)),
                html(told(r)),
                String::from_utf8(json(told(r)).unwrap()).unwrap(),
            ]
        };
        let pages = all(&first);
        assert_eq!(pages, all(&second), "{name}");
        for page in &pages {
            let unsafe_one =
                |c: &char| (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c);
            assert_eq!(page.chars().find(unsafe_one), None, "{name}");
            assert!(page.contains("node-7"), "{name}");
        }
        let value: serde_json::Value = serde_json::from_str(&pages[3]).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["incidents"].as_array().unwrap().len(), first.incidents.len());
    }
}

#[test]
fn what_is_missing_is_not_counted_as_captured() {
    let script = scenario("full-chain-with-kubelet");
    let whole = report_of(&capture(&script));
    let mut all = lines(&script);
    let at = 30 * SECOND;
    let place = all.iter().position(|line| *line == Line::Heard(31 * SECOND)).unwrap();
    all.insert(place, Line::Loss(Loss { at, lines: 7, reason: "the disk did not keep up".into() }));
    let report = report_of(&written(header(), &all));
    let gap = &report.captured.gaps[0];
    assert_eq!((gap.lines, gap.to.as_ref().map(|to| to.at)), (7, Some(31 * SECOND)), "{gap:?}");
    let missing = gap.to.as_ref().unwrap().at - gap.from.at;
    assert_eq!(report.captured.covered + missing, whole.captured.covered);
    assert!(text(told(&report)).contains("the disk did not keep up"));
    assert_eq!(report.blind.lines_lost, 7);
    // What was stalled was so in the gap, too: only of a capture without one it is told what share that is.
    let first_line = |r: &Report| text(told(r)).lines().next().unwrap().to_owned();
    let stalled = duration(report.totals.stalled);
    assert!(first_line(&whole).contains(&format!("stalled for {stalled} of ")), "{}", first_line(&whole));
    assert!(first_line(&report).contains(&format!("stalled for {stalled}")), "{}", first_line(&report));
    assert!(!first_line(&report).contains(" %)"), "{}", first_line(&report));
    let parts = [report.captured.covered, whole.captured.covered].map(duration);
    assert!(html(told(&report)).contains(&format!("{} of {} captured", parts[0], parts[1])));
}

#[test]
fn without_an_end_it_was_cut_off() {
    let mut file = Vec::new();
    let mut writer = tracer::capture::writer::Writer::new(&mut file).unwrap();
    writer.line(&Line::Header(header())).unwrap();
    for line in lines(&scenario("healthy")) {
        writer.line(&line).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);
    let report = report_of(&file);
    assert_eq!(report.captured.ended, None);
    assert!(text(told(&report)).contains("no end: it was cut off, or is still being written"));
    let only_a_header = report_of(&written(header(), &[]));
    assert_eq!((only_a_header.captured.covered, only_a_header.totals.incidents), (0, 0));
    assert!(!html(told(&only_a_header)).contains("NaN"));
}

#[test]
fn hashes_are_not_looked_for_in_logs() {
    let all = lines(&scenario("full-chain-with-kubelet"));
    let report = report_of(&written(Header { redacted: true, ..header() }, &all));
    let command = &report.incidents[0].logs.iter().find(|log| log.of == "containerd").unwrap().command;
    assert!(!command.contains("aaaaaaaa"), "{command}");
    let named = report_of(&written(header(), &all));
    assert!(named.incidents[0].logs.iter().any(|log| log.command.contains("aaaaaaaaaaaa")));
}

/// What a workload is called cannot become markup, nor a command.
#[test]
fn hostile_names_stay_names() {
    let hostile = "`x`|<b> [y](http://z)*_@me\n# h</script>'; reboot;'";
    let mut all = lines(&scenario("full-chain-with-kubelet"));
    for line in &mut all {
        let Line::Event(event) = line else { continue };
        if let Body::Container(c) = &mut event.body {
            (c.namespace, c.pod, c.name) = (Some(hostile.into()), Some(hostile.into()), Some(hostile.into()));
        }
    }
    let report = report_of(&written(header(), &all));
    let page = markdown(told(&report));
    let fenced = page.split("````");
    let outside: String = fenced.step_by(2).collect();
    assert!(page.matches("````").count().is_multiple_of(2));
    for bad in ["<b>", "`x`", " [y", "\n# h", "http://z"] {
        assert!(!outside.contains(bad), "{bad} in {outside}");
    }
    assert!(!html(told(&report)).contains("<b>["));
    for log in &report.incidents[0].logs {
        assert!(!log.command.contains("reboot"), "{}", log.command);
    }
}

/// A capture of a bad day is no larger in memory, and its report no longer, than the bounds say.
#[test]
fn a_bad_day_stays_within_its_bounds() {
    const TIMES: u64 = 205;
    let one = lines(SMALL);
    let all: Vec<Line> = (0..TIMES).flat_map(|n| later(&one, n * 20 * SECOND)).collect();
    let report = report_of(&written(header(), &all));
    assert_eq!(report.relists.slow.len(), tracer::report::RELISTS);
    assert_eq!(report.relists.explained + report.relists.unexplained, TIMES);
    assert!(report.timeline.samples.len() <= 1_024);
    assert_eq!(report.totals.stalled, TIMES * 7 * SECOND);
    // The relist and the unmount, which nothing ties together.
    assert_eq!(report.totals.incidents, 2 * TIMES);
    assert_eq!(report.incidents.len(), tracer::report::INCIDENTS);
    assert!(text(told(&report)).contains("and 210 shorter ones"));
}
