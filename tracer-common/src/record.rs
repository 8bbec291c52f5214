//! What the ring carries. Every record begins with a [`Header`]; its kind decides the rest.

use crate::op::{Key, Op, Wait};

/// Numbers of [`Header::kind`].
pub mod record_kind {
    /// [`super::WaitEnded`].
    pub const WAIT_ENDED: u32 = 1;
    /// [`super::OpEnded`].
    pub const OP_ENDED: u32 = 2;
    /// [`super::Woken`].
    pub const WOKEN: u32 = 3;
    /// [`super::ProcessGone`].
    pub const PROCESS_GONE: u32 = 4;
}

/// First part of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What it is, see [`record_kind`].
    pub kind: u32,
    /// Bytes of the whole record.
    pub size: u32,
    /// When it happened, CLOCK_MONOTONIC ns.
    pub at: u64,
}

/// A lock wait or hold of at least the floor is over.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitEnded {
    /// Kind and time of the end.
    pub header: Header,
    /// What is over.
    pub wait: Wait,
}

/// Any other operation of at least the floor is over.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpEnded {
    /// Kind and time of the end.
    pub header: Header,
    /// What is over.
    pub op: Op,
}

/// A goroutine that waited at least the floor was made runnable.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// Kind and time.
    pub header: Header,
    /// The wait, as it was remembered.
    pub wait: Wait,
    /// `g` of the releaser, 0 when not known (the runtime may release on its own stack).
    pub by: u64,
    /// Its goroutine number, 0 when not known.
    pub by_goid: u64,
    /// Its thread id.
    pub by_tid: u32,
    /// Always 0.
    pub pad: u32,
}

/// A process that was registered has exited or called exec.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessGone {
    /// Kind and time.
    pub header: Header,
    /// Which.
    pub tgid: u32,
    /// Always 0.
    pub pad: u32,
}

/// A record as read from the ring.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack of the reader")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// See [`WaitEnded`].
    WaitEnded(WaitEnded),
    /// See [`OpEnded`].
    OpEnded(OpEnded),
    /// See [`Woken`].
    Woken(Woken),
    /// See [`ProcessGone`].
    ProcessGone(ProcessGone),
    /// Of a kind or size that this version does not know.
    Unknown(Header),
}

/// Marks a struct that is valid for every pattern of bits and has no padding.
///
/// # Safety
/// Only for `repr(C)` structs of integers and integer arrays without padding.
pub unsafe trait Plain: Copy {
    /// Reads one from the start of `bytes`; `None` when there are too few.
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: the length was checked, any bits are valid, and the read needs no alignment.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

// SAFETY: repr(C), integers only, sizes asserted to be free of padding below and in `op`.
unsafe impl Plain for Header {}
// SAFETY: as above.
unsafe impl Plain for Wait {}
// SAFETY: as above.
unsafe impl Plain for Op {}
// SAFETY: as above.
unsafe impl Plain for WaitEnded {}
// SAFETY: as above.
unsafe impl Plain for OpEnded {}
// SAFETY: as above.
unsafe impl Plain for Woken {}
// SAFETY: as above.
unsafe impl Plain for ProcessGone {}
// SAFETY: as above.
unsafe impl Plain for Key {}

impl Record {
    /// Reads a record; `None` when the bytes are too few even for a header.
    pub fn read(bytes: &[u8]) -> Option<Record> {
        let header = Header::read(bytes)?;
        let record = match header.kind {
            record_kind::WAIT_ENDED => WaitEnded::read(bytes).map(Record::WaitEnded),
            record_kind::OP_ENDED => OpEnded::read(bytes).map(Record::OpEnded),
            record_kind::WOKEN => Woken::read(bytes).map(Record::Woken),
            record_kind::PROCESS_GONE => ProcessGone::read(bytes).map(Record::ProcessGone),
            _ => None,
        };
        Some(record.unwrap_or(Record::Unknown(header)))
    }
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<WaitEnded>() == 16 + 56);
    assert!(size_of::<OpEnded>() == 16 + size_of::<Op>());
    assert!(size_of::<Woken>() == 16 + 56 + 24);
    assert!(size_of::<ProcessGone>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_foreign_bytes_are_values_not_panics() {
        assert_eq!(Record::read(&[0; 15]), None);
        let mut bytes = [0u8; 16];
        bytes[0] = record_kind::OP_ENDED as u8;
        assert!(matches!(Record::read(&bytes), Some(Record::Unknown(h)) if h.kind == record_kind::OP_ENDED));
        bytes[0] = 77;
        assert!(matches!(Record::read(&bytes), Some(Record::Unknown(h)) if h.kind == 77));
    }
}
