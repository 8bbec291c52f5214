//! What keys do.

use super::cells::{drawn, text};
use super::world::{frames, live, press, tell, type_in};
use tracer::tui::message::{Capture, Replay};
use tracer::tui::model::Mode;
use tracer::tui::panes::Pane;
use tracer::tui::{Effect, Key, Message, Model};

fn stuck() -> Model {
    live((100, 30), &frames("full-chain-with-kubelet", 41.0))
}

fn selected(model: &Model) -> String {
    let (rows, selected) = model.rows(model.pane);
    rows.get(selected).map(|row| row.full.plain()).unwrap_or_default()
}

#[test]
fn the_ticket_is_copied_and_at_most_twenty_plain_lines() {
    let mut model = stuck();
    let effects = type_in(&mut model, "y");
    let [Effect::Copy(ticket)] = effects.as_slice() else { panic!("{effects:?}") };
    assert!(ticket.lines().count() <= 20 && ticket.lines().count() >= 10, "{ticket}");
    assert!(ticket.starts_with("node-7 2024-02-29T12:00:41.000+01:00 STUCK 19s"), "{ticket}");
    assert!(ticket.contains("do now: ") && !ticket.contains('\u{1b}'), "{ticket}");
    assert!(text(&drawn(&model, true)).join("\n").contains("for the ticket"));
}

#[test]
fn the_id_of_the_selected_container_is_copied_and_shown() {
    let mut model = stuck();
    let effects = type_in(&mut model, "c");
    assert_eq!(effects, [Effect::Copy("a".repeat(64))]);
    assert!(text(&drawn(&model, true)).last().unwrap().contains(&"a".repeat(64)));
    type_in(&mut model, "2/StopContainer");
    press(&mut model, Key::Enter);
    assert_eq!(type_in(&mut model, "c"), [Effect::Copy("b".repeat(64))]);
}

#[test]
fn a_search_goes_from_place_to_place_and_a_filter_leaves_the_rest_out() {
    let mut model = stuck();
    type_in(&mut model, "g/LOCK of");
    press(&mut model, Key::Enter);
    assert!(selected(&model).contains("Status lock"), "{}", selected(&model));
    type_in(&mut model, "n");
    assert!(selected(&model).contains("Init lock"), "{}", selected(&model));
    type_in(&mut model, "N");
    assert!(selected(&model).contains("Status lock"), "{}", selected(&model));
    type_in(&mut model, "2fSTOPCONT");
    press(&mut model, Key::Enter);
    assert_eq!(model.rows(Pane::InFlight).0.len(), 1);
    press(&mut model, Key::Escape);
    assert!(model.rows(Pane::InFlight).0.len() > 10);
    type_in(&mut model, "fnothing of this kind");
    assert!(text(&drawn(&model, true)).join("\n").contains("nothing contains"));
    press(&mut model, Key::Escape);
    assert!(model.table(Pane::InFlight).filter.is_empty());
}

#[test]
fn what_is_selected_stays_selected_while_rows_come_and_go() {
    let all = frames("full-chain-with-kubelet", 41.0);
    let mut model = live((100, 30), &all[..all.len() - 90]);
    type_in(&mut model, "2f");
    type_in(&mut model, "Update");
    press(&mut model, Key::Enter);
    press(&mut model, Key::Home);
    let before = selected(&model);
    press(&mut model, Key::Escape);
    type_in(&mut model, "ss");
    for frame in &all[all.len() - 90..] {
        tell(&mut model, Message::Frame(frame.clone()));
    }
    assert!(before.contains("Update"), "{before}");
    assert_eq!(selected(&model), before);
}

#[test]
fn columns_are_sorted_by_one_after_the_other_and_turned_around() {
    let mut model = stuck();
    let ages = |model: &Model| {
        model.rows(Pane::InFlight).0.into_iter().map(|row| row.order[0].clone()).collect::<Vec<_>>()
    };
    type_in(&mut model, "2s");
    assert!(ages(&model).is_sorted());
    type_in(&mut model, "r");
    assert!(ages(&model).iter().rev().is_sorted());
    type_in(&mut model, "rs");
    let kinds: Vec<_> = model.rows(Pane::InFlight).0.into_iter().map(|row| row.order[1].clone()).collect();
    assert!(kinds.is_sorted() && !ages(&model).is_sorted());
    type_in(&mut model, "1s");
    assert!(model.table(Pane::Chain).sort.is_none(), "a chain has one order");
}

#[test]
fn a_frozen_picture_stands_still_while_what_happens_is_kept() {
    let all = frames("full-chain-with-kubelet", 43.0);
    let mut model = live((160, 50), &all[..all.len() - 60]);
    type_in(&mut model, " ");
    let before = text(&drawn(&model, true))[1..].to_vec();
    for frame in &all[all.len() - 60..] {
        tell(&mut model, Message::Frame(frame.clone()));
    }
    assert_eq!(text(&drawn(&model, true))[1..].to_vec(), before);
    type_in(&mut model, " ");
    let after = text(&drawn(&model, true)).join("\n");
    assert!(after.contains("nothing is stuck") && after.contains(" over "), "{after}");
}

#[test]
fn a_detail_tells_how_it_was_when_its_subject_is_over() {
    let all = frames("full-chain-with-kubelet", 43.0);
    let mut model = live((100, 30), &all[..all.len() - 60]);
    type_in(&mut model, "gj");
    press(&mut model, Key::Enter);
    tell(&mut model, Message::Frame(all.last().unwrap().clone()));
    let shown = text(&drawn(&model, true)).join("\n");
    assert!(shown.contains("this is over") && shown.contains("evidence"), "{shown}");
    press(&mut model, Key::Escape);
    assert!(model.popup.is_none());
}

#[test]
fn captures_and_replays_are_wished_for_where_they_can_be() {
    let mut model = stuck();
    assert_eq!(type_in(&mut model, "w"), [Effect::Capture(true)]);
    tell(&mut model, Message::Capture(Capture::On("x".into(), 0)));
    assert_eq!(type_in(&mut model, "w"), [Effect::Capture(false)]);
    tell(&mut model, Message::Capture(Capture::Not("a replay".into())));
    assert_eq!(type_in(&mut model, "w"), []);
    model.mode = Mode::Replay("file".into());
    model.position.speed = 1_000;
    assert_eq!(press(&mut model, Key::Right), [Effect::Replay(Replay::Seek(10_000_000_000))]);
    assert_eq!(
        type_in(&mut model, "i+I "),
        [
            Effect::Replay(Replay::NextIncident),
            Effect::Replay(Replay::Speed(2_000)),
            Effect::Replay(Replay::PreviousIncident),
            Effect::Replay(Replay::Pause(true)),
        ]
    );
    assert_eq!(type_in(&mut model, "q"), [Effect::Quit]);
}

#[test]
fn an_export_has_all_panes_and_all_evidence() {
    let mut model = stuck();
    let effects = type_in(&mut model, "e");
    let [Effect::Export(all)] = effects.as_slice() else { panic!("{effects:?}") };
    for pane in Pane::ALL {
        assert!(all.contains(&format!("== {}", pane.title())), "{all}");
    }
    assert!(all.contains(&"a".repeat(64)) && all.contains("evidence"), "{all}");
    assert!(!all.chars().any(|c| c.is_control() && c != '\n'));
}
