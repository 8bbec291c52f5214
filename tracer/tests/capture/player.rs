//! The player: whatever its speed and wherever it jumps, what it tells is what it would have told without.

use super::{file, header, story};
use std::collections::BTreeSet;
use std::io::Cursor;
use std::time::Duration;
use tracer::capture::line::Clock;
use tracer::capture::player::{Player, Speed, Wait};
use tracer::capture::replay::Told;
use tracer::capture::{Line, Reader, reader};
use tracer::correlator::{Change, Frame};
use tracer::event::{Body, Event, Ns};
use tracer::thresholds::{LATENESS, MILLISECOND, SECOND};

/// Two incidents two minutes apart, and quiet before, between and after.
fn lines() -> Vec<Line> {
    let shifted = |name: &str, by: Ns| {
        story(name).into_iter().filter_map(move |line| match line {
            Line::Event(event) => Some(Line::Event(shift(event, by))),
            Line::Heard(at) => Some(Line::Heard(at + by)),
            _ => None,
        })
    };
    let first: Vec<Line> = shifted("status-write", 0).collect();
    let end = last(&first);
    let quiet = (1..40).map(|n| Line::Heard(end + n * 3 * SECOND));
    let by = end + 120 * SECOND;
    let second: Vec<Line> = shifted("late-exit", by).collect();
    first.iter().cloned().chain(quiet).chain(second).collect()
}

fn shift(mut event: Event, by: Ns) -> Event {
    event.at += by;
    match &mut event.body {
        Body::InFlight(op) | Body::Ended(op, _) => op.begin += by,
        Body::PollComplete { older_than, .. } => *older_than += by,
        Body::Process(process) => process.started += by,
        _ => {}
    }
    event
}

fn last(lines: &[Line]) -> Ns {
    let heard = lines.iter().rev().find_map(|line| match line {
        Line::Heard(at) => Some(*at),
        _ => None,
    });
    heard.unwrap()
}

fn player(bytes: &[u8]) -> Player<Cursor<&[u8]>> {
    let end = reader::last_time(&mut Cursor::new(bytes)).unwrap();
    Player::new(Reader::new(Cursor::new(bytes)).unwrap(), end)
}

fn frames_of(told: Vec<Told>) -> Vec<Frame> {
    told.into_iter()
        .filter_map(|told| match told {
            Told::Frame(frame) => Some(frame),
            Told::Ahead(_) | Told::Passed(_) | Told::Line(_) => None,
        })
        .collect()
}

/// All that is left of it.
fn rest(player: &mut Player<Cursor<&[u8]>>) -> Vec<Frame> {
    player.set_speed(Speed::Max);
    let mut told = Vec::new();
    while player.wait() != Wait::Over {
        player.play(Duration::ZERO, |one| told.push(one)).unwrap();
    }
    frames_of(told)
}

/// Ends a jump; what is told at its end.
fn arrive(player: &mut Player<Cursor<&[u8]>>) -> Vec<Frame> {
    let mut told = Vec::new();
    while player.is_jumping() {
        let is_passed = |told: &Told| matches!(told, Told::Passed(_));
        assert!(told.iter().all(is_passed), "nothing is told on the way but what is passed");
        player.play(Duration::ZERO, |one| told.push(one)).unwrap();
    }
    frames_of(told)
}

#[test]
fn what_a_jump_passes_over_can_be_had() {
    let bytes = file(&lines(), 50);
    let all = rest(&mut player(&bytes));
    for next_incident in [false, true] {
        let mut jumper = player(&bytes);
        let (_, end) = jumper.span();
        if next_incident {
            jumper.next_incident()
        } else {
            jumper.seek(end).unwrap()
        }
        let mut told = Vec::new();
        while jumper.is_jumping() {
            jumper
                .play(Duration::ZERO, |one| match one {
                    Told::Passed(frame) | Told::Frame(frame) => told.push(frame),
                    Told::Ahead(_) | Told::Line(_) => {}
                })
                .unwrap();
        }
        let last = told.last().unwrap().now;
        assert_eq!(last == all.last().unwrap().now, !next_incident);
        let until: Vec<&Frame> = all.iter().filter(|frame| frame.now <= last).collect();
        let seconds = |frames: &[&Frame]| frames.iter().map(|f| f.now / SECOND).collect::<BTreeSet<_>>();
        let changes = |frames: &[&Frame]| -> Vec<String> {
            let changed = frames.iter().flat_map(|f| &f.incidents).filter(|i| i.change.is_some());
            changed.map(|i| format!("{} {:?}", i.id, i.change)).collect()
        };
        let told: Vec<&Frame> = told.iter().collect();
        assert!(told.len() > 5 && told.iter().all(|frame| until.contains(frame)), "{}", told.len());
        assert_eq!(seconds(&told), seconds(&until));
        assert_eq!(changes(&told), changes(&until));
    }
}

fn json(frames: &[Frame]) -> String {
    serde_json::to_string(frames).unwrap()
}

#[test]
fn the_same_at_any_speed_and_each_time() {
    let bytes = file(&lines(), 50);
    let all = rest(&mut player(&bytes));
    assert!(all.iter().any(|frame| !frame.incidents.is_empty()), "nothing happens in it");
    assert_eq!(json(&all), json(&rest(&mut player(&bytes))));
    // A little at a time.
    let mut slow = player(&bytes);
    slow.set_speed(Speed::Times(100.0));
    let mut told = Vec::new();
    let mut steps = 0_u64;
    loop {
        match slow.wait() {
            Wait::Over => break,
            Wait::Paused => panic!("nobody asked for that"),
            Wait::No | Wait::For(_) => {}
        }
        slow.play(Duration::from_millis(37), |one| told.push(one)).unwrap();
        steps += 1;
    }
    assert_eq!(json(&frames_of(told)), json(&all));
    let (begin, end) = slow.span();
    let expected = (end - begin) / (3_700 * MILLISECOND);
    assert!(steps.abs_diff(expected) <= expected / 50 + 10, "{steps} steps, not {expected}");
}

#[test]
fn it_goes_as_fast_as_it_happened_and_stands_still_when_asked() {
    let bytes = file(&lines(), 50);
    let mut player = player(&bytes);
    player.play(Duration::ZERO, |_| {}).unwrap();
    let begin = player.position();
    for _ in 0..100 {
        player.play(Duration::from_millis(100), |_| {}).unwrap();
    }
    assert_eq!(player.position(), begin + 10 * SECOND);
    player.pause();
    assert_eq!(player.wait(), Wait::Paused);
    player.play(Duration::from_secs(100), |_| panic!("it was paused")).unwrap();
    assert_eq!(player.position(), begin + 10 * SECOND);
    player.resume();
    player.set_speed(Speed::Times(4.0));
    player.play(Duration::from_secs(1), |_| {}).unwrap();
    assert_eq!(player.position(), begin + 14 * SECOND);
    assert!(matches!(player.wait(), Wait::For(_)), "{:?}", player.wait());
}

#[test]
fn after_a_jump_it_tells_what_it_would_have_told() {
    let bytes = file(&lines(), 50);
    let all = rest(&mut player(&bytes));
    let mut jumper = player(&bytes);
    let (begin, end) = jumper.span();
    // Forth and back, by leaps of all lengths.
    for part in [50, 10, 99, 98, 3, 60, 59, 100, 0, 30] {
        let to = begin + (end - begin) / 100 * part;
        jumper.seek(to).unwrap();
        let told = arrive(&mut jumper);
        let before: Vec<&Frame> =
            all.iter().filter(|frame| frame.now + LATENESS <= jumper.position()).collect();
        let last: Vec<Frame> = before[before.len() - told.len()..].iter().map(|f| (*f).clone()).collect();
        assert_eq!(json(&told), json(&last), "at {part} %");
        let after = all.len() - before.len();
        assert_eq!(json(&rest(&mut jumper)), json(&all[all.len() - after..]), "from {part} % on");
    }
}

#[test]
fn it_finds_the_next_incident_and_comes_back() {
    let bytes = file(&lines(), 50);
    let all = rest(&mut player(&bytes));
    let crossed = |frame: &&Frame| frame.incidents.iter().any(|i| i.change == Some(Change::Crossed));
    let crossings: Vec<Ns> = all.iter().filter(crossed).map(|frame| frame.now).collect();
    assert!(crossings.len() >= 2, "{crossings:?}");
    let mut player = player(&bytes);
    for crossing in &crossings {
        player.next_incident();
        assert_eq!(arrive(&mut player).first().map(|frame| frame.now), Some(*crossing));
    }
    player.next_incident();
    arrive(&mut player);
    assert_eq!(player.wait(), Wait::Over);
    for crossing in crossings.iter().rev() {
        assert!(player.previous_incident().unwrap());
        assert!(arrive(&mut player).iter().any(|frame| frame.now == *crossing));
    }
    assert!(!player.previous_incident().unwrap());
}

/// The clock was set in the middle: times are told by what holds where it is, in both directions.
#[test]
fn time_is_told_by_the_clocks_of_the_place() {
    let mut lines = lines();
    let set = Clock { monotonic: 30 * SECOND, realtime: 1_800_000_000_000_000_000, ..header().clock };
    let after = |line: &Line| matches!(line, Line::Heard(at) if *at > 30 * SECOND);
    let middle = lines.iter().position(after).unwrap();
    lines.insert(middle, Line::Clock(set));
    let bytes = file(&lines, 50);
    let mut jumper = player(&bytes);
    let (begin, end) = jumper.span();
    let mut clock_at = |to| {
        jumper.seek(to).unwrap();
        let mut clock = None;
        while jumper.is_jumping() {
            jumper
                .play(Duration::ZERO, |one| {
                    if let Told::Line(Line::Clock(told)) = one {
                        clock = Some(told);
                    }
                })
                .unwrap();
        }
        clock
    };
    assert_eq!(clock_at(begin + 20 * SECOND), Some(header().clock));
    assert_eq!(clock_at(end), Some(set));
    assert_eq!(clock_at(begin + 10 * SECOND), Some(header().clock));
}
