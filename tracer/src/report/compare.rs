//! Before and after a fix: two captures in the numbers that a fix should change, told of the time that was captured.

use super::{Moment, Report};
use crate::event::Ns;
use crate::thresholds::SECOND;
use serde::Serialize;
use std::collections::BTreeMap;

/// A capture that is shorter than this says little about rates.
const SHORT: Ns = 600 * SECOND;
/// Where this many things were to be expected, their absence says something: with a rate that has not changed it would be a
/// chance of one in twenty.
const EXPECTED: f64 = 3.0;
/// Latencies that are compared; of the calls those that the chain is made of, since others may last as long as they like.
const LATENCIES: [&str; 9] = [
    "unmount",
    "sync",
    "lock wait",
    "CRI call",
    "ListContainers",
    "ListPodSandbox",
    "UpdateContainerResources",
    "relist",
    "exit handling",
];

/// Two captures side by side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The older one.
    pub before: Side,
    /// The one that the report is of.
    pub after: Side,
    /// What changed, in one sentence.
    pub verdict: String,
    /// The numbers.
    pub rows: Vec<Row>,
    /// What the incidents ended in, by signature: how many before, how many after.
    pub causes: Vec<(String, u64, u64)>,
    /// What makes the two not comparable, or the difference not one of the fix.
    pub cautions: Vec<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Name of the node.
    pub host: String,
    /// Id of the boot.
    pub boot_id: String,
    /// Begin of what was heard.
    pub from: Moment,
    /// End of it.
    pub to: Moment,
    /// How much was captured, in nanoseconds.
    pub covered: Ns,
}

/// One number, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// In what it is told.
    pub quantity: Quantity,
    /// Before; `None` where there was nothing to measure.
    pub before: Option<u64>,
    /// After.
    pub after: Option<u64>,
}

/// What a number is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Nanoseconds.
    Nanoseconds,
    /// How many.
    Count,
    /// Thousandths per hour that was captured.
    MilliPerHour,
    /// Thousandths of a minute per hour that was captured.
    MilliMinutesPerHour,
}

impl Comparison {
    /// Of a capture with an older one.
    pub fn of(before: &Report, after: &Report) -> Comparison {
        let sides = [before, after];
        let row = |what: &str, quantity, of: &dyn Fn(&Report) -> Option<u64>| {
            let [before, after] = sides.map(of);
            Row { what: what.to_owned(), quantity, before, after }
        };
        let slow = |r: &Report| r.relists.explained + r.relists.unexplained;
        let mut rows = vec![
            row("captured", Quantity::Nanoseconds, &|r| Some(r.captured.covered)),
            row("relists stalled", Quantity::Nanoseconds, &|r| Some(r.totals.stalled)),
            row("stall minutes per hour", Quantity::MilliMinutesPerHour, &|r| {
                per_hour(u128::from(r.totals.stalled) * 1_000 / u128::from(60 * SECOND), r)
            }),
            row("longest relist", Quantity::Nanoseconds, &|r| {
                Some(r.relists.longest.max(r.relists.in_flight.unwrap_or(0)))
            }),
            row("slow relists", Quantity::Count, &|r| Some(slow(r))),
            row("slow relists, unexplained", Quantity::Count, &|r| Some(r.relists.unexplained)),
            row("incidents", Quantity::Count, &|r| Some(r.totals.incidents)),
            row("incidents per hour", Quantity::MilliPerHour, &|r| {
                per_hour(u128::from(r.totals.incidents) * 1_000, r)
            }),
            row("late exits", Quantity::Count, &|r| Some(r.totals.late_exits)),
            row("late exits per hour", Quantity::MilliPerHour, &|r| {
                per_hour(u128::from(r.totals.late_exits) * 1_000, r)
            }),
            row("latest exit", Quantity::Nanoseconds, &|r| {
                (r.totals.late_exits > 0).then_some(r.totals.latest_exit)
            }),
        ];
        for of in LATENCIES {
            let p99 = |r: &Report| {
                let known = r.latencies.iter().find(|l| l.of == of && l.count > 0);
                known.map(|l| l.p99)
            };
            let row = row(&format!("{of} p99"), Quantity::Nanoseconds, &p99);
            rows.extend((row.before.is_some() || row.after.is_some()).then_some(row));
        }
        let mut causes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (i, side) in sides.into_iter().enumerate() {
            for one in side.incidents.iter().filter(|one| one.merged_into.is_none()) {
                let count = causes.entry(&one.record.signature).or_default();
                *(if i == 0 { &mut count.0 } else { &mut count.1 }) += 1;
            }
        }
        Comparison {
            before: Side::of(before),
            after: Side::of(after),
            verdict: verdict(before, after),
            rows,
            causes: causes.into_iter().map(|(what, (b, a))| (what.to_owned(), b, a)).collect(),
            cautions: cautions(before, after),
        }
    }
}

impl Side {
    fn of(report: &Report) -> Side {
        Side {
            host: report.node.host.clone(),
            boot_id: report.node.boot_id.clone(),
            from: report.captured.from.clone(),
            to: report.captured.to.clone(),
            covered: report.captured.covered,
        }
    }
}

/// What happened in all that was captured, in an hour of it.
fn per_hour(of: u128, report: &Report) -> Option<u64> {
    let rate = (of * u128::from(3_600 * SECOND)).checked_div(u128::from(report.captured.covered))?;
    u64::try_from(rate).ok()
}

/// Stall minutes per hour, as a number.
fn stall_share(report: &Report) -> f64 {
    report.totals.stalled as f64 / report.captured.covered.max(1) as f64
}

fn verdict(before: &Report, after: &Report) -> String {
    let minutes = |r: &Report| format!("{:.1}", stall_share(r) * 60.0);
    let (b, a) = (minutes(before), minutes(after));
    let nothing = |r: &Report| r.totals.stalled == 0 && r.totals.incidents == 0 && r.totals.late_exits == 0;
    let counts = format!("incidents {} -> {}", before.totals.incidents, after.totals.incidents);
    if after.captured.covered == 0 || before.captured.covered == 0 {
        return "one of the two holds no time at all: nothing can be compared".to_owned();
    }
    if nothing(before) {
        return "nothing was blocked before, so nothing can have become better".to_owned();
    }
    let expected =
        before.totals.incidents as f64 * after.captured.covered as f64 / before.captured.covered as f64;
    if nothing(after) && expected < EXPECTED {
        return format!(
            "nothing was blocked after, but with the rate of before only {expected:.1} incidents were to be expected in the \
             time captured: too little to tell; capture longer"
        );
    }
    format!("stall minutes per hour {b} -> {a}; {counts}")
}

fn cautions(before: &Report, after: &Report) -> Vec<String> {
    let mut out = Vec::new();
    let mut differs = |what: &str, b: &str, a: &str| {
        if b != a {
            out.push(format!("{what} differs: {b} before, {a} after"));
        }
    };
    differs("the node", &before.node.host, &after.node.host);
    differs("the kernel", &before.node.kernel, &after.node.kernel);
    differs("plegscope", &before.node.plegscope, &after.node.plegscope);
    let programs = |r: &Report| {
        let mut all: Vec<String> = r
            .node
            .programs
            .iter()
            .map(|p| {
                let version = p.version.as_deref().unwrap_or(&p.go_version);
                format!("{} {version}", crate::correlator::words::role(Some(p.role)))
            })
            .collect();
        all.sort();
        all.dedup();
        all.join(", ")
    };
    differs("what runs there", &programs(before), &programs(after));
    if before.thresholds != after.thresholds {
        out.push("the thresholds differ: incidents and late exits do not compare".to_owned());
    }
    if before.relists.stand_in != after.relists.stand_in {
        out.push(
            "one of them saw the kubelet's relists, the other only the list calls that stand for them"
                .to_owned(),
        );
    }
    if before.redacted != after.redacted {
        out.push("one of them has hashes in the place of names".to_owned());
    }
    if before.node.boot_id == after.node.boot_id
        && before.captured.from.at < after.captured.to.at
        && after.captured.from.at < before.captured.to.at
    {
        out.push("they overlap in time: part of what happened is in both".to_owned());
    } else if before.node.boot_id == after.node.boot_id && before.captured.from.at > after.captured.from.at {
        out.push("the one that was given as older is the newer one".to_owned());
    }
    for (name, side) in [("before", before), ("after", after)] {
        if side.captured.covered < SHORT {
            let took = crate::correlator::words::duration(side.captured.covered);
            out.push(format!("only {took} were captured {name}: rates per hour say little"));
        }
        let lost: u64 = side.blind.losses.iter().map(|(_, n)| n).sum::<u64>() + side.blind.lines_lost;
        if lost > 0 || side.captured.gaps_total > 0 {
            out.push(format!("something was lost {name}: {lost} records, {} gaps", side.captured.gaps_total));
        }
        if side.totals.open > 0 {
            out.push(format!("{} incidents had not ended when the capture did, {name}", side.totals.open));
        }
    }
    out
}
