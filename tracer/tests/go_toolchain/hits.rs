//! Counts how often places in a program are passed: uprobes that only count, through `perf_event_open`. Needs root.

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, Read};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A counter on one instruction of a file, for all processes.
pub struct Hits(Vec<File>);

/// `struct perf_event_attr`, first version that has `config2` (72 bytes), with the fields that matter.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
}

impl Hits {
    /// Starts to count.
    pub fn of(path: &Path, file_offset: u64) -> Hits {
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").unwrap();
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        let attributes = Attributes {
            kind: kind.trim().parse().unwrap(),
            size: size_of::<Attributes>() as u32,
            config: 0,
            sample_period: 0,
            sample_type: 0,
            read_format: 0,
            flags: 0,
            wakeup: 0,
            bp_type: 0,
            config1: name.as_ptr() as u64,
            config2: file_offset,
        };
        let processors = std::thread::available_parallelism().unwrap().get() as i32;
        let open = |processor: i32| {
            // SAFETY: the attributes and the path they point to outlive the call; the kernel copies both.
            let fd = unsafe {
                libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, processor, -1, 8u64)
            };
            assert!(fd >= 0, "perf_event_open: {} (needs root)", Error::last_os_error());
            // SAFETY: the kernel has just handed out this descriptor; nobody else owns it.
            unsafe { File::from_raw_fd(fd as i32) }
        };
        Hits((0..processors).map(open).collect())
    }

    /// How often so far.
    pub fn count(&self) -> u64 {
        let read = |mut file: &File| {
            let mut value = [0; 8];
            file.read_exact(&mut value).unwrap();
            u64::from_ne_bytes(value)
        };
        self.0.iter().map(read).sum()
    }
}
