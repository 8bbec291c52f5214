//! `cargo xtask captures`: makes the captures that are checked in below `tracer/captures/`, from stories on a real containerd.
//!
//! Tests replay them, and whoever has no root looks at them first. A story that plegscope tells wrongly gives no capture.

use crate::lab::{stories, sys, tracer};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The stories, and how each is captured.
const STORIES: [(&str, &[&str]); 4] = [
    ("slow-disk", &["--until-incident", "--before", "5s"]),
    ("two-causes", &["--until-incident", "--before", "5s"]),
    ("late-exit", &["--until-incident", "--before", "5s"]),
    ("healthy", &[]),
];
/// A capture is no larger, so that the repository stays small.
const MOST_BYTES: u64 = 200_000;
/// Bytes of lines in a frame.
const FRAME: usize = 512 << 10;
/// What the node is called in it: the name of the machine it is made on is nobody's business.
const HOST: &str = "lab-node";
/// Nor is the id of its boot.
const BOOT: &str = "00000000-0000-4000-8000-000000000000";
/// Where control groups lie that are not the lab's.
const OTHERS: &str = "/machine.slice/";
/// After the story the capture ends within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Make the captures that are checked in.
#[derive(clap::Args)]
pub struct Args {
    /// Only these
    names: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    ensure!(sys::is_root(), "stories need root");
    let binary = tracer::binary()?;
    let known = |name: &String| STORIES.iter().any(|(story, _)| story == name);
    if let Some(unknown) = args.names.iter().find(|name| !known(name)) {
        bail!("{unknown}: no capture of that name; there are {}", STORIES.map(|(name, _)| name).join(", "));
    }
    for (name, how) in STORIES {
        if args.names.is_empty() || args.names.iter().any(|wanted| wanted == name) {
            let file = make(&binary, name, how)?;
            let bytes = fs::metadata(&file)?.len();
            println!("{}: {bytes} bytes", file.display());
            ensure!(bytes <= MOST_BYTES, "{name}: {bytes} bytes are too many; at most {MOST_BYTES}");
        }
    }
    Ok(())
}

fn make(binary: &Path, name: &str, how: &[&str]) -> Result<PathBuf> {
    // The disk of the source tree may be the one that a containerd of this machine is on.
    let made = Path::new("/dev/shm").join(format!("plegscope-{name}-{}.pleg", std::process::id()));
    let mut command = Command::new(binary);
    command.arg("capture").arg("-o").arg(&made).args(how).stdout(Stdio::null());
    // SAFETY: both are system calls, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let done = libc::unshare(libc::CLONE_NEWUTS) == 0
                && libc::sethostname(HOST.as_ptr().cast(), HOST.len()) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let started = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
    let mut capture = Capture(started);
    let story = stories::Args::of(name);
    let told = stories::run(story).and_then(|()| capture.end());
    let to = tracer::workspace().join("tracer/captures").join(format!("{name}.pleg"));
    let copied = told.and_then(|()| hide_machine(&made)).and_then(|()| {
        fs::create_dir_all(to.parent().context("the file has a folder")?)?;
        fs::copy(&made, &to)
            .map(drop)
            .with_context(|| format!("copying {} to {}", made.display(), to.display()))
    });
    let _ = fs::remove_file(&made);
    copied.map(|()| to)
}

/// The control groups that this command itself runs in are the machine's, and theirs are named in a capture where they have
/// dirty memory: they get a name that is nobody's. Of the kernel its version stays.
fn hide_machine(file: &Path) -> Result<()> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let groups = read("/proc/self/cgroup")?;
    let (boot, kernel) = (read("/proc/sys/kernel/random/boot_id")?, read("/proc/sys/kernel/osrelease")?);
    let mut own: Vec<&str> =
        groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)?.split('/').nth(1)).collect();
    own.retain(|name| !name.is_empty() && *name != "system.slice" && *name != "user.slice");
    let packed = fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let mut text = std::io::read_to_string(zstd::stream::read::Decoder::new(packed)?)?;
    for name in own {
        text = text.replace(&format!("/{name}/"), OTHERS);
    }
    let (boot, kernel) = (boot.trim(), kernel.trim());
    let version = kernel.split('-').next().unwrap_or(kernel);
    text = text.replace(boot, BOOT).replace(kernel, version);
    let mut others: Vec<String> = text
        .split(OTHERS)
        .skip(1)
        .filter_map(|rest| rest.split(['"', '/', ' ', ',']).next())
        .map(str::to_owned)
        .collect();
    others.sort();
    others.dedup();
    for (n, other) in others.iter().enumerate() {
        text = text.replace(&format!("{OTHERS}{other}"), &format!("{OTHERS}other-{n}"));
    }
    // As plegscope writes it: whole lines in each frame, with a checksum.
    let mut packer = zstd::bulk::Compressor::new(3)?;
    packer.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
    let (mut frame, mut packed) = (String::new(), Vec::new());
    for line in text.split_inclusive('\n') {
        frame.push_str(line);
        if frame.len() >= FRAME {
            packed.extend(packer.compress(frame.as_bytes())?);
            frame.clear();
        }
    }
    if !frame.is_empty() {
        packed.extend(packer.compress(frame.as_bytes())?);
    }
    fs::write(file, packed).with_context(|| format!("writing {}", file.display()))
}

/// A plegscope that captures; killed when it is left behind.
struct Capture(Child);

impl Capture {
    /// Waits until it ends by itself, or ends it.
    fn end(&mut self) -> Result<()> {
        let begin = Instant::now();
        // What waits for the end of an incident needs a moment longer than the story.
        let asked = Duration::from_secs(10);
        let mut interrupted = false;
        loop {
            if let Some(status) = self.0.try_wait().context("asking for plegscope's state")? {
                ensure!(status.success(), "plegscope capture ended with {status}");
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "plegscope capture does not end");
            if begin.elapsed() > asked && !interrupted {
                interrupted = true;
                sys::signal(self.0.id(), libc::SIGINT);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
