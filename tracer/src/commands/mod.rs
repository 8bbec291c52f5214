//! One file per verb. All of them fork the warden first, while the process has one thread, and only then start a
//! runtime.

mod doctor;
mod live;
mod watch;

use crate::{
    cli::{Cli, Verb},
    correlator::Frame,
    exit::Exit,
    pipeline::Pipeline,
    source::Live,
    thresholds::{TICK_EVERY, Thresholds},
    warden::{
        self, Settings,
        protocol::{Cost, Level, Message, Survey},
    },
};
use anyhow::Context;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Runs what was typed.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.verb {
        None => live::run(&cli.live),
        Some(Verb::Live(options)) => live::run(&options),
        Some(Verb::Watch(options)) => watch::run(&options),
        Some(Verb::Doctor(options)) => doctor::run(&options),
    }
}

/// What a verb that follows the node wants to hear.
trait Follower {
    /// How attaching turned out, whenever that changes.
    fn survey(&mut self, survey: &Survey) -> anyhow::Result<()>;
    /// A moment, ten times a second.
    fn frame(&mut self, frame: Frame) -> anyhow::Result<()>;
    /// What the probes did so far.
    fn cost(&mut self, _cost: &[Cost]) {}
    /// It is over: say the last words.
    fn end(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Follows the node until it is told to stop, its time is up, or the warden ends.
fn follow(
    settings: Settings,
    thresholds: Thresholds,
    duration: Option<Duration>,
    follower: &mut dyn Follower,
) -> anyhow::Result<Exit> {
    let verbose = settings.diagnostics;
    let socket = warden::fork(settings).context("starting the warden process")?;
    if let Err(error) = warden::lock_memory()
        && verbose
    {
        eprintln!("plegscope: memory is not locked ({error})");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(async {
        let mut source = Live::new(socket)?;
        let mut pipeline = Pipeline::new(thresholds);
        let mut ticks = tokio::time::interval(Duration::from_nanos(TICK_EVERY));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let deadline = async {
            match duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                message = source.next() => match message.context("hearing from the warden")? {
                    Some(Message::Events(events)) => pipeline.push(events),
                    Some(Message::Survey(survey)) => follower.survey(&survey)?,
                    Some(Message::Cost(cost)) => follower.cost(&cost),
                    Some(Message::Log(level, line)) => {
                        if verbose || level != Level::Debug {
                            eprintln!("plegscope: {}", crate::sinks::sanitise(&line));
                        }
                    }
                    Some(Message::Fatal(reason)) => {
                        eprintln!("plegscope: {reason}");
                        return Ok(Exit::NotAllowed);
                    }
                    None => anyhow::bail!("the warden process ended; run plegscope again with --verbose and report it"),
                },
                _ = ticks.tick() => {
                    let mut result = Ok(());
                    pipeline.advance(crate::node::clock::monotonic(), |frame| {
                        if result.is_ok() {
                            result = follower.frame(frame);
                        }
                    });
                    result?;
                }
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = &mut deadline => break,
            }
        }
        follower.end()?;
        Ok(Exit::Done)
    });
    // Nothing of ours waits in the runtime; the warden sees the closed socket and detaches by itself.
    runtime.shutdown_background();
    exit
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
        "plegscope: attached {on} probes at {sites} sites in {took} ms{blind}; watching {} containerd, {} shims, {} kubelet",
        count(crate::event::Role::Containerd),
        count(crate::event::Role::Shim),
        count(crate::event::Role::Kubelet),
    )
}

/// The time of day as the node's own clock and zone tell it.
fn wall_clock() -> String {
    jiff::Zoned::now().strftime("%H:%M:%S").to_string()
}
