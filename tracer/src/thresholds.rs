//! Every default threshold and floor, in one place.
//!
//! A *floor* decides what is remembered and shown; a *threshold* decides what is an incident. Both are ages in
//! nanoseconds of [`crate::event::Kind`]s.

use crate::event::{Kind, Ns};
use serde::{Deserialize, Serialize};

/// One second in [`Ns`].
pub const SECOND: Ns = 1_000_000_000;
/// One millisecond in [`Ns`].
pub const MILLISECOND: Ns = 1_000_000;

/// The kubelet calls the node NotReady when the last good relist began this long ago.
pub const PLEG_THRESHOLD: Ns = 180 * SECOND;
/// The kubelet gives up a CRI call after this (its default `runtimeRequestTimeout`); a relist that took longer has not
/// succeeded.
pub const CRI_TIMEOUT: Ns = 120 * SECOND;
/// How often the kernel half's in-flight state is read.
pub const POLL_EVERY: Ns = 100 * MILLISECOND;
/// Ticks of the correlator stand on this grid of event time.
pub const TICK_EVERY: Ns = 100 * MILLISECOND;
/// What has lasted this long is shown, and what follows from it is known: a node on which nothing is younger changes slowly.
pub const STEADY_AGE: Ns = 2 * SECOND;
/// Such a node is told of this often, and whenever something begins or ends.
pub const STEADY_EVERY: Ns = 5 * TICK_EVERY;
/// A record that comes later than this after a newer one is counted as late.
pub const LATENESS: Ns = 200 * MILLISECOND;

/// The limits in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// A chain is shown once its stuck call is this old.
    pub shown: Ns,
    /// An unmount is an incident once it is this old.
    pub unmount: Ns,
    /// A lock wait is an incident once it is this old.
    pub lock: Ns,
    /// A CRI call is an incident once it is this old.
    pub cri: Ns,
    /// A relist is an incident once it is this old.
    pub relist: Ns,
    /// A container exit that containerd has not finished handling is an incident once it is this old.
    pub exit: Ns,
    /// NotReady that is this near is an incident, whatever makes it so; 0 for never.
    #[serde(default)]
    pub not_ready_within: Ns,
}

impl Thresholds {
    /// The limits where nothing else is asked for.
    pub const DEFAULT: Thresholds = Thresholds {
        shown: 500 * MILLISECOND,
        unmount: 5 * SECOND,
        lock: 5 * SECOND,
        cri: 5 * SECOND,
        relist: 5 * SECOND,
        exit: 10 * SECOND,
        not_ready_within: 60 * SECOND,
    };
}

impl Thresholds {
    /// The ages at which an operation of this kind may be an incident by itself.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = Ns> + use<> {
        let (one, other) = match kind {
            Kind::Unmount | Kind::SuperShutdown => (Some(self.unmount), None),
            Kind::LockWait => (Some(self.lock), None),
            // A list call stands for the relist where that is not seen.
            Kind::CriCall | Kind::CriClient => (Some(self.cri), Some(self.relist)),
            Kind::Relist | Kind::Stalled => (Some(self.relist), None),
            Kind::ExitHandling => (Some(self.exit), None),
            Kind::StatusUpdate
            | Kind::LockHold
            | Kind::ShimCall
            | Kind::ShimServe
            | Kind::InitMethod
            | Kind::Sync => (None, None),
        };
        one.into_iter().chain(other)
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds::DEFAULT
    }
}

/// Below this age the end of an operation is not reported one by one (the kernel half counts it in a histogram), and a
/// poll does not report it either.
pub const fn floor(kind: Kind) -> Ns {
    match kind {
        Kind::LockWait | Kind::LockHold => 20 * MILLISECOND,
        Kind::Relist
        | Kind::CriClient
        | Kind::CriCall
        | Kind::StatusUpdate
        | Kind::ShimCall
        | Kind::ShimServe
        | Kind::InitMethod => 50 * MILLISECOND,
        Kind::Unmount | Kind::SuperShutdown | Kind::Sync => 10 * MILLISECOND,
        // One for each container that exits, and the end of a late one is told even when its last attempt is quick.
        Kind::ExitHandling => 0,
        Kind::Stalled => 0,
    }
}
