//! `replay`: a capture, told as it was told on the node.

use super::follow::{self, Follower, Moment, Why};
use super::live::Teller;
use super::output::Streams;
use super::screen::{self, Screen};
use crate::{
    capture::{Line, Player, player::Speed, reader::ReadError, replay::Told},
    cli::Replay,
    correlator::Frame,
    exit::Exit,
    sinks::sanitise,
    source::{Played, Source},
    tui::{history, model::Mode},
};
use anyhow::{Context, bail};
use std::{collections::VecDeque, fs::File, time::Duration};

/// Runs the verb.
pub fn run(options: &Replay) -> anyhow::Result<Exit> {
    let file = options.file.display();
    let mut player = Player::open(&options.file, options.salvage).with_context(|| file.to_string())?;
    let on_screen = !options.plain && !options.json && screen::is_possible();
    // Who looks wants to see how it came; who reads wants it at once.
    player.set_speed(options.speed.unwrap_or(if on_screen { Speed::Times(1.0) } else { Speed::Max }));
    let mut told = VecDeque::new();
    if let Some(at) = &options.at {
        let (begin, end) = player.span();
        let to = at.resolve(&player.header().clock);
        if to > end {
            let clock = player.header().clock;
            let (begin, end) = (clock.rfc3339(begin), clock.rfc3339(end));
            bail!("{file}: there is nothing at that time: the capture is from {begin} to {end}");
        }
        player.seek(to).with_context(|| file.to_string())?;
        jump(&mut player, &mut told).with_context(|| file.to_string())?;
    }
    let wanted = options.incident.map_or(0, |number| number as usize);
    while player.incidents().count() < wanted {
        let before = player.incidents().count();
        player.next_incident();
        jump(&mut player, &mut told).with_context(|| file.to_string())?;
        if player.incidents().count() == before {
            let (s, are) = if before == 1 { ("", "is") } else { ("s", "are") };
            bail!("{file}: there {are} {before} incident{s} in it");
        }
    }
    if on_screen {
        let name =
            options.file.file_name().unwrap_or(options.file.as_os_str()).to_string_lossy().into_owned();
        let mut screen = Screen::new(Mode::Replay(name), options.no_color);
        return follow::capture(Played::new(player, told), options.verbose, &mut screen);
    }
    let mut teller = Replayed { teller: Teller::new(options.json), file: file.to_string() };
    follow::capture(Played::new(player, told), options.verbose, &mut teller).with_context(|| file.to_string())
}

/// Jumps; what is told is where it has led, and some of the way for what is shown over time.
fn jump(player: &mut Player<File>, told: &mut VecDeque<Told>) -> Result<(), ReadError> {
    told.retain(|one| matches!(one, Told::Passed(_)));
    while player.is_jumping() {
        player.play(Duration::ZERO, |one| {
            // The latest count, and what is told at the end comes last.
            if told.len() >= history::SECONDS {
                told.pop_front();
            }
            told.push_back(one);
        })?;
    }
    Ok(())
}

/// Tells as `live` does, and what is missing.
struct Replayed {
    teller: Teller,
    file: String,
}

impl Follower for Replayed {
    fn frame(&mut self, frame: Frame, moment: &Moment<'_>) -> anyhow::Result<()> {
        self.teller.frame(frame, moment)
    }

    fn line(&mut self, line: &Line, moment: &Moment<'_>) -> anyhow::Result<()> {
        let messages = &moment.streams.messages;
        match line {
            Line::Loss(loss) => {
                let (at, why) = (moment.time(loss.at), sanitise(&loss.reason));
                let what = match loss.lines {
                    0 => "a part of the capture is".to_owned(),
                    n => format!("{n} lines are"),
                };
                messages.line(format_args!("plegscope: {at} {what} missing here: {why}"));
            }
            Line::End(end) => {
                let (at, why) = (moment.time(end.at), sanitise(&end.reason));
                messages.line(format_args!("plegscope: {at} the capture ends: {why}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, source: &mut Source, why: Why, streams: &Streams) -> anyhow::Result<Exit> {
        if let (Some(player), Why::Over) = (source.player(), why) {
            let reader = player.reader();
            if let Some(unread) = reader.unread().words() {
                streams.messages.line(format_args!("plegscope: {}: {unread}", self.file));
            }
            if !reader.has_ended() {
                streams.messages.line(format_args!(
                    "plegscope: {}: the capture was cut off: it has no end; what is in it is whole",
                    self.file
                ));
            }
        }
        Ok(Exit::Done)
    }
}
