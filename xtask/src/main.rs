//! Everything about building, testing and measuring plegscope: `cargo xtask --help`, one file per command.

mod binaries;
mod bpf;
mod kubelet;
mod packages;
mod shell;
mod test;
mod tidy;

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
    /// Build the kernel half into tracer-ebpf/prebuilt, or check that it is what its source gives
    Bpf(bpf::Args),
    /// Check the invariants of the source tree
    Tidy(tidy::Args),
    /// Fill the cache with the Go programs that tests read
    Binaries(binaries::Args),
    /// Run all checks and tests
    Test(test::Args),
    /// Build a real kubelet into the cache
    Kubelet(kubelet::Args),
}

fn main() -> ExitCode {
    if let Some(code) = bpf::rustc::run_if_called() {
        return code;
    }
    let result = match Cli::parse().command {
        Command::Bpf(args) => bpf::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Binaries(args) => binaries::run(&args),
        Command::Kubelet(args) => kubelet::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
