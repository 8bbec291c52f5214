//! Everything about building, testing and measuring plegscope: `cargo xtask <command>`, one file per command.

mod bpf;
mod shell;

use clap::Parser;

/// Build, test and measure plegscope.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    Bpf(bpf::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Bpf(args) => bpf::run(&args),
    }
}
