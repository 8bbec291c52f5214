//! The few calls of bpf(2) that aya 0.14 does not offer: batch reads of a hash map (its iteration shows entries twice
//! under churn), uprobe-multi links (one call and one detach for all sites of a binary), single uprobes for programs that
//! aya has not loaded, and bare program loads.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};
use tracer_common::record::Plain;

/// `BPF_PROG_TYPE_KPROBE`: kprobes and uprobes.
pub const PROGRAM_KPROBE: u32 = 2;
/// `BPF_PROG_TYPE_TRACING`: fentry and fexit.
pub const PROGRAM_TRACING: u32 = 26;
/// `BPF_PROG_TYPE_TRACEPOINT`.
pub const PROGRAM_TRACEPOINT: u32 = 5;
/// `BPF_PROG_TYPE_RAW_TRACEPOINT`.
pub const PROGRAM_RAW_TRACEPOINT: u32 = 17;
/// `BPF_TRACE_FENTRY`.
pub const ATTACH_FENTRY: u32 = 24;
/// `BPF_TRACE_FEXIT`.
pub const ATTACH_FEXIT: u32 = 25;
/// `BPF_TRACE_UPROBE_MULTI` (kernel 6.6).
pub const ATTACH_UPROBE_MULTI: u32 = 48;
/// `BPF_PERF_EVENT` (kernel 5.15).
const ATTACH_PERF_EVENT: u32 = 41;
/// `BPF_MAP_TYPE_RINGBUF` (kernel 5.8).
pub const MAP_RINGBUF: u32 = 27;

const MAP_CREATE: i64 = 0;
const PROG_LOAD: i64 = 5;
const MAP_DELETE_ELEM: i64 = 3;
const MAP_LOOKUP_BATCH: i64 = 24;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const LINK_CREATE: i64 = 28;

/// One BPF instruction.
pub type Instruction = aya_obj::generated::bpf_insn;

fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: `attributes` is a repr(C) prefix of the kernel's `union bpf_attr` and lives through the call; the size
    // passed is its own, so the kernel reads and writes no further.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    let raw = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just handed out this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Lifts this process's limit of locked memory. Kernels before 5.11 count all BPF memory of the user against it: beside
/// another BPF program of root, 64 KiB are used up and even the smallest program is refused with EPERM. Not being allowed
/// to lift it is no error: newer kernels do not need it, and on older ones the next refusal tells.
pub fn lift_memory_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: one valid struct, which lives through the call.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// What else may be behind a refused map where programs are allowed: the limit could not be lifted. Empty when it is not
/// limited.
pub fn memory_limit_hint() -> String {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: one valid struct to write to.
    let told = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } == 0;
    if !told || limit.rlim_cur == libc::RLIM_INFINITY {
        return String::new();
    }
    format!(
        "kernels before 5.11 count BPF memory against RLIMIT_MEMLOCK, which is {} kB here; set it to unlimited, or add \
         CAP_SYS_RESOURCE",
        limit.rlim_cur >> 10
    )
}

/// A program to load.
pub struct Program<'a> {
    /// `BPF_PROG_TYPE_*`.
    pub kind: u32,
    /// `BPF_TRACE_*`, or 0.
    pub attach: u32,
    /// Its code, maps relocated.
    pub code: &'a [Instruction],
    /// Number of the kernel function's type, for tracing programs; or 0.
    pub function: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// Loads a program; `log` takes what the verifier says at this level.
fn attempt(program: &Program<'_>, level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        prog_type: program.kind,
        insn_cnt: u32::try_from(program.code.len()).map_err(io::Error::other)?,
        insns: program.code.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: program.attach,
        attach_btf_id: program.function,
        ..ProgLoad::default()
    };
    if !log.is_empty() {
        attributes.log_level = level;
        attributes.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
        attributes.log_buf = log.as_mut_ptr() as u64;
    }
    owned(bpf(PROG_LOAD, &mut attributes)?)
}

fn text(log: &[u8]) -> String {
    String::from_utf8_lossy(log.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// Loads a program; on refusal the error carries the end of the verifier's log.
pub fn load(program: &Program<'_>) -> io::Result<OwnedFd> {
    attempt(program, 0, &mut []).or_else(|error| {
        if error.raw_os_error() != Some(libc::EACCES) {
            return Err(error);
        }
        let mut log = vec![0u8; 1 << 20];
        attempt(program, 1, &mut log).map_err(|error| {
            let text = text(&log);
            let last: Vec<&str> = text.lines().rev().take(12).collect();
            io::Error::new(
                error.kind(),
                format!("{error}; {}", last.into_iter().rev().collect::<Vec<_>>().join(" | ")),
            )
        })
    })
}

/// Loads a program and lets go of it; how many instructions the verifier looked at (`BPF_LOG_STATS`, kernel 5.2).
pub fn count_instructions(program: &Program<'_>) -> io::Result<u64> {
    const STATISTICS: u32 = 4;
    let mut log = vec![0u8; 1 << 14];
    attempt(program, STATISTICS, &mut log)?;
    let text = text(&log);
    let count =
        text.lines().find_map(|line| line.strip_prefix("processed ")?.split(' ').next()?.parse().ok());
    count.ok_or_else(|| io::Error::other(format!("the verifier told no count: {text}")))
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// How often the kernel did not run a program because the processor was in the middle of it, or of another one
/// (`__bpf_prog_enter_recur`, `trace_call_bpf`): programs of fentry and fexit, and since 6.13 those of the tracepoints of
/// system calls, can be preempted, and the thread that runs then gets no turn. Not counted before 5.12, where 0 is told.
pub fn skipped(program: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all fields are integers or arrays and bits of them, for which zeros are valid.
    let mut info: aya_obj::generated::bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = InfoByFd {
        bpf_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        info_len: u32::try_from(size_of_val(&info)).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.recursion_misses)
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// Creates a ring buffer of one page, to find out whether there are any.
pub fn create_ring_buffer() -> io::Result<OwnedFd> {
    owned(bpf(
        MAP_CREATE,
        &mut MapCreate { map_type: MAP_RINGBUF, max_entries: 4096, ..MapCreate::default() },
    )?)
}

#[repr(C)]
#[derive(Default)]
struct LinkUprobeMulti {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    pad: u32,
}

/// Attaches a program at many file offsets of one executable, for all processes, each with its cookie.
pub fn link_uprobe_multi(
    program: BorrowedFd<'_>,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
) -> io::Result<OwnedFd> {
    if offsets.len() != cookies.len() {
        return Err(io::Error::other("one cookie is needed for each offset"));
    }
    let mut attributes = LinkUprobeMulti {
        prog_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_UPROBE_MULTI,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        cnt: u32::try_from(offsets.len()).map_err(io::Error::other)?,
        ..LinkUprobeMulti::default()
    };
    owned(bpf(LINK_CREATE, &mut attributes)?)
}

/// `struct perf_event_attr` in its second version; most of it is of no use here.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    size: u32,
    unused: [u64; 6],
    config1: u64,
    config2: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkPerfEvent {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// The number by which this kernel knows uprobes, or kprobes, as events.
pub fn probe_events(name: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/sys/bus/event_source/devices/{name}/type"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Opens a dynamic probe, for all processes (-1) on processor 0: its program runs wherever it is hit.
fn open_probe(events: u32, place: &CStr, offset: u64) -> io::Result<OwnedFd> {
    const CLOSE_ON_EXEC: u64 = 8;
    let event = PerfEvent {
        kind: events,
        size: size_of::<PerfEvent>() as u32,
        config1: place.as_ptr() as u64,
        config2: offset,
        ..PerfEvent::default()
    };
    // SAFETY: the struct tells its size and lives through the call, as does the text.
    let event =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const event, -1, 0, -1, CLOSE_ON_EXEC) };
    if event < 0 { Err(io::Error::last_os_error()) } else { owned(event) }
}

/// Opens a kprobe at the begin of a kernel function.
pub fn open_kprobe(events: u32, function: &CStr) -> io::Result<OwnedFd> {
    open_probe(events, function, 0)
}

/// Attaches a program at one file offset of an executable, for all processes; with a cookie where the kernel has those.
pub fn link_uprobe(
    events: u32,
    program: BorrowedFd<'_>,
    path: &CStr,
    offset: u64,
    cookie: Option<u64>,
) -> io::Result<OwnedFd> {
    const SET_BPF: u64 = 0x4004_2408;
    const ENABLE: u64 = 0x2400;
    let event = open_probe(events, path, offset)?;
    if let Some(cookie) = cookie {
        // The link keeps the event.
        let mut attributes = LinkPerfEvent {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: event.as_raw_fd() as u32,
            attach_type: ATTACH_PERF_EVENT,
            cookie,
            ..LinkPerfEvent::default()
        };
        return owned(bpf(LINK_CREATE, &mut attributes)?);
    }
    for (request, argument) in [(SET_BPF, program.as_raw_fd()), (ENABLE, 0)] {
        // SAFETY: takes numbers only.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(event)
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Removes an entry from a map; one that is not there is no error.
pub fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attributes = MapElement {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        ..MapElement::default()
    };
    match bpf(MAP_DELETE_ELEM, &mut attributes) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

#[repr(C)]
#[derive(Default)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads all values of a hash map into `values`, in batches of buckets: each entry that stays in the map during the read
/// is reported exactly once. `keys` is scratch space.
pub fn read_all<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<()> {
    const MOST: usize = 512;
    values.clear();
    let mut position = [0u8; 64];
    let mut first = true;
    loop {
        keys.clear();
        keys.reserve(MOST);
        values.reserve(MOST);
        let mut next = [0u8; 64];
        let mut attributes = MapBatch {
            in_batch: if first { 0 } else { position.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.spare_capacity_mut().as_mut_ptr() as u64,
            count: MOST as u32,
            map_fd: map.as_raw_fd() as u32,
            ..MapBatch::default()
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut attributes);
        let done = match &result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(_) => {
                result?;
                true
            }
        };
        let read = (attributes.count as usize).min(MOST);
        // SAFETY: the kernel has written `read` values behind the old length, within the reserved capacity, and any
        // bytes are a valid `V`.
        unsafe { values.set_len(values.len() + read) };
        if done {
            return Ok(());
        }
        position = next;
        first = false;
    }
}

/// The machine code that the kernel made of a loaded program; empty where it does not show it.
#[cfg(test)]
pub fn machine_code(program: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    const OBJ_GET_INFO_BY_FD: i64 = 15;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_len: u32,
        xlated_len: u32,
        jited: u64,
    }
    #[repr(C)]
    struct Get {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut code = vec![0u8; 1 << 16];
    let mut info = Info { jited_len: code.len() as u32, jited: code.as_mut_ptr() as u64, ..Info::default() };
    let mut attributes =
        Get { fd: program.as_raw_fd() as u32, len: size_of::<Info>() as u32, info: &raw mut info as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    code.truncate(if info.jited == 0 { 0 } else { info.jited_len as usize });
    Ok(code)
}
