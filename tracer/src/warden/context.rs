//! Tells what the kernel half cannot: names of containers and locks, where blocked threads sit, what the disk does.

use super::{
    child::{Known, Shared, lock},
    outbox::Outbox,
};
use crate::{
    event::{Body, Device, Event, Kind, LockName, Ns, Operation, OperationId, Role},
    golang::offsets,
    node::{
        clock,
        containers::Containers,
        disk, locks,
        memory::{Memory, ProcessMemory},
        pressure, threads,
        worker::Workers,
    },
    thresholds::{MILLISECOND, SECOND},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

/// How often blocked operations are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often containers and disks are looked at.
const SCAN_EVERY: Ns = SECOND;
/// Threads that may hang with a read.
const WORKERS: usize = 4;
/// How long a read may take before its worker is given up.
const PATIENCE: Duration = Duration::from_millis(250);
/// An operation this old is worth a look at its thread.
const SITE_AFTER: Ns = 500 * MILLISECOND;
/// The same thread is looked at again after this time.
const SITE_EVERY: Ns = SECOND;
/// How often the thread of a goroutine that was in no system call is looked for.
const SOUGHT_EVERY: Ns = 300 * MILLISECOND;
/// Bytes of a `sync.RWMutex`, the largest lock.
const RWMUTEX: u64 = 24;
/// Blocked operations looked at in one round, the oldest first.
const MOST_LOOKS: usize = 32;

/// Tells until the process ends.
pub fn run(outbox: &Outbox, shared: &Shared) {
    let mut teller = Teller { workers: Workers::new(WORKERS), ..Teller::default() };
    let mut next_scan = clock::monotonic();
    while !shared.ending() {
        let mut events = Vec::new();
        let mut blocked = lock(&shared.in_flight).clone();
        blocked.sort_by_key(|o| o.begin);
        teller.locks(&blocked, shared, &mut events);
        teller.sites(&blocked, shared, &mut events);
        teller.note_devices(&blocked);
        let now = clock::monotonic();
        if now >= next_scan {
            next_scan = now + SCAN_EVERY;
            teller.containers(shared, &mut events);
            teller.disks(&mut events);
        }
        outbox.events(events);
        shared.rest(LOOK_EVERY, Duration::from_nanos(next_scan.saturating_sub(clock::monotonic())));
    }
}

/// Tells once what containers there are, what their disks do, and how much waits to be written.
pub fn once(outbox: &Outbox, shared: &Shared) {
    let (mut teller, mut events) = (Teller::default(), Vec::new());
    teller.containers(shared, &mut events);
    teller.disks(&mut events);
    outbox.events(events);
}

struct Teller {
    workers: Workers,
    containers: Containers,
    shims: BTreeSet<u32>,
    /// Names read while the operation was in flight, to be told once it still is in the next round.
    pending: BTreeMap<OperationId, (u32, u64, LockName)>,
    /// Waits whose lock has been told, or cannot be.
    named: BTreeSet<OperationId>,
    /// When each thread was looked at last.
    looked: BTreeMap<(u32, u32), Ns>,
    /// When each goroutine is looked for next: process, address.
    sought: BTreeMap<(u32, u64), Ns>,
    devices: BTreeSet<Device>,
}

impl Default for Teller {
    fn default() -> Self {
        Teller {
            workers: Workers::new(WORKERS),
            containers: Containers::new(),
            shims: BTreeSet::new(),
            pending: BTreeMap::new(),
            named: BTreeSet::new(),
            looked: BTreeMap::new(),
            sought: BTreeMap::new(),
            devices: BTreeSet::new(),
        }
    }
}

impl Teller {
    /// Names the locks that are waited for. An address names a container only while a wait on it is in flight, so what
    /// was read counts only when the same wait is still there afterwards.
    fn locks(&mut self, blocked: &[Operation], shared: &Shared, events: &mut Vec<Event>) {
        let waits: Vec<&Operation> = blocked.iter().filter(|o| o.kind == Kind::LockWait).collect();
        let ids: BTreeSet<OperationId> = waits.iter().map(|o| o.id()).collect();
        for (id, (pid, base, name)) in std::mem::take(&mut self.pending) {
            if ids.contains(&id) {
                let body = Body::LockIdentity { pid, base, lock: name };
                events.push(Event { at: clock::monotonic(), body });
            }
        }
        self.named.retain(|id| ids.contains(id));
        for wait in waits.into_iter().take(MOST_LOOKS) {
            let id = wait.id();
            if self.named.contains(&id) {
                continue;
            }
            let Some(known) = shared.get(wait.actor.pid) else { continue };
            let (pid, role, semaphore) = (wait.actor.pid, known.process.role, wait.object);
            let read = self
                .workers
                .run(PATIENCE, move || locks::of_semaphore(role, &ProcessMemory::open(pid).ok()?, semaphore));
            self.named.insert(id.clone());
            if let Ok(Some((base, name))) = read {
                self.pending.insert(id, (pid, base, name));
            }
        }
    }

    /// Looks where blocked threads sit in the kernel.
    fn sites(&mut self, blocked: &[Operation], shared: &Shared, events: &mut Vec<Event>) {
        let now = clock::monotonic();
        self.looked.retain(|_, at| now.saturating_sub(*at) < 10 * SITE_EVERY);
        self.sought.retain(|_, at| *at > now);
        let waits = || blocked.iter().filter(|o| o.kind == Kind::LockWait);
        let waited_for: BTreeSet<(u32, u64)> = waits().map(|o| (o.actor.pid, o.object)).collect();
        // Who waits for a lock is in no system call.
        let waiting: BTreeSet<(u32, u64)> = waits().filter_map(|o| Some((o.actor.pid, o.actor.g?))).collect();
        // The semaphores of a lock are inside of it.
        let is_waited_for = |o: &Operation| {
            let lock = (o.actor.pid, o.object)..(o.actor.pid, o.object.saturating_add(RWMUTEX));
            waited_for.range(lock).next().is_some()
        };
        let worth = |o: &&Operation| {
            now.saturating_sub(o.begin) >= SITE_AFTER
                && match o.kind {
                    Kind::LockHold => is_waited_for(o),
                    kind => matches!(
                        kind,
                        Kind::Unmount
                            | Kind::SuperShutdown
                            | Kind::Sync
                            | Kind::InitMethod
                            | Kind::StatusUpdate
                    ),
                }
        };
        for operation in blocked.iter().filter(worth).take(MOST_LOOKS) {
            let (actor, known) = (operation.actor, shared.get(operation.actor.pid));
            let in_kernel = matches!(operation.kind, Kind::Unmount | Kind::SuperShutdown | Kind::Sync);
            let due = |looked: &BTreeMap<(u32, u32), Ns>, tid| {
                looked.get(&(actor.pid, tid)).is_none_or(|at| now.saturating_sub(*at) >= SITE_EVERY)
            };
            let goroutine = actor.g.filter(|_| !in_kernel).map(|g| (actor.pid, g));
            let idle = goroutine.is_some_and(|one| waiting.contains(&one) || self.sought.contains_key(&one));
            if idle || (in_kernel && !due(&self.looked, actor.tid)) {
                continue;
            }
            let read = self.workers.run(PATIENCE, move || {
                // A goroutine may have moved since it began; inside a system call it stays on its thread.
                let tid = if in_kernel { Some(actor.tid) } else { thread_of(actor.pid, actor.g?, &known?) };
                tid.and_then(|tid| threads::look(actor.pid, tid).ok())
            });
            let found = matches!(read, Ok(Some(_)));
            self.sought
                .extend(goroutine.map(|one| (one, now + if found { SITE_EVERY } else { SOUGHT_EVERY })));
            if let Ok(Some(site)) = read
                && due(&self.looked, site.site.tid)
            {
                self.looked.insert((site.site.pid, site.site.tid), now);
                events.push(Event { at: clock::monotonic(), body: Body::ThreadSite(site.site) });
            }
        }
    }

    fn note_devices(&mut self, blocked: &[Operation]) {
        self.devices.extend(blocked.iter().filter_map(|o| o.device));
    }

    fn containers(&mut self, shared: &Shared, events: &mut Vec<Event>) {
        let shims: BTreeSet<u32> = {
            let known = shared.known.read().unwrap_or_else(PoisonError::into_inner);
            known.values().filter(|k| k.process.role == Role::Shim).map(|k| k.process.pid).collect()
        };
        for pid in self.shims.difference(&shims).copied().collect::<Vec<_>>() {
            self.containers.shim_gone(pid);
            self.shims.remove(&pid);
        }
        for pid in shims {
            // One that is not in its bundle yet is asked again at the next scan.
            if !self.shims.contains(&pid) && self.containers.shim_appeared(pid).is_ok() {
                self.shims.insert(pid);
            }
        }
        let changes = self.containers.scan(&self.workers);
        let at = clock::monotonic();
        let mut running = lock(&shared.shims);
        running.retain(|_, shim| self.shims.contains(shim));
        for container in changes.containers {
            running.extend(container.shim.map(|shim| (container.id.clone(), shim)));
            self.devices.extend(container.upper.as_ref().map(|(device, _)| *device));
            events.push(Event { at, body: Body::Container(container) });
        }
        drop(running);
        for (what, reason) in changes.blind_spots {
            events.push(Event { at, body: Body::BlindSpot { what, reason } });
        }
    }

    fn disks(&mut self, events: &mut Vec<Event>) {
        /// No node has more devices under containers than this.
        const MOST_DEVICES: usize = 64;
        while self.devices.len() > MOST_DEVICES {
            self.devices.pop_first();
        }
        let at = clock::monotonic();
        if let Ok(unwritten) = disk::unwritten() {
            let body = Body::Memory { dirty: unwritten.dirty, writeback: unwritten.writeback };
            events.push(Event { at, body });
        }
        events.push(Event { at, body: Body::Pressure(pressure::all()) });
        if let Ok(stats) = disk::stats() {
            for device in &self.devices {
                if let Some(facts) = disk::facts(*device, &stats) {
                    events.push(Event { at, body: Body::Device(facts) });
                }
            }
        }
    }
}

/// The thread of a goroutine that is inside a system call; `None` when it is not.
fn thread_of(pid: u32, g: u64, known: &Known) -> Option<u32> {
    let offsets = known.offsets?;
    let memory = ProcessMemory::open(pid).ok()?;
    let status = memory.u32(g.checked_add(u64::from(offsets.atomic_status))?).ok()? & !offsets::STATUS_SCAN;
    if status != offsets::STATUS_SYSCALL {
        return None;
    }
    let m = memory.u64(g.checked_add(u64::from(offsets.g_m))?).ok()?;
    let tid = memory.u64(m.checked_add(u64::from(offsets.m_procid))?).ok()?;
    u32::try_from(tid).ok()
}
