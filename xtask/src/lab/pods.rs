//! The pods of the lab: host network, one container each, named and labelled as the kubelet would.

use super::cri::{self, Client};
use super::image;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `NamespaceMode` of the CRI: the node's own namespace.
const NODE: i32 = 2;

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
    let wait = |step: &str| format!("while [ ! -e /lab/{step} ]; do sleep 0.05; done");
    format!(
        "{}; dd if=/dev/zero of=/scratch.bin bs=1M count={megabytes} 2>/dev/null; : > /lab/written; {}; exit 0",
        wait("write"),
        wait("exit"),
    )
}

/// Starts a pod that only sleeps.
pub async fn start_idle(client: &Client, name: &str, cgroup: &Path, run: &Path) -> Result<Pod> {
    start_with(client, name, "exec sleep 2147483647".to_owned(), cgroup, run).await
}

/// Starts a pod. Its cgroups lie below `cgroup`, its log and signals below `run`.
pub async fn start(client: &Client, name: &str, megabytes: u64, cgroup: &Path, run: &Path) -> Result<Pod> {
    start_with(client, name, script(megabytes), cgroup, run).await
}

async fn start_with(client: &Client, name: &str, script: String, cgroup: &Path, run: &Path) -> Result<Pod> {
    let namespace = NAMESPACE.to_owned();
    let container_name = CONTAINER.to_owned();
    // The same name never runs twice in one lab.
    let uid = uid(name);
    let signals = run.join("signals").join(name);
    let logs = run.join("logs").join(name);
    for folder in [&signals, &logs] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let labels: HashMap<String, String> = [
        ("io.kubernetes.pod.name", name),
        ("io.kubernetes.pod.namespace", &namespace),
        ("io.kubernetes.pod.uid", &uid),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let namespaces = cri::NamespaceOption { network: NODE, ..Default::default() };
    let sandbox_config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.clone(),
            namespace: namespace.clone(),
            attempt: 0,
        }),
        log_directory: logs.to_string_lossy().into_owned(),
        labels: labels.clone(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}/pod{uid}", cgroup.display()),
            security_context: Some(cri::SandboxSecurityContext { namespace_options: Some(namespaces) }),
        }),
    };
    let request = cri::RunPodSandboxRequest { config: Some(sandbox_config.clone()) };
    let sandbox = client
        .call::<_, cri::RunPodSandboxResponse>("RunPodSandbox", request, cri::LONG)
        .await
        .with_context(|| format!("starting the sandbox of pod {name}"))?
        .pod_sandbox_id;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: container_name.clone(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image::NAME.to_owned() }),
            command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
            mounts: vec![cri::Mount {
                container_path: "/lab".to_owned(),
                host_path: signals.to_string_lossy().into_owned(),
            }],
            labels,
            log_path: format!("{container_name}.log"),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(resources()),
                security_context: Some(cri::ContainerSecurityContext { namespace_options: Some(namespaces) }),
            }),
        }),
        sandbox_config: Some(sandbox_config),
    };
    let container = client
        .call::<_, cri::Id>("CreateContainer", request, cri::LONG)
        .await
        .with_context(|| format!("creating the container of pod {name}"))?
        .id;
    client
        .call::<_, cri::Empty>("StartContainer", cri::Id { id: container.clone() }, cri::LONG)
        .await
        .with_context(|| format!("starting the container of pod {name}"))?;
    Ok(Pod { name: name.to_owned(), namespace, sandbox, container, container_name, signals })
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
