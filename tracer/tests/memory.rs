//! plegscope's own pages cannot be taken from it: what it is made of is in memory and locked in both of its processes, as
//! the kernel tells it.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use std::fs;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A mapping of a file in `/proc/PID/smaps`.
#[derive(Debug, Default)]
struct Part {
    header: String,
    size: u64,
    resident: u64,
    locked: bool,
}

impl Part {
    fn readable_file(&self) -> bool {
        let mut words = self.header.split_ascii_whitespace();
        let readable = words.nth(1).is_some_and(|rights| rights.starts_with('r'));
        readable && words.nth(3).is_some_and(|path| path.starts_with('/'))
    }
}

fn parts(pid: u32) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default().lines() {
        let mut words = line.split_ascii_whitespace();
        let (key, kb) = (words.next().unwrap(), words.next().and_then(|n| n.parse().ok()));
        if !key.ends_with(':') {
            parts.push(Part { header: line.to_owned(), ..Part::default() });
        }
        let Some(part) = parts.last_mut() else { continue };
        match (key, kb) {
            ("Size:", Some(kb)) => part.size = kb,
            ("Rss:", Some(kb)) => part.resident = kb,
            ("VmFlags:", _) => part.locked = line.split_ascii_whitespace().any(|flag| flag == "lo"),
            _ => {}
        }
    }
    parts
}

/// Pages of the program's file that are not in memory, by the page cache's own account.
fn missing_pages(path: &str) -> usize {
    let file = fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    let mut pages = vec![0u8; len.div_ceil(4096)];
    // SAFETY: a mapping of the whole file that nobody touches, with a byte for each of its pages; unmapped below.
    unsafe {
        let none = std::ptr::null_mut();
        let start = libc::mmap(none, len, libc::PROT_NONE, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::mincore(start, len, pages.as_mut_ptr()), 0);
        libc::munmap(start, len);
    }
    pages.iter().filter(|page| *page & 1 == 0).count()
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn all_that_plegscope_is_made_of_is_in_memory_and_locked() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tried: only root may lock that much memory");
        return;
    }
    let program = env!("CARGO_BIN_EXE_plegscope");
    let mut command = Command::new(program);
    command.args(["live", "--plain", "--probes", "none"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = Running(child);
    let pid = running.0.id();
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let mut processes = vec![pid];
        processes.extend(children.split_ascii_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        let all: Vec<Part> =
            processes.iter().flat_map(|pid| parts(*pid)).filter(Part::readable_file).collect();
        let text = |part: &&Part| part.header.contains("r-xp") && part.header.ends_with("/plegscope");
        let whole = |part: &Part| part.locked && part.resident == part.size;
        // It takes a moment until the child is there and both have begun to run.
        if processes.len() == 2 && all.iter().filter(text).count() == 2 && all.iter().all(whole) {
            break;
        }
        assert!(
            Instant::now() < end,
            "{processes:?}: {:#?}",
            all.iter().filter(|p| !whole(p)).collect::<Vec<_>>()
        );
        std::thread::yield_now();
    }
    // What is mapped of the file is there; what is not (debug information) need not be.
    let mapped: u64 = parts(pid)
        .iter()
        .filter(|p| p.readable_file() && p.header.ends_with("/plegscope"))
        .map(|p| p.size)
        .sum();
    let file = fs::metadata(program).unwrap().len();
    let unmapped = (file / 1024).saturating_sub(mapped) as usize / 4 + 16;
    assert!(missing_pages(program) <= unmapped);
}
