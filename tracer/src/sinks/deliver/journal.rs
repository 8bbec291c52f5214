//! Tells the system's log: journald by its own protocol, with the whole alert as a field; where there is none, syslog with
//! the line alone. Both are datagrams that are sent or refused, never waited for.

use super::{Again, Alert, Delivery};
use crate::alert::Event;
use std::{io, os::unix::net::UnixDatagram, path::PathBuf};

/// Where journald listens.
pub const JOURNALD: &str = "/run/systemd/journal/socket";
/// Where every syslog listens.
pub const SYSLOG: &str = "/dev/log";

/// `MESSAGE_ID` of all alerts, to filter by: `journalctl MESSAGE_ID=…`.
const MESSAGE_ID: &str = "7c1b3f0d6a0e4a56b1c9a5f1e2d94c60";
/// The facility `daemon`.
const DAEMON: u8 = 3;

/// The system's log.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    journald: PathBuf,
    syslog: PathBuf,
}

impl Journal {
    /// That of this system.
    pub fn new() -> io::Result<Journal> {
        Journal::at(JOURNALD.into(), SYSLOG.into())
    }

    fn at(journald: PathBuf, syslog: PathBuf) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Journal { socket, journald, syslog })
    }
}

impl Delivery for Journal {
    fn deliver(&mut self, alert: &Alert, _: Again<'_>) -> Result<(), String> {
        let journald = match self.socket.send_to(&native(alert), &self.journald) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // Only who is not there has a substitute; one that is too slow would get it twice.
        if !matches!(journald.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            return Err(format!("{}: {journald}", self.journald.display()));
        }
        let line =
            format!("<{}>plegscope[{}]: {}", DAEMON << 3 | priority(alert), std::process::id(), alert.text);
        let sent = self.socket.send_to(line.as_bytes(), &self.syslog);
        sent.map(|_| ()).map_err(|syslog| {
            format!("{}: {journald}; {}: {syslog}", self.journald.display(), self.syslog.display())
        })
    }
}

/// Syslog's levels: critical, error, warning, notice.
fn priority(alert: &Alert) -> u8 {
    match (alert.urgent, alert.event) {
        (true, _) | (_, Event::NotReady) => 2,
        (_, Event::Crossed | Event::Grew) => 3,
        (_, Event::Repeated | Event::After) => 4,
        (_, Event::Ended) => 5,
    }
}

/// `FIELD=value` lines. None of the values has a line end in it: they are safe to print.
fn native(alert: &Alert) -> Vec<u8> {
    let mut out = format!(
        "MESSAGE={}\nPRIORITY={}\nSYSLOG_IDENTIFIER=plegscope\nMESSAGE_ID={MESSAGE_ID}\nPLEGSCOPE_EVENT={}\n\
         PLEGSCOPE_INCIDENT={}\nPLEGSCOPE_ALERT=",
        alert.text,
        priority(alert),
        alert.event.word(),
        super::sanitise(&alert.id)
    )
    .into_bytes();
    out.extend_from_slice(&alert.json);
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::deliver::tests::alert;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("plegscope-journal-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = vec![0; 64 << 10];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn journald_gets_the_line_and_the_whole_alert() {
        let folder = folder("native");
        let journald = UnixDatagram::bind(folder.join("journald")).unwrap();
        let mut journal = Journal::at(folder.join("journald"), folder.join("log")).unwrap();
        let mut one = alert(1, Event::Crossed, "a");
        // As large as an alert can be: journald takes it in one datagram.
        one.json = vec![b'x'; super::super::MOST];
        journal.deliver(&one, &|_| {}).unwrap();
        let text = heard(&journald);
        let fields: Vec<(&str, &str)> = text.lines().map(|line| line.split_once('=').unwrap()).collect();
        let value = |name: &str| fields.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!(
            [value("MESSAGE"), value("PRIORITY"), value("PLEGSCOPE_EVENT"), value("PLEGSCOPE_INCIDENT")],
            ["crossed a", "3", "crossed", "a"]
        );
        assert_eq!(value("PLEGSCOPE_ALERT").len(), one.json.len());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn without_journald_syslog_gets_the_line_and_without_both_it_fails() {
        let folder = folder("syslog");
        let mut journal = Journal::at(folder.join("journald"), folder.join("log")).unwrap();
        let one = Alert { urgent: true, ..alert(1, Event::Grew, "a") };
        let error = journal.deliver(&one, &|_| {}).unwrap_err();
        assert!(error.contains("journald") && error.contains("log"), "{error}");
        let syslog = UnixDatagram::bind(folder.join("log")).unwrap();
        journal.deliver(&one, &|_| {}).unwrap();
        assert_eq!(heard(&syslog), format!("<26>plegscope[{}]: grew a", std::process::id()));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_journald_that_does_not_read_is_not_waited_for() {
        let folder = folder("full");
        let _journald = UnixDatagram::bind(folder.join("journald")).unwrap();
        let _syslog = UnixDatagram::bind(folder.join("log")).unwrap();
        let mut journal = Journal::at(folder.join("journald"), folder.join("log")).unwrap();
        let mut one = alert(1, Event::Crossed, "a");
        one.json = vec![b'x'; 8 << 10];
        // The kernel keeps a bounded number for a reader.
        let refused = (0..100_000).find_map(|_| journal.deliver(&one, &|_| {}).err());
        assert!(refused.is_some_and(|why| !why.contains("log:")), "it was waited for, or told twice");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
