//! The published chain, link by link: names, ages, seconds, what failed for it, and with a real kubelet its own relist.

use super::Beyond;
use crate::lab::harm;
use crate::lab::stories::record::Record;
use crate::lab::story::{Block, Truth};
use crate::lab::verdict::{self, Seen, Verdict};
use anyhow::{Context as _, Result};

/// What the judge of the demo needs to know.
pub struct Published(Truth);

impl Published {
    /// What the record has of it. The first pod is the victim.
    pub fn of(record: &Record) -> Result<Published> {
        let victim = record.pods.first().context("there is no pod")?;
        Ok(Published(Truth {
            block: if record.traced.is_empty() { Block::Disk } else { Block::Strace },
            container: victim.container.clone(),
            pod: victim.pod.clone(),
            namespace: victim.namespace.clone(),
            container_name: victim.container_name.clone(),
            shim: victim.shim,
            own: record.own.clone(),
            kubelet: record.kubelet,
            device: record.device.clone(),
            told_to_exit: victim.told_to_exit.context("the victim was not told to exit")?,
            calls: record.calls.clone(),
            unmounts: victim.unmounts.clone(),
            traced: record.traced.clone(),
            failed_attempts: victim.attempts.iter().filter(|one| one.failed.is_some()).count() as u32,
        }))
    }
}

impl Beyond for Published {
    fn truth(&self, verdict: &mut Verdict) {
        verdict.0.extend(verdict::truth(&self.0).0);
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        verdict.0.extend(verdict::incident(&self.0, frames).0);
        if self.0.block == Block::Disk {
            harm::updates(&self.0, frames, verdict);
        }
    }
}
