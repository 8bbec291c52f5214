//! Reads the struct layouts out of an ELF object's `.BTF` section.
//!
//! The format is the kernel's (`include/uapi/linux/btf.h`, Documentation/bpf/btf.rst): a header, a list of types that
//! refer to each other by their number, and a table of strings. Only what a struct's layout needs is kept.

use object::{Object, ObjectSection};

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// One struct or union.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its name, without the path of its module.
    pub name: String,
    /// Bytes.
    pub size: usize,
    /// Its fields in order of declaration.
    pub fields: Vec<Field>,
}

/// One field.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes; `None` for what has none, such as a function.
    pub size: Option<usize>,
}

enum Type {
    /// A type of so many bytes: integer, enumeration, pointer, float.
    Sized(usize),
    Array {
        element: u32,
        count: usize,
    },
    /// Another name or a qualifier for a type.
    Alias(u32),
    Struct {
        name: String,
        size: usize,
        members: Vec<(String, u32, usize)>,
    },
    Unsized,
}

/// The structs and unions of an ELF object, in the order in which its BTF has them.
pub fn layouts(elf: &[u8]) -> Result<Vec<Layout>, String> {
    let file = object::File::parse(elf).map_err(|error| format!("not an object file: {error}"))?;
    let section = file.section_by_name(".BTF").ok_or("the object has no .BTF section")?;
    let types = types(section.data().map_err(|error| error.to_string())?)
        .ok_or("the .BTF section ends too early")??;
    let mut layouts = Vec::new();
    for found in &types {
        let Type::Struct { name, size, members } = found else { continue };
        let field = |(name, id, offset): &(String, u32, usize)| Field {
            name: name.clone(),
            offset: *offset,
            size: size_of(&types, *id, 0),
        };
        layouts.push(Layout { name: name.clone(), size: *size, fields: members.iter().map(field).collect() });
    }
    Ok(layouts)
}

/// All types by number; the first is `void`. `None` when the bytes end too early.
fn types(btf: &[u8]) -> Option<Result<Vec<Type>, String>> {
    if u16(btf, 0)? != MAGIC {
        return Some(Err(format!("BTF begins with {:#x}, not {MAGIC:#x}", u16(btf, 0)?)));
    }
    let header = u32(btf, 4)? as usize;
    let (type_start, type_length) = (header + u32(btf, 8)? as usize, u32(btf, 12)? as usize);
    let strings = btf.get(header + u32(btf, 16)? as usize..)?.get(..u32(btf, 20)? as usize)?;
    let list = btf.get(type_start..)?.get(..type_length)?;

    let mut types = vec![Type::Unsized];
    let mut at = 0;
    while at < list.len() {
        let (name, info, size_or_type) = (u32(list, at)?, u32(list, at + 4)?, u32(list, at + 8)?);
        let (kind, count, bitfields) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
        at += 12;
        let extra = match kind {
            KIND_INT | 14 | 17 => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * count,
            6 | 13 => 8 * count,
            2 | 7..=12 | 16 | 18 => 0,
            unknown => {
                return Some(Err(format!("BTF type {} is of the unknown kind {unknown}", types.len())));
            }
        };
        let data = list.get(at..at + extra)?;
        at += extra;
        types.push(match kind {
            // Integers, enumerations (32 and 64 bits) and floats carry their size; a pointer is 64 bits for BPF.
            KIND_INT | 6 | 16 | 19 => Type::Sized(size_or_type as usize),
            2 => Type::Sized(8),
            KIND_ARRAY => Type::Array { element: u32(data, 0)?, count: u32(data, 8)? as usize },
            KIND_STRUCT | KIND_UNION => {
                let mut members = Vec::new();
                for member in data.chunks_exact(12) {
                    let bits = u32(member, 8)?;
                    if bitfields && bits >> 24 != 0 {
                        return Some(Err(format!("{} has bit fields", string(strings, name)?)));
                    }
                    members.push((string(strings, u32(member, 0)?)?, u32(member, 4)?, bits as usize / 8));
                }
                Type::Struct { name: string(strings, name)?, size: size_or_type as usize, members }
            }
            // typedef, volatile, const, restrict, type tag.
            8..=11 | 18 => Type::Alias(size_or_type),
            _ => Type::Unsized,
        });
    }
    Some(Ok(types))
}

fn size_of(types: &[Type], id: u32, depth: usize) -> Option<usize> {
    match types.get(id as usize)? {
        Type::Sized(size) | Type::Struct { size, .. } => Some(*size),
        // A chain of aliases that never ends would be a broken object, not a deep one.
        Type::Alias(to) if depth < 32 => size_of(types, *to, depth + 1),
        Type::Array { element, count } if depth < 32 => Some(size_of(types, *element, depth + 1)? * count),
        _ => None,
    }
}

fn u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn string(strings: &[u8], at: u32) -> Option<String> {
    let rest = strings.get(at as usize..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}
