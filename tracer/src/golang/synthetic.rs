//! Hand-made Go programs for tests: a few functions and all tables the reader wants, in each of the four formats,
//! position independent or not, without section headers.

use super::GoBinary;
use super::pclntab::{Format, Frame};
use proptest::prelude::*;

/// Where code and data lie; the file offset is the address minus [`BASE`].
const BASE: u64 = 0x40_0000;
const TEXT: u64 = BASE + 0x1000;
const DATA: u64 = BASE + 0x2000;
const SIZE: usize = 0x4000;
const PCLNTAB: u64 = DATA + 0x400;
const MODULEDATA: u64 = DATA + 0x1400;
const INLINE_TREE: u64 = DATA + 0x1200;
const DYNAMIC: u64 = DATA + 0x100;
const RELA: u64 = DATA + 0x1800;

const GROW: u64 = TEXT;
const RELEASE: u64 = TEXT + 0x20;
const ACQUIRE: u64 = TEXT + 0x40;
const LIST: u64 = TEXT + 0x80;
const END: u64 = TEXT + 0xc0;

const FUNCTIONS: [(&str, u64); 4] = [
    ("runtime.morestack_noctxt", GROW),
    ("runtime.releaseSudog", RELEASE),
    ("runtime.semacquire1", ACQUIRE),
    ("example.com/vendor/x/pkg/cri/server.(*instrumentedService).ListContainers", LIST),
];

/// A call at +0x14 of the last function is inlined: `sync.(*RWMutex).RLock`, in `example.com/store.(*Store).List`.
const INLINED: [&str; 2] = ["example.com/store.(*Store).List", "sync.(*RWMutex).RLock"];

const ALL: [(Format, &str); 4] = [
    (Format::Go12, "go1.15.15"),
    (Format::Go116, "go1.17.6"),
    (Format::Go118, "go1.19.8"),
    (Format::Go120, "go1.27.1"),
];

struct Image {
    bytes: Vec<u8>,
    relocations: Vec<(u64, u64)>,
    relocated: bool,
}

impl Image {
    fn put(&mut self, va: u64, part: &[u8]) {
        let at = (va - BASE) as usize;
        self.bytes[at..at + part.len()].copy_from_slice(part);
    }

    fn u32(&mut self, va: u64, value: u32) {
        self.put(va, &value.to_le_bytes());
    }

    fn word(&mut self, va: u64, value: u64) {
        self.put(va, &value.to_le_bytes());
    }

    /// A word that holds an address: a relocation in a position-independent file, where the bytes are zero.
    fn address(&mut self, va: u64, value: u64) {
        if self.relocated { self.relocations.push((va, value)) } else { self.word(va, value) }
    }
}

fn code(at: u64) -> Vec<u8> {
    let call = |from: u64, to: u64| {
        let mut call = vec![0xe8];
        call.extend((to.wrapping_sub(from + 5) as i32).to_le_bytes());
        call
    };
    match at {
        // cmp rsp,[r14+16]; jbe +0x1e; ... nop; ret; call morestack; jmp entry
        LIST => {
            let mut code = vec![0x49, 0x3b, 0x66, 0x10, 0x76, 0x18];
            code.resize(0x1c, 0x90);
            code.extend([0x90, 0xc3]);
            code.extend(call(LIST + 0x1e, GROW));
            code.extend([0xeb, 0xdb]);
            code
        }
        // The check, a call of releaseSudog, ret.
        ACQUIRE => {
            let mut code = vec![0x49, 0x3b, 0x66, 0x10, 0x76, 0x06];
            code.extend(call(ACQUIRE + 6, RELEASE));
            code.push(0xc3);
            code.extend(call(ACQUIRE + 12, GROW));
            code.extend([0xeb, 0xed]);
            code
        }
        _ => vec![0xc3],
    }
}

/// Builds the program.
fn program(format: Format, version: &str, relocated: bool) -> Vec<u8> {
    let mut image = Image { bytes: vec![0; SIZE], relocations: Vec::new(), relocated };
    // ELF header and three program headers.
    image.put(BASE, b"\x7fELF\x02\x01\x01");
    image.put(BASE + 16, &[if relocated { 3 } else { 2 }, 0, 62, 0, 1, 0, 0, 0]);
    image.word(BASE + 32, 64);
    image.put(BASE + 52, &[64, 0, 56, 0, 3, 0, 64, 0]);
    for (i, (kind, flags, va, size)) in
        [(1, 5, TEXT, 0x1000), (1, 6, DATA, 0x2000), (2, 6, DYNAMIC, 0x30)].into_iter().enumerate()
    {
        let at = BASE + 64 + 56 * i as u64;
        image.u32(at, kind);
        image.u32(at + 4, flags);
        for (field, value) in [(8, va - BASE), (16, va), (24, va), (32, size), (40, size)] {
            image.word(at + field, value);
        }
    }
    image.put(TEXT, &[0xcc; (END - TEXT) as usize]);
    for (_, at) in FUNCTIONS {
        image.put(at, &code(at));
    }
    // Build info.
    image.put(DATA, b"\xff Go buildinf:");
    if format >= Format::Go118 {
        image.put(DATA + 14, &[8, 2]);
        image.put(DATA + 32, &[version.len() as u8]);
        image.put(DATA + 33, version.as_bytes());
        let modules = format!("0123456789abcdef{}0123456789abcdef", "path\tx/cmd/d\nmod\tx\tv1.2.3\t\n");
        image.put(DATA + 33 + version.len() as u64, &[modules.len() as u8]);
        image.put(DATA + 34 + version.len() as u64, modules.as_bytes());
    } else {
        image.put(DATA + 14, &[8, 0]);
        image.address(DATA + 16, DATA + 0x40);
        image.address(DATA + 24, DATA + 0x50);
        image.address(DATA + 0x40, DATA + 0x60);
        image.word(DATA + 0x48, version.len() as u64);
        image.put(DATA + 0x60, version.as_bytes());
    }

    // Tables: names, then pc values, at fixed offsets of the table.
    let (names_at, values_at, records_at) = (0x300u64, 0x500u64, 0x600u64);
    let mut names = vec![0u8];
    let mut add = |name: &str| {
        let at = names.len() as u32;
        names.extend(name.as_bytes());
        names.push(0);
        at
    };
    let mut function_names: Vec<u32> = FUNCTIONS.iter().map(|f| add(f.0)).collect();
    let mut inlined_names: Vec<u32> = INLINED.iter().map(|name| add(name)).collect();
    image.put(PCLNTAB + names_at, &names);
    // Depth 0 for 6 bytes, then 56; inline tree: none for 0x10 bytes, node 0 for 4, node 1 for 8, none.
    let depth = [2, 6, 112, 0x30, 0];
    let inlining = [0, 0x10, 2, 4, 2, 8, 3, 0x10, 0];
    image.put(PCLNTAB + values_at + 1, &depth);
    image.put(PCLNTAB + values_at + 16, &inlining);
    let (mut depth_at, mut inlining_at) = (1u32, 16u32);
    let (magic, header): (u32, Vec<u64>) = match format {
        Format::Go12 => (0xffff_fffb, vec![4]),
        Format::Go116 => (0xffff_fffa, vec![4, 0, names_at, 0, 0, values_at, 0x80]),
        Format::Go118 => (0xffff_fff0, vec![4, 0, TEXT, names_at, 0, 0, values_at, 0x80]),
        Format::Go120 => (0xffff_fff1, vec![4, 0, 0, names_at, 0, 0, values_at, 0x80]),
    };
    image.u32(PCLNTAB, magic);
    image.put(PCLNTAB + 6, &[1, 8]);
    for (i, word) in header.into_iter().enumerate() {
        let at = PCLNTAB + 8 + 8 * i as u64;
        if word == TEXT { image.address(at, word) } else { image.word(at, word) }
    }
    let old = format < Format::Go118;
    // Offsets are from the start of the whole table in the oldest format, from the function table since.
    let (table, records_base) =
        if format == Format::Go12 { (PCLNTAB + 16, PCLNTAB) } else { (PCLNTAB + 0x80, PCLNTAB + 0x80) };
    if format == Format::Go12 {
        function_names.iter_mut().chain(&mut inlined_names).for_each(|at| *at += names_at as u32);
        depth_at += values_at as u32;
        inlining_at += values_at as u32;
    }
    for (i, (_, entry)) in FUNCTIONS.iter().enumerate() {
        let record = PCLNTAB + records_at + 0x80 * i as u64;
        let (row, offset) = (i as u64, record - records_base);
        let mut at = if old {
            image.address(table + 16 * row, *entry);
            image.word(table + 16 * row + 8, offset);
            image.address(record, *entry);
            record + 8
        } else {
            image.u32(table + 8 * row, (entry - TEXT) as u32);
            image.u32(table + 8 * row + 4, offset as u32);
            image.u32(record, (entry - TEXT) as u32);
            record + 4
        };
        for field in [function_names[i], 0, 0, depth_at, 0, 0, 3] {
            image.u32(at, field);
            at += 4;
        }
        at += match format {
            Format::Go12 => 0,
            Format::Go116 | Format::Go118 => 4,
            Format::Go120 => 8,
        };
        image.put(at, &[0, 0, 0, 5]);
        let last = *entry == LIST;
        image.u32(at + 12, if last { inlining_at } else { 0 });
        at += 16;
        let which = if format == Format::Go12 { 4 } else { 3 };
        if old {
            image.address(at.next_multiple_of(8) + 8 * which, INLINE_TREE);
        } else {
            image.u32(at + 4 * which, 0x20);
        }
    }
    if old {
        image.address(table + 16 * 4, END);
    } else {
        image.u32(table + 8 * 4, (END - TEXT) as u32);
    }
    // Inline tree: node 0 is called at +4 of the function, node 1 at +0x11, where node 0 is.
    for (i, (name, parent)) in inlined_names.iter().zip([4u32, 0x11]).enumerate() {
        let (size, name_at, parent_at) = if format < Format::Go120 { (20, 12, 16) } else { (16, 4, 8) };
        image.u32(INLINE_TREE + size * i as u64 + name_at, *name);
        image.u32(INLINE_TREE + size * i as u64 + parent_at, parent);
    }
    image.address(MODULEDATA, PCLNTAB);
    let (text, min_pc) = if format == Format::Go12 { (96, 80) } else { (176, 160) };
    for (field, value) in [(min_pc, TEXT), (text, TEXT), (text + 8, END)] {
        image.address(MODULEDATA + field, value);
    }
    match format {
        Format::Go118 => image.address(MODULEDATA + 304, INLINE_TREE - 0x20),
        Format::Go120 => image.address(MODULEDATA + 344, INLINE_TREE - 0x20),
        _ => {}
    }
    for (i, (tag, value)) in
        [(7, RELA), (8, 24 * image.relocations.len() as u64), (0, 0)].into_iter().enumerate()
    {
        image.word(DYNAMIC + 16 * i as u64, tag);
        image.word(DYNAMIC + 16 * i as u64 + 8, value);
    }
    for (i, (at, value)) in std::mem::take(&mut image.relocations).into_iter().enumerate() {
        let entry = RELA + 24 * i as u64;
        image.word(entry, at);
        image.word(entry + 8, 8);
        image.word(entry + 16, value);
    }
    image.bytes
}

fn each(mut check: impl FnMut(Format, &str, bool, &GoBinary<'_>)) {
    for (format, version) in ALL {
        for relocated in [false, true] {
            let bytes = program(format, version, relocated);
            let binary = GoBinary::parse(&bytes)
                .unwrap_or_else(|why| panic!("{format:?} {version} relocated {relocated}: {why}"));
            check(format, version, relocated, &binary);
        }
    }
}

#[test]
fn all_formats_are_read_with_and_without_relocations() {
    each(|format, version, relocated, binary| {
        let what = format!("{format:?} relocated {relocated}");
        assert_eq!(binary.functions.format(), format, "{what}");
        assert_eq!(binary.build.go, version, "{what}");
        assert_eq!(binary.build.version.as_deref(), (format >= Format::Go118).then_some("v1.2.3"), "{what}");
        assert_eq!(binary.functions.moduledata, Some(MODULEDATA), "{what}");
        let found: Vec<(String, u64)> = (0..binary.functions.len() as u32)
            .filter_map(|i| binary.functions.function(i))
            .map(|f| (binary.name(f), f.entry))
            .collect();
        assert_eq!(found, FUNCTIONS.map(|(name, at)| (name.to_owned(), at)), "{what}");
        assert_eq!(binary.functions.function_at(LIST - 1).unwrap().entry, ACQUIRE, "{what}");
        assert_eq!(binary.functions.function_at(END), None, "{what}");
        assert_eq!(binary.functions.function_at(TEXT - 1), None, "{what}");
    });
}

#[test]
fn inlined_frames_and_stack_depths_are_restored() {
    let name = |i: usize| FUNCTIONS[i].0.to_owned();
    let inlined = |i: usize| Frame { name: INLINED[i].to_owned(), inlined: true, ..Frame::default() };
    each(|format, _, relocated, binary| {
        let what = format!("{format:?} relocated {relocated}");
        let list = Frame { name: name(3), ..Frame::default() };
        assert_eq!(binary.frames(LIST + 0x14), [inlined(1), inlined(0), list.clone()], "{what}");
        assert_eq!(binary.frames(LIST + 0x11), [inlined(0), list.clone()], "{what}");
        assert_eq!(binary.frames(LIST + 4), [list], "{what}");
        assert_eq!(binary.frames(ACQUIRE + 4), [Frame { name: name(2), ..Frame::default() }], "{what}");
        assert!(binary.frames(END).is_empty(), "{what}");
        assert_eq!(binary.inlined_into(&[INLINED[1], "main.main"]), [1, 0], "{what}");
        let list = binary.functions.function_at(LIST).unwrap();
        let depths = [5, 6, 0x35, 0x36].map(|at| binary.functions.stack_depth(list, LIST + at));
        assert_eq!(depths, [Some(0), Some(56), Some(56), None], "{what}");
    });
}

#[test]
fn probes_are_resolved_by_suffix() {
    use crate::event::{Kind, Role};
    use crate::golang::catalog;
    use crate::golang::probe_site::How;
    each(|format, _, relocated, binary| {
        let what = format!("{format:?} relocated {relocated}");
        assert_eq!(catalog::roles(binary), [Role::Containerd], "{what}");
        let resolved = catalog::resolve(binary, Role::Containerd);
        let list = resolved.iter().find(|r| r.entry.method == "ListContainers").unwrap();
        assert_eq!(list.function.as_ref().unwrap().1.entry, LIST, "{what}");
        let ends: Vec<_> = list.ends.as_ref().unwrap().iter().map(|s| (s.va, s.file_offset, s.how)).collect();
        assert_eq!(ends, [(LIST + 0x1c, LIST + 0x1c - BASE, How::Nop)], "{what}");
        let wait = resolved.iter().find(|r| r.entry.kind == Kind::LockWait).unwrap();
        assert_eq!(wait.ends.as_ref().unwrap()[0].how, How::Call, "{what}");
        // The code is that of the new convention; on the old one nothing has loaded g.
        match format {
            Format::Go12 => assert!(wait.begin.is_err(), "{what}"),
            _ => assert_eq!(wait.begin.as_ref().unwrap().va, ACQUIRE + 4, "{what}"),
        }
        let absent = resolved.iter().find(|r| r.entry.kind == Kind::ShimCall).unwrap();
        let reason = absent.begin.as_ref().unwrap_err().to_string();
        assert!(
            reason.contains("no function github.com/containerd/ttrpc.(*Client).Call"),
            "{what}: {reason}"
        );
    });
}

/// Runs everything there is over a file.
fn exercise(bytes: &[u8]) {
    use crate::event::Role;
    use crate::golang::catalog;
    let Ok(binary) = GoBinary::parse(bytes) else { return };
    let _ = (binary.build_id(), binary.abi(), binary.offsets());
    catalog::roles(&binary);
    binary.inlined_into(&[INLINED[0]]);
    for role in [Role::Containerd, Role::Shim, Role::Kubelet] {
        catalog::resolve(&binary, role);
    }
    for pc in (TEXT..END + 8).chain([0, u64::MAX]) {
        binary.frames(pc);
        if let Some(function) = binary.functions.function_at(pc) {
            binary.functions.stack_depth(function, pc);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A damaged or hostile file never makes the reader panic or run away.
    #[test]
    fn damaged_files_are_survived(
        which in 0..ALL.len(),
        relocated: bool,
        // Places among the bytes that mean something, and what is put there.
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>(), Just(0u8), Just(0xffu8), Just(0x7fu8), Just(0x80u8),
        ], 1usize..9), 1..6),
        cut in prop::option::of(0..SIZE),
    ) {
        let (format, version) = ALL[which];
        let mut bytes = program(format, version, relocated);
        let meaning: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] != 0).collect();
        for (place, value, count) in damage {
            let at = meaning[place.index(meaning.len())];
            for byte in bytes.iter_mut().skip(at).take(count) {
                *byte = value;
            }
        }
        bytes.truncate(cut.unwrap_or(SIZE));
        exercise(&bytes);
    }

    /// Any bytes as code.
    #[test]
    fn any_code_is_survived(code in prop::collection::vec(any::<u8>(), 0..200), entry: u64) {
        use crate::golang::offsets::Abi;
        use crate::golang::probe_site::{Code, RuntimeCalls};
        if let Ok(code) = Code::decode(&code, entry, 0) {
            let runtime = RuntimeCalls { grow_stack: vec![entry], short: vec![entry] };
            let _ = (code.begin(Abi::Stack, &runtime), code.begin(Abi::Register, &runtime));
            let _ = (code.ends(false, &runtime), code.ends(true, &runtime), code.string_field());
        }
    }
}
