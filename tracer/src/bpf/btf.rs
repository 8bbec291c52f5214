//! Reads what we need from BTF, the kernel's own description of its types: member offsets and the presence of
//! functions. aya-obj keeps its own walk of struct members private, and the crates that offer one are either not kept
//! or under a licence that a static binary cannot carry.
//!
//! Format: <https://docs.kernel.org/bpf/btf.html>. Pure: bytes in, answers out.

use std::collections::BTreeSet;

/// Why a description could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// It ends too early or does not begin with the magic number.
    #[error("not a BTF description: {0}")]
    Malformed(&'static str),
}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC: u32 = 12;

/// A parsed description. Types are found by walking the bytes: nothing is copied.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset in `types` of each type; index 0 is `void`.
    index: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    bitfields: bool,
    size: u32,
    rest: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// Indexes a description in the machine's own (little-endian) byte order.
    pub fn parse(bytes: &'a [u8]) -> Result<Btf<'a>, BtfError> {
        use BtfError::Malformed;
        let header = |at| word(bytes, at).ok_or(Malformed("the header is cut off"));
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()) {
            return Err(Malformed("no magic number"));
        }
        let start = header(4)? as usize;
        let section = |offset: u32, len: u32| {
            let from = start.checked_add(offset as usize)?;
            bytes.get(from..from.checked_add(len as usize)?)
        };
        let types = section(header(8)?, header(12)?).ok_or(Malformed("the types are cut off"))?;
        let strings = section(header(16)?, header(20)?).ok_or(Malformed("the strings are cut off"))?;
        let mut index = vec![0];
        let mut at = 0usize;
        while at < types.len() {
            index.push(at as u32);
            let info = word(types, at + 4).ok_or(Malformed("a type is cut off"))?;
            at = at.saturating_add(12 + trailer(info).ok_or(Malformed("a type of unknown kind"))?);
        }
        if at != types.len() {
            return Err(Malformed("the last type is cut off"));
        }
        Ok(Btf { types, strings, index })
    }

    fn at(&self, offset: u32) -> Option<Type<'a>> {
        let offset = offset as usize;
        let info = word(self.types, offset + 4)?;
        let rest = self.types.get(offset + 12..offset + 12 + trailer(info)?)?;
        Some(Type {
            name: word(self.types, offset)?,
            kind: info >> 24 & 0x1f,
            bitfields: info >> 31 != 0,
            size: word(self.types, offset + 8)?,
            rest,
        })
    }

    fn name(&self, at: u32) -> &'a [u8] {
        let bytes = self.strings.get(at as usize..).unwrap_or_default();
        bytes.split(|b| *b == 0).next().unwrap_or_default()
    }

    fn types(&self) -> impl Iterator<Item = Type<'a>> + '_ {
        self.index.iter().skip(1).filter_map(|offset| self.at(*offset))
    }

    /// Size in bytes of a struct; `None` when there is no struct of that name.
    pub fn size_of(&self, name: &str) -> Option<u32> {
        self.types().find(|t| t.kind == KIND_STRUCT && self.name(t.name) == name.as_bytes()).map(|t| t.size)
    }

    /// Byte offset of a member, also of one inside anonymous structs and unions, and of a path such as
    /// `thread.fsbase`. `None` when struct or member do not exist or the member is a bit field.
    pub fn offset_of(&self, structure: &str, path: &str) -> Option<u32> {
        // A name can be defined more than once; the first definition that has the member wins.
        self.types()
            .filter(|t| t.kind == KIND_STRUCT && self.name(t.name) == structure.as_bytes())
            .find_map(|t| self.path(t, path))
    }

    fn path(&self, mut current: Type<'a>, path: &str) -> Option<u32> {
        let mut total = 0;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let (offset, id) = self.member(current, name, 0)?;
            total += offset;
            if names.peek().is_some() {
                current = self.at(*self.index.get(id as usize)?)?;
            }
        }
        Some(total)
    }

    fn member(&self, of: Type<'a>, wanted: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > 8 || !matches!(of.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for member in of.rest.chunks_exact(12) {
            let (name, id, raw) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let (bits, width) = if of.bitfields { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            if name != 0 {
                if self.name(name) == wanted.as_bytes() {
                    return (bits % 8 == 0 && width == 0).then_some((bits / 8, id));
                }
            } else if let Some(inner) = self.index.get(id as usize).and_then(|o| self.at(*o))
                && let Some((offset, id)) = self.member(inner, wanted, depth + 1)
            {
                return Some((bits / 8 + offset, id));
            }
        }
        None
    }

    /// Which of these functions are described, so that a trampoline can be put on them.
    pub fn functions<'n>(&self, names: &[&'n str]) -> BTreeSet<&'n str> {
        let mut found = BTreeSet::new();
        for t in self.types().filter(|t| t.kind == KIND_FUNC) {
            let name = self.name(t.name);
            found.extend(names.iter().copied().filter(|n| n.as_bytes() == name));
        }
        found
    }

    /// Number of a function's type, for attaching a trampoline.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        (1..self.index.len())
            .find(|id| {
                self.at(self.index[*id])
                    .is_some_and(|t| t.kind == KIND_FUNC && self.name(t.name) == name.as_bytes())
            })
            .and_then(|id| u32::try_from(id).ok())
    }
}

/// Bytes that follow the 12 common ones; `None` for a kind that is not known.
fn trailer(info: u32) -> Option<usize> {
    let n = (info & 0xffff) as usize;
    Some(match info >> 24 & 0x1f {
        // int, var, decl_tag
        1 | 14 | 17 => 4,
        // ptr, fwd, typedef, volatile, const, restrict, func, float, type_tag
        2 | 7..=12 | 16 | 18 => 0,
        // array
        3 => 12,
        // struct, union, datasec, enum64
        4 | 5 | 15 | 19 => 12 * n,
        // enum, func_proto
        6 | 13 => 8 * n,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { u8 pad[8]; union { struct { int a; int b; }; }; }` and `func f`, by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0f\0int\0";
        let mut types: Vec<u32> = Vec::new();
        let info = |kind: u32, n: u32| kind << 24 | n;
        types.extend([13, info(1, 0), 4, 32]); // 1: int
        types.extend([0, info(KIND_STRUCT, 2), 8, 7, 1, 0, 9, 1, 32]); // 2: anonymous { a, b }
        types.extend([0, info(KIND_UNION, 1), 8, 0, 2, 0]); // 3
        types.extend([1, info(KIND_STRUCT, 1), 16, 0, 3, 64]); // 4: outer
        types.extend([11, info(KIND_FUNC, 0), 0]); // 5
        let body: Vec<u8> = types.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut bytes = Vec::from([0x9f, 0xeb, 1, 0]);
        for w in [24, 0, body.len() as u32, body.len() as u32, strings.len() as u32] {
            bytes.extend(w.to_le_bytes());
        }
        bytes.extend(body);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_inside_anonymous_types_are_found() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset_of("outer", "a"), Some(8));
        assert_eq!(btf.offset_of("outer", "b"), Some(12));
        assert_eq!(btf.offset_of("outer", "c"), None);
        assert_eq!(btf.offset_of("missing", "a"), None);
        assert_eq!(btf.size_of("outer"), Some(16));
        assert_eq!(btf.functions(&["f", "g"]).into_iter().collect::<Vec<_>>(), ["f"]);
        assert_eq!(btf.function_id("f"), Some(5));
    }

    #[test]
    fn foreign_bytes_never_panic() {
        let good = sample();
        for cut in 0..good.len() {
            let _ = Btf::parse(&good[..cut]);
        }
        for at in 0..good.len() {
            for value in [0u8, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Ok(btf) = Btf::parse(&bad) {
                    let _ = btf.offset_of("outer", "b");
                    let _ = btf.functions(&["f"]);
                }
            }
        }
    }

    #[test]
    fn the_running_kernel_agrees_with_its_own_headers() {
        // `pt_regs` is user ABI on x86-64: di at 112, si at 104 (arch/x86/include/uapi/asm/ptrace.h).
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset_of("pt_regs", "di"), Some(112));
        assert!(btf.offset_of("task_struct", "thread.fsbase").is_some());
        assert!(btf.functions(&["generic_shutdown_super"]).len() == 1);
    }
}
