//! The bound of every collection in the correlator. What does not fit is counted and shown, never kept.

use crate::event::Ns;
use crate::thresholds::{LATENESS, MILLISECOND, POLL_EVERY, SECOND};

/// Operations in flight. A node at its pod limit with a full convoy has a few thousand.
pub const OPERATIONS: usize = 16_384;
/// Ended operations that are remembered so that a late report does not bring them back.
pub const ENDED: usize = 16_384;
/// Processes that take part.
pub const PROCESSES: usize = 4_096;
/// Processes that are gone and remembered so that a late report does not bring their operations back.
pub const GONE: usize = 4_096;
/// Containers. Those whose shim is gone make room first.
pub const CONTAINERS: usize = 4_096;
/// Containers whose shim is gone and of which the name is remembered, for what is told of them late. As many as the warden
/// remembers; on a node whose pods come and go, 4,096 of them would be megabytes.
pub const GONE_CONTAINERS: usize = 512;
/// Locks whose owner is known.
pub const LOCKS: usize = 4_096;
/// Threads whose kernel site is known.
pub const SITES: usize = 1_024;
/// Block devices.
pub const DEVICES: usize = 256;
/// Blind spots.
pub const BLIND_SPOTS: usize = 256;
/// Lock waits that have just ended and may go on as a new wait of the same goroutine for the same lock.
pub const SETTLING: usize = 4_096;
/// Actors whose last unmount failed.
pub const FAILED_UNMOUNTS: usize = 256;
/// Incidents that are open.
pub const INCIDENTS: usize = 128;
/// Slow relists (or list calls that stand for them) in flight.
pub const SLOW_RELISTS: usize = 4_096;
/// Slow relists that have ended unexplained and may still be explained in hindsight.
pub const UNEXPLAINED: usize = 64;
/// Operations by which an incident is known again when what it ends in changes.
pub const INCIDENT_MEMBERS: usize = 256;

/// Links of one chain; a longer one ends there and says so.
pub const LINKS: usize = 48;
/// Diagnoses in a frame.
pub const DIAGNOSES: usize = 64;
/// Times with another deepest operation that are remembered of a stuck call.
pub const STRETCHES: usize = 64;
/// Stuck calls listed in a diagnosis.
pub const STUCK_CALLS_SHOWN: usize = 32;
/// Containers listed in a diagnosis or an incident.
pub const SUBJECTS_SHOWN: usize = 16;
/// Dirtiers listed in a diagnosis.
pub const DIRTIERS_SHOWN: usize = 4;
/// Consequences listed in a diagnosis.
pub const CONSEQUENCES_SHOWN: usize = 16;
/// Memory waiting to be written grows if it has within about this.
pub const GROWTH_OVER: Ns = 5 * SECOND;
/// Programs whose cost is known.
pub const COSTS: usize = 64;
/// Programs listed in a frame.
pub const PROGRAMS_SHOWN: usize = 16;
/// Processes listed that keep a mount busy.
pub const PINS_SHOWN: usize = 8;
/// Exits that containerd has not handled yet.
pub const EXITS: usize = 4_096;
/// Containers of an incident by which its consequences are known.
pub const INCIDENT_CONTAINERS: usize = 64;
/// Things that may be consequences, kept until the next tick.
pub const NEWS: usize = 1_024;
/// Consequences of an incident that are remembered.
pub const HARMS: usize = 64;
/// Incidents that are over and may still have consequences.
pub const AFTERMATHS: usize = 32;
/// Leaked shims that are remembered.
pub const LEAKED_SHIMS: usize = 1_024;
/// Operations in flight listed in a frame.
pub const IN_FLIGHT_SHOWN: usize = 256;
/// CRI methods with a distribution of their own.
pub const METHODS: usize = 24;

/// A new wait of the same goroutine for the same lock goes on from the one before if it begins within this.
pub const REQUEUE_GAP: Ns = 5 * MILLISECOND;
/// How long after the end of a lock wait a renewed wait may still be unreported: floor, poll, and lateness.
pub const SETTLE: Ns = crate::thresholds::floor(crate::event::Kind::LockWait) + POLL_EVERY + LATENESS;
/// How long an operation of a Go program may last before it is certain to be reported: floor, poll, and lateness.
pub const UNREPORTED: Ns = crate::thresholds::floor(crate::event::Kind::ShimCall) + POLL_EVERY + LATENESS;
/// A thread's site is believed this long.
pub const SITE_FRESH: Ns = 5 * SECOND;
/// A slow relist that is over may be explained so much later: starvation is told two seconds after its begin, or four where no quota
/// can be read, by looks twice a second.
pub const HINDSIGHT: Ns = 5 * SECOND;
/// Semaphores of which it is remembered who released them last.
pub const RELEASES: usize = 512;
/// Where a goroutine sat is told this long after it was looked at. What is blocked is looked at again and again.
pub const LOOK_FRESH: Ns = 20 * SECOND;
/// Who keeps a mount busy is remembered this long: containerd tries fifty times, 50 ms apart.
pub const PINS_FRESH: Ns = 60 * SECOND;
/// In-flight state that was last read completely longer ago than this is a blind spot.
pub const POLL_STALE: Ns = 2 * SECOND;
/// Facts about a lock are kept this long after the last operation that referred to it.
pub const LOCK_GRACE: Ns = SECOND;
/// Ended operations are remembered this long after they were last heard of.
pub const ENDED_MEMORY: Ns = 30 * SECOND;
/// A failed unmount counts as part of a retry loop this long (containerd retries every 50 ms).
pub const RETRY_GAP: Ns = SECOND;
/// An incident that is over may still have consequences this long: containerd retries an exit after five minutes at most.
pub const AFTERMATH: Ns = 600 * SECOND;
/// An exit whose next attempt is overdue by this much is forgotten: the container was removed, or the attempt was lost.
pub const EXIT_OVERDUE: Ns = 300 * SECOND;
/// What a device writes is averaged over this: a throttled one writes in bursts, four times its rate for a second.
pub const RATE_OVER: Ns = 10 * SECOND;
/// Samples of a device that are kept, one a second.
pub const RATE_SAMPLES: usize = 16;
