//! B3: from the start until all probes are attached, and from Ctrl-C until the prompt is back.

use super::peer::Bpftrace;
use super::table::Table;
use crate::lab::Lab;
use crate::lab::QUIT_WITHIN;
use crate::lab::cleanup::Ledger;
use crate::lab::containerd::Programs;
use crate::lab::tracer::Tracer;
use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SegmentFlags, SymbolKind};
use std::path::{Path, PathBuf};

/// How many ready-made addresses bpftrace is handed.
const ADDRESSES: usize = 8;

/// Runs the bench beside a containerd with three pods.
pub async fn measure(
    ledger: &Ledger,
    programs: Programs,
    scope: Option<&Path>,
    rounds: u64,
) -> Result<Table> {
    let mut say = |text: &str| println!("{text}");
    let lab = Lab::prepare(ledger, programs, 0, &mut say).await?;
    let exe = |pid: u32| -> Result<PathBuf> {
        std::fs::read_link(format!("/proc/{pid}/exe"))
            .with_context(|| format!("reading the program of pid {pid}"))
    };
    let daemon = exe(lab.containerd.pid)?;
    let shim = exe(lab.containerd.shim_of(&lab.victim().container)?)?;
    let mut script = String::new();
    for path in [&daemon, &shim] {
        let entries = function_entries(path, ADDRESSES / 2)?;
        for (index, address) in entries.iter().enumerate() {
            script.push_str(&probe(path, *address, index / 2, index % 2 == 0));
        }
    }
    let (mut peer, mut peer_quit, mut own, mut own_quit) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut said = String::new();
    let ms = |ns: u64| ns as f64 / 1e6;
    for round in 0..rounds {
        let bpftrace = Bpftrace::start(ledger, &script, &lab.run).await?;
        peer.push(ms(bpftrace.attached_after));
        peer_quit.push(ms(bpftrace.quit().await?));
        if let Some(scope) = scope {
            let mut tracer = Tracer::start(ledger, scope, &["live", "--plain"], |_, _| {})?;
            let ready = tracer.ready().await?;
            own.push(ms(ready.at - tracer.started));
            said = ready.text;
            let (code, took, ..) = tracer.quit().await?;
            ensure!(code == Some(0), "plegscope ended with exit code {code:?}");
            own_quit.push(ms(took));
        }
        let last = |values: &[f64]| values.last().map_or("-".to_owned(), |value| format!("{value:.0}"));
        println!("round {} of {rounds}: bpftrace {} ms, plegscope {} ms", round + 1, last(&peer), last(&own));
    }
    lab.finish().await;

    let mut table = Table {
        title: "B3: time until attached, and until the prompt is back".to_owned(),
        rows: Vec::new(),
        goals: Vec::new(),
        notes: vec![format!("in {} and {}", daemon.display(), shim.display())],
    };
    let theirs =
        table.row(format!("bpftrace: start to {ADDRESSES} ready-made addresses attached"), &peer, "ms");
    table.row("bpftrace: Ctrl-C to prompt", &peer_quit, "ms");
    if scope.is_some() {
        let ours = table.row("plegscope: cold start to all probes attached", &own, "ms");
        let quit = table.row("plegscope: Ctrl-C to prompt", &own_quit, "ms");
        table.goal("attached, plegscope / bpftrace", 1.0, ours.median / theirs.median, "");
        table.goal("Ctrl-C to prompt, slowest", QUIT_WITHIN as f64 / 1e6, quit.high, "ms");
        table.notes.push(format!("plegscope said: {said}"));
    }
    Ok(table)
}

/// What plegscope does at a pair of sites, in bpftrace's words: remember the begin, count the duration at the end.
fn probe(path: &Path, address: u64, pair: usize, begin: bool) -> String {
    let (path, key) = (path.display(), format!(r#"@begin{pair}[pid, reg("r14")]"#));
    if begin {
        format!("uprobe:{path}:{address:#x} {{ {key} = nsecs; }}\n")
    } else {
        format!(
            "uprobe:{path}:{address:#x} /{key}/ {{ @took{pair} = hist(nsecs - {key}); delete({key}); }}\n"
        )
    }
}

/// Where some functions of a Go program begin, spread over its code: Go aligns functions to 32 bytes and begins nearly
/// all with the check of the stack's end, `cmp rsp,[r14+16]; jbe`. As bpftrace wants it: an address where the file names
/// its functions, a file offset where it does not.
fn function_entries(path: &Path, count: usize) -> Result<Vec<u64>> {
    const CHECK: [u8; 5] = [0x49, 0x3b, 0x66, 0x10, 0x0f];
    const EXECUTE: u32 = 1;
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {} as ELF", path.display()))?;
    let named = file
        .symbols()
        .chain(file.dynamic_symbols())
        .any(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
    let mut found = Vec::new();
    for segment in file.segments() {
        let executable = matches!(segment.flags(), SegmentFlags::Elf { p_flags } if p_flags & EXECUTE != 0);
        let Ok(data) = segment.data() else { continue };
        if executable {
            let places = (0..data.len()).step_by(32).filter(|at| data[*at..].starts_with(&CHECK));
            let base = if named { segment.address() } else { segment.file_range().0 };
            found.extend(places.map(|at| base + at as u64));
        }
    }
    ensure!(found.len() >= count, "{} is no Go program for x86-64 with register calls", path.display());
    Ok((0..count).map(|index| found[index * found.len() / count]).collect())
}

/// The first instructions of the functions in which these file offsets lie, as bpftrace wants them: a file offset where
/// the program does not name its functions, an address where it does. Known by how Go's functions begin.
pub fn functions_of(path: &Path, sites: &[u64]) -> Result<Vec<u64>> {
    const CHECK: [&[u8]; 3] =
        [&[0x49, 0x3b, 0x66, 0x10], &[0x4c, 0x8d, 0x64, 0x24], &[0x4c, 0x8d, 0xa4, 0x24]];
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {} as ELF", path.display()))?;
    let named = file
        .symbols()
        .chain(file.dynamic_symbols())
        .any(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
    let mut found = std::collections::BTreeSet::new();
    for site in sites {
        let begins = |at: &u64| {
            bytes.get(*at as usize..).is_some_and(|code| CHECK.iter().any(|check| code.starts_with(check)))
        };
        let aligned = site - site % 32;
        let Some(entry) = (0..=aligned / 32).rev().map(|block| block * 32).take(4096).find(begins) else {
            continue;
        };
        let segment = file.segments().find(|segment| {
            let (start, size) = segment.file_range();
            (start..start + size).contains(&entry)
        });
        let segment = segment.context("a site outside of all segments")?;
        found.insert(if named { segment.address() + entry - segment.file_range().0 } else { entry });
    }
    Ok(found.into_iter().collect())
}
