//! The courier: a child process that carries alerts on ways that can hang: programs and names are looked up on a disk, and
//! a folder may be on the stuck one. A thread that hangs so keeps its process; so the process that watches hands over what
//! is to be told, never waits, and can always exit. What the courier has not brought away a few seconds after that is lost.

mod messages;

use crate::sinks::deliver::{Again, Alert, Count, Delivery, Queue, exec::Exec, store::Store, webhook};
use crate::{node, warden};
use messages::{ALERT_BYTES, Link};
use rustix::thread::CapabilitySet;
use std::{
    collections::VecDeque,
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Alerts that may wait to be handed over.
const WAITING: usize = 256;
/// What is under way when the watch ends may take this long.
const LAST: Duration = Duration::from_secs(5);
/// How often it tells what has become of the alerts, if that has changed.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// The ways it is to use.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// A program, how long it may take, and how many may run at once.
    pub exec: Option<(Vec<String>, Duration, usize)>,
    /// A receiver.
    pub webhook: Option<webhook::Settings>,
    /// A folder for incidents that is not in memory, and how many and how large they may be.
    pub store: Option<(PathBuf, usize, u64)>,
}

impl Ways {
    /// Whether there is nothing to carry.
    pub fn is_empty(&self) -> bool {
        self.exec.is_none() && self.webhook.is_none() && self.store.is_none()
    }

    /// Starts them. One that does not work says why in its count.
    fn start(self) -> io::Result<Vec<Queue>> {
        let mut queues = Vec::new();
        if let Some((argv, limit, at_once)) = self.exec {
            let one = || -> Box<dyn Delivery> { Box::new(Exec::new(argv.clone(), limit)) };
            queues.push(Queue::start("exec", (0..at_once.max(1)).map(|_| one()).collect())?);
        }
        if let Some(settings) = self.webhook {
            let webhook: Box<dyn Delivery> = match webhook::Webhook::new(settings) {
                Ok(webhook) => Box::new(webhook),
                Err(why) => Box::new(Broken(why)),
            };
            queues.push(Queue::start("webhook", vec![webhook])?);
        }
        if let Some((folder, incidents, bytes)) = self.store {
            queues
                .push(Queue::start("store", vec![Box::new(Late { folder, incidents, bytes, store: None })])?);
        }
        Ok(queues)
    }
}

/// A way that cannot be used.
struct Broken(String);

impl Delivery for Broken {
    fn deliver(&mut self, _: &Alert, _: Again<'_>) -> Result<(), String> {
        Err(self.0.clone())
    }
}

/// A store whose folder is opened with the first alert, on the thread that may hang with it; and again after a failure.
pub struct Late {
    folder: PathBuf,
    incidents: usize,
    bytes: u64,
    store: Option<Store>,
}

impl Late {
    /// A store in this folder.
    pub fn new(folder: PathBuf, incidents: usize, bytes: u64) -> Late {
        Late { folder, incidents, bytes, store: None }
    }
}

impl Delivery for Late {
    fn deliver(&mut self, alert: &Alert, again: Again<'_>) -> Result<(), String> {
        let store = match &mut self.store {
            Some(store) => store,
            None => self.store.insert(Store::open(&self.folder, self.incidents, self.bytes)?),
        };
        store.deliver(alert, again)
    }

    fn wants_held(&self) -> bool {
        true
    }
}

/// The way to the courier, as the process that watches has it.
pub struct Courier {
    link: Link,
    waiting: VecDeque<Vec<u8>>,
    /// Alerts that found no room here.
    dropped: u64,
    told: Vec<Count>,
    gone: bool,
}

impl Courier {
    /// Forks it.
    ///
    /// Must be called while the process has one thread, and before the warden is forked: nobody else may have the
    /// warden's other end.
    pub fn fork(ways: Ways) -> io::Result<Courier> {
        let (ours, theirs) = Link::pair()?;
        // SAFETY: no other thread exists (see above), so the child's copy of memory has no lock held by a thread that is
        // not there.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(ours);
                let code = i32::from(run(&theirs, ways).is_err());
                // SAFETY: ends this process without running exit handlers that belong to the parent's copy of memory.
                unsafe { libc::_exit(code) }
            }
            _ => Ok(Courier {
                link: ours,
                waiting: VecDeque::new(),
                dropped: 0,
                told: Vec::new(),
                gone: false,
            }),
        }
    }

    /// Hands over an alert; never waits.
    pub fn hand(&mut self, alert: &Alert) {
        match messages::pack(alert) {
            Some(message) if message.len() <= ALERT_BYTES => self.waiting.push_back(message),
            _ => self.dropped += 1,
        }
        if self.waiting.len() > WAITING {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.turn();
    }

    /// Hands over what waits, and hears what it has to say. To be called often.
    pub fn turn(&mut self) {
        while let Some(message) = self.waiting.front() {
            match self.link.send(message) {
                Ok(true) => drop(self.waiting.pop_front()),
                Ok(false) => break,
                Err(_) => {
                    self.gone = true;
                    self.dropped += self.waiting.len() as u64;
                    self.waiting.clear();
                }
            }
        }
        loop {
            match self.link.receive() {
                Ok(Some(message)) if message.is_empty() => {
                    self.gone = true;
                    return;
                }
                Ok(Some(message)) => {
                    if let Some(counts) = messages::unpack(&message) {
                        self.told = counts;
                    }
                }
                Ok(None) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    /// What has become of the alerts, way by way; and what never came to the courier.
    pub fn counts(&self) -> Vec<Count> {
        let mut counts = self.told.clone();
        if self.dropped > 0 || self.gone {
            let error =
                if self.gone { "the courier process has ended" } else { "the courier does not keep up" };
            counts.push(Count {
                name: "courier".into(),
                taken: self.dropped,
                dropped: self.dropped,
                error: error.into(),
                ..Count::default()
            });
        }
        counts
    }
}

/// Runs the courier until the other end is gone.
fn run(link: &Link, ways: Ways) -> io::Result<()> {
    // SAFETY: takes no arguments. A session of its own: Ctrl-C on the terminal is for the parent.
    unsafe { libc::setsid() };
    outlive_signals();
    node::own::leave_all_but(link)?;
    warden::return_memory_early();
    // Programs that are run have them again, as far as this user may.
    node::own::keep_capabilities(CapabilitySet::empty())?;
    let queues = ways.start()?;
    let mut told = Vec::new();
    let mut next = Instant::now();
    loop {
        if link.wait(TELL_EVERY)? {
            let message = link.receive()?.unwrap_or_default();
            if message.is_empty() {
                break;
            }
            if let Some(alert) = messages::unpack::<Alert>(&message) {
                let alert = Arc::new(alert);
                queues.iter().for_each(|queue| queue.hand(&alert));
            }
        }
        if Instant::now() >= next {
            next = Instant::now() + TELL_EVERY;
            let counts: Vec<Count> = queues.iter().map(|queue| clipped(queue.count())).collect();
            if counts != told && messages::pack(&counts).is_some_and(|m| link.send(&m).unwrap_or(true)) {
                told = counts;
            }
        }
    }
    let end = Instant::now() + LAST;
    for queue in queues {
        queue.finish(end.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// A reason of a bounded length.
fn clipped(mut count: Count) -> Count {
    count.error = crate::correlator::words::clip(&count.error, 300);
    count
}

/// What is sent to all processes of a service is for the parent, whose end is ours. Handled by doing nothing: what is
/// ignored or blocked would stay so in the programs that are run.
fn outlive_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: the handler touches nothing.
        unsafe { libc::signal(signal, nothing as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> i32 {
        self.raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Event;
    use crate::sinks::deliver::tests::alert;

    /// A courier whose other end is the test's.
    fn alone() -> (Courier, Link) {
        let (link, theirs) = Link::pair().unwrap();
        (Courier { link, waiting: VecDeque::new(), dropped: 0, told: Vec::new(), gone: false }, theirs)
    }

    fn large(seq: u64) -> Alert {
        let mut one = alert(seq, Event::Crossed, "a");
        one.json = vec![b'x'; crate::sinks::deliver::MOST];
        one
    }

    #[test]
    fn a_courier_that_does_not_read_holds_nobody_up_and_what_is_lost_is_counted() {
        let (mut courier, theirs) = alone();
        let begin = Instant::now();
        let handed = WAITING as u64 + 200;
        (1..=handed).for_each(|seq| courier.hand(&large(seq)));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert_eq!(courier.waiting.len(), WAITING);
        let lost = courier.counts()[0].dropped;
        let mut seqs = Vec::new();
        for _ in 0..2 * handed {
            while theirs.wait(Duration::ZERO).unwrap() {
                let message = theirs.receive().unwrap().unwrap();
                seqs.push(messages::unpack::<Alert>(&message).unwrap().seq);
            }
            courier.turn();
        }
        assert_eq!(seqs.len() as u64 + lost, handed);
        assert!(seqs.is_sorted() && seqs.last() == Some(&handed), "in their order, the newest too: {seqs:?}");
    }

    #[test]
    fn what_it_says_is_heard_and_that_it_has_ended() {
        let (mut courier, theirs) = alone();
        let counts = vec![Count { name: "exec".into(), taken: 3, delivered: 2, ..Count::default() }];
        assert!(theirs.send(&messages::pack(&counts).unwrap()).unwrap());
        courier.turn();
        assert_eq!(courier.counts(), counts);
        drop(theirs);
        courier.turn();
        courier.hand(&large(1));
        let counts = courier.counts();
        assert_eq!((counts.len(), counts[1].dropped), (2, 1));
        assert!(counts[1].error.contains("has ended"), "{counts:?}");
    }
}
