//! In which order processes are looked at: what most likely holds up all others comes first, since there may be no time
//! for the last.

use crate::event::Role;
use std::collections::BTreeSet;

/// How likely a process is part of what is stuck; lower comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// A daemon, or named by the user: there are few, and they tell which shims matter.
    Daemon,
    /// A shim with a thread that does not come back from the kernel.
    Stuck,
    /// A shim that a daemon is in the middle of calling, or whose container's lock somebody waits for.
    Named,
    /// Any other.
    None,
}

/// Of a process; `stuck` says whether one of its threads is in uninterruptible sleep.
pub fn suspicion(pid: u32, role: Role, stuck: bool, named: &BTreeSet<u32>) -> Suspicion {
    match role {
        Role::Containerd | Role::Kubelet | Role::Other => Suspicion::Daemon,
        Role::Shim if stuck => Suspicion::Stuck,
        Role::Shim if named.contains(&pid) => Suspicion::Named,
        Role::Shim => Suspicion::None,
    }
}

/// What a process of this name most likely is, where its functions cannot be told.
pub fn likely(comm: &str) -> Option<Role> {
    // Names are cut off at 15 bytes.
    match comm {
        _ if comm.starts_with("containerd-shim") => Some(Role::Shim),
        "containerd" => Some(Role::Containerd),
        _ if comm.starts_with("kubelet") => Some(Role::Kubelet),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_then_stuck_shims_then_named_ones_then_the_rest() {
        let named = BTreeSet::from([30, 40]);
        let mut all = [
            (10, Role::Shim, false),
            (20, Role::Shim, true),
            (30, Role::Shim, false),
            (40, Role::Shim, true),
            (50, Role::Kubelet, false),
            (60, Role::Containerd, true),
            (70, Role::Other, false),
        ];
        all.sort_by_key(|(pid, role, stuck)| (suspicion(*pid, *role, *stuck, &named), *pid));
        assert_eq!(all.map(|(pid, ..)| pid), [50, 60, 70, 20, 40, 30, 10]);
    }

    #[test]
    fn names_as_the_kernel_cuts_them_off() {
        assert_eq!(likely("containerd-shim"), Some(Role::Shim));
        assert_eq!(likely("containerd-shim-runc-v2"), Some(Role::Shim));
        assert_eq!(likely("containerd"), Some(Role::Containerd));
        assert_eq!(likely("kubelet"), Some(Role::Kubelet));
        assert_eq!(likely("k3s-server"), None);
    }
}
