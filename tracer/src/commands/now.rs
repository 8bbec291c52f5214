//! `now`: what is blocked at this moment, read from memory alone. No probe, no BPF.

use crate::{
    cli::{Format, Now},
    correlator::{Correlator, Frame, TieBreak},
    event::{Body, Event},
    exit::Exit,
    look::{LookedAt, Looks, Summary},
    sinks::{self, json},
    source::Messages,
    thresholds::Thresholds,
    warden::{
        self, LookOnce, Settings,
        protocol::{Level, Message},
    },
};
use anyhow::{Context, bail};
use serde::Serialize;
use std::{collections::BTreeMap, io::Write as _, os::unix::net::UnixStream, time::Duration};

/// How much longer than asked for the warden may take before it is left behind with what it has told.
const GRACE: Duration = Duration::from_millis(500);
/// What is to be seen about a blocked operation that was found twice is worth telling, however young it is.
const SHOWN: Thresholds = Thresholds { shown: 0, ..Thresholds::DEFAULT };

/// Runs the verb.
pub fn run(options: &Now) -> anyhow::Result<Exit> {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "plegscope: now reads the memory of other processes, which is for root: sudo plegscope now"
        );
        return Ok(Exit::NotAllowed);
    }
    let look = LookOnce { pids: options.pid.clone(), within: options.within };
    let settings = Settings { look: Some(look), ..Settings::default() };
    let socket = warden::fork(settings).context("starting the warden process")?;
    // Without it we may wait for the disk ourselves; nothing is lost by going on.
    let _ = warden::lock_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut heard = Heard::default();
    let patience = options.within.saturating_add(GRACE);
    let end = runtime.block_on(async { tokio::time::timeout(patience, listen(socket, &mut heard)).await });
    runtime.shutdown_background();
    match end {
        Ok(end) => end?,
        Err(_) => heard.summary.left_out.push(crate::look::LeftOut {
            comm: "the rest".into(),
            pids: Vec::new(),
            reason: format!("there was no answer within {patience:?}"),
        }),
    }
    let Heard { last, summary, events, .. } = heard;
    let frame = correlate(events);
    let looked: Vec<LookedAt> = last.into_values().collect();
    let text = match (options.json, options.format) {
        (true, _) => json::line(&Report { frame: &frame, processes: &looked, summary: &summary })?,
        (false, Format::Text) => sinks::now::text(&frame, &looked, &summary).into_bytes(),
        (false, Format::Goroutine) => {
            looked.iter().map(sinks::goroutine::process).collect::<String>().into_bytes()
        }
    };
    let mut out = std::io::stdout().lock();
    out.write_all(&text)?;
    out.flush()?;
    let blind = !summary.left_out.is_empty() || summary.roles.iter().all(|count| count.looked_at == 0);
    Ok(if blind { Exit::PartlyBlind } else { Exit::Done })
}

/// The JSON.
#[derive(Serialize)]
struct Report<'a> {
    /// What is blocked: the frame that `live --json` gives.
    frame: &'a Frame,
    /// What was seen of each process.
    processes: &'a [LookedAt],
    /// How the look went.
    summary: &'a Summary,
}

/// Frames of all goroutines of the node that are kept to be told. Those of 250 shims, a containerd and a kubelet at rest
/// are a fifth of it.
const MOST_FRAMES: usize = 1 << 18;

/// What the warden has told.
#[derive(Default)]
struct Heard {
    /// Of each process the last look that saw something.
    last: BTreeMap<u32, LookedAt>,
    /// Frames among them.
    frames: usize,
    looks: Looks,
    events: Vec<Event>,
    summary: Summary,
}

impl Heard {
    /// Takes a look for what follows from it, and keeps it to be told if it is the last.
    fn take(&mut self, mut looked: LookedAt) {
        self.events.push(Event { at: looked.at, body: Body::Process(looked.process.clone()) });
        self.events.extend(self.looks.events(&looked));
        let pid = looked.process.pid;
        if looked.look.is_err() && self.last.contains_key(&pid) {
            return;
        }
        if let Some(before) = self.last.remove(&pid) {
            self.frames -= frames(&before);
        }
        if let Ok(look) = &mut looked.look {
            let mut room = MOST_FRAMES.saturating_sub(self.frames);
            let all = look.goroutines.len();
            // What is in the middle of something is told in any case; there is a limit to each message.
            look.goroutines.retain(|g| {
                let told = g.matters() || g.frames.len() <= room;
                room = room.saturating_sub(if told { g.frames.len() } else { 0 });
                told
            });
            let left_out = all - look.goroutines.len();
            if left_out > 0 {
                let why = format!("of all processes together, {MOST_FRAMES} frames are told");
                look.left_out.push((why, left_out as u32));
            }
        }
        self.frames += frames(&looked);
        self.last.insert(pid, looked);
    }
}

fn frames(looked: &LookedAt) -> usize {
    looked.look.as_ref().map_or(0, |look| look.goroutines.iter().map(|g| g.frames.len()).sum())
}

async fn listen(socket: UnixStream, heard: &mut Heard) -> anyhow::Result<()> {
    let mut source = Messages::new(socket)?;
    loop {
        match source.next().await.context("hearing from the warden")? {
            Some(Message::Look(looked)) => heard.take(looked),
            Some(Message::Events(events)) => heard.events.extend(events),
            Some(Message::Looked(summary)) => {
                heard.summary = summary;
                return Ok(());
            }
            Some(Message::Fatal(reason)) => bail!("{reason}"),
            Some(Message::Log(Level::Error, line)) => eprintln!("plegscope: {}", sinks::sanitise(&line)),
            Some(_) => {}
            None => bail!("the warden process ended before it had an answer"),
        }
    }
}

/// The same correlator as live, with all that was seen at once.
fn correlate(mut events: Vec<Event>) -> Frame {
    events.sort_by_cached_key(|event| (event.at, TieBreak::of(event)));
    let now = events.last().map_or_else(crate::node::clock::monotonic, |event| event.at);
    let mut correlator = Correlator::new(SHOWN);
    events.iter().for_each(|event| correlator.apply(event));
    correlator.tick(now)
}
