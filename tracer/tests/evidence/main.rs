//! What becomes of a capture: reports in every format, exports, and what is said of files that are damaged. Truth comes from
//! the scenarios that the captures are made of, from a browser, and from Perfetto's own classes.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

mod browser;
mod exports;
mod files;
mod make;
mod reports;
