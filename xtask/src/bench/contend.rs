//! The target of the probe-cost bench: a small Go program that contends one lock a known number of times.

use crate::lab::{sys, tracer};
use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Functions that one operation hits, with the hits of an operation without and with contention.
pub const FUNCTIONS: [(&str, u32, u32); 4] = [
    ("sync.(*RWMutex).Lock", 1, 2),
    ("sync.(*RWMutex).Unlock", 1, 2),
    ("runtime.semacquire1", 0, 1),
    ("runtime.readyWithTime", 0, 1),
];

/// The built program and the addresses of its functions.
pub struct Binary {
    /// The file.
    pub path: PathBuf,
    functions: Vec<Function>,
}

/// One function of the program.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// File offset of its first byte, which is what uprobes take.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
    /// File offsets of its RET instructions.
    pub returns: Vec<u64>,
}

/// Builds the program with the Go toolchain of the machine: once with symbols, to know its addresses, and once stripped,
/// as the programs of a node are, to be measured.
pub fn build(out: &Path) -> Result<Binary> {
    let known = link(out, "contend.symbols", "")?;
    let path = link(out, "contend", "-s -w")?;
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let (bytes, stripped) = (read(&known)?, read(&path)?);
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {} as ELF", known.display()))?;
    let mut functions = Vec::new();
    for (name, ..) in FUNCTIONS {
        let symbol = file
            .symbols()
            .find(|symbol| symbol.name() == Ok(name))
            .with_context(|| format!("{name} is not in {}: inlined by this Go version?", known.display()))?;
        let address = symbol.address();
        let offset = file
            .segments()
            .find(|segment| (segment.address()..segment.address() + segment.size()).contains(&address))
            .map(|segment| address - segment.address() + segment.file_range().0)
            .with_context(|| format!("{name} lies in no segment"))?;
        let returns: Vec<u64> = returns(&known, name)?.iter().map(|ret| ret - address + offset).collect();
        // Operands that point to data may differ between the two, instructions may not.
        let first = offset as usize;
        let entry = first..first + 4;
        let same = bytes.get(entry.clone()).is_some()
            && bytes.get(entry.clone()) == stripped.get(entry)
            && returns.iter().all(|ret| stripped.get(*ret as usize) == Some(&0xc3));
        ensure!(same, "the linker moved {name} when it left out the symbols");
        functions.push(Function { name: name.to_owned(), offset, size: symbol.size(), returns });
    }
    Ok(Binary { path, functions })
}

fn link(out: &Path, name: &str, flags: &str) -> Result<PathBuf> {
    let path = out.join(name);
    let status = Command::new("go")
        .args(["build", "-ldflags", flags, "-o"])
        .arg(&path)
        .arg(".")
        .current_dir(tracer::workspace().join("xtask/bench/contend"))
        .env("GOCACHE", out.join("go-cache"))
        .env("GOTOOLCHAIN", "local")
        .status()
        .context("starting go")?;
    ensure!(status.success(), "building the contending program failed");
    Ok(path)
}

impl Binary {
    /// A function of [`FUNCTIONS`].
    pub fn function(&self, name: &str) -> Result<&Function> {
        self.functions
            .iter()
            .find(|function| function.name == name)
            .with_context(|| format!("{name} is not known"))
    }

    /// All of them.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The function a file offset lies in.
    pub fn at(&self, offset: u64) -> Option<&Function> {
        self.functions
            .iter()
            .find(|function| (function.offset..function.offset + function.size).contains(&offset))
    }
}

/// Addresses of a function's RET instructions, by Go's own disassembler.
fn returns(path: &Path, name: &str) -> Result<Vec<u64>> {
    let escaped: String = name
        .chars()
        .map(|one| if one.is_ascii_alphanumeric() { one.to_string() } else { format!("\\{one}") })
        .collect();
    let text = sys::run("go", &["tool", "objdump", "-s", &format!("^{escaped}$"), &path.to_string_lossy()])?;
    text.lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("RET"))
        .map(|line| {
            let address = line.split_whitespace().nth(1).unwrap_or_default();
            u64::from_str_radix(address.trim_start_matches("0x"), 16)
                .with_context(|| format!("reading the disassembly line {line:?}"))
        })
        .collect()
}

/// The running program.
pub struct Target {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it; it waits for commands.
    pub fn start(binary: &Binary) -> Result<Target> {
        let mut child = Command::new(&binary.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", binary.path.display()))?;
        let input = child.stdin.take().context("the target's standard input")?;
        let mut output = BufReader::new(child.stdout.take().context("the target's standard output")?);
        let mut line = String::new();
        output.read_line(&mut line).context("reading from the target")?;
        ensure!(line.starts_with("pid "), "the target says {line:?}");
        Ok(Target { child, input, output })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs `count` operations of a mode (`free` or `wait`); returns nanoseconds of CPU time per operation.
    pub fn run(&mut self, mode: &str, count: u32) -> Result<f64> {
        writeln!(self.input, "{mode} {count}").context("writing to the target")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("reading from the target")?;
        line.trim().parse().with_context(|| format!("the target says {line:?}"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
