//! What the user wants, on its way from the thread that draws to the one that follows.

use super::files;
use crate::capture::{Header, Place, recorder::Status};
use crate::tui::message::Replay;
use crate::tui::model::Mode;
use crate::tui::{Effect, terminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use tokio::sync::Notify;

/// What is wished for, or has come of it.
pub enum Wish {
    /// End.
    Quit,
    /// Begin or end a capture.
    Capture(bool),
    /// A file for it was made, or not and why.
    Place(Result<Place, String>),
    /// It was ended.
    Stopped(Status),
    /// All panes were written to this file, or not and why.
    Exported(Result<String, String>),
    /// Move in the capture that is played.
    Replay(Replay),
}

/// Passes wishes on.
pub struct Hands {
    wish: Sender<Wish>,
    wake: Arc<Notify>,
    /// A live node may have a stuck disk: what is written then goes to a tmpfs.
    is_live: bool,
    host: String,
    exporting: Arc<AtomicBool>,
}

impl Hands {
    /// To the one that follows.
    pub fn new(wish: Sender<Wish>, wake: Arc<Notify>, mode: &Mode, header: &Header) -> Hands {
        let is_live = *mode == Mode::Live;
        Hands { wish, wake, is_live, host: header.host.clone(), exporting: Arc::default() }
    }

    /// Does what can be done here, and wishes for the rest; gives what is to be written on the terminal.
    pub fn wish(&self, effect: Effect) -> Vec<u8> {
        let wish = match effect {
            Effect::Copy(text) => return terminal::copy(&text),
            Effect::Redraw => return Vec::new(),
            Effect::Export(text) => {
                // One at a time: a disk that hangs must not collect threads.
                if !self.exporting.swap(true, Ordering::AcqRel) {
                    let (done, wish, wake) =
                        (Arc::clone(&self.exporting), self.wish.clone(), Arc::clone(&self.wake));
                    files::export(text, &self.host, self.is_live, move |exported| {
                        done.store(false, Ordering::Release);
                        send(&wish, &wake, Wish::Exported(exported));
                    });
                }
                return Vec::new();
            }
            Effect::Quit => Wish::Quit,
            Effect::Capture(begin) => Wish::Capture(begin),
            Effect::Replay(replay) => Wish::Replay(replay),
        };
        send(&self.wish, &self.wake, wish);
        Vec::new()
    }
}

/// Wishes, and wakes the one that grants.
pub fn send(wish: &Sender<Wish>, wake: &Notify, what: Wish) {
    // Nobody grants wishes any more at the end.
    let _ = wish.send(what);
    wake.notify_one();
}
