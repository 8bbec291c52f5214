//! plegscope: shows, live and by name, why a Kubernetes node's PLEG relist is blocked.
//!
//! Data flows one way:
//!
//! ```text
//! kernel hooks -> ring, in-flight maps ┐
//! /proc, bundles, disk ────────────────┼─> decode ─> order ─> correlator ─> frame ─> sinks
//! ```
//!
//! Everything left of `decode` runs in a child process (the *warden*) that may hang so that the parent never does.
//! `decode`, `look`, `order`, `correlator` and `golang` are pure: no I/O, no clock, no threads.

pub mod alert;
pub mod bpf;
pub mod capture;
pub mod cli;
pub mod commands;
pub mod config;
pub mod correlator;
pub mod courier;
pub mod decode;
pub mod event;
pub mod exit;
pub mod exposure;
pub mod golang;
pub mod look;
pub mod node;
pub mod order;
pub mod pipeline;
pub mod report;
pub mod sinks;
pub mod source;
pub mod stats;
pub mod thresholds;
pub mod tui;
pub mod warden;
