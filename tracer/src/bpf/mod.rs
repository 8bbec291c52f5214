//! The kernel half as seen from user space: what this kernel allows ([`features`]), what to attach ([`plan`]), loading
//! and attaching ([`load`]), reading ([`read`]). Only here: aya.

pub mod btf;
pub mod features;
pub mod known_bad;
pub mod load;
pub mod plan;
pub mod read;
mod sys;
