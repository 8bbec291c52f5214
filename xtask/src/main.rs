//! Build, lab, test and bench commands of plegscope: `cargo xtask --help`.

mod bench;
mod demo;
mod lab;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Everything about building, testing and measuring plegscope.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play the incident on a real containerd on this machine and watch plegscope explain it
    Demo(demo::Args),
    /// Play a healthy run, a slow disk and the published reproduction, and check every word of plegscope
    E2e(lab::e2e::Args),
    /// Measure what plegscope costs, side by side with bpftrace
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::E2e(args) => lab::e2e::run(args),
        Command::Bench(args) => bench::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
