//! Ground truth for what the runtime reports: asks it again and again for its containers, and writes down when the answer
//! changed. It has a thread of its own, so that nothing the lab does can hold up its clock.

use super::cri::{self, Client};
use super::sys;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Pause between two questions: the uncertainty of each change.
pub const EVERY: Duration = Duration::from_millis(100);

/// What the runtime said of a container from a moment on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When the answer came, ns of CLOCK_MONOTONIC.
    pub at: u64,
    /// The container.
    pub container: String,
    /// `CREATED`, `RUNNING`, `EXITED`, `UNKNOWN`, as the CRI calls it; `GONE` when it is no longer listed.
    pub state: String,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct States {
    /// All changes, oldest first.
    pub changes: Vec<Change>,
    /// How long the longest list took, ns.
    pub longest: u64,
}

impl States {
    /// When a container was first reported in that state.
    pub fn first(&self, container: &str, state: &str) -> Option<u64> {
        self.changes.iter().find(|one| one.container == container && one.state == state).map(|one| one.at)
    }
}

/// Asks until dropped.
pub struct Watch {
    seen: Arc<Mutex<States>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to ask the runtime at this socket, also when it is restarted.
    pub fn start(socket: &Path) -> Result<Watch> {
        let seen = Arc::new(Mutex::new(States::default()));
        let (stop, stopped) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        let (socket, into) = (socket.to_owned(), seen.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = ask(&socket, &into) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Watch { seen, stop: Some(stop), thread: Some(thread) })
    }

    /// What was seen so far.
    pub fn states(&self) -> States {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn ask(socket: &Path, into: &Mutex<States>) {
    let mut client = None;
    loop {
        if client.is_none() {
            client = Client::connect(socket, Duration::from_secs(1)).await.ok();
        }
        if let Some(connected) = &client {
            let begin = sys::monotonic();
            let answer: Result<cri::ListContainersResponse, _> =
                connected.call("ListContainers", cri::Empty {}, cri::LONG).await;
            match answer {
                Ok(answer) => {
                    let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.longest = seen.longest.max(sys::monotonic() - begin);
                    note(&mut seen.changes, &answer.containers, sys::monotonic());
                }
                Err(_) => client = None,
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn note(changes: &mut Vec<Change>, now: &[cri::Container], at: u64) {
    let mut last: Vec<(String, String)> = Vec::new();
    for change in changes.iter() {
        last.retain(|(container, _)| *container != change.container);
        last.push((change.container.clone(), change.state.clone()));
    }
    let mut change = |container: &str, state: &str| {
        changes.push(Change { at, container: container.to_owned(), state: state.to_owned() });
    };
    for one in now {
        let state = match one.state {
            0 => "CREATED",
            cri::Container::RUNNING => "RUNNING",
            2 => "EXITED",
            _ => "UNKNOWN",
        };
        if !last.iter().any(|(container, before)| *container == one.id && before == state) {
            change(&one.id, state);
        }
    }
    for (container, before) in last {
        if before != "GONE" && !now.iter().any(|one| one.id == container) {
            change(&container, "GONE");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_noted_once() {
        let one = |id: &str, state| cri::Container { id: id.to_owned(), state, ..Default::default() };
        let mut changes = Vec::new();
        note(&mut changes, &[one("a", 1), one("b", 1)], 1);
        note(&mut changes, &[one("a", 1), one("b", 1)], 2);
        note(&mut changes, &[one("a", 3)], 3);
        note(&mut changes, &[one("a", 2)], 4);
        let seen: Vec<_> =
            changes.iter().map(|one| (one.at, one.container.as_str(), one.state.as_str())).collect();
        let right = [
            (1, "a", "RUNNING"),
            (1, "b", "RUNNING"),
            (3, "a", "UNKNOWN"),
            (3, "b", "GONE"),
            (4, "a", "EXITED"),
        ];
        assert_eq!(seen, right);
    }
}
