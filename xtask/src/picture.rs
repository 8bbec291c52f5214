//! `cargo xtask picture`: the picture of the screen in docs/screen.svg, drawn by the test that holds it against the screen.

use crate::shell;
use anyhow::Result;
use std::process::Command;

/// Draw docs/screen.svg anew.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_: &Args) -> Result<()> {
    let mut test = Command::new("cargo");
    test.current_dir(shell::root()).env("UPDATE_PICTURE", "1");
    shell::run(test.args(["test", "--package", "tracer", "--test", "screen", "picture"]))?;
    println!("drawn: docs/screen.svg");
    Ok(())
}
