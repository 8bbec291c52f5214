//! One table of keys: what is typed is looked up in it, and the footer and the help are made of it.

use super::message::Key;

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Show all keys.
    Help,
    /// Close what is open; else take filter and search back.
    Back,
    /// Go to this pane, from 0.
    Pane(usize),
    /// Go to the next pane.
    NextPane,
    /// Go to the pane before.
    PreviousPane,
    /// Let the pane have all of the screen, or not.
    Zoom,
    /// Select, or scroll, by this many lines.
    Move(i32),
    /// By a screen, up or down.
    Page(i32),
    /// To the first or last line.
    End(bool),
    /// Show all that is known of what is selected.
    Open,
    /// Stop the picture, or let it go on; in a replay, the replay.
    Freeze,
    /// Type what to search for.
    Search,
    /// To the next place where it is found, or the one before.
    Match(bool),
    /// Type what lines must contain.
    Filter,
    /// Sort by the next column.
    Sort,
    /// Turn the order around.
    Reverse,
    /// Show and copy the ticket.
    Ticket,
    /// Copy the container's id.
    CopyId,
    /// Write all panes to a file.
    Export,
    /// Begin or end a capture.
    Capture,
    /// Go to the next incident, or the one before.
    Incident(bool),
    /// Show the next thing that is stuck, or the one before.
    Stuck(bool),
    /// Seek by seconds.
    Seek(i32),
    /// Play faster, or slower.
    Speed(bool),
    /// Draw all of it again.
    Redraw,
}

/// Where a key works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Everywhere.
    Always,
    /// On a node.
    Live,
    /// In a replay.
    Replay,
}

/// A line of the table.
pub struct Binding {
    /// Keys that do it.
    pub keys: &'static [Key],
    /// How they are called.
    pub name: &'static str,
    /// What they do.
    pub does: Action,
    /// In the footer; empty where it is not shown there.
    pub short: &'static str,
    /// In the help; empty where the line before tells it.
    pub help: &'static str,
    /// Where they work.
    pub when: When,
}

const fn key(
    keys: &'static [Key],
    name: &'static str,
    does: Action,
    short: &'static str,
    help: &'static str,
) -> Binding {
    Binding { keys, name, does, short, help, when: When::Always }
}

const fn live(binding: Binding) -> Binding {
    Binding { when: When::Live, ..binding }
}

const fn replay(binding: Binding) -> Binding {
    Binding { when: When::Replay, ..binding }
}

/// All keys, in the order of footer and help.
pub const TABLE: &[Binding] = &[
    key(&[Key::Char('q'), Key::Control('c')], "q", Action::Quit, "quit", "quit (also Ctrl-C)"),
    key(&[Key::Char('?'), Key::Char('h'), Key::F1], "?", Action::Help, "help", "all keys (also h, F1)"),
    key(
        &[Key::Char('y')],
        "y",
        Action::Ticket,
        "ticket",
        "at most 20 plain lines for the ticket: shown, and copied",
    ),
    key(
        &[Key::Enter],
        "Enter",
        Action::Open,
        "detail",
        "all that is known of the selected line: evidence, stacks, ids",
    ),
    live(key(
        &[Key::Char(' ')],
        "Space",
        Action::Freeze,
        "freeze",
        "freeze the picture, or let it go on (nothing is lost meanwhile)",
    )),
    replay(key(&[Key::Char(' ')], "Space", Action::Freeze, "pause", "pause the replay, or let it go on")),
    replay(key(&[Key::Left], "←", Action::Seek(-10), "", "10 s back")),
    replay(key(&[Key::Right], "→", Action::Seek(10), "seek", "10 s on")),
    replay(key(&[Key::Char(',')], ",", Action::Seek(-1), "", "1 s back")),
    replay(key(&[Key::Char('.')], ".", Action::Seek(1), "", "1 s on")),
    replay(key(&[Key::Char('+'), Key::Char('=')], "+", Action::Speed(true), "faster", "twice as fast")),
    replay(key(&[Key::Char('-')], "-", Action::Speed(false), "", "half as fast")),
    key(&[Key::Char('i')], "i", Action::Incident(true), "incident", "next incident (in a replay: go there)"),
    key(&[Key::Char('I')], "I", Action::Incident(false), "", "incident before"),
    key(&[Key::Char('d')], "d", Action::Stuck(true), "", "next thing that is stuck, where there are several"),
    key(&[Key::Char('D')], "D", Action::Stuck(false), "", "thing before that is stuck"),
    key(&[Key::Tab], "Tab", Action::NextPane, "pane", "next pane"),
    key(&[Key::BackTab], "Shift-Tab", Action::PreviousPane, "", "pane before"),
    key(&[Key::Char('1')], "1", Action::Pane(0), "", "chain: from the symptom to what it ends in"),
    key(&[Key::Char('2')], "2", Action::Pane(1), "", "in flight: unmounts, lock waits, CRI calls, relists"),
    key(&[Key::Char('3')], "3", Action::Pane(2), "", "relists over time, against the threshold of NotReady"),
    key(&[Key::Char('4')], "4", Action::Pane(3), "", "latencies: how long things took that have ended"),
    key(&[Key::Char('5')], "5", Action::Pane(4), "", "disk: dirty memory, throughput, who dirties"),
    key(&[Key::Char('6')], "6", Action::Pane(5), "", "incidents so far"),
    key(&[Key::Char('7')], "7", Action::Pane(6), "", "probes: on, off and why; losses; costs"),
    key(&[Key::Char('z')], "z", Action::Zoom, "", "only this pane, or all of them"),
    key(&[Key::Up, Key::Char('k')], "↑", Action::Move(-1), "", "line before (also k)"),
    key(&[Key::Down, Key::Char('j')], "↓", Action::Move(1), "select", "next line (also j)"),
    key(&[Key::PageUp], "PgUp", Action::Page(-1), "", "a screen up"),
    key(&[Key::PageDown], "PgDn", Action::Page(1), "", "a screen down"),
    key(&[Key::Home, Key::Char('g')], "Home", Action::End(false), "", "first line (also g)"),
    key(&[Key::End, Key::Char('G')], "End", Action::End(true), "", "last line (also G)"),
    key(&[Key::Char('/')], "/", Action::Search, "search", "search in this pane"),
    key(&[Key::Char('n')], "n", Action::Match(true), "", "next place where it is found"),
    key(&[Key::Char('N')], "N", Action::Match(false), "", "place before"),
    key(&[Key::Char('f')], "f", Action::Filter, "filter", "only lines that contain what you type"),
    key(&[Key::Char('s')], "s", Action::Sort, "sort", "sort by the next column"),
    key(&[Key::Char('r')], "r", Action::Reverse, "", "turn the order around"),
    key(
        &[Key::Char('c')],
        "c",
        Action::CopyId,
        "copy id",
        "copy the id of the selected line's container, and show it",
    ),
    key(&[Key::Char('e')], "e", Action::Export, "export", "write all panes to a file"),
    live(key(
        &[Key::Char('w')],
        "w",
        Action::Capture,
        "capture",
        "begin to write what happens to a file, or end it",
    )),
    key(&[Key::Escape], "Esc", Action::Back, "", "close; take search and filter back"),
    key(&[Key::Control('l')], "Ctrl-L", Action::Redraw, "", "draw all of it again"),
];

/// The lines of the table that work here.
pub fn usable(is_replay: bool) -> impl Iterator<Item = &'static Binding> {
    TABLE.iter().filter(move |b| match b.when {
        When::Always => true,
        When::Live => !is_replay,
        When::Replay => is_replay,
    })
}

/// What a key does.
pub fn action(key: Key, is_replay: bool) -> Option<Action> {
    usable(is_replay).find(|b| b.keys.contains(&key)).map(|b| b.does)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_does_two_things_and_each_is_explained() {
        for is_replay in [false, true] {
            let mut seen = Vec::new();
            for binding in usable(is_replay) {
                assert!(!binding.help.is_empty() && !binding.name.is_empty(), "{:?}", binding.does);
                for key in binding.keys {
                    assert!(!seen.contains(key), "{key:?} does two things");
                    seen.push(*key);
                    assert_eq!(action(*key, is_replay), Some(binding.does));
                }
            }
        }
        assert_eq!(action(Key::Char('w'), true), None);
        assert_eq!(action(Key::Left, false), None);
    }
}
