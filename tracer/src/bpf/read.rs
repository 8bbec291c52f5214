//! Reads the kernel half: records from the ring, in-flight entries by polling, counters.

use super::{load::map_data, sys};
use anyhow::anyhow;
use aya::maps::{Array, Map, MapData, RingBuf};
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};
use tracer_common::{
    cookie::COUNTERS,
    op::{Key, Op, Wait, kind},
    record::Record,
    settings::BUCKETS,
    stats::{Cause, FIRST_CAUSE, HITS, SLOTS},
};

/// Records taken from the ring before its consumer looks at anything else; more stay where they are.
const RECORDS_AT_ONCE: usize = 4096;

/// The reading side of the kernel half. Owned by one thread.
pub struct Reader {
    ring: RingBuf<MapData>,
    waits: Map,
    ops: Map,
    stats: Array<MapData, u64>,
    durations: Array<MapData, u64>,
    passes: Array<MapData, u64>,
    keys: Vec<Key>,
}

/// Counters of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Begin sites hit.
    pub hits: u64,
    /// Refusals, in the order of [`Cause::ALL`].
    pub refusals: [u64; Cause::ALL.len()],
}

impl Reader {
    pub(super) fn new(
        ring: Map,
        waits: Map,
        ops: Map,
        stats: Map,
        durations: Map,
        passes: Map,
    ) -> anyhow::Result<Reader> {
        Ok(Reader {
            ring: RingBuf::try_from(ring)?,
            waits,
            ops,
            stats: Array::try_from(stats)?,
            durations: Array::try_from(durations)?,
            passes: Array::try_from(passes)?,
            keys: Vec::new(),
        })
    }

    /// Waits until the ring has something, at most `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // To the nanosecond: who comes back a part of a millisecond early has to wait a second time.
        let timeout = libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        // SAFETY: one valid pollfd and a valid time, which live through the call; no signal mask.
        let result = unsafe { libc::ppoll(&raw mut poll, 1, &raw const timeout, std::ptr::null()) };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes records from the ring, in the order in which the kernel half reserved them.
    pub fn records(&mut self, mut each: impl FnMut(Record)) {
        for _ in 0..RECORDS_AT_ONCE {
            let Some(item) = self.ring.next() else { return };
            if let Some(record) = Record::read(&item) {
                each(record);
            }
        }
    }

    /// Reads everything in flight.
    pub fn in_flight(&mut self, waits: &mut Vec<Wait>, ops: &mut Vec<Op>) -> anyhow::Result<()> {
        let unexpected = || anyhow!("a map is of an unexpected type");
        let fd = map_data(&self.waits).ok_or_else(unexpected)?.fd();
        sys::read_all(fd.as_fd(), &mut self.keys, waits)?;
        let fd = map_data(&self.ops).ok_or_else(unexpected)?.fd();
        sys::read_all(fd.as_fd(), &mut self.keys, ops)?;
        Ok(())
    }

    /// Removes an entry whose end will never come.
    pub fn forget(&mut self, key: &Key) -> io::Result<()> {
        for map in [&self.waits, &self.ops] {
            if let Some(map) = map_data(map) {
                sys::delete(map.fd().as_fd(), key)?;
            }
        }
        Ok(())
    }

    /// Counters of a kind.
    pub fn counters(&self, kind: u32) -> Counters {
        let slot = |slot| self.stats.get(&(kind * SLOTS + slot), 0).unwrap_or(0);
        let mut counters = Counters { hits: slot(HITS), ..Counters::default() };
        for (at, refusals) in counters.refusals.iter_mut().enumerate() {
            *refusals = slot(FIRST_CAUSE + at as u32);
        }
        counters
    }

    /// How often any of these kinds has begun so far. Counted before the operation is put into its map.
    pub fn begun(&self, kinds: impl Iterator<Item = u32>) -> u64 {
        kinds.map(|kind| self.stats.get(&(kind * SLOTS + HITS), 0).unwrap_or(0)).sum()
    }

    /// Whether a probe on `sync_filesystem` sees what syncfs(2) does, found out by trying: on a file system that has
    /// nothing to write, a few times, since somebody else may sync in the same moment.
    pub fn sees_syncfs(&self) -> io::Result<bool> {
        let proc = std::fs::File::open("/proc/self")?;
        for _ in 0..3 {
            let before = self.begun([kind::SYNC].into_iter());
            rustix::fs::syncfs(&proc)?;
            if self.begun([kind::SYNC].into_iter()) == before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hits of sites in Go programs, in the order of [`tracer_common::cookie::counter`].
    pub fn passes(&self) -> Vec<u64> {
        (0..COUNTERS).map(|at| self.passes.get(&at, 0).unwrap_or(0)).collect()
    }

    /// Number of operations of a kind per bucket of [`tracer_common::settings::bucket`], of all durations.
    pub fn durations(&self, kind: u32) -> Vec<u64> {
        (0..BUCKETS).map(|bucket| self.durations.get(&(kind * BUCKETS + bucket), 0).unwrap_or(0)).collect()
    }
}
