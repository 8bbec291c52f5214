//! What is done to the linked object: DWARF is taken out, and nothing of the building machine may be left in it.

use anyhow::{Context, Result, bail};
use object::build::elf::{Builder, SectionData};
use std::path::PathBuf;

/// Takes out DWARF with its relocations; BTF stays. aya needs none of it, and it is ten times the rest.
pub fn strip(elf: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(elf).context("the linker's output is not an ELF object")?;
    if builder.header.e_machine != object::elf::EM_BPF {
        bail!("the linker's output is not for BPF but for machine {}", builder.header.e_machine);
    }
    let mut has_btf = false;
    for section in &mut builder.sections {
        let name = section.name.to_vec();
        has_btf |= name == b".BTF";
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    if !has_btf {
        bail!("the linker's output has no .BTF section");
    }
    builder.delete_orphans();
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        // LLVM keeps the names of sections and symbols in one table; the writer wants two.
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = object::elf::SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    let mut bytes = Vec::new();
    builder.write(&mut bytes).context("the stripped object cannot be written")?;
    Ok(bytes)
}

/// Fails when the object names one of these folders.
pub fn check_no_folders(object: &[u8], folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        let name = folder.as_os_str().as_encoded_bytes();
        if object.windows(name.len()).any(|window| window == name) {
            bail!(
                "the object names {}, so it is not reproducible elsewhere: a path prefix is not renamed in xtask/src/bpf.rs",
                folder.display()
            );
        }
    }
    Ok(())
}

/// Where two objects begin to differ, for a message.
pub fn first_difference(one: &[u8], other: &[u8]) -> String {
    let at = one.iter().zip(other).position(|(a, b)| a != b).unwrap_or(one.len().min(other.len()));
    format!("they differ from byte {at} on")
}
