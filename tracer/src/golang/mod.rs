//! Reads Go programs: which functions they contain, where to probe them, and where the runtime keeps goroutines.
//!
//! Pure: bytes in, answers out. It works on stripped binaries, because everything comes from the tables the Go runtime
//! itself needs. What is not known (a Go version, a form of code) is a [`Refusal`] in words, never a guess.
//! docs/go-symbols.md explains the formats and the rules.

pub mod arm64;
pub mod buildinfo;
mod calibrate;
pub mod calls;
pub mod catalog;
pub mod elf;
#[cfg(test)]
mod fake;
pub mod goroutines;
pub mod health;
pub mod layout;
pub mod offsets;
pub mod pclntab;
pub mod probe_site;
#[cfg(test)]
mod synthetic;
mod tables;
pub mod unwind;
pub mod version;
pub mod waiters;

use buildinfo::{BuildInfo, GoVersion};
use elf::Elf;
use offsets::{Abi, Offsets};
use pclntab::{Frame, Function, Pclntab};
use probe_site::{Code, RuntimeCalls};
use std::collections::HashMap;
use std::fmt;

/// Why something cannot be read or probed, in words for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal(String);

impl Refusal {
    /// A refusal for this reason.
    pub fn new(reason: impl Into<String>) -> Refusal {
        Refusal(reason.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A function name to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// This name and no other.
    Exact(&'static str),
    /// This name, with any prefix that ends in a slash: vendored copies keep the path of the program that vendors.
    Suffix(&'static str),
}

impl Name {
    /// The text that is looked for.
    pub fn text(&self) -> &'static str {
        match self {
            Name::Exact(text) | Name::Suffix(text) => text,
        }
    }

    /// Whether a function of this name is meant.
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            Name::Exact(text) => name == text.as_bytes(),
            Name::Suffix(text) => name
                .strip_suffix(text.as_bytes())
                .is_some_and(|prefix| prefix.is_empty() || prefix.ends_with(b"/")),
        }
    }
}

/// One name occurs a few times at most (ABI wrappers, vendored copies); bounds the work on hostile files.
pub const MAX_HITS: usize = 16;

/// A Go program. Borrows the file's bytes.
pub struct GoBinary<'a> {
    /// The file.
    pub elf: Elf<'a>,
    /// What it says about its own build.
    pub build: BuildInfo,
    /// The Go version it was built by, or why that is not usable.
    pub version: Result<GoVersion, Refusal>,
    /// Its functions.
    pub functions: Pclntab<'a>,
}

impl<'a> GoBinary<'a> {
    /// Reads the headers and finds the tables; about a millisecond, whatever the file's size.
    pub fn parse(bytes: &'a [u8]) -> Result<GoBinary<'a>, Refusal> {
        let elf = Elf::parse(bytes)?;
        let build = BuildInfo::read(&elf)?;
        GoBinary::of(elf, build)
    }

    /// The same for a copy that holds the program's tables only ([`GoBinary::tables`]).
    pub fn with(bytes: &'a [u8], build: BuildInfo) -> Result<GoBinary<'a>, Refusal> {
        GoBinary::of(Elf::parse(bytes)?, build)
    }

    fn of(elf: Elf<'a>, build: BuildInfo) -> Result<GoBinary<'a>, Refusal> {
        let version = GoVersion::parse(&build.go);
        let functions = Pclntab::find(&elf, version.as_ref().ok().copied())?;
        Ok(GoBinary { elf, build, version, functions })
    }

    /// Identifies the file's contents, for caches.
    pub fn build_id(&self) -> Option<String> {
        self.elf.build_id()
    }

    /// How its functions get their arguments.
    pub fn abi(&self) -> Result<Abi, Refusal> {
        Ok(Abi::of(self.version.clone()?))
    }

    /// Where its runtime keeps goroutines; refused for versions that are not in the table.
    pub fn offsets(&self) -> Result<Offsets, Refusal> {
        Offsets::of(self.version.clone()?)
    }

    /// All functions that match, for each of the names, in one pass over the table; at most [`MAX_HITS`] for a name.
    pub fn find(&self, names: &[Name]) -> Vec<Vec<Function>> {
        let mut found = vec![Vec::new(); names.len()];
        // Most functions are dismissed by their last two bytes; the rest by what follows their last slash.
        let mut endings = vec![0u64; 1 << 10];
        let mut tails: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (at, name) in names.iter().enumerate() {
            let text = name.text().as_bytes();
            if let Some(slot) = endings.get_mut(ending(text) >> 6) {
                *slot |= 1 << (ending(text) & 63);
            }
            tails.entry(tail(text)).or_default().push(at);
        }
        for (index, name) in self.functions.names() {
            let likely =
                endings.get(ending(name) >> 6).is_some_and(|slot| slot >> (ending(name) & 63) & 1 == 1);
            if !likely {
                continue;
            }
            for &at in tails.get(tail(name)).map_or(&[][..], Vec::as_slice) {
                if let (true, Some(hits)) =
                    (names[at].matches(name), found.get_mut(at).filter(|h| h.len() < MAX_HITS))
                {
                    hits.extend(self.functions.function(index));
                }
            }
        }
        found
    }

    /// Full name of a function.
    pub fn name(&self, function: Function) -> String {
        self.functions
            .name(function.index)
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .unwrap_or_default()
    }

    /// Frames at `pc` (without load bias), innermost first, inlined ones restored. Pass return addresses minus one.
    pub fn frames(&self, pc: u64) -> Vec<Frame> {
        self.functions.frames(&self.elf, pc, false)
    }

    /// The same with source files and lines.
    pub fn frames_with_lines(&self, pc: u64) -> Vec<Frame> {
        self.functions.frames(&self.elf, pc, true)
    }

    /// Into how many functions each of these (by full name) is inlined, at one place or more. A probe on a function does
    /// not see the calls that were inlined.
    pub fn inlined_into(&self, names: &[&str]) -> Vec<usize> {
        let mut counts = vec![0; names.len()];
        for function in (0..self.functions.len() as u32).filter_map(|index| self.functions.function(index)) {
            let inlined = self.functions.inlined(&self.elf, function);
            for (name, count) in names.iter().zip(&mut counts) {
                *count += usize::from(inlined.contains(&name.as_bytes()));
            }
        }
        counts
    }

    /// Decodes a function's code.
    pub fn code(&self, function: Function) -> Result<Code, Refusal> {
        let at = format!("function at {:#x}: not in the file", function.entry);
        let bytes = self.elf.bytes_at(function.entry, function.end - function.entry);
        let offset = self.elf.file_offset(function.entry);
        match (bytes, offset) {
            (Some(bytes), Some(offset)) => Code::decode(bytes, function.entry, offset),
            _ => Err(Refusal::new(at)),
        }
    }

    /// The runtime functions that probe sites depend on.
    pub fn runtime_calls(&self) -> RuntimeCalls {
        let found = self.find(&RUNTIME_CALLS);
        let entries = |part: &[Vec<Function>]| part.iter().flatten().map(|f| f.entry).collect();
        let (grow_stack, short) = found.split_at(3);
        RuntimeCalls { grow_stack: entries(grow_stack), short: entries(short) }
    }
}

/// Names for [`RuntimeCalls`]: three that grow the stack, then the short ones.
const RUNTIME_CALLS: [Name; 4] = [
    Name::Exact("runtime.morestack"),
    Name::Exact("runtime.morestack_noctxt"),
    Name::Exact("runtime.morestackc"),
    Name::Exact("runtime.releaseSudog"),
];

/// Hash of a name's last two bytes, below 2^16.
fn ending(name: &[u8]) -> usize {
    match name {
        [.., a, b] => usize::from(*a) << 8 | usize::from(*b),
        [a] => usize::from(*a),
        [] => 0,
    }
}

/// What follows the last slash.
fn tail(name: &[u8]) -> &[u8] {
    name.rsplit(|b| *b == b'/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_match_on_path_boundaries_only() {
        let name = Name::Suffix("cri/store/container.(*statusStorage).Get");
        assert!(name.matches(b"cri/store/container.(*statusStorage).Get"));
        assert!(
            name.matches(b"github.com/containerd/containerd/pkg/cri/store/container.(*statusStorage).Get")
        );
        assert!(
            !name.matches(b"github.com/containerd/containerd/pkg/xcri/store/container.(*statusStorage).Get")
        );
        assert!(!name.matches(b"store/container.(*statusStorage).Get"));
        assert!(!Name::Exact("sync.(*RWMutex).Lock").matches(b"internal/sync.(*RWMutex).Lock"));
    }
}
