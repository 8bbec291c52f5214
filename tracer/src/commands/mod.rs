//! One file per verb. Those that look at the node fork the warden first, while the process has one thread, and only then
//! start a runtime.

mod capture;
mod captures;
mod complaint;
mod config;
mod costs;
mod doctor;
mod export;
mod file;
mod files;
mod follow;
mod incidents;
mod live;
mod now;
mod output;
mod papers;
mod replay;
mod report;
mod screen;
mod status;
mod watch;

use crate::{
    capture::{ReadError, place::PlaceError},
    cli::{Cli, Verb},
    exit::Exit,
    source::SourceError,
};

/// Runs what was typed.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.verb {
        None => live::run(&cli.live),
        Some(Verb::Live(options)) => live::run(&options),
        Some(Verb::Watch(options)) => watch::run(&options),
        Some(Verb::Now(options)) => now::run(&options),
        Some(Verb::Capture(options)) => capture::run(&options),
        Some(Verb::Replay(options)) => replay::run(&options),
        Some(Verb::Doctor(options)) => doctor::run(&options),
        Some(Verb::Status(options)) => status::run(&options),
        Some(Verb::Incidents(options)) => incidents::run(&options),
        Some(Verb::Config(command)) => config::run(&command),
        Some(Verb::Completions(options)) => papers::completions(&options),
        Some(Verb::Man(options)) => papers::man(&options),
        Some(Verb::Report(options)) => report::run(&options),
        Some(Verb::Export(options)) => export::run(&options),
    }
}

/// The status that an error ends with.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let is_file = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<ReadError>()
            || cause.is::<PlaceError>()
            || matches!(cause.downcast_ref(), Some(SourceError::Capture(_)))
    };
    if error.chain().any(is_file) { Exit::File } else { Exit::Failed }
}

/// The node's own zone, read once: asked again, jiff would now and then look into `/etc`, which may be on the stuck disk.
fn zone() -> &'static jiff::tz::TimeZone {
    static ZONE: std::sync::OnceLock<jiff::tz::TimeZone> = std::sync::OnceLock::new();
    ZONE.get_or_init(jiff::tz::TimeZone::system)
}
