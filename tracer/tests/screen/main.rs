//! The screen: what it shows of scenarios, cell by cell; that no sequence of keys, sizes and frames breaks it; that nothing
//! a workload is called gets out of its place.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

mod cells;
mod hands;
mod picture;
mod random;
mod shown;
mod svg;
mod world;
