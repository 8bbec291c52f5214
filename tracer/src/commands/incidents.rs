//! `incidents`: what `watch` has seen while nobody looked.

use super::files;
use crate::{
    capture::Record,
    cli::Incidents,
    correlator::words,
    event::Ns,
    exit::Exit,
    node::clock,
    sinks::{
        deliver::state::{FOLDER, FOLDERS, INCIDENTS},
        sanitise,
    },
};
use std::{io::Write, path::PathBuf};

/// Runs the verb.
pub fn run(options: &Incidents) -> anyhow::Result<Exit> {
    let folders: Vec<PathBuf> = match &options.store {
        Some(folder) => vec![folder.clone()],
        None => FOLDERS.iter().map(|base| PathBuf::from(base).join(FOLDER).join(INCIDENTS)).collect(),
    };
    let mut wrong = Vec::new();
    let mut found = None;
    for folder in folders {
        match files::store(&folder, options.within)? {
            Ok(lines) => {
                found = Some(lines);
                break;
            }
            Err(why) => wrong.push(format!("{}: {why}", folder.display())),
        }
    }
    let Some((lines, mut unreadable)) = found else { anyhow::bail!("{}", wrong.join("; ")) };
    let now = clock::Anchor::now().map(|anchor| anchor.realtime).unwrap_or(0);
    let from = options.since.map_or(i64::MIN, |since| {
        let since = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(since)
    });
    let mut out = std::io::stdout().lock();
    let mut shown = 0;
    for line in &lines {
        let Ok(record) = serde_json::from_slice::<Record>(line) else {
            unreadable += 1;
            continue;
        };
        if record.clock.realtime_of(record.at) < from {
            continue;
        }
        shown += 1;
        if options.json {
            out.write_all(line)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{}", sanitise(&text(&record)))?;
        }
    }
    if shown == 0 && !options.json {
        writeln!(out, "no incident was seen")?;
    }
    if unreadable > 0 {
        writeln!(std::io::stderr(), "plegscope: {unreadable} records could not be read")?;
    }
    Ok(Exit::Done)
}

/// An incident in one line: when, how long, what. One that has no end was blocked when it was told last: whether it still
/// is, is not known from here.
fn text(record: &Record) -> String {
    let day = |time: &str| time.get(..19).unwrap_or(time).replace('T', " ");
    let blocked: Ns = record.ended.unwrap_or(record.at).saturating_sub(record.since).max(record.longest);
    let state = match (record.ended, &record.uncertain_end) {
        (None, _) => format!("blocked, as of {}", day(&record.time)),
        (Some(_), None) => "ended".to_owned(),
        (Some(_), Some(why)) => format!("ended ({why})"),
    };
    let cause = if record.cause.is_empty() { &record.sentence } else { &record.cause };
    let mut line = format!(
        "{}  {:>6}  {state}: {cause} · {}",
        day(&record.since_time),
        words::duration(blocked),
        record.crossed_by
    );
    for harm in record.consequences.iter().take(2) {
        line.push_str(&format!(" · {}", harm.what));
    }
    line.push_str(&format!(" [{}]", record.id));
    line
}
