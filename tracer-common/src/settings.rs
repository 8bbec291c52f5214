//! What user space tells the kernel half.
//!
//! Read-only globals are frozen at load and let the verifier drop dead code; maps can change later. The names of the
//! globals are the names of the `static`s in the kernel half.

/// A process that takes part: value of the `PROCESSES` map, keyed by thread-group id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Number of its executable, given by user space.
    pub binary: u32,
    /// Offset of goid in `g`, bytes; 0 when not known.
    pub goid_offset: u32,
    /// What to subtract from an instruction pointer to get the address in the file (position-independent code).
    pub bias: u64,
}

/// Key of the `SITES` map, which stands in for cookies before kernel 5.15.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// [`Process::binary`].
    pub binary: u32,
    /// 0 for the begin programs, 1 for the end programs: both may sit on one instruction.
    pub end: u32,
    /// Address in the file.
    pub address: u64,
}

const _: () = {
    assert!(size_of::<Process>() == 16);
    assert!(size_of::<Site>() == 16);
};

/// Histogram buckets per kind: four for each power of two of nanoseconds.
pub const BUCKETS: u32 = 256;

/// Bucket of a duration.
#[inline(always)]
pub const fn bucket(ns: u64) -> u32 {
    if ns < 4 {
        return ns as u32;
    }
    let exponent = 63 - ns.leading_zeros();
    let quarter = (ns >> (exponent - 2)) as u32 & 3;
    exponent * 4 + quarter
}

/// Smallest duration of a bucket, the inverse of [`bucket`].
pub const fn bucket_floor(bucket: u32) -> u64 {
    if bucket < 8 {
        return bucket as u64 & 3;
    }
    (4 + (bucket as u64 & 3)) << (bucket / 4 - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_monotonic_and_invert() {
        let mut last = 0;
        for shift in 2..63u32 {
            for step in 0..4u64 {
                let ns = (4 + step) << (shift - 2);
                let b = bucket(ns);
                assert!(b > last && b < BUCKETS, "{ns} {b} {last}");
                assert_eq!(bucket_floor(b), ns);
                assert_eq!(bucket(ns + (ns >> 4)), b);
                last = b;
            }
        }
    }
}
