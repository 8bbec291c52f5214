//! What a message changes, and what follows from it for the world.

use super::keys::{self, Action};
use super::message::{Capture, Effect, Key, Message, Replay, TICKS};
use super::model::{Frozen, Input, LOG, Model, Popup, PopupKind, Purpose, head};
use super::panes::Pane;
use super::text::{Ink, Line, clean};
use super::view;
use crate::correlator::words;
use crate::sinks::text;
use std::sync::Arc;

/// Characters that may be typed for a search or a filter.
const TYPED: usize = 80;
/// A word on what was just done stays for this many seconds.
const NOTE: u64 = 8;
/// Greatest and least speed of a replay, in thousandths.
const SPEEDS: (u32, u32) = (125, 64_000);

/// Takes a message in.
pub fn update(model: &mut Model, message: Message) -> Vec<Effect> {
    match message {
        Message::Frame(frame) => {
            model.history.frame(&frame);
            model.latest = Some(frame);
            model.news_at = model.ticks;
            refresh(model);
        }
        Message::Passed(frame) => model.history.frame(&frame),
        Message::Probing(probing) => model.probing = Some(probing),
        Message::Own(own) => model.own = own,
        Message::Log(line) => {
            if model.log.len() >= LOG {
                model.log.pop_front();
            }
            model.log.push_back(clean(&line));
        }
        Message::Told(what) => note(model, what),
        Message::Key(key) => return key_pressed(model, key),
        Message::Resize(columns, lines) => {
            model.size = (columns, lines);
            scroll(model, 0);
        }
        Message::Tick => {
            model.ticks += 1;
            let is_over = |(_, until): &mut (String, u64)| *until <= model.ticks;
            model.note.take_if(is_over);
        }
        Message::Capture(capture) => {
            if let Capture::Over(file, how) = &capture {
                let text = format!("captured to {file}: {how}");
                note(model, text);
            }
            model.capture = capture;
        }
        Message::Position(position) => model.position = position,
        Message::Clock(clock) => model.clock = Some(clock),
        Message::Skipped(frames) => model.skipped = model.skipped.saturating_add(frames),
    }
    Vec::new()
}

fn note(model: &mut Model, text: String) {
    model.note = Some((clean(&text), model.ticks + NOTE * TICKS));
}

fn key_pressed(model: &mut Model, key: Key) -> Vec<Effect> {
    if model.input.is_some() {
        typed(model, key);
        return Vec::new();
    }
    match keys::action(key, model.is_replay()) {
        Some(action) => act(model, action),
        None => Vec::new(),
    }
}

/// A key while something is being typed.
fn typed(model: &mut Model, key: Key) {
    let Some(mut input) = model.input.take() else { return };
    let mut done = false;
    match key {
        Key::Enter => done = true,
        Key::Escape | Key::Control('c') => {
            input.text = std::mem::take(&mut input.before);
            done = true;
        }
        Key::Backspace => {
            input.text.pop();
        }
        Key::Control('u') => input.text.clear(),
        Key::Char(c) if !c.is_control() && input.text.chars().count() < TYPED => input.text.push(c),
        _ => {}
    }
    match input.purpose {
        Purpose::Search => {
            model.search.clone_from(&input.text);
            if !model.search.is_empty() && !done {
                find(model, true, false);
            }
        }
        Purpose::Filter => model.table_mut(model.pane).filter.clone_from(&input.text),
    }
    if !done {
        model.input = Some(input);
    }
}

fn act(model: &mut Model, action: Action) -> Vec<Effect> {
    match action {
        Action::Quit => return vec![Effect::Quit],
        Action::Redraw => return vec![Effect::Redraw],
        Action::Help => open(model, PopupKind::Help),
        Action::Back => back(model),
        Action::Pane(n) => go_to(model, Pane::ALL.get(n).copied().unwrap_or_default()),
        Action::NextPane => go_to(model, neighbour(model.pane, 1)),
        Action::PreviousPane => go_to(model, neighbour(model.pane, Pane::ALL.len() - 1)),
        Action::Zoom => model.zoomed = !model.zoomed,
        Action::Move(by) => move_by(model, by as i64),
        Action::Page(by) => {
            let page = if model.popup.is_some() { view::popup_page(model.size) } else { view::page(model) };
            move_by(model, i64::from(by) * page.max(1) as i64);
        }
        Action::End(last) => move_by(model, if last { i64::from(i32::MAX) } else { i64::from(i32::MIN) }),
        Action::Open => match &model.popup {
            Some(_) => model.popup = None,
            None => {
                let (rows, selected) = model.rows(model.pane);
                if let Some(row) = rows.into_iter().nth(selected) {
                    open(model, PopupKind::Detail(model.pane, row.id));
                }
            }
        },
        Action::Freeze if model.is_replay() => {
            return vec![Effect::Replay(Replay::Pause(!model.position.paused))];
        }
        Action::Freeze => {
            model.frozen = match model.frozen.take() {
                Some(_) => None,
                None => model.latest.as_ref().map(|frame| {
                    let history = model.history.clone();
                    Frozen { frame: Arc::clone(frame), history }
                }),
            };
            refresh(model);
        }
        Action::Search => {
            let before = std::mem::take(&mut model.search);
            begin(model, Purpose::Search, before);
        }
        Action::Filter => {
            let before = std::mem::take(&mut model.table_mut(model.pane).filter);
            begin(model, Purpose::Filter, before);
        }
        Action::Match(forwards) => find(model, forwards, true),
        Action::Sort if model.pane.is_sortable() => {
            let columns = model.pane.columns().len();
            let table = model.table_mut(model.pane);
            table.sort = match table.sort {
                None => Some(0),
                Some(n) => Some(n + 1).filter(|n| *n < columns),
            };
        }
        Action::Reverse if model.pane.is_sortable() => {
            let table = model.table_mut(model.pane);
            table.reversed = !table.reversed;
        }
        Action::Sort | Action::Reverse => {
            note(model, "the order of a chain is what it says: it cannot be sorted".to_owned());
        }
        Action::Ticket => {
            let ticket = view::ticket(model);
            open(model, PopupKind::Ticket);
            note(
                model,
                format!("{} lines copied, if the terminal lets itself be told (OSC 52)", ticket.len()),
            );
            return vec![Effect::Copy(ticket.join("\n") + "\n")];
        }
        Action::CopyId => return copy_id(model),
        Action::Export => return vec![Effect::Export(view::export(model))],
        Action::Capture => match &model.capture {
            Capture::Not(why) => {
                let why = format!("no capture: {why}");
                note(model, why);
            }
            Capture::On(..) => return vec![Effect::Capture(false)],
            Capture::Off | Capture::Over(..) => return vec![Effect::Capture(true)],
        },
        Action::Incident(next) if model.is_replay() => {
            let way = if next { Replay::NextIncident } else { Replay::PreviousIncident };
            return vec![Effect::Replay(way)];
        }
        Action::Incident(next) => {
            if model.pane != Pane::Incidents || model.popup.is_some() {
                go_to(model, Pane::Incidents);
            } else {
                move_by(model, if next { 1 } else { -1 });
            }
        }
        Action::Stuck(next) => next_stuck(model, next),
        Action::Seek(seconds) => {
            return vec![Effect::Replay(Replay::Seek(i64::from(seconds) * 1_000_000_000))];
        }
        Action::Speed(faster) => {
            let speed = model.position.speed.max(1);
            let speed = if faster { speed.saturating_mul(2) } else { speed / 2 };
            return vec![Effect::Replay(Replay::Speed(speed.clamp(SPEEDS.0, SPEEDS.1)))];
        }
    }
    Vec::new()
}

fn neighbour(pane: Pane, by: usize) -> Pane {
    Pane::ALL.get((pane as usize + by) % Pane::ALL.len()).copied().unwrap_or_default()
}

fn go_to(model: &mut Model, pane: Pane) {
    model.pane = pane;
    model.popup = None;
}

/// Closes what is open; else takes filter and search back; else lets the picture go on.
fn back(model: &mut Model) {
    let filtered = !model.table(model.pane).filter.is_empty();
    if model.popup.take().is_some() {
    } else if filtered || !model.search.is_empty() {
        model.table_mut(model.pane).filter.clear();
        model.search.clear();
    } else if model.frozen.take().is_some() {
        refresh(model);
    } else {
        model.zoomed = false;
    }
}

fn begin(model: &mut Model, purpose: Purpose, before: String) {
    model.popup = None;
    model.input = Some(Input { purpose, text: String::new(), before });
}

/// Selects another row, or scrolls what lies over the panes.
fn move_by(model: &mut Model, by: i64) {
    if model.popup.is_some() {
        return scroll(model, by);
    }
    let (rows, selected) = model.rows(model.pane);
    let last = rows.len().saturating_sub(1) as i64;
    let index = (selected as i64).saturating_add(by).clamp(0, last) as usize;
    select(model, index, rows.get(index).map(|row| row.id.clone()));
}

fn select(model: &mut Model, index: usize, id: Option<String>) {
    let table = model.table_mut(model.pane);
    table.index = index;
    if id.is_some() {
        table.selected = id;
    }
}

fn scroll(model: &mut Model, by: i64) {
    let size = model.size;
    let Some(popup) = &mut model.popup else { return };
    let most = view::popup_lines(popup, size).saturating_sub(view::popup_page(size)) as i64;
    popup.scroll = (popup.scroll as i64).saturating_add(by).clamp(0, most) as usize;
}

/// Selects the next row in which the search is found; from the selected one on, or behind it.
fn find(model: &mut Model, forwards: bool, behind: bool) {
    if model.search.is_empty() {
        return note(model, "search with / first".to_owned());
    }
    let (rows, selected) = model.rows(model.pane);
    let count = rows.len();
    let steps = usize::from(behind)..count + usize::from(behind);
    let at =
        |step: usize| if forwards { selected + step } else { selected + count * 2 - step } % count.max(1);
    let found = steps.map(at).find(|n| rows.get(*n).is_some_and(|row| row.contains(&model.search)));
    match found {
        Some(index) => select(model, index, rows.get(index).map(|row| row.id.clone())),
        None if model.input.is_some() => {}
        None => {
            let text = format!("{} is not in this pane", model.search);
            note(model, text);
        }
    }
}

fn copy_id(model: &mut Model) -> Vec<Effect> {
    let (rows, selected) = model.rows(model.pane);
    let of_row = rows.get(selected).and_then(|row| row.container.clone());
    let of_all = || model.diagnosis().and_then(|(d, ..)| Some(d.containers.first()?.id.clone()));
    match of_row.or_else(of_all) {
        Some(id) => {
            let id = clean(&id);
            note(model, format!("container {id} (copied, if the terminal lets itself be told)"));
            vec![Effect::Copy(id)]
        }
        None => {
            note(model, "the selected line names no container".to_owned());
            Vec::new()
        }
    }
}

fn next_stuck(model: &mut Model, next: bool) {
    let Some((_, index, total)) = model.diagnosis() else {
        return note(model, "nothing is stuck".to_owned());
    };
    let to = if next { index + 1 } else { index + total - 1 } % total;
    model.chosen = model.frame().and_then(|f| head(f.diagnoses.get(to)?));
    *model.table_mut(Pane::Chain) = Default::default();
    go_to(model, Pane::Chain);
}

fn open(model: &mut Model, kind: PopupKind) {
    let lines = contents(model, &kind).unwrap_or_default();
    model.popup = Some(Popup { kind, lines, scroll: 0 });
}

/// What lies over the panes says what is true now; what is gone is told as it was.
fn refresh(model: &mut Model) {
    let Some(popup) = &model.popup else { return };
    let lines = match contents(model, &popup.kind) {
        Some(lines) => lines,
        None if popup.lines.first().is_some_and(|l| l.plain() == GONE) => return,
        None => {
            let gone = Line::new(Ink::WarnMark, GONE);
            std::iter::once(gone).chain(popup.lines.iter().cloned()).collect()
        }
    };
    if let Some(popup) = &mut model.popup {
        popup.lines = lines;
    }
    scroll(model, 0);
}

/// The first line of a detail whose subject is gone.
const GONE: &str = "this is over; below is how it was last";

fn contents(model: &Model, kind: &PopupKind) -> Option<Vec<Line>> {
    match kind {
        PopupKind::Help => Some(view::help(model)),
        PopupKind::Detail(pane, id) => pane.detail(model, id),
        // It stays what was copied.
        PopupKind::Ticket => match &model.popup {
            Some(popup) if popup.kind == PopupKind::Ticket => Some(popup.lines.clone()),
            _ => Some(view::ticket(model).into_iter().map(Line::from).collect()),
        },
    }
}

/// What remains on the terminal when the screen has gone: what is stuck, a line each.
pub fn last_words(model: &Model) -> Vec<String> {
    let Some(frame) = model.frame() else { return Vec::new() };
    let stuck = frame.diagnoses.iter().filter(|d| d.is_stuck()).take(4);
    stuck.map(|d| clean(&words::clip(&text::headline(d, frame.now), text::WIDTH))).collect()
}
