//! B1: what a probe hit costs the target: bare, an empty BPF program, bpftrace, plegscope, taking turns.

use super::bpf::{EmptyProbes, uprobes_of};
use super::contend::{self, Binary, FUNCTIONS, Target};
use super::peer::{self, Bpftrace};
use super::table::Table;
use crate::lab::cleanup::Ledger;
use crate::lab::sys;
use crate::lab::tracer::Tracer;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;

/// Operations per measurement: enough that one measurement takes a good part of a second when traced, and milliseconds
/// when not.
const FREE: u32 = 20_000;
const WAIT: u32 = 10_000;
/// How many times as many when nothing is attached.
const BARE: u32 = 20;

/// What is attached while the target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Bare,
    /// An empty program at the first byte of each function and at each return of semacquire1.
    EmptyFirstByte,
    /// An empty program at the sites plegscope has chosen.
    EmptySameSites,
    Bpftrace,
    Plegscope,
}

impl Variant {
    fn words(self) -> &'static str {
        match self {
            Variant::Bare => "bare",
            Variant::EmptyFirstByte => "empty program, first byte",
            Variant::EmptySameSites => "empty program, plegscope's sites",
            Variant::Bpftrace => "bpftrace",
            Variant::Plegscope => "plegscope",
        }
    }
}

/// Nanoseconds of the target's CPU time per operation.
#[derive(Clone, Copy, Debug)]
struct Costs {
    free: f64,
    wait: f64,
}

/// Runs the bench.
pub async fn measure(ledger: &Ledger, scope: Option<&Path>, rounds: u64, out: &Path) -> Result<Table> {
    let binary = contend::build(out)?;
    let script = peer::lock_script(&binary)?;
    let mut sites = Vec::new();
    let mut seen: BTreeMap<Variant, Vec<Costs>> = BTreeMap::new();
    for round in 0..rounds {
        let mut variants = vec![Variant::Bare, Variant::EmptyFirstByte, Variant::Bpftrace];
        if scope.is_some() {
            // plegscope goes first: the kernel tells its sites, and the empty program then takes the same.
            variants.extend([Variant::Plegscope, Variant::EmptySameSites]);
        }
        for variant in variants {
            let mut target = Target::start(&binary)?;
            let costs = match variant {
                Variant::Bare => run(&mut target, BARE)?,
                Variant::EmptyFirstByte => {
                    let mut wanted = first_bytes(&binary);
                    let _probes = EmptyProbes::attach(&binary.path, &wanted)?;
                    // The kernel's list is what plegscope's sites are read from: here it is known what it must say.
                    wanted.sort_unstable();
                    let listed = uprobes_of(&[std::process::id()], &binary.path);
                    ensure!(
                        listed == wanted,
                        "the kernel lists probes at {listed:x?} instead of {wanted:x?}"
                    );
                    run(&mut target, 1)?
                }
                Variant::EmptySameSites => {
                    let _probes = EmptyProbes::attach(&binary.path, &sites)?;
                    run(&mut target, 1)?
                }
                Variant::Bpftrace => {
                    let peer = Bpftrace::start(ledger, &script, out).await?;
                    let costs = run(&mut target, 1)?;
                    peer.quit().await?;
                    costs
                }
                Variant::Plegscope => {
                    let scope = scope.context("plegscope's path")?;
                    let pid = target.pid().to_string();
                    let mut tracer = Tracer::start(
                        ledger,
                        scope,
                        &["live", "--plain", "--also", &pid, "--max-target-cost", "none"],
                        |_, _| {},
                    )?;
                    tracer.ready().await?;
                    sites = uprobes_of(&sys::pids_of_tree(tracer.pid()), &binary.path);
                    ensure!(
                        !sites.is_empty(),
                        "plegscope --also {pid} has no probe in {}",
                        binary.path.display()
                    );
                    let costs = run(&mut target, 1)?;
                    tracer.quit().await?;
                    costs
                }
            };
            println!(
                "round {} of {rounds}: {:32} free {:9.1} ns, wait {:9.1} ns",
                round + 1,
                variant.words(),
                costs.free,
                costs.wait
            );
            seen.entry(variant).or_default().push(costs);
        }
    }
    Ok(judge(&binary, &seen, &sites))
}

fn run(target: &mut Target, times: u32) -> Result<Costs> {
    // The first hits copy the probed pages into the target; they are not what an hour of tracing costs.
    target.run("free", 200)?;
    target.run("wait", 200)?;
    Ok(Costs { free: target.run("free", FREE * times)?, wait: target.run("wait", WAIT * times)? })
}

fn first_bytes(binary: &Binary) -> Vec<u64> {
    let functions = binary.functions().iter();
    functions
        .flat_map(|function| {
            // Returns only where a script needs them: the end of a wait.
            let returns =
                if function.name == "runtime.semacquire1" { function.returns.as_slice() } else { &[] };
            std::iter::once(function.offset).chain(returns.iter().copied())
        })
        .collect()
}

/// Hits per operation of some sites, without and with contention. Of several sites behind the first in one function,
/// one is passed per call (its ends).
fn hits(binary: &Binary, sites: &[u64]) -> (f64, f64) {
    let (mut free, mut wait) = (0, 0);
    for (name, of_free, of_wait) in FUNCTIONS {
        let inside = sites
            .iter()
            .filter(|site| binary.at(**site).is_some_and(|function| function.name == name))
            .count();
        let passes = inside.min(2) as u32;
        free += passes * of_free;
        wait += passes * of_wait;
    }
    (f64::from(free), f64::from(wait))
}

fn judge(binary: &Binary, seen: &BTreeMap<Variant, Vec<Costs>>, sites: &[u64]) -> Table {
    let mut table = Table {
        title: "B1: what a probe hit costs the target, in CPU time".to_owned(),
        rows: Vec::new(),
        goals: Vec::new(),
        notes: Vec::new(),
    };
    let bare = seen.get(&Variant::Bare).cloned().unwrap_or_default();
    let mut entry: BTreeMap<Variant, f64> = BTreeMap::new();
    let mut whole: BTreeMap<Variant, f64> = BTreeMap::new();
    for (variant, costs) in seen {
        let of = |pick: fn(&Costs) -> f64| costs.iter().map(pick).collect::<Vec<_>>();
        table.row(format!("{}: Lock + Unlock, free", variant.words()), &of(|cost| cost.free), "ns");
        table.row(format!("{}: a whole contended operation", variant.words()), &of(|cost| cost.wait), "ns");
        if *variant == Variant::Bare {
            continue;
        }
        let points = if matches!(variant, Variant::EmptySameSites | Variant::Plegscope) {
            sites.to_vec()
        } else {
            first_bytes(binary)
        };
        let (free_hits, wait_hits) = hits(binary, &points);
        // Each round against the bare run of the same round.
        let pairs = || costs.iter().zip(&bare);
        let per_entry: Vec<f64> = pairs().map(|(cost, bare)| (cost.free - bare.free) / free_hits).collect();
        // The whole operation: two locks and unlocks, a begin, an end, a wake-up. Taking the locks out again would leave
        // a difference of differences: it came out between 295 and 1358 ns for one and the same empty program.
        let per_wait: Vec<f64> = pairs().map(|(cost, bare)| cost.wait - bare.wait).collect();
        let per_hit: Vec<f64> = pairs().map(|(cost, bare)| (cost.wait - bare.wait) / wait_hits).collect();
        if free_hits > 0.0 {
            let value = table.row(format!("{}: added per entry hit", variant.words()), &per_entry, "ns");
            entry.insert(*variant, value.median);
        }
        let value = table.row(format!("{}: added per contended operation", variant.words()), &per_wait, "ns");
        whole.insert(*variant, value.median);
        table.row(format!("{}: added per hit, {wait_hits} hits", variant.words()), &per_hit, "ns");
    }
    let ratio = |of: &BTreeMap<Variant, f64>, a, b| match (of.get(&a), of.get(&b)) {
        (Some(a), Some(b)) => a / b,
        _ => f64::NAN,
    };
    if seen.contains_key(&Variant::Plegscope) {
        let goals = [
            ("entry hit, plegscope / bpftrace", 0.15, ratio(&entry, Variant::Plegscope, Variant::Bpftrace)),
            (
                "contended operation, plegscope / bpftrace",
                0.35,
                ratio(&whole, Variant::Plegscope, Variant::Bpftrace),
            ),
            (
                "entry hit, plegscope / empty program at the same sites",
                1.6,
                ratio(&entry, Variant::Plegscope, Variant::EmptySameSites),
            ),
            (
                "contended operation, plegscope / empty program at the same sites",
                1.6,
                ratio(&whole, Variant::Plegscope, Variant::EmptySameSites),
            ),
        ];
        for (what, at_most, reached) in goals {
            table.goal(what, at_most, reached, "");
        }
        let places: Vec<String> = sites
            .iter()
            .filter_map(|site| {
                binary.at(*site).map(|function| format!("{}+{}", function.name, site - function.offset))
            })
            .collect();
        table.notes.push(format!("plegscope's sites, as the kernel lists them: {}", places.join(", ")));
    }
    table
}
