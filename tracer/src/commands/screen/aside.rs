//! Where messages about plegscope go while a screen has the terminal: onto the screen; before and after it, and where
//! standard error is no terminal, to standard error.

use crate::tui::Message;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are kept while there is no screen yet.
const MOST_KEPT: usize = 16 << 10;

/// Takes messages, line by line.
#[derive(Default)]
pub struct Aside(Mutex<State>);

#[derive(Default)]
struct State {
    /// Where the screen is; `None` before and after it.
    screen: Option<SyncSender<Message>>,
    over: bool,
    /// What was said before there was a screen.
    kept: Vec<u8>,
}

impl Aside {
    /// From now on it goes to this screen.
    pub fn open(&self, screen: SyncSender<Message>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = std::mem::take(&mut state.kept);
        tell(&screen, &kept);
        state.screen = Some(screen);
    }

    /// From now on it goes to standard error.
    pub fn close(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.screen = None;
        state.over = true;
        let kept = std::mem::take(&mut state.kept);
        // Nobody may read it.
        let _ = io::stderr().write_all(&kept);
    }
}

fn tell(screen: &SyncSender<Message>, bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        let line = line.strip_prefix("plegscope: ").unwrap_or(line);
        // What does not fit is beside the point.
        let _ = screen.try_send(Message::Log(line.to_owned()));
    }
}

/// What `Output` writes to, on its own thread.
pub struct Pen(pub Arc<Aside>);

impl Write for Pen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.screen {
            Some(screen) => tell(screen, bytes),
            None if !state.over => {
                let room = MOST_KEPT.saturating_sub(state.kept.len());
                state.kept.extend(bytes.iter().take(room));
            }
            None => {}
        }
        let to_the_terminal = state.over;
        drop(state);
        if to_the_terminal || !io::stderr().is_terminal() {
            io::stderr().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
