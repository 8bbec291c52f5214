//! What a link of a story's chain means: words on one side, links of plegscope's frames on the other.

use crate::lab::stories::checks::said::kind;
use anyhow::{Result, bail};
use serde_json::Value;

/// What kind of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The kubelet's relist.
    Relist,
    /// The kubelet's side of a call.
    Client,
    /// A CRI call in containerd.
    Call,
    /// The handling of an exit.
    Exit,
    /// A wait for a lock.
    Lock,
    /// A call to a shim, either side.
    Shim,
    /// A method that takes the container's lock in the shim.
    Task,
    /// An unmount in the pod's shim.
    Unmount,
    /// An unmount in containerd.
    DaemonUnmount,
    /// A sync or shutdown of a super block.
    Sync,
    /// A process that does not run.
    Stalled,
}

/// A link as a story words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// What kind.
    pub what: What,
    /// Its method, or the name of the lock, one of these; empty when that is open.
    pub names: Vec<String>,
    /// Whose.
    pub of: Option<String>,
}

/// What a pattern needs to know of a pod.
pub trait Pods {
    /// Ids of the container and the sandbox of that pod.
    fn ids(&self, pod: &str) -> Vec<String>;
    /// Its shim.
    fn shim(&self, pod: &str) -> Option<u32>;
    /// Whether that process is, or was, the daemon.
    fn is_daemon(&self, pid: u64) -> bool;
}

impl Pattern {
    /// Reads `WHAT [NAME|NAME] [of POD]`.
    pub fn parse(words: &str) -> Result<Pattern> {
        let (before, of) = match words.split_once(" of ") {
            Some((before, pod)) => (before, Some(pod.to_owned())),
            None => (words, None),
        };
        let (what, names) = before.split_once(' ').unwrap_or((before, ""));
        let names: Vec<String> =
            names.split('|').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let (kind, named) = match what {
            "relist" => (What::Relist, false),
            "client" => (What::Client, true),
            "call" => (What::Call, true),
            "exit" => (What::Exit, false),
            "lock" => (What::Lock, true),
            "shim" => (What::Shim, true),
            "task" => (What::Task, true),
            "unmount" => (What::Unmount, false),
            "daemon-unmount" => (What::DaemonUnmount, false),
            "sync" => (What::Sync, false),
            "stalled" => (What::Stalled, false),
            _ => bail!("`{words}` is no link: what is {what:?}?"),
        };
        if named == names.is_empty() {
            bail!("`{words}` is no link: {what} {} a name", if named { "needs" } else { "has not" });
        }
        Ok(Pattern { what: kind, names, of })
    }

    /// Whether a link of a frame is this one.
    pub fn is(&self, link: &Value, pods: &impl Pods) -> bool {
        let of_kind = match self.what {
            What::Relist => kind(link) == "Relist",
            What::Client => kind(link) == "CriClient",
            What::Call => kind(link) == "CriCall",
            What::Exit => kind(link) == "ExitHandling",
            What::Lock => kind(link) == "LockWait",
            What::Shim => matches!(kind(link), "ShimCall" | "ShimServe"),
            What::Task => kind(link) == "InitMethod",
            What::Unmount | What::DaemonUnmount => kind(link) == "Unmount",
            What::Sync => matches!(kind(link), "Sync" | "SuperShutdown"),
            What::Stalled => kind(link) == "Stalled",
        };
        of_kind && self.is_named(link) && self.is_whose(link, pods)
    }

    fn is_named(&self, link: &Value) -> bool {
        let name = match self.what {
            What::Lock => link["lock"]["name"].as_str().unwrap_or_default(),
            _ => crate::lab::verdict::method(link),
        };
        self.names.is_empty() || self.names.iter().any(|one| one == name)
    }

    fn is_whose(&self, link: &Value, pods: &impl Pods) -> bool {
        let pid = link["who"]["pid"].as_u64();
        if self.what == What::DaemonUnmount {
            return pid.is_some_and(|pid| pods.is_daemon(pid));
        }
        let Some(pod) = &self.of else { return true };
        let subject = if self.what == What::Lock { &link["lock"]["subject"] } else { &link["subject"] };
        let its = subject["id"].as_str().is_some_and(|id| pods.ids(pod).iter().any(|own| own == id));
        // The shim's pid is known by other means, so an unmount is held to it as well.
        its && (self.what != What::Unmount || pid == pods.shim(pod).map(u64::from))
    }
}

/// The links of a chain that match the patterns in this order, when all of them do; others may stand between.
pub fn along<'v>(patterns: &[Pattern], links: &'v [Value], pods: &impl Pods) -> Option<Vec<&'v Value>> {
    let mut rest = links.iter();
    patterns.iter().map(|pattern| rest.find(|link| pattern.is(link, pods))).collect()
}

/// How many of the patterns a chain has in this order, from the first on.
pub fn reached(patterns: &[Pattern], links: &[Value], pods: &impl Pods) -> usize {
    (0..=patterns.len()).rev().find(|count| along(&patterns[..*count], links, pods).is_some()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Lab;

    impl Pods for Lab {
        fn ids(&self, pod: &str) -> Vec<String> {
            vec![format!("id-of-{pod}")]
        }
        fn shim(&self, pod: &str) -> Option<u32> {
            (pod == "victim").then_some(7)
        }
        fn is_daemon(&self, pid: u64) -> bool {
            pid == 1
        }
    }

    fn is(words: &str, link: &Value) -> bool {
        Pattern::parse(words).unwrap_or_else(|error| panic!("{error:#}")).is(link, &Lab)
    }

    #[test]
    fn a_link_is_known_by_kind_name_and_pod() {
        let lock = json!({
            "operation": {"kind": "LockWait"}, "lock": {"name": "Status", "subject": {"id": "id-of-victim"}},
        });
        assert!(is("lock Status of victim", &lock));
        assert!(is("lock Init|Status", &lock));
        assert!(!is("lock Init of victim", &lock));
        assert!(!is("lock Status of other", &lock));
        assert!(!is("relist", &lock));
    }

    #[test]
    fn an_unmount_is_held_to_the_shims_pid() {
        let of = |pid: u32| json!({"operation": {"kind": "Unmount"}, "subject": {"id": "id-of-victim"}, "who": {"pid": pid}});
        assert!(is("unmount of victim", &of(7)));
        assert!(!is("unmount of victim", &of(8)));
        assert!(is("daemon-unmount", &of(1)));
        assert!(!is("daemon-unmount", &of(7)));
    }

    #[test]
    fn what_is_no_link_is_refused() {
        for words in ["", "dance", "lock", "relist of", "relist x", "call"] {
            assert!(words == "relist of" || Pattern::parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn the_order_counts() {
        let chain =
            [json!({"operation": {"kind": "Relist"}}), json!({"operation": {"kind": "ExitHandling"}})];
        let patterns =
            |words: [&str; 2]| words.map(|one| Pattern::parse(one).unwrap_or_else(|e| panic!("{e}")));
        assert!(along(&patterns(["relist", "exit"]), &chain, &Lab).is_some());
        assert!(along(&patterns(["exit", "relist"]), &chain, &Lab).is_none());
        assert_eq!(reached(&patterns(["exit", "relist"]), &chain, &Lab), 1);
    }
}
