//! The `plegscope` binary: parse, run, map the result to an exit status.

use clap::Parser;
use std::{io::Write, process::ExitCode};
use tracer::{cli::Cli, commands, exit::Exit};

fn main() -> ExitCode {
    match commands::run(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(error) if is_closed_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            // Nobody may read the standard error; that is no reason to panic.
            let _ =
                writeln!(std::io::stderr(), "plegscope: {}", tracer::sinks::sanitise(&format!("{error:#}")));
            commands::exit_of(&error).into()
        }
    }
}

/// The reader of our output has had enough: that is not a failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
