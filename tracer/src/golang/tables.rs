//! Which parts of a program's file hold its tables. A copy that has these parts at the same offsets, and anything else
//! between them, gives the same functions, frames, lines and stack depths as the file itself.

use super::GoBinary;
use std::ops::Range;

/// The struct `moduledata` has less than this many bytes in every version.
const MODULEDATA: u64 = 1024;
/// Parts nearer to each other than this are one.
const NEAR: u64 = 4096;

impl GoBinary<'_> {
    /// Offsets into the file of all that [`GoBinary::with`] and its answers about places in code rest on, ascending. Reads
    /// all of the function table: some ten milliseconds for the largest programs.
    pub fn tables(&self) -> Vec<Range<u64>> {
        let at = |va: u64, size: u64| {
            let from = self.elf.file_offset(va)?;
            let rest = self.elf.bytes_from(va)?.len() as u64;
            Some(from..from + size.min(rest))
        };
        let mut parts = self.elf.headers();
        let functions = &self.functions;
        parts.extend(at(functions.va, functions.size(&self.elf)));
        parts.extend(functions.moduledata.and_then(|va| at(va, MODULEDATA)));
        parts.extend(
            functions.inline_trees(&self.elf).and_then(|trees| at(trees.start, trees.end - trees.start)),
        );
        joined(parts)
    }
}

fn joined(mut parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    parts.sort_by_key(|part| part.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        match joined.last_mut() {
            Some(last) if part.start <= last.end.saturating_add(NEAR) => last.end = last.end.max(part.end),
            _ => joined.push(part),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_where_they_meet() {
        let far = 100_000;
        assert_eq!(joined(vec![far..far + 9, 10..20, 5..5, 15..30, 40..50]), [10..50, far..far + 9]);
    }
}
