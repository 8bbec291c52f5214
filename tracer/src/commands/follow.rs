//! The loop of all verbs that follow something, this node or a capture of one: hears from the source, tells the verb,
//! ends on signals, in time, or when there is no more.

use super::{costs::Costs, output::Streams, zone};
use crate::{
    capture::{Line, Redactor, line::Clock, replay::Told},
    correlator::Frame,
    event::{Ns, Role},
    exit::Exit,
    sinks::sanitise,
    source::{Live, News, Played, Source},
    thresholds::Thresholds,
    warden::{
        self, Settings,
        protocol::{Cost, Level, Survey},
    },
};
use anyhow::Context;
use std::{future, io::Write, sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// What a verb that follows something wants to hear. It writes into the streams it is given, which never block.
pub trait Follower {
    /// The warden is forked, and this process still has one thread.
    fn alone(&mut self) {}
    /// Where messages about plegscope itself go; to standard error where it does not say.
    fn messages(&mut self) -> Option<Box<dyn Write + Send>> {
        None
    }
    /// What wakes it while nothing happens. Who has that also stays when there is no more to hear: a capture can be played
    /// again.
    fn wake(&self) -> Option<Arc<Notify>> {
        None
    }
    /// It begins; nothing was heard yet.
    fn begin(&mut self, _source: &mut Source, _streams: &Streams) -> anyhow::Result<()> {
        Ok(())
    }
    /// A moment, ten times a second.
    fn frame(&mut self, frame: Frame, moment: &Moment<'_>) -> anyhow::Result<()>;
    /// A moment that a jump in a capture has passed over.
    fn passed(&mut self, _frame: Frame) {}
    /// Incidents that have just opened, before they are in a frame of [`Follower::frame`].
    fn ahead(&mut self, _frame: Frame, _moment: &Moment<'_>) -> anyhow::Result<()> {
        Ok(())
    }
    /// A line of a capture that is no event, in its place.
    fn line(&mut self, _line: &Line, _moment: &Moment<'_>) -> anyhow::Result<()> {
        Ok(())
    }
    /// After each of these, and when it was woken; a reason when it has had enough.
    fn enough(&mut self, _source: &mut Source, _streams: &Streams) -> Option<Why> {
        None
    }
    /// It is over: say the last words.
    fn end(&mut self, _source: &mut Source, _why: Why, _streams: &Streams) -> anyhow::Result<Exit> {
        Ok(Exit::Done)
    }
}

/// Where a follower writes, and what time it is.
pub struct Moment<'a> {
    /// The streams.
    pub streams: &'a Streams,
    /// By which clock; the node's own where there is none.
    pub clock: Option<Clock>,
}

impl Moment<'_> {
    /// The time of day at `at`, as the node's own clock and zone tell it; live, of now.
    pub fn time(&self, at: Ns) -> String {
        match &self.clock {
            None => jiff::Timestamp::now().to_zoned(zone().clone()).strftime("%H:%M:%S").to_string(),
            Some(clock) => clock.time_of_day(at),
        }
    }
}

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A signal.
    Interrupted,
    /// Its time is up.
    TimeIsUp,
    /// The follower has had enough.
    Enough,
    /// There is no more.
    Over,
}

/// How to follow this node.
pub struct Node {
    /// What the warden shall do.
    pub settings: Settings,
    /// What is an incident.
    pub thresholds: Thresholds,
    /// How long.
    pub duration: Option<Duration>,
    /// Hides names.
    pub redactor: Option<Redactor>,
}

/// Follows the node until it is told to stop, its time is up, or the warden ends.
pub fn node(node: Node, follower: &mut dyn Follower) -> anyhow::Result<Exit> {
    let verbose = node.settings.diagnostics;
    let header =
        crate::source::header(node.thresholds.clone(), zone()).context("reading the clocks of the node")?;
    let settings = Settings { thresholds: node.thresholds, ..node.settings };
    let socket = warden::fork(settings).context("starting the warden process")?;
    follower.alone();
    let streams = Streams::new(follower.messages()).context("starting to write")?;
    if let Err(error) = warden::lock_memory()
        && verbose
    {
        streams.messages.line(format_args!("plegscope: memory is not locked ({error})"));
    }
    let live = || Ok(Source::Live(Live::new(socket, header, zone(), node.redactor)?));
    run(live, node.duration, verbose, follower, streams)
}

/// Plays a capture to its end.
pub fn capture(played: Played, verbose: bool, follower: &mut dyn Follower) -> anyhow::Result<Exit> {
    let streams = Streams::new(follower.messages()).context("starting to write")?;
    run(|| Ok(Source::Capture(played)), None, verbose, follower, streams)
}

fn run(
    source: impl FnOnce() -> anyhow::Result<Source>,
    duration: Option<Duration>,
    verbose: bool,
    follower: &mut dyn Follower,
    streams: Streams,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(async {
        let mut source = source()?;
        listen(&mut source, duration, verbose, follower, &streams).await
    });
    // Nothing of ours waits in the runtime; the warden sees the closed socket and detaches by itself.
    runtime.shutdown_background();
    streams.finish();
    exit
}

async fn listen(
    source: &mut Source,
    duration: Option<Duration>,
    verbose: bool,
    follower: &mut dyn Follower,
    streams: &Streams,
) -> anyhow::Result<Exit> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let deadline = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => future::pending().await,
        }
    };
    tokio::pin!(deadline);
    // What happens now cannot wait for a slow reader; a capture can.
    let patient = matches!(source, Source::Capture(_));
    let mut ear = Ear { verbose, ..Ear::default() };
    let mut clock = source.clock();
    let wake = follower.wake();
    let woken = async || match &wake {
        Some(wake) => wake.notified().await,
        None => future::pending().await,
    };
    // An ssh that is gone ends it as Ctrl-C does, but for who was started to outlive it (nohup).
    let mut hang_up = (!ignores_hang_up()).then(|| signal(SignalKind::hangup())).transpose()?;
    let mut hung_up = async || match &mut hang_up {
        Some(signal) => signal.recv().await,
        None => future::pending().await,
    };
    follower.begin(source, streams)?;
    let mut is_over = false;
    let why = loop {
        let news = tokio::select! {
            news = source.next(), if !is_over => {
                let news = news?;
                is_over = news.is_none();
                news
            }
            () = woken() => {
                is_over = false;
                None
            }
            _ = interrupt.recv() => break Why::Interrupted,
            _ = terminate.recv() => break Why::Interrupted,
            _ = hung_up() => break Why::Interrupted,
            () = &mut deadline => break Why::TimeIsUp,
        };
        if is_over && wake.is_none() {
            break Why::Over;
        }
        if let (Some(News::Told(Told::Line(Line::Clock(now)))), Some(clock)) = (&news, &mut clock) {
            *clock = *now;
        }
        let moment = Moment { streams, clock };
        if let Some(news) = news
            && let Some(reason) = ear.hear(news, follower, &moment)?
        {
            // First what has the terminal gives it back.
            follower.end(source, Why::Over, streams)?;
            streams.messages.line(format_args!("plegscope: {}", sanitise(&reason)));
            return Ok(Exit::NotAllowed);
        }
        if let Some(why) = follower.enough(source, streams) {
            break why;
        }
        if patient {
            tokio::select! {
                () = streams.room() => {}
                _ = interrupt.recv() => break Why::Interrupted,
                _ = terminate.recv() => break Why::Interrupted,
                _ = hung_up() => break Why::Interrupted,
            }
        }
        streams.check()?;
    };
    if verbose {
        ear.last_words(streams);
    }
    let exit = follower.end(source, why, streams);
    if patient && why != Why::Interrupted {
        tokio::select! {
            () = streams.drained() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        streams.check()?;
    }
    exit
}

/// Whether this process was started so that the end of its terminal does not end it.
fn ignores_hang_up() -> bool {
    // SAFETY: all of it may be zero.
    let mut is: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and `is` is a valid place for what there is.
    let told = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut is) };
    told == 0 && is.sa_sigaction == libc::SIG_IGN
}

/// What users are told beside the frames.
#[derive(Default)]
struct Ear {
    verbose: bool,
    watched: Watched,
    costs: Costs,
    begun: Vec<Cost>,
}

impl Ear {
    /// Passes on what was heard; a reason when it cannot go on.
    fn hear(
        &mut self,
        news: News,
        follower: &mut dyn Follower,
        moment: &Moment<'_>,
    ) -> anyhow::Result<Option<String>> {
        let messages = &moment.streams.messages;
        match news {
            News::Told(Told::Frame(frame)) => {
                for line in self.costs.news(&frame.costs) {
                    messages.line(format_args!("plegscope: {line}"));
                }
                follower.frame(frame, moment)?;
            }
            News::Told(Told::Passed(frame)) => follower.passed(frame),
            News::Told(Told::Ahead(frame)) => follower.ahead(frame, moment)?,
            News::Told(Told::Line(line)) => {
                match &line {
                    Line::Survey(survey) => {
                        for line in self.watched.news(survey) {
                            messages.line(format_args!("plegscope: {}", sanitise(&line)));
                        }
                    }
                    Line::Log { level, text, .. } if self.verbose || *level != Level::Debug => {
                        messages.line(format_args!("plegscope: {}", sanitise(text)));
                    }
                    _ => {}
                }
                follower.line(&line, moment)?;
            }
            News::Begun(latest) => self.begun = latest,
            News::Fatal(reason) => return Ok(Some(reason)),
        }
        Ok(None)
    }

    fn last_words(&self, streams: &Streams) {
        for cost in &self.begun {
            let refusals: Vec<String> =
                cost.refusals.iter().map(|(why, n)| format!("; {why}: {n}")).collect();
            let line = format_args!("plegscope: {:?}: {} begun{}", cost.kind, cost.hits, refusals.concat());
            streams.messages.line(line);
        }
        for line in self.costs.last_words() {
            streams.messages.line(format_args!("plegscope: {line}"));
        }
    }
}

/// What the user was told about what is looked at.
#[derive(Default)]
struct Watched {
    ready: bool,
    /// Whether a containerd was there when it was told last.
    containerd: bool,
}

impl Watched {
    /// What is to be told now: once that it looks and at what, then whenever the last containerd goes or one comes.
    fn news(&mut self, survey: &Survey) -> Vec<String> {
        if survey.attached_after.is_none() {
            return Vec::new();
        }
        let is = survey.programs.iter().any(|p| p.role == Role::Containerd && !p.pids.is_empty());
        let was = std::mem::replace(&mut self.containerd, is);
        let mut news = Vec::new();
        let first = !std::mem::replace(&mut self.ready, true);
        if first {
            news.push(ready_line(survey));
        }
        if !is && (was || first) {
            news.push(no_containerd(survey));
        }
        if is && !was && !first {
            news.push(format!("a containerd has come: {}", ready_line(survey)));
        }
        news
    }
}

/// Why no containerd is seen, and what to do.
pub fn no_containerd(survey: &Survey) -> String {
    if survey.unreadable > 0 {
        format!(
            "no containerd is seen: the programs of {} processes cannot be read (not permitted); run as root (sudo plegscope)",
            survey.unreadable
        )
    } else {
        "no containerd runs here: no process contains its functions (pgrep -a containerd); one that comes is taken up within two seconds".into()
    }
}

/// The line that says that plegscope is looking, and at what.
fn ready_line(survey: &Survey) -> String {
    let sites: u32 = survey.probes.iter().map(|p| p.sites).sum();
    let on = survey.probes.iter().filter(|p| p.how.is_some()).count();
    let off = survey.probes.len() - on;
    let took = survey.attached_after.unwrap_or(0) / 1_000_000;
    let count =
        |role| -> usize { survey.programs.iter().filter(|p| p.role == role).map(|p| p.pids.len()).sum() };
    let blind = if off == 0 { String::new() } else { format!("; {off} off (plegscope doctor says why)") };
    format!(
        "attached {on} probes at {sites} sites in {took} ms{blind}; watching {} containerd, {} shims, {} kubelet",
        count(Role::Containerd),
        count(Role::Shim),
        count(Role::Kubelet),
    )
}
