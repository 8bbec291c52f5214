//! The pods of the lab: host network, one container each, named and labelled as the kubelet would.

use super::cri::{self, Client};
use super::image;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The network of the node, the pod's own pids and IPC (`NamespaceMode` of the CRI).
const ON_NODE: cri::NamespaceOption = cri::NamespaceOption { network: 2, pid: 0, ipc: 0 };

/// A running pod with its one container.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Sandbox id.
    pub sandbox: String,
    /// Container id.
    pub container: String,
    /// Container name inside the pod.
    pub container_name: String,
    /// Folder of the host that the container sees as `/lab`, for signals both ways.
    pub signals: PathBuf,
}

impl Pod {
    /// Its container and its sandbox.
    pub fn ids(&self) -> [String; 2] {
        [self.container.clone(), self.sandbox.clone()]
    }

    /// Asks the workload to go on to its next step, `write` or `exit`.
    pub fn tell(&self, step: &str) -> Result<()> {
        let file = self.signals.join(step);
        fs::write(&file, "").with_context(|| format!("writing {}", file.display()))
    }

    /// Waits until the workload reports `step`.
    pub async fn wait_for(&self, step: &str, limit: Duration) -> Result<()> {
        let file = self.signals.join(step);
        let came = super::sys::until(limit, || file.exists()).await;
        anyhow::ensure!(came, "pod {} did not report `{step}` within {limit:?}", self.name);
        Ok(())
    }
}

/// Namespace of the lab's pods.
pub const NAMESPACE: &str = "plegscope-lab";
/// Name of the one container in each.
pub const CONTAINER: &str = "worker";

/// A uid for a pod, made from something that is unique: it has the shape of a uuid.
pub fn uid(of: &str) -> String {
    let hash = of.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    format!("00000000-0000-4000-8000-{:012x}", hash & 0xffff_ffff_ffff)
}

/// What a pod's container does: it writes `megabytes` when told to, and exits when told to.
pub fn script(megabytes: u64) -> String {
    and_then(megabytes, "")
}

/// The same for a workload that wants its data on the disk before it says that it has written. It syncs the file system:
/// what a process writes out by itself would be charged to its own group, where cgroup v1 knows no limit.
pub fn script_that_syncs(megabytes: u64) -> String {
    and_then(megabytes, "sync -f /scratch.bin;")
}

fn and_then(megabytes: u64, then: &str) -> String {
    let wait = |step: &str| format!("while [ ! -e /lab/{step} ]; do sleep 0.05; done");
    format!(
        "{}; dd if=/dev/zero of=/scratch.bin bs=1M count={megabytes} 2>/dev/null; {then} : > /lab/written; {}; exit 0",
        wait("write"),
        wait("exit"),
    )
}

/// Starts a pod that only sleeps.
pub async fn start_idle(client: &Client, name: &str, cgroup: &Path, run: &Path) -> Result<Pod> {
    start(client, name, "exec sleep 2147483647", cgroup, run).await
}

/// A pod's sandbox, into which containers can be put.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    name: String,
    signals: PathBuf,
    config: cri::PodSandboxConfig,
}

/// Starts a pod that runs this [`script`]. Its cgroups lie below `cgroup`, its log and signals below `run`.
pub async fn start(client: &Client, name: &str, script: &str, cgroup: &Path, run: &Path) -> Result<Pod> {
    let sandbox = sandbox(client, name, cgroup, run).await?;
    let pod = create(client, &sandbox, image::NAME, script).await?;
    client
        .call::<_, cri::Empty>("StartContainer", cri::Id { id: pod.container.clone() }, cri::LONG)
        .await
        .with_context(|| format!("starting the container of pod {name}"))?;
    Ok(pod)
}

/// Starts a pod without a container.
pub async fn sandbox(client: &Client, name: &str, cgroup: &Path, run: &Path) -> Result<Sandbox> {
    // The same name never runs twice in one lab.
    let uid = uid(name);
    let signals = run.join("signals").join(name);
    // Named as the kubelet does: containerd 1.4 keeps the pod's names nowhere else.
    let logs = run.join("pods").join(format!("{NAMESPACE}_{name}_{uid}"));
    for folder in [&signals, &logs] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let labels: HashMap<String, String> = [
        ("io.kubernetes.pod.name", name),
        ("io.kubernetes.pod.namespace", NAMESPACE),
        ("io.kubernetes.pod.uid", &uid),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.clone(),
            namespace: NAMESPACE.to_owned(),
            attempt: 0,
        }),
        log_directory: logs.to_string_lossy().into_owned(),
        labels,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}/pod{uid}", cgroup.display()),
            security_context: Some(cri::SandboxSecurityContext { namespace_options: Some(ON_NODE) }),
        }),
    };
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()) };
    let id = client
        .call::<_, cri::RunPodSandboxResponse>("RunPodSandbox", request, cri::LONG)
        .await
        .with_context(|| format!("starting the sandbox of pod {name}"))?
        .pod_sandbox_id;
    Ok(Sandbox { id, name: name.to_owned(), signals, config })
}

/// Creates the container of a pod, without starting it.
pub async fn create(client: &Client, sandbox: &Sandbox, image: &str, script: &str) -> Result<Pod> {
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.id.clone(),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: CONTAINER.to_owned(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image.to_owned() }),
            command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
            mounts: vec![cri::Mount {
                container_path: "/lab".to_owned(),
                host_path: sandbox.signals.to_string_lossy().into_owned(),
            }],
            labels: sandbox.config.labels.clone(),
            log_path: format!("{CONTAINER}.log"),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(resources()),
                security_context: Some(cri::ContainerSecurityContext { namespace_options: Some(ON_NODE) }),
            }),
        }),
        sandbox_config: Some(sandbox.config.clone()),
    };
    let container = client
        .call::<_, cri::Id>("CreateContainer", request, cri::LONG)
        .await
        .with_context(|| format!("creating the container of pod {}", sandbox.name))?
        .id;
    Ok(Pod {
        name: sandbox.name.clone(),
        namespace: NAMESPACE.to_owned(),
        sandbox: sandbox.id.clone(),
        container,
        container_name: CONTAINER.to_owned(),
        signals: sandbox.signals.clone(),
    })
}

/// What the CPU manager writes: the CPUs a container may use. Here all of them, so an update changes nothing.
pub fn resources() -> cri::LinuxContainerResources {
    let cpus = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    cri::LinuxContainerResources { cpu_shares: 2, cpuset_cpus: cpus.trim().to_owned() }
}

/// Stops and removes a pod, as far as the runtime still answers.
pub async fn remove(client: &Client, pod: &Pod) {
    for method in ["StopPodSandbox", "RemovePodSandbox"] {
        let request = cri::Id { id: pod.sandbox.clone() };
        if client.call::<_, cri::Empty>(method, request, Duration::from_secs(15)).await.is_err() {
            return; // the ledger ends it the hard way
        }
    }
}
