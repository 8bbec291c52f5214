//! What can happen to the screen, and what it can want.

use crate::correlator::Frame;
use crate::event::Ns;
use std::sync::Arc;

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Message {
    /// Another moment.
    Frame(Arc<Frame>),
    /// A moment that was passed over: for what is shown over time.
    Passed(Arc<Frame>),
    /// What is attached, and what is not and why; replaces the one before.
    Probing(Arc<Probing>),
    /// What plegscope itself takes.
    Own(Own),
    /// Something plegscope has to say about itself.
    Log(String),
    /// How a wish ended, in words.
    Told(String),
    /// A key was pressed.
    Key(Key),
    /// The terminal has this many columns and lines.
    Resize(u16, u16),
    /// Time has passed: [`TICKS`] of them in a second.
    Tick,
    /// Whether what happens is written to a file.
    Capture(Capture),
    /// Where a replay is.
    Position(Position),
    /// What the times of frames mean on the wall.
    Clock(crate::capture::line::Clock),
    /// Frames that came too fast and were left out.
    Skipped(u64),
}

/// [`Message::Tick`]s in a second.
pub const TICKS: u64 = 4;

/// What the screen wants of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// End.
    Quit,
    /// Put this into the clipboard of whoever looks.
    Copy(String),
    /// Write these lines to a file.
    Export(String),
    /// Begin, or end, to write what happens to a file.
    Capture(bool),
    /// Move in the capture that is replayed.
    Replay(Replay),
    /// Draw all of it again: something else has written on the terminal.
    Redraw,
}

/// Moves in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Stand still, or go on.
    Pause(bool),
    /// Go on from this many nanoseconds later, or earlier.
    Seek(i64),
    /// Go to where the next incident begins.
    NextIncident,
    /// Go to where the incident before begins.
    PreviousIncident,
    /// Play this many times as fast as it happened, in thousandths.
    Speed(u32),
}

/// A key, as far as any of them is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character as it is typed.
    Char(char),
    /// A character with Control.
    Control(char),
    /// Cursor.
    Up,
    /// Cursor.
    Down,
    /// Cursor.
    Left,
    /// Cursor.
    Right,
    /// A screen up.
    PageUp,
    /// A screen down.
    PageDown,
    /// To the first.
    Home,
    /// To the last.
    End,
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Tab.
    Tab,
    /// Tab with Shift.
    BackTab,
    /// Backspace.
    Backspace,
    /// The first function key.
    F1,
}

/// What is attached, and what is not and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probing {
    /// How long attaching took; `None` while it is under way.
    pub attached_after: Option<Ns>,
    /// All probes, on and off.
    pub probes: Vec<Probe>,
    /// Processes that are looked at: containerds, shims, kubelets.
    pub processes: [usize; 3],
    /// What to do where nothing can be seen: no containerd, not root.
    pub warning: Option<String>,
}

/// One probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// What it sees.
    pub what: String,
    /// Where it sits.
    pub target: String,
    /// By what means; `None` when it is off.
    pub how: Option<String>,
    /// Sites in use.
    pub sites: u32,
    /// What is not seen because it is off.
    pub loss: String,
    /// Why it is off, or what is weaker.
    pub note: String,
}

/// What plegscope itself takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Of one core in the last seconds, in millionths: this process, and its warden.
    pub cpu_ppm: [Option<u32>; 2],
    /// Resident memory in bytes: this process, and its warden.
    pub resident: [Option<u64>; 2],
}

/// Whether what happens is written to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    /// It is not, and cannot be, because.
    Not(String),
    /// It is not.
    #[default]
    Off,
    /// It is, to this file, and this many bytes so far.
    On(String, u64),
    /// It was, to this file, and how it ended.
    Over(String, String),
}

/// Where a replay is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// First and last moment of the capture, as far as they are known.
    pub from: Ns,
    /// See `from`.
    pub to: Ns,
    /// Where it is.
    pub at: Ns,
    /// Whether it stands still.
    pub paused: bool,
    /// How many times as fast as it happened, in thousandths.
    pub speed: u32,
    /// Whether it has come to the end.
    pub ended: bool,
}

impl Position {
    /// Whether it has come to be so otherwise than by going on.
    pub fn is_elsewhere(&self, before: &Position) -> bool {
        let at_once = crate::thresholds::SECOND;
        (self.paused, self.speed, self.ended) != (before.paused, before.speed, before.ended)
            || !(before.at..=before.at.saturating_add(at_once)).contains(&self.at)
    }
}
