//! How the program can end; `plegscope --help` and docs/operations.md list these.

use std::process::ExitCode;

/// Exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: did what was asked.
    Done,
    /// 1: something unforeseen failed; standard error says what.
    Failed,
    /// 1, of `status`: something is stuck.
    Stuck,
    /// 2: the command line (which is clap's to say) or another setting was not understood; of `status`: it cannot be told.
    Usage,
    /// 3: not allowed (not root, or the kernel refuses BPF); standard error says what would help.
    NotAllowed,
    /// 4: `doctor` and `now`: something that matters cannot be seen on this node; the output says what and why.
    PartlyBlind,
    /// 5: the file cannot be used: `capture` would write where chains end or its disk takes no more, or what is to be read is
    /// damaged, foreign or newer; standard error says which and what to do.
    File,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed | Exit::Stuck => 1,
            Exit::Usage => 2,
            Exit::NotAllowed => 3,
            Exit::PartlyBlind => 4,
            Exit::File => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}
