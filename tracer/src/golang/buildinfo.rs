//! What the Go linker wrote about the build: Go version, module path and version, from `.go.buildinfo`.

use super::Refusal;
use super::elf::Elf;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the binary says about its own build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// Go version as written, for instance `go1.19.8` or `devel go1.28-3f2b8d7`.
    pub go: String,
    /// Main package, for instance `github.com/containerd/containerd/v2/cmd/containerd`; since Go 1.18.
    pub path: Option<String>,
    /// Version of the main module, for instance `v2.1.9` or `(devel)`; since Go 1.18 and seldom set by distributions.
    pub version: Option<String>,
}

const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Strings longer than this are not believed.
const MAX_STRING: u64 = 1 << 20;

impl BuildInfo {
    /// Finds and reads the build info, by section or, without section headers, by its magic in the data segments.
    pub fn read(elf: &Elf<'_>) -> Result<BuildInfo, Refusal> {
        let va = match elf.section(".go.buildinfo") {
            Some((va, _)) => va,
            None => scan(elf).ok_or_else(|| {
                Refusal::new("no Go build info: not a Go program, or built by Go before 1.13")
            })?,
        };
        let bytes = elf.bytes_from(va).unwrap_or(&[]);
        let flags = match (bytes.starts_with(MAGIC), bytes.get(15)) {
            (true, Some(flags)) => *flags,
            _ => return Err(Refusal::new("Go build info is damaged: its magic is missing")),
        };
        let (go, modules) = if flags & 2 != 0 {
            // Go 1.18 and later: two strings inline, each with its length as a varint.
            let mut rest = bytes.get(32..).unwrap_or(&[]);
            (inline_string(&mut rest), inline_string(&mut rest))
        } else if flags & 1 == 0 && bytes.get(14) == Some(&8) {
            // Until Go 1.17: pointers to two Go string headers.
            (string_header(elf, va.wrapping_add(16)), string_header(elf, va.wrapping_add(24)))
        } else {
            return Err(Refusal::new("Go build info is big-endian or 32-bit: not an x86-64 program"));
        };
        let go = go
            .filter(|go| !go.is_empty() && go.len() <= 256)
            .and_then(|go| String::from_utf8(go.to_vec()).ok())
            .ok_or_else(|| Refusal::new("Go build info names no Go version"))?;
        let (mut path, mut version) = (None, None);
        // The module text is wrapped in 16 marker bytes on both sides.
        let text = modules.and_then(|m| m.get(16..m.len().checked_sub(16)?)).unwrap_or(&[]);
        for line in String::from_utf8_lossy(text).lines() {
            let mut fields = line.split('\t');
            match fields.next() {
                Some("path") => path = fields.next().map(str::to_owned),
                Some("mod") => version = fields.nth(1).map(str::to_owned),
                _ => {}
            }
        }
        Ok(BuildInfo { go, path, version })
    }
}

fn scan(elf: &Elf<'_>) -> Option<u64> {
    elf.segments().iter().filter(|s| !s.executable).find_map(|segment| {
        let bytes = elf.segment_bytes(segment);
        // The linker aligns it to 16.
        let skew = segment.va.wrapping_neg() & 15;
        let at = bytes
            .get(usize::try_from(skew).ok()?..)?
            .chunks(16)
            .position(|chunk| chunk.starts_with(MAGIC))?;
        Some(segment.va + skew + 16 * at as u64)
    })
}

fn inline_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut len = 0u64;
    for shift in (0..35).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        len |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let (string, tail) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            *rest = tail;
            return Some(string).filter(|_| len <= MAX_STRING);
        }
    }
    None
}

fn string_header<'a>(elf: &Elf<'a>, at: u64) -> Option<&'a [u8]> {
    let header = elf.word(at)?;
    let (pointer, len) = (elf.word(header)?, elf.word(header.checked_add(8)?)?);
    elf.bytes_at(pointer, Some(len).filter(|l| *l <= MAX_STRING)?)
}

/// A Go release, as far as layouts depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoVersion {
    /// Second number: 19 for Go 1.19.8.
    pub minor: u32,
    /// Third number: 8 for Go 1.19.8; 0 for release candidates.
    pub patch: u32,
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "go1.{}.{}", self.minor, self.patch)
    }
}

impl GoVersion {
    /// Reads a version as build info gives it. Vendor suffixes (`go1.20.12-vendor`, `go1.24.4 X:experiment`) and
    /// release candidates (layouts are frozen by then) count as the release; development and beta versions are refused,
    /// because their layouts are those of no release.
    pub fn parse(text: &str) -> Result<GoVersion, Refusal> {
        let refuse = |why: &str| {
            Refusal::new(format!("Go version {:?}: {why}", text.chars().take(80).collect::<String>()))
        };
        let rest = text.strip_prefix("go1.").ok_or_else(|| {
            refuse(if text.starts_with("devel") {
                "a development version, whose layouts are those of no release"
            } else {
                "not a version of the form go1.N.M"
            })
        })?;
        let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (minor, rest) = rest.split_at(digits(rest));
        let minor = minor.parse::<u32>().map_err(|_| refuse("not a version of the form go1.N.M"))?;
        let patch = match rest.strip_prefix('.') {
            Some(tail) => tail[..digits(tail)]
                .parse::<u32>()
                .map_err(|_| refuse("not a version of the form go1.N.M"))?,
            None if rest.starts_with("beta") => {
                return Err(refuse("a beta, whose layouts may differ from the release"));
            }
            None if rest.is_empty() || rest.starts_with("rc") || rest.starts_with(['-', ' ', '+']) => 0,
            None => return Err(refuse("not a version of the form go1.N.M")),
        };
        Ok(GoVersion { minor, patch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let ok = |text: &str| GoVersion::parse(text).map(|v| (v.minor, v.patch)).ok();
        assert_eq!(ok("go1.15.15"), Some((15, 15)));
        assert_eq!(ok("go1.21"), Some((21, 0)));
        assert_eq!(ok("go1.27rc2"), Some((27, 0)));
        assert_eq!(ok("go1.24.4 X:nocoverageredesign"), Some((24, 4)));
        assert_eq!(ok("go1.20.12-fips"), Some((20, 12)));
        assert_eq!(ok("go1.19.8 (Red Hat 1.19.8-1.el9)"), Some((19, 8)));
        for refused in [
            "go1.28beta1",
            "devel go1.28-3f2b8d7 Tue",
            "devel +3f2b8d7",
            "go2.0",
            "go1.",
            "go1.x",
            "",
            "go1.99999999999",
        ] {
            assert!(ok(refused).is_none(), "{refused}");
        }
        assert!(GoVersion::parse("devel go1.28-3f2b8d7").unwrap_err().to_string().contains("development"));
    }

    #[test]
    fn inline_strings_end_where_they_must() {
        let mut rest: &[u8] = b"\x02go\x00tail";
        assert_eq!(inline_string(&mut rest), Some(&b"go"[..]));
        assert_eq!(inline_string(&mut rest), Some(&b""[..]));
        assert_eq!(rest, b"tail");
        for bad in [&b"\x05go"[..], b"", b"\x80", b"\xff\xff\xff\xff\xff\xff\xff", b"\xff\xff\xff\x7f"] {
            assert_eq!(inline_string(&mut &bad[..]), None, "{bad:x?}");
        }
    }
}
