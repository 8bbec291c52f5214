//! The programs that are looked at: what is known of each, and its tables, in a copy on a tmpfs where there is one.

use super::{copies::Copies, one};
use crate::{
    event::Role,
    golang::{
        GoBinary, Refusal, buildinfo::BuildInfo, calls::Calls, catalog::Lookup, goroutines::Layout, version,
    },
    warden::{binaries, index::Identity},
};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::{fs::File, sync::OnceLock};

/// What a look needs to know of a program besides its tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What it is.
    pub role: Role,
    /// What it says about its own build.
    pub build: BuildInfo,
    /// The program's own version, where it can be told.
    pub version: Option<String>,
    /// Address of its first instruction as the file has it.
    pub entry: u64,
    /// Where its runtime keeps goroutines, or why that is not known.
    pub layout: Result<Layout, String>,
    /// How operations are told from its stacks, or why they cannot be.
    pub calls: Result<Calls, String>,
}

/// A program that can be looked at.
#[derive(Debug)]
pub struct Program {
    /// What is known of it.
    pub facts: Facts,
    bytes: Mmap,
    length: usize,
    /// What was found in a process that runs it, when its version is in no table.
    calibrated: OnceLock<Layout>,
}

impl Program {
    /// Its tables.
    pub fn binary(&self) -> Result<GoBinary<'_>, Refusal> {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        GoBinary::with(bytes, self.facts.build.clone())
    }

    /// Where its runtime keeps goroutines. What is in no table is looked for in the process, and holds for all processes
    /// that run the program, since it is a matter of its code; an error says why it is not known.
    pub fn layout(&self, binary: &GoBinary<'_>, pid: u32) -> Result<&Layout, String> {
        let Err(why) = &self.facts.layout else { return self.facts.layout.as_ref().map_err(Clone::clone) };
        if let Some(found) = self.calibrated.get() {
            return Ok(found);
        }
        let found = one::calibrate(pid, binary, self.facts.entry);
        let found = found.map_err(|not_found| format!("{why}; {not_found}"))?;
        Ok(self.calibrated.get_or_init(|| found))
    }
}

/// A copy that is still to be made.
pub struct Copy {
    file: File,
    identity: Identity,
    facts: Facts,
}

impl Copy {
    /// Makes it, if all that is copied is in memory. May wait for the disk all the same: for a worker.
    pub fn make(self, copies: &Copies) {
        // SAFETY: as in `find`.
        let Ok(bytes) = (unsafe { Mmap::map(&self.file) }) else { return };
        let Ok(binary) = GoBinary::with(&bytes, self.facts.build.clone()) else { return };
        // The next look finds it, or reads the file again.
        let _ = copies.keep(&self.identity, &self.file, &bytes, &binary.tables(), &self.facts);
    }
}

/// Finds the tables of an opened program file. `None` when it is no Go program that takes part; with `other`, any Go program
/// does. May wait for the disk where there is no copy yet: for a worker; then a copy can be made.
pub fn find(
    file: File,
    copies: Option<&Copies>,
    other: bool,
) -> (Result<Option<Program>, String>, Option<Copy>) {
    let identity = Identity::of(&file);
    let place = copies.zip(identity.as_ref());
    if let Some((facts, bytes, length)) = place.and_then(|(copies, i)| copies.find(i).ok().flatten()) {
        let wanted = other || facts.role != Role::Other;
        let program = Program { facts, bytes, length, calibrated: OnceLock::new() };
        return (Ok(wanted.then_some(program)), None);
    }
    match read(&file, other) {
        Ok(Some(program)) => {
            let facts = program.facts.clone();
            (Ok(Some(program)), identity.map(|identity| Copy { file, identity, facts }))
        }
        none => (none, None),
    }
}

fn read(file: &File, other: bool) -> Result<Option<Program>, String> {
    let length = file.metadata().map_err(|e| format!("its file cannot be asked for its length: {e}"))?.len();
    if length < binaries::SMALLEST && !other {
        return Ok(None);
    }
    // SAFETY: the file is being executed, so the kernel refuses to write to it or truncate it (ETXTBSY).
    let bytes = unsafe { Mmap::map(file) }.map_err(|e| format!("its file cannot be mapped: {e}"))?;
    let facts = match GoBinary::parse(&bytes) {
        Ok(binary) => facts(&binary, other),
        Err(why) if other => return Err(why.to_string()),
        Err(_) => None,
    };
    let length = bytes.len();
    Ok(facts.map(|facts| Program { facts, bytes, length, calibrated: OnceLock::new() }))
}

fn facts(binary: &GoBinary<'_>, other: bool) -> Option<Facts> {
    let lookup = Lookup::of(binary);
    let role = lookup.roles().first().copied().or(other.then_some(Role::Other))?;
    let calls = binary.abi().map(|abi| Calls::of(&lookup, role, abi));
    Some(Facts {
        role,
        build: binary.build.clone(),
        version: version::of(binary, role),
        entry: binary.elf.entry(),
        layout: Layout::of(binary).map_err(|why| why.to_string()),
        calls: calls.map_err(|why| why.to_string()),
    })
}
