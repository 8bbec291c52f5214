//! Build, lab, test and bench commands of plegscope.
fn main() {}
