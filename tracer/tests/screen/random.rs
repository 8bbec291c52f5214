//! Whatever is typed, whatever size the terminal takes, whatever workloads are called: it neither panics nor draws beside
//! its area, and nothing unsafe gets into a cell.

use super::cells::{drawn, text};
use super::world::{frames_of, live, scenarios, tell};
use proptest::prelude::*;
use ratatui::buffer::Buffer;
use std::sync::Arc;
use tracer::correlator::Frame;
use tracer::event::{Body, Event};
use tracer::sinks::sanitise;
use tracer::tui::message::{Capture, Position};
use tracer::tui::model::Mode;
use tracer::tui::paint::Painter;
use tracer::tui::view::{ink::Palette, view};
use tracer::tui::{Key, Message};

#[derive(Clone, Debug)]
enum Step {
    Key(Key),
    Resize(u16, u16),
    Frame(usize),
    Tick,
    Position(u64, bool),
    Capture(u64),
}

fn key() -> impl Strategy<Value = Key> {
    let named = [
        Key::Up,
        Key::Down,
        Key::Left,
        Key::Right,
        Key::PageUp,
        Key::PageDown,
        Key::Home,
        Key::End,
        Key::Enter,
        Key::Escape,
        Key::Tab,
        Key::BackTab,
        Key::Backspace,
        Key::F1,
        Key::Control('c'),
        Key::Control('u'),
    ];
    prop_oneof![
        proptest::sample::select("1234567qyceszfrdDiInN/?jkgGhw +-,.数\u{301}".chars().collect::<Vec<_>>())
            .prop_map(Key::Char),
        any::<char>().prop_map(Key::Char),
        proptest::sample::select(named.to_vec()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => key().prop_map(Step::Key),
        2 => (0u16..200, 0u16..60).prop_map(|(w, h)| Step::Resize(w, h)),
        4 => any::<usize>().prop_map(Step::Frame),
        1 => Just(Step::Tick),
        1 => (any::<u64>(), any::<bool>()).prop_map(|(at, paused)| Step::Position(at, paused)),
        1 => any::<u64>().prop_map(Step::Capture),
    ]
}

fn all_frames() -> &'static [Arc<Frame>] {
    static FRAMES: std::sync::OnceLock<Vec<Arc<Frame>>> = std::sync::OnceLock::new();
    FRAMES.get_or_init(|| {
        let each = scenarios().into_iter().flat_map(|file| {
            let frames = frames_of(&file, |event| event);
            let step = (frames.len() / 24).max(1);
            frames.into_iter().rev().step_by(step).collect::<Vec<_>>()
        });
        each.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn no_sequence_breaks_it(steps in proptest::collection::vec(step(), 1..50), is_replay in any::<bool>()) {
        let frames = all_frames();
        let mut model = live((80, 24), &[]);
        if is_replay {
            model.mode = Mode::Replay("capture".to_owned());
        }
        let mut painter = Painter::default();
        for step in steps {
            match step {
                Step::Key(key) => { tell(&mut model, Message::Key(key)); }
                Step::Resize(w, h) => { tell(&mut model, Message::Resize(w, h)); }
                Step::Frame(n) => { tell(&mut model, Message::Frame(Arc::clone(&frames[n % frames.len()]))); }
                Step::Tick => { tell(&mut model, Message::Tick); }
                Step::Position(at, paused) => {
                    let position = Position { from: at / 2, to: at, at, paused, speed: 1_000, ended: paused };
                    tell(&mut model, Message::Position(position));
                }
                Step::Capture(bytes) => { tell(&mut model, Message::Capture(Capture::On("file".into(), bytes))); }
            }
            // The buffer panics when something is drawn beside it.
            let buffer = drawn(&model, true);
            for cell in buffer.content() {
                prop_assert!(!cell.symbol().chars().any(is_dangerous), "{:?}", cell.symbol());
            }
            let palette = Palette { colours: true };
            painter.paint(model.size, |area, buffer| view(&model, palette, area, buffer)).unwrap();
        }
    }
}

/// Characters that [`sanitise`] replaces.
fn is_dangerous(c: char) -> bool {
    c != '\u{fffd}' && sanitise(c.encode_utf8(&mut [0; 4])) == "\u{fffd}"
}

/// Puts `poison` behind whatever a workload may choose.
fn poisoned(mut event: Event, poison: &str) -> Event {
    let more = |text: &mut String| text.push_str(poison);
    match &mut event.body {
        Body::Process(p) => more(&mut p.comm),
        Body::Container(c) => {
            [&mut c.pod, &mut c.namespace, &mut c.name].into_iter().flatten().for_each(more)
        }
        Body::Device(d) => more(&mut d.name),
        Body::InFlight(op) | Body::Ended(op, _) => op.path.iter_mut().for_each(more),
        Body::Writers(w) => w.of.iter_mut().for_each(|w| more(&mut w.cgroup)),
        Body::Pins(p) => p.of.iter_mut().for_each(|p| more(&mut p.comm)),
        Body::ThreadSite(site) => site.kernel_stack.iter_mut().for_each(more),
        Body::GoroutineSite(site) => site.functions.iter_mut().for_each(more),
        Body::BlindSpot { reason, .. } if !reason.is_empty() => more(reason),
        _ => {}
    }
    event
}

/// Whether the sides of a popup, where there is one, stand below its corners.
fn frame_is_whole(buffer: &Buffer) -> bool {
    let area = *buffer.area();
    let corner = |mark: &str| area.positions().find(|p| buffer[*p].symbol() == mark);
    let (Some(left), Some(right)) = (corner("┌"), corner("┐")) else { return true };
    let sides =
        (left.y + 1..area.bottom()).map(|y| (buffer[(left.x, y)].symbol(), buffer[(right.x, y)].symbol()));
    let mut below = sides.skip_while(|sides| *sides == ("│", "│"));
    left.y == right.y && below.next() == Some(("└", "┘"))
}

/// Every line is as wide as it is told to be, also where characters take two columns or none: a cell that follows a wide
/// one is empty, and the frame around a popup stands where it should.
#[test]
fn no_name_breaks_the_layout_or_moves_the_cursor() {
    let poisons = [
        "\u{1b}[2J\u{1b}]0;pwned\u{7}".to_owned(),
        "数据库".repeat(90),
        "e\u{301}\u{302}\u{303}\u{304}".repeat(40),
        "\u{202e}gnihton\u{2066}\u{200b}".to_owned(),
        "\u{2764}\u{fe0f}\u{200d}\u{1f525}\u{1f468}\u{200d}\u{1f469}".repeat(20),
        "\n\r\t\0STUCK 1.0s".to_owned(),
        "x".repeat(255),
        String::from_utf8_lossy(&[0xff, 0xfe, b'a', 0xc3]).repeat(60),
    ];
    let mut seen = 0;
    for poison in &poisons {
        for name in ["full-chain-with-kubelet", "dirtied-by-another", "ebusy-pinned", "late-exit-looked-at"] {
            let file = scenarios().into_iter().find(|f| f.file_stem().is_some_and(|s| s == name)).unwrap();
            let frames = frames_of(&file, |event| poisoned(event, poison));
            let stuck = frames.iter().rposition(|f| !f.diagnoses.is_empty()).unwrap();
            for (size, keys) in [((80, 24), "1234567"), ((160, 50), "y"), ((100, 30), "\n"), ((20, 5), "1")] {
                let mut model = live(size, &frames[..=stuck]);
                for key in keys.chars() {
                    tell(&mut model, Message::Key(if key == '\n' { Key::Enter } else { Key::Char(key) }));
                    let buffer = drawn(&model, true);
                    for (n, line) in text(&buffer).iter().enumerate() {
                        assert!(!line.chars().any(is_dangerous), "{line:?}");
                        let columns = tracer::tui::text::width(line);
                        assert!(columns <= usize::from(size.0), "{columns} columns in line {n}: {line:?}");
                    }
                    assert!(frame_is_whole(&buffer), "{}", text(&buffer).join("\n"));
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, poisons.len() * 4 * 10);
}
