//! What was compared in a story: a table with one check per line.

use super::sys::seconds;
use std::fmt::Write as _;

/// Durations agree within this part of the truth.
pub const TOLERANCE: f64 = 0.05;

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is compared.
    pub what: String,
    /// By the lab's own clocks.
    pub truth: String,
    /// What plegscope said.
    pub said: String,
    /// Whether they agree; `None` when the line is for information.
    pub agree: Option<bool>,
}

/// All comparisons of one story.
#[derive(Clone, Debug, Default)]
pub struct Verdict(pub Vec<Check>);

impl Verdict {
    /// Adds a comparison that was made.
    pub fn check(&mut self, what: &str, truth: impl Into<String>, said: impl Into<String>, agree: bool) {
        self.0.push(Check {
            what: what.to_owned(),
            truth: truth.into(),
            said: said.into(),
            agree: Some(agree),
        });
    }

    /// Adds a line for information.
    pub fn note(&mut self, what: &str, truth: impl Into<String>, said: impl Into<String>) {
        self.0.push(Check { what: what.to_owned(), truth: truth.into(), said: said.into(), agree: None });
    }

    /// Adds a comparison of two durations in ns.
    pub fn duration(&mut self, what: &str, truth: Option<u64>, said: Option<u64>) {
        let shown = |value: Option<u64>| value.map_or("-".to_owned(), seconds);
        let agree = matches!((truth, said), (Some(truth), Some(said)) if close(truth, said));
        self.check(what, shown(truth), shown(said), agree);
    }

    /// Adds how the tracer ended: exit code 0, and the prompt back in time.
    pub fn ended(&mut self, exit: Option<i32>, took: u64, within: u64) {
        let said = format!(
            "exit code {} after {}",
            exit.map_or("-".to_owned(), |code| code.to_string()),
            seconds(took)
        );
        self.check(
            "quit",
            format!("exit code 0 within {}", seconds(within)),
            said,
            exit == Some(0) && took <= within,
        );
    }

    /// The checks that failed.
    #[cfg(test)]
    pub fn failures(&self) -> usize {
        self.0.iter().filter(|check| check.agree == Some(false)).count()
    }

    /// How many comparisons were made.
    pub fn compared(&self) -> usize {
        self.0.iter().filter(|check| check.agree.is_some()).count()
    }

    /// What does not agree, a line each.
    pub fn wrong(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .filter(|check| check.agree == Some(false))
            .map(|check| format!("{}: {}, said was {}", check.what, check.truth, check.said))
    }

    /// The table, for people.
    pub fn table(&self) -> String {
        // What is longer has lines of its own.
        const WIDEST: usize = 70;
        let width = |of: fn(&Check) -> &str, title: &str| {
            let lengths = self.0.iter().map(|check| of(check).chars().count());
            lengths.filter(|length| *length <= WIDEST).max().unwrap_or(0).max(title.chars().count())
        };
        let (what, truth) = (width(|check| &check.what, ""), width(|check| &check.truth, "ground truth"));
        let mut table = format!("{:what$}  {:truth$}  plegscope\n", "", "ground truth");
        for check in &self.0 {
            let mark = match check.agree {
                Some(true) => "  ok",
                Some(false) => "  WRONG",
                None => "",
            };
            if check.truth.chars().count() > WIDEST {
                let _ = writeln!(table, "{:what$}  {}", check.what, check.truth);
                let _ = writeln!(table, "{:what$}  {:truth$}  {}{mark}", "", "", check.said);
                continue;
            }
            let _ = writeln!(table, "{:what$}  {:truth$}  {}{mark}", check.what, check.truth, check.said);
        }
        table
    }
}

/// Whether two durations are the same, as far as clocks of different processes can tell.
pub fn close(truth: u64, said: u64) -> bool {
    truth.abs_diff(said) as f64 <= truth as f64 * TOLERANCE
}
