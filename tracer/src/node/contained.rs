//! Which processes run inside containers. Their program files lie below a container's root file system, and whoever has
//! one of those open, be it for a moment, keeps that file system: its unmount fails with EBUSY, or ends without writing
//! back, and the last to let go does that instead. So they are never opened, nor asked about.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Programs that are looked at wherever they run: some nodes run these in containers.
const WANTED: [&str; 2] = ["containerd", "kubelet"];

/// Tells who is inside.
#[derive(Clone)]
pub struct Outside {
    /// The node's own mount namespace, as `/proc/1/ns/mnt` names it.
    node: Option<OsString>,
    /// Processes that are looked at wherever they run.
    wanted: Vec<u32>,
}

impl Outside {
    /// Asks for the node's mount namespace. A process of another one is inside a container; where this cannot be asked,
    /// nobody is, and the program files cannot be opened either.
    pub fn find(wanted: Vec<u32>) -> Outside {
        Outside { node: std::fs::read_link("/proc/1/ns/mnt").ok().map(PathBuf::into_os_string), wanted }
    }

    /// Whether the process with this `/proc` folder and name is in a container and of no interest.
    pub fn excludes(&self, pid: u32, folder: BorrowedFd<'_>, comm: &str) -> bool {
        let Some(node) = self.node.as_ref().filter(|_| !self.wanted.contains(&pid)) else { return false };
        // Both texts come from memory, whatever they point to.
        let text = |name: &str| {
            rustix::fs::readlinkat(folder, name, Vec::new()).map(|text| OsString::from_vec(text.into_bytes()))
        };
        let Ok(own) = text("ns/mnt") else { return false };
        if own == *node {
            return false;
        }
        let program = text("exe").map(PathBuf::from).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        !WANTED.iter().any(|wanted| comm.contains(wanted) || program.contains(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn who_is_in_another_mount_namespace_is_left_alone_unless_it_takes_part() {
        let folder = File::open("/proc/self").unwrap();
        let own = std::fs::read_link("/proc/self/ns/mnt").unwrap().into_os_string();
        let here = Outside { node: Some(own), wanted: Vec::new() };
        let elsewhere = Outside { node: Some("mnt:[1]".into()), wanted: vec![7] };
        assert!(!here.excludes(5, folder.as_fd(), "app"));
        assert!(elsewhere.excludes(5, folder.as_fd(), "app"));
        assert!(!elsewhere.excludes(7, folder.as_fd(), "app"));
        assert!(!elsewhere.excludes(5, folder.as_fd(), "containerd-shim"));
        assert!(!elsewhere.excludes(5, folder.as_fd(), "kubelet"));
        assert!(!Outside { node: None, wanted: Vec::new() }.excludes(5, folder.as_fd(), "app"));
    }
}
