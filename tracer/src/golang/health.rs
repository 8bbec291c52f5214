//! When a kubelet calls its PLEG unhealthy, read off the code that decides it: `pleg.(*GenericPLEG).Healthy` compares
//! the age of the last relist with a threshold.
//!
//! Until Kubernetes 1.25 the threshold is a constant in the code. Since 1.26 it lies in memory
//! (`g.relistDuration.RelistThreshold`, longer while events of the runtime replace the relist), and the way there is
//! read: two loads from the receiver. The receiver is found in the closure with which the relist was started
//! (`go wait.Until(g.Relist, …)`): its first word is the address of `Relist-fm`, its second the receiver.

use super::offsets::Abi;
use super::probe_site::Code;
use super::{GoBinary, Name, Refusal};
use crate::event::Ns;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What `Healthy` compares with, as the code says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Threshold {
    /// This.
    Constant(Ns),
    /// What lies at `inner` in the struct to which the word at `outer` of the receiver points.
    Field {
        /// Offset of `relistDuration` in `GenericPLEG`.
        outer: u32,
        /// Offset of `RelistThreshold` in `RelistDuration`.
        inner: u32,
    },
}

/// How a kubelet judges its PLEG.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The threshold, or where it lies.
    pub threshold: Threshold,
    /// Entries of the functions behind the method value `g.Relist`, without load bias.
    pub closures: Vec<u64>,
}

/// A threshold is believed between these: the known ones are 3 and 10 minutes.
pub const BELIEVED: std::ops::RangeInclusive<Ns> = 10_000_000_000..=86_400_000_000_000;

const HEALTHY: Name = Name::Suffix("kubelet/pleg.(*GenericPLEG).Healthy");
const CLOSURES: [Name; 2] = [
    Name::Suffix("kubelet/pleg.(*GenericPLEG).Relist-fm"),
    Name::Suffix("kubelet/pleg.(*GenericPLEG).relist-fm"),
];

/// Reads a kubelet.
pub fn of(binary: &GoBinary<'_>) -> Result<Health, Refusal> {
    let found = binary.find(&[HEALTHY, CLOSURES[0], CLOSURES[1]]);
    let (healthy, closures) = found.split_at(1);
    let function = match healthy.first().map(Vec::as_slice) {
        Some([only]) => *only,
        Some([]) | None => return Err(Refusal::new("the program has no pleg.(*GenericPLEG).Healthy")),
        Some(_) => return Err(Refusal::new("the program has several pleg.(*GenericPLEG).Healthy")),
    };
    let threshold = threshold(&binary.code(function)?, binary.abi()?)?;
    Ok(Health { threshold, closures: closures.iter().flatten().map(|f| f.entry).collect() })
}

/// What a register or a word of the stack is known to hold.
#[derive(Clone, Copy, PartialEq)]
enum Value {
    Receiver,
    Number(u64),
    /// The word at this offset from the receiver.
    Field(u32),
    /// The word at the second offset from where the first points to.
    Inner(u32, u32),
}

/// Follows the function from top to bottom; where ways meet, only what is the same on all of those seen so far is known.
/// A way back (a loop) is not followed, so a field is checked against the running program besides. A threshold is believed
/// when exactly one is compared with.
fn threshold(code: &Code, abi: Abi) -> Result<Threshold, Refusal> {
    let mut now = Some(State::new(abi));
    let mut ahead: HashMap<u64, State> = HashMap::new();
    let mut found: Vec<Threshold> = Vec::new();
    let mut compared: Vec<Threshold> = Vec::new();
    for i in code.instructions() {
        now = match (now.take(), ahead.remove(&i.ip())) {
            (Some(here), Some(jumped)) => Some(here.meet(&jumped)),
            (here, jumped) => here.or(jumped),
        };
        // What nothing leads to from above is the way back from growing the stack.
        let Some(state) = now.as_mut() else { continue };
        match i.mnemonic() {
            Mnemonic::Cmp => compared = [0, 1].into_iter().filter_map(|n| state.threshold(i, n)).collect(),
            // Durations are signed: `elapsed > threshold` is one of these.
            Mnemonic::Jle | Mnemonic::Jg | Mnemonic::Jl | Mnemonic::Jge => found.append(&mut compared),
            Mnemonic::Mov | Mnemonic::Lea if i.op0_kind() == OpKind::Register => {}
            _ if i.flow_control() != FlowControl::Next => compared.clear(),
            _ => {}
        }
        state.step(i);
        match i.flow_control() {
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                let to = i.near_branch_target();
                let met = ahead.remove(&to).map_or_else(|| state.clone(), |other| other.meet(state));
                ahead.insert(to, met);
            }
            _ => {}
        }
        if matches!(
            i.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::IndirectBranch
        ) {
            now = None;
        }
    }
    found.dedup();
    match found[..] {
        [only] => Ok(only),
        [] => Err(Refusal::new("pleg.(*GenericPLEG).Healthy compares with no threshold in a known form")),
        _ => Err(Refusal::new("pleg.(*GenericPLEG).Healthy compares with several thresholds")),
    }
}

#[derive(Clone)]
struct State {
    registers: HashMap<Register, Value>,
    /// By address, relative to the stack pointer at entry.
    stack: HashMap<i64, Value>,
    /// How far the stack pointer is below that at entry.
    depth: i64,
}

impl State {
    fn new(abi: Abi) -> State {
        let mut state = State { registers: HashMap::new(), stack: HashMap::new(), depth: 0 };
        match abi {
            Abi::Register => _ = state.registers.insert(Register::RAX, Value::Receiver),
            // The first word above the return address.
            Abi::Stack => _ = state.stack.insert(8, Value::Receiver),
        }
        state
    }

    /// What is known on both ways.
    fn meet(mut self, other: &State) -> State {
        self.registers.retain(|register, value| other.registers.get(register) == Some(value));
        self.stack.retain(|at, value| other.stack.get(at) == Some(value));
        self
    }

    /// What the operand is as something to compare with.
    fn threshold(&self, i: &Instruction, operand: u32) -> Option<Threshold> {
        match self.value(i, operand)? {
            Value::Number(n) if BELIEVED.contains(&n) => Some(Threshold::Constant(n)),
            Value::Inner(outer, inner) => Some(Threshold::Field { outer, inner }),
            _ => None,
        }
    }

    fn value(&self, i: &Instruction, operand: u32) -> Option<Value> {
        match i.op_kind(operand) {
            OpKind::Register => self.registers.get(&i.op_register(operand)).copied(),
            OpKind::Immediate64 | OpKind::Immediate32to64 => Some(Value::Number(i.immediate(operand))),
            OpKind::Memory if i.memory_index() == Register::None && i.memory_size().size() == 8 => {
                let offset = i.memory_displacement64() as i64;
                if i.memory_base() == Register::RSP {
                    return self.stack.get(&(offset - self.depth)).copied();
                }
                let offset = u32::try_from(offset).ok()?;
                match self.registers.get(&i.memory_base())? {
                    Value::Receiver => Some(Value::Field(offset)),
                    Value::Field(outer) => Some(Value::Inner(*outer, offset)),
                    Value::Number(_) | Value::Inner(..) => None,
                }
            }
            _ => None,
        }
    }

    fn step(&mut self, i: &Instruction) {
        match i.flow_control() {
            // All registers belong to the one who is called.
            FlowControl::Call | FlowControl::IndirectCall => return self.registers.clear(),
            FlowControl::Next => {}
            _ => return,
        }
        let to = (i.op_count() > 0).then(|| i.op0_kind());
        let value = (i.mnemonic() == Mnemonic::Mov).then(|| self.value(i, 1)).flatten();
        match to {
            Some(OpKind::Register) if i.mnemonic() == Mnemonic::Push => self.depth += 8,
            Some(OpKind::Register) if i.mnemonic() == Mnemonic::Pop => {
                self.depth -= 8;
                self.registers.remove(&i.op0_register());
            }
            Some(OpKind::Register) if i.op0_register() == Register::RSP => {
                let by = i.op1_kind() != OpKind::Register && i.op1_kind() != OpKind::Memory;
                match i.mnemonic() {
                    Mnemonic::Sub if by => self.depth += i.immediate(1) as i64,
                    Mnemonic::Add if by => self.depth -= i.immediate(1) as i64,
                    _ => {}
                }
            }
            Some(OpKind::Register)
                if !matches!(i.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push) =>
            {
                let register = i.op0_register().full_register();
                match value.filter(|_| i.op0_register().is_gpr64()) {
                    Some(value) => _ = self.registers.insert(register, value),
                    None => _ = self.registers.remove(&register),
                }
            }
            Some(OpKind::Memory) if i.memory_base() == Register::RSP && i.mnemonic() == Mnemonic::Mov => {
                let at = (i.memory_displacement64() as i64) - self.depth;
                match value {
                    Some(value) => _ = self.stack.insert(at, value),
                    None => _ = self.stack.remove(&at),
                }
            }
            _ => {}
        }
    }
}
