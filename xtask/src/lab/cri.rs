//! A client of the Container Runtime Interface: the few calls and fields the lab needs.
//!
//! Messages are written out with their field numbers from `runtime.v1` (kubernetes/cri-api, `api.proto`). Unknown fields
//! are skipped on reading, so the answers of newer runtimes can be read. `v1alpha2` (containerd 1.4) has the same
//! messages under another service name.

use anyhow::{Context, Result};
use prost::Message;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Which service name the runtime knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `runtime.v1`, containerd 1.6 and later.
    V1,
    /// `runtime.v1alpha2`, containerd up to 1.7.
    V1Alpha2,
}

/// A connection to a runtime.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    version: Version,
}

impl Client {
    /// Connects to the runtime's socket and finds out which version it speaks. Waits up to `patience` for the CRI plugin.
    pub async fn connect(socket: &Path, patience: Duration) -> Result<Client> {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .context("socket path")?
            .connect()
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        let end = tokio::time::Instant::now() + patience;
        loop {
            let mut last = None;
            for version in [Version::V1, Version::V1Alpha2] {
                let client = Client { channel: channel.clone(), version };
                match client.call::<_, VersionResponse>("Version", VersionRequest::default(), SHORT).await {
                    Ok(_) => return Ok(client),
                    Err(status) => last = Some(status),
                }
            }
            if tokio::time::Instant::now() >= end {
                anyhow::bail!("the runtime at {} does not answer Version: {last:?}", socket.display());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes one call; the error is the runtime's own status, or `DeadlineExceeded` after `timeout`.
    pub async fn call<Request, Response>(
        &self,
        method: &str,
        request: Request,
        timeout: Duration,
    ) -> Result<Response, tonic::Status>
    where
        Request: Message + 'static,
        Response: Message + Default + 'static,
    {
        let package = match self.version {
            Version::V1 => "runtime.v1",
            Version::V1Alpha2 => "runtime.v1alpha2",
        };
        let path = format!("/{package}.RuntimeService/{method}")
            .parse()
            .map_err(|_| tonic::Status::internal("method name"))?;
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let mut request = tonic::Request::new(request);
        request.set_timeout(timeout);
        let codec = tonic_prost::ProstCodec::default();
        // The deadline in the header is the server's; the client keeps its own, as the kubelet's does.
        match tokio::time::timeout(timeout, client.unary(request, path, codec)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(tonic::Status::deadline_exceeded("the client's own deadline")),
        }
    }
}

/// Deadline of calls that touch no container.
pub const SHORT: Duration = Duration::from_secs(10);
/// The kubelet's deadline for a call to the runtime.
pub const LONG: Duration = Duration::from_secs(120);

/// `VersionRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct VersionRequest {
    /// Version of the caller.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// `VersionResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct VersionResponse {
    /// For instance `containerd`.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// For instance `1.6.20~ds1`.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod uid.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Pod namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// How many sandboxes the pod had before.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// `NamespaceOption`; 0 is the pod's own, 1 the container's own, 2 the node's.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct NamespaceOption {
    /// Network namespace.
    #[prost(int32, tag = "1")]
    pub network: i32,
    /// Pid namespace.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// Ipc namespace.
    #[prost(int32, tag = "3")]
    pub ipc: i32,
}

/// `LinuxSandboxSecurityContext`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct SandboxSecurityContext {
    /// Which namespaces are shared.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

/// `LinuxContainerSecurityContext`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ContainerSecurityContext {
    /// Which namespaces are shared.
    #[prost(message, optional, tag = "3")]
    pub namespace_options: Option<NamespaceOption>,
}

/// `LinuxPodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    /// Cgroup below which the pod's containers live.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// Security settings.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SandboxSecurityContext>,
}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    /// Names.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Folder of the containers' logs.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Labels, among them the kubelet's `io.kubernetes.pod.name` and so on.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    /// Linux settings.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// `RunPodSandboxRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxRequest {
    /// The sandbox.
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
}

/// `RunPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxResponse {
    /// Id of the sandbox.
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
}

/// `ContainerMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    /// Container name inside the pod.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How often it was started before.
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
}

/// `ImageSpec`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    /// Name or digest.
    #[prost(string, tag = "1")]
    pub image: String,
}

/// `Mount`.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// Path inside.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Path outside.
    #[prost(string, tag = "2")]
    pub host_path: String,
}

/// `LinuxContainerResources`.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerResources {
    /// CPU shares (relative weight).
    #[prost(int64, tag = "3")]
    pub cpu_shares: i64,
    /// CPUs the container may run on; what the CPU manager sets.
    #[prost(string, tag = "6")]
    pub cpuset_cpus: String,
}

/// `LinuxContainerConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerConfig {
    /// Resources.
    #[prost(message, optional, tag = "1")]
    pub resources: Option<LinuxContainerResources>,
    /// Security settings.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<ContainerSecurityContext>,
}

/// `ContainerConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    /// Names.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    /// Image.
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    /// Program and its fixed arguments.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// Mounts.
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<Mount>,
    /// Labels.
    #[prost(map = "string, string", tag = "9")]
    pub labels: HashMap<String, String>,
    /// Log file below the sandbox's log folder.
    #[prost(string, tag = "11")]
    pub log_path: String,
    /// Linux settings.
    #[prost(message, optional, tag = "15")]
    pub linux: Option<LinuxContainerConfig>,
}

/// `CreateContainerRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct CreateContainerRequest {
    /// In which sandbox.
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    /// The container.
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    /// The sandbox's settings once more.
    #[prost(message, optional, tag = "3")]
    pub sandbox_config: Option<PodSandboxConfig>,
}

/// A message that holds one id in field 1: `StartContainerRequest`, `CreateContainerResponse`, `RemoveContainerRequest`,
/// `StopPodSandboxRequest`, `RemovePodSandboxRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Id {
    /// Container or sandbox.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// An answer whose content does not matter.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

/// `UpdateContainerResourcesRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct UpdateContainerResourcesRequest {
    /// Which container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// New resources.
    #[prost(message, optional, tag = "2")]
    pub linux: Option<LinuxContainerResources>,
}

/// `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ListPodSandboxResponse {
    /// The sandboxes.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<Id>,
}

/// `Container` in a list.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its sandbox.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// 0 created, 1 running, 2 exited, 3 unknown.
    #[prost(int32, tag = "6")]
    pub state: i32,
    /// Labels, among them the kubelet's `io.kubernetes.pod.uid` and so on.
    #[prost(map = "string, string", tag = "8")]
    pub labels: HashMap<String, String>,
}

impl Container {
    /// The value of [`Container::state`] for a running container.
    pub const RUNNING: i32 = 1;
}

/// `ListContainersResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ListContainersResponse {
    /// The containers.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
}
