//! The node in a box: a machine with a real containerd, real containers and a disk that QEMU slows down, on which the same
//! stories are played as natively, now with all that a kernel's own probes see.
//!
//! [`image`] makes its disks, [`inside`] is its first process, [`table`] keeps what was seen.

pub mod image;
pub mod inside;
pub mod table;

use super::kernel::{self, Kernel};
use super::{Patience, initramfs, qemu};
use crate::lab::machine::SLOW;
use crate::lab::stopped_root::ROOT;
use crate::lab::stories::language::{self, FileSystem, Program, Story};
use crate::lab::{packages, tracer};
use crate::packages::fresh_folder;
use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use table::Seen;

/// A story lasts two minutes at most when nothing else runs; the longest step says nothing for half of that.
const PATIENCE: Patience = Patience { limit: Duration::from_secs(1500), silence: Duration::from_secs(420) };

/// Each kernel with the containerd of its time.
pub const DIAGONAL: [(&str, &str); 4] = [("5.10", "1.4"), ("6.1", "1.6"), ("6.12", "1.7"), ("newest", "2.1")];

/// Word for no way left out.
pub const NOTHING: &str = "none";

/// Size of the disks, MB.
const SLOW_MB: u64 = 600;
const RESULT_MB: u64 = 512;

/// What is played where.
#[derive(clap::Args, Default)]
pub struct Wanted {
    /// Play this story on a whole node with a real containerd; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub story: Vec<String>,
    /// Version of containerd (1.4, 1.6, 1.7, 2.1); may be given several times. The one of the kernel's time when left out.
    #[arg(long, value_name = "VERSION")]
    pub containerd: Vec<String>,
    /// Each kernel with the containerd of its time.
    #[arg(long, conflicts_with_all = ["containerd", "all"])]
    pub diagonal: bool,
    /// Each kernel with each containerd.
    #[arg(long, conflicts_with = "containerd")]
    pub all: bool,
    /// Which control groups the node has: v1 or v2.
    #[arg(long, value_name = "VERSION", default_value = "v2", value_parser = ["v1", "v2"])]
    pub cgroup: String,
    /// Ways of seeing that plegscope is not to use though the kernel offers them, as its own --without has them: how its
    /// fallbacks are played.
    #[arg(long, value_name = "WAYS", default_value = NOTHING)]
    pub without: String,
}

impl Wanted {
    /// Whether a node is asked for, not the tests of the kernel half.
    pub fn is_node(&self) -> bool {
        !self.story.is_empty() || !self.containerd.is_empty() || self.diagonal || self.all
    }

    /// The pairs of kernel and containerd.
    fn pairs(&self, kernels: &[String]) -> Vec<(String, String)> {
        let wanted = |line: &str| kernels.is_empty() || kernels.iter().any(|kernel| kernel == line);
        let mut pairs = Vec::new();
        for (line, own) in DIAGONAL.into_iter().filter(|(line, _)| wanted(line)) {
            let versions: Vec<&str> = match (self.all, self.containerd.is_empty()) {
                (true, _) => DIAGONAL.iter().map(|(_, version)| *version).collect(),
                (false, true) => vec![own],
                (false, false) => self.containerd.iter().map(String::as_str).collect(),
            };
            pairs.extend(versions.into_iter().map(|version| (line.to_owned(), version.to_owned())));
        }
        pairs
    }
}

/// What all machines have in common.
struct Stock {
    root: image::Root,
    kit: PathBuf,
    folder: PathBuf,
}

/// Plays the incident on a node with that kernel and shows what plegscope says, line by line as it comes.
pub fn demo(line: &str, seconds: u64) -> Result<()> {
    packages::ensure(&super::NEEDS)?;
    let stock = Stock::gather()?;
    let kernel = kernel::fetch(line)?;
    println!("booting kernel {} with a containerd (about a minute until all runs)", kernel.version);
    let folder = fresh_folder(&stock.folder.join("demo"))?;
    let words = format!("plegscope.demo={seconds}");
    let said = stock.boot(&kernel, FileSystem::Ext4, &words, &folder, |line| {
        if let Some(line) = line.strip_prefix("  ") {
            println!("{line}");
        }
    })?;
    ensure!(said.failed.is_empty(), "not as it should be: {}", said.failed.join("; "));
    Ok(())
}

/// Plays them all; one that fails keeps no other from being played.
pub fn run(args: &Wanted, kernels: &[String], record: bool) -> Result<()> {
    let names: Vec<&str> = match args.story.is_empty() {
        true => vec!["slow-disk"],
        false => args.story.iter().map(String::as_str).collect(),
    };
    let stories: Vec<Story> = names.into_iter().map(language::load).collect::<Result<_>>()?;
    for story in &stories {
        let fits = story.program.is_none_or(Program::is_for_machines);
        ensure!(fits, "{} is played natively only: cargo xtask story {}", story.name, story.name);
    }
    let stock = Stock::gather()?;
    let mut seen = Vec::new();
    let mut failed = Vec::new();
    let mut kernel: Option<Kernel> = None;
    for (line, containerd) in args.pairs(kernels) {
        if kernel.as_ref().is_none_or(|kernel| kernel.line != line) {
            kernel = Some(kernel::fetch(&line)?);
        }
        let Some(kernel) = &kernel else { continue };
        for story in &stories {
            let title = format!("{} {line} x {containerd}", story.name);
            if !story.containerd.contains(&containerd) {
                println!("vm {title}: SKIPPED, it makes no sense with containerd {containerd}");
                continue;
            }
            let begin = Instant::now();
            let played = stock.play(kernel, &containerd, story, args);
            let took = begin.elapsed().as_secs();
            match played {
                Ok(one) => {
                    println!("vm {title} ({}): {} in {took} s", kernel.version, one.words());
                    failed.extend(one.wrong.iter().map(|wrong| format!("{title}: {wrong}")));
                    seen.push(one);
                }
                Err(error) => {
                    println!("vm {title}: FAILED in {took} s: {error:#}");
                    failed.push(format!("{title}: {error:#}"));
                }
            }
        }
    }
    if record {
        table::record(&seen)?;
    }
    if !failed.is_empty() {
        bail!("not as it should be:\n{}", failed.join("\n"));
    }
    ensure!(!seen.is_empty(), "nothing was played");
    Ok(())
}

impl Stock {
    fn gather() -> Result<Stock> {
        let folder = shell::root().join("target/vm/node");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(Stock { root: image::root()?, kit: image::kit(&folder, &tracer::binary()?)?, folder })
    }

    /// Boots a machine for one story; an error when it gave no verdict.
    fn play(&self, kernel: &Kernel, containerd: &str, story: &Story, args: &Wanted) -> Result<Seen> {
        let (cgroup, without) = (&args.cgroup, &args.without);
        // A comma would end a file's name for QEMU.
        let left_out =
            if without == NOTHING { String::new() } else { format!("-without-{without}").replace(',', "-") };
        let name = format!("{}-{containerd}-{}-{cgroup}{left_out}", kernel.line, story.name);
        let folder = fresh_folder(&self.folder.join(name))?;
        println!("vm {}: booting {} with containerd {containerd}", story.name, kernel.version);
        let words = format!(
            "plegscope.story={} plegscope.containerd={containerd} plegscope.cgroup={cgroup} plegscope.without={without}",
            story.name
        );
        let said = self.boot(kernel, story.node.file_system, &words, &folder, |line| println!("{line}"))?;
        Seen::read(&folder, kernel, containerd, story, args, said.failed)
    }

    /// Boots a machine with these words for its first process; what it hands out lies in `folder` afterwards.
    fn boot(
        &self,
        kernel: &Kernel,
        file_system: FileSystem,
        words: &str,
        folder: &Path,
        show: impl FnMut(&str),
    ) -> Result<qemu::Said> {
        let initramfs = folder.join("initramfs");
        fs::write(&initramfs, self.first_files(kernel)?)?;
        let (slow, result) = (folder.join("slow.img"), folder.join("result.tar"));
        kernel::disk(&slow, SLOW_MB, file_system.mkfs())?;
        File::create(&result)?.set_len(RESULT_MB << 20)?;
        let disk = |file, name, throw_away| qemu::Disk { file, name, rate: None, throw_away };
        let console = folder.join("console.log");
        let machine = qemu::Machine {
            image: &kernel.image,
            initramfs: &initramfs,
            disks: &[
                disk(&self.root.image, ROOT, true),
                disk(&self.kit, inside::KIT_DISK, true),
                disk(&slow, SLOW, true),
                disk(&result, inside::RESULT_DISK, false),
            ],
            words,
            console: &console,
            limit: PATIENCE.limit,
            silence: PATIENCE.silence,
        };
        let said = machine.run(show);
        let unpacked = unpack(&result, folder);
        for large in [&initramfs, &slow, &result] {
            super::remove(large);
        }
        let said = said.with_context(|| format!("console: {}", console.display()))?;
        unpacked.map(|()| said)
    }

    /// The file system that the kernel unpacks: modules, and what goes over to the root disk.
    fn first_files(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut archive = initramfs::Archive::default();
        for mount_point in ["proc", "sys", "dev", "node"] {
            archive.folder(mount_point);
        }
        archive.file("init", inside::INIT.as_bytes());
        archive.file("bin/busybox", &fs::read(&self.root.busybox).context("reading busybox")?);
        for (at, (name, content)) in kernel.modules()?.into_iter().enumerate() {
            archive.file(&format!("modules/{at:02}-{name}.ko"), &content);
        }
        Ok(archive.finish())
    }
}

fn unpack(tar: &Path, folder: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(File::open(tar).context("opening what the machine wrote")?);
    archive.unpack(folder).context("unpacking what the machine wrote")
}
