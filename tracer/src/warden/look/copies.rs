//! Copies of the tables of program files, on a tmpfs: what a look needs of a program when its own pages may be gone from
//! memory and their disk does not answer.
//!
//! A copy is a file with the program's tables at the program's own offsets and holes everywhere else, so that it is mapped
//! and read in place like the program itself: nothing is unpacked, no memory is taken a second time, and runs that follow
//! each other share it. (Packed, it would take half the room here, and all of it again in every run.) Behind the program's
//! end follow the facts about it, and a checksum for each part.

use super::programs::Facts;
use crate::{
    node::residency::{Residency, residency},
    warden::{
        index::Identity,
        kept::{Folder, checksum, writer},
    },
};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::{fs::File, ops::Range, os::unix::fs::FileExt};

/// The folder's name.
const FOLDER: &str = "plegscope-tables";
/// Copies kept at most; the oldest goes.
const MOST: usize = 16;
/// Bytes of all copies together. Those of a containerd have 10 to 16 MB, of a kubelet 32 MB, of a shim 3 to 6 MB.
const ROOM: u64 = 64 << 20;
/// Bytes of the facts behind a copy.
const LARGEST_FACTS: u64 = 1 << 20;
/// Nothing is kept where less than this would be left for others.
const LEFT_FREE: u64 = 64 << 20;

/// What lies behind a copy.
#[derive(Serialize, Deserialize)]
struct Behind {
    /// Version and build of the plegscope that wrote it.
    writer: String,
    /// Length of the program file.
    length: u64,
    facts: Facts,
    /// The parts that are there, each with its checksum.
    parts: Vec<(u64, u64, u64)>,
}

/// The folder.
#[derive(Debug)]
pub struct Copies {
    folder: Folder,
    writer: String,
}

impl Copies {
    /// Opens it, and makes it where it is not there. An error says why there is none.
    pub fn open() -> Result<Copies, String> {
        Ok(Copies { folder: Folder::open(FOLDER)?, writer: writer()? })
    }

    /// The copy of a file's tables, as long as the file, and the facts about it; an error says why one that is there is not
    /// believed.
    pub fn find(&self, identity: &Identity) -> Result<Option<(Facts, Mmap, usize)>, String> {
        let name = identity.to_string();
        if self.folder.named(&name).is_empty() {
            return Ok(None);
        }
        self.read(&name).map_err(|why| format!("the copy {name} is ignored: {why}"))
    }

    fn read(&self, name: &str) -> Result<Option<(Facts, Mmap, usize)>, String> {
        let file = self.folder.file(name)?;
        let damaged = || "it is damaged".to_owned();
        let behind = read_behind(&file).ok_or_else(damaged)?;
        if behind.writer != self.writer {
            return Ok(None);
        }
        // SAFETY: only root can change it, and plegscope never does: copies are replaced as a whole.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| e.to_string())?;
        let length = usize::try_from(behind.length).map_err(|_| damaged())?;
        for (from, to, sum) in &behind.parts {
            let part = (usize::try_from(*from).ok()).zip(usize::try_from(*to).ok());
            let part = part.and_then(|(from, to)| bytes.get(..length)?.get(from..to)).ok_or_else(damaged)?;
            if sum_of(part) != *sum {
                return Err(damaged());
            }
        }
        Ok(Some((behind.facts, bytes, length)))
    }

    /// Keeps the tables of a file, if all of them are in memory at this moment. `program` is the whole file.
    pub fn keep(
        &self,
        identity: &Identity,
        file: &File,
        program: &[u8],
        parts: &[Range<u64>],
        facts: &Facts,
    ) -> Result<(), String> {
        let size: u64 = parts.iter().map(|part| part.end.saturating_sub(part.start)).sum();
        if size > ROOM {
            return Err(format!("{size} bytes of tables are more than are kept"));
        }
        if self.folder.free() < size.saturating_add(LEFT_FREE) {
            return Err("the tmpfs has too little room".into());
        }
        if let Some(why) = parts.iter().find_map(|part| missing(file, part)) {
            return Err(why);
        }
        let part = |range: &Range<u64>| {
            program.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
        };
        let sum = |range: &Range<u64>| Some((range.start, range.end, sum_of(part(range)?)));
        let parts_with_sums = parts.iter().map(sum).collect::<Option<_>>();
        let parts_with_sums = parts_with_sums.ok_or("the tables do not lie in the file")?;
        let length = program.len() as u64;
        let behind =
            Behind { writer: self.writer.clone(), length, facts: facts.clone(), parts: parts_with_sums };
        let behind = pack(&behind).ok_or("the facts about it are too large")?;
        self.folder.make_room(MOST - 1, ROOM - size);
        self.folder.write(&identity.to_string(), |copy| {
            for range in parts {
                copy.write_all_at(part(range).unwrap_or_default(), range.start)?;
            }
            copy.write_all_at(&behind, length)
        })
    }
}

/// Why a part of a file is not copied: some of it is not in memory.
fn missing(file: &File, part: &Range<u64>) -> Option<String> {
    const AT_ONCE: usize = 1 << 19;
    part.clone().step_by(AT_ONCE).find_map(|from| {
        match residency(file, from, (part.end - from).min(AT_ONCE as u64)) {
            Residency::Resident => None,
            Residency::NotResident => Some("some of its tables are not in memory".into()),
            Residency::Unknown(why) => Some(why),
        }
    })
}

/// The facts, their checksum before them and the length of both behind.
fn pack(behind: &Behind) -> Option<Vec<u8>> {
    let body = postcard::to_stdvec(behind).ok()?;
    let length = 8 + body.len() as u64;
    (length <= LARGEST_FACTS).then(|| [&checksum(&body)[..], &body, &length.to_le_bytes()].concat())
}

fn read_behind(file: &File) -> Option<Behind> {
    let end = file.metadata().ok()?.len();
    let mut word = [0; 8];
    file.read_exact_at(&mut word, end.checked_sub(8)?).ok()?;
    let size = u64::from_le_bytes(word);
    let length = end.checked_sub(8)?.checked_sub(size).filter(|_| size <= LARGEST_FACTS)?;
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut bytes, length).ok()?;
    let (sum, body) = bytes.split_first_chunk::<8>()?;
    if checksum(body) != *sum {
        return None;
    }
    match postcard::take_from_bytes::<Behind>(body).ok()? {
        (behind, []) if behind.length == length => Some(behind),
        _ => None,
    }
}

/// FNV-1a by words: against damage, and fast enough for 30 MB.
fn sum_of(part: &[u8]) -> u64 {
    let (words, rest) = part.as_chunks::<8>();
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| step(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(hash, |hash, byte| step(hash, u64::from(*byte)))
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Role, golang::buildinfo::BuildInfo};
    use std::{
        fs,
        os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
        path::PathBuf,
    };

    const PAGE: usize = 4096;
    /// A program of some pages, of which two parts are kept.
    const PARTS: [Range<u64>; 2] = [0..100, 3 * 4096..5 * 4096 + 7];

    /// A folder on a tmpfs and a program file in it, removed when dropped. `None` where a test cannot have one.
    struct Sample(PathBuf);

    impl Sample {
        fn new(name: &str) -> Option<Sample> {
            if !rustix::process::geteuid().is_root() {
                eprintln!("not tried: only root has copies");
                return None;
            }
            let folder = PathBuf::from(format!("/dev/shm/plegscope-copies-{name}-{}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("program"), Sample::program()).unwrap();
            Some(Sample(folder))
        }
        fn program() -> Vec<u8> {
            (0..9 * PAGE).map(|at| (at / 7) as u8 | 1).collect()
        }
        fn file(&self) -> File {
            File::options().read(true).custom_flags(libc::O_NOATIME).open(self.0.join("program")).unwrap()
        }
        fn copies(&self, writer: &str) -> Copies {
            Copies { folder: Folder::open_in(&self.0, "copies").unwrap(), writer: writer.into() }
        }
        fn keep(&self, identity: &Identity) -> Result<(), String> {
            self.copies("1 a").keep(identity, &self.file(), &Sample::program(), &PARTS, &facts())
        }
        fn only_copy(&self) -> PathBuf {
            let mut files = fs::read_dir(self.0.join("copies")).unwrap();
            let file = files.next().unwrap().unwrap().path();
            assert!(files.next().is_none());
            file
        }
    }

    impl Drop for Sample {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn facts() -> Facts {
        let build = BuildInfo { go: "go1.19.8".into(), path: None, version: None };
        let none = || "not known".to_owned();
        Facts { role: Role::Shim, build, version: None, entry: 7, layout: Err(none()), calls: Err(none()) }
    }

    #[test]
    fn a_copy_has_the_tables_and_holes_and_is_found_by_the_same_build_only() {
        let Some(sample) = Sample::new("keep") else { return };
        let identity = Identity::of(&sample.file()).unwrap();
        assert!(sample.copies("1 a").find(&identity).unwrap().is_none());
        sample.keep(&identity).unwrap();
        let (found, bytes, length) = sample.copies("1 a").find(&identity).unwrap().unwrap();
        assert_eq!((found, length), (facts(), 9 * PAGE));
        let program = Sample::program();
        for part in PARTS {
            let part = part.start as usize..part.end as usize;
            assert_eq!(bytes[part.clone()], program[part]);
        }
        assert!(bytes[PAGE..3 * PAGE].iter().all(|byte| *byte == 0));
        let taken = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(sample.only_copy()).unwrap()) * 512;
        assert!(taken < 9 * PAGE as u64, "{taken} bytes taken");
        assert!(sample.copies("1 b").find(&identity).unwrap().is_none());
        fs::write(sample.0.join("other"), b"x").unwrap();
        let other = Identity::of(&File::open(sample.0.join("other")).unwrap()).unwrap();
        assert!(sample.copies("1 a").find(&other).unwrap().is_none());
    }

    #[test]
    fn neither_damage_nor_what_others_could_have_written_is_believed() {
        let Some(sample) = Sample::new("trust") else { return };
        let identity = Identity::of(&sample.file()).unwrap();
        sample.keep(&identity).unwrap();
        let (copy, copies) = (sample.only_copy(), sample.copies("1 a"));
        let whole = fs::read(&copy).unwrap();
        let write = |bytes: &[u8]| fs::write(&copy, bytes).unwrap();
        let refused = || copies.find(&identity).is_err_and(|why| why.contains("ignored"));
        let holes = 100..3 * PAGE;
        for at in (0..whole.len()).filter(|at| !holes.contains(at)).step_by(97).chain(9 * PAGE..whole.len()) {
            // What lies behind the last part is a hole too.
            if (5 * PAGE + 7..9 * PAGE).contains(&at) {
                continue;
            }
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            write(&changed);
            assert!(refused(), "byte {at}");
        }
        for cut in [0, 7, 100, 9 * PAGE, whole.len() - 9, whole.len() - 1] {
            write(&whole[..cut]);
            assert!(refused(), "cut at {cut}");
        }
        write(&whole);
        assert!(copies.find(&identity).unwrap().is_some());
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(refused());
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&copy, Some(65534), None).unwrap();
        assert!(refused());
    }

    #[test]
    fn the_oldest_goes_and_too_large_ones_are_refused() {
        let Some(sample) = Sample::new("bound") else { return };
        let identities: Vec<Identity> = (0..MOST + 2)
            .map(|n| {
                let path = sample.0.join(format!("program-{n}"));
                fs::write(&path, b"x").unwrap();
                Identity::of(&File::open(path).unwrap()).unwrap()
            })
            .collect();
        sample.keep(&identities[0]).unwrap();
        let first = File::options().write(true).open(sample.only_copy()).unwrap();
        first.set_modified(std::time::UNIX_EPOCH).unwrap();
        identities[1..].iter().for_each(|identity| sample.keep(identity).unwrap());
        let copies = sample.copies("1 a");
        assert_eq!(copies.folder.named("").len(), MOST);
        assert!(copies.find(&identities[0]).unwrap().is_none());
        assert!(copies.find(&identities[MOST + 1]).unwrap().is_some());
        let huge = vec![0..ROOM + 1; 1];
        let why = copies.keep(&identities[0], &sample.file(), &[], &huge, &facts()).unwrap_err();
        assert!(why.contains("more than are kept"), "{why}");
    }

    #[test]
    fn a_file_that_is_not_in_memory_is_not_copied() {
        // A real file system, where tests are built.
        let Some(sample) = Sample::new("cold") else { return };
        let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let path = folder.join(format!("copies-{}", std::process::id()));
        fs::write(&path, Sample::program()).unwrap();
        let file = File::options().read(true).custom_flags(libc::O_NOATIME).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if residency(&file, 0, 1) == Residency::Resident {
            return; // A file system that keeps its pages.
        }
        let identity = Identity::of(&file).unwrap();
        let kept = sample.copies("1 a").keep(&identity, &file, &Sample::program(), &PARTS, &facts());
        assert_eq!(kept, Err("some of its tables are not in memory".into()));
        assert_eq!(residency(&file, 0, 1), Residency::NotResident);
    }
}
