//! Go's own account of its goroutines, as a program prints it on SIGQUIT with `GOTRACEBACK=system`.

use std::collections::HashMap;

/// One function on a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub name: String,
    /// `file:line`.
    pub place: String,
    pub inlined: bool,
    /// Offset in the function, stack pointer and program counter; not of inlined ones.
    pub at: Option<(u64, u64, u64)>,
}

/// What Go says of one goroutine.
pub struct Account {
    pub reason: String,
    /// Innermost first.
    pub lines: Vec<Line>,
    /// Whether frames are left out somewhere.
    pub elided: bool,
    /// Function, `file:line` and offset of the `go` statement.
    pub creator: Option<(String, String, u64)>,
    pub parent: Option<u64>,
}

/// By goroutine number.
pub fn parse(text: &str) -> HashMap<u64, Account> {
    text.split("\n\n").filter_map(goroutine).collect()
}

fn goroutine(block: &str) -> Option<(u64, Account)> {
    let mut lines = block.lines().skip_while(|line| !line.starts_with("goroutine "));
    let (number, rest) = lines.next()?.strip_prefix("goroutine ")?.split_once(' ')?;
    let reason = rest.split_once('[')?.1.split([']', ',']).next()?;
    let mut account =
        Account { reason: reason.to_owned(), lines: Vec::new(), elided: false, creator: None, parent: None };
    while let Some(line) = lines.next() {
        if line.starts_with("...") {
            account.elided = true;
            continue;
        }
        let Some(place) = lines.next().and_then(|place| place.strip_prefix('\t')) else { break };
        let mut words = place.split(' ');
        let place = words.next()?.to_owned();
        let hex = |prefix: &str| {
            let found = words.clone().find_map(|word| word.strip_prefix(prefix));
            found.map(|digits| u64::from_str_radix(digits, 16).unwrap())
        };
        let (offset, sp, pc) = (hex("+0x"), hex("sp=0x"), hex("pc=0x"));
        if let Some(creator) = line.strip_prefix("created by ") {
            let (name, parent) = creator.split_once(" in goroutine ").unwrap_or((creator, ""));
            account.creator = Some((name.to_owned(), place, offset.unwrap_or(0)));
            account.parent = parent.parse().ok();
            break;
        }
        let (name, arguments) = line.split_at(line.rfind('(')?);
        let inlined = arguments == "(...)";
        account.lines.push(Line {
            name: name.to_owned(),
            place,
            inlined,
            at: if inlined { None } else { Some((offset.unwrap_or(0), sp?, pc?)) },
        });
    }
    Some((number.parse().ok()?, account))
}
