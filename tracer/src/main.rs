//! The `plegscope` binary: parse, run, map the result to an exit status.

fn main() {}
