//! A terminal of our own: a tmux server with one window, in which a shell runs.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Everything is waited for at most this long: other work may have the machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the shell says when it is ready.
const PROMPT: &str = "ready-for-more";

/// Waits until something is so; else tells what was so.
pub fn wait_for(mut is_so: impl FnMut() -> bool, what: impl Fn() -> String) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "after {PATIENCE:?}: {}", what());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A terminal of 80 x 24.
pub struct Tmux {
    socket: String,
}

impl Tmux {
    /// Starts one; `None` when there is no tmux.
    pub fn start(test: &str) -> Option<Tmux> {
        Command::new("tmux").arg("-V").output().ok()?;
        let tmux = Tmux { socket: format!("plegscope-{test}-{}", std::process::id()) };
        let shell = format!("env PS1='{PROMPT} ' sh");
        tmux.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &shell]);
        tmux.tmux(&["set", "-g", "set-clipboard", "on"]);
        tmux.tmux(&["set", "-g", "escape-time", "0"]);
        tmux.tmux(&["set", "-g", "remain-on-exit", "on"]);
        tmux.shows(PROMPT);
        Some(tmux)
    }

    fn tmux(&self, args: &[&str]) -> Output {
        let output = Command::new("tmux").args(["-L", &self.socket]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        output
    }

    fn said(&self, args: &[&str]) -> String {
        String::from_utf8_lossy(&self.tmux(args).stdout).into_owned()
    }

    /// Types a command.
    pub fn run(&self, command: &str) {
        self.tmux(&["send-keys", "-l", &format!("clear; {command}")]);
        self.tmux(&["send-keys", "Enter"]);
    }

    /// Presses keys.
    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// What stands on the screen.
    pub fn screen(&self) -> String {
        self.said(&["capture-pane", "-p"])
    }

    /// The same with its colours.
    pub fn escaped(&self) -> String {
        self.said(&["capture-pane", "-e", "-p"])
    }

    /// Waits for a text.
    pub fn shows(&self, text: &str) {
        wait_for(|| self.screen().contains(text), || format!("no {text:?} in\n{}", self.screen()));
    }

    /// Waits until a text is gone.
    pub fn gone(&self, text: &str) {
        wait_for(|| !self.screen().contains(text), || format!("{text:?} still in\n{}", self.screen()));
    }

    /// Makes the terminal as large as this.
    pub fn resize(&self, columns: u16, lines: u16) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &lines.to_string()]);
    }

    /// The latest that a program has put into the clipboard.
    pub fn clipboard(&self) -> String {
        let output = Command::new("tmux").args(["-L", &self.socket, "show-buffer"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn flag(&self, name: &str) -> bool {
        self.said(&["display-message", "-p", &format!("#{{{name}}}")]).trim() == "1"
    }

    /// Whether a program has the whole screen.
    pub fn is_taken(&self) -> bool {
        self.flag("alternate_on") && !self.flag("cursor_flag")
    }

    /// Waits until the terminal is as it was: the shell's screen, its cursor, its modes.
    pub fn is_back(&self) {
        let is_so = || !self.flag("alternate_on") && self.flag("cursor_flag");
        wait_for(is_so, || format!("the screen is still taken:\n{}", self.screen()));
        self.run("stty -a | tr ' ' '\\n' | tr -d ';' | grep -x -e -echo -e -icanon -e -isig -e -opost; echo modes-are-told");
        wait_for(
            || self.screen().lines().any(|line| line == "modes-are-told"),
            || format!("no shell in\n{}", self.screen()),
        );
        let screen = self.screen();
        let off: Vec<&str> = screen.lines().filter(|line| line.starts_with('-')).collect();
        assert!(off.is_empty(), "modes that a shell needs are off: {off:?}");
    }

    /// The process that the shell has started.
    pub fn child(&self) -> String {
        let shell = self.said(&["display-message", "-p", "#{pane_pid}"]).trim().to_owned();
        let child = || {
            let output = Command::new("ps").args(["-o", "pid=", "--ppid", &shell]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().lines().next().unwrap_or("").trim().to_owned()
        };
        wait_for(|| !child().is_empty(), || format!("the shell {shell} has no child"));
        child()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.socket, "kill-server"]).output();
    }
}
