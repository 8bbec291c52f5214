//! Tells what changes slowly and is dear to find out: what kubelets really use, shims that are left over, who keeps a mount
//! busy. On a thread and on workers of its own, so that nothing waits for it.

use super::{
    child::{Known, Shared, take},
    outbox::Outbox,
    protocol::Message,
};
use crate::{
    event::{Body, Event, KubeletFacts, Ns, Role},
    golang::health::{BELIEVED, Threshold},
    node::{
        clock, kubelet,
        memory::{Memory, MemoryError, ProcessMemory},
        pins,
        shims::Shims,
        worker::Workers,
    },
    thresholds::SECOND,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

/// How often there is something to do.
const EVERY: Duration = Duration::from_millis(500);
/// How often shims are looked at.
const SHIMS_EVERY: Ns = 10 * SECOND;
/// How often a kubelet is asked again: its threshold changes when it falls back from events to relists.
const KUBELET_EVERY: Ns = 30 * SECOND;
/// The same path is looked at again after this time.
const PINS_EVERY: Ns = 5 * SECOND;
/// Threads that may hang.
const WORKERS: usize = 4;
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A survey waits this long for the programs to be read before it goes on with those that could be.
const SURVEY: Ns = 12 * SECOND;

/// Tells until the process ends.
pub fn run(outbox: &Outbox, shared: &Shared) {
    let workers = Workers::new(WORKERS);
    let mut shims = Shims::default();
    let mut next_shims = clock::monotonic() + SHIMS_EVERY;
    let mut kubelets: BTreeMap<u32, (Ns, KubeletFacts)> = BTreeMap::new();
    let mut looked: BTreeMap<String, Ns> = BTreeMap::new();
    while !shared.ending() {
        let now = clock::monotonic();
        let mut events = Vec::new();
        looked.retain(|_, at| now.saturating_sub(*at) < PINS_EVERY);
        for (path, by) in take(&shared.busy) {
            if looked.contains_key(&path) {
                continue;
            }
            looked.insert(path.clone(), now);
            let there = PathBuf::from(&path);
            let found = workers.run(PATIENCE, move || pins::find(&there, by));
            let found = found.unwrap_or_else(|why| crate::event::Pins {
                path,
                of: Vec::new(),
                reason: why.to_string(),
            });
            events.push(Body::Pins(found));
        }
        if now >= next_shims {
            next_shims = now + SHIMS_EVERY;
            let left = shims.look(&pids(shared, Role::Shim), now);
            events.extend(left.into_iter().map(|(pid, bundle)| Body::LeakedShim { pid, id: bundle.id }));
        }
        let there: BTreeSet<u32> = pids(shared, Role::Kubelet).into_iter().collect();
        kubelets.retain(|pid, _| there.contains(pid));
        for pid in there {
            let before = kubelets.get(&pid);
            if before.is_some_and(|(at, _)| now.saturating_sub(*at) < KUBELET_EVERY) {
                continue;
            }
            let Some(known) = shared.get(pid) else { continue };
            let (facts, _) = kubelet_facts(known, &workers);
            if before.is_none_or(|(_, told)| *told != facts) {
                events.push(Body::Kubelet(facts.clone()));
            }
            kubelets.insert(pid, (now, facts));
        }
        let at = clock::monotonic();
        outbox.events(events.into_iter().map(|body| Event { at, body }).collect());
        std::thread::sleep(EVERY);
    }
}

/// Tells once what these kubelets use.
pub fn of_kubelets(outbox: &Outbox, kubelets: Vec<Known>) {
    let workers = Workers::new(WORKERS);
    for known in kubelets {
        let body = Body::Kubelet(kubelet_facts(known, &workers).0);
        outbox.events(vec![Event { at: clock::monotonic(), body }]);
    }
}

/// Tells once how exposed this node is; each part again as soon as it is known.
pub fn expose(outbox: &Outbox, shared: &Shared) {
    let workers = Workers::new(WORKERS);
    let mut facts = crate::node::exposure::of_node();
    outbox.send(&Message::Exposure(facts.clone()));
    let end = clock::monotonic() + SURVEY;
    while !shared.surveyed.load(Ordering::Acquire) && clock::monotonic() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    if !shared.surveyed.load(Ordering::Acquire) {
        let why = format!("not all programs could be read within {} s; a disk may be stuck", SURVEY / SECOND);
        facts.not_known.push(("programs".into(), why));
    }
    let known: Vec<Known> =
        shared.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
    let mut wanted = Vec::new();
    for known in known.iter().filter(|known| known.process.role == Role::Kubelet) {
        let (of, configured) = kubelet_facts(known.clone(), &workers);
        let mut root = None;
        match configured {
            Ok(configured) => {
                root = configured.root;
                let trouble = |why| ("the kubelet's configuration".to_owned(), why);
                facts.not_known.extend(configured.troubles.into_iter().map(trouble));
            }
            Err(why) => facts.not_known.push(("the kubelet's configuration".into(), why)),
        }
        if let Some(root) = root {
            wanted.push(("the kubelet's root".to_owned(), of.pid, root));
        }
        facts.kubelets.push(of);
    }
    let processes = known.into_iter().map(|known| known.process).collect();
    crate::node::exposure::of_runtimes(&mut facts, processes, wanted, &workers);
    facts.complete = true;
    outbox.send(&Message::Exposure(facts));
}

fn pids(shared: &Shared, role: Role) -> Vec<u32> {
    let known = shared.known.read().unwrap_or_else(PoisonError::into_inner);
    known.values().filter(|known| known.process.role == role).map(|known| known.process.pid).collect()
}

/// What a kubelet uses, each with where it was read, and its configuration or why that could not be read.
fn kubelet_facts(known: Known, workers: &Workers) -> (KubeletFacts, Result<kubelet::Configured, String>) {
    let pid = known.process.pid;
    let configured = match workers.run(PATIENCE, move || kubelet::configured(pid)) {
        Ok(Ok(configured)) => Ok(configured),
        Ok(Err(why)) => Err(why.to_string()),
        Err(why) => Err(why.to_string()),
    };
    let threshold = workers.run(PATIENCE, move || threshold(&known)).ok().flatten();
    let set = configured.as_ref().ok();
    // What its source says for the two ways it can watch the runtime.
    let assumed = || {
        let (on, from) = set?.evented_pleg.clone().unwrap_or((false, "its default".into()));
        let (ns, minutes) = if on { (600 * SECOND, 10) } else { (180 * SECOND, 3) };
        let word = if on { "on" } else { "off" };
        Some((
            ns,
            format!("not read from the kubelet; {minutes} minutes is usual with EventedPLEG {word} ({from})"),
        ))
    };
    let facts = KubeletFacts {
        pid,
        pleg_threshold: threshold.or_else(assumed),
        cpu_manager_policy: set.and_then(|set| set.cpu_manager_policy.clone()),
        request_timeout: set.and_then(|set| set.request_timeout.as_ref().map(|(ns, _)| *ns)),
    };
    (facts, configured)
}

/// The threshold as the running program has it.
fn threshold(known: &Known) -> Option<(Ns, String)> {
    let health = known.health.as_ref()?.as_ref().ok()?;
    match health.threshold {
        Threshold::Constant(ns) => Some((ns, "the code of pleg.Healthy in the running kubelet".into())),
        Threshold::Field { outer, inner } => {
            let memory = ProcessMemory::open(known.process.pid).ok()?;
            let bias = super::binaries::bias(known.process.pid, known.entry).ok()?;
            let offsets = known.offsets?;
            let all = known.all_goroutines?.wrapping_add(bias);
            let closures: Vec<u64> = health.closures.iter().map(|at| at.wrapping_add(bias)).collect();
            let receiver = receiver(&memory, &offsets, all, &closures, (outer, inner))?;
            let ns = field(&memory, receiver, (outer, inner)).ok()?;
            Some((ns, "the memory of the running kubelet (relistDuration.RelistThreshold)".into()))
        }
    }
}

fn field(memory: &impl Memory, receiver: u64, (outer, inner): (u32, u32)) -> Result<u64, MemoryError> {
    memory.u64(memory.u64(receiver.wrapping_add(u64::from(outer)))?.wrapping_add(u64::from(inner)))
}

/// The `GenericPLEG` whose method is relisting: on the stack of the goroutine that does it lies the closure that
/// `go wait.Until(g.Relist, …)` was given. Believed only when a threshold that can be one lies where the code says, and all
/// that is found agrees.
fn receiver(
    memory: &impl Memory,
    offsets: &crate::golang::offsets::Offsets,
    all: u64,
    closures: &[u64],
    place: (u32, u32),
) -> Option<u64> {
    /// Goroutines looked at, bytes of one stack, and words followed.
    const MOST: (u64, u64, usize) = (4096, 16 << 10, 200_000);
    let (first, count) = (memory.u64(all).ok()?, memory.u64(all.wrapping_add(8)).ok()?.min(MOST.0));
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    for n in 0..count {
        let mut word = |at: u64| memory.u64(at).ok();
        let Some(g) = word(first.wrapping_add(8 * n)) else { continue };
        let Ok(goroutine) = crate::golang::unwind::Goroutine::read(&mut word, offsets, g) else { continue };
        let length = (goroutine.stack_hi - goroutine.sp).min(MOST.1) as usize / 8 * 8;
        let mut stack = vec![0; length];
        if memory.read(goroutine.sp, &mut stack).is_err() {
            continue;
        }
        for word in stack.chunks_exact(8).filter_map(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)))
        {
            // Pointers into Go's heap are aligned and far above nothing.
            if word % 8 != 0 || word < 1 << 20 || seen.len() >= MOST.2 || !seen.insert(word) {
                continue;
            }
            if memory.u64(word).is_ok_and(|code| closures.contains(&code))
                && let Ok(receiver) = memory.u64(word.wrapping_add(8))
                && field(memory, receiver, place).is_ok_and(|ns| BELIEVED.contains(&ns))
            {
                found.insert(receiver);
            }
        }
    }
    if found.len() == 1 { found.pop_first() } else { None }
}
