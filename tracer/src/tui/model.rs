//! All that the screen knows: the latest frame, what has been, and what the user looks at.

use super::history::History;
use super::message::{Capture, Own, Position, Probing};
use super::panes::{Pane, Row};
use super::text::Line;
use crate::capture::line::Clock;
use crate::correlator::{Diagnosis, Frame};
use crate::event::{Ns, OperationId};
use std::collections::VecDeque;
use std::sync::Arc;

/// Lines of plegscope about itself that are kept.
pub const LOG: usize = 100;

/// Where frames come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// This node, now.
    #[default]
    Live,
    /// A file of this name.
    Replay(String),
}

/// All that the screen knows.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Where frames come from.
    pub mode: Mode,
    /// Name of the node.
    pub host: String,
    /// Columns and lines of the terminal.
    pub size: (u16, u16),
    /// The latest frame; `None` before the first.
    pub latest: Option<Arc<Frame>>,
    /// What is shown instead, while the picture is frozen.
    pub frozen: Option<Frozen>,
    /// What has been.
    pub history: History,
    /// What is attached; `None` before that is known.
    pub probing: Option<Arc<Probing>>,
    /// What plegscope itself takes.
    pub own: Own,
    /// Whether what happens is written to a file.
    pub capture: Capture,
    /// Where a replay is.
    pub position: Position,
    /// What the times of frames mean on the wall.
    pub clock: Option<Clock>,
    /// What plegscope had to say about itself, oldest first.
    pub log: VecDeque<String>,
    /// A word on what was just done, and the tick at which it goes.
    pub note: Option<(String, u64)>,
    /// The pane that keys speak to.
    pub pane: Pane,
    /// Whether it has all of the screen.
    pub zoomed: bool,
    /// What the user has done to each pane.
    pub tables: [Table; Pane::ALL.len()],
    /// The thing that is stuck and shown, by the head of its chain; the gravest when it is none.
    pub chosen: Option<OperationId>,
    /// What is being typed.
    pub input: Option<Input>,
    /// What is searched for.
    pub search: String,
    /// What lies over the panes.
    pub popup: Option<Popup>,
    /// Ticks so far.
    pub ticks: u64,
    /// The tick of the latest frame.
    pub news_at: u64,
    /// Frames that were left out because they came too fast.
    pub skipped: u64,
}

/// A picture that stands still.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The moment.
    pub frame: Arc<Frame>,
    /// What had been by then.
    pub history: History,
}

/// What the user has done to a pane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The selected row, where one was selected.
    pub selected: Option<String>,
    /// Where it was: what is selected when that row is gone.
    pub index: usize,
    /// What rows must contain.
    pub filter: String,
    /// The column they are sorted by; as they come when it is none.
    pub sort: Option<usize>,
    /// Whether the order is turned around.
    pub reversed: bool,
}

/// What is being typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// What for.
    pub purpose: Purpose,
    /// So far.
    pub text: String,
    /// What it was before.
    pub before: String,
}

/// What something is typed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A search.
    Search,
    /// A filter.
    Filter,
}

/// What lies over the panes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Popup {
    /// What it is.
    pub kind: PopupKind,
    /// What it says.
    pub lines: Vec<Line>,
    /// Lines above the first that is shown.
    pub scroll: usize,
}

/// Kinds of [`Popup`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PopupKind {
    /// All keys.
    Help,
    /// All that is known of this row.
    Detail(Pane, String),
    /// Lines for the ticket.
    Ticket,
}

impl Model {
    /// Nothing is known yet.
    pub fn new(mode: Mode, host: &str, size: (u16, u16)) -> Model {
        Model { mode, host: host.to_owned(), size, ..Model::default() }
    }

    /// Whether it is a replay.
    pub fn is_replay(&self) -> bool {
        matches!(self.mode, Mode::Replay(_))
    }

    /// The frame that is shown.
    pub fn frame(&self) -> Option<&Frame> {
        self.frozen.as_ref().map(|frozen| &*frozen.frame).or(self.latest.as_deref())
    }

    /// What has been by then.
    pub fn history(&self) -> &History {
        self.frozen.as_ref().map_or(&self.history, |frozen| &frozen.history)
    }

    /// The moment that is shown.
    pub fn now(&self) -> Ns {
        self.frame().map_or(0, |f| f.now)
    }

    /// Whether everything that was there at the start is attached.
    pub fn is_looking(&self) -> bool {
        self.is_replay() || self.probing.as_ref().is_some_and(|p| p.attached_after.is_some())
    }

    /// The thing that is shown, and which of how many it is, from 0.
    pub fn diagnosis(&self) -> Option<(&Diagnosis, usize, usize)> {
        let all = &self.frame()?.diagnoses;
        let is_chosen = |d: &Diagnosis| head(d) == self.chosen;
        let chosen = self.chosen.as_ref().and_then(|_| all.iter().position(is_chosen));
        let index = chosen.unwrap_or(0);
        Some((all.get(index)?, index, all.len()))
    }

    /// The time of day at a moment, to the second; seconds since the boot where the clock is not known.
    pub fn time_of_day(&self, at: Ns) -> String {
        match &self.clock {
            Some(clock) => clock.rfc3339(at).get(11..19).unwrap_or_default().to_owned(),
            None => format!("{}s", at / crate::thresholds::SECOND),
        }
    }

    /// What the user has done to a pane.
    pub fn table(&self, pane: Pane) -> &Table {
        &self.tables[pane as usize]
    }

    /// The same, to be changed.
    pub fn table_mut(&mut self, pane: Pane) -> &mut Table {
        &mut self.tables[pane as usize]
    }

    /// The rows of a pane as they are shown, and which of them is selected.
    pub fn rows(&self, pane: Pane) -> (Vec<Row>, usize) {
        let table = self.table(pane);
        let mut rows = pane.rows(self);
        if !table.filter.is_empty() {
            rows.retain(|row| row.contains(&table.filter));
        }
        if let Some(column) = table.sort {
            rows.sort_by(|a, b| a.order.get(column).cmp(&b.order.get(column)));
        }
        if table.reversed {
            rows.reverse();
        }
        let found = table.selected.as_ref().and_then(|id| rows.iter().position(|row| row.id == *id));
        let otherwise = match (&table.selected, pane) {
            // What it ends in is what matters, until somebody looks elsewhere.
            (None, Pane::Chain) => {
                rows.iter().position(|row| row.id == super::panes::chain::END).unwrap_or(0)
            }
            _ => table.index,
        };
        let selected = found.unwrap_or(otherwise).min(rows.len().saturating_sub(1));
        (rows, selected)
    }
}

/// By what a thing that is stuck is known again.
pub fn head(d: &Diagnosis) -> Option<OperationId> {
    d.chain.links.first().map(|link| link.operation.id())
}
