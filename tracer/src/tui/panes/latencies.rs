//! How long things took that have ended: quantiles, and a small picture of them.

use super::disk::bar;
use super::{Column, Order, Row, column, from, number};
use crate::correlator::{Distribution, words};
use crate::event::Ns;
use crate::stats::STEPS_FROM;
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
                    "{} of at least {}: {} · a column is as high as many; five of them to each power of ten",
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

/// How many lasted how long: a column for each step, five of them to each power of ten. As high as many; what there is at all
/// is seen. What is longer than all but one in a hundred is bold.
fn picture(d: &Distribution) -> Line {
    let most = d.counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let mut line = Line::default();
    for from in STEPS_FROM {
        let count = d.counts.iter().find(|(at, _)| *at == from).map(|(_, count)| *count);
        let ink = if from >= d.p99 { Ink::Bold } else { Ink::Plain };
        line = line.and(ink, bar(count.unwrap_or(0), most));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::{MILLISECOND, SECOND};

    #[test]
    fn a_picture_has_a_column_for_each_step_as_high_as_many() {
        let d = Distribution {
            of: "unmount".into(),
            at_least: 10 * MILLISECOND,
            count: 100,
            p50: 10 * MILLISECOND,
            p90: SECOND,
            p99: SECOND,
            max: u64::MAX,
            counts: vec![(STEPS_FROM[0], 64), (STEPS_FROM[5], 32), (STEPS_FROM[10], 3), (STEPS_FROM[23], 1)],
        };
        let drawn = picture(&d);
        assert_eq!(drawn.plain(), format!("█{}▄{}▁{}▁", " ".repeat(4), " ".repeat(4), " ".repeat(12)));
        assert_eq!(drawn.width(), 24);
        // The column of one second begins under its mark.
        assert_eq!(COLUMNS[6].title.find(" 1s"), Some(9));
    }
}
