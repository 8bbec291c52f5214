//! Building the program in every way, running it, and reading what it prints and its memory.

use super::account::{self, Account};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tracer::golang::GoBinary;
use tracer::golang::unwind::Memory;

/// Name, whether with cgo, and arguments of `go build`. With cgo means linked by the C compiler's linker.
const MODES: [(&str, bool, &[&str]); 5] = [
    ("plain", false, &[]),
    ("stripped", false, &["-ldflags=-s -w"]),
    ("stripped-pie", false, &["-buildmode=pie", "-ldflags=-s -w"]),
    ("cgo-stripped", true, &["-ldflags=-linkmode=external -s -w"]),
    ("cgo-stripped-pie", true, &["-buildmode=pie", "-ldflags=-linkmode=external -s -w"]),
];

/// A built program.
pub struct Build {
    pub name: String,
    pub goroot: PathBuf,
    pub path: PathBuf,
}

/// All builds there are; none, and that is said, without toolchains.
pub fn builds() -> &'static [Build] {
    static BUILDS: OnceLock<Vec<Build>> = OnceLock::new();
    BUILDS.get_or_init(build)
}

/// GOROOTs of the toolchains there are, with their names; none, and that is said, without.
pub fn toolchains() -> Vec<(String, PathBuf)> {
    let Some(list) = std::env::var_os("PLEGSCOPE_GO_TOOLCHAINS") else {
        eprintln!("SKIPPED: PLEGSCOPE_GO_TOOLCHAINS is not set; `cargo xtask test` sets it");
        return Vec::new();
    };
    let named = |root: PathBuf| (root.file_name().unwrap().to_string_lossy().into_owned(), root);
    std::env::split_paths(&list).map(named).collect()
}

/// Where what is built is kept.
pub fn kept() -> PathBuf {
    std::env::var_os("PLEGSCOPE_GO_BUILDS")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-builds"), PathBuf::from)
}

/// The `go` command of a toolchain that sees nothing else.
pub fn go(goroot: &Path) -> Command {
    let kept = kept();
    let mut go = Command::new(goroot.join("bin/go"));
    go.env("GOROOT", goroot)
        .env("GOPATH", kept.join("path"))
        .env("GOCACHE", kept.join("cache"))
        .env("CGO_ENABLED", "0")
        .env("GO111MODULE", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "");
    go
}

fn build() -> Vec<Build> {
    let kept = kept();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go_matrix/waits");
    let mut builds = Vec::new();
    for (version, goroot) in toolchains() {
        for (mode, cgo, arguments) in MODES {
            let name = format!("{version}-{mode}");
            let path = kept.join(&name);
            // A build that is up to date costs a tenth of a second.
            let built = go(&goroot)
                .args(["build", "-o"])
                .arg(&path)
                .args(arguments)
                .arg(".")
                .current_dir(&source)
                .env("CGO_ENABLED", if cgo { "1" } else { "0" })
                .output()
                .unwrap();
            assert!(built.status.success(), "{name}: {}", String::from_utf8_lossy(&built.stderr));
            builds.push(Build { name, goroot: goroot.clone(), path });
        }
    }
    builds
}

/// The monotonic clock, ns.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A number as the program prints it.
pub fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

/// Starts a program that may just have been written: what another test's thread forked meanwhile has that file open for
/// writing until it executes something else.
fn spawn(command: &mut Command) -> Child {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            started => return started.unwrap(),
        }
    }
}

/// A line the program printed.
#[derive(Debug)]
pub struct Said(Vec<String>);

impl Said {
    pub fn word(&self, n: usize) -> &str {
        &self.0[n]
    }

    pub fn number(&self, n: usize) -> u64 {
        number(&self.0[n])
    }
}

/// The program, running. Ended when this is dropped.
pub struct Running {
    child: Child,
    path: PathBuf,
    said: Vec<Said>,
}

impl Running {
    /// Runs it until it has said all.
    pub fn start(path: &Path, arguments: &[&str]) -> Running {
        let mut command = Command::new(path);
        command
            .args(arguments)
            .env("GOTRACEBACK", "system")
            // Only when the program says so.
            .env("GOGC", "off")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let said = lines
            .take_while(|line| line != "END")
            .map(|line| Said(line.split(' ').map(str::to_owned).collect()))
            .collect();
        Running { child, path: path.to_owned(), said }
    }

    /// All lines that begin with this word.
    pub fn said(&self, first: &str) -> impl Iterator<Item = &Said> {
        self.said.iter().filter(move |said| said.word(0) == first)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn bias(&self, binary: &GoBinary<'_>) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        let own = maps.lines().find(|line| line.ends_with(self.path.to_str().unwrap())).unwrap();
        binary.elf.load_bias(u64::from_str_radix(own.split('-').next().unwrap(), 16).unwrap())
    }

    pub fn memory(&self) -> Mem {
        Mem(std::fs::File::open(format!("/proc/{}/mem", self.child.id())).unwrap())
    }

    /// Ids of its threads.
    pub fn threads(&self) -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    /// Number of the system call a thread is in.
    pub fn syscall(&self, thread: u32) -> String {
        let path = format!("/proc/{}/task/{thread}/syscall", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Makes it tell all its stacks and end.
    pub fn quit(&mut self) -> HashMap<u64, Account> {
        let mut text = String::new();
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::QUIT,
        )
        .unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        account::parse(&text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Its memory.
pub struct Mem(std::fs::File);

impl Memory for Mem {
    fn word(&mut self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        (self.read(address, &mut word) == 8).then(|| u64::from_le_bytes(word))
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> usize {
        self.0.read_at(into, at).unwrap_or(0)
    }
}
