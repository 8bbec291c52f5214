//! plegscope as the lab runs it: the release binary, its lines with the time they came, its end.

use super::cleanup::Ledger;
use super::sys;
use crate::shell;
use anyhow::{Context, Result, bail};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// Environment variable that names another plegscope than the one in `target/release`.
pub const OVERRIDE: &str = "PLEGSCOPE";

/// Longest that plegscope may take until all its probes are attached.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A line of output and when it came, ns of CLOCK_MONOTONIC.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at: u64,
    /// The text, without the line end.
    pub text: String,
}

/// A running plegscope.
pub struct Tracer {
    child: Child,
    pid: u32,
    /// When it was started, ns of CLOCK_MONOTONIC.
    pub started: u64,
    lines: Arc<Mutex<Vec<Line>>>,
    messages: Arc<Mutex<Vec<Line>>>,
    readers: [tokio::task::JoinHandle<()>; 2],
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The release binary; built when the sources are newer (cargo decides). Its messages are shown.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        let path = PathBuf::from(path);
        anyhow::ensure!(path.is_file(), "{OVERRIDE}={} is not a file", path.display());
        return Ok(path);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = std::process::Command::new(cargo);
    build.args(["build", "--release", "--package", "tracer"]);
    shell::built(build.current_dir(workspace()), "plegscope")
}

impl Tracer {
    /// Starts it; `show` gets each line as it comes, standard error marked with `true`.
    pub fn start(
        ledger: &Ledger,
        binary: &Path,
        args: &[&str],
        show: impl Fn(&str, bool) + Clone + Send + 'static,
    ) -> Result<Tracer> {
        let started = sys::monotonic();
        let mut child = Command::new(binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let pid = child.id().context("plegscope ended at once")?;
        ledger.record_process(pid, Duration::from_secs(5))?;
        let lines = Arc::default();
        let messages = Arc::default();
        let stdout = child.stdout.take().context("plegscope's standard output")?;
        let stderr = child.stderr.take().context("plegscope's standard error")?;
        let readers = [
            collect(stdout, Arc::clone(&lines), show.clone(), false),
            collect(stderr, Arc::clone(&messages), show, true),
        ];
        Ok(Tracer { child, pid, started, lines, messages, readers })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the line `attached N probes in M ms` on standard error; returns it and when it came.
    pub async fn ready(&mut self) -> Result<Line> {
        let end = tokio::time::Instant::now() + READY_LIMIT;
        loop {
            if let Some(line) = self.messages().into_iter().find(|line| is_ready(&line.text)) {
                return Ok(line);
            }
            if let Some(status) = self.child.try_wait().context("asking for plegscope's state")? {
                bail!("plegscope ended with {status} before it was ready:\n{}", text(&self.messages()));
            }
            if tokio::time::Instant::now() > end {
                bail!(
                    "plegscope did not say `attached N probes` within {READY_LIMIT:?}:\n{}",
                    text(&self.messages())
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it printed on standard output so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it printed on standard error so far.
    pub fn messages(&self) -> Vec<Line> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks it to end as Ctrl-C does; returns its exit code, how long it took in ns, and all it printed.
    pub async fn quit(self) -> Result<(Option<i32>, u64, Vec<Line>, Vec<Line>)> {
        self.quit_by(libc::SIGINT).await
    }

    /// The same by another signal.
    pub async fn quit_by(mut self, signal: libc::c_int) -> Result<(Option<i32>, u64, Vec<Line>, Vec<Line>)> {
        let begin = sys::monotonic();
        if self.child.id().is_some() {
            sys::signal(self.pid, signal);
        }
        let status = tokio::time::timeout(Duration::from_secs(15), self.child.wait())
            .await
            .context("plegscope does not end within 15 s of SIGINT")?
            .context("waiting for plegscope")?;
        let took = sys::monotonic() - begin;
        // What it wrote last may still be in the pipe; a child of its own that detaches probes may hold the pipe open.
        for reader in self.readers {
            let _ = tokio::time::timeout(Duration::from_millis(500), reader).await;
        }
        let take = |lines: &Mutex<Vec<Line>>| {
            std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let (lines, messages) = (take(&self.lines), take(&self.messages));
        if let Some(signal) = status.signal() {
            bail!("plegscope died by signal {signal}:\n{}", text(&messages));
        }
        Ok((status.code(), took, lines, messages))
    }
}

fn is_ready(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| *word != "attached");
    words.next().is_some()
        && words.next().is_some_and(|count| count.parse::<u32>().is_ok())
        && words.next().is_some_and(|word| word.starts_with("probe"))
}

fn collect(
    stream: impl AsyncRead + Unpin + Send + 'static,
    into: Arc<Mutex<Vec<Line>>>,
    show: impl Fn(&str, bool) + Send + 'static,
    error: bool,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(text)) = lines.next_line().await {
            show(&text, error);
            into.lock().unwrap_or_else(PoisonError::into_inner).push(Line { at: sys::monotonic(), text });
        }
    })
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::is_ready;

    #[test]
    fn the_ready_line_is_known_by_its_count() {
        assert!(is_ready("attached 61 probes in 214 ms"));
        assert!(is_ready("plegscope: attached 1 probe in 9 ms (3 off)"));
        assert!(!is_ready("attached nothing"));
        assert!(!is_ready("could not be attached: 3 probes"));
    }
}
