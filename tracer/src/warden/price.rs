//! What a hit costs on this machine: a function of our own is probed at the start, by the programs that the Go functions
//! get, and called a few hundred times with and without. Never a function of somebody else.

use super::cost::Price;
use crate::{
    bpf::load::{Attached, GoProgram, Kernel, SiteRequest},
    node::{clock, own},
};
use anyhow::{Context, anyhow};
use tracer_common::{cookie::Cookie, op::kind, settings};

// Shaped like what is probed in a Go function: `g` in R14, the object in RAX, a conditional jump that the kernel emulates
// at the begin, a RET that it single-steps at the end.
std::arch::global_asm!(
    ".pushsection .text.plegscope_measured,\"ax\",@progbits",
    ".p2align 5",
    ".hidden plegscope_measured",
    ".globl plegscope_measured",
    ".type plegscope_measured,@function",
    "plegscope_measured:",
    "push r14",
    "mov r14, rdi",
    "mov rax, rdi",
    "call plegscope_measured_begin",
    "pop r14",
    "ret",
    ".hidden plegscope_measured_begin",
    ".globl plegscope_measured_begin",
    "plegscope_measured_begin:",
    "jbe 2f",
    "2:",
    ".hidden plegscope_measured_end",
    ".globl plegscope_measured_end",
    "plegscope_measured_end:",
    "ret",
    ".size plegscope_measured, .-plegscope_measured",
    ".popsection",
);

unsafe extern "C" {
    /// Takes the address of something that stands for a goroutine; only the probes look at it.
    fn plegscope_measured(g: *const [u64; 2]);
    static plegscope_measured_begin: u8;
    static plegscope_measured_end: u8;
}

/// The number under which our own executable is known to the kernel half; others begin at 1.
const OURSELVES: u32 = 0;
/// Rounds of calls; the median counts, so that a preempted round does not.
const ROUNDS: usize = 5;

/// Measures. Takes a few ms, most of it attaching; what it attached is in `done`, to be dropped where nobody waits.
pub fn measure(kernel: &mut Kernel, done: &mut Vec<Attached>) -> anyhow::Result<Price> {
    let pid = std::process::id();
    // Kernels without cookies find the site by executable and address; with a bias of 0 that is where it lies here.
    kernel.register(pid, settings::Process { binary: OURSELVES, goid_offset: 8, bias: 0 })?;
    let price = attach_and_call(kernel, done);
    kernel.forget(pid);
    price
}

fn attach_and_call(kernel: &mut Kernel, done: &mut Vec<Attached>) -> anyhow::Result<Price> {
    let cookie = Cookie::new(kind::MEASURED, 0).with_goid_offset(8).with_object(0);
    // Only the addresses are taken.
    let (begin, end) = (&raw const plegscope_measured_begin as u64, &raw const plegscope_measured_end as u64);
    let request = |program, address| {
        let offset = own::file_offset(address).context("finding our own code in its file")?;
        Ok::<_, anyhow::Error>(SiteRequest {
            program,
            offset,
            address,
            cookie: cookie.0,
            bytes: [0; 16],
            stepped: false,
        })
    };
    let bare = call(2000);
    done.push(kernel.attach_uprobes(
        "/proc/self/exe",
        OURSELVES,
        &[request(GoProgram::Operation, begin)?],
    )?);
    let with_begin = call(100);
    done.push(kernel.attach_uprobes(
        "/proc/self/exe",
        OURSELVES,
        &[request(GoProgram::OperationEnd, end)?],
    )?);
    let with_both = call(40);
    let more = |than: u64, this: u64| u32::try_from(this.saturating_sub(than)).unwrap_or(u32::MAX);
    let price =
        Price { emulated: more(bare, with_begin), stepped: more(with_begin, with_both), measured: true };
    if price.emulated < 50 || price.stepped < 50 {
        // An interrupt alone takes longer: the probes were not hit.
        return Err(anyhow!("calls took {bare}, {with_begin} and {with_both} ns: the probes were not hit"));
    }
    Ok(price)
}

/// Stands for a goroutine, number 1. One for all calls: what the last begin has left, the next end takes away.
static G: [u64; 2] = [0, 1];

/// ns for a call, of `calls` in each round.
fn call(calls: u32) -> u64 {
    let round = |calls: u32| {
        let begin = clock::monotonic();
        for _ in 0..calls {
            // SAFETY: the function above keeps to the C convention and does not touch what it is given.
            unsafe { plegscope_measured(&raw const G) };
        }
        (clock::monotonic() - begin) / u64::from(calls)
    };
    round(calls / 10);
    let mut rounds = [(); ROUNDS].map(|()| round(calls));
    rounds.sort_unstable();
    rounds[ROUNDS / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::features::Features;

    #[test]
    fn a_hit_of_our_own_function_has_a_price() {
        let features = Features::detect();
        if !features.bpf.yes() || !features.uprobes.yes() {
            eprintln!("not tried: {:?}, {:?}", features.bpf, features.uprobes);
            return;
        }
        let mut kernel = Kernel::load(&features, false).unwrap();
        kernel.set_floors(|_| 0).unwrap();
        let mut reader = kernel.reader().unwrap();
        let mut done = Vec::new();
        let price = measure(&mut kernel, &mut done).unwrap();
        assert!(price.measured && price.emulated > 50 && price.stepped > 50, "{price:?}");
        // The probes are still there: what is pinned of the file shows none of them.
        let begin = own::file_offset(&raw const plegscope_measured_begin as u64).unwrap();
        let exe = crate::node::residency::open_exe(std::process::id()).unwrap();
        let pinned = crate::node::residency::pin(&exe, begin, 16).unwrap();
        // SAFETY: code of ours, which has a breakpoint now.
        assert_eq!(unsafe { (&raw const plegscope_measured_begin).read_volatile() }, 0xcc);
        assert_eq!(pinned.bytes()[0], 0x76, "a short conditional jump");
        // Each call was counted once at each site, and none of it is an operation that anybody is told of.
        let counted: u64 = reader.passes().iter().sum();
        let calls = u64::try_from(ROUNDS).unwrap();
        assert_eq!(counted, (100 * calls + 10) + 2 * (40 * calls + 4));
        let mut records = 0;
        reader.records(|_| records += 1);
        let (mut waits, mut ops) = (Vec::new(), Vec::new());
        reader.in_flight(&mut waits, &mut ops).unwrap();
        assert_eq!((records, waits.len(), ops.len()), (0, 0, 0));
    }
}
