//! Chooses, by decoding a Go function, the instructions to put uprobes on: one where it begins and one per exit.
//!
//! A uprobe costs about 0.7 us where the kernel emulates the probed instruction and about 11 us where it must be single
//! stepped (`arch/x86/kernel/uprobes.c`: relative call, jump and conditional jump, one-byte nop, push). Each site is
//! hit exactly once per call; docs/go-symbols.md has the rules and why they hold.

use super::Refusal;
use super::offsets::Abi;
use iced_x86::{Code as Op, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// Where to put one uprobe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Address of the instruction, without load bias.
    pub va: u64,
    /// Where it is in the file: what the kernel wants to know.
    pub file_offset: u64,
    /// What kind of place it is, which says what is valid there.
    pub how: How,
    /// What a hit costs.
    pub cost: Cost,
}

/// What kind of place a [`Site`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// Begin, on the conditional jump of the stack check. RSP and the arguments are those at entry; `g` is in R14, and
    /// on the old calling convention in RCX. A hit with CF or ZF set in the flags is to be ignored: the stack grows,
    /// and the function starts again.
    StackCheckBranch,
    /// Begin, on the first instruction of a function that has no stack check. RSP and the arguments are those at
    /// entry; `g` is in R14, and on the old calling convention in thread-local storage only.
    Entry,
    /// End, on a one-byte nop shortly before a return. Results are not there yet.
    Nop,
    /// End, on the call of a short runtime function, the last thing before a return. Results are not there yet.
    Call,
    /// End, on the return itself. RSP is that at entry, the results are in their places.
    Return,
}

/// What a hit of a site costs the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cost {
    /// The kernel does what the instruction does: one trap.
    Emulated,
    /// The instruction runs out of line, single stepped: two traps.
    SingleStepped,
}

/// Addresses of runtime functions that decide what a call in a function means.
#[derive(Clone, Debug, Default)]
pub struct RuntimeCalls {
    /// `runtime.morestack`, `runtime.morestack_noctxt`, and their wrappers.
    pub grow_stack: Vec<u64>,
    /// Short functions that do not block, so that an operation may count as over when they are called.
    pub short: Vec<u64>,
}

/// No function that is probed is near this long; bounds the work on hostile files.
const MAX_CODE: usize = 1 << 20;

/// A decoded function.
pub struct Code {
    entry: u64,
    end: u64,
    file_offset: u64,
    instructions: Vec<Instruction>,
    /// (to, from) of every direct jump, sorted.
    jumps: Vec<(u64, u64)>,
    /// Whether there are jumps whose targets are not in the code (switch tables).
    indirect_jumps: bool,
}

impl Code {
    /// Decodes a whole function: its bytes, its address, and where it is in the file.
    pub fn decode(bytes: &[u8], entry: u64, file_offset: u64) -> Result<Code, Refusal> {
        if bytes.len() > MAX_CODE || entry.checked_add(bytes.len() as u64).is_none() {
            return Err(Refusal::new(format!("function at {entry:#x}: {} bytes is too long", bytes.len())));
        }
        let mut code = Code {
            entry,
            end: entry + bytes.len() as u64,
            file_offset,
            instructions: Vec::with_capacity(bytes.len() / 4),
            jumps: Vec::new(),
            indirect_jumps: false,
        };
        for instruction in &mut Decoder::with_ip(64, bytes, entry, DecoderOptions::NONE) {
            if instruction.is_invalid() {
                return Err(Refusal::new(format!(
                    "cannot decode the instruction at {:#x}",
                    instruction.ip()
                )));
            }
            match instruction.flow_control() {
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    code.jumps.push((instruction.near_branch_target(), instruction.ip()));
                }
                FlowControl::IndirectBranch => code.indirect_jumps = true,
                _ => {}
            }
            code.instructions.push(instruction);
        }
        code.jumps.sort_unstable();
        Ok(code)
    }

    /// Its instructions, in the order of their addresses.
    pub(super) fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    fn site(&self, instruction: &Instruction, how: How) -> Site {
        let va = instruction.ip();
        let cost = if emulated(instruction) { Cost::Emulated } else { Cost::SingleStepped };
        Site { va, file_offset: self.file_offset.wrapping_add(va - self.entry), how, cost }
    }

    fn jumped_to(&self, va: u64) -> bool {
        let at = self.jumps.partition_point(|jump| jump.0 < va);
        self.jumps.get(at).is_some_and(|jump| jump.0 == va)
    }

    /// The place that is passed exactly once per call and where all arguments are still where the caller put them.
    pub fn begin(&self, abi: Abi, runtime: &RuntimeCalls) -> Result<Site, Refusal> {
        let grows = self.instructions.iter().any(|i| calls_one_of(i, &runtime.grow_stack));
        if !grows {
            if runtime.grow_stack.is_empty() {
                return Err(Refusal::new(
                    "runtime.morestack is not in the symbol table, so stack checks cannot be told",
                ));
            }
            if self.jumped_to(self.entry) {
                return Err(Refusal::new("the function has no stack check and jumps back to its entry"));
            }
            let first = self.instructions.first().ok_or_else(|| Refusal::new("the function is empty"))?;
            return Ok(self.site(first, How::Entry));
        }
        let (branch, scratch_ok) =
            self.stack_check(abi).ok_or_else(|| Refusal::new("the stack check has an unknown form"))?;
        let grow = branch.near_branch_target();
        if !scratch_ok {
            return Err(Refusal::new("the stack check overwrites a register that g or an argument is in"));
        }
        if !self.restarts(grow, runtime) {
            return Err(Refusal::new(
                "the stack check does not lead to runtime.morestack and back to the entry",
            ));
        }
        // Only the way back from growing the stack may lead into the check; then the run that counts is the last.
        let intruder = self.jumps.iter().find(|&&(to, from)| {
            let into_check = to > self.entry && to <= branch.ip();
            into_check || (to == self.entry && from < grow)
        });
        match intruder {
            Some((_, from)) => Err(Refusal::new(format!("a jump at {from:#x} leads into the stack check"))),
            None => Ok(self.site(branch, How::StackCheckBranch)),
        }
    }

    /// Follows the stack check at the entry in every form compilers since Go 1.15 write; the final `jbe`, and whether
    /// only registers were overwritten that hold nothing we need.
    fn stack_check(&self, abi: Abi) -> Option<(&Instruction, bool)> {
        #[derive(Clone, Copy, PartialEq)]
        enum Value {
            Other,
            G,
            ThreadLocal,
            Guard,
            Stack,
        }
        #[derive(PartialEq)]
        enum Flags {
            Other,
            /// From a subtraction; a borrow means the frame is larger than all memory below.
            Borrow,
            /// From comparing the guard with the mark for preemption.
            Preempt,
            /// From comparing the stack pointer with the guard.
            Check,
        }
        // g.stackguard0, and g.stackguard1 for the runtime's functions on the system stack.
        const G_STACK_GUARDS: [u64; 2] = [16, 24];
        const TLS_G: u64 = -8i64 as u64;
        let mut values = [Value::Other; 16];
        let set = |values: &mut [Value; 16], register: Register, value| {
            if let Some(slot) = values.get_mut(register.number()) {
                *slot = value;
            }
        };
        set(&mut values, Register::RSP, Value::Stack);
        if abi == Abi::Register {
            set(&mut values, Register::R14, Value::G);
        }
        let mut flags = Flags::Other;
        let mut scratch_ok = true;
        let mut early: Option<u64> = None;
        for i in self.instructions.iter().take(10) {
            let is_register =
                |operand| i.op_kind(operand) == OpKind::Register && i.op_register(operand).is_gpr64();
            let of = |register: Register| values.get(register.number()).copied().unwrap_or(Value::Other);
            let value =
                |operand| if is_register(operand) { of(i.op_register(operand)) } else { Value::Other };
            let memory =
                i.op_count() == 2 && i.op1_kind() == OpKind::Memory && i.memory_index() == Register::None;
            let thread_local = i.segment_prefix() == Register::FS;
            let base = if i.memory_base().is_gpr64() { of(i.memory_base()) } else { Value::Other };
            let guard_operand = memory
                && !thread_local
                && base == Value::G
                && G_STACK_GUARDS.contains(&i.memory_displacement64());
            let immediate = i.op_count() == 2
                && matches!(
                    i.op1_kind(),
                    OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64
                );
            let mut new = None;
            match i.mnemonic() {
                Mnemonic::Mov if is_register(0) => {
                    new = Some(if memory && thread_local {
                        let at_g = i.memory_base() == Register::None && i.memory_displacement64() == TLS_G
                            || base == Value::ThreadLocal && i.memory_displacement64() == 0;
                        if !at_g {
                            return None;
                        }
                        Value::G
                    } else if guard_operand {
                        Value::Guard
                    } else if immediate && i.immediate(1) == TLS_G {
                        Value::ThreadLocal
                    } else if value(1) == Value::Stack {
                        Value::Stack
                    } else {
                        return None;
                    });
                }
                Mnemonic::Lea if is_register(0) && memory && i.memory_base() == Register::RSP => {
                    new = Some(Value::Stack)
                }
                Mnemonic::Sub if value(0) == Value::Stack && i.op0_register() != Register::RSP => {
                    if !immediate && value(1) != Value::Guard {
                        return None;
                    }
                    flags = Flags::Borrow;
                    new = Some(Value::Stack);
                }
                Mnemonic::Cmp if value(0) == Value::Stack && (guard_operand || immediate) => {
                    flags = Flags::Check
                }
                Mnemonic::Cmp if value(0) == Value::Guard && immediate => flags = Flags::Preempt,
                Mnemonic::Jb if flags == Flags::Borrow => {
                    early = Some(i.near_branch_target());
                    flags = Flags::Other;
                }
                Mnemonic::Je if flags == Flags::Preempt => {
                    early = Some(i.near_branch_target());
                    flags = Flags::Other;
                }
                Mnemonic::Jbe if flags == Flags::Check && emulated(i) => {
                    if early.is_some_and(|to| to != i.near_branch_target()) {
                        return None;
                    }
                    // The old convention has g only where the check itself put it.
                    let g_known = abi == Abi::Register || of(Register::RCX) == Value::G;
                    return Some((i, scratch_ok && g_known));
                }
                _ => return None,
            }
            if let Some(new) = new {
                let register = i.op0_register();
                // Arguments live in registers since Go 1.17; R12 and R13 are scratch there.
                scratch_ok &= match abi {
                    Abi::Register => matches!(register, Register::R12 | Register::R13),
                    Abi::Stack => register != Register::RSP,
                };
                set(&mut values, register, new);
            }
        }
        None
    }

    /// Whether the code at `at` grows the stack and then jumps to the function's entry.
    fn restarts(&self, at: u64, runtime: &RuntimeCalls) -> bool {
        let mut called = false;
        let from = self.instructions.partition_point(|i| i.ip() < at);
        for i in self.instructions.iter().skip(from) {
            match i.flow_control() {
                FlowControl::Next => {}
                FlowControl::Call if calls_one_of(i, &runtime.grow_stack) => called = true,
                FlowControl::UnconditionalBranch => return called && i.near_branch_target() == self.entry,
                _ => return false,
            }
        }
        false
    }

    /// One place per exit. With `results_needed` they are the returns themselves, where the results can be read; else
    /// a cheaper place shortly before, where there is one.
    ///
    /// Such a place lies in the same straight line as the return, with nothing between them that could block, release
    /// a lock, call, or be jumped to. Deferred functions run in a call, so they have always run by then.
    pub fn ends(&self, results_needed: bool, runtime: &RuntimeCalls) -> Result<Vec<Site>, Refusal> {
        let leaves = |target: u64| target < self.entry || target >= self.end;
        if let Some((to, from)) = self.jumps.iter().find(|jump| leaves(jump.0)) {
            return Err(Refusal::new(format!(
                "it leaves by a jump at {from:#x} to {to:#x} (a stub, or assembly), so its end cannot be seen"
            )));
        }
        let sites: Vec<Site> = (0..self.instructions.len())
            .filter(|&at| self.instructions.get(at).is_some_and(|i| i.flow_control() == FlowControl::Return))
            .filter_map(|at| {
                let cheap = if results_needed { None } else { self.cheap_end(at, runtime) };
                cheap.or_else(|| Some(self.site(self.instructions.get(at)?, How::Return)))
            })
            .collect();
        if sites.is_empty() { Err(Refusal::new("it has no return instruction")) } else { Ok(sites) }
    }

    fn cheap_end(&self, ret: usize, runtime: &RuntimeCalls) -> Option<Site> {
        if self.indirect_jumps {
            // Switch tables may lead anywhere.
            return None;
        }
        let mut below = self.instructions.get(ret)?;
        for at in (0..ret).rev() {
            if self.jumped_to(below.ip()) {
                return None;
            }
            let i = self.instructions.get(at)?;
            match i.flow_control() {
                FlowControl::Call if calls_one_of(i, &runtime.short) && emulated(i) => {
                    return Some(self.site(i, How::Call));
                }
                FlowControl::Next if i.has_lock_prefix() || i.mnemonic() == Mnemonic::Xchg && !is_nop(i) => {
                    return None;
                }
                FlowControl::Next if i.code() == Op::Nopd && i.len() == 1 => {
                    return Some(self.site(i, How::Nop));
                }
                FlowControl::Next => below = i,
                _ => return None,
            }
        }
        None
    }

    /// Addresses of data that the code refers to relative to its own place, without repetition.
    pub fn data_addresses(&self) -> Vec<u64> {
        let relative = self.instructions.iter().filter(|i| i.is_ip_rel_memory_operand());
        let mut addresses: Vec<u64> = relative.map(|i| i.ip_rel_memory_address()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// For an accessor of a string field (`func (m *T) GetX() string`): the field's offset, read off the two loads it
    /// consists of.
    pub fn string_field(&self) -> Option<u16> {
        let mut offsets: Vec<u64> = Vec::new();
        for i in &self.instructions {
            let plain = i.memory_base().is_gpr64()
                && !matches!(i.memory_base(), Register::RSP | Register::RBP | Register::R14)
                && i.memory_index() == Register::None
                && i.segment_prefix() == Register::None;
            if i.mnemonic() == Mnemonic::Mov
                && i.op1_kind() == OpKind::Memory
                && i.op0_register().is_gpr64()
                && plain
            {
                offsets.push(i.memory_displacement64());
            }
        }
        offsets.sort_unstable();
        offsets.dedup();
        match offsets[..] {
            [pointer, length] if length.checked_sub(pointer) == Some(8) => u16::try_from(pointer).ok(),
            _ => None,
        }
    }
}

fn calls_one_of(i: &Instruction, targets: &[u64]) -> bool {
    i.flow_control() == FlowControl::Call && targets.contains(&i.near_branch_target())
}

fn is_nop(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Nop
}

/// Whether every kernel since 4.17 emulates it. Longer nops are emulated by some kernels only, and with a 0x66 prefix
/// (`xchg ax,ax`) refused by others, so they do not count.
fn emulated(i: &Instruction) -> bool {
    match i.flow_control() {
        FlowControl::ConditionalBranch => i.is_jcc_short_or_near(),
        FlowControl::UnconditionalBranch => i.is_jmp_short_or_near(),
        FlowControl::Call => i.code() == Op::Call_rel32_64,
        FlowControl::Next => matches!(i.code(), Op::Nopd if i.len() == 1) || i.code() == Op::Push_r64,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x40_1000;
    const MORESTACK: u64 = 0x40_0100;
    const RELEASE: u64 = 0x40_0200;
    const OTHER: u64 = 0x40_0300;

    fn runtime() -> RuntimeCalls {
        RuntimeCalls { grow_stack: vec![MORESTACK], short: vec![RELEASE] }
    }

    /// A tiny assembler: pieces of bytes, calls and jumps by name of their target.
    enum Piece<'a> {
        Bytes(&'a [u8]),
        Call(u64),
        /// Opcode bytes of a jump with a 4-byte displacement, and the label it goes to.
        Jump(&'a [u8], &'a str),
        Label(&'a str),
    }
    use Piece::{Bytes, Call, Jump, Label};

    const JBE: &[u8] = &[0x0f, 0x86];
    const JB: &[u8] = &[0x0f, 0x82];
    const JE: &[u8] = &[0x0f, 0x84];
    const JMP: &[u8] = &[0xe9];
    const CMP_RSP_R14: &[u8] = &[0x49, 0x3b, 0x66, 0x10];
    const CMP_R12_R14: &[u8] = &[0x4d, 0x3b, 0x66, 0x10];
    const LEA_R12: &[u8] = &[0x4c, 0x8d, 0x64, 0x24, 0xe0];
    const MOV_RCX_TLS: &[u8] = &[0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff];
    const CMP_RSP_RCX: &[u8] = &[0x48, 0x3b, 0x61, 0x10];
    const RET: &[u8] = &[0xc3];
    const NOP: &[u8] = &[0x90];
    const ADD_RSP: &[u8] = &[0x48, 0x83, 0xc4, 0x58];
    const POP_RBP: &[u8] = &[0x5d];
    const LOCK_XADD: &[u8] = &[0xf0, 0x0f, 0xc1, 0x08];

    fn assemble(pieces: &[Piece<'_>]) -> Vec<u8> {
        let size = |p: &Piece<'_>| match p {
            Bytes(b) => b.len(),
            Call(_) => 5,
            Jump(op, _) => op.len() + 4,
            Label(_) => 0,
        };
        let place = |label: &str| {
            let at = pieces.iter().position(|p| matches!(p, Label(l) if *l == label)).unwrap();
            pieces[..at].iter().map(size).sum::<usize>() as u64 + ENTRY
        };
        let mut code = Vec::new();
        for piece in pieces {
            let next = ENTRY + (code.len() + size(piece)) as u64;
            let displacement = |to: u64| (to.wrapping_sub(next) as i32).to_le_bytes();
            match piece {
                Bytes(b) => code.extend_from_slice(b),
                Call(to) => {
                    code.push(0xe8);
                    code.extend(displacement(*to));
                }
                Jump(op, label) => {
                    code.extend_from_slice(op);
                    let to = if *label == "entry" {
                        ENTRY
                    } else if *label == "outside" {
                        OTHER
                    } else {
                        place(label)
                    };
                    code.extend(displacement(to));
                }
                Label(_) => {}
            }
        }
        code
    }

    fn decode(pieces: &[Piece<'_>]) -> Code {
        Code::decode(&assemble(pieces), ENTRY, 0x1000).unwrap()
    }

    /// Body and way back of a function whose check is `check`.
    fn with_check(abi: Abi, check: &[Piece<'static>]) -> Result<Site, Refusal> {
        let mut pieces: Vec<Piece<'static>> = Vec::new();
        for piece in check {
            pieces.push(match piece {
                Bytes(b) => Bytes(b),
                Jump(o, l) => Jump(o, l),
                Call(c) => Call(*c),
                Label(l) => Label(l),
            });
        }
        pieces.extend([Bytes(RET), Label("grow"), Call(MORESTACK), Jump(JMP, "entry")]);
        decode(&pieces).begin(abi, &runtime())
    }

    #[test]
    fn begins_on_the_branch_of_every_form_of_stack_check() {
        let forms: [(Abi, Vec<Piece<'static>>, u64); 6] = [
            (Abi::Register, vec![Bytes(CMP_RSP_R14), Jump(JBE, "grow")], 4),
            (Abi::Register, vec![Bytes(LEA_R12), Bytes(CMP_R12_R14), Jump(JBE, "grow")], 9),
            // mov r12,rsp; sub r12,0x10000; jb; cmp r12,[r14+16]; jbe
            (
                Abi::Register,
                vec![
                    Bytes(&[0x49, 0x89, 0xe4, 0x49, 0x81, 0xec, 0, 0, 1, 0]),
                    Jump(JB, "grow"),
                    Bytes(CMP_R12_R14),
                    Jump(JBE, "grow"),
                ],
                20,
            ),
            (Abi::Stack, vec![Bytes(MOV_RCX_TLS), Bytes(CMP_RSP_RCX), Jump(JBE, "grow")], 13),
            // PIE: mov rcx,-8; mov rcx,fs:[rcx]; lea rax,[rsp-0x48]; cmp rax,[rcx+16]; jbe
            (
                Abi::Stack,
                vec![
                    Bytes(&[0x48, 0xc7, 0xc1, 0xf8, 0xff, 0xff, 0xff, 0x64, 0x48, 0x8b, 0x09]),
                    Bytes(&[0x48, 0x8d, 0x44, 0x24, 0xb8, 0x48, 0x3b, 0x41, 0x10]),
                    Jump(JBE, "grow"),
                ],
                20,
            ),
            // Huge frame, Go 1.15: mov rsi,[rcx+16]; cmp rsi,-1314; je; lea rax,[rsp+928]; sub rax,rsi; cmp rax,N; jbe
            (
                Abi::Stack,
                vec![
                    Bytes(MOV_RCX_TLS),
                    Bytes(&[0x48, 0x8b, 0x71, 0x10, 0x48, 0x81, 0xfe, 0xde, 0xfa, 0xff, 0xff]),
                    Jump(JE, "grow"),
                    Bytes(&[
                        0x48, 0x8d, 0x84, 0x24, 0xa0, 3, 0, 0, 0x48, 0x29, 0xf0, 0x48, 0x3d, 0, 0x30, 0, 0,
                    ]),
                    Jump(JBE, "grow"),
                ],
                9 + 11 + 6 + 17,
            ),
        ];
        for (at, (abi, check, offset)) in forms.iter().enumerate() {
            let site = with_check(*abi, check).unwrap_or_else(|why| panic!("form {at}: {why}"));
            let expected = Site {
                va: ENTRY + offset,
                file_offset: 0x1000 + offset,
                how: How::StackCheckBranch,
                cost: Cost::Emulated,
            };
            assert_eq!(site, expected, "form {at}");
        }
    }

    #[test]
    fn a_check_that_is_not_understood_is_refused() {
        // g would be in RDX, not RCX.
        let rdx: &[u8] = &[0x64, 0x48, 0x8b, 0x14, 0x25, 0xf8, 0xff, 0xff, 0xff];
        let cmp_rdx: &[u8] = &[0x48, 0x3b, 0x62, 0x10];
        assert!(with_check(Abi::Stack, &[Bytes(rdx), Bytes(cmp_rdx), Jump(JBE, "grow")]).is_err());
        // Another offset than the guard's.
        assert!(with_check(Abi::Register, &[Bytes(&[0x49, 0x3b, 0x66, 0x20]), Jump(JBE, "grow")]).is_err());
        // Another thread-local word than g.
        let tls_16: &[u8] = &[0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf0, 0xff, 0xff, 0xff];
        assert!(with_check(Abi::Stack, &[Bytes(tls_16), Bytes(CMP_RSP_RCX), Jump(JBE, "grow")]).is_err());
        // Register ABI, but the check clobbers RAX: lea rax,[rsp-0x20]; cmp rax,[r14+16].
        let clobber: &[u8] = &[0x48, 0x8d, 0x44, 0x24, 0xe0, 0x49, 0x3b, 0x46, 0x10];
        let refusal = with_check(Abi::Register, &[Bytes(clobber), Jump(JBE, "grow")]).unwrap_err();
        assert!(refusal.to_string().contains("overwrites"), "{refusal}");
    }

    #[test]
    fn a_jump_into_the_check_is_refused() {
        let pieces = [
            Bytes(LEA_R12),
            Label("inside"),
            Bytes(CMP_R12_R14),
            Jump(JBE, "grow"),
            Jump(JE, "inside"),
            Bytes(RET),
            Label("grow"),
            Call(MORESTACK),
            Jump(JMP, "entry"),
        ];
        let refusal = decode(&pieces).begin(Abi::Register, &runtime()).unwrap_err();
        assert!(refusal.to_string().contains("into the stack check"), "{refusal}");
    }

    #[test]
    fn without_a_check_it_begins_at_the_entry_unless_that_is_a_loop() {
        let leaf =
            decode(&[Bytes(&[0x55]), Bytes(POP_RBP), Bytes(RET)]).begin(Abi::Register, &runtime()).unwrap();
        assert_eq!((leaf.va, leaf.how, leaf.cost), (ENTRY, How::Entry, Cost::Emulated));
        let looping = decode(&[Bytes(NOP), Jump(JE, "entry"), Bytes(RET)]);
        assert!(looping.begin(Abi::Register, &runtime()).is_err());
        assert!(decode(&[Bytes(RET)]).begin(Abi::Register, &RuntimeCalls::default()).is_err());
    }

    fn ends(pieces: &[Piece<'_>], results_needed: bool) -> Vec<(u64, How)> {
        let sites = decode(pieces).ends(results_needed, &runtime()).unwrap();
        sites.into_iter().map(|s| (s.va - ENTRY, s.how)).collect()
    }

    #[test]
    fn ends_on_the_cheapest_place_that_is_still_exact() {
        // A short call, even when the call itself is jumped to.
        let short = [
            Jump(JE, "c"),
            Bytes(NOP),
            Label("c"),
            Call(RELEASE),
            Bytes(ADD_RSP),
            Bytes(POP_RBP),
            Bytes(RET),
        ];
        assert_eq!(ends(&short, false), [(7, How::Call)]);
        assert_eq!(ends(&short, true), [(17, How::Return)], "results are read at the return");
        // A nop behind the last lock operation, but none before it.
        assert_eq!(ends(&[Bytes(LOCK_XADD), Bytes(NOP), Bytes(RET)], false), [(4, How::Nop)]);
        assert_eq!(ends(&[Bytes(NOP), Bytes(LOCK_XADD), Bytes(RET)], false), [(5, How::Return)]);
        // Nothing before a call that may run deferred functions.
        assert_eq!(ends(&[Bytes(NOP), Call(OTHER), Bytes(ADD_RSP), Bytes(RET)], false), [(10, How::Return)]);
        // A long nop or one with a prefix is not emulated everywhere.
        assert_eq!(
            ends(&[Bytes(&[0x66, 0x90]), Bytes(&[0x0f, 0x1f, 0]), Bytes(RET)], false),
            [(5, How::Return)]
        );
        // Somebody jumps between the call and the return.
        let joined = [Jump(JE, "out"), Call(RELEASE), Label("out"), Bytes(ADD_RSP), Bytes(RET)];
        assert_eq!(ends(&joined, false), [(15, How::Return)]);
        // A switch table may lead anywhere: jmp rax.
        assert_eq!(ends(&[Bytes(&[0xff, 0xe0]), Bytes(NOP), Bytes(RET)], false), [(3, How::Return)]);
        // One per exit.
        let two = [Jump(JE, "b"), Bytes(NOP), Bytes(RET), Label("b"), Bytes(ADD_RSP), Bytes(RET)];
        assert_eq!(ends(&two, false), [(6, How::Nop), (12, How::Return)]);
    }

    #[test]
    fn functions_whose_end_cannot_be_seen_are_refused() {
        let refusal = |pieces: &[Piece<'_>]| decode(pieces).ends(false, &runtime()).unwrap_err().to_string();
        assert!(refusal(&[Bytes(NOP), Jump(JMP, "outside")]).contains("leaves by a jump"));
        assert!(refusal(&[Jump(JE, "outside"), Bytes(RET)]).contains("leaves by a jump"));
        assert!(refusal(&[Call(OTHER), Bytes(&[0xcc])]).contains("no return"));
    }

    #[test]
    fn accessors_tell_the_offset_of_their_field() {
        // test rax,rax; je; mov rcx,[rax+0x28]; mov rbx,[rax+0x30]; mov rax,rcx; ret
        let getter = [
            0x48, 0x85, 0xc0, 0x74, 0x0c, 0x48, 0x8b, 0x48, 0x28, 0x48, 0x8b, 0x58, 0x30, 0x48, 0x89, 0xc8,
            0xc3, 0xc3,
        ];
        assert_eq!(Code::decode(&getter, 0, 0).unwrap().string_field(), Some(0x28));
        // A single word is no string.
        assert_eq!(Code::decode(&[0x48, 0x8b, 0x00, 0xc3], 0, 0).unwrap().string_field(), None);
    }
}
