//! The ABI between the kernel half and the user half: plain C layout, fixed-width integers.
#![no_std]
