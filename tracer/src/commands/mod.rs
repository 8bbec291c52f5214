//! One file per verb. All of them fork the warden first, while the process has one thread, and only then start a
//! runtime.

mod config;
mod costs;
mod doctor;
mod files;
mod incidents;
mod live;
mod now;
mod output;
mod papers;
mod status;
mod watch;

use crate::{
    cli::{Cli, Verb},
    correlator::Frame,
    event::Role,
    exit::Exit,
    pipeline::Pipeline,
    source::Live,
    thresholds::{TICK_EVERY, Thresholds},
    warden::{
        self, Settings,
        protocol::{Level, Message, Survey},
    },
};
use anyhow::Context;
use output::Streams;
use std::{os::unix::net::UnixStream, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// Runs what was typed.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.verb {
        None => live::run(&cli.live),
        Some(Verb::Live(options)) => live::run(&options),
        Some(Verb::Watch(options)) => watch::run(&options),
        Some(Verb::Now(options)) => now::run(&options),
        Some(Verb::Doctor(options)) => doctor::run(&options),
        Some(Verb::Status(options)) => status::run(&options),
        Some(Verb::Incidents(options)) => incidents::run(&options),
        Some(Verb::Config(command)) => config::run(&command),
        Some(Verb::Completions(options)) => papers::completions(&options),
        Some(Verb::Man(options)) => papers::man(&options),
    }
}

/// What a verb that follows the node wants to hear. It writes into the streams it is given, which never block.
trait Follower {
    /// The warden is forked, and this process still has one thread.
    fn alone(&mut self) {}
    /// A moment, ten times a second.
    fn frame(&mut self, frame: Frame, streams: &Streams) -> anyhow::Result<()>;
    /// What is attached, and what is seen, has changed.
    fn survey(&mut self, _: &Survey) {}
    /// It is over: say the last words.
    fn end(&mut self) {}
}

/// Follows the node until it is told to stop, its time is up, or the warden ends.
fn follow(
    settings: Settings,
    thresholds: Thresholds,
    duration: Option<Duration>,
    follower: &mut dyn Follower,
) -> anyhow::Result<Exit> {
    let verbose = settings.diagnostics;
    zone();
    let socket = warden::fork(settings).context("starting the warden process")?;
    follower.alone();
    let streams = Streams::new().context("starting to write")?;
    if let Err(error) = warden::lock_memory()
        && verbose
    {
        streams.messages.line(format_args!("plegscope: memory is not locked ({error})"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(listen(socket, thresholds, duration, verbose, follower, &streams));
    // Nothing of ours waits in the runtime; the warden sees the closed socket and detaches by itself.
    runtime.shutdown_background();
    follower.end();
    streams.finish();
    exit
}

async fn listen(
    socket: UnixStream,
    thresholds: Thresholds,
    duration: Option<Duration>,
    verbose: bool,
    follower: &mut dyn Follower,
    streams: &Streams,
) -> anyhow::Result<Exit> {
    let mut source = Live::new(socket)?;
    let mut pipeline = Pipeline::new(thresholds);
    // The warden tells something ten times a second; the clock wakes us only when it does not.
    let silence = Duration::from_nanos(TICK_EVERY + TICK_EVERY / 2);
    let silent = tokio::time::sleep(silence);
    tokio::pin!(silent);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let deadline = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    let mut watched = Watched::default();
    let mut begun = Vec::new();
    let mut costs = costs::Costs::default();
    let exit = loop {
        tokio::select! {
            message = source.next() => match message.context("hearing from the warden")? {
                Some(Message::Events(events)) => pipeline.push(events),
                Some(Message::Survey(survey)) => {
                    follower.survey(&survey);
                    for line in watched.news(&survey) {
                        streams.messages.line(format_args!("plegscope: {}", crate::sinks::sanitise(&line)));
                    }
                }
                Some(Message::Cost(latest)) => begun = latest,
                Some(Message::Exposure(_) | Message::Look(_) | Message::Looked(_)) => {}
                Some(Message::Log(level, line)) => {
                    if verbose || level != Level::Debug {
                        streams.messages.line(format_args!("plegscope: {}", crate::sinks::sanitise(&line)));
                    }
                }
                Some(Message::Fatal(reason)) => {
                    streams.messages.line(format_args!("plegscope: {}", crate::sinks::sanitise(&reason)));
                    break Exit::NotAllowed;
                }
                None => anyhow::bail!("the warden process ended; run plegscope again with --verbose and report it"),
            },
            () = &mut silent => {}
            _ = interrupt.recv() => break Exit::Done,
            _ = terminate.recv() => break Exit::Done,
            () = &mut deadline => break Exit::Done,
        }
        silent.as_mut().reset(tokio::time::Instant::now() + silence);
        let mut result = Ok(());
        pipeline.advance(crate::node::clock::monotonic(), |frame| {
            for line in costs.news(&frame.costs) {
                streams.messages.line(format_args!("plegscope: {line}"));
            }
            if result.is_ok() {
                result = follower.frame(frame, streams);
            }
        });
        result?;
        streams.check()?;
    };
    if verbose {
        for cost in begun {
            let refusals: Vec<String> =
                cost.refusals.iter().map(|(why, n)| format!("; {why}: {n}")).collect();
            let line = format_args!("plegscope: {:?}: {} begun{}", cost.kind, cost.hits, refusals.concat());
            streams.messages.line(line);
        }
        for line in costs.last_words() {
            streams.messages.line(format_args!("plegscope: {line}"));
        }
    }
    Ok(exit)
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
fn no_containerd(survey: &Survey) -> String {
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

/// The node's own zone, read once: asked again, jiff would now and then look into `/etc`, which may be on the stuck disk.
fn zone() -> &'static jiff::tz::TimeZone {
    static ZONE: std::sync::OnceLock<jiff::tz::TimeZone> = std::sync::OnceLock::new();
    ZONE.get_or_init(jiff::tz::TimeZone::system)
}

/// The time of day as the node's own clock and zone tell it.
fn wall_clock() -> String {
    jiff::Timestamp::now().to_zoned(zone().clone()).strftime("%H:%M:%S").to_string()
}
