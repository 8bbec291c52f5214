//! `completions` and `man`: what a shell and a manual need, made from the same table as the command line itself.

use crate::{
    cli::{Cli, Completions, Man},
    exit::Exit,
};
use anyhow::Context;
use clap::CommandFactory;
use std::io::Write;

/// Prints the completions of a shell.
pub fn completions(options: &Completions) -> anyhow::Result<Exit> {
    let mut out = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "plegscope", &mut out);
    std::io::stdout().write_all(&out)?;
    Ok(Exit::Done)
}

/// Writes a page for the program and one for each verb.
pub fn man(options: &Man) -> anyhow::Result<Exit> {
    let folder = &options.folder;
    clap_mangen::generate_to(Cli::command(), folder).with_context(|| {
        format!("writing the pages into {}; the folder must be there and be writable", folder.display())
    })?;
    Ok(Exit::Done)
}
