//! A kernel before 5.8, as plegscope meets it: who asks for a ring buffer is answered as by one that does not know what that
//! is. It refuses to attach, says what does without, and that does.

use super::{
    hostile::{doctor, plain},
    locks::Program,
    restarts::SHIM,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
};

/// `BPF_MAP_CREATE` of bpf(2).
const MAP_CREATE: u32 = 0;
/// `BPF_MAP_TYPE_RINGBUF`, the first field of what that takes.
const RING_BUFFER: u32 = 27;

/// What nobody can attach, `now` still tells.
pub fn no_ring_buffers() -> Result<()> {
    let shim = Program::of(SHIM)?;
    let refused = refuse_ring_buffers()?;
    let (said, output) = doctor(&mut plain())?;
    let findings = said["findings"].to_string();
    ensure!(
        output.status.code() == Some(3)
            && findings.contains("ring buffer")
            && findings.contains("plegscope now"),
        "doctor ended with {} and says {findings}",
        output.status
    );
    for verb in [["live", "--plain"], ["watch", "--json"], ["capture", "--verbose"]] {
        let before = refused.load(Ordering::Relaxed);
        let output = plain().args(verb).args(["--for", "60s"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(3)
                && said.contains("ring buffers")
                && said.contains("plegscope now"),
            "{verb:?}: {output:?}"
        );
        ensure!(refused.load(Ordering::Relaxed) > before, "{verb:?} did not ask for a ring buffer");
        println!("note {verb:?}: {}", said.trim());
    }
    let pid = shim.pid().to_string();
    let output = plain().args(["now", "--json", "--within", "20s", "--pid", &pid]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let goroutines = said.matches("\"goid\"").count();
    ensure!(goroutines > 0, "now names no goroutine of the shim: {output:?}");
    println!("note now: {goroutines} goroutines named, {}", output.status);
    Ok(())
}

/// From here on, what this thread starts is answered EINVAL when it asks for a ring buffer; how often it was.
fn refuse_ring_buffers() -> Result<Arc<AtomicU32>> {
    let refused = Arc::new(AtomicU32::new(0));
    let (tell, told) = mpsc::channel::<OwnedFd>();
    let count = Arc::clone(&refused);
    // Started before the filter is there, so that it is not asked about itself.
    thread::spawn(move || {
        let listener = told.recv().context("no listener")?;
        loop {
            answer(&listener, &count)?;
        }
        #[expect(unreachable_code, reason = "says what the closure returns")]
        anyhow::Ok(())
    });
    let instruction = |code: u32, k: u32, jump: [u8; 2]| libc::sock_filter {
        code: code as u16,
        jt: jump[0],
        jf: jump[1],
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let (number, first_argument) = (0, 16); // in struct seccomp_data
    let mut program = [
        instruction(load, number, [0, 0]),
        instruction(equal, libc::SYS_bpf as u32, [0, 3]),
        instruction(load, first_argument, [0, 0]),
        instruction(equal, MAP_CREATE, [0, 1]),
        instruction(libc::BPF_RET, libc::SECCOMP_RET_USER_NOTIF, [0, 0]),
        instruction(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, [0, 0]),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter and its instructions live until the call is back.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    if listener < 0 {
        bail!("no filter of system calls: {}", io::Error::last_os_error());
    }
    // SAFETY: the call has just made it for us.
    tell.send(unsafe { OwnedFd::from_raw_fd(listener as i32) }).context("nobody answers")?;
    Ok(refused)
}

/// Waits for one who makes a map: EINVAL for a ring buffer, and the rest goes on.
fn answer(listener: &OwnedFd, refused: &AtomicU32) -> Result<()> {
    // SAFETY: all of it may be zero, and must be.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: a place for what is received.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) } != 0 {
        let error = io::Error::last_os_error();
        // Who asked is gone, or a signal came.
        let again = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR));
        return if again { Ok(()) } else { Err(error).context("hearing what is asked") };
    }
    let mut kind = [0; 4];
    File::open(format!("/proc/{}/mem", asked.pid))?.read_exact_at(&mut kind, asked.data.args[1])?;
    let is_ring = u32::from_ne_bytes(kind) == RING_BUFFER;
    refused.fetch_add(u32::from(is_ring), Ordering::Relaxed);
    let (error, flags) =
        if is_ring { (-libc::EINVAL, 0) } else { (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE) };
    let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags: flags as u32 };
    // SAFETY: a valid answer to what was received.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) } != 0 {
        let error = io::Error::last_os_error();
        ensure!(error.raw_os_error() == Some(libc::ENOENT), "answering: {error}");
    }
    Ok(())
}
