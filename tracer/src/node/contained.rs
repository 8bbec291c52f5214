//! Which processes run inside containers. Their program files lie below a container's root file system, and whoever has
//! one of those open, be it for a moment, keeps that file system: its unmount fails with EBUSY, or ends without writing
//! back, and the last to let go does that instead. So they are never opened, nor asked about.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::residency::open_exe;
use super::{ReadError, proc_folder};

/// Programs that are looked at wherever they run: some nodes run these in containers.
const WANTED: [&str; 2] = ["containerd", "kubelet"];

/// Whose mount namespaces are no container's: the init process's; that of kernel threads, for where somebody keeps the
/// init process from being looked at (capabilities that we lack, a security module); and our own, whose files we hold
/// anyway by running.
const OUTSIDE: [&str; 3] = ["/proc/1/ns/mnt", "/proc/2/ns/mnt", "/proc/self/ns/mnt"];

/// Tells who is inside.
#[derive(Clone)]
pub struct Outside {
    /// Names of these mount namespaces, as far as they can be read.
    namespaces: Vec<OsString>,
    /// Processes that are looked at wherever they run.
    wanted: Vec<u32>,
}

impl Outside {
    /// Asks for the mount namespaces that are no container's. A process of any other is inside one.
    pub fn find(wanted: Vec<u32>) -> Outside {
        let name = |path| std::fs::read_link(path).ok().map(PathBuf::into_os_string);
        Outside { namespaces: OUTSIDE.into_iter().filter_map(name).collect(), wanted }
    }

    /// Whether the process with this `/proc` folder and name is in a container and of no interest; an error where that
    /// cannot be told, and then its program is not to be opened either.
    pub fn excludes(&self, pid: u32, folder: BorrowedFd<'_>, comm: &str) -> rustix::io::Result<bool> {
        if self.wanted.contains(&pid) {
            return Ok(false);
        }
        // Both texts come from memory, whatever they point to.
        let text = |name: &str| {
            rustix::fs::readlinkat(folder, name, Vec::new()).map(|text| OsString::from_vec(text.into_bytes()))
        };
        if self.namespaces.contains(&text("ns/mnt")?) {
            return Ok(false);
        }
        let program = text("exe").map(PathBuf::from).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        Ok(!WANTED.iter().any(|wanted| comm.contains(wanted) || program.contains(wanted)))
    }

    /// Opens the program that these processes (pid and name) run, by the first of them that has not gone. To a caller who
    /// wants no other, one that is excluded is gone. May hang.
    pub fn open(&self, processes: &[(u32, String)]) -> Result<File, ReadError> {
        let mut gone = ReadError::new("/proc", std::io::ErrorKind::NotFound);
        for (pid, comm) in processes {
            match self.open_by(*pid, comm) {
                Err(error) if error.is_gone() => gone = error,
                opened => return opened,
            }
        }
        Err(gone)
    }

    fn open_by(&self, pid: u32, comm: &str) -> Result<File, ReadError> {
        match self.excludes(pid, proc_folder(pid)?.as_fd(), comm) {
            Ok(false) => open_exe(pid),
            Ok(true) => Err(ReadError::new(format!("/proc/{pid}/exe"), std::io::ErrorKind::NotFound)),
            Err(error) => Err(ReadError::new(format!("/proc/{pid}/ns/mnt"), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::procs::{Exe, Processes};
    use crate::node::worker::Workers;
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    #[test]
    fn who_is_in_another_mount_namespace_is_left_alone_unless_it_takes_part() {
        let folder = File::open("/proc/self").unwrap();
        let own = std::fs::read_link("/proc/self/ns/mnt").unwrap().into_os_string();
        let here = Outside { namespaces: vec!["mnt:[1]".into(), own], wanted: Vec::new() };
        let elsewhere = Outside { namespaces: vec!["mnt:[1]".into()], wanted: vec![7] };
        assert_eq!(here.excludes(5, folder.as_fd(), "app"), Ok(false));
        assert_eq!(elsewhere.excludes(5, folder.as_fd(), "app"), Ok(true));
        assert_eq!(elsewhere.excludes(7, folder.as_fd(), "app"), Ok(false));
        assert_eq!(elsewhere.excludes(5, folder.as_fd(), "containerd-shim"), Ok(false));
        assert_eq!(elsewhere.excludes(5, folder.as_fd(), "kubelet"), Ok(false));
        // Where nothing can be asked, everybody counts as contained.
        let nothing = Outside { namespaces: Vec::new(), wanted: Vec::new() };
        assert_eq!(nothing.excludes(5, folder.as_fd(), "app"), Ok(true));
        assert!(nothing.excludes(5, File::open("/").unwrap().as_fd(), "app").is_err());
    }

    #[test]
    fn a_process_with_mounts_of_its_own_is_contained_also_when_it_goes_there_after_the_look() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a mount namespace needs root");
            return;
        }
        // The shell waits for a line, then has mounts of its own, then becomes cat.
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec unshare --mount cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut processes, workers) = (Processes::new(), Workers::new(1));
        processes.recheck(child.id(), &workers);
        assert!(matches!(processes.get(child.id()).unwrap().exe, Exe::File(_)));
        let (early, late) = (processes.opener(&[child.id()]), processes.opener(&[child.id()]));
        // Before it: one that has gone, by a number that no process has.
        assert!(processes.opener(&[u32::MAX, child.id()])().is_ok());
        assert!(early().is_ok());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"go\nback\n").unwrap();
        // cat gives the second line back only after it was executed.
        let mut answer = [0u8; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert!(late().unwrap_err().is_gone());
        processes.recheck(child.id(), &workers);
        assert_eq!(processes.get(child.id()).unwrap().exe, Exe::Contained);
        drop(stdin);
        child.wait().unwrap();
    }
}
