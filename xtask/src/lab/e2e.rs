//! The native end-to-end test.

/// Which stories to play.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the test.
pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not there yet")
}
