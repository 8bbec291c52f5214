//! The warden's own main function: its threads and its end.

use super::{
    Ladder, Settings, attach, causes, context,
    cost::{Metered, Price},
    events, facts,
    fuse::{Blown, Fuse},
    lock_memory, look,
    outbox::Outbox,
    protocol::{Level, Message},
    return_memory_early,
};
use crate::bpf::heir::{Heir, close_by_heir};
use std::{
    collections::BTreeMap,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Failed unmounts remembered at most; those beyond are told by the next failure, since unmounts are tried again.
pub const MOST_BUSY: usize = 16;

/// A Go process that takes part, as all threads of the warden know it.
#[derive(Clone, Debug)]
pub struct Known {
    /// The process as the correlator is told.
    pub process: crate::event::Process,
    /// Where its runtime keeps things; `None` for versions that are not known.
    pub offsets: Option<crate::golang::offsets::Offsets>,
    /// How a kubelet judges its PLEG, or why that cannot be told; `None` for other programs.
    pub health: Option<Result<crate::golang::health::Health, String>>,
    /// The file it runs.
    pub exe: crate::node::procs::FileId,
    /// Tells whether it has become another program; see [`crate::node::alive::image`].
    pub image: Option<u64>,
    /// Address of its first instruction and of `runtime.allgs`, as its file has them.
    pub entry: u64,
    /// See `entry`.
    pub all_goroutines: Option<u64>,
}

/// Something that is attached or detached in this moment.
#[derive(Clone, Debug)]
pub struct Attaching {
    /// What, in words.
    pub what: String,
    /// Since when.
    pub since: crate::event::Ns,
}

/// What the threads share. Every lock is held for moments only, never across a read or a system call that can hang.
#[derive(Default)]
pub struct Shared {
    /// To the parent, which takes its end for ours.
    parent: Option<Arc<UnixStream>>,
    /// Go processes that take part, by pid.
    pub known: RwLock<BTreeMap<u32, Known>>,
    /// Operations in flight above their floor, as of the last poll.
    pub in_flight: Mutex<Vec<crate::event::Operation>>,
    /// Told when something is in flight and nothing was.
    stirred: Condvar,
    /// What the last look at each process has found in progress that waits for a disk.
    pub found: Mutex<BTreeMap<u32, Vec<crate::event::Operation>>>,
    /// What the attaching thread does in the kernel right now; see [`Shared::touch`].
    pub attaching: Mutex<Option<Attaching>>,
    /// Set when the process is about to end; changes only under the lock of `attaching`.
    ending: AtomicBool,
    /// Executables whose hits are counted.
    pub metered: Mutex<Vec<Metered>>,
    /// What a hit costs, once it was measured.
    pub price: Mutex<Option<Price>>,
    /// What the fuse wants taken off and the attaching thread has not yet.
    pub blown: Mutex<Vec<Blown>>,
    /// The shim of each container, as far as they run.
    pub shims: Mutex<BTreeMap<String, u32>>,
    /// Pids that the kernel half has seen exit or exec since the attaching thread last looked.
    pub recheck: Mutex<Vec<u32>>,
    /// Unmounts that failed with EBUSY and were not looked at yet: path and process; bounded by [`MOST_BUSY`].
    pub busy: Mutex<Vec<(String, u32)>>,
    /// Operations that a look has shown to be over although no probe saw them end, until they are forgotten; bounded.
    pub unreturned: Mutex<Vec<crate::event::OperationId>>,
    /// Programs of which is counted how often the kernel skips them.
    pub skippable: Mutex<Vec<OwnedFd>>,
    /// Set when all programs that were there at the start have been found, and attached to.
    pub surveyed: AtomicBool,
}

/// A lock that goes on after a panic elsewhere: all shared values are whole at all times.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what is there, and leaves nothing. The lock is free again when this returns, also in the head of a `for`, where
/// a guard would live as long as the loop.
pub fn take<T: Default>(mutex: &Mutex<T>) -> T {
    std::mem::take(&mut *lock(mutex))
}

impl Shared {
    /// What is known of a process.
    pub fn get(&self, pid: u32) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&pid).cloned()
    }

    /// A process has become another program, which is known from now on.
    pub fn replaced(&self, pid: u32) {
        let image = crate::node::alive::image(pid);
        if let Some(known) = self.known.write().unwrap_or_else(PoisonError::into_inner).get_mut(&pid) {
            known.image = image;
        }
    }

    /// These are in flight now.
    pub fn note_in_flight(&self, operations: &[crate::event::Operation]) {
        let mut in_flight = lock(&self.in_flight);
        let was_empty = std::mem::replace(&mut *in_flight, operations.to_vec()).is_empty();
        drop(in_flight);
        if was_empty && !operations.is_empty() {
            self.stirred.notify_all();
        }
    }

    /// Sleeps for `pace`; and as long as nothing is in flight up to `longest`, since there is nothing to look at: a thread
    /// that wakes for nothing costs as much as one that does something.
    pub fn rest(&self, pace: Duration, longest: Duration) {
        let begin = Instant::now();
        if longest > pace {
            let in_flight = lock(&self.in_flight);
            let woken = self.stirred.wait_timeout_while(in_flight, longest, |all| all.is_empty());
            drop(woken.unwrap_or_else(PoisonError::into_inner));
        }
        std::thread::sleep(pace.saturating_sub(begin.elapsed()));
    }

    /// Has the attaching thread look at a process again.
    pub fn recheck(&self, pid: u32) {
        let mut recheck = lock(&self.recheck);
        if !recheck.contains(&pid) {
            recheck.push(pid);
        }
    }

    /// Whether the process is about to end, and nobody listens any more.
    pub fn ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Puts breakpoints into programs. All of that goes through here, so that the process does not end meanwhile. Does not
    /// return when the process is about to end.
    pub fn touch<T>(&self, what: String, change: impl FnOnce() -> T) -> T {
        /// A panic must not keep the process from ending.
        struct Done<'a>(&'a Shared);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                *lock(&self.0.attaching) = None;
            }
        }
        {
            let mut attaching = lock(&self.attaching);
            while self.ending() {
                drop(attaching);
                std::thread::park();
                attaching = lock(&self.attaching);
            }
            *attaching = Some(Attaching { what, since: crate::node::clock::monotonic() });
        }
        let _done = Done(self);
        change()
    }

    /// Takes breakpoints out of programs, which `close` lets go of; when this returns, they are out. Like
    /// [`Shared::touch`], but what a kill of this process in the middle of it leaves to be done is done all the same.
    pub fn let_go(&self, what: String, close: impl FnOnce()) {
        self.touch(what, || self.by_heir(close).wait());
    }

    fn by_heir(&self, close: impl FnOnce()) -> Heir {
        close_by_heir(self.parent.as_ref().map(|socket| socket.as_raw_fd()), close).1
    }

    /// Waits until nothing is put in or taken out any more, and sees to it that nothing will be.
    ///
    /// A process that ends has its threads killed, and a thread that is being killed may not touch the memory of others:
    /// the kernel gives up in the middle (`EINTR` in `__get_user_pages`), and leaves breakpoints in programs for good.
    fn settle(&self) {
        /// After this time what is attached goes; only what hangs in the kernel is waited for any longer.
        const PATIENCE: Duration = Duration::from_secs(1);
        let begin = Instant::now();
        let mut attaching = lock(&self.attaching);
        self.ending.store(true, Ordering::Relaxed);
        let mut patient = true;
        while attaching.is_some() {
            drop(attaching);
            if patient && begin.elapsed() > PATIENCE {
                patient = false;
                self.detach();
            }
            std::thread::sleep(Duration::from_millis(5));
            attaching = lock(&self.attaching);
        }
    }

    /// Closes everything, and so detaches what is attached: a thread that hangs in the kernel would keep the process, and
    /// its probes with it. Who has used a descriptor finds `/dev/null` in its place, and closes that.
    fn detach(&self) {
        let Ok(folder) = std::fs::read_dir("/proc/self/fd") else { return };
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let mut open: Vec<i32> = folder.flatten().filter_map(number).collect();
        // Without the folder's own, which is free again.
        // SAFETY: takes numbers only.
        open.retain(|fd| *fd > 2 && unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0);
        // Not waited for: it goes on when this process has ended.
        let _ = self.by_heir(|| {
            for fd in open {
                // One by one, so that a kill finds at most one being closed.
                // SAFETY: standard input is `/dev/null`; nothing of what is open is wanted any more.
                unsafe { libc::dup2(0, fd) };
            }
        });
    }
}

/// Runs the warden. Never returns.
pub fn run(socket: UnixStream, settings: Settings) -> ! {
    let code = match start(socket, settings) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    // SAFETY: ends this process without running exit handlers that belong to the parent's copy of memory.
    unsafe { libc::_exit(code) }
}

fn start(socket: UnixStream, settings: Settings) -> std::io::Result<()> {
    // SAFETY: takes no arguments. A session of its own: Ctrl-C on the terminal is for the parent.
    unsafe { libc::setsid() };
    // Also what is sent to all processes of a service is for the parent, whose end is ours.
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: no function of ours is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    crate::node::own::leave_all_but(&socket)?;
    return_memory_early();
    let socket = Arc::new(socket);
    let outbox = Outbox::new(Arc::clone(&socket));
    let on_panic = outbox.clone();
    std::panic::set_hook(Box::new(move |info| {
        on_panic.log(Level::Error, format!("the warden has a defect, please report it: {info}"));
    }));
    forward_log(outbox.clone(), settings.diagnostics);
    if let Err(error) = lock_memory() {
        outbox.log(
            Level::Debug,
            format!(
                "memory is not locked ({error}); under memory pressure plegscope itself may wait for the disk"
            ),
        );
    }
    let shared = Arc::new(Shared { parent: Some(Arc::clone(&socket)), ..Shared::default() });
    if let Some(wanted) = settings.look.clone() {
        let (outbox, shared) = (outbox.clone(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name("look".into())
            .spawn(move || look::once(&wanted, &outbox, &shared))?;
        until_alone(&socket);
        return Ok(());
    }
    {
        let (outbox, shared, survey_only) = (outbox.clone(), Arc::clone(&shared), settings.survey_only);
        std::thread::Builder::new().name("facts".into()).spawn(move || {
            if survey_only { facts::expose(&outbox, &shared) } else { facts::run(&outbox, &shared) }
        })?;
    }
    if !settings.survey_only {
        for (name, run) in [("context", context::run as fn(&Outbox, &Shared)), ("causes", causes::run)] {
            let (outbox, shared) = (outbox.clone(), Arc::clone(&shared));
            std::thread::Builder::new().name(name.into()).spawn(move || run(&outbox, &shared))?;
        }
    }
    if !settings.survey_only {
        let (settings, outbox, shared) = (settings.clone(), outbox.clone(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name("look".into())
            .spawn(move || look::run(&settings, &outbox, &shared))?;
    }
    let attaching = Arc::clone(&shared);
    std::thread::Builder::new().name("attach".into()).spawn(move || attach(settings, &outbox, &attaching))?;
    until_alone(&socket);
    shared.settle();
    shared.detach();
    Ok(())
}

/// Waits until the parent is gone. It says nothing; a read that returns means just that.
fn until_alone(mut socket: &UnixStream) {
    let mut nothing = [0u8; 1];
    loop {
        match socket.read(&mut nothing) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

/// Attaches, and keeps looking for new programs. Other threads start when there is something for them.
fn attach(settings: Settings, outbox: &Outbox, shared: &Arc<Shared>) {
    let (ladder, survey_only) = (settings.ladder, settings.survey_only);
    let fuse = Fuse::new(settings.max_target_cost);
    let thresholds = settings.thresholds.clone();
    let mut attacher = attach::Attacher::new(settings, outbox.clone(), Arc::clone(shared));
    if survey_only {
        attacher.survey();
        shared.surveyed.store(true, Ordering::Release);
        return;
    }
    if ladder != Ladder::None {
        let started = attacher.load().and_then(|reader| {
            let (outbox, shared) = (outbox.clone(), Arc::clone(shared));
            std::thread::Builder::new()
                .name("events".into())
                .spawn(move || events::run(reader, &outbox, &shared, fuse, &thresholds))?;
            Ok(())
        });
        if let Err(error) = started {
            outbox.send(&Message::Fatal(format!("{error:#}")));
        }
    }
    attacher.run();
}

/// Sends what the `log` crate is told (aya, and the kernel half through aya-log) to the parent.
struct Forward(Outbox);

impl log::Log for Forward {
    fn enabled(&self, of: &log::Metadata<'_>) -> bool {
        // aya tells each relocation at debug level; records of the kernel half have the target of its own modules.
        of.level() <= log::Level::Warn || !of.target().starts_with("aya")
    }
    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warning,
            _ => Level::Debug,
        };
        self.0.log(level, format!("{}", record.args()));
    }
    fn flush(&self) {}
}

fn forward_log(outbox: Outbox, diagnostics: bool) {
    let most = if diagnostics { log::LevelFilter::Debug } else { log::LevelFilter::Warn };
    if log::set_boxed_logger(Box::new(Forward(outbox))).is_ok() {
        log::set_max_level(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Actor, Began, Kind, Operation, SeenBy};

    fn unmount() -> Operation {
        Operation {
            kind: Kind::Unmount,
            method: String::new(),
            actor: Actor { pid: 5, tid: 5, g: None, goid: None },
            begin: 1,
            began: Began::Then,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            seen_by: SeenBy::Fentry,
        }
    }

    #[test]
    fn who_rests_wakes_when_something_is_in_flight_and_keeps_its_pace_then() {
        const LONG: Duration = Duration::from_secs(60);
        let shared = Arc::new(Shared::default());
        let (resting, begin) = (Arc::clone(&shared), Instant::now());
        let rests = std::thread::spawn(move || resting.rest(Duration::from_millis(1), LONG));
        shared.note_in_flight(&[unmount()]);
        rests.join().unwrap();
        assert!(begin.elapsed() < LONG);
        let pace = Duration::from_millis(20);
        let begin = Instant::now();
        shared.rest(pace, LONG);
        assert!((pace..LONG).contains(&begin.elapsed()), "something is in flight");
        shared.note_in_flight(&[]);
        let begin = Instant::now();
        shared.rest(pace, 2 * pace);
        assert!(begin.elapsed() >= 2 * pace, "nothing is");
    }
}
