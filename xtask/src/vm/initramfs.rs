//! The virtual machine's only file system: an archive in cpio's `newc` form, which the kernel unpacks into memory.

use crate::shell;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// An archive that grows.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    made: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Archive {
    /// Adds a file, and the folders it lies in. `path` has no leading slash.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        if self.made.contains(path) {
            return;
        }
        for (at, _) in path.match_indices('/') {
            self.folder(&path[..at]);
        }
        self.made.insert(path.to_owned());
        self.entry(path, PROGRAM, content);
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str) {
        if self.made.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[]);
        }
    }

    /// Adds a program and the libraries it needs, which stay where they lie on this machine.
    pub fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        // Debug information would be most of the machine's memory.
        let bare = from.with_added_extension("stripped");
        shell::capture(Command::new("strip").arg("-o").arg(&bare).arg(from))?;
        let content = fs::read(&bare).with_context(|| format!("reading {}", bare.display()))?;
        fs::remove_file(&bare)?;
        self.file(path, &content);
        // A static program makes ldd fail.
        let listed = shell::capture(Command::new("ldd").arg(from)).unwrap_or_default();
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            let content = fs::read(library).with_context(|| format!("reading {library}"))?;
            self.file(library.trim_start_matches('/'), &content);
        }
        Ok(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let fields = [
            self.made.len() as u32,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            path.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::Stdio;

    #[test]
    fn cpio_reads_what_we_wrote() {
        let Some(cpio) = crate::lab::sys::which("busybox") else {
            eprintln!("SKIPPED: busybox is not installed");
            return;
        };
        let mut archive = Archive::default();
        archive.file("a/b/c", b"one");
        archive.file("d", b"twoo");
        let mut child = Command::new(cpio)
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a\na/b\na/b/c\nd\n");
    }
}
