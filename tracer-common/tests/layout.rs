//! dump
mod btf;
#[test]
fn dump() {
    let elf = std::fs::read("../tracer-ebpf/prebuilt/plegscope.bpf.o").unwrap();
    for l in btf::layouts(&elf).unwrap() { println!("{l:?}"); }
}
