//! Files that a verb needs at its start, read in a process of its own: the disk they are on may be the stuck one.

use crate::node::aside::{Aside, aside};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

/// What came of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// There is none.
    Missing,
    /// Why it cannot be used, in words.
    Unusable(String),
    /// It did not come in time.
    Hangs,
}

/// Reads a file of at most `most` bytes in at most `limit`. With `trusted`, only what root or this user alone can have
/// written: it says what is run as root.
///
/// Must be called while this process has one thread.
pub fn read(path: &Path, most: usize, limit: Duration, trusted: bool) -> io::Result<Found> {
    // The child is in another folder.
    let path = std::path::absolute(path)?;
    ask(limit, most + 4096, || found(&path, most, trusted))
}

/// Asks a process of its own for something that may hang; `None` when it does.
fn ask(limit: Duration, most: usize, work: impl FnOnce() -> Found) -> io::Result<Found> {
    match aside(limit, most, || postcard::to_stdvec(&work()).unwrap_or_default())? {
        Aside::Hangs => Ok(Found::Hangs),
        Aside::Answer(bytes) => Ok(postcard::from_bytes(&bytes)
            .unwrap_or_else(|_| Found::Unusable("the process that should read it has died".to_owned()))),
    }
}

fn found(path: &Path, most: usize, trusted: bool) -> Found {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Missing,
        Err(error) => return Found::Unusable(error.to_string()),
    };
    let facts = match file.metadata() {
        Ok(facts) if facts.is_file() => facts,
        Ok(_) => return Found::Unusable("it is no file".to_owned()),
        Err(error) => return Found::Unusable(error.to_string()),
    };
    let own = [0, rustix::process::geteuid().as_raw()].contains(&facts.uid());
    if trusted && (!own || facts.mode() & 0o022 != 0) {
        let why =
            "others can write to it; it must belong to root and be writable for its owner alone (chmod go-w)";
        return Found::Unusable(why.to_owned());
    }
    let mut bytes = Vec::new();
    match file.take(most as u64 + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() > most => Found::Unusable(format!("it has more than {most} bytes")),
        Ok(_) => Found::Bytes(bytes),
        Err(error) => Found::Unusable(error.to_string()),
    }
}

/// The lines of a store, and how many of its files could not be read.
type Stored = (Vec<Vec<u8>>, usize);

/// What is in a store, or why that cannot be told, in at most `limit`.
///
/// Must be called while this process has one thread.
pub fn store(folder: &Path, limit: Duration) -> io::Result<Result<Stored, String>> {
    const MOST: usize = 256 << 20;
    let folder = std::path::absolute(folder)?;
    let work = || match crate::sinks::deliver::store::read(&folder) {
        Ok((lines, unreadable)) => {
            let mut bytes = format!("{unreadable}\n").into_bytes();
            for line in lines {
                bytes.extend_from_slice(&line);
                bytes.push(b'\n');
            }
            Found::Bytes(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Missing,
        Err(error) => Found::Unusable(error.to_string()),
    };
    Ok(match ask(limit, MOST, work)? {
        Found::Bytes(bytes) => {
            let mut lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec);
            let unreadable = lines.next().and_then(|n| String::from_utf8(n).ok()?.parse().ok()).unwrap_or(0);
            Ok((lines.filter(|line| !line.is_empty()).collect(), unreadable))
        }
        Found::Missing => {
            Err("there is no such folder; plegscope watch has not run since the last boot".to_owned())
        }
        Found::Unusable(why) => Err(why),
        Found::Hangs => Err("it does not answer: its disk may be stuck".to_owned()),
    })
}
