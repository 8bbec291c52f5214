//! Tells what slows the node down: who has memory waiting to be written, and which daemons do not run although they
//! should. On a thread of its own, since counting memory can take long on a large node.

use super::{
    child::{Shared, lock},
    outbox::Outbox,
};
use crate::{
    event::{Body, Event, Kind, Ns, Operation, Outcome, Role, Writers},
    node::{cgroups::Hierarchies, clock, stalls::Stalls, worker::Workers, writers},
    thresholds::SECOND,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

/// How often the daemons are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often memory is counted while something is blocked on a disk.
const COUNT_EVERY: Ns = 5 * SECOND;
/// How long counting may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the mounts of control groups are looked for.
const FIND_EVERY: Ns = 60 * SECOND;
/// An operation this old is blocked.
const BLOCKED: Ns = SECOND;
/// Shims looked at in one round.
const MOST_SHIMS: usize = 64;
/// Threads that may hang with a read.
const WORKERS: usize = 3;

/// Tells until the process ends.
pub fn run(outbox: &Outbox, shared: &Shared) {
    let workers = Workers::new(WORKERS);
    let mut stalls = Stalls::default();
    let mut hierarchies = Arc::new(Hierarchies::default());
    let (mut found, mut counted) = (None, None);
    let due = |last: Option<Ns>, every| last.is_none_or(|at| clock::monotonic().saturating_sub(at) >= every);
    while !shared.ending() {
        let now = clock::monotonic();
        if due(found, FIND_EVERY) {
            found = Some(now);
            if let Ok(Ok(read)) = workers.run(PATIENCE, Hierarchies::read) {
                hierarchies = Arc::new(read);
            }
        }
        let mut blocked = lock(&shared.in_flight).clone();
        blocked.extend(lock(&shared.found).values().flatten().cloned());
        blocked.retain(|o| now.saturating_sub(o.begin) >= BLOCKED);
        let mut events = look(&mut stalls, &watched(&blocked, shared), &hierarchies, &workers);
        if due(counted, COUNT_EVERY) && blocked.iter().any(|o| waits_for_disk(o.kind)) {
            counted = Some(now);
            let ours = Arc::clone(&hierarchies);
            let writers = workers.run(PATIENCE, move || writers::read(&ours));
            let writers = writers.unwrap_or_else(|error| Writers {
                of: Vec::new(),
                left_out: 0,
                reason: format!("control groups cannot be read: {error}"),
            });
            events.push(Event { at: clock::monotonic(), body: Body::Writers(writers) });
        }
        outbox.events(events);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What may wait for memory to be written.
pub fn waits_for_disk(kind: Kind) -> bool {
    matches!(kind, Kind::Unmount | Kind::SuperShutdown | Kind::Sync | Kind::StatusUpdate)
}

/// The daemons, and the shims in which or for which something is blocked.
fn watched(blocked: &[Operation], shared: &Shared) -> Vec<u32> {
    let known = shared.known.read().unwrap_or_else(PoisonError::into_inner);
    let role = |pid: &u32| known.get(pid).map(|known| known.process.role);
    let daemons = known.keys().filter(|pid| matches!(role(pid), Some(Role::Containerd | Role::Kubelet)));
    // A shim that is frozen has not begun what containerd waits for.
    let of_container = lock(&shared.shims);
    let called = blocked.iter().filter(|o| o.kind == Kind::ShimCall).filter_map(|o| o.container.as_ref());
    let called = called.filter_map(|id| of_container.get(id).copied());
    let shims: BTreeSet<u32> = blocked
        .iter()
        .map(|o| o.actor.pid)
        .chain(called)
        .filter(|pid| role(pid) == Some(Role::Shim))
        .take(MOST_SHIMS)
        .collect();
    daemons.copied().chain(shims).collect()
}

fn look(stalls: &mut Stalls, pids: &[u32], hierarchies: &Arc<Hierarchies>, workers: &Workers) -> Vec<Event> {
    let changes = stalls.look(pids, hierarchies, workers);
    let at = clock::monotonic();
    let event = |body| Event { at, body };
    let over = changes.over.into_iter().map(|stall| event(Body::Ended(stall, Outcome::Done)));
    let mut events: Vec<Event> = over.collect();
    events.extend(changes.lasting.into_iter().map(|stall| event(Body::InFlight(stall))));
    events.push(event(Body::PollComplete { kinds: vec![Kind::Stalled], older_than: at }));
    events
}
