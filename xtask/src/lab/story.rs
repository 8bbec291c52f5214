//! The stories the lab can play, and the truth about them by clocks of its own.

use super::containerd_log::{self, Attempt};
use super::kubelet::Kubelet as RealKubelet;
use super::kubelet_like::{Call, KubeletLike};
use super::pods::Pod;
use super::strace::{Strace, Traced};
use super::unmounts::{self, Stay, Watch};
use super::{Lab, sys};
use anyhow::{Result, ensure};
use serde::Serialize;
use std::time::Duration;

/// What blocks the unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
pub enum Block {
    /// Nothing: the container's unmount is quick.
    None,
    /// A disk that is really slow.
    Disk,
    /// strace holds each umount2 (the published reproduction of containerd issue 9770).
    Strace,
}

/// How a story is played.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// What blocks.
    pub block: Block,
    /// About how long the stall shall be.
    pub stall: Duration,
    /// Write rate of the slow disk, bytes per second.
    pub rate: u64,
    /// How often the client updates containers; the kubelet's default is ten seconds.
    pub update_every: Duration,
    /// How long the node runs undisturbed before.
    pub calm: Duration,
}

impl Script {
    /// How much the victim must write so that the disk stays busy for the stall.
    pub fn megabytes(&self) -> u64 {
        match self.block {
            Block::Disk => (self.stall.as_secs_f64() * self.rate as f64 / (1 << 20) as f64).ceil() as u64,
            Block::None | Block::Strace => 4,
        }
    }
}

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug, Serialize)]
pub struct Truth {
    /// What blocked.
    pub block: Block,
    /// The victim's container id.
    pub container: String,
    /// The victim's pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its container's name.
    pub container_name: String,
    /// Its shim.
    pub shim: u32,
    /// All containers and sandboxes of this lab.
    pub own: Vec<String>,
    /// The real kubelet, when one made the calls.
    pub kubelet: Option<Kubelet>,
    /// Device number of the disk below the snapshots.
    pub device: String,
    /// When the workload was told to exit.
    pub told_to_exit: u64,
    /// All calls of the client.
    pub calls: Vec<Call>,
    /// Stays of the shim's threads in umount2.
    pub unmounts: Vec<Stay>,
    /// The same calls by strace, when it was used.
    pub traced: Vec<Traced>,
    /// How often containerd gave up an attempt to handle the victim's exit, by its log.
    pub failed_attempts: u32,
}

/// The real kubelet of a story.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Kubelet {
    /// Its process.
    pub pid: u32,
    /// Its longest relist by its own metric, ns: at least, and at most.
    pub longest_relist: [u64; 2],
}

/// Who calls the runtime.
enum Caller<'a> {
    /// The lab's own client.
    Like(KubeletLike),
    /// A real kubelet.
    Real(&'a RealKubelet),
}

impl Caller<'_> {
    /// All calls so far, by the caller's own clock.
    fn calls(&self) -> Vec<Call> {
        match self {
            Caller::Like(client) => client.log.calls(),
            Caller::Real(kubelet) => kubelet.calls(),
        }
    }

    /// Calls that have no answer yet.
    fn in_flight(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.end.is_none()).collect()
    }

    /// Relists that have ended so far.
    fn relists(&self) -> usize {
        self.calls().iter().filter(|call| call.method == "relist" && call.end.is_some()).count()
    }
}

impl Truth {
    /// The longest call of that name.
    pub fn longest(&self, method: &str) -> Option<&Call> {
        self.calls.iter().filter(|call| call.method == method).max_by_key(|call| call.age(call.begin))
    }

    /// The update of the victim that hung: the longest one for its container.
    pub fn update(&self) -> Option<&Call> {
        self.calls
            .iter()
            .filter(|call| {
                call.method == "UpdateContainerResources" && call.container.as_ref() == Some(&self.container)
            })
            .max_by_key(|call| call.age(call.begin))
    }

    /// Begin of the umount2 call that the shim was in at `now`; strace knows it best, when it was there.
    pub fn unmount_at(&self, now: u64) -> Option<u64> {
        let traced = self.traced.iter().map(|call| (call.begin, call.begin + call.took));
        let stays = self.unmounts.iter().map(|stay| (stay.begin, stay.end.unwrap_or(u64::MAX)));
        traced.chain(stays).find(|(begin, end)| *begin <= now && now <= *end).map(|(begin, _)| begin)
    }

    /// The shim's unmount that blocks the chain, from begin to end.
    pub fn blocked_unmount(&self) -> Option<(u64, u64)> {
        unmounts::blocked(&self.unmounts)
    }
}

impl Lab<'_> {
    /// Plays a story on the prepared node. `say` gets a line for each step.
    pub async fn play(&self, script: &Script, say: &mut impl FnMut(&str)) -> Result<Truth> {
        let victim = self.victim().clone();
        let shim = self.containerd.shim_of(&victim.container)?;
        let caller = match &self.kubelet {
            Some(kubelet) => Caller::Real(kubelet),
            None => {
                say("a client relists every second and updates every container, as the kubelet does");
                let log = self.run.join("client.jsonl");
                Caller::Like(KubeletLike::start(&self.containerd.socket, &log, script.update_every)?)
            }
        };
        tokio::time::sleep(script.calm).await;
        ensure!(caller.relists() > 0, "no relist has ended within {:?}", script.calm);

        let mut strace = None;
        match script.block {
            Block::None => {}
            Block::Disk => {
                let measured = self.disk.slow_down(self.ledger, script.rate)?;
                say(&format!("the disk now writes {:.1} MB/s (measured)", measured as f64 / 1e6));
            }
            Block::Strace => {
                // UnmountAll calls umount2 twice.
                strace = Some(Strace::attach(self.ledger, shim, script.stall / 2, &self.run).await?);
                say(&format!("strace holds each umount2 of shim {shim} for {:?}", script.stall / 2));
            }
        }
        victim.tell("write")?;
        victim.wait_for("written", Duration::from_secs(120)).await?;
        let mut own: Vec<String> = self.pods.iter().flat_map(Pod::ids).collect();
        let unmounts = Watch::start(shim);
        let told_to_exit = sys::monotonic();
        victim.tell("exit")?;
        say(&format!("pod {} has written {} MB and exits", victim.name, script.megabytes()));

        match script.block {
            Block::None => own.extend(self.churn(script.stall).await?),
            Block::Disk | Block::Strace => self.wait_for_stall(&caller, &unmounts, script, say).await?,
        }
        Ok(Truth {
            block: script.block,
            container: victim.container.clone(),
            pod: victim.name.clone(),
            namespace: victim.namespace.clone(),
            container_name: victim.container_name.clone(),
            shim,
            own,
            kubelet: self
                .kubelet
                .as_ref()
                .map(|kubelet| Kubelet { pid: kubelet.pid, longest_relist: kubelet.longest_relist() }),
            device: self.disk.device.clone(),
            told_to_exit,
            calls: caller.calls(),
            unmounts: unmounts.stays(),
            traced: strace.map(Strace::finish).unwrap_or_default(),
            failed_attempts: self.failed_attempts(&victim.container),
        })
    }

    fn failed_attempts(&self, container: &str) -> u32 {
        let log = std::fs::read_to_string(&self.containerd.log).unwrap_or_default();
        let failed = |one: &&Attempt| one.container == container && one.failed.is_some();
        containerd_log::attempts(&log).iter().filter(failed).count() as u32
    }

    /// A healthy node is not an idle one: pods come, write, exit and are removed until the time is over.
    /// Returns their ids.
    pub async fn churn(&self, time: Duration) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        let end = tokio::time::Instant::now() + time;
        for index in 0.. {
            if tokio::time::Instant::now() >= end {
                break;
            }
            let cgroup = std::path::Path::new(&self.ledger.name);
            let pod = super::pods::start(
                &self.client,
                &format!("churn-{index}"),
                &super::pods::script(4),
                cgroup,
                &self.run,
            )
            .await?;
            ids.extend(pod.ids());
            pod.tell("write")?;
            pod.wait_for("written", Duration::from_secs(20)).await?;
            pod.tell("exit")?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            super::pods::remove(&self.client, &pod).await;
        }
        Ok(ids)
    }

    /// Waits until a relist hangs behind the unmount, and until all is over.
    async fn wait_for_stall(
        &self,
        caller: &Caller<'_>,
        unmounts: &Watch,
        script: &Script,
        say: &mut impl FnMut(&str),
    ) -> Result<()> {
        let hangs = || {
            caller
                .in_flight()
                .into_iter()
                .find(|call| call.method == "ListContainers" && call.age(sys::monotonic()) > 1_000_000_000)
        };
        let limit = script.update_every + script.stall;
        let came = sys::until(limit, || hangs().is_some()).await;
        ensure!(
            came,
            "no ListContainers hung within {limit:?}; the shim's unmounts so far: {:?}; containerd's log ends:\n{}",
            unmounts.stays(),
            self.containerd.log_tail(8)
        );
        say("the relist hangs in ListContainers");
        let limit = script.stall * 3 + Duration::from_secs(60);
        let over =
            sys::until(limit, || hangs().is_none() && unmounts.stays().iter().all(|stay| stay.end.is_some()));
        ensure!(over.await, "the stall is not over after {limit:?}: {:?}", caller.in_flight());
        let relists = caller.relists();
        let back = sys::until(Duration::from_secs(10), || caller.relists() >= relists + 2).await;
        ensure!(back, "no relists after the stall; containerd's log ends:\n{}", self.containerd.log_tail(8));
        say("the stall is over, relists work again");
        Ok(())
    }
}
