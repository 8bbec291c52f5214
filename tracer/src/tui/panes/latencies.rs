//! How long things took that have ended: quantiles, and a small picture of them.

use super::{Column, Order, Row, column, from, number};
use crate::correlator::{Distribution, words};
use crate::event::Ns;
use crate::thresholds::MILLISECOND;
use crate::tui::model::Model;
use crate::tui::text::{Ink, Line};

/// What, how many, quantiles, picture.
pub const COLUMNS: [Column; 7] = [
    column("of", 14),
    number("count", 6),
    number("p50", 5),
    from(46, number("p90", 5)),
    number("p99", 5),
    number("max", 5),
    from(70, column("10ms 0.1s 1s   10s  100s", 24)),
];

/// A row for each distribution.
pub fn rows(model: &Model) -> Vec<Row> {
    let Some(frame) = model.frame() else { return Vec::new() };
    let row = |d: &Distribution| {
        let time = |ns: Ns| Line::new(Ink::Plain, words::duration(ns));
        Row {
            id: format!("of {}", d.of),
            cells: vec![
                Line::new(Ink::Name, &d.of),
                Line::new(Ink::Plain, d.count.to_string()),
                time(d.p50),
                time(d.p90),
                time(d.p99),
                Line::new(Ink::Bold, words::duration(d.max)),
                picture(d),
            ],
            order: vec![
                Order::Text(d.of.clone()),
                Order::most(d.count),
                Order::most(d.p50),
                Order::most(d.p90),
                Order::most(d.p99),
                Order::most(d.max),
                Order::most(d.max),
            ],
            full: Line::new(
                Ink::Dim,
                format!(
                    "{} of at least {}: {} · ▒ to p50, ━ to p90, ─ to p99, ┄ to the longest",
                    d.of,
                    words::duration(d.at_least),
                    d.count
                ),
            ),
            ..Row::default()
        }
    };
    frame.distributions.iter().map(row).collect()
}

/// Five characters for each power of ten, from ten milliseconds on.
fn at(ns: Ns) -> usize {
    let tens = (ns.max(1) as f64 / (10 * MILLISECOND) as f64).log10();
    (tens * 5.0).round().clamp(0.0, 23.0) as usize
}

/// Where the quantiles lie, on a line that has the same width for each power of ten.
fn picture(d: &Distribution) -> Line {
    let mut line = Line::default();
    let mut from = at(d.at_least);
    line = line.and(Ink::Plain, " ".repeat(from));
    for (until, ink, mark) in
        [(d.p50, Ink::Plain, "▒"), (d.p90, Ink::Plain, "━"), (d.p99, Ink::Dim, "─"), (d.max, Ink::Dim, "┄")]
    {
        let until = at(until).max(from);
        line = line.and(ink, mark.repeat(until - from));
        from = until;
    }
    line.and(Ink::Bold, "│")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::SECOND;

    #[test]
    fn a_picture_has_each_quantile_in_its_place() {
        let d = Distribution {
            of: "unmount".into(),
            at_least: 10 * MILLISECOND,
            count: 9,
            p50: 100 * MILLISECOND,
            p90: SECOND,
            p99: SECOND,
            max: 10 * SECOND,
        };
        assert_eq!(picture(&d).plain(), format!("{}{}{}│", "▒".repeat(5), "━".repeat(5), "┄".repeat(5)));
        let longest = Distribution { max: u64::MAX, ..d };
        assert_eq!(picture(&longest).width(), 24);
    }
}
