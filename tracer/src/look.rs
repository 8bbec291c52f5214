//! What a look at a process's memory has seen, as plain data, and what follows from it: operations in flight that no
//! probe saw begin. Pure; [`crate::warden`] does the looking.
//!
//! One look sees a moment. What it finds may be on its way; only what a second look finds again is told as blocked, and it
//! began when the first look saw it, *or before*: see [`Began::ThenOrBefore`].

use crate::event::{
    Actor, Began, Body, Event, GoroutineSite, Kind, LockName, Ns, Operation, Process, Role, SeenBy,
    ThreadSite,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A process and what was seen of it, or why nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedAt {
    /// Which.
    pub process: Process,
    /// When it was looked at.
    pub at: Ns,
    /// What was seen; else why nothing was, in words.
    pub look: Result<Look, String>,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Goroutines that did not run, in the runtime's own order.
    pub goroutines: Vec<Goroutine>,
    /// How many ran at that moment: where they are is not known.
    pub running: u32,
    /// Why goroutines were left out, and how many for each reason.
    pub left_out: Vec<(String, u32)>,
    /// Threads in uninterruptible sleep on which none of these goroutines is.
    pub threads: Vec<Thread>,
    /// What makes the look weaker than it could be; empty when nothing does.
    pub note: String,
}

/// A goroutine that did not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goroutine {
    /// Address of its `g`.
    pub g: u64,
    /// Its number.
    pub goid: u64,
    /// Why it does not run, in the words of Go's own tracebacks: `sync.Mutex.Lock`, `select`, `syscall`, `runnable`.
    pub state: String,
    /// Since when it has been parked at the latest, where the garbage collector has noticed that.
    pub parked_since: Option<Ns>,
    /// The lock it waits for.
    pub waits: Option<Wait>,
    /// Where its thread sits in the kernel, when it is in a system call.
    pub thread: Option<ThreadSite>,
    /// Its frames, innermost first, inlined ones included.
    pub frames: Vec<Frame>,
    /// Why frames are missing at the outer end; empty when none are.
    pub cut: String,
    /// The `go` statement that made it, and the number of the goroutine that ran that (since Go 1.21).
    pub created_by: Option<(Frame, Option<u64>)>,
    /// Operations it is in the middle of, outermost first.
    pub calls: Vec<Call>,
}

/// A wait for a `sync.Mutex` or one side of a `sync.RWMutex`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Address of the semaphore, a field of the lock.
    pub semaphore: u64,
    /// When it began, where the program itself keeps that.
    pub since: Option<Ns>,
    /// Base address of the lock and whose it is, where that could be told.
    pub lock: Option<(u64, LockName)>,
    /// See [`Call::fingerprint`]; of the whole stack.
    pub fingerprint: Option<u32>,
}

/// A place in a Go program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Full name of the function.
    pub function: String,
    /// Source file, as the compiler names it.
    pub file: String,
    /// Line in it; 0 when it is not known.
    pub line: u32,
    /// Whether the function was inlined into the next.
    pub inlined: bool,
    /// Where it continues, an address in the running program.
    pub pc: u64,
    /// How far behind the entry of the function, or of the one that it was inlined into, that is.
    pub offset: u64,
}

/// An operation that a goroutine is in the middle of, told from a function on its stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What it is.
    pub kind: Kind,
    /// Which function or request.
    pub method: String,
    /// See [`Operation::object`]; 0 when it could not be told.
    pub object: u64,
    /// Container or sandbox id.
    pub container: Option<String>,
    /// Path of the mount, for an unmount.
    pub path: Option<String>,
    /// Stays the same for as long as it lasts and has not gone on; another call of the same function has another.
    /// `None` when its stack was not kept: then it cannot be told from another.
    pub fingerprint: Option<u32>,
}

/// A thread of which no goroutine is known, and where it sits in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Where it sits.
    pub site: ThreadSite,
    /// Operations it is in the middle of, outermost first: as far as its system call tells.
    pub calls: Vec<Call>,
}

/// How a look at all processes of the node went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Processes that were wanted, by role.
    pub roles: Vec<Count>,
    /// Processes that were not looked at, or not at their goroutines, and why.
    pub left_out: Vec<LeftOut>,
    /// Shims that are left over: they have no bundle or no task.
    pub leaked: Vec<Leaked>,
    /// How long it took, ns.
    pub took: Ns,
    /// Reads that had not come back at the end.
    pub stuck_reads: u64,
    /// Processes whose program may not be looked at (not root): containerd may be among them.
    pub unreadable: u32,
}

/// Processes of one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Which role.
    pub role: Role,
    /// How many there are.
    pub there: u32,
    /// Of how many the goroutines were seen.
    pub looked_at: u32,
}

/// Processes that were left out for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The name they have in common.
    pub comm: String,
    /// Which.
    pub pids: Vec<u32>,
    /// Why, in words.
    pub reason: String,
}

/// A shim that still runs without anything to run for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaked {
    /// Which.
    pub pid: u32,
    /// The container or sandbox it was started for.
    pub id: String,
    /// Time since it was started, ns.
    pub age: Ns,
    /// Its resident memory, bytes.
    pub resident: Option<u64>,
    /// What it lacks.
    pub lacks: Lacks,
}

/// What a shim needs and a left over one lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lacks {
    /// The folder of its bundle: containerd has removed it, and so has forgotten the shim.
    Bundle,
    /// A live task: none of its containers has a process any more. containerd may still find that out and end it.
    Task,
}

/// Operations that are remembered from look to look, over all processes.
const MOST: usize = 8_192;

/// What tells an operation from all others of its process: goroutine or thread, goroutine number, what it is, fingerprint.
type Key = (u64, u64, Kind, String, u64, u32);

/// What the last look at a process has seen in progress.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Start of the process.
    started: Ns,
    /// Since when each operation is known.
    operations: BTreeMap<Key, Ns>,
    /// Whether one of them was not there before: another look must find it again.
    new: bool,
    /// Whether one of them was there before.
    told: bool,
}

/// What earlier looks have seen.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// By process: what was seen there.
    seen: BTreeMap<u32, Seen>,
    /// Operations that were not taken because there were [`MOST`].
    pub refused: u64,
}

impl Looks {
    /// What follows from another look at a process: events of the time of the look.
    pub fn events(&mut self, looked: &LookedAt) -> Vec<Event> {
        let (pid, at) = (looked.process.pid, looked.at);
        let Ok(look) = &looked.look else {
            return Vec::new(); // Nothing was seen: nothing is over either.
        };
        let others = self.seen.iter().filter(|(p, _)| **p != pid).map(|(_, seen)| seen.operations.len());
        let others: usize = others.sum();
        let before = match self.seen.remove(&pid) {
            Some(seen) if seen.started == looked.process.started => seen.operations,
            _ => BTreeMap::new(),
        };
        let mut now = BTreeMap::new();
        let mut bodies = Vec::new();
        let goroutines = look.goroutines.iter().map(Sleeper::Goroutine);
        for sleeper in goroutines.chain(look.threads.iter().map(Sleeper::Thread)) {
            let mut blocked = false;
            for (key, operation) in sleeper.operations(looked, &before) {
                let Some(key) = key else { continue };
                let again = before.contains_key(&key);
                if others + now.len() >= MOST {
                    self.refused = self.refused.saturating_add(1);
                    continue;
                }
                now.insert(key, operation.begin);
                if again {
                    blocked = true;
                    bodies.push(Body::InFlight(operation));
                }
            }
            match sleeper {
                Sleeper::Goroutine(goroutine) if blocked => bodies.extend(goroutine.sites(looked)),
                Sleeper::Thread(thread) => bodies.push(Body::ThreadSite(thread.site.clone())),
                Sleeper::Goroutine(_) => {}
            }
        }
        let new = now.keys().any(|key| !before.contains_key(key));
        let told = now.keys().any(|key| before.contains_key(key));
        self.seen.insert(pid, Seen { started: looked.process.started, operations: now, new, told });
        bodies.push(Body::Looked { pid });
        bodies.into_iter().map(|body| Event { at, body }).collect()
    }

    /// Whether anything is in progress there, as far as the last look saw.
    pub fn has(&self, pid: u32) -> bool {
        self.seen.get(&pid).is_some_and(|seen| !seen.operations.is_empty())
    }

    /// Whether something is in progress there that only the last look has seen.
    pub fn has_new(&self, pid: u32) -> bool {
        self.seen.get(&pid).is_some_and(|seen| seen.new)
    }

    /// Whether something is in progress there that was told, since two looks have seen it.
    pub fn has_told(&self, pid: u32) -> bool {
        self.seen.get(&pid).is_some_and(|seen| seen.told)
    }

    /// Forgets all processes but these.
    pub fn retain(&mut self, lives: impl Fn(u32) -> bool) {
        self.seen.retain(|pid, _| lives(*pid));
    }
}

/// Who is in the middle of operations.
#[derive(Clone, Copy)]
enum Sleeper<'l> {
    Goroutine(&'l Goroutine),
    Thread(&'l Thread),
}

impl Sleeper<'_> {
    /// Its operations, outermost first, with what tells each from others of this process.
    fn operations(self, looked: &LookedAt, before: &BTreeMap<Key, Ns>) -> Vec<(Option<Key>, Operation)> {
        let pid = looked.process.pid;
        let (actor, calls, waits, parked) = match self {
            Sleeper::Goroutine(g) => (g.actor(pid), &g.calls, g.waits.as_ref(), g.parked_since),
            Sleeper::Thread(Thread { site, calls }) => {
                (Actor { pid, tid: site.tid, g: None, goid: None }, calls, None, None)
            }
        };
        // A wait for a container's end lasts for the container's life and says nothing.
        let by_design = |call: &&Call| call.kind == Kind::ShimCall && call.method == "Wait";
        let calls = calls.iter().filter(|call| !by_design(call));
        let mut inwards: Vec<(Call, Option<Ns>)> = calls.map(|c| (c.clone(), None)).collect();
        if let Some(wait) = waits {
            let (kind, method, object) = (Kind::LockWait, String::new(), wait.semaphore);
            let fingerprint = wait.fingerprint;
            inwards
                .push((Call { kind, method, object, container: None, path: None, fingerprint }, wait.since));
        }
        // It sits where it sits since then at the latest, and began what is further out before what is further in.
        let mut bound = parked.unwrap_or(looked.at).min(looked.at);
        let mut operations = Vec::with_capacity(inwards.len());
        let who = (actor.g.unwrap_or(u64::from(actor.tid)), actor.goid.unwrap_or(0));
        for (call, since) in inwards.into_iter().rev() {
            // What keeps its own time needs no fingerprint.
            let fingerprint = if since.is_some() { Some(0) } else { call.fingerprint };
            let key = fingerprint.map(|f| (who.0, who.1, call.kind, call.method.clone(), call.object, f));
            let known = || key.as_ref().and_then(|key| before.get(key));
            let begin = since.unwrap_or_else(|| known().map_or(bound, |known| bound.min(*known)));
            bound = begin.saturating_sub(1);
            operations.push((
                key,
                Operation {
                    kind: call.kind,
                    method: call.method,
                    actor,
                    begin,
                    began: if since.is_some() { Began::Then } else { Began::ThenOrBefore },
                    object: call.object,
                    container: call.container,
                    path: call.path,
                    device: None,
                    fs_type: None,
                    seen_by: SeenBy::Memory,
                },
            ));
        }
        operations.reverse();
        operations
    }
}

impl Goroutine {
    /// Whether it is in the middle of something.
    pub fn matters(&self) -> bool {
        self.waits.is_some() || !self.calls.is_empty() || self.thread.is_some()
    }

    fn actor(&self, pid: u32) -> Actor {
        let tid = self.thread.as_ref().map_or(0, |thread| thread.tid);
        Actor { pid, tid, g: Some(self.g), goid: Some(self.goid) }
    }

    /// Where it and its thread sit, and whose lock it waits for.
    fn sites(&self, looked: &LookedAt) -> impl Iterator<Item = Body> {
        /// Functions of one goroutine that are told; the innermost say most.
        const FUNCTIONS: usize = 32;
        let pid = looked.process.pid;
        let functions = self.frames.iter().take(FUNCTIONS).map(|f| f.function.clone()).collect();
        let site = GoroutineSite { actor: self.actor(pid), state: self.state.clone(), functions };
        let lock = self.waits.as_ref().and_then(|wait| wait.lock.clone());
        let lock = lock.map(|(base, lock)| Body::LockIdentity { pid, base, lock });
        lock.into_iter().chain(self.thread.clone().map(Body::ThreadSite)).chain([Body::GoroutineSite(site)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Ns = 1_000_000_000;

    fn call(kind: Kind, method: &str, object: u64) -> Call {
        Call { kind, method: method.into(), object, container: None, path: None, fingerprint: Some(1) }
    }

    fn goroutine(goid: u64, calls: Vec<Call>, waits: Option<Wait>) -> Goroutine {
        Goroutine {
            g: 0xc000 + goid,
            goid,
            state: "sync.Mutex.Lock".into(),
            parked_since: None,
            waits,
            thread: None,
            frames: Vec::new(),
            cut: String::new(),
            created_by: None,
            calls,
        }
    }

    fn looked(at: Ns, started: Ns, goroutines: Vec<Goroutine>) -> LookedAt {
        let process = Process {
            pid: 300,
            started,
            role: Role::Shim,
            comm: "containerd-shim".into(),
            go_version: "go1.19.8".into(),
            version: None,
        };
        LookedAt { process, at, look: Ok(Look { goroutines, ..Look::default() }) }
    }

    fn in_flight(events: &[Event]) -> Vec<Operation> {
        let of = |event: &Event| match &event.body {
            Body::InFlight(operation) => Some(operation.clone()),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    }

    #[test]
    fn a_moment_is_not_told_and_what_stays_began_when_it_was_first_seen_or_before() {
        let mut looks = Looks::default();
        let delete = || {
            goroutine(8, vec![call(Kind::ShimServe, "Delete", 0), call(Kind::InitMethod, "Delete", 7)], None)
        };
        let passing = goroutine(9, vec![call(Kind::ShimServe, "State", 0)], None);
        let first = looks.events(&looked(10 * SECOND, 1, vec![delete(), passing]));
        assert_eq!(first.len(), 1, "{first:?}");
        assert_eq!(first[0].body, Body::Looked { pid: 300 });
        assert!(looks.has_new(300) && !looks.has_told(300));
        let second = in_flight(&looks.events(&looked(11 * SECOND, 1, vec![delete()])));
        let told: Vec<_> = second.iter().map(|o| (o.kind, o.begin, o.began)).collect();
        let before = Began::ThenOrBefore;
        assert_eq!(
            told,
            [(Kind::ShimServe, 10 * SECOND - 1, before), (Kind::InitMethod, 10 * SECOND, before)]
        );
        assert!(!looks.has_new(300) && looks.has_told(300) && looks.has(300));
        let third = in_flight(&looks.events(&looked(12 * SECOND, 1, vec![delete()])));
        assert_eq!(third, second, "the same identities");
        let other = in_flight(&looks.events(&looked(13 * SECOND, 2, vec![delete()])));
        assert!(other.is_empty(), "another process of the same pid");
    }

    #[test]
    fn another_call_of_the_same_function_by_the_same_goroutine_is_another() {
        let mut looks = Looks::default();
        let relist = |fingerprint| {
            let mut call = call(Kind::Relist, "", 0);
            call.fingerprint = fingerprint;
            vec![goroutine(8, vec![call], None)]
        };
        looks.events(&looked(10 * SECOND, 1, relist(Some(1))));
        let other = looks.events(&looked(20 * SECOND, 1, relist(Some(2))));
        assert_eq!(in_flight(&other), [], "it may have begun a moment ago");
        let again = in_flight(&looks.events(&looked(21 * SECOND, 1, relist(Some(2)))));
        assert_eq!(again.iter().map(|o| o.begin).collect::<Vec<_>>(), [20 * SECOND]);
        for at in [22, 23] {
            let unknown = looks.events(&looked(at * SECOND, 1, relist(None)));
            assert_eq!(in_flight(&unknown), [], "it cannot be told whether it is the same");
        }
    }

    #[test]
    fn times_that_the_program_keeps_are_used() {
        let mut looks = Looks::default();
        let wait = Wait { semaphore: 0x24, since: Some(3 * SECOND), lock: None, fingerprint: Some(1) };
        let update = goroutine(7, vec![call(Kind::InitMethod, "Update", 0)], Some(wait));
        let look = looked(10 * SECOND, 1, vec![update]);
        let first = in_flight(&looks.events(&look));
        assert!(first.is_empty(), "what belongs to it is not known yet: {first:?}");
        let second = in_flight(&looks.events(&look));
        let told: Vec<_> = second.iter().map(|o| (o.begin, o.began)).collect();
        let around = (3 * SECOND - 1, Began::ThenOrBefore);
        assert_eq!(told, [around, (3 * SECOND, Began::Then)], "what is around it began before");

        let mut parked = goroutine(8, vec![call(Kind::CriCall, "ListContainers", 0)], None);
        parked.parked_since = Some(4 * SECOND);
        let look = looked(10 * SECOND, 1, vec![parked]);
        looks.events(&look);
        assert_eq!(in_flight(&looks.events(&look))[0].begin, 4 * SECOND);
    }

    #[test]
    fn a_thread_without_a_goroutine_is_told_and_its_call_once_it_lasts() {
        let mut looks = Looks::default();
        let site = ThreadSite {
            pid: 300,
            tid: 304,
            state: 'D',
            syscall: Some(166),
            arguments: Vec::new(),
            kernel_stack: vec!["sync_filesystem".into()],
        };
        let thread = Thread { site: site.clone(), calls: vec![call(Kind::Unmount, "", 0)] };
        let look = |at| LookedAt {
            look: Ok(Look { threads: vec![thread.clone()], ..Look::default() }),
            ..looked(at, 1, Vec::new())
        };
        let first = looks.events(&look(10 * SECOND));
        assert!(in_flight(&first).is_empty() && first[0].body == Body::ThreadSite(site), "{first:?}");
        let second = in_flight(&looks.events(&look(11 * SECOND)));
        let told: Vec<_> = second.iter().map(|o| (o.kind, o.actor.tid, o.actor.g, o.begin)).collect();
        assert_eq!(told, [(Kind::Unmount, 304, None, 10 * SECOND)]);
    }

    #[test]
    fn a_look_that_failed_ends_nothing() {
        let mut looks = Looks::default();
        let delete = || goroutine(8, vec![call(Kind::ShimServe, "Delete", 0)], None);
        looks.events(&looked(10 * SECOND, 1, vec![delete()]));
        let failed = LookedAt { look: Err("no answer".into()), ..looked(11 * SECOND, 1, Vec::new()) };
        assert!(looks.events(&failed).is_empty());
        assert_eq!(in_flight(&looks.events(&looked(12 * SECOND, 1, vec![delete()]))).len(), 1);
    }
}
