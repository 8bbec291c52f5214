//! Files that the screen makes: captures and exports. Whatever may hang on a disk is done on a thread of its own, which
//! tells when it is done.

use super::hands::{Wish, send};
use crate::capture::recorder::{Ended, Options, Status};
use crate::capture::{Header, Place, Recorder, place};
use crate::correlator::words;
use crate::source::Live;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;

/// How long the end of a capture waits until all is written.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Stack of a thread that makes a file.
const STACK: usize = 256 << 10;

/// Makes a file for a capture.
pub fn place(header: &Header, wish: Sender<Wish>, wake: Arc<Notify>) {
    let name = file_name(&header.host, "pleg");
    beside(move || {
        let made = place::create(None, &name, false).map(|(place, _)| place);
        send(&wish, &wake, Wish::Place(made.map_err(|error| error.to_string())));
    });
}

/// Begins a capture; gives the name of its file.
pub fn start(place: Place, live: &mut Live) -> Result<String, String> {
    let options = Options::new(live.header().clone());
    let recorder = Recorder::start(place, options, live.known()).map_err(|error| error.to_string())?;
    let path = recorder.status().path.display().to_string();
    live.record(recorder);
    Ok(path)
}

/// Ends a capture.
pub fn stop(recorder: Recorder, reason: String, wish: Sender<Wish>, wake: Arc<Notify>) {
    beside(move || {
        let status = recorder.stop(&reason, PATIENCE);
        send(&wish, &wake, Wish::Stopped(status));
    });
}

/// The file of a capture, and how it has ended, in words.
pub fn words(status: &Status) -> (String, String) {
    let how = match &status.ended {
        Some(Ended::Whole(why)) => why.clone(),
        Some(Ended::Failed(why) | Ended::OnTheDisk(why)) => {
            format!("{why}; what was written before is whole")
        }
        None => "its disk does not keep up; the last lines may not be in it".to_owned(),
    };
    let lost = if status.lost > 0 { format!(", {} lines lost", status.lost) } else { String::new() };
    let size = format!("{}, {} events{lost}", words::bytes(status.bytes), status.events);
    (status.path.display().to_string(), format!("{size} ({how})"))
}

/// Writes all panes to a file: live to a tmpfs, since a disk may be stuck, else into the working folder.
pub fn export(
    text: String,
    host: &str,
    is_live: bool,
    done: impl FnOnce(Result<String, String>) + Send + 'static,
) {
    let name = file_name(host, "txt");
    beside(move || {
        let made = match is_live {
            true => place::create(None, &name, false),
            false => place::create(Some(Path::new(&name)), &name, true),
        };
        let written = made.map_err(|error| error.to_string()).and_then(|(place, _)| {
            let (mut file, path) = place.into_parts();
            let path = path.display().to_string();
            file.write_all(text.as_bytes()).map(|()| path.clone()).map_err(|error| format!("{path}: {error}"))
        });
        done(written);
    });
}

/// On a thread of its own.
fn beside(work: impl FnOnce() + Send + 'static) {
    // Where no thread can be had nothing is done, and nothing is said to be done.
    let _ = thread::Builder::new().name("file".into()).stack_size(STACK).spawn(work);
}

/// `plegscope-node-7-20240229-120041.txt`, by the clock of whoever looks.
fn file_name(host: &str, ending: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let host: String = host.chars().map(plain).take(64).collect();
    let time = jiff::Timestamp::now().to_zoned(crate::commands::zone().clone());
    format!("{host}-{}.{ending}", time.strftime("%Y%m%d-%H%M%S"))
}
