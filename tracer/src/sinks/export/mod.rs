//! A capture as what other programs read. Each exporter takes lines and frames as they come and hands out bytes as they are
//! ready, so that a long capture needs no more memory than a short one.

pub mod folded;
pub mod perfetto;
