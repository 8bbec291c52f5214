//! Inside the machine: its first process. It makes a node of it, plays one story with one containerd as `cargo xtask story`
//! does on any machine, and hands back what was seen.
//!
//! What it says on the second serial port: lines of the story with two blanks before, `ok …` or `FAILED …`, `VERDICT …`.

use super::image::{CACHE, KIT};
use crate::lab::stories::language;
use crate::lab::{machine, sys, tracer};
use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Be the first process of a machine of `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Args {}

/// Where a story keeps what was seen.
const RESULT: &str = "/run/result";
/// Name of the disk on which that goes out, as a tar.
pub const RESULT_DISK: &str = "result";
/// Name of the kit's disk.
pub const KIT_DISK: &str = "kit";
/// Lines of standard error that a failure is told with.
const SAID: usize = 30;

/// The controllers that cgroup v1 mounts apart.
const CONTROLLERS: [&str; 9] =
    ["cpu,cpuacct", "cpuset", "memory", "blkio", "devices", "freezer", "pids", "perf_event", "hugetlb"];

/// The first program of the machine: it loads the modules and goes over to the root disk.
pub const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
for module in /modules/*; do $b insmod $module; done
mount_disk() {
  for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    for block in /sys/block/vd*; do
      if [ "$($b cat $block/serial)" = $1 ]; then
        $b mount -t ext4 -o $3 /dev/${block##*/} $2 && return
      fi
    done
    $b sleep 0.1
  done
  echo "FAILED boot: there is no disk $1" > /dev/ttyS1
  $b poweroff -f
}
mount_disk root /node rw
mount_disk kit /node/kit ro
$b mount --move /dev /node/dev
$b mount --move /proc /node/proc
$b mount --move /sys /node/sys
exec $b switch_root /node /kit/xtask boxed
"#;

/// Runs the command; comes back only when it must not be run.
pub fn run(_: &Args) -> Result<()> {
    ensure!(std::process::id() == 1, "`boxed` is for the first process of a machine of `cargo xtask vm`");
    let mut failed = 0;
    let line = match play() {
        Ok(line) => line,
        Err(error) => {
            failed = 1;
            format!("FAILED {error:#}").replace('\n', " | ")
        }
    };
    say(&line)?;
    say(&format!("VERDICT {} {failed}", 1 - failed))?;
    off()
}

fn off() -> ! {
    // SAFETY: takes flags only. Nothing on the disks is wanted afterwards.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    std::process::abort()
}

fn say(line: &str) -> Result<()> {
    let mut port = File::options().write(true).open(machine::PORT).context("opening the serial port")?;
    port.write_all(format!("{line}\n").as_bytes()).context("writing to the serial port")
}

/// A word of the kernel's command line.
fn word(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// Makes the node, plays the story; the line that says that all was right.
fn play() -> Result<String> {
    sys::run("stty", &["-F", machine::PORT, "raw", "-echo"])?;
    prepare(word("plegscope.cgroup").as_deref() == Some("v1"))?;
    fs::create_dir_all(RESULT).with_context(|| format!("creating {RESULT}"))?;
    let mut command = Command::new(format!("{KIT}/xtask"));
    let title = match (word("plegscope.story"), word("plegscope.containerd"), word("plegscope.demo")) {
        (Some(story), Some(containerd), _) => {
            command.args(["story", &story, "--containerd", &containerd, "--whole-chain", "--keep", RESULT]);
            if let Some(ways) = word("plegscope.without").filter(|ways| ways != super::NOTHING) {
                command.args(["--without", &ways]);
            }
            format!("{story} {containerd}")
        }
        (_, _, Some(seconds)) => {
            command.args(["demo", "--seconds", &seconds, "--update-every", "5"]);
            "demo".to_owned()
        }
        _ => bail!("neither a story nor the demo was asked for"),
    };
    let begin = sys::monotonic();
    let played = run_to_its_end(&mut command);
    let kept = hand_out();
    let said = played?;
    if !said.is_empty() {
        bail!("{title}: {said}");
    }
    kept?;
    Ok(format!("ok {title} {}", sys::seconds(sys::monotonic() - begin)))
}

/// What a system does before its first service starts.
fn prepare(first_version_of_cgroups: bool) -> Result<()> {
    let mount = |kind: &str, at: &str, options: &str| {
        fs::create_dir_all(at).with_context(|| format!("creating {at}"))?;
        sys::run("mount", &["-t", kind, "-o", options, kind, at]).map(|_| ())
    };
    mount("tmpfs", "/run", "mode=755")?;
    mount("tmpfs", "/tmp", "mode=1777")?;
    mount("devpts", "/dev/pts", "mode=620")?;
    mount("tmpfs", "/dev/shm", "mode=1777")?;
    for (kind, at) in [
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("securityfs", "/sys/kernel/security"),
    ] {
        mount(kind, at, "rw")?;
    }
    // A file system in memory has none of these, and runc wants them.
    for (link, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        std::os::unix::fs::symlink(to, Path::new("/dev").join(link))
            .with_context(|| format!("linking /dev/{link}"))?;
    }
    if first_version_of_cgroups {
        mount("tmpfs", "/sys/fs/cgroup", "mode=755")?;
        let there = fs::read_to_string("/proc/cgroups").context("reading /proc/cgroups")?;
        for group in CONTROLLERS {
            let first = group.split(',').next().unwrap_or(group);
            if there.lines().any(|line| line.split_whitespace().next() == Some(first)) {
                mount("cgroup", &format!("/sys/fs/cgroup/{group}"), group)?;
            }
        }
    } else {
        mount("cgroup2", "/sys/fs/cgroup", "rw")?;
        // As systemd does; a kubelet wants them in its own group.
        let there =
            fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").context("reading the controllers")?;
        let all: String = there.split_whitespace().map(|one| format!("+{one} ")).collect();
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", all).context("switching the controllers on")?;
    }
    sys::run("mount", &["--make-rshared", "/"])?;
    sys::run("ifconfig", &["lo", "127.0.0.1", "up"])?;
    sys::run("hostname", &["box"]).map(|_| ())
}

/// Runs it, passes on what it says, and takes leave of all that dies meanwhile. What it said as errors when it did not end
/// well.
fn run_to_its_end(command: &mut Command) -> Result<String> {
    let mut child = command
        .env(machine::VARIABLE, "1")
        .env(language::VARIABLE, format!("{KIT}/stories"))
        .env(tracer::OVERRIDE, format!("{KIT}/plegscope"))
        .env("PLEGSCOPE_CACHE", CACHE)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the story")?;
    let said = Arc::new(Mutex::new(VecDeque::new()));
    let relays = [
        child.stdout.take().map(|stream| relay(stream, None)),
        child.stderr.take().map(|stream| relay(stream, Some(said.clone()))),
    ];
    let status = wait_for(&child)?;
    for relay in relays.into_iter().flatten() {
        // Who outlived it may hold its output.
        sys::wait_until(std::time::Duration::from_secs(2), || relay.is_finished());
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    match status {
        0 => Ok(String::new()),
        status => Ok(format!(
            "ended with status {status:#x} | {}",
            said.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
        )),
    }
}

/// Waits for a child; others, whose parents are gone, are ours too. Its status as wait(2) has it.
fn wait_for(child: &Child) -> Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: a valid integer to write to.
        let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
        if pid < 0 {
            return Err(std::io::Error::last_os_error()).context("waiting for the story");
        }
        if pid as u32 == child.id() {
            return Ok(status);
        }
    }
}

fn relay(stream: impl Read + Send + 'static, keep: Option<Arc<Mutex<VecDeque<String>>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let _ = say(&format!("  {line}")); // nobody else could be told
            if let Some(keep) = &keep {
                let mut keep = keep.lock().unwrap_or_else(PoisonError::into_inner);
                keep.push_back(line);
                if keep.len() > SAID {
                    keep.pop_front();
                }
            }
        }
    })
}

/// Puts what the story has kept on the disk for it.
fn hand_out() -> Result<()> {
    let disk = machine::disk(RESULT_DISK)?;
    let file = File::options().write(true).open(&disk).context("opening the result disk")?;
    let mut tar = tar::Builder::new(file);
    tar.append_dir_all(".", RESULT).context("writing to the result disk")?;
    let file = tar.into_inner().context("writing to the result disk")?;
    file.sync_all().context("writing to the result disk")
}
