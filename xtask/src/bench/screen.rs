//! B12: what the screen costs: until the first picture, and of a core, on a quiet node and on one that is stuck, on a
//! terminal of 160x50.

use super::table::Table;
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::kubelet_like::KubeletLike;
use crate::lab::{Lab, sys};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Columns and lines.
const SIZE: (u16, u16) = (160, 50);
/// All windows of one state together.
const TIME: Duration = Duration::from_secs(30);
/// Until a start is digested.
const SETTLE: Duration = Duration::from_secs(5);
/// What the disk writes while it is slow, bytes per second, and what a pod has written before it exits, megabytes: the
/// unmount takes longer than all windows.
const RATE: u64 = 4_000_000;
const MEGABYTES: u64 = 200;
/// The first word of the first line.
const FIRST_WORD: &[u8] = b"plegscope";

/// Runs the screen beside a containerd with three pods, of which one exits on a slow disk.
pub async fn measure(
    ledger: &Ledger,
    programs: Programs,
    scope: Option<&Path>,
    rounds: u64,
) -> Result<Table> {
    let mut table = Table {
        title: format!("B12: the screen, {}x{}", SIZE.0, SIZE.1),
        rows: Vec::new(),
        goals: Vec::new(),
        notes: Vec::new(),
    };
    let Some(scope) = scope else {
        table.notes.push("without plegscope there is no screen".to_owned());
        return Ok(table);
    };
    let lab = Lab::prepare(ledger, programs, MEGABYTES, &mut |text: &str| println!("{text}")).await?;
    let client =
        KubeletLike::start(&lab.containerd.socket, &lab.run.join("client.jsonl"), Duration::from_secs(1))?;
    let mut starts = Vec::new();
    for _ in 0..rounds {
        let screen = Terminal::start(ledger, scope)?;
        starts.push(screen.first_picture().await? as f64 / 1e6);
        screen.quit().await?;
    }
    let window = TIME / u32::try_from(rounds).unwrap_or(1);
    let screen = Terminal::start(ledger, scope)?;
    let quiet = screen.watch(rounds, window).await?;
    lab.disk.slow_down(ledger, RATE)?;
    let victim = lab.victim();
    victim.tell("write")?;
    victim.wait_for("written", Duration::from_secs(60)).await?;
    victim.tell("exit")?;
    let stuck = screen.watch(rounds, window).await?;
    ensure!(
        client.log.calls().iter().any(|call| call.method == "relist" && call.end.is_none()),
        "nothing was stuck any more when it was measured: what was measured is not what it costs then"
    );
    screen.quit().await?;
    lab.disk.speed_up()?;
    drop(client);
    lab.finish().await;

    let start = table.row("from the start to the first picture", &starts, "ms");
    let mut most = 0.0_f64;
    for (state, usage) in [("quiet", &quiet), ("stuck", &stuck)] {
        table.row(format!("{state}: CPU of the parent, which draws"), &usage.cpu[0], "% of a core");
        table.row(format!("{state}: CPU of the warden"), &usage.cpu[1], "% of a core");
        let both: Vec<f64> = usage.cpu[0].iter().zip(&usage.cpu[1]).map(|(a, b)| a + b).collect();
        most = most.max(table.row(format!("{state}: CPU of both"), &both, "% of a core").median);
        table.row(format!("{state}: written to the terminal"), &usage.bytes, "bytes/s");
    }
    table.goal("first picture", 300.0, start.median, "ms");
    table.goal("CPU of both, quiet or stuck", 2.0, most, "% of a core");
    Ok(table)
}

/// What it took, by window.
struct Usage {
    /// Of the parent, and of the warden, in percent of a core.
    cpu: [Vec<f64>; 2],
    /// Bytes to the terminal in a second.
    bytes: Vec<f64>,
}

/// A terminal of its own with a plegscope on it.
struct Terminal {
    child: Child,
    ours: File,
    started: u64,
    /// When the first picture was there, ns of CLOCK_MONOTONIC; 0 before.
    first: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Terminal {
    fn start(ledger: &Ledger, scope: &Path) -> Result<Terminal> {
        let (mut ours, mut theirs) = (0, 0);
        let size: libc::winsize =
            libc::winsize { ws_row: SIZE.1, ws_col: SIZE.0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: valid places for two descriptors, no name, no modes, and a size, all of which live through the call.
        let made = unsafe {
            libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null_mut(), &size)
        };
        ensure!(made == 0, "no terminal: {}", std::io::Error::last_os_error());
        // SAFETY: both descriptors were just made and belong to nobody else.
        let (ours, theirs) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) };
        let mut command = Command::new(scope);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(Stdio::from(theirs));
        // SAFETY: both are system calls, which may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let done = libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0;
                if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let started = sys::monotonic();
        let child = command.spawn().with_context(|| format!("starting {}", scope.display()))?;
        ledger.record_process(child.id(), Duration::from_secs(5))?;
        // The command keeps the other end open, whose end is to be seen.
        drop(command);
        let (first, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut from = ours.try_clone().context("the terminal")?;
        let (seen, counted) = (Arc::clone(&first), Arc::clone(&bytes));
        std::thread::spawn(move || {
            let (mut piece, mut text) = ([0; 65_536], Vec::<u8>::new());
            while let Ok(read @ 1..) = from.read(&mut piece) {
                counted.fetch_add(read as u64, Ordering::Relaxed);
                if seen.load(Ordering::Relaxed) == 0 {
                    text.extend(&piece[..read]);
                    if text.windows(FIRST_WORD.len()).any(|word| word == FIRST_WORD) {
                        seen.store(sys::monotonic(), Ordering::Release);
                    }
                }
            }
        });
        Ok(Terminal { child, ours, started, first, bytes })
    }

    /// How long the first picture took, ns.
    async fn first_picture(&self) -> Result<u64> {
        let there = || self.first.load(Ordering::Acquire) > 0;
        ensure!(sys::until(Duration::from_secs(10), there).await, "no picture came within 10 s");
        Ok(self.first.load(Ordering::Acquire) - self.started)
    }

    async fn watch(&self, windows: u64, window: Duration) -> Result<Usage> {
        tokio::time::sleep(SETTLE).await;
        let pid = self.child.id();
        let warden = look::warden(pid).context("plegscope has no child")?;
        let mut usage = Usage { cpu: [Vec::new(), Vec::new()], bytes: Vec::new() };
        for _ in 0..windows {
            let now = || ([pid, warden].map(look::cpu_time), self.bytes.load(Ordering::Relaxed));
            let (begin, before) = (sys::monotonic(), now());
            tokio::time::sleep(window).await;
            let (took, after) = ((sys::monotonic() - begin) as f64, now());
            for (n, cpu) in usage.cpu.iter_mut().enumerate() {
                cpu.push((after.0[n] - before.0[n]) as f64 * 100.0 / took);
            }
            usage.bytes.push((after.1 - before.1) as f64 * 1e9 / took);
        }
        Ok(usage)
    }

    /// Ends it by its key.
    async fn quit(mut self) -> Result<()> {
        self.ours.write_all(b"q").context("pressing q")?;
        let end = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(status) = self.child.try_wait().context("asking for plegscope's state")? {
                ensure!(status.success(), "plegscope ended with {status}");
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < end, "plegscope does not end by `q`");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
