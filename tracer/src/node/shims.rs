//! Shims that are left over: the folder of their bundle is gone, and they still run.
//!
//! containerd renames a bundle to `.ID` and removes it when the container is deleted, then tells the shim to end, so at the
//! end of every pod a shim is in that state for a moment. It is left over only when it stays so for [`LEAKED_AFTER`].
//! Read are links of `/proc`, which wait for nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::bundle::{self, BundleId};
use crate::event::Ns;

/// A shim without a bundle is left over after this time.
pub const LEAKED_AFTER: Ns = 30_000_000_000;

/// Shims without a bundle, and since when.
#[derive(Debug, Default)]
pub struct Shims {
    without: BTreeMap<u32, (BundleId, Ns)>,
    told: BTreeSet<u32>,
}

impl Shims {
    /// Looks at all shims of the node and gives those that are newly known to be left over.
    pub fn look(&mut self, shims: &[u32], now: Ns) -> Vec<(u32, BundleId)> {
        self.learn(shims.iter().filter_map(|pid| Some((*pid, bundle::removed_under(*pid)?))), now)
    }

    fn learn(&mut self, without: impl Iterator<Item = (u32, BundleId)>, now: Ns) -> Vec<(u32, BundleId)> {
        let before = std::mem::take(&mut self.without);
        for (pid, bundle) in without {
            // The same pid with another bundle is another shim.
            let since = before.get(&pid).filter(|(was, _)| *was == bundle).map_or(now, |(_, since)| *since);
            self.without.insert(pid, (bundle, since));
        }
        self.told.retain(|pid| self.without.contains_key(pid));
        let old = self.without.iter().filter(|(_, (_, since))| now.saturating_sub(*since) >= LEAKED_AFTER);
        let new = old.filter(|(pid, _)| !self.told.contains(pid));
        let new: Vec<(u32, BundleId)> = new.map(|(pid, (bundle, _))| (*pid, bundle.clone())).collect();
        self.told.extend(new.iter().map(|(pid, _)| *pid));
        new
    }
}

/// Shims that are without a bundle at this moment; most are about to end.
pub fn without_bundle(shims: &[u32]) -> Vec<(u32, BundleId)> {
    shims.iter().filter_map(|pid| Some((*pid, bundle::removed_under(*pid)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn bundle(id: &str) -> BundleId {
        BundleId { state: "/run/containerd".into(), namespace: "k8s.io".into(), id: id.into() }
    }

    #[test]
    fn the_moment_at_the_end_of_a_pod_is_no_leak() {
        let mut shims = Shims::default();
        let second = 1_000_000_000;
        let at = |shims: &mut Shims, seconds: u64, idle: &[(u32, &str)]| {
            let idle: Vec<_> = idle.iter().map(|(pid, id)| (*pid, bundle(id))).collect();
            shims.learn(idle.into_iter(), seconds * second).len()
        };
        assert_eq!(at(&mut shims, 0, &[(7, "a")]), 0);
        assert_eq!(at(&mut shims, 29, &[(7, "a"), (8, "b")]), 0);
        assert_eq!(at(&mut shims, 30, &[(7, "a"), (8, "b")]), 1);
        assert_eq!(at(&mut shims, 40, &[(7, "a"), (8, "b")]), 0, "told once");
        // 8 ended; the pid came back as another shim, whose time begins anew.
        assert_eq!(at(&mut shims, 50, &[(7, "a")]), 0);
        assert_eq!(at(&mut shims, 60, &[(8, "c")]), 0);
        assert_eq!(at(&mut shims, 89, &[(8, "c")]), 0);
        // Its bundle is there after all.
        assert_eq!(at(&mut shims, 89, &[]), 0);
        assert_eq!(at(&mut shims, 95, &[(8, "c")]), 0);
        assert_eq!(at(&mut shims, 125, &[(8, "c")]), 1);
    }

    #[test]
    fn a_process_whose_bundle_is_removed_under_it() {
        let id = "c0".repeat(32);
        let tasks = std::env::temp_dir()
            .join(format!("shims-{}", std::process::id()))
            .join("io.containerd.runtime.v2.task/k8s.io");
        let folder = tasks.join(&id);
        std::fs::create_dir_all(&folder).unwrap();
        let mut child = Command::new("cat").current_dir(&folder).stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(bundle::removed_under(child.id()), None);
        // As containerd does it: renamed, then removed.
        std::fs::rename(&folder, tasks.join(format!(".{id}"))).unwrap();
        assert_eq!(bundle::removed_under(child.id()), None, "renamed is not removed");
        std::fs::remove_dir(tasks.join(format!(".{id}"))).unwrap();
        let found = without_bundle(&[child.id(), std::process::id()]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0, found[0].1.id.as_str()), (child.id(), id.as_str()));
        drop(child.stdin.take());
        child.wait().unwrap();
        std::fs::remove_dir_all(tasks.parent().unwrap().parent().unwrap()).unwrap();
    }
}
