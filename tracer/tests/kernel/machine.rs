//! The machine: what its first process has to do, its disks, and the few system calls that the tests need.

use anyhow::{Context, Result, bail, ensure};
use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
};
use tracer::event::Device;

/// Where the two slow disks are mounted: `ext4` and `xfs`.
pub const DISKS: [(&str, &str); 2] = [("/dev/vda", "ext4"), ("/dev/vdb", "xfs")];

/// Mounts what every program expects, loads the modules; returns the port on which the tests speak.
pub fn start() -> Result<File> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount(kind, at, kind, 0, "")?;
    }
    let port = OpenOptions::new().write(true).open("/dev/ttyS1").context("opening the serial port")?;
    // A panic of this process is a panic of the kernel, and its words go to the console.
    for (kind, at) in [
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("securityfs", "/sys/kernel/security"),
    ] {
        if let Err(error) = mount(kind, at, kind, 0, "") {
            eprintln!("{error:#}");
        }
    }
    let mut modules: Vec<_> = fs::read_dir("/modules").map(|all| all.flatten().collect()).unwrap_or_default();
    modules.sort_by_key(std::fs::DirEntry::file_name);
    for module in modules {
        let file = File::open(module.path())?;
        // SAFETY: a valid descriptor and an empty string.
        let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        check(result as i32, &format!("loading {}", module.path().display()))?;
    }
    for (disk, kind) in DISKS {
        let at = format!("/mnt/{kind}");
        fs::create_dir_all(&at)?;
        // A module that was just loaded may still be looking for its disks.
        let mut tries = 0;
        while let Err(error) = mount(disk, &at, kind, 0, "") {
            tries += 1;
            ensure!(tries < 100, "{error:#}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
    Ok(port)
}

/// Switches the machine off.
pub fn off() -> ! {
    // SAFETY: takes flags only. Nothing on the disks is wanted afterwards.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    unreachable!()
}

/// The value of a word on the kernel's command line.
pub fn word(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// Major and minor version of the running kernel.
pub fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn check(result: i32, what: &str) -> Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()).with_context(|| what.to_owned()) } else { Ok(()) }
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// mount(2).
pub fn mount(source: &str, at: &str, kind: &str, flags: libc::c_ulong, data: &str) -> Result<()> {
    let (s, a, k, d) = (c(source), c(at), c(kind), c(data));
    // SAFETY: four strings that live through the call.
    let result = unsafe { libc::mount(s.as_ptr(), a.as_ptr(), k.as_ptr(), flags, d.as_ptr().cast()) };
    check(result, &format!("mounting {kind} at {at} ({data})"))
}

/// umount2(2); 0 or the errno.
pub fn umount(at: &str, flags: i32) -> i32 {
    let path = c(at);
    // SAFETY: a string that lives through the call.
    if unsafe { libc::umount2(path.as_ptr(), flags) } == 0 {
        0
    } else {
        std::io::Error::last_os_error().raw_os_error().unwrap()
    }
}

/// A mount namespace of its own, from which nothing comes back.
pub fn unshare_mounts() -> Result<()> {
    // SAFETY: takes flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }, "unshare")?;
    mount("none", "/", "none", libc::MS_REC | libc::MS_PRIVATE, "")
}

/// kill(2).
pub fn kill(pid: u32, signal: i32) -> Result<()> {
    // SAFETY: takes numbers only; the process is a child that was not waited for, or a child of one.
    check(unsafe { libc::kill(pid as i32, signal) }, &format!("sending {signal} to {pid}"))
}

/// The only child of a process.
pub fn child_of(parent: u32) -> Result<u32> {
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which ends at the last parenthesis: state, parent.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>());
        fields.is_some_and(|fields| fields.get(1) == Some(&parent.to_string().as_str()))
    };
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children: Vec<u32> = pids.filter(is_child).collect();
    ensure!(children.len() == 1, "the children of {parent} are {children:?}");
    Ok(children[0])
}

/// Whether the thread of this name sleeps because it wants to.
pub fn sleeps_by_itself(pid: u32, name: &str) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            return Ok(read("stack").contains("nanosleep"));
        }
    }
    bail!("{pid} has no thread {name}")
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid struct to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Thread id of the caller.
pub fn tid() -> u32 {
    // SAFETY: takes nothing.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// The device that a path lies on, as `stat` tells it.
pub fn device(path: &str) -> Device {
    let number = fs::metadata(path).unwrap().dev();
    Device { major: libc::major(number), minor: libc::minor(number) }
}

/// An overlay whose upper folder lies on a disk.
pub struct Overlay {
    /// Where it is mounted.
    pub at: String,
    /// Its own device number.
    pub device: Device,
    /// Where its folders lie.
    below: String,
}

impl Overlay {
    /// Mounts one; `name` must not have been used on this disk.
    pub fn new(disk: &str, name: &str, options: &str) -> Result<Overlay> {
        let below = format!("/mnt/{disk}/{name}");
        for part in ["lower", "upper", "work"] {
            fs::create_dir_all(format!("{below}/{part}"))?;
        }
        let at = format!("/run/overlay/{disk}/{name}");
        fs::create_dir_all(&at)?;
        // What was made just now shall not count as dirty.
        sync(&below);
        let data = format!("lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work{options}");
        mount("overlay", &at, "overlay", 0, &data)?;
        Ok(Overlay { device: device(&at), at, below })
    }

    /// Writes so many bytes, which stay in memory.
    pub fn dirty(&self, bytes: usize) -> Result<()> {
        dirty(&self.at, bytes)
    }

    /// Gives its room on the disk back, once it is unmounted.
    pub fn delete(self) -> Result<()> {
        fs::remove_dir_all(&self.below).with_context(|| format!("deleting {}", self.below))
    }
}

/// Writes a file of so many bytes into a folder, and leaves it in memory.
pub fn dirty(folder: &str, bytes: usize) -> Result<()> {
    let mut file = File::create(format!("{folder}/dirty"))?;
    let block = vec![7u8; 1 << 16];
    for _ in 0..bytes / block.len() {
        file.write_all(&block)?;
    }
    Ok(())
}

/// syncfs(2) on the file system of a path.
pub fn sync(path: &str) {
    let file = File::open(path).unwrap();
    // SAFETY: a valid descriptor.
    unsafe { libc::syncfs(file.as_raw_fd()) };
}

/// `bpf(2)` commands that list all of a kind, and what they list.
const PROGRAMS: (i64, &str) = (11, "BPF program");
const MAPS: (i64, &str) = (12, "BPF map");
const LINKS: (i64, &str) = (31, "BPF link");

/// How many there are of a kind.
fn count((command, what): (i64, &str)) -> Result<usize> {
    #[repr(C)]
    struct Attributes {
        start: u32,
        next: u32,
        flags: u32,
    }
    let mut count = 0;
    let mut attributes = Attributes { start: 0, next: 0, flags: 0 };
    loop {
        // SAFETY: a prefix of the kernel's `bpf_attr` of the size that is told.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<Attributes>()) };
        if result != 0 {
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::ENOENT) => return Ok(count),
                error => bail!("listing each {what}: {error:?}"),
            }
        }
        count += 1;
        attributes.start = attributes.next;
    }
}

/// Waits until something is true.
pub fn until(what: &str, seconds: u64, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = now() + seconds * 1_000_000_000;
    while !is()? {
        ensure!(now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

/// Where the kernel lists what is probed: kprobes, those made through tracefs, and functions that ftrace patches for
/// anybody, trampolines among them.
const LISTS: [&str; 4] = [
    "/sys/kernel/debug/kprobes/list",
    "/sys/kernel/tracing/kprobe_events",
    "/sys/kernel/tracing/uprobe_events",
    "/sys/kernel/tracing/enabled_functions",
];

/// The lines of a list; none where there is no such list, or where lockdown has closed it.
fn lines(list: &str) -> Result<Vec<String>> {
    match fs::read_to_string(list) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPERM)) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| list.to_owned()),
    }
}

/// What is in those lists, and how many BPF programs and links there are.
pub fn probes() -> Result<(Vec<String>, usize)> {
    let listed = LISTS.into_iter().map(lines).collect::<Result<Vec<_>>>()?.concat();
    Ok((listed, count(PROGRAMS)? + count(LINKS)?))
}

/// Waits until no probe of anybody is left in the kernel.
pub fn no_probe_is_left() -> Result<()> {
    for kind in [PROGRAMS, LINKS, MAPS] {
        until(&format!("no {} is left", kind.1), 60, || Ok(count(kind)? == 0))?;
    }
    for list in LISTS {
        until(&format!("{list} is empty"), 60, || Ok(lines(list)?.is_empty()))
            .with_context(|| format!("{:?}", lines(list)))?;
    }
    Ok(())
}

/// Functions of the kernel in which threads of these processes are at this moment.
pub fn functions(pids: &[u32]) -> Vec<String> {
    let tasks =
        pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    let read = |task: &fs::DirEntry, file: &str| fs::read_to_string(task.path().join(file)).ok();
    // That of one that runs is an old one, and kernels with rethooks warn when it is read.
    let sleeps = |task: &fs::DirEntry| read(task, "stat").is_some_and(|stat| !stat.contains(") R "));
    let stacks = tasks.filter(sleeps).filter_map(|task| read(&task, "stack"));
    let function = |line: &str| Some(line.split_once("] ")?.1.split_once('+')?.0.to_owned());
    stacks.flat_map(|stack| stack.lines().filter_map(function).collect::<Vec<_>>()).collect()
}

/// The calling thread gets a root folder of its own; the way back is the folder that is returned.
pub fn enter_root(at: &str) -> Result<File> {
    // SAFETY: takes flags only.
    check(unsafe { libc::unshare(libc::CLONE_FS) }, "unshare")?;
    let back = File::open("/")?;
    std::os::unix::fs::chroot(at)?;
    Ok(back)
}

/// Undoes that.
pub fn leave_root(back: &File) -> Result<()> {
    // SAFETY: a valid descriptor.
    check(unsafe { libc::fchdir(back.as_raw_fd()) }, "fchdir")?;
    Ok(std::os::unix::fs::chroot(".")?)
}
