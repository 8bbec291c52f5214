//! The command itself against the same programs: the whole way through the child process, its workers and messages.

use super::{each_build, same};
use crate::program::Running;
use serde_json::Value;
use std::process::Command;

#[test]
fn the_command_tells_of_the_same_waits() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look into other processes with this command");
        return;
    }
    each_build(&["stripped", "cgo-pie"], |build, wrong| {
        let running = [Running::start(&build.path, &[]), Running::start(&build.path, &[])];
        let pids = running.each_ref().map(Running::pid);
        let named = pids.map(|pid| pid.to_string());
        let gone = "4999999".to_owned();
        let told = Command::new(env!("CARGO_BIN_EXE_plegscope"))
            .args([
                "now", "--json", "--within", "30s", "--pid", &named[0], "--pid", &named[1], "--pid", &gone,
            ])
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&told.stdout)
            .unwrap_or_else(|why| panic!("{}: {why}: {}", build.name, String::from_utf8_lossy(&told.stderr)));
        let counts = &report["summary"]["roles"][0];
        let seen = (counts["there"].as_u64(), counts["looked_at"].as_u64());
        same(wrong, "processes there and looked at", seen, (Some(2), Some(2)));
        for (one, pid) in running.iter().zip(&pids) {
            let processes = report["processes"].as_array().unwrap();
            let process = processes.iter().find(|p| p["process"]["pid"].as_u64() == Some(u64::from(*pid)));
            let goroutines = process.and_then(|process| process["look"]["Ok"]["goroutines"].as_array());
            let Some(goroutines) = goroutines else {
                wrong.push(format!("{pid} was not looked at: {process:?}; {}", report["summary"]));
                continue;
            };
            let waits: Vec<&Value> = goroutines.iter().filter(|g| g["waits"].is_object()).collect();
            for wait in one.said("WAIT") {
                let (name, lock) = (wait.word(1), wait.number(2));
                // A Mutex has its semaphore behind its first four bytes.
                if !["mutex", "mutexToo", "deep", "inlines", "moved"].contains(&name) {
                    continue;
                }
                let (began, parked) = (wait.number(3), wait.number(4));
                let here = waits.iter().any(|g| {
                    let since = g["waits"]["since"].as_u64();
                    g["waits"]["semaphore"].as_u64() == Some(lock + 4)
                        && since.is_some_and(|since| (began..=parked).contains(&since))
                });
                same(wrong, &format!("{pid}: {name} waits for {lock:#x} since then"), here, true);
            }
            let reads = goroutines.iter().filter(|g| {
                let call = g["thread"]["syscall"].as_u64();
                g["state"] == "syscall" && call == Some(libc::SYS_read as u64)
            });
            same(wrong, "goroutines in read", reads.count(), 2);
        }
    });
}
