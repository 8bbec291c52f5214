//! Screens as they were, of scenarios.

use super::cells::{drawn, picture, text};
use super::world::{frames, live, press, replayed, tell, type_in};
use ratatui::style::{Color, Modifier};
use tracer::tui::message::{Capture, Position, Probing};
use tracer::tui::model::Mode;
use tracer::tui::{Key, Message, Model};

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (160, 50);

#[test]
fn an_incident_at_one_glance() {
    for (name, size) in [("80x24", SMALL), ("160x50", LARGE)] {
        let model = live(size, &frames("full-chain-with-kubelet", 41.0));
        insta::assert_snapshot!(format!("stuck_{name}"), picture(&model));
    }
}

#[test]
fn a_real_incident() {
    for (name, size) in [("80x24", SMALL), ("160x50", LARGE)] {
        insta::assert_snapshot!(format!("real_{name}"), picture(&replayed(size, 12)));
    }
    let mut model = replayed(LARGE, 12);
    press(&mut model, Key::Up);
    press(&mut model, Key::Enter);
    let shown = text(&drawn(&model, true)).join("\n");
    for there in ["evidence", "pkg/process.(*Init).Delete", "in state D", "folio_wait_writeback"] {
        assert!(shown.contains(there), "no {there}: {shown}");
    }
    insta::assert_snapshot!("real_after_80x24", picture(&replayed(SMALL, 60)));
}

#[test]
fn a_healthy_node_and_one_on_which_nothing_is_attached_yet() {
    for (name, size) in [("80x24", SMALL), ("160x50", LARGE)] {
        let model = live(size, &frames("healthy", 60.0));
        insta::assert_snapshot!(format!("healthy_{name}"), picture(&model));
    }
    let mut model = Model::new(Mode::Live, "node-7", SMALL);
    insta::assert_snapshot!("before_the_first_word", picture(&model));
    tell(&mut model, Message::Probing(Probing::default().into()));
    for frame in frames("healthy", 11.0) {
        tell(&mut model, Message::Frame(frame));
    }
    let shown = text(&drawn(&model, true)).join("\n");
    assert!(shown.contains("attaching…") && !shown.contains("nothing is stuck"), "{shown}");
}

#[test]
fn each_pane_of_an_incident() {
    for (n, pane) in
        ["chain", "in_flight", "relists", "latencies", "disk", "incidents", "probes"].iter().enumerate()
    {
        let mut model = live(SMALL, &frames("dirtied-by-another", 60.0));
        type_in(&mut model, &(n + 1).to_string());
        insta::assert_snapshot!(format!("pane_{pane}_80x24"), picture(&model));
    }
}

#[test]
fn what_lies_over_the_panes() {
    let mut model = live(SMALL, &frames("full-chain-with-kubelet", 41.0));
    press(&mut model, Key::Enter);
    insta::assert_snapshot!("detail_of_the_end_80x24", picture(&model));
    press(&mut model, Key::Escape);
    type_in(&mut model, "gjjjj");
    press(&mut model, Key::Enter);
    insta::assert_snapshot!("detail_of_a_link_80x24", picture(&model));
    press(&mut model, Key::Escape);
    type_in(&mut model, "y");
    insta::assert_snapshot!("ticket_80x24", picture(&model));
    press(&mut model, Key::Escape);
    type_in(&mut model, "?");
    insta::assert_snapshot!("help_80x24", picture(&model));
}

#[test]
fn several_causes_after_the_end_and_a_replay() {
    let mut model = live(LARGE, &frames("two-causes", 27.0));
    insta::assert_snapshot!("two_causes_160x50", picture(&model));
    type_in(&mut model, "d");
    assert!(text(&drawn(&model, true)).join("\n").contains("2 of 2 things that are stuck"));
    let mut model = live(SMALL, &frames("full-chain-with-kubelet", 43.0));
    type_in(&mut model, "6");
    insta::assert_snapshot!("over_80x24", picture(&model));
    model.mode = Mode::Replay("incident.pleg".to_owned());
    let second = 1_000_000_000;
    tell(
        &mut model,
        Message::Position(Position {
            from: 10 * second,
            to: 100 * second,
            at: 43 * second,
            paused: true,
            speed: 2_000,
            ended: false,
        }),
    );
    insta::assert_snapshot!("replay_80x24", picture(&model));
}

#[test]
fn tiny_terminals_keep_the_sentence() {
    for (columns, lines) in [(20, 5), (39, 9), (40, 10), (60, 12)] {
        let model = live((columns, lines), &frames("full-chain-with-kubelet", 41.0));
        let shown = text(&drawn(&model, true));
        assert!(shown.join(" ").contains("STUCK 19s"), "{columns}x{lines}: {shown:#?}");
        insta::assert_snapshot!(format!("stuck_{columns}x{lines}"), shown.join("\n"));
    }
}

#[test]
fn marks_say_what_must_be_known() {
    let all = frames("full-chain-with-kubelet", 41.0);
    let mut model = live(SMALL, &all[..all.len() - 100]);
    tell(&mut model, Message::Capture(Capture::On("/run/x.pleg".into(), 12_000_000)));
    type_in(&mut model, " ");
    for frame in &all[all.len() - 100..] {
        tell(&mut model, Message::Frame(frame.clone()));
    }
    for _ in 0..20 {
        tell(&mut model, Message::Tick);
    }
    let buffer = drawn(&model, true);
    let header = &text(&buffer)[0];
    for mark in ["FROZEN, 9.0s behind", "NO NEWS FOR 5s", "CAPTURING 12 MB"] {
        assert!(header.contains(mark), "{header}");
    }
    assert!(text(&buffer)[1].contains("STUCK 9."), "{}", text(&buffer)[1]);
    let x = header.chars().position(|c| c == 'F').unwrap() as u16;
    assert_eq!((buffer[(x, 0)].fg, buffer[(x, 0)].bg), (Color::Black, Color::Yellow));
}

/// With colours taken away every cell still says what it said, by characters and weight.
#[test]
fn without_colours_nothing_is_lost() {
    for scenario in ["full-chain-with-kubelet", "two-causes", "healthy", "lost-events", "leaked-shims"] {
        let model = live(LARGE, &frames(scenario, 41.0));
        let (with, without) = (drawn(&model, true), drawn(&model, false));
        assert_eq!(text(&with), text(&without));
        for (a, b) in with.content().iter().zip(without.content()) {
            assert_eq!((b.fg, b.bg), (Color::Reset, Color::Reset));
            let is_mark = a.bg != Color::Reset;
            assert!(!is_mark || b.modifier.contains(Modifier::REVERSED), "a mark is lost");
        }
    }
}
