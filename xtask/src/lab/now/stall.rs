//! A healthy node, then the published stall on a slow disk. plegscope is started when the list call has hung for seconds.

use super::calls::{self, Containers};
use super::judge::{self, Facts};
use super::{GRACE, Own, Ran, WITHIN, dump, late, store};
use crate::lab::cleanup::Ledger;
use crate::lab::containerd::Programs;
use crate::lab::kubelet_like::KubeletLike;
use crate::lab::pods::{NAMESPACE, Pod};
use crate::lab::stories::checks::said::list;
use crate::lab::story::{Block, Truth};
use crate::lab::unmounts::Watch;
use crate::lab::verdict::{self, Verdict};
use crate::lab::{Lab, sys};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Write rate of the slow disk, bytes per second.
const RATE: u64 = 2_000_000;
/// What the victim writes: the stall lasts about half a minute.
const MEGABYTES: u64 = 64;
/// How often `now` is asked on the healthy node.
const TIMES: usize = 20;
/// How long the list call has hung when plegscope is started for the first time.
const HUNG: u64 = 3_500_000_000;

/// Plays the part.
pub async fn play(
    ledger: &Ledger,
    programs: Programs,
    binary: &Path,
    keep: Option<&Path>,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let lab = Lab::prepare(ledger, programs, MEGABYTES, say).await?;
    let log = lab.run.join("client.jsonl");
    let client = KubeletLike::start(&lab.containerd.socket, &log, Duration::from_secs(2))?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut verdict = Verdict::default();
    healthy(&lab, &Own::new(binary, &lab.run, "healthy")?, &mut verdict).await?;
    say("the node is healthy, pods come and go");

    let stall = Stall::begin(&lab, &client, say).await?;
    // The first of them knows nothing of the programs yet.
    let own = Own::new(binary, &lab.run, "late")?;
    let mut runs = Vec::new();
    for args in [&["now", "--json"][..], &["now"], &["now", "--format", "goroutine"]] {
        runs.push((args.join(" "), own.run(ledger, args).await?));
        say(&format!("{}: {}", args.join(" "), runs[runs.len() - 1].1.ended()));
    }
    let kept = ["now.json", "now.txt", "now.goroutines"];
    kept.iter().zip(&runs).try_for_each(|(name, (_, ran))| store(keep, name, &ran.out))?;
    let truth = stall.truth(&client);
    let facts = stall.facts().await?;
    for (what, ran) in &runs {
        verdict.check(
            what,
            format!("exit code 0 within {}", sys::seconds(WITHIN + GRACE)),
            ran.ended(),
            ran.code == Some(0) && ran.took <= WITHIN + GRACE && ran.messages.is_empty(),
        );
    }
    let report = runs[0].1.report();
    judge::chain(&truth, &facts, &report["frame"], &mut verdict);
    judge::seen_in_memory(&truth, &report["frame"], &mut verdict);
    judge::stacks(&truth, &facts, &report, &mut verdict);
    judge::text(&truth, &facts, &runs[1].1.out, &mut verdict);
    judge::tracebacks(&truth, &runs[2].1.out, &mut verdict);
    let roots = lab.pods.iter().flat_map(Pod::ids).map(|id| lab.containerd.bundle(&id).join("rootfs"));
    let containers = Containers {
        roots: roots.chain([lab.disk.mounted.clone()]).collect(),
        pids: lab.pods.iter().filter_map(|pod| lab.containerd.init_of(&pod.container).ok()).collect(),
    };
    calls::judge(ledger, binary, &lab.run, &containers, &mut verdict).await?;
    say("now has told");

    late::play(ledger, binary, &stall, &client, &facts, keep, &mut verdict, say).await?;
    let truth = stall.truth(&client);
    store(keep, "truth.json", &serde_json::to_string_pretty(&(&truth, &facts))?)?;
    // What plegscope is held against must itself be sound.
    verdict.0.extend(verdict::truth(&truth).0);
    drop(stall);
    drop(client);
    lab.finish().await;
    Ok(verdict)
}

/// The healthy node: nothing is stuck, whatever pods do.
async fn healthy(lab: &Lab<'_>, own: &Own, verdict: &mut Verdict) -> Result<()> {
    let over = std::cell::Cell::new(false);
    let churn = async {
        while !over.get() {
            lab.churn(Duration::from_secs(1)).await?;
        }
        Ok::<(), anyhow::Error>(())
    };
    let ask = async {
        let mut runs: Vec<Ran> = Vec::new();
        for _ in 0..TIMES {
            runs.push(own.run(lab.ledger, &["now", "--json"]).await?);
        }
        over.set(true);
        Ok::<Vec<Ran>, anyhow::Error>(runs)
    };
    let ((), runs) = tokio::try_join!(churn, ask)?;
    let reports: Vec<_> = runs.iter().map(Ran::report).collect();
    let failed = runs.iter().filter(|ran| ran.code != Some(0));
    let codes: Vec<_> =
        failed.map(|ran| format!("{}: {}", ran.ended(), ran.report()["summary"]["left_out"])).collect();
    verdict.check(
        "healthy node: exit code",
        format!("0, {TIMES} times"),
        codes.first().cloned().unwrap_or_else(|| "0".to_owned()),
        codes.is_empty(),
    );
    let looked = reports.iter().filter(|report| {
        let goroutines = list(report, "processes").map(|one| list(&one["look"]["Ok"], "goroutines").count());
        goroutines.filter(|count| *count > 5).count() >= 4
    });
    verdict.check(
        "healthy node: looked at",
        "containerd and three shims, each time",
        format!("{} times", looked.clone().count()),
        looked.count() == TIMES,
    );
    let mut stuck: Vec<String> = Vec::new();
    for report in &reports {
        let all = list(&report["frame"], "diagnoses");
        stuck.extend(all.filter(|one| one["ends_in"]["LeakedShims"].is_null()).map(verdict::words));
    }
    verdict.check(
        "healthy node: stuck",
        "nothing",
        if stuck.is_empty() {
            "nothing".to_owned()
        } else {
            format!("{}: {}", stuck.len(), stuck.join("; "))
        },
        stuck.is_empty(),
    );
    let foreign: Vec<String> = reports
        .iter()
        .flat_map(|report| list(&report["frame"], "in_flight"))
        .map(|one| &one["subject"])
        .filter(|subject| subject["pod"].is_string() && subject["namespace"] != NAMESPACE)
        .map(|subject| subject.to_string())
        .collect();
    verdict.check("healthy node: wrong names", "none", foreign.join(", "), foreign.is_empty());
    let longest = runs.iter().map(|ran| ran.took).max().unwrap_or(0);
    verdict.note("healthy node: longest now", "", sys::seconds(longest));
    let ran = own.run(lab.ledger, &["now"]).await?;
    let first = ran.out.lines().next().unwrap_or_default();
    verdict.check(
        "healthy node: the first line",
        "says that nothing is stuck",
        first,
        first.starts_with("nothing is stuck") && ran.code == Some(0),
    );
    Ok(())
}

/// A stall that lasts, and those who watch it.
pub struct Stall<'l> {
    lab: &'l Lab<'l>,
    /// The pod that exits.
    pub victim: Pod,
    /// Its shim.
    pub shim: u32,
    /// The lab's own eye on the unmounts.
    pub unmounts: Watch,
    told_to_exit: u64,
}

impl<'l> Stall<'l> {
    /// Brings it about; returns when a list call has hung for a while.
    async fn begin(lab: &'l Lab<'l>, client: &KubeletLike, say: &mut impl FnMut(&str)) -> Result<Stall<'l>> {
        let measured = lab.disk.slow_down(lab.ledger, RATE)?;
        say(&format!("the disk now writes {:.1} MB/s (measured)", measured as f64 / 1e6));
        Stall::on(lab, client, say).await
    }

    /// The same on a disk that is slow already.
    pub async fn on(lab: &'l Lab<'l>, client: &KubeletLike, say: &mut impl FnMut(&str)) -> Result<Stall<'l>> {
        let victim = lab.victim().clone();
        victim.tell("write")?;
        victim.wait_for("written", Duration::from_secs(120)).await?;
        let shim = lab.containerd.shim_of(&victim.container)?;
        let unmounts = Watch::start(shim);
        let told_to_exit = sys::monotonic();
        victim.tell("exit")?;
        say(&format!("pod {} has written and exits", victim.name));
        let hung = || {
            let calls = client.log.calls();
            let mut hanging =
                calls.iter().filter(|call| call.method == "ListContainers" && call.end.is_none());
            hanging.any(|call| call.age(sys::monotonic()) > HUNG)
        };
        ensure!(
            sys::until(Duration::from_secs(20), hung).await,
            "no ListContainers hangs; containerd's log ends:\n{}",
            lab.containerd.log_tail(8)
        );
        say(&format!("a list call has hung for {}", sys::seconds(HUNG)));
        Ok(Stall { lab, victim, shim, unmounts, told_to_exit })
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.unmounts.stays().iter().all(|stay| stay.end.is_some())
    }

    /// What happened so far.
    pub fn truth(&self, client: &KubeletLike) -> Truth {
        Truth {
            block: Block::Disk,
            container: self.victim.container.clone(),
            pod: self.victim.name.clone(),
            namespace: self.victim.namespace.clone(),
            container_name: self.victim.container_name.clone(),
            shim: self.shim,
            own: self.lab.pods.iter().flat_map(Pod::ids).collect(),
            kubelet: None,
            device: self.lab.disk.device.clone(),
            told_to_exit: self.told_to_exit,
            calls: client.log.calls(),
            unmounts: self.unmounts.stays(),
            traced: Vec::new(),
            failed_attempts: 0,
        }
    }

    /// What is true of it beside its times.
    pub async fn facts(&self) -> Result<Facts> {
        let containerd = &self.lab.containerd;
        let mut facts = self.plain_facts()?;
        for pid in [containerd.pid, self.shim] {
            facts.dumps.insert(pid, dump::of(containerd, pid).await?);
        }
        ensure!(!self.is_over(), "the stall is over before all of it was looked at");
        Ok(facts)
    }

    /// The same without the programs' own stacks.
    pub fn plain_facts(&self) -> Result<Facts> {
        let stays = self.unmounts.stays();
        let stay = stays.iter().find(|stay| stay.end.is_none()).context("no thread is in umount2")?;
        let stack = format!("/proc/{}/task/{}/stack", self.shim, stay.tid);
        let stack = fs::read_to_string(&stack).with_context(|| format!("reading {stack}"))?;
        // `[<0>] folio_wait_writeback+0x4e/0xa0`
        let name = |line: &str| Some(line.split_once("] ")?.1.split('+').next()?.to_owned());
        let uevent = format!("/sys/dev/block/{}/uevent", self.lab.disk.device);
        let uevent = fs::read_to_string(&uevent).with_context(|| format!("reading {uevent}"))?;
        let device = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        Ok(Facts {
            containerd: self.lab.containerd.pid,
            rootfs: self.lab.containerd.bundle(&self.victim.container).join("rootfs"),
            device: format!("/dev/{}", device.context("a device without a name")?),
            prompt: true,
            kernel: stack.lines().filter_map(name).collect(),
            dumps: Default::default(),
        })
    }

    /// Its node.
    pub fn lab(&self) -> &Lab<'l> {
        self.lab
    }
}
