//! Everything about building, testing and measuring plegscope: `cargo xtask <command>`, one file per command.

mod binaries;
mod bpf;
mod kubelet;
mod packages;
mod shell;

use clap::Parser;
use std::process::ExitCode;

/// Build, test and measure plegscope.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    Bpf(bpf::Args),
    Binaries(binaries::Args),
    Kubelet(kubelet::Args),
}

fn main() -> ExitCode {
    if let Some(code) = bpf::rustc::run_if_called() {
        return code;
    }
    let result = match Command::parse() {
        Command::Bpf(args) => bpf::run(&args),
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
