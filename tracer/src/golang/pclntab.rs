//! Go's own symbol table, `pclntab`: which functions there are and where, pc -> function with inlined frames, and the
//! stack depth at every pc. Present in stripped binaries, because the runtime itself needs it. docs/go-symbols.md
//! explains the format; sources: `runtime/symtab.go`, `runtime/runtime2.go`, `cmd/link/internal/ld/pcln.go`.

use super::Refusal;
use super::buildinfo::GoVersion;
use super::elf::Elf;
use std::ffi::CStr;
use std::ops::Range;

/// The four formats of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Go 1.2 to 1.15.
    Go12,
    /// Go 1.16 and 1.17.
    Go116,
    /// Go 1.18 and 1.19.
    Go118,
    /// Go 1.20 and later.
    Go120,
}

impl Format {
    fn of_magic(magic: u32) -> Option<Format> {
        match magic {
            0xffff_fffb => Some(Format::Go12),
            0xffff_fffa => Some(Format::Go116),
            0xffff_fff0 => Some(Format::Go118),
            0xffff_fff1 => Some(Format::Go120),
            _ => None,
        }
    }

    /// Function table entries: two 8-byte words before Go 1.18, two 4-byte words since.
    fn entry_size(self) -> usize {
        if self < Format::Go118 { 16 } else { 8 }
    }
}

/// More functions than any binary has (a kubelet has about 100 000); bounds the work on a hostile file.
const MAX_FUNCTIONS: u64 = 4_000_000;
/// Names longer than this are not believed (generic instantiations reach a few hundred bytes).
const MAX_NAME: usize = 4096;
/// Most bytes of a node of an inline tree.
const INLINED_NODE: u64 = 20;
/// Deepest inlining that is followed.
const MAX_INLINE_DEPTH: usize = 64;

/// A function in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Position in the table.
    pub index: u32,
    /// Address of its first instruction, without load bias.
    pub entry: u64,
    /// Address behind its last byte (padding included): the next function's entry.
    pub end: u64,
}

/// One frame at a pc: a function, or one that was inlined into it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Full name, for instance `sync.(*RWMutex).RLock`.
    pub name: String,
    /// Whether the compiler inlined it: then it has no stack frame of its own.
    pub inlined: bool,
    /// Source file, as the compiler knew it; empty where lines were not asked for or are not known.
    pub file: String,
    /// Line in it: where the function was left, or the next one inlined; 0 where it is not known.
    pub line: u32,
}

/// The symbol table of one binary.
pub struct Pclntab<'a> {
    format: Format,
    /// Address of the table.
    pub va: u64,
    quantum: u32,
    count: usize,
    text_base: u64,
    names: &'a [u8],
    pc_values: &'a [u8],
    files: Files<'a>,
    /// Function table; records are offsets into `records`.
    table: &'a [u8],
    records: &'a [u8],
    /// Entries with relocations applied, where the file's bytes do not have them (PIE before Go 1.18).
    relocated: Option<Vec<u64>>,
    /// Address of `moduledata`, when found.
    pub moduledata: Option<u64>,
    function_data: FunctionData,
}

/// Where per-function data (the inline tree) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FunctionData {
    /// Records hold absolute addresses (before Go 1.18).
    Absolute,
    /// Records hold offsets from this address (`moduledata.gofunc`).
    Base(u64),
    /// Not known for this Go version; inlined frames are then not restored.
    Unknown,
}

/// Where names of source files are.
#[derive(Clone, Copy)]
enum Files<'a> {
    /// Numbers of files index a table of offsets into the names (Go 1.15).
    Table(&'a [u8]),
    /// Numbers of files count from where the function's compilation unit begins in the first; what is there is an
    /// offset into the second (since Go 1.16).
    Units(&'a [u8], &'a [u8]),
}

/// What is inlined into a function.
struct Inlining {
    /// Table of pc values that gives the node in force at a pc, -1 for none.
    nodes: u32,
    /// Address of the nodes.
    tree: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn tail(bytes: &[u8], from: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(from).ok()?..)
}

/// Sections that hold the table; the second in position-independent programs.
const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];

impl<'a> Pclntab<'a> {
    /// Finds the table by section or, where it has none, by scanning the data segments for its header; reads it.
    pub fn find(elf: &Elf<'a>, version: Option<GoVersion>) -> Result<Pclntab<'a>, Refusal> {
        let mut refusal = None;
        for section in SECTIONS {
            if let Some((va, _)) = elf.section(section) {
                match Pclntab::at(elf, va, version) {
                    Ok(table) => return Ok(table),
                    Err(why) => refusal = Some(why),
                }
            }
        }
        for va in candidates(elf) {
            // A program that carries the magic as a constant has no moduledata pointing at it.
            match Pclntab::at(elf, va, version) {
                Ok(table) if table.moduledata.is_some() => return Ok(table),
                Ok(_) => {}
                Err(why) => refusal = refusal.or(Some(why)),
            }
        }
        Err(refusal
            .unwrap_or_else(|| Refusal::new("no Go symbol table (pclntab): not a Go program, or packed")))
    }

    /// Reads the table at `va`.
    fn at(elf: &Elf<'a>, va: u64, version: Option<GoVersion>) -> Result<Pclntab<'a>, Refusal> {
        let bad = |what: &str| Refusal::new(format!("Go symbol table (pclntab) at {va:#x}: {what}"));
        let data = elf.bytes_from(va).ok_or_else(|| bad("not in the file"))?;
        let format =
            u32_at(data, 0).and_then(Format::of_magic).ok_or_else(|| bad("unknown format (magic)"))?;
        let (quantum, pointer) = match data.get(4..8) {
            Some(&[0, 0, quantum, pointer]) => (quantum, pointer),
            _ => return Err(bad("damaged header")),
        };
        if quantum != 1 || pointer != 8 {
            return Err(bad("not made for x86-64"));
        }
        let header = |word: usize| u64_at(data, 8 + 8 * word).ok_or_else(|| bad("cut short"));
        let count = header(0)?;
        if count == 0 || count > MAX_FUNCTIONS {
            return Err(bad(&format!("{count} functions is not believable")));
        }
        let part = |word: usize| header(word).and_then(|at| tail(data, at).ok_or_else(|| bad("cut short")));
        let count = usize::try_from(count).map_err(|_| bad("too big"))?;
        let (names, pc_values, files, table, records) = match format {
            Format::Go12 => {
                let table = tail(data, 16).ok_or_else(|| bad("cut short"))?;
                // Behind the function table lies the offset of the table of files.
                let files = u32_at(table, count * format.entry_size() + 8)
                    .and_then(|at| tail(data, u64::from(at)))
                    .unwrap_or(&[]);
                (data, data, Files::Table(files), table, data)
            }
            Format::Go116 => (part(2)?, part(5)?, Files::Units(part(3)?, part(4)?), part(6)?, part(6)?),
            Format::Go118 | Format::Go120 => {
                (part(3)?, part(6)?, Files::Units(part(4)?, part(5)?), part(7)?, part(7)?)
            }
        };
        // One more half entry: the end of the last function.
        let table_size = count * format.entry_size() + format.entry_size() / 2;
        let table = table.get(..table_size).ok_or_else(|| bad("cut short"))?;

        let mut made = Pclntab {
            format,
            va,
            quantum: u32::from(quantum),
            count,
            text_base: 0,
            names,
            pc_values,
            files,
            table,
            records,
            relocated: None,
            moduledata: None,
            function_data: if format < Format::Go118 {
                FunctionData::Absolute
            } else {
                FunctionData::Unknown
            },
        };
        if format < Format::Go118 {
            if elf.position_independent() {
                let start = va + (table.as_ptr() as usize - data.as_ptr() as usize) as u64;
                let entries: Option<Vec<u64>> =
                    (0..=count as u64).map(|i| elf.word(start + 16 * i)).collect();
                made.relocated = Some(entries.ok_or_else(|| bad("cut short"))?);
            }
        } else {
            // In a PIE this word may be a relocation; since Go 1.26 it is always zero.
            made.text_base = elf.word(va + 24).ok_or_else(|| bad("cut short"))?;
        }
        let first = made.entry(0);
        made.moduledata = elf.words_equal(va, 64).into_iter().find(|&at| {
            let (text, min_pc) = if format == Format::Go12 { (96, 80) } else { (176, 160) };
            let words = [min_pc, text, text + 8].map(|offset| elf.word(at.wrapping_add(offset)));
            match words {
                // The first function begins at minpc, and text holds it.
                [Some(min_pc), Some(text), Some(etext)] => {
                    text <= min_pc
                        && min_pc < etext
                        && elf.bytes_at(text, 1).is_some()
                        && (made.text_base == 0 && format >= Format::Go118 || first == Some(min_pc))
                }
                _ => false,
            }
        });
        if format >= Format::Go118 {
            if made.text_base == 0 {
                made.text_base = made
                    .moduledata
                    .and_then(|at| elf.word(at.wrapping_add(176)))
                    .filter(|base| *base != 0)
                    .ok_or_else(|| bad("no text base: the header has none and no moduledata was found"))?;
            }
            let base_at = match (format, version.map(|v| v.minor)) {
                (Format::Go118, _) => Some(304),
                (_, Some(20..=26)) => Some(320),
                (_, Some(27)) => Some(344),
                _ => None,
            };
            let base =
                made.moduledata.zip(base_at).and_then(|(at, offset)| elf.word(at.wrapping_add(offset)));
            if let Some(base) = base.filter(|base| elf.bytes_at(*base, 1).is_some()) {
                made.function_data = FunctionData::Base(base);
            }
        }
        // Believe the table only if its first and last function lie in code.
        let in_code = |va: Option<u64>| {
            va.is_some_and(|va| {
                elf.segments().iter().any(|s| s.executable && va >= s.va && va - s.va < s.file_size)
            })
        };
        if !in_code(made.entry(0)) || !in_code(made.entry(count - 1)) {
            return Err(bad("its functions do not lie in the program's code"));
        }
        Ok(made)
    }

    /// Which of the four formats it has.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of functions.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no functions. Never true: an empty table is refused.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The address that function table entries are relative to (`runtime.text`); 0 before Go 1.18, where they are
    /// absolute.
    pub fn text_base(&self) -> u64 {
        self.text_base
    }

    /// Entry address of function `index`; with `index == len()`, the end of the last function.
    fn entry(&self, index: usize) -> Option<u64> {
        if let Some(entries) = &self.relocated {
            return entries.get(index).copied();
        }
        let at = index.checked_mul(self.format.entry_size())?;
        if self.format < Format::Go118 {
            u64_at(self.table, at)
        } else {
            self.text_base.checked_add(u64::from(u32_at(self.table, at)?))
        }
    }

    /// Function `index` of the table.
    pub fn function(&self, index: u32) -> Option<Function> {
        let i = usize::try_from(index).ok().filter(|i| *i < self.count)?;
        let (entry, end) = (self.entry(i)?, self.entry(i + 1)?);
        (entry < end).then_some(Function { index, entry, end })
    }

    /// The function whose code holds `pc`.
    pub fn function_at(&self, pc: u64) -> Option<Function> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)? <= pc { low = middle + 1 } else { high = middle }
        }
        self.function(u32::try_from(low.checked_sub(1)?).ok()?).filter(|f| f.entry <= pc && pc < f.end)
    }

    /// The function's record (`runtime._func`).
    fn record(&self, index: u32) -> Option<&'a [u8]> {
        let at = usize::try_from(index).ok()?.checked_mul(self.format.entry_size())?;
        let offset = if self.format < Format::Go118 {
            u64_at(self.table, at + 8)?
        } else {
            u64::from(u32_at(self.table, at + 4)?)
        };
        tail(self.records, offset)
    }

    /// Size of the entry field that opens a record.
    fn record_entry_size(&self) -> usize {
        if self.format < Format::Go118 { 8 } else { 4 }
    }

    fn name_at(&self, offset: u32) -> Option<&'a [u8]> {
        string_at(self.names, offset)
    }

    /// The full name of function `index`, as the linker stored it.
    pub fn name(&self, index: u32) -> Option<&'a [u8]> {
        self.name_at(u32_at(self.record(index)?, self.record_entry_size())?)
    }

    /// All names, in table order. One pass over the table; nothing is allocated.
    pub fn names(&self) -> impl Iterator<Item = (u32, &'a [u8])> + '_ {
        (0..self.count as u32).filter_map(|index| Some((index, self.name(index)?)))
    }

    /// Value of a pc table (offset into the table of pc values) at `pc` of a function that begins at `entry`.
    fn pc_value(&self, offset: u32, entry: u64, pc: u64) -> Option<i32> {
        if offset == 0 {
            return None;
        }
        pc_value(self.pc_values.get(offset as usize..)?, self.quantum, entry, pc)
    }

    /// How many bytes lie between the stack pointer and the function's return address when the next instruction to
    /// run is at `pc` (`pcsp`); `None` where the table does not say (some assembly).
    pub fn stack_depth(&self, function: Function, pc: u64) -> Option<u64> {
        // Fields behind the entry: name, args, deferreturn, pcsp.
        let offset = u32_at(self.record(function.index)?, self.record_entry_size() + 12)?;
        self.pc_value(offset, function.entry, pc).and_then(|depth| u64::try_from(depth).ok())
    }

    /// The frames at `pc`, innermost first: the functions inlined there, then the function itself. For a return
    /// address pass `pc - 1`. Inlined frames are missing where this Go version's tables are not known. Files and lines
    /// cost two more tables to decode per frame, so they are read on demand.
    pub fn frames(&self, elf: &Elf<'_>, pc: u64, lines: bool) -> Vec<Frame> {
        let Some(function) = self.function_at(pc) else { return Vec::new() };
        let mut frames = Vec::new();
        let mut at = pc;
        let frame = |name: &[u8], inlined: bool, at: u64| {
            let (file, line) = if lines { self.line_at(function, at) } else { None }.unwrap_or_default();
            Frame { name: text(name), inlined, file: text(file), line }
        };
        while frames.len() < MAX_INLINE_DEPTH {
            let Some((name, parent)) = self.inlined_at(elf, function, at) else { break };
            frames.push(frame(name, true, at));
            // The call of an inlined function is never at a lower depth of the same pc, so this ends.
            match function.entry.checked_add(u64::from(parent)) {
                Some(parent) if parent < function.end => at = parent,
                _ => break,
            }
        }
        if let Some(name) = self.name(function.index) {
            frames.push(frame(name, false, at));
        }
        frames
    }

    /// Source file and line of the instruction at `pc` of a function, whatever is inlined there.
    fn line_at(&self, function: Function, pc: u64) -> Option<(&'a [u8], u32)> {
        let record = self.record(function.index)?;
        let fields = self.record_entry_size();
        // Fields behind the entry: name, args, deferreturn, pcsp, pcfile, pcln, count of pcdata, compilation unit.
        let value = |at: usize| self.pc_value(u32_at(record, fields + at)?, function.entry, pc);
        let (file, line) = (u32::try_from(value(16)?).ok()?, u32::try_from(value(20)?).ok()?);
        let name = match self.files {
            Files::Table(files) => self.name_at(u32_at(files, (file as usize).checked_mul(4)?)?)?,
            Files::Units(units, names) => {
                let unit = u32_at(record, fields + 28)?.checked_add(file)?;
                let at = u32_at(units, (unit as usize).checked_mul(4)?)?;
                string_at(names, at)?
            }
        };
        Some((name, line))
    }

    /// Names of all functions that are inlined into this one, with repetitions.
    pub fn inlined(&self, elf: &Elf<'_>, function: Function) -> Vec<&'a [u8]> {
        let Some(inlining) = self.inlining(elf, function) else { return Vec::new() };
        let values = self.pc_values.get(inlining.nodes as usize..).unwrap_or(&[]);
        let nodes = PcValues::new(values, self.quantum, function.entry)
            .filter_map(|(node, _)| u64::try_from(node).ok());
        nodes.filter_map(|node| self.inlined_node(elf, inlining.tree, node)).map(|node| node.0).collect()
    }

    /// The innermost inlined function at `pc`: its name and the offset of its call in the function.
    fn inlined_at(&self, elf: &Elf<'_>, function: Function, pc: u64) -> Option<(&'a [u8], u32)> {
        let inlining = self.inlining(elf, function)?;
        let node = u64::try_from(self.pc_value(inlining.nodes, function.entry, pc)?).ok()?;
        self.inlined_node(elf, inlining.tree, node)
    }

    /// Where the record says what is inlined into a function; `None` when nothing is.
    fn inlining(&self, elf: &Elf<'_>, function: Function) -> Option<Inlining> {
        const INLINE_PCDATA: u32 = 2;
        let record = self.record(function.index)?;
        let pcdata_count_at = self.record_entry_size() + 24;
        let pcdata_count = u32_at(record, pcdata_count_at)?;
        // Fixed part behind the count: Go 1.16 added the compilation unit, Go 1.20 the start line; then four bytes
        // whose last is the number of function data.
        let fixed = pcdata_count_at
            + 4
            + match self.format {
                Format::Go12 => 0,
                Format::Go116 | Format::Go118 => 4,
                Format::Go120 => 8,
            };
        let funcdata_count = *record.get(fixed + 3)?;
        if pcdata_count <= INLINE_PCDATA || pcdata_count > 64 {
            return None;
        }
        let nodes = u32_at(record, fixed + 4 + 4 * INLINE_PCDATA as usize).filter(|nodes| *nodes != 0)?;
        // Number of the inline tree among the function data; Go 1.16 dropped one before it.
        let which = if self.format == Format::Go12 { 4 } else { 3 };
        if which >= funcdata_count {
            return None;
        }
        let behind = fixed + 4 + 4 * pcdata_count as usize;
        let tree = match self.function_data {
            FunctionData::Absolute => {
                // Pointers, aligned in memory, not in the record.
                let record_va = self.va_of(elf, record)?;
                let at = record_va.checked_add(behind as u64)?.checked_next_multiple_of(8)?;
                elf.word(at.checked_add(8 * u64::from(which))?).filter(|tree| *tree != 0)?
            }
            FunctionData::Base(base) => {
                let offset = u32_at(record, behind + 4 * usize::from(which))?;
                base.checked_add(Some(u64::from(offset)).filter(|_| offset != u32::MAX)?)?
            }
            FunctionData::Unknown => return None,
        };
        Some(Inlining { nodes, tree })
    }

    /// A node of an inline tree: the function's name, and the offset of its call.
    fn inlined_node(&self, elf: &Elf<'_>, tree: u64, node: u64) -> Option<(&'a [u8], u32)> {
        let (size, name_at, parent_at) = if self.format < Format::Go120 { (20, 12, 16) } else { (16, 4, 8) };
        let node = elf.bytes_at(tree.checked_add(node.checked_mul(size)?)?, size)?;
        Some((self.name_at(u32_at(node, name_at)?)?, u32_at(node, parent_at)?))
    }

    /// How many bytes it has at most: without sections, all that is left of its segment.
    pub(super) fn size(&self, elf: &Elf<'_>) -> u64 {
        let section = SECTIONS.iter().filter_map(|name| elf.section(name)).find(|(va, _)| *va == self.va);
        section.map_or(u64::MAX, |(_, size)| size)
    }

    /// From where to where all inline trees lie; `None` when nothing is inlined or it is not known where.
    pub(super) fn inline_trees(&self, elf: &Elf<'_>) -> Option<Range<u64>> {
        let mut all: Option<Range<u64>> = None;
        for function in (0..self.count as u32).filter_map(|index| self.function(index)) {
            let Some(inlining) = self.inlining(elf, function) else { continue };
            let values = self.pc_values.get(inlining.nodes as usize..).unwrap_or(&[]);
            let last = PcValues::new(values, self.quantum, function.entry).map(|(node, _)| node).max();
            let nodes = last.and_then(|node| u64::try_from(node).ok()).map_or(0, |node| node + 1);
            let end = inlining.tree.saturating_add(nodes.saturating_mul(INLINED_NODE));
            let before = all.unwrap_or(inlining.tree..end);
            all = Some(before.start.min(inlining.tree)..before.end.max(end));
        }
        all
    }

    /// Address of bytes that lie in the table.
    fn va_of(&self, elf: &Elf<'_>, part: &[u8]) -> Option<u64> {
        let data = elf.bytes_from(self.va)?;
        let skip = (part.as_ptr() as usize).checked_sub(data.as_ptr() as usize)?;
        self.va.checked_add(skip as u64)
    }
}

fn string_at(strings: &[u8], offset: u32) -> Option<&[u8]> {
    let bytes = strings.get(offset as usize..)?;
    let bytes = bytes.get(..bytes.len().min(MAX_NAME))?;
    CStr::from_bytes_until_nul(bytes).ok().map(CStr::to_bytes)
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// 8-byte aligned places in the data segments that look like a header.
fn candidates(elf: &Elf<'_>) -> Vec<u64> {
    const MAX_CANDIDATES: usize = 16;
    let mut found = Vec::new();
    for segment in elf.segments().iter().filter(|s| !s.executable) {
        let skew = segment.va.wrapping_neg() & 7;
        let bytes = elf.segment_bytes(segment);
        let Some(aligned) = usize::try_from(skew).ok().and_then(|skew| bytes.get(skew..)) else { continue };
        for (i, word) in aligned.chunks_exact(8).enumerate() {
            if word[4..] == [0, 0, 1, 8]
                && u32_at(word, 0).and_then(Format::of_magic).is_some()
                && found.len() < MAX_CANDIDATES
            {
                found.push(segment.va + skew + 8 * i as u64);
            }
        }
    }
    found
}

fn varint(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u32::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Decodes a pc table: pairs of (value step, zigzag; pc step) that start from value -1 at the function's entry. Gives
/// each value and the pc up to which it holds; every step eats at least two bytes of the table, so it ends.
struct PcValues<'a> {
    rest: &'a [u8],
    quantum: u32,
    value: i32,
    pc: u64,
    first: bool,
}

impl<'a> PcValues<'a> {
    fn new(table: &'a [u8], quantum: u32, entry: u64) -> PcValues<'a> {
        PcValues { rest: table, quantum, value: -1, pc: entry, first: true }
    }
}

impl Iterator for PcValues<'_> {
    type Item = (i32, u64);

    fn next(&mut self) -> Option<(i32, u64)> {
        let step = varint(&mut self.rest)?;
        if step == 0 && !self.first {
            return None;
        }
        self.first = false;
        self.value = self.value.wrapping_add((step >> 1) as i32 ^ -((step & 1) as i32));
        self.pc = self.pc.checked_add(u64::from(varint(&mut self.rest)?) * u64::from(self.quantum))?;
        Some((self.value, self.pc))
    }
}

fn pc_value(table: &[u8], quantum: u32, entry: u64, target: u64) -> Option<i32> {
    PcValues::new(table, quantum, entry).find(|(_, end)| target < *end).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pc_tables() {
        // +1 for 4 bytes (value 0), +56 (zigzag 112) for 300 bytes (varint ac 02), -56 (zigzag 111) for 1 byte, end.
        let table = [2, 4, 112, 0xac, 0x02, 111, 1, 0];
        let at = |pc| pc_value(&table, 1, 0x1000, pc);
        assert_eq!(at(0x1000), Some(0));
        assert_eq!(at(0x1003), Some(0));
        assert_eq!(at(0x1004), Some(56));
        assert_eq!(at(0x1000 + 303), Some(56));
        assert_eq!(at(0x1000 + 304), Some(0));
        assert_eq!(at(0x1000 + 305), None);
        // A first step of zero is a value of -1, not the end.
        assert_eq!(pc_value(&[0, 8, 0], 1, 0, 7), Some(-1));
        assert_eq!(pc_value(&[2, 0x80], 1, 0, 7), None, "cut short");
    }

    #[test]
    fn varints_longer_than_32_bits_are_refused() {
        assert_eq!(varint(&mut &[0xff, 0xff, 0xff, 0xff, 0x0f][..]), Some(u32::MAX));
        assert_eq!(varint(&mut &[0xff; 9][..]), None);
    }
}
