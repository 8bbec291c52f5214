//! What the disks do, from `/proc` and `/sys`: sectors written, memory waiting to be written, names of devices. None of
//! these files waits for a device.

use super::{ReadError, number, read_file};
use crate::event::{Device, DeviceFacts};

/// Thousands of devices fit.
const LARGEST: usize = 4 << 20;
/// One attribute in `/sys` is at most a page.
const ATTRIBUTE: usize = 64 * 1024;

/// One line of `/proc/diskstats`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStat {
    /// Its number.
    pub device: Device,
    /// Its name in the kernel, for instance `nvme1n1`.
    pub name: String,
    /// Field 10: sectors of 512 bytes written since boot.
    pub sectors_written: u64,
    /// Fields 7 and 11: time that all reads, and all writes, took since boot, in ms; those at the same time add up.
    pub reading_ms: u64,
    /// See `reading_ms`.
    pub writing_ms: u64,
    /// Field 13: time in which at least one was in flight, in ms.
    pub busy_ms: u64,
}

/// Reads `/proc/diskstats`.
pub fn stats() -> Result<Vec<DiskStat>, ReadError> {
    read_file("/proc/diskstats", LARGEST).map(|text| parse_stats(&text))
}

/// Lines of `/proc/diskstats`; what is not such a line is left out.
pub fn parse_stats(text: &[u8]) -> Vec<DiskStat> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
        let device = Device { major: number(fields.next()?)?, minor: number(fields.next()?)? };
        let name = String::from_utf8_lossy(fields.next()?).into_owned();
        let reading_ms = number(fields.nth(3)?)?;
        let sectors_written = number(fields.nth(2)?)?;
        let writing_ms = number(fields.next()?)?;
        let busy_ms = number(fields.nth(1)?)?;
        Some(DiskStat { device, name, sectors_written, reading_ms, writing_ms, busy_ms })
    };
    text.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// The node of a block device, from `/sys/dev/block/MAJOR:MINOR/uevent`: `/dev/nvme1n1`. Devices `0:N` have none.
pub fn node(device: Device) -> Result<String, ReadError> {
    let path = format!("/sys/dev/block/{device}/uevent");
    let text = read_file(&path, ATTRIBUTE)?;
    parse_devname(&text).ok_or_else(|| ReadError::malformed(path, "it has no DEVNAME"))
}

/// `DEVNAME` of a `uevent` file, as a path.
pub fn parse_devname(text: &[u8]) -> Option<String> {
    let name = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"DEVNAME="))?;
    (!name.is_empty()).then(|| format!("/dev/{}", String::from_utf8_lossy(name)))
}

/// The file behind a loop device, as the kernel shows it; `None` when it is no loop device or has none.
pub fn backing_file(device: Device) -> Option<String> {
    let text = read_file(&format!("/sys/dev/block/{device}/loop/backing_file"), ATTRIBUTE).ok()?;
    // Only the attribute's own newline is taken off: a name may end in spaces.
    let name = text.strip_suffix(b"\n").unwrap_or(&text);
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// What is known of one device: its node, and its sectors as they are in `stats`. `None` when it is not in there.
pub fn facts(device: Device, stats: &[DiskStat]) -> Option<DeviceFacts> {
    let stat = stats.iter().find(|stat| stat.device == device)?;
    // The kernel writes a slash in a name as '!'.
    let name = node(device).unwrap_or_else(|_| format!("/dev/{}", stat.name.replace('!', "/")));
    Some(DeviceFacts { device, name, sectors_written: stat.sectors_written })
}

/// Memory waiting to be written, node-wide, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// `Dirty`: changed in memory, not yet on its way.
    pub dirty: u64,
    /// `Writeback`: on its way.
    pub writeback: u64,
}

/// Reads `/proc/meminfo`.
pub fn unwritten() -> Result<Unwritten, ReadError> {
    let path = "/proc/meminfo";
    let text = read_file(path, ATTRIBUTE)?;
    parse_unwritten(&text).ok_or_else(|| ReadError::malformed(path, "it has no Dirty or no Writeback"))
}

/// `Dirty` and `Writeback` of `/proc/meminfo`, which counts in units of 1024 bytes.
pub fn parse_unwritten(text: &[u8]) -> Option<Unwritten> {
    let bytes = |name: &[u8]| {
        let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(name))?;
        let value: u64 = number(line.strip_suffix(b" kB")?.trim_ascii())?;
        value.checked_mul(1024)
    };
    Some(Unwritten { dirty: bytes(b"Dirty:")?, writeback: bytes(b"Writeback:")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::linux::fs::MetadataExt;

    #[test]
    fn recorded_diskstats() {
        let text = b"   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n 254       0 vda 34931 7900 5378162 14834 7370 \
            76297 10100440 40031 0 8500 55418 4877 42 592616 533 501 19\n 104 0 cciss!c0d0 1 2 3 4 5 6 77 8 9 10 11\n\
            8 1\nnonsense\n";
        let stats = parse_stats(text);
        assert_eq!(stats.len(), 3);
        assert_eq!(stats[1].device, Device { major: 254, minor: 0 });
        assert_eq!((stats[1].name.as_str(), stats[1].sectors_written), ("vda", 10_100_440));
        assert_eq!((stats[1].reading_ms, stats[1].writing_ms, stats[1].busy_ms), (14_834, 40_031, 8_500));
        assert_eq!(stats[2].sectors_written, 77);
        // A device that this machine does not have: its name is made from the kernel's.
        let facts = facts(Device { major: 104, minor: 0 }, &stats).unwrap();
        assert_eq!(facts.name, "/dev/cciss/c0d0");
    }

    #[test]
    fn recorded_meminfo_and_uevent() {
        let text = b"MemTotal:       24684084 kB\nDirty:               164 kB\nWriteback:             8 kB\nWritebackTmp:  9 kB\n";
        assert_eq!(parse_unwritten(text), Some(Unwritten { dirty: 164 * 1024, writeback: 8 * 1024 }));
        assert_eq!(parse_unwritten(b"Dirty: x kB\n"), None);
        assert_eq!(
            parse_devname(b"MAJOR=259\nMINOR=1\nDEVNAME=nvme1n1\nDEVTYPE=disk\n"),
            Some("/dev/nvme1n1".into())
        );
        assert_eq!(parse_devname(b"DEVTYPE=disk\n"), None);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_stats(&bytes), parse_devname(&bytes), parse_unwritten(&bytes));
        }
    }

    #[test]
    fn every_disk_of_this_machine_has_the_node_that_stat_confirms() {
        for stat in stats().unwrap() {
            let facts = facts(stat.device, std::slice::from_ref(&stat)).unwrap();
            let Ok(node) = std::fs::metadata(&facts.name) else { continue };
            let rdev = node.st_rdev();
            assert_eq!(
                (libc::major(rdev), libc::minor(rdev)),
                (stat.device.major, stat.device.minor),
                "{facts:?}"
            );
        }
        assert!(node(Device { major: 0, minor: 21 }).unwrap_err().is_gone());
    }

    #[test]
    fn memory_waiting_to_be_written_is_less_than_memory() {
        let unwritten = unwritten().unwrap();
        assert!(unwritten.dirty + unwritten.writeback < 1 << 50, "{unwritten:?}");
    }
}
