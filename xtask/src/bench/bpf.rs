//! The smallest uprobe there can be: a BPF program of two instructions, attached by hand. It is the floor under every
//! tool's cost per hit, at whatever site the tool chooses. And the kernel's own list of where uprobes are.

use anyhow::{Context, Result, ensure};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const BPF_TASK_FD_QUERY: libc::c_int = 20;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
/// `enum bpf_link_type`.
const BPF_LINK_TYPE_PERF_EVENT: u32 = 7;
/// `BPF_LINK_TYPE_UPROBE_MULTI`.
const BPF_LINK_TYPE_UPROBE_MULTI: u32 = 12;
/// `enum bpf_perf_event_type`.
const BPF_PERF_EVENT_UPROBE: u32 = 1;
const BPF_PERF_EVENT_URETPROBE: u32 = 2;
/// `enum bpf_task_fd_type`.
const BPF_FD_TYPE_UPROBE: u32 = 4;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// Room for any `union bpf_attr` used here.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 128])
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn get64(&self, at: usize) -> u64 {
        u64::from(self.get32(at)) | u64::from(self.get32(at + 4)) << 32 // little endian, as all our targets
    }
}

/// Whether a BPF link with this id is there.
pub fn link_exists(id: u32) -> Result<bool> {
    let mut attr = Attr::new();
    attr.put32(0, id);
    match bpf(BPF_LINK_GET_FD_BY_ID, &mut attr) {
        Ok(fd) => {
            drop(owned(fd));
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("asking for BPF link {id}")),
    }
}

fn bpf(command: libc::c_int, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is larger than any attribute of the commands used and zeroed behind what they read; the pointers
    // in it stay valid for the call, as every caller keeps what they point to until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_mut_ptr(), attr.0.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new descriptor that only this value owns.
fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

/// Empty uprobes; they go when dropped.
pub struct EmptyProbes {
    _program: OwnedFd,
    _events: Vec<OwnedFd>,
}

impl EmptyProbes {
    /// Attaches an empty program at these file offsets, in all processes that run the file.
    pub fn attach(path: &Path, offsets: &[u64]) -> Result<EmptyProbes> {
        // r0 = 0; exit
        let instructions: [u64; 2] = [0xb7, 0x95];
        let license = c"GPL";
        let mut attr = Attr::new();
        attr.put32(0, BPF_PROG_TYPE_KPROBE);
        attr.put32(4, instructions.len() as u32);
        attr.put64(8, instructions.as_ptr() as u64);
        attr.put64(16, license.as_ptr() as u64);
        let program = owned(bpf(BPF_PROG_LOAD, &mut attr).context("loading an empty BPF program")?);
        let text = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")
            .context("this kernel has no uprobe events (/sys/bus/event_source/devices/uprobe)")?;
        let kind: u32 = text.trim().parse().context("reading the type of uprobe events")?;
        let path = CString::new(path.as_os_str().as_bytes()).context("path with a zero byte")?;
        let events =
            offsets.iter().map(|offset| attach_one(kind, &path, *offset, &program)).collect::<Result<_>>()?;
        Ok(EmptyProbes { _program: program, _events: events })
    }
}

fn attach_one(kind: u32, path: &CString, offset: u64, program: &OwnedFd) -> Result<OwnedFd> {
    // struct perf_event_attr up to version 1 (72 bytes): type, size, …, config1 = path, config2 = offset.
    let mut attr = Attr::new();
    attr.put32(0, kind);
    attr.put32(4, 72);
    attr.put64(56, path.as_ptr() as u64);
    attr.put64(64, offset);
    // SAFETY: the attribute says its size, `path` outlives the call; pid -1 with CPU 0 means all processes, and a uprobe's
    // program runs on whichever CPU hits it.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, attr.0.as_ptr(), -1, 0, -1, PERF_FLAG_FD_CLOEXEC) };
    ensure!(fd >= 0, "uprobe at {offset:#x} of {path:?}: {}", io::Error::last_os_error());
    let event = owned(fd);
    for (request, argument) in [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both requests take an integer argument and touch no memory of ours.
        let result = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
        ensure!(result == 0, "enabling the uprobe at {offset:#x}: {}", io::Error::last_os_error());
    }
    Ok(event)
}

/// File offsets at which the given processes have uprobes in `path`, by asking the kernel for each of their
/// descriptors and links: whoever claims to have attached where, this is where.
pub fn uprobes_of(pids: &[u32], path: &Path) -> Vec<u64> {
    let mut offsets = Vec::new();
    for pid in pids {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in fds.flatten() {
            let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let is = |what: &str| {
                fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().contains(what))
            };
            let found = if is("[perf_event]") {
                perf_event(*pid, fd).map(|(file, offset)| (file, vec![offset]))
            } else if is("bpf_link") {
                link_id(*pid, fd).and_then(link)
            } else {
                None
            };
            if let Some((_, found)) = found.filter(|(file, _)| same_file(file, path)) {
                offsets.extend(found);
            }
        }
    }
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

/// A tool may attach through `/proc/PID/exe` or `/proc/self/fd/N`; the kernel then reports what that named.
fn same_file(reported: &str, path: &Path) -> bool {
    let reported = Path::new(reported);
    reported == path || reported.file_name() == path.file_name()
}

fn perf_event(pid: u32, fd: u32) -> Option<(String, u64)> {
    let mut name = [0u8; 256];
    let mut attr = Attr::new();
    attr.put32(0, pid);
    attr.put32(4, fd);
    attr.put32(12, name.len() as u32);
    attr.put64(16, name.as_mut_ptr() as u64);
    bpf(BPF_TASK_FD_QUERY, &mut attr).ok()?;
    (attr.get32(28) >= BPF_FD_TYPE_UPROBE).then(|| (text(&name), attr.get64(32)))
}

/// Id of the BPF link behind a descriptor of a process, when it is one.
pub fn link_id(pid: u32, fd: u32) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("link_id:")?.trim().parse().ok())
}

/// What a link is attached to, a perf event or many uprobes: the file and the offsets in it.
fn link(id: u32) -> Option<(String, Vec<u64>)> {
    let mut attr = Attr::new();
    attr.put32(0, id);
    let fd = owned(bpf(BPF_LINK_GET_FD_BY_ID, &mut attr).ok()?);
    // struct bpf_link_info: type, id, program, then by type.
    let ask = |info: &mut Attr| {
        let mut attr = Attr::new();
        attr.put32(0, fd.as_raw_fd() as u32);
        attr.put32(4, info.0.len() as u32);
        attr.put64(8, info.0.as_mut_ptr() as u64);
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).ok()
    };
    let mut first = Attr::new();
    ask(&mut first)?;
    let mut name = [0u8; 256];
    let mut info = Attr::new();
    match first.get32(0) {
        BPF_LINK_TYPE_PERF_EVENT => {
            // Since 6.6: event type, file name, its room, offset.
            info.put64(24, name.as_mut_ptr() as u64);
            info.put32(32, name.len() as u32);
            ask(&mut info)?;
            let uprobe = matches!(info.get32(16), BPF_PERF_EVENT_UPROBE | BPF_PERF_EVENT_URETPROBE);
            uprobe.then(|| (text(&name), vec![u64::from(info.get32(36))]))
        }
        BPF_LINK_TYPE_UPROBE_MULTI => {
            // Since 6.8: file name, offsets, reference counters, cookies, room for the name, number of offsets.
            let mut offsets = vec![0u64; first.get32(52) as usize];
            info.put64(16, name.as_mut_ptr() as u64);
            info.put64(24, offsets.as_mut_ptr() as u64);
            info.put32(48, name.len() as u32);
            info.put32(52, offsets.len() as u32);
            ask(&mut info)?;
            Some((text(&name), offsets))
        }
        _ => None,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
