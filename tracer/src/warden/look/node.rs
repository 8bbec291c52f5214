//! One look at the node: at all processes that take part, in order of suspicion, and a second and third time at those in which
//! something was in progress, since one look sees a moment only.

use super::{
    Looks, Opener, PATIENCE, lanes,
    one::{self, Target},
    order::{self, Suspicion},
    programs::Program,
};
use crate::{
    event::{Body, Event, LockName, Process, Role},
    look::{Count, Lacks, Leaked, LeftOut, Look, LookedAt, Summary},
    node::{
        alive,
        bundle::{self, BundleId},
        clock, memory,
        procs::{Exe, FileId, ProcessFacts, Processes},
        shims, threads,
    },
    warden::{
        LookOnce, binaries,
        child::{Known, Shared, lock},
        context, facts,
        outbox::Outbox,
        protocol::{Level, Message},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, mpsc::sync_channel},
    time::{Duration, Instant},
};

/// Between the two looks at a process.
const GAP: Duration = Duration::from_millis(150);
/// From the first look to the third, at those in which the second has found something too: on a busy node that may be
/// quick work that is about to end.
const LASTING: Duration = Duration::from_millis(350);
/// Reading programs may take this part of the time, one in so many.
const READING: u32 = 3;
/// How long the parent may keep a message waiting.
const HANDOVER: Duration = Duration::from_millis(200);
/// Threads of one process that are asked for their state.
const MOST_THREADS: usize = 1_024;
/// Programs of other names that are looked into; a node has some tens of them.
const MOST_OTHERS: usize = 256;
/// Processes of one program that are tried, in the order of their pids, until one has not gone.
const MOST_OPENED_BY: usize = 8;

/// Looks at the node once and tells.
pub fn once(wanted: &LookOnce, outbox: &Outbox, shared: &Arc<Shared>) {
    let began = Instant::now();
    let mut node = Node {
        outbox,
        shared,
        // Who gives it more time waits longer for each.
        looks: Looks::new(PATIENCE.max(wanted.within * 2 / 5)),
        processes: Processes::with(wanted.pids.clone()),
        end: began + wanted.within,
        seen: BTreeMap::new(),
        named: BTreeSet::new(),
    };
    let mut step = Steps { outbox, at: began };
    if let Err(error) = node.processes.scan(&node.looks.readers, false) {
        outbox.send(&Message::Fatal(format!("processes cannot be listed: {error}")));
        return;
    }
    step.done("finding processes");
    let likely = |p: &&ProcessFacts| {
        if wanted.pids.is_empty() { order::likely(&p.comm).is_some() } else { wanted.pids.contains(&p.pid) }
    };
    let first: Vec<ProcessFacts> = node.processes.iter().filter(likely).cloned().collect();
    node.take_up(first, !wanted.pids.is_empty(), began + wanted.within / READING);
    step.done("reading programs");
    let before = node.left_over();
    let context = node.tell_context();
    node.look_at(|role| role != Role::Shim);
    step.done("daemons");
    node.look_at(|_| true);
    step.done("shims");
    if wanted.pids.is_empty() {
        let unknown = |p: &&ProcessFacts| {
            order::likely(&p.comm).is_none()
                && matches!(p.exe, Exe::File(id) if node.looks.program(id).is_none())
        };
        let others: Vec<ProcessFacts> = node.processes.iter().filter(unknown).cloned().collect();
        node.take_up(others, false, node.end);
        node.look_at(|_| true);
        step.done("other programs");
    }
    node.look_again();
    step.done("looking again");
    if !before.is_empty() {
        // Processes that came meanwhile; without them one is called left over that is not.
        let _ = node.processes.scan(&node.looks.readers, false);
    }
    // Names that are not there by the end do not come.
    let _ = context.recv_timeout(node.end.saturating_duration_since(Instant::now()));
    step.done("waiting for names");
    let summary = node.summary(&before, began);
    node.tell(&Message::Looked(summary));
}

/// Tells where the time goes.
struct Steps<'o> {
    outbox: &'o Outbox,
    at: Instant,
}

impl Steps<'_> {
    fn done(&mut self, what: &str) {
        self.outbox
            .log(Level::Debug, format!("look: {what} took {:.1} ms", self.at.elapsed().as_secs_f64() * 1e3));
        self.at = Instant::now();
    }
}

struct Node<'o> {
    outbox: &'o Outbox,
    shared: &'o Arc<Shared>,
    looks: Looks,
    processes: Processes,
    end: Instant,
    seen: BTreeMap<u32, Seen>,
    /// Containers and sandboxes that calls and waits in daemons are about.
    named: BTreeSet<String>,
}

/// A process that takes part, and what has come of looking at it.
struct Seen {
    target: Target,
    exe: Option<FileId>,
    /// When it was looked at last.
    at: Option<Instant>,
    /// Whether its goroutines were seen.
    goroutines: bool,
    in_progress: bool,
    /// Why nothing, or too little, was seen.
    why: Option<String>,
}

impl Node<'_> {
    fn tell(&self, message: &Message) {
        if !self.outbox.offer(message, HANDOVER) {
            self.outbox
                .log(Level::Warning, "the look goes on without a message that could not be handed over");
        }
    }

    fn pids(&self, role: Role) -> Vec<u32> {
        let of_role = self.seen.iter().filter(|(_, seen)| seen.target.process.role == role);
        of_role.map(|(pid, _)| *pid).collect()
    }

    /// Shims that have nothing to run for at this moment. One that is just ending is among them.
    fn left_over(&self) -> BTreeMap<u32, (BundleId, Lacks)> {
        let shims = self.pids(Role::Shim);
        let parents: BTreeSet<u32> = self.processes.iter().map(|process| process.parent).collect();
        let at = clock::monotonic();
        // A container's first process is a child of the shim that serves it, or of one that was adopted by it.
        let without_task = shims.iter().filter(|pid| !parents.contains(pid)).filter_map(|pid| {
            let target = &self.seen.get(pid)?.target;
            let old = at.saturating_sub(target.process.started) >= shims::LEAKED_AFTER;
            // Of another kind of shim it is not known where its containers are.
            let bundle = (old && target.program.is_ok()).then(|| bundle::of_shim(*pid).ok()).flatten()?;
            Some((*pid, (bundle, Lacks::Task)))
        });
        let mut left_over: BTreeMap<_, _> = without_task.collect();
        left_over.extend(
            shims::without_bundle(&shims).into_iter().map(|(pid, bundle)| (pid, (bundle, Lacks::Bundle))),
        );
        left_over
    }

    /// Reads the programs of these processes, and takes up those that take part.
    fn take_up(&mut self, processes: Vec<ProcessFacts>, other: bool, end: Instant) {
        let mut running: BTreeMap<FileId, Vec<u32>> = BTreeMap::new();
        for process in &processes {
            if let Exe::File(id) = process.exe
                && (running.len() < MOST_OTHERS || running.contains_key(&id))
            {
                let pids = running.entry(id).or_default();
                if pids.len() < MOST_OPENED_BY {
                    pids.push(process.pid);
                }
            }
        }
        let opener = |pids: Vec<u32>| -> Opener { Box::new(self.processes.opener(&pids)) };
        let openers = running.into_iter().map(|(id, pids)| (id, opener(pids))).collect();
        self.looks.read(openers, other, end.min(self.end));
        let mut events = Vec::new();
        for facts in processes {
            let program = match &facts.exe {
                Exe::File(id) => match self.looks.program(*id) {
                    Some(Ok(Some(program))) => Ok(program),
                    // A program that takes no part, whatever its name.
                    Some(Ok(None)) => continue,
                    Some(Err(why)) => Err(why),
                    None => Err("there are too many programs".into()),
                },
                Exe::Unknown(why) => Err(format!("its program cannot be told: {why}")),
                Exe::KernelThread | Exe::Contained => continue,
            };
            // What it is, is told by its functions; where these are not known, by its name.
            let guessed = order::likely(&facts.comm).or(other.then_some(Role::Other));
            let Some(role) = program.as_ref().map_or(guessed, |program| Some(program.facts.role)) else {
                continue;
            };
            let exe = if let Exe::File(id) = facts.exe { Some(id) } else { None };
            let target = Target { process: process(&facts, role, &program), program };
            events.push(Body::Process(target.process.clone()));
            if let (Some(exe), Ok(program)) = (exe, &target.program) {
                self.know(&target.process, exe, program);
            }
            let seen = Seen { target, exe, at: None, goroutines: false, in_progress: false, why: None };
            self.seen.insert(facts.pid, seen);
        }
        let at = clock::monotonic();
        self.outbox.events(events.into_iter().map(|body| Event { at, body }).collect());
    }

    fn know(&self, process: &Process, exe: FileId, program: &Program) {
        let layout = program.facts.layout.as_ref().ok();
        let known = Known {
            process: process.clone(),
            offsets: layout.map(|layout| layout.offsets),
            health: None,
            exe,
            image: None,
            entry: program.facts.entry,
            all_goroutines: layout.map(|layout| layout.all_goroutines),
        };
        self.shared.known.write().unwrap_or_else(PoisonError::into_inner).insert(process.pid, known);
    }

    /// Has names, disks and what kubelets use told on another thread; what is received when all of it is.
    fn tell_context(&self) -> std::sync::mpsc::Receiver<()> {
        let (done, wait) = sync_channel(1);
        let (outbox, shared) = (self.outbox.clone(), Arc::clone(self.shared));
        let kubelets: Vec<Known> =
            self.pids(Role::Kubelet).iter().filter_map(|pid| shared.get(*pid)).collect();
        let tell = move || {
            context::once(&outbox, &shared);
            facts::of_kubelets(&outbox, kubelets);
            let _ = done.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("context".into()).spawn(tell) {
            self.outbox.log(Level::Warning, format!("names of containers are not told: {error}"));
        }
        wait
    }

    /// Looks at those of these roles that were not looked at yet, in order of suspicion.
    fn look_at(&mut self, role: impl Fn(Role) -> bool) {
        let named: BTreeSet<u32> = {
            let shims = lock(&self.shared.shims);
            self.named.iter().filter_map(|id| shims.get(id)).copied().collect()
        };
        let waiting = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.at.is_none() && seen.why.is_none() && role(seen.target.process.role));
        let mut targets: Vec<(Suspicion, Target)> = waiting
            .map(|(pid, seen)| {
                let of = seen.target.process.role;
                (order::suspicion(*pid, of, of == Role::Shim && stuck(*pid), &named), seen.target.clone())
            })
            .collect();
        targets.sort_by_key(|(suspicion, _)| *suspicion);
        self.run(targets.into_iter().map(|(_, target)| target).collect());
    }

    /// Takes up programs that were read after nobody waited for them any longer.
    fn take_up_late(&mut self) {
        let mut late = Vec::new();
        for seen in self.seen.values_mut().filter(|seen| seen.target.program.is_err()) {
            if let Some((exe, Ok(Some(program)))) =
                seen.exe.and_then(|id| Some((id, self.looks.program(id)?)))
            {
                seen.target.process.role = program.facts.role;
                seen.target.process.go_version = program.facts.build.go.clone();
                seen.target.process.version = program.facts.version.clone();
                seen.target.program = Ok(Arc::clone(&program));
                (seen.at, seen.why) = (None, None);
                late.push((seen.target.process.clone(), exe, program));
            }
        }
        let mut events = Vec::new();
        for (process, exe, program) in late {
            self.know(&process, exe, &program);
            events.push(Event { at: clock::monotonic(), body: Body::Process(process) });
        }
        self.outbox.events(events);
    }

    /// Looks a second time at what was in progress, and at what was not reached.
    fn look_again(&mut self) {
        self.take_up_late();
        self.look_at(|_| true);
        let due = |seen: &&Seen| {
            seen.in_progress || seen.why.as_deref().is_some_and(|why| why == lanes::NOT_REACHED)
        };
        let again: Vec<&Seen> = self.seen.values().filter(due).collect();
        let from = again.iter().filter_map(|seen| seen.at).max().map(|at| at + GAP);
        let first = again.iter().filter_map(|seen| seen.at).min();
        let targets: Vec<Target> = again.into_iter().map(|seen| seen.target.clone()).collect();
        if let Some(from) = from {
            std::thread::sleep(from.min(self.end).saturating_duration_since(Instant::now()));
        }
        self.run(targets);
        let lasting = self.seen.values().filter(|seen| seen.in_progress);
        let lasting: Vec<Target> = lasting.map(|seen| seen.target.clone()).collect();
        let from = first.map(|at| at + LASTING).filter(|at| *at < self.end && !lasting.is_empty());
        if let Some(from) = from {
            std::thread::sleep(from.saturating_duration_since(Instant::now()));
            self.run(lasting);
        }
    }

    fn run(&mut self, targets: Vec<Target>) {
        let (mut results, outbox) = (Vec::new(), self.outbox);
        self.looks.look(targets, self.end, |target, result| {
            if let Ok(looked) = &result
                && !outbox.offer(&Message::Look(looked.clone()), HANDOVER)
            {
                results.push((target, Err("what was seen could not be handed over in time".to_owned())));
                return;
            }
            results.push((target, result));
        });
        for (target, result) in results {
            self.learn(&target, result);
        }
    }

    fn learn(&mut self, target: &Target, result: Result<LookedAt, String>) {
        let Some(seen) = self.seen.get_mut(&target.process.pid) else { return };
        let look = match result.and_then(|looked| looked.look) {
            Ok(look) => look,
            // A first look counts even where the second fails.
            Err(why) => {
                seen.why = Some(why).filter(|_| !seen.goroutines);
                return;
            }
        };
        seen.at = Some(Instant::now());
        seen.in_progress = one::in_progress(&look);
        seen.goroutines = target.program.is_ok() && (!look.goroutines.is_empty() || look.running > 0);
        seen.why = Some(look.note.clone()).filter(|_| !seen.goroutines);
        if target.process.role != Role::Shim {
            self.named.extend(containers(&look));
        }
    }

    fn summary(&self, before: &BTreeMap<u32, (BundleId, Lacks)>, began: Instant) -> Summary {
        // One that could not be looked at because it has ended was none to be looked at.
        let there = |pid: u32, seen: &Seen| seen.why.is_none() || alive::leader_lives(pid);
        let seen: BTreeMap<u32, &Seen> = self
            .seen
            .iter()
            .filter(|(pid, seen)| there(**pid, seen))
            .map(|(pid, seen)| (*pid, seen))
            .collect();
        let of_role = |role: Role| {
            let all = || seen.values().filter(move |seen| seen.target.process.role == role);
            let looked_at = all().filter(|seen| seen.goroutines).count() as u32;
            Count { role, there: all().count() as u32, looked_at }
        };
        let roles = [Role::Containerd, Role::Shim, Role::Kubelet, Role::Other].map(of_role);
        let mut left_out: BTreeMap<(String, String), Vec<u32>> = BTreeMap::new();
        for (pid, seen) in &seen {
            if let Some(why) = &seen.why {
                let comm = seen.target.process.comm.clone();
                left_out.entry((comm, why.clone())).or_default().push(*pid);
            }
        }
        let left_out: Vec<LeftOut> =
            left_out.into_iter().map(|((comm, reason), pids)| LeftOut { comm, pids, reason }).collect();
        let at = clock::monotonic();
        let blind = left_out.iter().map(|left| {
            let what = match left.pids.as_slice() {
                [pid] => format!("goroutines of {} (pid {pid})", left.comm),
                pids => format!("goroutines of {} processes {}", pids.len(), left.comm),
            };
            Event { at, body: Body::BlindSpot { what, reason: left.reason.clone() } }
        });
        self.outbox.events(blind.collect());
        // One that is just ending lacks them for a moment: only those that still do.
        let still = self.left_over();
        let leaked = still.into_iter().filter_map(|(pid, (bundle, lacks))| {
            let (_, lacked) = before.get(&pid)?;
            let seen = self.seen.get(&pid)?;
            // Whoever is in the middle of something has something to run for.
            if lacks == Lacks::Task && (*lacked != lacks || !seen.goroutines || seen.in_progress) {
                return None;
            }
            let age = at.saturating_sub(seen.target.process.started);
            Some(Leaked { pid, id: bundle.id, age, resident: memory::resident(pid), lacks })
        });
        Summary {
            roles: roles.into_iter().filter(|count| count.there > 0).collect(),
            left_out,
            leaked: leaked.collect(),
            took: began.elapsed().as_nanos().try_into().unwrap_or(u64::MAX),
            stuck_reads: self.looks.stuck(),
            unreadable: binaries::unreadable(&self.processes),
        }
    }
}

fn process(facts: &ProcessFacts, role: Role, program: &Result<Arc<Program>, String>) -> Process {
    Process {
        pid: facts.pid,
        started: facts.started,
        role,
        comm: facts.comm.clone(),
        go_version: program.as_ref().map_or_else(Clone::clone, |program| program.facts.build.go.clone()),
        version: program.as_ref().ok().and_then(|program| program.facts.version.clone()),
    }
}

/// Whether a thread of this process is in uninterruptible sleep.
fn stuck(pid: u32) -> bool {
    let tids = threads::of_process(pid, MOST_THREADS).unwrap_or_default();
    tids.into_iter().any(|tid| threads::state(pid, tid) == Some('D'))
}

/// Containers that calls and waits are about.
fn containers(look: &Look) -> BTreeSet<String> {
    let calls = look.goroutines.iter().flat_map(|g| &g.calls).filter_map(|call| call.container.clone());
    let locks = look.goroutines.iter().filter_map(|g| g.waits.as_ref()?.lock.as_ref());
    let of_locks = locks.map(|(_, lock)| match lock {
        LockName::Status(id) | LockName::Init(id) => id.clone(),
    });
    calls.chain(of_locks).collect()
}
