//! What each pane says: columns, rows, and all that is known of a row. Plain data of the model; [`super::view`] draws it.

pub mod chain;
pub mod disk;
pub mod in_flight;
pub mod incidents;
pub mod latencies;
pub mod probes;
pub mod relists;

use super::model::Model;
use super::text::{Ink, Line};
use crate::correlator::{Confidence, Subject, Who, words};
use crate::event::Role;
use std::cmp::Reverse;

/// The panes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    /// From the symptom to what it ends in.
    #[default]
    Chain,
    /// What has begun and not ended.
    InFlight,
    /// Relists over time.
    Relists,
    /// How long things took.
    Latencies,
    /// Memory that waits to be written, and where to.
    Disk,
    /// What has been.
    Incidents,
    /// What can be seen, and what it costs.
    Probes,
}

/// A row of a pane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The same for as long as it is the same thing.
    pub id: String,
    /// One for each column.
    pub cells: Vec<Line>,
    /// By what it is sorted, for each column.
    pub order: Vec<Order>,
    /// All of it in one line, where the cells have no room for that.
    pub full: Line,
    /// Full id of the container it is about.
    pub container: Option<String>,
    /// Whether it begins a group of its own.
    pub begins_group: bool,
}

/// By what a row is sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// The most first.
    Most(Reverse<u64>),
    /// By the alphabet.
    Text(String),
}

impl Order {
    /// The most first.
    pub fn most(n: u64) -> Order {
        Order::Most(Reverse(n))
    }
}

impl Row {
    /// Whether this is found in it, in whichever case.
    pub fn contains(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let found = |line: &Line| line.plain().to_lowercase().contains(&text);
        self.cells.iter().any(found)
            || found(&self.full)
            || self.container.as_ref().is_some_and(|id| !text.is_empty() && id.starts_with(&text))
    }
}

/// A column of a pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// Columns of the screen it takes; 0 for its part of what is left.
    pub width: u16,
    /// It is left out where the pane is narrower than this.
    pub from: u16,
    /// Whether numbers stand at its right.
    pub right: bool,
}

const fn column(title: &'static str, width: u16) -> Column {
    Column { title, width, from: 0, right: false }
}

const fn number(title: &'static str, width: u16) -> Column {
    Column { title, width, from: 0, right: true }
}

const fn from(from: u16, column: Column) -> Column {
    Column { from, ..column }
}

impl Pane {
    /// All, in their order.
    pub const ALL: [Pane; 7] = [
        Pane::Chain,
        Pane::InFlight,
        Pane::Relists,
        Pane::Latencies,
        Pane::Disk,
        Pane::Incidents,
        Pane::Probes,
    ];

    /// What it is called.
    pub fn title(self) -> &'static str {
        match self {
            Pane::Chain => "Chain",
            Pane::InFlight => "In flight",
            Pane::Relists => "Relists",
            Pane::Latencies => "Latencies",
            Pane::Disk => "Disk",
            Pane::Incidents => "Incidents",
            Pane::Probes => "Probes",
        }
    }

    /// Its columns.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Pane::Chain => &chain::COLUMNS,
            Pane::InFlight => &in_flight::COLUMNS,
            Pane::Relists => &relists::COLUMNS,
            Pane::Latencies => &latencies::COLUMNS,
            Pane::Disk => &disk::COLUMNS,
            Pane::Incidents => &incidents::COLUMNS,
            Pane::Probes => &probes::COLUMNS,
        }
    }

    /// Whether its rows may stand in another order: that of a chain is what it says.
    pub fn is_sortable(self) -> bool {
        self != Pane::Chain
    }

    /// Its rows, in their own order.
    pub fn rows(self, model: &Model) -> Vec<Row> {
        match self {
            Pane::Chain => chain::rows(model),
            Pane::InFlight => in_flight::rows(model),
            Pane::Relists => relists::rows(model),
            Pane::Latencies => latencies::rows(model),
            Pane::Disk => disk::rows(model),
            Pane::Incidents => incidents::rows(model),
            Pane::Probes => probes::rows(model),
        }
    }

    /// How much there is in it, in few words, for its heading; empty when there is nothing to say.
    pub fn count(self, model: &Model) -> String {
        match self {
            Pane::Chain => chain::count(model),
            Pane::InFlight => in_flight::count(model),
            Pane::Relists => relists::count(model),
            Pane::Latencies => String::new(),
            Pane::Disk => disk::count(model),
            Pane::Incidents => incidents::count(model),
            Pane::Probes => probes::count(model),
        }
    }

    /// What is said where it has no rows.
    pub fn nothing(self, model: &Model) -> Line {
        match self {
            Pane::Chain => chain::nothing(model),
            Pane::InFlight => "nothing is older than its floor".into(),
            Pane::Relists => "no slow relist has ended so far".into(),
            Pane::Latencies => "nothing has ended that took longer than its floor".into(),
            Pane::Disk => "nothing is known of memory and disks yet".into(),
            Pane::Incidents => "no incident so far".into(),
            Pane::Probes => "nothing is attached yet".into(),
        }
    }

    /// All that is known of a row; `None` when it is gone.
    pub fn detail(self, model: &Model, id: &str) -> Option<Vec<Line>> {
        match self {
            Pane::Chain => chain::detail(model, id),
            Pane::InFlight => in_flight::detail(model, id),
            Pane::Incidents => incidents::detail(model, id),
            Pane::Relists | Pane::Latencies | Pane::Disk | Pane::Probes => {
                let row = self.rows(model).into_iter().find(|row| row.id == id)?;
                let cells = self.columns().iter().zip(row.cells).filter(|(_, cell)| !cell.0.is_empty());
                let mut out: Vec<Line> = cells.map(|(c, cell)| fact(c.title, cell.plain())).collect();
                if !row.full.0.is_empty() {
                    out.push(row.full);
                }
                Some(out)
            }
        }
    }
}

/// A line of a detail: what it is, and its value.
pub fn fact(name: &str, value: impl AsRef<str>) -> Line {
    let room = 13usize.saturating_sub(name.chars().count()).max(1);
    Line::new(Ink::Dim, format!("{name}{}", " ".repeat(room))).and(Ink::Plain, value)
}

/// Lines of a detail for a container: its name, and its id as a whole.
pub fn container(s: &Subject) -> [Line; 2] {
    [fact("container", words::subject(s)), Line::new(Ink::Name, format!("    {}", s.id))]
}

/// How sure something is: never by its colour alone.
pub fn sure(confidence: Confidence) -> (Ink, &'static str) {
    match confidence {
        Confidence::Proven => (Ink::Good, "proven"),
        Confidence::Inferred => (Ink::Plain, "inferred"),
        Confidence::NotVisible => (Ink::Warn, "not seen"),
    }
}

/// Who does something.
pub fn who(w: &Who) -> String {
    let name = match (&w.role, &w.comm) {
        (Some(Role::Other) | None, Some(comm)) => comm.as_str(),
        (role, _) => words::role(*role),
    };
    match w.goid {
        Some(goid) => format!("{name} {} goroutine {goid}", w.pid),
        None if w.tid == w.pid => format!("{name} {}", w.pid),
        None => format!("{name} {} thread {}", w.pid, w.tid),
    }
}

/// A container by name.
pub fn name(subject: Option<&Subject>) -> String {
    subject.map(words::subject).unwrap_or_default()
}
