//! The courier as a process: forked while there is one thread, beside a program and a receiver that hang, and after the
//! process that watches has let go of it. Without the test harness, which has threads.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    thread,
    time::{Duration, Instant},
};
use tracer::{
    alert::Event,
    courier::{Courier, Ways},
    sinks::deliver::{Alert, Count, store, webhook},
};

fn main() {
    let folder = std::env::temp_dir().join(format!("plegscope-courier-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    carries(&folder, &listener);
    fs::remove_dir_all(&folder).unwrap();
    println!("courier: carries, is not waited for, and brings away what it has");
}

fn alert(seq: u64, event: Event) -> Alert {
    Alert {
        seq,
        event,
        told: true,
        urgent: false,
        id: format!("unmount-{seq}"),
        text: "text".to_owned(),
        opened: 1_709_204_400_000 + seq as i64,
        json: format!("{{\"seq\":{seq}}}").into_bytes(),
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn carries(folder: &Path, listener: &TcpListener) {
    let (marks, kept) = (folder.join("marks"), folder.join("store"));
    fs::create_dir(&marks).unwrap();
    // The first alert's program hangs, all others leave a mark; SIGTERM must reach it although its parent outlives that.
    let script = format!(
        "read line; case $line in *:1}}*) echo $$ > {0}/hangs; exec sleep 600;; *) echo \"$line\" > {0}/$PLEGSCOPE_INCIDENT;; esac",
        marks.display()
    );
    let ways = Ways {
        exec: Some((["/bin/sh", "-c", &script].map(str::to_owned).to_vec(), Duration::from_secs(600), 2)),
        webhook: Some(webhook::Settings {
            url: format!("http://{}/", listener.local_addr().unwrap()),
            token: None,
            authorities: None,
            limit: Duration::from_secs(600),
            run: "run".to_owned(),
        }),
        store: Some((kept.clone(), 10, store::BYTES)),
    };
    let mut courier = Courier::fork(ways).unwrap();

    let begin = Instant::now();
    (1..=5).for_each(|seq| courier.hand(&alert(seq, Event::Crossed)));
    assert!(begin.elapsed() < Duration::from_secs(2), "handing over waits: {:?}", begin.elapsed());
    // The receiver takes the connection and says nothing.
    let (mut silent, _) = listener.accept().unwrap();
    let mut some = [0; 16];
    assert!(silent.read(&mut some).unwrap() > 0);
    until("the programs that do not hang run", || {
        (2..=5).all(|n| marks.join(format!("unmount-{n}")).exists())
    });
    until("the store takes all", || fs::read_dir(&kept).is_ok_and(|files| files.count() == 5));
    let count = |courier: &mut Courier, name: &str| -> Option<Count> {
        courier.turn();
        courier.counts().into_iter().find(|count| count.name == name)
    };
    until("it tells how it goes", || count(&mut courier, "store").is_some_and(|count| count.delivered == 5));
    until("programs are counted", || count(&mut courier, "exec").is_some_and(|count| count.delivered == 4));
    let webhook = count(&mut courier, "webhook").unwrap();
    assert_eq!((webhook.taken, webhook.delivered), (5, 0), "{webhook:?}");

    // A signal to all of a service ends the program, and not the courier.
    let pid: i32 = fs::read_to_string(marks.join("hangs")).unwrap().trim().parse().unwrap();
    // SAFETY: a child of the courier, which it has not waited for yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    until("its end is noticed", || count(&mut courier, "exec").is_some_and(|count| count.failed == 1));

    // What was handed over last is brought away although nobody is there any more.
    courier.hand(&alert(6, Event::Ended));
    drop(courier);
    until("the last alert is brought away", || marks.join("unmount-6").exists());
    until("and kept", || fs::read_dir(&kept).is_ok_and(|files| files.count() == 6));
    let _ = silent.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    // The courier is our only child: it ends by itself.
    let end = Instant::now() + Duration::from_secs(60);
    // SAFETY: waits for a child of this process, and takes no status.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } == 0 {
        assert!(Instant::now() < end, "the courier does not end");
        thread::sleep(Duration::from_millis(5));
    }
}
