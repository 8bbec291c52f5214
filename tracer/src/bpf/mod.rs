//! The kernel half as seen from user space: what this kernel allows ([`features`]), what to attach ([`plan`]), loading
//! attaching ([`load`]) and letting go ([`heir`]), reading ([`read`]). Only here: aya.

pub mod btf;
pub mod features;
pub mod heir;
pub mod known_bad;
pub mod load;
pub mod plan;
pub mod read;
mod sys;
