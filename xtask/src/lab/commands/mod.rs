//! The story of the commands: what users, administrators and failing parts do to plegscope and to what it watches, and
//! that neither plegscope nor the node is the worse for it.

mod kills;
pub mod look;
mod restarts;
mod users;

use super::containerd::Programs;
use super::story::{Block, Script};
use super::tracer::{Line, Tracer};
use super::verdict::Verdict;
use super::{Lab, cleanup::Ledger, run_interruptible, sys};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How long the disk keeps the unmount busy.
const STALL: Duration = Duration::from_secs(16);

/// Plays it. Standard output gets a line for each step, the folder `keep` what plegscope said.
pub fn play(programs: Programs, binary: &Path, keep: Option<&Path>) -> Result<Verdict> {
    let begin = sys::monotonic();
    let mut say = move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
    run_interruptible(async |ledger| {
        let script = Script {
            block: Block::Disk,
            stall: STALL,
            rate: 2_000_000,
            update_every: Duration::from_secs(2),
            calm: Duration::from_secs(3),
        };
        let mut verdict = Verdict::default();
        let mut lab = Lab::prepare(ledger, programs, script.megabytes(), &mut say).await?;
        say("without rights, with wrong options, with readers that go away");
        users::without_rights(&lab, binary, &mut verdict).await?;
        users::pipes(&lab, binary, &mut verdict).await?;
        users::doctor(&lab, binary, &mut verdict).await?;
        say("attached, and gone without a trace");
        users::leaves_nothing(&lab, binary, &mut verdict).await?;

        kills::stopped(ledger, &lab, binary, &mut verdict).await?;

        let mut live = Tracer::start(ledger, binary, &["live", "--json", "--verbose"], |_, _| {})?;
        live.ready().await?;
        say("at rest");
        users::at_rest(&live, &mut verdict).await?;
        say("containerd is restarted, then upgraded");
        restarts::restarted(ledger, &mut lab, &live, &mut verdict).await?;
        say("pods come and go");
        let guests = restarts::churn(&lab, &live, &mut verdict).await?;
        say("the disk is stuck; some plegscopes are told to end, some are killed");
        let stuck = kills::while_stuck(ledger, &lab, binary, &script, &mut verdict, &mut say).await?;
        say("a shim is killed in the middle of a stall");
        kills::shim(ledger, &lab, &live, &mut verdict).await?;

        let (exit, took, lines, messages) = live.quit().await?;
        if let Some(folder) = keep {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
            for (name, lines) in [("frames.tsv", &lines), ("messages.tsv", &messages)] {
                let text: String = lines.iter().map(|line| format!("{}\t{}\n", line.at, line.text)).collect();
                fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
            }
        }
        verdict.ended(exit, took, super::QUIT_WITHIN);
        restarts::guests(&lines, &guests, &mut verdict);
        restarts::explained(&lines, &stuck, &mut verdict);
        for line in messages.iter().filter(|line| line.text.contains("defect")) {
            verdict.check("no defect is told", "", line.text.as_str(), false);
        }
        say("cleaning up");
        lab.finish().await;
        Ok(verdict)
    })
}

/// Whether an incident is open or a chain shown that names this container, by the newest frame.
fn shows(lines: &[Line], container: &str) -> bool {
    let newest = lines.iter().rev().find_map(|line| serde_json::from_str::<Value>(&line.text).ok());
    newest.is_some_and(|frame| frame["diagnoses"].to_string().contains(container))
}

/// Runs plegscope to its end, which must come within `limit`. Its exit code, output and messages.
pub async fn run(
    ledger: &Ledger,
    command: &mut tokio::process::Command,
    limit: Duration,
) -> Result<(Option<i32>, String, String)> {
    use std::process::Stdio;
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().context("starting plegscope")?;
    ledger.record_process(child.id().context("plegscope ended at once")?, Duration::from_secs(2))?;
    let output = tokio::time::timeout(limit, child.wait_with_output());
    let output = output.await.with_context(|| format!("plegscope does not end within {limit:?}"))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}
