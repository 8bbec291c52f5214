//! The parts of an ELF file that the Go reader needs: address ↔ file offset, words with relocations applied, notes.
//!
//! Works on 64-bit little-endian x86-64 files, position independent or not, with or without section headers. Nothing is
//! copied: all answers point into the bytes handed in (an mmap will do; only touched pages are read).

use super::Refusal;
use object::LittleEndian;
use object::elf::{
    DT_NULL, DT_RELA, DT_RELASZ, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PF_W, PF_X, PT_DYNAMIC, PT_LOAD,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader};
use std::ops::Range;

/// A loadable part of the file (`PT_LOAD`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address, before the load bias of a position-independent file.
    pub va: u64,
    /// Where its bytes are in the file.
    pub file_offset: u64,
    /// How many of its bytes are in the file; the rest is zero (`.bss`).
    pub file_size: u64,
    /// Whether it holds code.
    pub executable: bool,
    /// Whether the program may write to it (some of it only until relocations are applied).
    pub writable: bool,
}

/// An ELF file, as far as the Go reader needs it.
pub struct Elf<'a> {
    bytes: &'a [u8],
    segments: Vec<Segment>,
    position_independent: bool,
    relocations: Relocations<'a>,
    /// Address and size of the table of relocations.
    relocation_table: (u64, u64),
    header: &'a FileHeader64<LittleEndian>,
}

const R_X86_64_RELATIVE: u32 = 8;
const RELA_SIZE: usize = 24;
/// More program headers than any linker writes; bounds the work on a hostile file.
const MAX_SEGMENTS: usize = 64;

impl<'a> Elf<'a> {
    /// Reads the headers. Refuses anything but a 64-bit x86-64 executable.
    pub fn parse(bytes: &'a [u8]) -> Result<Elf<'a>, Refusal> {
        let bad = |what: &str| Refusal::new(format!("not a readable ELF file: {what}"));
        let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(|e| bad(&e.to_string()))?;
        let endian = header.endian().map_err(|e| bad(&e.to_string()))?;
        if header.e_machine(endian) != EM_X86_64 {
            return Err(Refusal::new(format!(
                "ELF machine {}: only x86-64 programs can be probed so far",
                header.e_machine(endian)
            )));
        }
        let kind = header.e_type(endian);
        if kind != ET_DYN && kind != ET_EXEC {
            return Err(Refusal::new(format!(
                "ELF type {kind}: neither an executable nor position independent"
            )));
        }
        let headers = header.program_headers(endian, bytes).map_err(|e| bad(&e.to_string()))?;
        let mut segments = Vec::new();
        let mut dynamic = None;
        for part in headers.iter().take(MAX_SEGMENTS) {
            match part.p_type(endian) {
                PT_LOAD => segments.push(Segment {
                    va: part.p_vaddr(endian),
                    file_offset: part.p_offset(endian),
                    // Never beyond the end of the file, nor of the address space.
                    file_size: part
                        .p_filesz(endian)
                        .min((bytes.len() as u64).saturating_sub(part.p_offset(endian)))
                        .min(u64::MAX - part.p_vaddr(endian)),
                    executable: part.p_flags(endian) & PF_X != 0,
                    writable: part.p_flags(endian) & PF_W != 0,
                }),
                PT_DYNAMIC => dynamic = part.dynamic(endian, bytes).ok().flatten(),
                _ => {}
            }
        }
        let position_independent = kind == ET_DYN;
        let mut elf = Elf {
            bytes,
            segments,
            position_independent,
            relocations: Relocations::default(),
            relocation_table: (0, 0),
            header,
        };
        if let (true, Some(entries)) = (position_independent, dynamic) {
            let (mut va, mut size) = (0u64, 0u64);
            for entry in entries {
                let value = Dyn::d_val(entry, endian);
                match Dyn::tag32(entry, endian) {
                    Some(DT_NULL) => break,
                    Some(DT_RELA) => va = value,
                    Some(DT_RELASZ) => size = value,
                    _ => {}
                }
            }
            elf.relocations = Relocations::new(elf.bytes_at(va, size).unwrap_or(&[]));
            elf.relocation_table = (va, size);
        }
        Ok(elf)
    }

    /// The loadable parts, in file order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether the program is loaded at an address chosen at run time (PIE).
    pub fn position_independent(&self) -> bool {
        self.position_independent
    }

    /// Address of the first instruction, without load bias. A process knows its own (`AT_ENTRY` of its auxiliary
    /// vector), so the difference is the load bias.
    pub fn entry(&self) -> u64 {
        self.header.e_entry(LittleEndian)
    }

    /// What to add to an address in the file to get that in a process whose lowest mapping of the file begins at
    /// `lowest_mapping`. Go's own linker lets position-independent files begin at 0x400000, not at 0.
    pub fn load_bias(&self, lowest_mapping: u64) -> u64 {
        const PAGE: u64 = 4096;
        let lowest = self.segments.iter().map(|s| s.va).min().unwrap_or(0);
        if self.position_independent { lowest_mapping.wrapping_sub(lowest / PAGE * PAGE) } else { 0 }
    }

    /// Where a virtual address is in the file. Uprobes are placed by this.
    pub fn file_offset(&self, va: u64) -> Option<u64> {
        let segment = self.segment_of(va)?;
        segment.file_offset.checked_add(va - segment.va)
    }

    fn segment_of(&self, va: u64) -> Option<&Segment> {
        self.segments.iter().find(|s| va >= s.va && va - s.va < s.file_size)
    }

    /// The file's bytes of `[va, va + size)`; `None` unless one segment holds all of them.
    pub fn bytes_at(&self, va: u64, size: u64) -> Option<&'a [u8]> {
        self.bytes_from(va)?.get(..usize::try_from(size).ok()?)
    }

    /// The file's bytes from `va` to the end of its segment.
    pub fn bytes_from(&self, va: u64) -> Option<&'a [u8]> {
        let segment = self.segment_of(va)?;
        let skip = va - segment.va;
        let from = usize::try_from(segment.file_offset.checked_add(skip)?).ok()?;
        let len = usize::try_from(segment.file_size - skip).ok()?;
        self.bytes.get(from..)?.get(..len)
    }

    /// The bytes of one segment that are in the file.
    pub fn segment_bytes(&self, segment: &Segment) -> &'a [u8] {
        self.bytes_from(segment.va).unwrap_or(&[])
    }

    /// The 8-byte word at `va` as the program sees it before it runs: the addend of a RELATIVE relocation where there
    /// is one (addresses then are without load bias), else the file's bytes.
    pub fn word(&self, va: u64) -> Option<u64> {
        match self.relocations.addend(va) {
            Some(addend) => Some(addend),
            None => Some(u64::from_le_bytes(self.bytes_at(va, 8)?.try_into().ok()?)),
        }
    }

    /// Addresses of all words that hold `value`, in writable segments and relocations, at most `limit` of them.
    pub fn words_equal(&self, value: u64, limit: usize) -> Vec<u64> {
        let mut found: Vec<u64> =
            self.relocations.iter().filter(|r| r.1 == value).map(|r| r.0).take(limit).collect();
        for segment in self.segments.iter().filter(|s| s.writable && !s.executable) {
            let skew = segment.va.wrapping_neg() & 7;
            let bytes = self.segment_bytes(segment);
            let Some(aligned) = usize::try_from(skew).ok().and_then(|skew| bytes.get(skew..)) else {
                continue;
            };
            let needle = value.to_le_bytes();
            for (i, word) in aligned.chunks_exact(8).enumerate() {
                if word == needle && found.len() < limit {
                    found.push(segment.va + skew + 8 * i as u64);
                }
            }
        }
        found
    }

    /// Address and size of a section, when there are section headers and one has this name.
    pub fn section(&self, name: &str) -> Option<(u64, u64)> {
        let sections = self.header.sections(LittleEndian, self.bytes).ok()?;
        let (_, section) = sections.section_by_name(LittleEndian, name.as_bytes())?;
        Some((section.sh_addr(LittleEndian), section.sh_size(LittleEndian)))
    }

    /// Parts of the file that say what is where: headers, names of sections, relocations.
    pub(super) fn headers(&self) -> Vec<Range<u64>> {
        let endian = LittleEndian;
        let (parts, sections) = (self.header.e_phoff(endian), self.header.e_shoff(endian));
        let each = |count: u16, size: u16| u64::from(count) * u64::from(size);
        let mut found = vec![
            0..size_of::<FileHeader64<LittleEndian>>() as u64,
            parts..parts.saturating_add(each(self.header.e_phnum(endian), self.header.e_phentsize(endian))),
            sections
                ..sections.saturating_add(each(self.header.e_shnum(endian), self.header.e_shentsize(endian))),
        ];
        let names = usize::from(self.header.e_shstrndx(endian));
        if let Ok(Some(names)) =
            self.header.section_headers(endian, self.bytes).map(|headers| headers.get(names))
        {
            let from = names.sh_offset(endian);
            found.push(from..from.saturating_add(names.sh_size(endian)));
        }
        let headers = self.header.program_headers(endian, self.bytes).unwrap_or_default();
        let dynamic = headers.iter().find(|part| part.p_type(endian) == PT_DYNAMIC);
        found.extend(dynamic.map(|part| {
            let from = part.p_offset(endian);
            from..from.saturating_add(part.p_filesz(endian))
        }));
        let (va, size) = self.relocation_table;
        found.extend(self.file_offset(va).map(|from| from..from.saturating_add(size)));
        let end = self.bytes.len() as u64;
        found.into_iter().map(|part| part.start.min(end)..part.end.min(end)).collect()
    }

    /// The linker's build id (`.note.gnu.build-id`) in hex, else Go's own (`.note.go.buildid`); identifies the file's
    /// contents for caches.
    pub fn build_id(&self) -> Option<String> {
        let headers = self.header.program_headers(LittleEndian, self.bytes).ok()?;
        let mut go = None;
        for part in headers.iter().take(MAX_SEGMENTS) {
            let Ok(Some(mut notes)) = part.notes(LittleEndian, self.bytes) else { continue };
            while let Ok(Some(note)) = notes.next() {
                let desc = note.desc();
                match (note.name(), note.n_type(LittleEndian)) {
                    (b"GNU", 3) if !desc.is_empty() && desc.len() <= 64 => {
                        return Some(desc.iter().map(|b| format!("{b:02x}")).collect());
                    }
                    (b"Go", 4) if desc.len() <= 256 => go = Some(String::from_utf8_lossy(desc).into_owned()),
                    _ => {}
                }
            }
        }
        go
    }
}

/// RELATIVE relocations of a position-independent file: word address -> value.
///
/// Linkers sort them; that run is searched in place. What is not sorted is copied and sorted.
#[derive(Default)]
struct Relocations<'a> {
    sorted: &'a [u8],
    rest: Vec<(u64, u64)>,
}

fn rela(bytes: &[u8]) -> Option<(u64, u32, u64)> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some((word(0)?, word(8)? as u32, word(16)?))
}

impl<'a> Relocations<'a> {
    fn new(table: &'a [u8]) -> Relocations<'a> {
        let mut last = None;
        let mut run = 0;
        let mut rest = Vec::new();
        for (i, entry) in table.chunks_exact(RELA_SIZE).enumerate() {
            let Some((offset, kind, addend)) = rela(entry) else { break };
            if run == i && kind == R_X86_64_RELATIVE && last.is_none_or(|l| l < offset) {
                run = i + 1;
                last = Some(offset);
            } else if kind == R_X86_64_RELATIVE {
                rest.push((offset, addend));
            }
        }
        rest.sort_unstable();
        Relocations { sorted: table.get(..run * RELA_SIZE).unwrap_or(&[]), rest }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let sorted =
            self.sorted.chunks_exact(RELA_SIZE).filter_map(rela).map(|(offset, _, addend)| (offset, addend));
        sorted.chain(self.rest.iter().copied())
    }

    fn addend(&self, va: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.sorted.len() / RELA_SIZE);
        while low < high {
            let middle = low + (high - low) / 2;
            let (offset, _, addend) = rela(self.sorted.get(middle * RELA_SIZE..)?)?;
            match offset.cmp(&va) {
                std::cmp::Ordering::Equal => return Some(addend),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        let at = self.rest.partition_point(|r| r.0 < va);
        self.rest.get(at).filter(|r| r.0 == va).map(|r| r.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64, kind: u64, addend: u64) -> Vec<u8> {
        [offset, kind, addend].iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn relocations_are_found_sorted_or_not() {
        let table: Vec<u8> =
            [(0x10, 8, 1), (0x20, 8, 2), (0x08, 8, 3), (0x30, 6, 4), (0x40, 8, 5), (0x38, 8, 6)]
                .iter()
                .flat_map(|&(o, k, a)| entry(o, k, a))
                .collect();
        let relocations = Relocations::new(&table);
        let found: Vec<_> =
            [0x08, 0x10, 0x18, 0x20, 0x30, 0x38, 0x40].iter().map(|&va| relocations.addend(va)).collect();
        assert_eq!(found, [Some(3), Some(1), None, Some(2), None, Some(6), Some(5)]);
        assert_eq!(relocations.iter().count(), 5);
    }

    #[test]
    fn what_is_not_an_x86_64_program_is_refused_in_words() {
        assert!(Elf::parse(b"").is_err());
        assert!(Elf::parse(b"#!/bin/sh\n").is_err());
        let mut arm = vec![0u8; 64];
        arm[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        arm[16] = 2;
        arm[18] = 183;
        let refusal = Elf::parse(&arm).err().unwrap();
        assert!(refusal.to_string().contains("machine 183"), "{refusal}");
    }
}
