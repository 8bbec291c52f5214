//! Both halves must see the ABI's structs alike: what this machine's compiler makes of them is compared with the BTF of
//! the built object, field by field.

#![allow(clippy::expect_used, reason = "a test stops where it cannot go on")]

mod btf;

use btf::{Field, Layout};
use std::fs;
use std::mem::offset_of;
use std::path::Path;
use tracer_common::{op, record, settings};

/// The layout of a struct on this side; every field must be named.
macro_rules! layout {
    ($path:path as $name:ident { $($field:ident),* $(,)? }) => {{
        type Struct = $path;
        // A field that is not named here does not compile.
        let _ = |Struct { $($field: _),* }: Struct| ();
        Layout {
            name: stringify!($name).into(),
            size: size_of::<Struct>(),
            fields: vec![$(Field {
                name: stringify!($field).into(),
                offset: offset_of!(Struct, $field),
                size: Some(size_of_field(|it: &Struct| &it.$field)),
            }),*],
        }
    }};
}

fn size_of_field<S, F>(_: impl Fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// Everything that crosses between the halves.
fn abi() -> Vec<Layout> {
    vec![
        layout!(op::Key as Key { tgid, what, actor, object }),
        layout!(op::Wait as Wait { key, begin, goid, object, tid, flags }),
        layout!(op::Op as Op {
            key, begin, end, g, goid, object, tid, flags, dev, errno, text_len, name_len, text, name,
        }),
        layout!(record::Header as Header { kind, size, at }),
        layout!(record::WaitEnded as WaitEnded { header, wait }),
        layout!(record::OpEnded as OpEnded { header, op }),
        layout!(record::Woken as Woken { header, wait, by, by_goid, by_tid, pad }),
        layout!(record::ProcessGone as ProcessGone { header, tgid, pad }),
        layout!(settings::Process as Process { binary, goid_offset, bias }),
        layout!(settings::Site as Site { binary, end, address }),
    ]
}

/// The structs of the built object.
fn built() -> Vec<Layout> {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tracer-ebpf/prebuilt/plegscope.bpf.o");
    btf::layouts(&fs::read(object).expect("the built object; make it: cargo xtask bpf"))
        .expect("readable BTF")
}

/// What is wrong with `built` if it is to have exactly the layout `ours`.
fn differences(ours: &Layout, built: &[Layout]) -> Vec<String> {
    let name = &ours.name;
    let theirs: Vec<&Layout> = built.iter().filter(|layout| layout.name == *name).collect();
    match theirs[..] {
        [] => vec![format!("{name} is not in the object's BTF; add it to tracer-ebpf/src/abi.rs")],
        [theirs] if theirs == ours => vec![],
        [theirs] => vec![format!("{name} differs:\n  user half   {ours:?}\n  kernel half {theirs:?}")],
        _ => vec![format!("the object has {} structs named {name}", theirs.len())],
    }
}

#[test]
fn both_halves_lay_the_abi_out_alike() {
    let built = built();
    let differences: Vec<String> = abi().iter().flat_map(|ours| differences(ours, &built)).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_layout_that_differs_is_found() {
    let built = built();
    let ours = || layout!(op::Wait as Wait { key, begin, goid, object, tid, flags });
    assert!(differences(&ours(), &built).is_empty());

    let mut larger = ours();
    larger.size += 8;
    let mut swapped = ours();
    swapped.fields.swap(4, 5);
    let mut moved = ours();
    moved.fields[1].offset += 4;
    let mut narrower = ours();
    narrower.fields[5].size = Some(2);
    let mut missing = ours();
    missing.fields.pop();
    let mut absent = ours();
    absent.name = "Nowhere".into();
    for bad in [larger, swapped, moved, narrower, missing, absent] {
        assert_eq!(differences(&bad, &built).len(), 1, "{bad:?}");
    }
}

#[test]
fn no_struct_has_padding_without_a_name() {
    for layout in abi() {
        let mut end = 0;
        for field in &layout.fields {
            assert_eq!(field.offset, end, "padding before {}.{}", layout.name, field.name);
            end = field.offset + field.size.unwrap();
        }
        assert_eq!(end, layout.size, "padding at the end of {}", layout.name);
    }
}

#[test]
fn every_struct_with_c_layout_is_compared() {
    let compared: Vec<String> = abi().into_iter().map(|layout| layout.name).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = 0;
    for entry in fs::read_dir(source).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for after in text.split("#[repr(C)]").skip(1) {
            let Some((_, rest)) = after.split_once("pub struct ") else { continue };
            let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            assert!(compared.iter().any(|known| known == name), "{name} is not in abi() of this test");
            found += 1;
        }
    }
    assert_eq!(found, compared.len());
}

#[test]
fn broken_btf_is_refused_not_believed() {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tracer-ebpf/prebuilt/plegscope.bpf.o");
    let whole = fs::read(object).unwrap();
    assert!(btf::layouts(&whole[..100]).is_err());
    let mut wrong_magic = whole.clone();
    let magic = [0x9f, 0xeb, 1, 0];
    let at = whole.windows(4).position(|bytes| bytes == magic).expect("the .BTF section");
    wrong_magic[at] = 0;
    assert!(btf::layouts(&wrong_magic).is_err());
}
