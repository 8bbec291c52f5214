//! Everything about building, testing and measuring plegscope: `cargo xtask --help`, one file per command.

mod bench;
mod binaries;
mod bpf;
mod captures;
mod demo;
mod fuzz;
mod kubelet;
mod lab;
mod packages;
mod picture;
mod readers;
mod shell;
mod test;
mod tidy;
mod toolchains;
mod vm;

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
    /// Build the kernel half into tracer-ebpf/prebuilt, or check that it is what its source gives
    Bpf(bpf::Args),
    /// Check the invariants of the source tree
    Tidy(tidy::Args),
    /// Fill the cache with the Go programs that tests read
    Binaries(binaries::Args),
    /// Fill the cache with the Go toolchains that tests build programs with
    Toolchains(toolchains::Args),
    /// Run all checks and tests
    Test(test::Args),
    /// Build a real kubelet into the cache
    Kubelet(kubelet::Args),
    /// Play stories on a real containerd and check every word of plegscope
    Story(lab::stories::Args),
    /// Measure what plegscope costs, side by side with bpftrace
    Bench(bench::Args),
    /// Make the captures that are checked in, from stories
    Captures(captures::Args),
    /// Fuzz the parsers of foreign bytes
    Fuzz(fuzz::Args),
    /// Draw the picture of the screen in docs/screen.svg anew
    Picture(picture::Args),
    /// Boot other kernels in QEMU: prove the kernel half on each, or play stories on a whole node
    Vm(vm::Args),
    /// Be the first process of such a machine
    #[command(hide = true)]
    Boxed(vm::node::inside::Args),
}

fn main() -> ExitCode {
    if let Some(code) = bpf::rustc::run_if_called() {
        return code;
    }
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Bpf(args) => bpf::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Binaries(args) => binaries::run(&args),
        Command::Toolchains(args) => toolchains::run(&args),
        Command::Kubelet(args) => kubelet::run(&args),
        Command::Story(args) => lab::stories::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Captures(args) => captures::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Picture(args) => picture::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Boxed(args) => vm::node::inside::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
