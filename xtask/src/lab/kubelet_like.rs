//! Calls the runtime as the kubelet does, and keeps its own clock: the ground truth that plegscope is held against.
//!
//! A relist is `ListPodSandbox`, then `ListContainers`; the next one comes one second after the last has ended
//! (`pleg.(*GenericPLEG).relist`). The CPU manager calls `UpdateContainerResources` for each container it believes to be
//! running, one after the other, every ten seconds by default.

use super::cri::{self, Client};
use super::{pods, sys};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// One call, or a whole relist, by the client's own clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// CRI method, or `relist`.
    pub method: String,
    /// The container it is for.
    pub container: Option<String>,
    /// When it was sent, ns of CLOCK_MONOTONIC.
    pub begin: u64,
    /// When the answer was there; `None` while it lasts.
    pub end: Option<u64>,
    /// The runtime's answer when it was an error.
    pub error: Option<String>,
}

impl Call {
    /// How long it took, or has taken until `now`.
    pub fn age(&self, now: u64) -> u64 {
        self.end.unwrap_or(now).saturating_sub(self.begin)
    }
}

/// All calls so far; also written to a file as JSON lines, one at each begin and end.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Inner>>);

struct Inner {
    calls: Vec<Call>,
    running: Vec<String>,
    file: File,
}

impl Log {
    fn new(path: &Path) -> Result<Log> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Log(Arc::new(Mutex::new(Inner { calls: Vec::new(), running: Vec::new(), file }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, method: &str, container: Option<&str>) -> usize {
        let mut inner = self.lock();
        let call = Call {
            method: method.to_owned(),
            container: container.map(str::to_owned),
            begin: sys::monotonic(),
            end: None,
            error: None,
        };
        inner.write(&call);
        inner.calls.push(call);
        inner.calls.len() - 1
    }

    fn end(&self, index: usize, error: Option<String>) {
        let end = sys::monotonic();
        let mut inner = self.lock();
        let call = &mut inner.calls[index];
        call.end = Some(end);
        call.error = error;
        let call = call.clone();
        inner.write(&call);
    }

    /// Makes a call and logs it.
    async fn call<Request, Response>(
        &self,
        client: &Client,
        method: &str,
        container: Option<&str>,
        request: Request,
    ) -> Option<Response>
    where
        Request: prost::Message + 'static,
        Response: prost::Message + Default + 'static,
    {
        let index = self.begin(method, container);
        let answer = client.call(method, request, cri::LONG).await;
        self.end(
            index,
            answer.as_ref().err().map(|status| format!("{:?}: {}", status.code(), status.message())),
        );
        answer.ok()
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }
}

impl Inner {
    fn write(&mut self, call: &Call) {
        if let Ok(line) = serde_json::to_string(call) {
            let _ = writeln!(self.file, "{line}"); // the log in memory is what is judged by
        }
    }
}

/// The two loops, running until dropped. They have a thread of their own, so that nothing the lab does beside them can
/// hold up their clock.
pub struct KubeletLike {
    /// What they did.
    pub log: Log,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KubeletLike {
    /// Starts both loops, each with a connection of its own as in the kubelet.
    pub fn start(socket: &Path, log: &Path, update_every: Duration) -> Result<KubeletLike> {
        let log = Log::new(log)?;
        let (stop, stopped) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        let (socket, into) = (socket.to_owned(), log.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let loops = async {
                    let relist = Client::connect(&socket, cri::SHORT).await?;
                    let update = Client::connect(&socket, cri::SHORT).await?;
                    tokio::join!(relist_loop(relist, into.clone()), update_loop(update, into, update_every));
                    Ok::<(), anyhow::Error>(())
                };
                tokio::select! {
                    result = loops => if let Err(error) = result {
                        eprintln!("the client like the kubelet: {error:#}");
                    },
                    _ = stopped => {}
                }
            });
        });
        Ok(KubeletLike { log, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for KubeletLike {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn relist_loop(client: Client, log: Log) {
    loop {
        let relist = log.begin("relist", None);
        let sandboxes: Option<cri::ListPodSandboxResponse> =
            log.call(&client, "ListPodSandbox", None, cri::Empty {}).await;
        let containers: Option<cri::ListContainersResponse> = match sandboxes {
            Some(_) => log.call(&client, "ListContainers", None, cri::Empty {}).await,
            None => None,
        };
        log.end(relist, containers.is_none().then(|| "a call failed".to_owned()));
        if let Some(answer) = containers {
            let running = answer.containers.into_iter().filter(|one| one.state == cri::Container::RUNNING);
            log.lock().running = running.map(|one| one.id).collect();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn update_loop(client: Client, log: Log, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let running = log.lock().running.clone();
        for id in running {
            let request = cri::UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(pods::resources()),
            };
            let _: Option<cri::Empty> =
                log.call(&client, "UpdateContainerResources", Some(&id), request).await;
        }
    }
}
