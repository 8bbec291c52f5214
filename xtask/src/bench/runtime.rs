//! B2: what looking costs the container runtime, and everybody else. A client calls a real containerd that has many
//! containers; an unrelated process makes system calls.

use super::idle;
use super::peer::{self, Bpftrace};
use super::table::Table;
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::cri::{self, Client};
use crate::lab::tracer::Tracer;
use crate::lab::{Lab, Settings, pods, sys};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// How long the client calls in each turn.
const CALLING: Duration = Duration::from_secs(3);
/// How long system calls are counted in each turn.
const COUNTING: Duration = Duration::from_millis(700);
/// Pods that are started at the same time.
const AT_ONCE: usize = 4;

/// What one turn measured.
#[derive(Default)]
struct Turns {
    /// Calls per second.
    rate: Vec<f64>,
    /// ms that 99 of 100 calls stay below: of ListContainers, of UpdateContainerResources.
    p99: [Vec<f64>; 2],
    /// CPU time of containerd and all shims per pair of calls, us.
    cpu: Vec<f64>,
    /// System calls of an unrelated process, millions per second.
    system_calls: Vec<f64>,
}

impl Turns {
    fn all(&self) -> [(&'static str, &[f64], &'static str); 5] {
        [
            ("CRI calls", &self.rate, "/s"),
            ("ListContainers, p99", &self.p99[0], "ms"),
            ("UpdateContainerResources, p99", &self.p99[1], "ms"),
            ("CPU of containerd and shims for a pair of calls", &self.cpu, "us"),
            ("system calls of an unrelated process", &self.system_calls, "M/s"),
        ]
    }
}

/// Runs the bench with this many containers.
pub async fn measure(
    ledger: &Ledger,
    programs: Programs,
    scope: Option<&Path>,
    rounds: u64,
    containers: usize,
) -> Result<Table> {
    let mut lab =
        Lab::without_pods(ledger, programs, &Settings::default(), &mut |text: &str| println!("{text}"))
            .await?;
    let begin = sys::monotonic();
    fill(&mut lab, ledger, containers).await?;
    println!("{containers} pods after {}", sys::seconds(sys::monotonic() - begin));
    let mut targets = vec![lab.containerd.pid];
    for pod in &lab.pods {
        targets.push(lab.containerd.shim_of(&pod.container)?);
    }
    let (mut bare, mut own, mut peer) = (Turns::default(), Turns::default(), Turns::default());
    let mut script = None;
    let mut notes = Vec::new();
    turn(&lab, &targets, &mut Turns::default()).await?;
    for round in 0..rounds {
        turn(&lab, &targets, &mut bare).await?;
        let Some(scope) = scope else { continue };
        let mut tracer = Tracer::start(ledger, scope, &["live", "--plain"], |_, _| {})?;
        let ready = tracer.ready().await?;
        let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
        if script.is_none() {
            notes.push(format!("plegscope said: {}", ready.text));
            script = Some(peer::functions_script(warden, &targets[..2])?);
        }
        turn(&lab, &targets, &mut own).await?;
        let links = look::links(warden);
        tracer.quit().await?;
        idle::gone(warden, &links).await?;
        if let Some(text) = script.as_ref().filter(|text| !text.is_empty()) {
            match Bpftrace::start(ledger, text, &lab.run).await {
                Ok(running) => {
                    turn(&lab, &targets, &mut peer).await?;
                    running.quit().await?;
                }
                Err(error) => {
                    let first = format!("{error:#}");
                    notes.push(format!("bpftrace: {}", first.lines().next().unwrap_or_default()));
                    script = Some(String::new());
                }
            }
        }
        println!("round {} of {rounds}", round + 1);
    }
    let mut table = Table {
        title: format!(
            "B2: cost to the container runtime, {containers} pods (as many containers and sandboxes)"
        ),
        rows: Vec::new(),
        goals: Vec::new(),
        notes,
    };
    table.notes.push("bpftrace: a time and a count at the begin of each function in which plegscope has sites, and no ends".to_owned());
    let all = [("bare", &bare), ("plegscope", &own), ("bpftrace", &peer)];
    for (who, turns) in all.into_iter().filter(|(_, turns)| !turns.rate.is_empty()) {
        for (name, values, unit) in turns.all() {
            table.row(format!("{who}: {name}"), values, unit);
        }
    }
    // A machine that is busy with something else for a minute makes all of a round slow: rounds are compared, not minutes.
    for (who, turns) in [("plegscope", &own), ("bpftrace", &peer)] {
        for (index, (name, values, _)) in turns.all().into_iter().enumerate() {
            let ratios: Vec<f64> =
                values.iter().zip(bare.all()[index].1).map(|(it, bare)| it / bare).collect();
            if ratios.is_empty() {
                continue;
            }
            let ratio = table.row(format!("{name}: {who} / bare, round by round"), &ratios, "").median;
            match (who, index) {
                ("plegscope", 0 | 4) => {
                    table.goal(format!("{name}: bare / plegscope"), 1.0 / 0.99, 1.0 / ratio, "")
                }
                ("plegscope", _) => table.goal(format!("{name}: plegscope / bare"), 1.02, ratio, ""),
                _ => {}
            }
        }
    }
    lab.finish().await;
    Ok(table)
}

/// Starts the pods, some at a time.
async fn fill(lab: &mut Lab<'_>, ledger: &Ledger, containers: usize) -> Result<()> {
    let names: Vec<String> = (0..containers).map(|index| format!("pod-{index}")).collect();
    for some in names.chunks(AT_ONCE) {
        let starting: Vec<_> = some
            .iter()
            .map(|name| {
                let (client, name, run) = (lab.client.clone(), name.clone(), lab.run.clone());
                let cgroup = ledger.name.clone();
                tokio::spawn(async move { pods::start_idle(&client, &name, Path::new(&cgroup), &run).await })
            })
            .collect();
        for pod in starting {
            lab.pods.push(pod.await.context("starting a pod")??);
        }
    }
    Ok(())
}

/// One turn: calls for a while, then system calls.
async fn turn(lab: &Lab<'_>, targets: &[u32], into: &mut Turns) -> Result<()> {
    let cpu = || targets.iter().map(|pid| look::cpu_time(*pid)).sum::<u64>();
    let (before, begin) = (cpu(), sys::monotonic());
    let mut took: [Vec<u64>; 2] = Default::default();
    let mut pods = lab.pods.iter().cycle();
    while sys::monotonic() - begin < CALLING.as_nanos() as u64 {
        let at = sys::monotonic();
        list(&lab.client).await?;
        let between = sys::monotonic();
        if let Some(pod) = pods.next() {
            update(&lab.client, &pod.container).await?;
        }
        took[0].push(between - at);
        took[1].push(sys::monotonic() - between);
    }
    let time = (sys::monotonic() - begin) as f64 / 1e9;
    let pairs = took[0].len() as f64;
    into.cpu.push((cpu() - before) as f64 / 1e3 / pairs);
    into.rate.push(2.0 * pairs / time);
    for (all, p99) in took.iter_mut().zip(&mut into.p99) {
        all.sort_unstable();
        p99.push(all[(all.len() * 99).div_ceil(100) - 1] as f64 / 1e6);
    }
    let rate = tokio::task::spawn_blocking(system_calls).await.context("counting system calls")?;
    into.system_calls.push(rate);
    Ok(())
}

async fn list(client: &Client) -> Result<()> {
    let answer = client.call::<_, cri::ListContainersResponse>("ListContainers", cri::Empty {}, cri::SHORT);
    answer.await.map(|_| ()).context("ListContainers")
}

async fn update(client: &Client, container: &str) -> Result<()> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: Some(pods::resources()),
    };
    let answer = client.call::<_, cri::Empty>("UpdateContainerResources", request, cri::SHORT);
    answer.await.map(|_| ()).context("UpdateContainerResources")
}

/// Millions of system calls per second that this thread makes.
fn system_calls() -> f64 {
    let (begin, mut count) = (sys::monotonic(), 0u64);
    loop {
        for _ in 0..10_000 {
            // SAFETY: takes and changes nothing.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        count += 10_000;
        let time = sys::monotonic() - begin;
        if time > COUNTING.as_nanos() as u64 {
            return count as f64 * 1e3 / time as f64;
        }
    }
}
