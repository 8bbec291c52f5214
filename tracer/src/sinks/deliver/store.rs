//! Incidents that were seen, as files in a folder: one for each, with what was known of it last. Bounded in number and
//! bytes, the oldest go first; each file is there as a whole or not at all, so that they can be read meanwhile, and what
//! an earlier run has kept is still there.

use super::{Again, Alert, Delivery};
use rustix::fs::{Mode, OFlags};
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Incidents kept, where nothing else is asked for.
pub const INCIDENTS: usize = 512;
/// Bytes of all of them.
pub const BYTES: u64 = 8 << 20;
/// Files of a folder that are looked at; what else lies there is not ours.
const LOOKED_AT: usize = 16_384;

/// The folder, and what is in it.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    incidents: usize,
    bytes: u64,
    /// The oldest first.
    kept: VecDeque<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    name: String,
    size: u64,
}

impl Store {
    /// Opens the folder, and makes it where it is not there. An error says what is wrong with it.
    pub fn open(folder: &Path, incidents: usize, bytes: u64) -> Result<Store, String> {
        let failed = |error: io::Error| format!("{}: {error}", folder.display());
        private_folder(folder)?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)?.take(LOOKED_AT) {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with(NEW) {
                // Left behind by a kill in the middle of writing.
                let _ = fs::remove_file(entry.path());
            } else if parts(&name).is_some() {
                let size = entry.metadata().map(|facts| facts.len()).unwrap_or(0);
                kept.push(Kept { name, size });
            }
        }
        kept.sort_by(|a, b| a.name.cmp(&b.name));
        let mut store = Store { folder: folder.to_owned(), incidents, bytes, kept: kept.into() };
        store.make_room(0);
        Ok(store)
    }

    /// Removes the oldest until so many more bytes, and one more file, fit.
    fn make_room(&mut self, more: u64) {
        let total = |kept: &VecDeque<Kept>| kept.iter().map(|one| one.size).sum::<u64>();
        let most = if more > 0 { self.incidents.saturating_sub(1) } else { self.incidents };
        while self.kept.len() > most || total(&self.kept) + more > self.bytes {
            let Some(oldest) = self.kept.pop_front() else { return };
            let _ = fs::remove_file(self.folder.join(&oldest.name));
        }
    }
}

/// Begin of the names of files that are not whole yet.
const NEW: &str = "new-";

/// A folder that only we can have written to.
fn private_folder(folder: &Path) -> Result<(), String> {
    let told = |what: &str| format!("{} {what}", folder.display());
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| told(&format!("cannot be made: {error}")))?;
    let facts = fs::symlink_metadata(folder).map_err(|error| told(&error.to_string()))?;
    let ours = facts.is_dir() && facts.uid() == rustix::process::geteuid().as_raw();
    if !ours || facts.mode() & 0o022 != 0 {
        return Err(told("can be written to by others; give a folder that only this user can write to"));
    }
    Ok(())
}

/// Name of the file of an incident: when it was opened, and its id, which sorts by time.
fn name_of(alert: &Alert) -> String {
    format!("{:013}-{}.json", alert.opened.max(0), file_name(&alert.id))
}

/// An id as part of a file name.
fn file_name(id: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-+".contains(c) { c } else { '_' };
    id.chars().take(160).map(safe).collect()
}

/// When the incident of a file was opened, in milliseconds since 1970, and its id.
fn parts(name: &str) -> Option<(i64, &str)> {
    let (opened, id) = name.strip_suffix(".json")?.split_once('-')?;
    Some((opened.parse().ok()?, id))
}

impl Delivery for Store {
    fn deliver(&mut self, alert: &Alert, _: Again<'_>) -> Result<(), String> {
        let id = file_name(&alert.id);
        let known = self.kept.iter().position(|kept| parts(&kept.name).is_some_and(|(_, of)| of == id));
        let name = match known.and_then(|at| self.kept.remove(at)) {
            Some(kept) => kept.name,
            None => name_of(alert),
        };
        let size = alert.json.len() as u64 + 1;
        self.make_room(size);
        let new = self.folder.join(format!("{NEW}{}", std::process::id()));
        let write = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::open(&new, flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all(&alert.json)?;
            file.write_all(b"\n")?;
            file.sync_data()?;
            fs::rename(&new, self.folder.join(&name))
        };
        let written = write();
        let at = self.kept.partition_point(|kept| kept.name < name);
        match written {
            Ok(()) => {
                self.kept.insert(at, Kept { name, size });
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(&new);
                // What was known of it before may still be there.
                if let Ok(facts) = fs::metadata(self.folder.join(&name)) {
                    self.kept.insert(at, Kept { name, size: facts.len() });
                }
                Err(format!("{}: {error}", self.folder.display()))
            }
        }
    }

    fn wants_held(&self) -> bool {
        true
    }
}

/// What is kept, as its lines of JSON, the oldest first; and how many files could not be read. Nobody is asked to stop
/// writing meanwhile.
pub fn read(folder: &Path) -> io::Result<(Vec<Vec<u8>>, usize)> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder)?.take(LOOKED_AT) {
        names.extend(entry?.file_name().into_string().ok().filter(|name| parts(name).is_some()));
    }
    names.sort();
    let mut lines = Vec::new();
    let mut unreadable = 0;
    for name in names {
        let mut line = Vec::new();
        let limit = super::MOST as u64 + 1;
        match File::open(folder.join(name)).and_then(|file| file.take(limit).read_to_end(&mut line)) {
            Ok(_) => {
                line.truncate(line.trim_ascii_end().len());
                lines.push(line);
            }
            // It has made room for another.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => unreadable += 1,
        }
    }
    Ok((lines, unreadable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Event;
    use crate::sinks::deliver::tests::alert;
    use std::os::unix::fs::PermissionsExt;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("plegscope-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn numbered(n: u64, event: Event) -> Alert {
        let one = alert(n, event, &format!("unmount-{n}-a-{n}"));
        Alert { opened: one.opened + n as i64, ..one }
    }

    fn ids(folder: &Folder) -> Vec<String> {
        let (lines, unreadable) = read(&folder.0).unwrap();
        assert_eq!(unreadable, 0);
        let id = |line: &Vec<u8>| {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            format!("{} {}", value["event"].as_str().unwrap(), value["id"].as_str().unwrap())
        };
        lines.iter().map(id).collect()
    }

    #[test]
    fn what_was_known_last_stays_also_over_a_restart() {
        let folder = Folder::new("restart");
        let open = || Store::open(&folder.0, INCIDENTS, BYTES).unwrap();
        let mut store = open();
        for one in [numbered(1, Event::Crossed), numbered(2, Event::Crossed), numbered(1, Event::Ended)] {
            store.deliver(&one, &|_| {}).unwrap();
        }
        drop(store);
        fs::write(folder.0.join("new-1"), "half").unwrap();
        fs::write(folder.0.join("foreign"), "not ours").unwrap();
        let mut store = open();
        // The clock was set meanwhile: it is the same incident all the same.
        let later = Alert { opened: 1_800_000_000_000, ..numbered(2, Event::Ended) };
        store.deliver(&later, &|_| {}).unwrap();
        assert_eq!(ids(&folder), ["ended unmount-1-a-1", "ended unmount-2-a-2"]);
        assert!(!folder.0.join("new-1").exists() && folder.0.join("foreign").exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = fs::read_dir(&folder.0)
            .unwrap()
            .flatten()
            .find(|e| parts(&e.file_name().to_string_lossy()).is_some());
        assert_eq!((mode(&folder.0), mode(&file.unwrap().path())), (0o700, 0o600));
    }

    #[test]
    fn the_oldest_make_room_by_number_and_by_bytes() {
        let folder = Folder::new("bounds");
        let mut store = Store::open(&folder.0, 3, BYTES).unwrap();
        (1..=10).for_each(|n| store.deliver(&numbered(n, Event::Crossed), &|_| {}).unwrap());
        assert_eq!(
            ids(&folder),
            ["crossed unmount-8-a-8", "crossed unmount-9-a-9", "crossed unmount-10-a-10"]
        );
        let size = store.kept[0].size;
        drop(store);
        let mut store = Store::open(&folder.0, 100, 2 * size + size / 2).unwrap();
        assert_eq!(ids(&folder).len(), 2, "it is smaller now");
        store.deliver(&numbered(11, Event::Crossed), &|_| {}).unwrap();
        assert_eq!(ids(&folder), ["crossed unmount-10-a-10", "crossed unmount-11-a-11"]);
        let bytes: u64 = fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 2 * size + size / 2, "{bytes}");
    }

    #[test]
    fn it_is_read_while_it_is_written_and_every_file_is_whole() {
        let folder = Folder::new("meanwhile");
        let mut store = Store::open(&folder.0, 4, BYTES).unwrap();
        let path = folder.0.clone();
        let reader = std::thread::spawn(move || {
            let mut seen = 0;
            while seen < 500 {
                for line in read(&path).unwrap().0 {
                    serde_json::from_slice::<serde_json::Value>(&line).unwrap();
                    seen += 1;
                }
            }
        });
        let mut n = 0;
        while !reader.is_finished() {
            n += 1;
            store
                .deliver(&numbered(n % 8, if n % 2 == 0 { Event::Crossed } else { Event::Ended }), &|_| {})
                .unwrap();
        }
        reader.join().unwrap();
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = Folder::new("open");
        fs::create_dir_all(&folder.0).unwrap();
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Store::open(&folder.0, 3, BYTES).unwrap_err();
        assert!(error.contains("can be written to by others"), "{error}");
        let file = folder.0.join("file");
        fs::write(&file, "").unwrap();
        assert!(Store::open(&file, 3, BYTES).is_err());
    }

    #[test]
    fn a_full_disk_costs_the_newest_and_no_other() {
        let folder = Folder::new("full");
        let mut store = Store::open(&folder.0, 3, BYTES).unwrap();
        store.deliver(&numbered(1, Event::Crossed), &|_| {}).unwrap();
        // Something that cannot be written over stands in the way, also for root.
        fs::create_dir(folder.0.join(format!("new-{}", std::process::id()))).unwrap();
        let error = store.deliver(&numbered(1, Event::Ended), &|_| {}).unwrap_err();
        assert!(error.contains("directory"), "{error}");
        assert_eq!(ids(&folder), ["crossed unmount-1-a-1"]);
        assert_eq!(store.kept.len(), 1);
    }
}
