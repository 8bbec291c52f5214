//! A disk that is really slow: a file behind a loop device, with the write rate limited by the block-I/O controller.
//!
//! Nothing is simulated above it: ext4 on it holds the snapshotter's folder, dirty pages drain at the given rate, and
//! the sync at the end of an unmount takes as long as it takes. Only this loop device is affected. In a machine of
//! `cargo xtask vm` it is a disk of that machine, which QEMU slows down.

use super::cleanup::{Ledger, Leftover, cgroup_roots};
use super::{machine, sys};
use anyhow::{Context, Result, bail};
use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Size of the backing file; it is sparse and takes only what is written.
const SIZE_MB: u64 = 600;
/// How much the check of the limit writes.
const CHECK_MB: u64 = 4;

/// How often a machine is asked for another limit before its disk has the right rate.
const TRIES: u32 = 6;

/// The disk, mounted, at full speed until [`SlowDisk::slow_down`].
pub struct SlowDisk {
    /// Where it is mounted.
    pub mounted: PathBuf,
    /// Its device number, as `MAJ:MIN`.
    pub device: String,
    limited: Limited,
}

/// By whom it is slowed down.
enum Limited {
    /// By the kernel we run on.
    Kernel {
        cgroup: PathBuf,
        /// Control files of cgroup v1 in which it has a limit.
        limits: RefCell<Vec<PathBuf>>,
    },
    /// By the machine around us; whether writes and reads are.
    Machine(Cell<(bool, bool)>),
}

/// How this machine limits writes.
enum Limit {
    /// cgroup v1: writeback is issued by kernel threads, which belong to the root group.
    V1(PathBuf),
    /// cgroup v2: writeback belongs to the group that dirtied the pages, or its nearest living ancestor.
    V2(PathBuf),
}

impl SlowDisk {
    /// Makes the disk from a file in `scratch` (which must not be on tmpfs) and mounts it at `mounted`.
    /// `cgroup` is the group, relative to the hierarchy's root, in which all containers of the lab live.
    pub fn create(
        ledger: &Ledger,
        scratch: &Path,
        mounted: &Path,
        cgroup: &Path,
        file_system: &str,
    ) -> Result<SlowDisk> {
        if machine::is_around() {
            machine::free_at_the_end(ledger, machine::SLOW)?;
            let device = machine::mount(machine::SLOW, file_system, mounted)?;
            return Ok(SlowDisk {
                mounted: mounted.to_owned(),
                device,
                limited: Limited::Machine(Cell::default()),
            });
        }
        let image = scratch.join("disk.img");
        let file = fs::File::create(&image).with_context(|| format!("creating {}", image.display()))?;
        file.set_len(SIZE_MB << 20).with_context(|| format!("growing {}", image.display()))?;
        drop(file);
        fs::create_dir_all(mounted).with_context(|| format!("creating {}", mounted.display()))?;
        ledger.record(Leftover::Loop { image: image.clone() })?;
        let image = image.to_string_lossy().into_owned();
        // Direct I/O: else the limit is met by the page cache of the backing file, and a sync is fast again.
        let node = sys::run("losetup", &["--direct-io=on", "--show", "-f", &image])?.trim().to_owned();
        match file_system {
            // All metadata is written now: lazy initialisation would compete with the lab for the slow disk later.
            "ext4" => {
                let now = "lazy_itable_init=0,lazy_journal_init=0";
                sys::run("mkfs.ext4", &["-q", "-m", "0", "-E", now, &node])?;
            }
            other => drop(sys::run(&format!("mkfs.{other}"), &["-q", &node])?),
        }
        sys::run("mount", &["-t", file_system, &node, &mounted.to_string_lossy()])?;
        let device = fs::read_to_string(format!("/sys/class/block/{}/dev", node.trim_start_matches("/dev/")))
            .with_context(|| format!("reading the device number of {node}"))?
            .trim()
            .to_owned();
        Ok(SlowDisk {
            mounted: mounted.to_owned(),
            device,
            limited: Limited::Kernel { cgroup: cgroup.to_owned(), limits: RefCell::default() },
        })
    }

    /// Limits writes to `rate` bytes per second and measures that the limit holds. What is dirty is written out before,
    /// so the limit meets only what comes later. Returns the measured rate in bytes per second.
    pub fn slow_down(&self, ledger: &Ledger, rate: u64) -> Result<u64> {
        sys::run("sync", &["-f", &self.mounted.to_string_lossy()])?;
        let measured = match &self.limited {
            Limited::Machine(limited) => {
                limited.set((true, false));
                self.ask_for(rate)?
            }
            Limited::Kernel { cgroup, limits } => {
                let group = self.limit_writes(ledger, rate, cgroup, limits)?;
                self.measure(group.as_deref())?
            }
        };
        if measured > rate * 2 {
            bail!(
                "the limit of {rate} bytes/s does not hold on this machine: {CHECK_MB} MB were synced at {measured} bytes/s. \
                 The slow disk cannot be played here; `--block strace` plays the published reproduction instead"
            );
        }
        Ok(measured)
    }

    /// Has QEMU limit writes until they are as slow by our clock, which stands still while the host does other things.
    fn ask_for(&self, rate: u64) -> Result<u64> {
        let mut asked = rate;
        let mut measured = 0;
        for _ in 0..TRIES {
            machine::throttle(machine::SLOW, asked, 0)?;
            measured = self.measure(None)?;
            if measured <= rate + rate / 4 {
                break;
            }
            asked = (asked as f64 * rate as f64 / measured as f64) as u64;
        }
        Ok(measured)
    }

    /// The same by the kernel; the group that a process must join to meet the limit, where it must.
    fn limit_writes(
        &self,
        ledger: &Ledger,
        rate: u64,
        cgroup: &Path,
        limits: &RefCell<Vec<PathBuf>>,
    ) -> Result<Option<PathBuf>> {
        match limit_files()? {
            Limit::V1(file) => {
                self.set(ledger, &file, &rate.to_string(), "0")?;
                limits.borrow_mut().push(file);
                Ok(None)
            }
            Limit::V2(root) => {
                let group = root.join(cgroup);
                fs::write(root.join("cgroup.subtree_control"), "+io +memory").with_context(|| {
                    format!(
                        "switching on the io and memory controllers in {}; `--block strace` works without",
                        root.display()
                    )
                })?;
                fs::create_dir_all(&group).with_context(|| format!("creating {}", group.display()))?;
                self.set(ledger, &group.join("io.max"), &format!("wbps={rate}"), "wbps=max")?;
                Ok(Some(group))
            }
        }
    }

    /// Limits reads to `rate` bytes per second as well, and measures that. Only where a group's limit meets this very
    /// process (cgroup v1); elsewhere it says why not.
    pub fn slow_reads(&self, ledger: &Ledger, rate: u64) -> Result<()> {
        let limits = match &self.limited {
            Limited::Machine(limited) => {
                limited.set((true, true));
                return machine::throttle(machine::SLOW, rate, rate);
            }
            Limited::Kernel { limits, .. } => limits,
        };
        let Limit::V1(writes) = limit_files()? else {
            bail!("reads can be limited only with cgroup v1 here: the root group of cgroup v2 has no limits");
        };
        let root = writes.parent().context("the root of the hierarchy")?;
        let group = fs::read_to_string("/proc/self/cgroup").context("reading our cgroups")?;
        let own = group
            .lines()
            .find_map(|line| line.split_once(":blkio:").map(|(_, path)| path.trim_start_matches('/')));
        let file = root.join(own.unwrap_or_default()).join("blkio.throttle.read_bps_device");
        let check = self.mounted.join("rate-check");
        let count = (rate * 2).div_ceil(64 << 10).max(1);
        let make = format!("dd if=/dev/zero of={} bs=64k count={count} conv=fsync", check.display());
        sys::run("sh", &["-c", &make])?;
        self.set(ledger, &file, &rate.to_string(), "0")?;
        let begin = Instant::now();
        sys::run("sh", &["-c", &format!("exec dd if={} of=/dev/null bs=64k iflag=direct", check.display())])?;
        let took = begin.elapsed();
        fs::remove_file(&check).with_context(|| format!("removing {}", check.display()))?;
        anyhow::ensure!(
            took >= Duration::from_secs(1),
            "the limit of {rate} bytes/s does not hold for reads: {count} x 64 kB took {took:?}"
        );
        limits.borrow_mut().push(file);
        Ok(())
    }

    /// Lets next to nothing through any more in the directions that were slowed down (a byte per second).
    pub fn stop(&self) -> Result<()> {
        self.let_through(1)
    }

    /// Lifts all limits again.
    pub fn speed_up(&self) -> Result<()> {
        self.let_through(0)
    }

    fn let_through(&self, rate: u64) -> Result<()> {
        let limits = match &self.limited {
            Limited::Machine(limited) => {
                let (writes, reads) = limited.get();
                return machine::throttle(machine::SLOW, rate * u64::from(writes), rate * u64::from(reads));
            }
            Limited::Kernel { limits, .. } => limits,
        };
        for file in limits.borrow().iter() {
            let line = format!("{} {rate}", self.device);
            fs::write(file, &line).with_context(|| format!("writing `{line}` to {}", file.display()))?;
        }
        Ok(())
    }

    fn set(&self, ledger: &Ledger, file: &Path, on: &str, off: &str) -> Result<()> {
        let line = |value: &str| format!("{} {value}", self.device);
        ledger.record(Leftover::Setting { file: file.to_owned(), line: line(off) })?;
        fs::write(file, line(on)).with_context(|| format!("writing `{}` to {}", line(on), file.display()))
    }

    /// Writes a file, syncs it, and says how fast that went.
    fn measure(&self, group: Option<&Path>) -> Result<u64> {
        let file = self.mounted.join("rate-check");
        let join =
            group.map(|group| format!("echo $$ > {}/cgroup.procs && ", group.display())).unwrap_or_default();
        let write =
            format!("{join}exec dd if=/dev/zero of={} bs=1M count={CHECK_MB} conv=fsync", file.display());
        let begin = Instant::now();
        sys::run("sh", &["-c", &write])?;
        let took = begin.elapsed().max(Duration::from_millis(1));
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        Ok(((CHECK_MB << 20) as f64 / took.as_secs_f64()) as u64)
    }
}

fn limit_files() -> Result<Limit> {
    let roots = cgroup_roots();
    for root in &roots {
        let file = root.join("blkio.throttle.write_bps_device");
        if file.exists() {
            return Ok(Limit::V1(file));
        }
    }
    for root in &roots {
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|name| name == "io") {
            return Ok(Limit::V2(root.clone()));
        }
    }
    bail!(
        "this machine offers no way to limit writes: no blkio.throttle.write_bps_device (cgroup v1) and no io controller \
         (cgroup v2) in any of {roots:?}. `--block strace` plays the published reproduction instead"
    )
}
