//! What looking costs the programs that are probed, as users are told: when it is much, and at the end.

use crate::{event::ProgramCost, sinks::sanitise};
use std::collections::BTreeMap;

/// A tenth of a percent of a core, in millionths: below it nobody is told.
const WORTH_TELLING: u32 = 1_000;

/// What was told while it lasts.
#[derive(Debug, Default)]
pub struct Costs {
    /// The largest share told, by program.
    told: BTreeMap<String, u32>,
    latest: Vec<ProgramCost>,
}

impl Costs {
    /// What is to be told now: a program that pays more than [`WORTH_TELLING`], and again at each doubling.
    pub fn news(&mut self, costs: &[ProgramCost]) -> Vec<String> {
        let mut news = Vec::new();
        for cost in costs {
            let told = self.told.get(&cost.comm).copied().unwrap_or(WORTH_TELLING / 2);
            if cost.share_ppm / 2 >= told {
                // One entry for each program that is probed; those are bounded where they are attached.
                self.told.insert(cost.comm.clone(), cost.share_ppm);
                let (share, comm) = (percent(cost.share_ppm), sanitise(&cost.comm));
                news.push(format!("probes took {share} of a core from {comm} in the last second"));
            }
        }
        costs.clone_into(&mut self.latest);
        news
    }

    /// What it came to, a line for each program.
    pub fn last_words(&self) -> Vec<String> {
        let line = |cost: &ProgramCost| {
            format!(
                "{}: {} hits, {} of a core in the last second, {} kB in {} processes",
                sanitise(&cost.comm),
                cost.hits,
                percent(cost.share_ppm),
                cost.memory / 1024,
                cost.processes
            )
        };
        self.latest.iter().map(line).collect()
    }
}

/// Millionths as people read them.
fn percent(ppm: u32) -> String {
    format!("{:.2} %", f64::from(ppm) / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Role;

    fn cost(share_ppm: u32) -> ProgramCost {
        let comm = "containerd".to_owned();
        ProgramCost { comm, role: Role::Containerd, processes: 2, hits: 7, share_ppm, memory: 16_384 }
    }

    #[test]
    fn it_is_told_once_and_again_at_each_doubling() {
        let mut costs = Costs::default();
        assert!(costs.news(&[cost(999)]).is_empty());
        assert_eq!(
            costs.news(&[cost(1_500)]),
            ["probes took 0.15 % of a core from containerd in the last second"]
        );
        assert!(costs.news(&[cost(900)]).is_empty());
        assert!(costs.news(&[cost(2_999)]).is_empty());
        assert_eq!(costs.news(&[cost(3_000)]).len(), 1);
        assert_eq!(
            costs.last_words(),
            ["containerd: 7 hits, 0.30 % of a core in the last second, 16 kB in 2 processes"]
        );
    }
}
