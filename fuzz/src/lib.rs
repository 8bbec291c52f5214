//! What is fuzzed: one function per parser of bytes that somebody else has chosen. None may panic, hang, or want more
//! memory than its bound; what more must hold is asserted here.
//!
//! `cargo xtask fuzz` runs them under libFuzzer; the tests below run them on stable Rust, on what was found once
//! (`regressions/`) and on a few bytes.

use std::io::Cursor;
use std::path::Path;
use std::sync::OnceLock;
use tracer::bpf::btf::Btf;
use tracer::capture::replay::{Replay, Told};
use tracer::capture::{Line, Player, Reader, player::Speed, player::Wait, reader};
use tracer::event::Ns;
use tracer::golang::goroutines::{Limits, Looker};
use tracer::golang::layout::Layout;
use tracer::golang::unwind::Memory;
use tracer::golang::{GoBinary, catalog, health};
use tracer::node::{bundle, cgroups, disk, kubelet, locks, mounts, pressure, procs, stalls, threads, writers};
use tracer::thresholds::{SECOND, Thresholds};
use tracer::{decode, sinks};

/// Lines that are played of one input: a capture is as long as it is, an input should be quick.
const MOST_LINES: usize = 200;

/// A capture file: read, salvaged, played. What is read without complaint is read the same by a salvaging reader.
pub fn capture(data: &[u8]) {
    let _ = reader::last_time(&mut Cursor::new(data));
    let strict: Option<Vec<Line>> =
        Reader::new(data).ok().and_then(|reader| reader.take(MOST_LINES).collect::<Result<_, _>>().ok());
    let salvaged = Reader::salvage(Cursor::new(data));
    if let Some(strict) = strict {
        let salvaged: Vec<Line> = salvaged
            .expect("what can be read can be salvaged")
            .take(MOST_LINES)
            .map_while(Result::ok)
            .collect();
        assert_eq!(strict, salvaged);
        play(strict);
    } else if let Ok(salvaged) = salvaged {
        play(salvaged.take(MOST_LINES).map_while(Result::ok).collect());
    }
}

/// The lines of a capture, without the frames around them, which hardly any change of a byte survives.
pub fn lines(data: &[u8]) {
    let header = Line::Header(tracer::capture::Header {
        version: tracer::capture::VERSION,
        thresholds: Thresholds::DEFAULT,
        ..Default::default()
    });
    let mut text = serde_json::to_vec(&header).expect("plain data");
    text.push(b'\n');
    text.extend(data);
    let bytes = zstd::bulk::compress(&text, 1).expect("into memory");
    capture(&bytes);
}

/// Twice the same frames, and whatever is in them can be told to a terminal.
fn play(lines: Vec<Line>) {
    let thresholds = || Thresholds::DEFAULT;
    let frames = |lines: &[Line]| {
        let mut replay = Replay::new(thresholds());
        let mut out = Vec::new();
        let mut clock: Ns = 0;
        for line in lines.iter().cloned() {
            // Ten thousand years of ticks are no finding.
            if let Line::Heard(at) = line {
                if clock > 0 && at > clock.saturating_add(3_600 * SECOND) {
                    break;
                }
                clock = at;
            }
            replay.line(line, |told| {
                if let Told::Frame(frame) = told {
                    for line in sinks::text::frame(&frame) {
                        assert!(!line.chars().any(char::is_control), "{line:?}");
                    }
                    out.extend(sinks::json::line(&frame).expect("plain data"));
                }
            });
        }
        out
    };
    assert_eq!(frames(&lines), frames(&lines));
}

/// Bytes as the kernel half hands them out.
pub fn record(data: &[u8]) {
    use tracer_common::record::Record;
    match Record::read(data) {
        Some(Record::WaitEnded(ended)) => drop(decode::wait(&ended.wait)),
        Some(Record::OpEnded(ended)) => {
            let _ = decode::outcome(&ended.op);
            if let Some(op) = decode::op(&ended.op, |_, _| "") {
                assert!(op.container.is_none_or(|id| decode::is_container_id(id.as_bytes())));
            }
        }
        _ => {}
    }
}

/// An executable: is it Go, which, where are its functions, what can be probed.
pub fn elf(data: &[u8]) {
    let Ok(binary) = GoBinary::parse(data) else { return };
    let _ = (binary.build_id(), binary.offsets(), health::of(&binary), Layout::of(&binary));
    for role in catalog::roles(&binary) {
        let _ = catalog::resolve(&binary, role);
    }
    for pc in [0, binary.functions.text_base(), binary.functions.text_base().wrapping_add(0x40), u64::MAX] {
        let _ = binary.frames_with_lines(pc);
    }
}

/// Memory whose words are those of the input, wherever they are read.
struct Bytes<'a>(&'a [u8]);

impl Memory for Bytes<'_> {
    fn word(&mut self, address: u64) -> Option<u64> {
        let words = self.0.len() / 8;
        // Neighbours stay neighbours, so that structures can be made up; every 17th page cannot be read.
        if words == 0 || (address >> 12).is_multiple_of(17) {
            return None;
        }
        let at = (address / 8 % words as u64) as usize * 8;
        self.0.get(at..at + 8)?.first_chunk().map(|word| u64::from_le_bytes(*word))
    }
}

/// The memory of a Go program: its goroutines, their stacks, its table of semaphores.
pub fn goroutines(data: &[u8]) {
    /// A Go program, named by the environment: `cargo xtask fuzz` builds one.
    static PROGRAM: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| std::fs::read(std::env::var_os("PLEGSCOPE_FUZZ_GO")?).ok());
    let Some(program) = program else { return };
    let binary = GoBinary::parse(program).expect("PLEGSCOPE_FUZZ_GO is a Go program");
    let layout = Layout::of(&binary).expect("of a version that is known");
    let limits = Limits {
        goroutines: 64,
        frames: 64,
        stack_bytes: 4096,
        words: 4096,
        waiters: 64,
        now: 1 << 40,
        ..Limits::default()
    };
    if let Ok(look) = Looker::new(&binary, &layout, limits).look(0, &mut Bytes(data)) {
        assert!(look.goroutines.len() <= 64);
    }
}

/// Text that the kernel writes and workloads have a hand in.
pub fn proc(data: &[u8]) {
    let mounts = mounts::Mounts::parse(data);
    for mount in mounts.iter().take(4) {
        let _ = (mounts.holding(&mount.point), mounts.overlay_at(&mount.point), mounts.at(&mount.point));
        let _ = bundle::BundleId::of_path(&mount.point);
    }
    let _ = (disk::parse_stats(data), disk::parse_devname(data));
    let _ = (disk::parse_unwritten(data), pressure::total(data, b"some "));
    let _ = (cgroups::parse_membership(data), cgroups::parse_quota(data), cgroups::value(data, b"frozen"));
    let _ = (procs::parse_stat(data), procs::parse_entry_point(data));
    let _ = (procs::parse_innermost_pid(data), procs::parse_last_pid(data));
    let _ = stalls::parse_schedstat(data);
    let _ = (threads::parse_syscall(data), threads::parse_arguments(data));
    let _ = (threads::parse_stack(data), threads::parse_wchan(data));
    for version in [cgroups::Version::V1, cgroups::Version::V2] {
        let _ = writers::parse_memory_stat(version, data);
    }
    let _ = (writers::parse_io_stat(data), locks::container_id(data));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (kubelet::go_duration(text), decode::container_id(text), cgroups::container(text));
        let _ = cgroups::is_pod(text);
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let _ = kubelet::flag_of(&words, "cpu-manager-policy");
        assert!(!sinks::sanitise(text).chars().any(char::is_control));
    }
}

/// The configuration of a container, which is written by whoever makes it.
pub fn config(data: &[u8]) {
    let _ = bundle::parse_config(data);
}

/// The kernel's description of its types.
pub fn btf(data: &[u8]) {
    if let Ok(btf) = Btf::parse(data) {
        let _ = (btf.size_of("task_struct"), btf.offset_of("task_struct", "thread.fsbase"));
        let _ = (btf.functions(&["path_umount"]), btf.function_id("cleanup_mnt"));
    }
}

/// Jumps about in a capture.
pub fn jump(path: &Path) {
    let Ok(mut player) = Player::open(path, true) else { return };
    player.set_speed(Speed::Max);
    let (begin, end) = player.span();
    for part in [7, 3, 9, 0] {
        if player.seek(begin + (end.saturating_sub(begin) / 10) * part).is_err() {
            return;
        }
        while player.is_jumping() && player.wait() != Wait::Over {
            if player.play(std::time::Duration::ZERO, |_| {}).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// All targets by name.
    const TARGETS: [(&str, fn(&[u8])); 8] = [
        ("capture", super::capture),
        ("lines", super::lines),
        ("record", super::record),
        ("elf", super::elf),
        ("goroutines", super::goroutines),
        ("proc", super::proc),
        ("config", super::config),
        ("btf", super::btf),
    ];

    #[test]
    fn every_target_has_a_file_and_takes_what_was_found_once() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (name, target) in TARGETS {
            assert!(root.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
            for bytes in [&b""[..], b"\0", b"{}\n", &[0x28, 0xb5, 0x2f, 0xfd], &[0xff; 300]] {
                target(bytes);
            }
            for entry in std::fs::read_dir(root.join("regressions").join(name)).into_iter().flatten() {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
            }
        }
        assert_eq!(std::fs::read_dir(root.join("fuzz_targets")).unwrap().count(), TARGETS.len());
    }
}
