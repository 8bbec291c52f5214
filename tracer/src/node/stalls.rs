//! Processes that do not run although they should: frozen, stopped, held by a debugger, or starved of CPU or memory.
//!
//! Told from how often the kernel has let each thread run (`schedstat`): who has not been on a CPU between two looks and
//! is in a state that keeps it off, has not left that state either. Times are those of the looks, so a stall is told at
//! most one look too short, never too long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::cgroups::{Hierarchies, Quota};
use super::procs::parse_stat;
use super::worker::Workers;
use super::{ReadError, clock, number, read_file, threads};
use crate::event::{Actor, Began, Kind, Ns, Operation, SeenBy};

/// Threads looked at in one process.
const MOST_THREADS: usize = 256;
/// Threads whose kernel stack is read in one process.
const MOST_STACKS: usize = 8;
/// Longest wait for one process.
const PATIENCE: Duration = Duration::from_millis(250);
/// Starvation is told when it has lasted so long.
const SETTLED: Ns = 2_000_000_000;
/// Longest period that a CPU quota can have (`max_cfs_quota_period`, kernel/sched/core.c): who was held back for so long
/// has been counted.
const LONGEST_PERIOD: Ns = 1_000_000_000;
/// `stat` and `schedstat` are one line.
const SMALL: usize = 16 * 1024;

/// A thread as one look finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// State letter.
    pub state: char,
    /// Time on a CPU since its start, ns.
    pub ran: Ns,
    /// Time it was ready and got none, ns; what it waits right now is added when it gets one.
    pub waited: Ns,
    /// How often it got one.
    pub turns: u64,
}

/// All threads of a process at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Ns,
    /// By thread id.
    pub threads: BTreeMap<u32, Thread>,
}

/// What two looks at the same process tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It runs, or has nothing to do.
    Well,
    /// It has nothing to do, or is frozen: no thread ran.
    Still,
    /// All threads are stopped (job control).
    Stopped,
    /// All threads are held by a debugger.
    Traced,
    /// It asked for more CPU than it got: time on a CPU, and time it was ready and got none.
    Hungry(Ns, Ns),
}

/// Compares two looks.
pub fn compare(before: &Sample, now: &Sample) -> Told {
    let elapsed = now.at.saturating_sub(before.at);
    let (mut ran, mut waited, mut still) = (0, 0, true);
    for (tid, thread) in &now.threads {
        let Some(earlier) = before.threads.get(tid) else {
            still = false;
            continue;
        };
        ran += thread.ran.saturating_sub(earlier.ran);
        let same = thread.turns == earlier.turns && thread.ran == earlier.ran;
        still &= same;
        waited += match (earlier.state, thread.state) {
            // It waits since before the first look; the kernel adds it up only when the wait is over.
            ('R', 'R') if same => elapsed,
            _ => thread.waited.saturating_sub(earlier.waited).min(elapsed),
        };
    }
    let mut states =
        now.threads.values().map(|t| t.state).filter(|s| !matches!(s, 'Z' | 'X' | 'D')).peekable();
    // A thread in D cannot be stopped before the kernel lets it go, and does nothing of its own until then.
    if still && states.peek().is_some() {
        let states: Vec<char> = states.collect();
        match (states.iter().all(|s| matches!(s, 'T' | 't')), states.contains(&'T')) {
            (true, true) => return Told::Stopped,
            (true, false) => return Told::Traced,
            _ => {}
        }
    }
    // Less than a fifth of what it asked for, and it asked for something all the time.
    if waited >= elapsed / 2 && elapsed > 0 && ran.saturating_mul(4) <= waited {
        return Told::Hungry(ran, waited);
    }
    if still { Told::Still } else { Told::Well }
}

/// Watches processes.
pub struct Stalls {
    watched: BTreeMap<u32, Watched>,
    settled: Ns,
}

impl Default for Stalls {
    fn default() -> Self {
        Stalls { watched: BTreeMap::new(), settled: SETTLED }
    }
}

#[derive(Default)]
struct Watched {
    last: Option<Sample>,
    /// Since when it has been hungry, what it got and missed since, and its quotas.
    hungry: Option<Hunger>,
    /// Threads in D that have not moved: how often each had run, and since when.
    asleep: BTreeMap<u32, (u64, Ns)>,
    stall: Option<Operation>,
}

struct Hunger {
    since: Ns,
    ran: Ns,
    waited: Ns,
    /// Its quotas as they were first read, and when; again when they are those of other groups.
    quotas: Option<(Ns, Vec<Quota>)>,
}

/// What changed in one look.
#[derive(Debug, Default)]
pub struct Changes {
    /// Stalls that last.
    pub lasting: Vec<Operation>,
    /// Stalls that are over.
    pub over: Vec<Operation>,
}

impl Stalls {
    /// Looks at these processes, and at those whose stall lasts; the others are forgotten.
    pub fn look(&mut self, pids: &[u32], hierarchies: &Arc<Hierarchies>, workers: &Workers) -> Changes {
        let mut changes = Changes::default();
        self.watched.retain(|pid, watched| pids.contains(pid) || watched.stall.is_some());
        for pid in pids {
            self.watched.entry(*pid).or_default();
        }
        let settled = self.settled;
        self.watched.retain(|pid, watched| {
            let pid = *pid;
            match workers.run(PATIENCE, move || sample(pid)) {
                Ok(Ok(now)) => watched.note(pid, now, settled, hierarchies, workers, &mut changes),
                // Its end is told by others.
                Ok(Err(error)) if error.is_gone() => return false,
                // Nothing is known of it this time.
                _ => {}
            }
            changes.lasting.extend(watched.stall.clone());
            true
        });
        changes
    }
}

impl Watched {
    fn note(
        &mut self,
        pid: u32,
        now: Sample,
        settled: Ns,
        hierarchies: &Arc<Hierarchies>,
        workers: &Workers,
        changes: &mut Changes,
    ) {
        let before = self.last.take();
        let at = now.at;
        let told = before.as_ref().map_or(Told::Well, |before| compare(before, &now));
        self.asleep = now
            .threads
            .iter()
            .filter(|(_, thread)| thread.state == 'D')
            .map(|(tid, thread)| match self.asleep.get(tid) {
                Some(known) if known.0 == thread.turns => (*tid, *known),
                _ => (*tid, (thread.turns, at)),
            })
            .collect();
        let since = before.as_ref().map_or(at, |before| before.at);
        self.last = Some(now);
        let held = match told {
            Told::Stopped => Some(("stopped by a signal".to_owned(), since)),
            Told::Traced => Some(("traced: a debugger holds all of its threads".to_owned(), since)),
            // Asked of all: one that ran since the last look may have been frozen meanwhile, and would be told a look later;
            // and one that is being frozen asks for CPU in vain until it is.
            Told::Well | Told::Still | Told::Hungry(..) => {
                let ours = Arc::clone(hierarchies);
                let group =
                    workers.run(PATIENCE, move || ours.frozen(pid)).ok().and_then(Result::ok).flatten();
                let begin = if told == Told::Still { at } else { clock::monotonic() };
                group.map(|group| (format!("frozen by its cgroup {}", group.path), begin))
            }
        };
        if held.is_some() || !matches!(told, Told::Hungry(..)) {
            self.hungry = None;
        }
        let found = match told {
            _ if held.is_some() => held,
            Told::Hungry(ran, waited) => {
                let ours = Arc::clone(hierarchies);
                let quotas = workers.run(PATIENCE, move || {
                    let quotas = ours.quotas(pid)?;
                    Ok::<_, ReadError>((clock::monotonic(), quotas))
                });
                let quotas = quotas.ok().and_then(Result::ok);
                let hunger = self.hungry.get_or_insert(Hunger { since, ran: 0, waited: 0, quotas: None });
                hunger.ran = hunger.ran.saturating_add(ran);
                hunger.waited = hunger.waited.saturating_add(waited);
                hunger.words(at, settled, quotas).map(|words| (words, hunger.since))
            }
            _ => self.starved_of_memory(pid, at, settled, workers),
        };
        let class = |method: &str| method.split([' ', ':']).take(3).collect::<Vec<_>>().join(" ");
        let lasts = matches!((&self.stall, &found), (Some(stall), Some((method, _))) if class(&stall.method) == class(method));
        if lasts {
            return;
        }
        changes.over.extend(self.stall.take());
        self.stall = found.map(|(method, begin)| operation(pid, method, begin));
    }

    /// Waiting for its own pages.
    fn starved_of_memory(&self, pid: u32, at: Ns, settled: Ns, workers: &Workers) -> Option<(String, Ns)> {
        let long = self.asleep.iter().filter(|(_, (_, since))| at.saturating_sub(*since) >= settled);
        let mut long: Vec<(u32, Ns)> = long.map(|(tid, (_, since))| (*tid, *since)).collect();
        long.sort_by_key(|(_, since)| *since);
        long.into_iter().take(MOST_STACKS).find_map(|(tid, since)| {
            let site = workers.run(PATIENCE, move || threads::look(pid, tid)).ok()?.ok()?.site;
            (site.state == 'D').then_some(())?;
            Some((format!("starved of memory: {}", page_fault(&site.kernel_stack)?), since))
        })
    }
}

impl Hunger {
    /// In words, at `at`, with its quotas as they were read then; `None` as long as it is too early to tell.
    fn words(&mut self, at: Ns, settled: Ns, quotas: Option<(Ns, Vec<Quota>)>) -> Option<String> {
        let held = self.held_back(at, quotas);
        let lasted = at.saturating_sub(self.since);
        if lasted < settled {
            return None;
        }
        let got = percent(self.ran, self.ran.saturating_add(self.waited));
        let why = match held {
            Some((share, path)) if share > 0 => {
                format!("the CPU quota of {path} was used up in {share}% of its periods")
            }
            Some(_) => "and no CPU quota held it back".to_owned(),
            None if lasted < settled.saturating_add(2 * LONGEST_PERIOD) => return None,
            None => "and whether a CPU quota held it back is not known: its groups cannot be read".to_owned(),
        };
        Some(format!("starved of CPU: it got {got}% of what it asked for, {why}"))
    }

    /// The group whose quota held it back most since the quotas were first read, and in how many percent of its periods;
    /// none in 0 % of them. `None` when nobody knows yet: only time, and counters that were read twice, prove that
    /// none did.
    fn held_back(&mut self, at: Ns, quotas: Option<(Ns, Vec<Quota>)>) -> Option<(u64, String)> {
        let (read_at, now) = quotas?;
        let paths = |quotas: &[Quota]| quotas.iter().map(|quota| quota.path.clone()).collect::<Vec<_>>();
        let first = self.quotas.take().filter(|(_, first)| paths(first) == paths(&now));
        let (first_at, before) = self.quotas.insert(first.unwrap_or_else(|| (read_at, now.clone())));
        let share = |(before, now): (&Quota, &Quota)| {
            let periods = now.periods.saturating_sub(before.periods);
            (percent(now.throttled.saturating_sub(before.throttled), periods), now.path.clone())
        };
        let most = before.iter().zip(&now).map(share).max_by_key(|(share, _)| *share).unwrap_or_default();
        (most.0 > 0 || at.saturating_sub(*first_at) >= LONGEST_PERIOD).then_some(most)
    }
}

fn percent(part: u64, of: u64) -> u64 {
    part.saturating_mul(100).checked_div(of).unwrap_or(0)
}

/// What a thread that sleeps in a page fault waits for; `None` when it is not in one.
fn page_fault(stack: &[String]) -> Option<&'static str> {
    let has = |names: &[&str]| stack.iter().any(|frame| names.iter().any(|name| frame.starts_with(name)));
    if !has(&["handle_mm_fault", "__handle_mm_fault"]) {
        return None;
    }
    // Reading comes last: room for the page is made before.
    if has(&["try_to_free", "shrink_", "do_try_to_free", "mem_cgroup_handle_over_high"]) {
        return Some("it waits for memory to be freed");
    }
    has(&["filemap_fault", "__filemap_fault", "do_swap_page", "folio_wait", "wait_on_page"])
        .then_some("it waits for its own pages from the disk")
}

fn operation(pid: u32, method: String, begin: Ns) -> Operation {
    Operation {
        kind: Kind::Stalled,
        method,
        actor: Actor { pid, tid: pid, g: None, goid: None },
        begin,
        object: 0,
        container: None,
        path: None,
        device: None,
        fs_type: None,
        began: Began::Then,
        seen_by: SeenBy::Proc,
    }
}

/// Looks at the threads of a process. None of the files waits for the process.
fn sample(pid: u32) -> Result<Sample, ReadError> {
    let at = clock::monotonic();
    let mut found = BTreeMap::new();
    for tid in threads::of_process(pid, MOST_THREADS)? {
        let read = |name: &str| read_file(&format!("/proc/{pid}/task/{tid}/{name}"), SMALL);
        // A thread that ends in between is not there.
        let (Ok(stat), Ok(schedule)) = (read("stat"), read("schedstat")) else { continue };
        if let (Some(stat), Some((ran, waited, turns))) = (parse_stat(&stat), parse_schedstat(&schedule)) {
            found.insert(tid, Thread { state: stat.state, ran, waited, turns });
        }
    }
    if found.is_empty() {
        return Err(ReadError::new(format!("/proc/{pid}/task"), std::io::ErrorKind::NotFound));
    }
    Ok(Sample { at, threads: found })
}

/// `/proc/PID/task/TID/schedstat`: time on a CPU and time it was ready and got none, both ns, and how often it got one.
/// The file of the process tells of its first thread only.
pub fn parse_schedstat(text: &[u8]) -> Option<(Ns, Ns, u64)> {
    let mut fields = text.trim_ascii().split(|b| *b == b' ');
    Some((number(fields.next()?)?, number(fields.next()?)?, number(fields.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    const SECOND: Ns = 1_000_000_000;

    fn sampled(at: Ns, threads: &[(char, Ns, Ns, u64)]) -> Sample {
        let thread = |(state, ran, waited, turns): &(char, Ns, Ns, u64)| Thread {
            state: *state,
            ran: *ran,
            waited: *waited,
            turns: *turns,
        };
        Sample { at, threads: (1..).zip(threads.iter().map(thread)).collect() }
    }

    fn after_a_second(before: &[(char, Ns, Ns, u64)], now: &[(char, Ns, Ns, u64)]) -> Told {
        compare(&sampled(0, before), &sampled(SECOND, now))
    }

    #[test]
    fn two_looks() {
        let idle = ('S', 5, 5, 5);
        assert_eq!(after_a_second(&[idle; 3], &[idle; 3]), Told::Still);
        assert_eq!(after_a_second(&[idle, idle], &[idle, ('S', 9, 5, 6)]), Told::Well);
        let (stopped, traced, stuck) = (('T', 5, 5, 5), ('t', 5, 5, 5), ('D', 5, 5, 5));
        assert_eq!(after_a_second(&[stopped; 2], &[stopped; 2]), Told::Stopped);
        assert_eq!(after_a_second(&[stopped, stuck], &[stopped, stuck]), Told::Stopped);
        assert_eq!(after_a_second(&[traced; 2], &[traced; 2]), Told::Traced);
        // strace of one thread, and strace of all that stops them one call after the other.
        assert_eq!(after_a_second(&[traced, idle], &[traced, idle]), Told::Still);
        assert_eq!(after_a_second(&[traced; 2], &[traced, ('t', 6, 5, 6)]), Told::Well);
        assert_eq!(after_a_second(&[stuck], &[stuck]), Told::Still);
    }

    #[test]
    fn hunger() {
        let waited = SECOND * 9 / 10;
        assert_eq!(after_a_second(&[('R', 0, 0, 1)], &[('R', 30, waited, 4)]), Told::Hungry(30, waited));
        // Ready and not let run at all: the kernel has counted nothing yet.
        assert_eq!(after_a_second(&[('R', 0, 0, 1)], &[('R', 0, 0, 1)]), Told::Hungry(0, SECOND));
        // A long wait that ended just now counts for this second only.
        assert_eq!(after_a_second(&[('R', 0, 0, 1)], &[('R', 1, 9 * SECOND, 2)]), Told::Hungry(1, SECOND));
        // It gets a fifth or more, or hardly asks.
        assert_eq!(after_a_second(&[('R', 0, 0, 1)], &[('R', SECOND / 4, SECOND * 3 / 4, 9)]), Told::Well);
        assert_eq!(after_a_second(&[('S', 0, 0, 1)], &[('S', 30, SECOND / 10, 4)]), Told::Well);
    }

    #[test]
    fn only_what_was_counted_long_enough_tells_of_quotas() {
        const TENTH: Ns = SECOND / 10;
        let hunger = || Hunger { since: 0, ran: 1, waited: 99, quotas: None };
        let read = |at: Ns, path: &str, periods, throttled| {
            Some((at, vec![Quota { path: path.to_owned(), periods, throttled }]))
        };
        let held = "starved of CPU: it got 1% of what it asked for, the CPU quota of /a was used up in 80% of its periods";
        let free = "starved of CPU: it got 1% of what it asked for, and no CPU quota held it back";
        let unknown = "starved of CPU: it got 1% of what it asked for, and whether a CPU quota held it back is not known: \
            its groups cannot be read";
        let mut told = hunger();
        assert_eq!(told.words(TENTH, SECOND, read(TENTH, "/a", 0, 0)), None);
        // A group that had counted nothing when it was first read.
        assert_eq!(told.words(SECOND, SECOND, read(SECOND, "/a", 10, 8)).as_deref(), Some(held));
        // Looks that come late: its first period is not over.
        let mut told = hunger();
        assert_eq!(told.words(9 * TENTH, SECOND, read(9 * TENTH, "/a", 7, 7)), None);
        assert_eq!(told.words(SECOND, SECOND, read(SECOND, "/a", 7, 7)), None);
        assert_eq!(told.words(12 * TENTH, SECOND, read(12 * TENTH, "/a", 12, 11)).as_deref(), Some(held));
        // Nothing was counted for longer than any period.
        let mut told = hunger();
        assert_eq!(told.words(TENTH, SECOND, read(TENTH, "/a", 7, 7)), None);
        assert_eq!(told.words(11 * TENTH, SECOND, read(11 * TENTH, "/a", 7, 7)).as_deref(), Some(free));
        // What another group has counted before is not its own.
        let mut told = hunger();
        assert_eq!(told.words(TENTH, SECOND, read(TENTH, "/b", 1, 1)), None);
        assert_eq!(told.words(SECOND, SECOND, read(SECOND, "/a", 90, 90)), None);
        assert_eq!(told.words(2 * SECOND, SECOND, read(2 * SECOND, "/a", 100, 98)).as_deref(), Some(held));
        // What cannot be read is not known, and that is said in the end.
        let mut told = hunger();
        assert_eq!(told.words(TENTH, SECOND, None), None);
        assert_eq!(told.words(2 * SECOND, SECOND, None), None);
        assert_eq!(told.words(3 * SECOND, SECOND, None).as_deref(), Some(unknown));
        // Without any quota.
        let mut told = hunger();
        assert_eq!(told.words(TENTH, SECOND, Some((TENTH, Vec::new()))), None);
        assert_eq!(told.words(2 * SECOND, SECOND, Some((2 * SECOND, Vec::new()))).as_deref(), Some(free));
    }

    #[test]
    fn page_faults() {
        let stack = |names: &str| names.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let read = stack(
            "folio_wait_bit_common filemap_fault __do_fault handle_mm_fault do_user_addr_fault exc_page_fault",
        );
        assert_eq!(page_fault(&read), Some("it waits for its own pages from the disk"));
        let reclaim =
            stack("io_schedule_timeout shrink_node try_to_free_pages filemap_fault handle_mm_fault");
        assert_eq!(page_fault(&reclaim), Some("it waits for memory to be freed"));
        assert_eq!(page_fault(&stack("folio_wait_writeback sync_inodes_sb cleanup_mnt")), None);
        assert_eq!(page_fault(&[]), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            before in proptest::collection::vec((proptest::char::range('A', 'z'), 0..u64::MAX / 300, any::<u64>(), any::<u64>()), 0..4),
            now in proptest::collection::vec((proptest::char::range('A', 'z'), 0..u64::MAX / 300, any::<u64>(), any::<u64>()), 0..4),
            at in 0..u64::MAX / 300,
        ) {
            let _ = parse_schedstat(&bytes);
            let _ = compare(&sampled(0, &before), &sampled(at, &now));
        }
    }

    /// A child that ends with the test, and the group it was put in.
    struct Victim(Child, Option<PathBuf>);

    impl Victim {
        fn new(script: &str, group: Option<PathBuf>) -> Victim {
            let child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
            let victim = Victim(child, group);
            if let Some(group) = &victim.1 {
                fs::write(group.join("cgroup.procs"), victim.0.id().to_string()).unwrap();
            }
            victim
        }

        fn signal(&self, signal: i32) {
            // SAFETY: a child of ours that has not been waited for.
            assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
        }
    }

    impl Drop for Victim {
        fn drop(&mut self) {
            for (name, value) in
                [("freezer.state", "THAWED"), ("cgroup.freeze", "0"), ("cpu.cfs_quota_us", "-1")]
            {
                let file = self.1.as_ref().map(|group| group.join(name)).filter(|file| file.exists());
                let _ = file.map(|file| fs::write(file, value));
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
            if let Some(group) = &self.1 {
                while fs::remove_dir(group).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
                    std::thread::yield_now();
                }
            }
        }
    }

    /// A group of our own in the hierarchy with this controller, or below `point`.
    fn group(point: Option<PathBuf>, name: &str) -> Option<PathBuf> {
        let group = point?.join(format!("plegscope-{name}-{}", std::process::id()));
        fs::create_dir(&group).ok().map(|()| group)
    }

    /// Looks until a stall is told or, with `over`, until it is not any more.
    fn until(stalls: &mut Stalls, victim: &Victim, over: bool) -> Operation {
        let (hierarchies, workers) = (Arc::new(Hierarchies::read().unwrap()), Workers::new(1));
        for _ in 0..600 {
            let changes = stalls.look(&[victim.0.id()], &hierarchies, &workers);
            let found = if over { changes.over } else { changes.lasting };
            if let Some(stall) = found.into_iter().next() {
                return stall;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not told in 30 s");
    }

    fn watch() -> Stalls {
        Stalls { settled: SECOND / 2, ..Stalls::default() }
    }

    #[test]
    fn a_stopped_child_is_told_until_it_goes_on() {
        let victim = Victim::new("while :; do sleep 0.01; done", None);
        let mut stalls = watch();
        let before = clock::monotonic();
        victim.signal(libc::SIGSTOP);
        let stall = until(&mut stalls, &victim, false);
        assert_eq!((stall.method.as_str(), stall.kind), ("stopped by a signal", Kind::Stalled));
        assert!(stall.begin >= before && stall.begin <= clock::monotonic());
        // The same operation as long as it lasts.
        assert_eq!(until(&mut stalls, &victim, false).id(), stall.id());
        victim.signal(libc::SIGCONT);
        assert_eq!(until(&mut stalls, &victim, true).id(), stall.id());
    }

    #[test]
    fn a_frozen_child_is_told_until_it_thaws() {
        let found = Hierarchies::read().unwrap();
        let unified =
            fs::canonicalize("/sys/fs/cgroup/unified").or_else(|_| fs::canonicalize("/sys/fs/cgroup")).ok();
        let v1 = found.with("freezer").map(|h| h.point.clone());
        for (point, file, on, off) in
            [(v1, "freezer.state", "FROZEN", "THAWED"), (unified, "cgroup.freeze", "1", "0")]
        {
            let Some(group) = group(point, "freeze").filter(|g| g.join(file).exists()) else {
                println!("skipped: no group with {file} can be made");
                continue;
            };
            let victim = Victim::new("while :; do sleep 0.01; done", Some(group.clone()));
            let mut stalls = watch();
            let before = clock::monotonic();
            fs::write(group.join(file), on).unwrap();
            let (hierarchies, workers) = (Arc::new(Hierarchies::read().unwrap()), Workers::new(1));
            let first = stalls.look(&[victim.0.id()], &hierarchies, &workers).lasting;
            let stall = until(&mut stalls, &victim, false);
            assert_eq!(first, std::slice::from_ref(&stall), "at the first look");
            assert!(stall.begin >= before);
            let name = group.file_name().unwrap().to_str().unwrap();
            assert_eq!(stall.method, format!("frozen by its cgroup /{name}"));
            fs::write(group.join(file), off).unwrap();
            assert_eq!(until(&mut stalls, &victim, true).id(), stall.id());
        }
    }

    #[test]
    fn a_busy_child_with_a_small_quota_starves_until_it_has_none() {
        let point = Hierarchies::read().unwrap().with("cpu").map(|h| h.point.clone());
        let Some(group) = group(point, "quota").filter(|g| g.join("cpu.cfs_quota_us").exists()) else {
            println!("skipped: no group with a CPU quota (version 1) can be made");
            return;
        };
        fs::write(group.join("cpu.cfs_quota_us"), "1000").unwrap();
        let victim = Victim::new("while :; do :; done", Some(group.clone()));
        let mut stalls = watch();
        let stall = until(&mut stalls, &victim, false);
        let name = group.file_name().unwrap().to_str().unwrap();
        let got = stall
            .method
            .strip_prefix("starved of CPU: it got ")
            .and_then(|rest| rest.split_once("% of what"));
        let (got, rest) = got.unwrap_or_else(|| panic!("{stall:?}"));
        assert!(got.parse::<u32>().unwrap() <= 20, "{stall:?}");
        let quota = format!(" it asked for, the CPU quota of /{name} was used up in ");
        let share = rest.strip_prefix(&quota).and_then(|rest| rest.strip_suffix("% of its periods"));
        assert!(share.is_some_and(|share| share.parse::<u32>().unwrap() >= 50), "{stall:?}");
        assert_eq!(until(&mut stalls, &victim, false).id(), stall.id());
        fs::write(group.join("cpu.cfs_quota_us"), "-1").unwrap();
        assert_eq!(until(&mut stalls, &victim, true).id(), stall.id());
    }
}
