//! What the kernel half could not do, counted by program and cause.

/// Why a program gave up on an event.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The ring was full.
    RingFull = 0,
    /// A map was full.
    MapFull = 1,
    /// User memory could not be read (the page is not in memory, or the pointer is not what was expected).
    ReadUser = 2,
    /// Kernel memory could not be read (lockdown).
    ReadKernel = 3,
    /// The process is not registered yet (only without attach cookies).
    UnknownSite = 4,
    /// The goroutine could not be told.
    NoGoroutine = 5,
    /// An end came without a begin: it began before the probes were there.
    NoBegin = 6,
}

impl Cause {
    /// All, in numeric order.
    pub const ALL: [Cause; 7] = [
        Cause::RingFull,
        Cause::MapFull,
        Cause::ReadUser,
        Cause::ReadKernel,
        Cause::UnknownSite,
        Cause::NoGoroutine,
        Cause::NoBegin,
    ];
    /// Words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Cause::RingFull => "ring full",
            Cause::MapFull => "map full",
            Cause::ReadUser => "user memory not readable",
            Cause::ReadKernel => "kernel memory not readable",
            Cause::UnknownSite => "process not registered yet",
            Cause::NoGoroutine => "goroutine not known",
            Cause::NoBegin => "began before the probes were attached",
        }
    }
}

/// Counters per kind in the `STATS` map: hits, then one for each [`Cause`]; 8 in all, so index = kind * 16 + slot.
pub const SLOTS: u32 = 16;
/// Slot of the number of hits.
pub const HITS: u32 = 0;
/// Slot of the first cause.
pub const FIRST_CAUSE: u32 = 1;
