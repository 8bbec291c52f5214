//! Results of a bench: rows of numbers with their spread, goals with what was reached, as text, JSON and Markdown.

use serde::Serialize;
use std::fmt::Write as _;

/// The middle of some measurements, with the smallest and the largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Spread {
    /// Of at least one measurement; of none, all are not a number.
    pub fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        let ends =
            sorted.first().zip(sorted.last()).map_or((f64::NAN, f64::NAN), |(low, high)| (*low, *high));
        Spread { median, low: ends.0, high: ends.1 }
    }
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The numbers.
    pub value: Spread,
    /// Their unit.
    pub unit: &'static str,
}

/// A ratio that should not be passed.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// Which ratio.
    pub what: String,
    /// The limit.
    pub at_most: f64,
    /// What was reached.
    pub reached: f64,
    /// Its unit; empty for a ratio.
    pub unit: &'static str,
}

impl Goal {
    /// Whether it was reached.
    pub fn met(&self) -> bool {
        self.reached <= self.at_most
    }

    fn words(&self) -> &'static str {
        if self.met() { "met" } else { "NOT met" }
    }
}

/// All of one bench.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Name and title.
    pub title: String,
    /// The lines.
    pub rows: Vec<Row>,
    /// The goals.
    pub goals: Vec<Goal>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

impl Table {
    /// Adds a line.
    pub fn row(&mut self, what: impl Into<String>, values: &[f64], unit: &'static str) -> Spread {
        let value = Spread::of(values);
        self.rows.push(Row { what: what.into(), value, unit });
        value
    }

    /// Adds a goal.
    pub fn goal(&mut self, what: impl Into<String>, at_most: f64, reached: f64, unit: &'static str) {
        self.goals.push(Goal { what: what.into(), at_most, reached, unit });
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("\n{}\n", self.title);
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        for Row { what, value, unit } in &self.rows {
            let Spread { median, low, high } = value;
            let digits = digits(unit);
            let _ = writeln!(
                text,
                "  {what:width$}  {median:>10.digits$} {unit}  ({low:.digits$} to {high:.digits$})"
            );
        }
        for goal in &self.goals {
            let Goal { what, at_most, reached, unit } = goal;
            let _ = writeln!(text, "  {what}: {reached:.2} {unit} (at most {at_most:.2}): {}", goal.words());
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }

    /// For a document.
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n| what | median | spread | unit |\n|---|---|---|---|\n", self.title);
        for Row { what, value, unit } in &self.rows {
            let Spread { median, low, high } = value;
            let digits = digits(unit);
            let _ =
                writeln!(text, "| {what} | {median:.digits$} | {low:.digits$} to {high:.digits$} | {unit} |");
        }
        if !self.goals.is_empty() {
            text.push_str("\n| goal | at most | reached | |\n|---|---|---|---|\n");
        }
        for goal in &self.goals {
            let Goal { what, at_most, reached, unit } = goal;
            let _ =
                writeln!(text, "| {what} | {at_most:.2} {unit} | {reached:.2} {unit} | {} |", goal.words());
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text.push('\n');
        text
    }
}

/// Digits behind the point: ratios, which have no unit, differ in the third.
fn digits(unit: &str) -> usize {
    match unit {
        "" => 3,
        "% of a core" => 2,
        _ => 1,
    }
}

/// The machine in one line.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown CPU");
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cpus} x {cpu}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn a_goal_that_could_not_be_measured_is_not_met() {
        let goal = Goal { what: String::new(), at_most: 1.0, reached: f64::NAN, unit: "" };
        assert!(!goal.met());
    }
}
