//! The ABI between plegscope's kernel half and its user half: plain C layout, fixed-width integers, no padding that
//! is not named. Every struct's size and offsets are asserted beside it; a test of the user half compares them with
//! the BTF of the built object.
//!
//! Reading order: [`op`] (what is in flight), [`record`] (what the ring carries), [`cookie`] (what a probe site knows
//! of itself), [`settings`] (what user space tells the kernel half), [`stats`] (what the kernel half could not do).

#![no_std]

pub mod cookie;
pub mod op;
pub mod record;
pub mod settings;
pub mod stats;
