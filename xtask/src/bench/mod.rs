//! What plegscope costs, measured side by side with bpftrace.

/// What to measure.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the benches.
pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not there yet")
}
