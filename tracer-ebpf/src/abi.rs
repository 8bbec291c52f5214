//! Puts the layout of everything that user space reads or writes into the object's BTF.
//!
//! BTF has only the types of globals and function signatures, and a map's key and value are neither. A test of
//! `tracer-common` compares these layouts with what the user half's compiler made of the same source.

use tracer_common::{
    op::{Key, Op, Wait},
    record::{Header, OpEnded, ProcessGone, WaitEnded, Woken},
    settings::{Process, Site},
};

/// One of each.
#[repr(C)]
pub struct Abi {
    key: Key,
    wait: Wait,
    op: Op,
    header: Header,
    wait_ended: WaitEnded,
    op_ended: OpEnded,
    woken: Woken,
    process_gone: ProcessGone,
    process: Process,
    site: Site,
}

/// Called by nobody, so it is never loaded; being exported keeps its signature in the BTF.
#[unsafe(no_mangle)]
pub extern "C" fn plegscope_abi(_: &Abi) -> u32 {
    0
}
