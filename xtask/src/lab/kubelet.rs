//! A real kubelet beside whatever kubelet the machine has: standalone, static pods, the lab's containerd. Its relist and
//! its CPU manager's updates are the real ones; when they happened is read from its own log and metrics.
//!
//! All it keeps lies in the lab's folder, all its cgroups below the lab's, it listens on 127.0.0.1 only, and the kernel
//! settings that a kubelet changes are hidden from it behind copies in a mount namespace of its own. Only its container
//! logs lie where every kubelet has them, below `/var/log`.

use super::cleanup::{Ledger, Leftover, cgroup_roots, folders_not_there};
use super::kubelet_like::Call;
use super::kubelet_log::{Parser, times_of};
use super::pods::{self, Pod};
use super::{containerd::Containerd, cri, image, sys};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The name it has as a node; static pods are called after it.
const NODE: &str = "lab";
/// Where a kubelet keeps the logs of pods, and its links to them. It has no setting for either.
const LOGS: [&str; 2] = ["/var/log/containers", "/var/log/pods"];
/// Kernel settings that a kubelet writes when they are not as it wants them, below `/proc/sys`.
const KERNEL_SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// A running kubelet.
pub struct Kubelet {
    /// Its process.
    pub pid: u32,
    log: PathBuf,
    read: RefCell<(u64, Parser)>,
    metrics: Metrics,
}

/// How often a kubelet does what it does by itself, and how long it waits.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two updates of all containers.
    pub update_every: Duration,
    /// After this time without an answer it gives up a call; a kubelet's own default is two minutes.
    pub gives_up_after: Duration,
}

impl Pace {
    /// Updates every so often, and a kubelet's default for the rest.
    pub fn updating(update_every: Duration) -> Pace {
        Pace { update_every, gives_up_after: Duration::from_secs(120) }
    }
}

impl Kubelet {
    /// Starts it with the given static pods (name, megabytes to write) and waits until their containers run. `cgroup` is
    /// the lab's group relative to the hierarchies' roots.
    pub async fn start(
        ledger: &Ledger,
        program: &Path,
        containerd: &Containerd,
        client: &cri::Client,
        run: &Path,
        pace: Pace,
        wanted: &[(&str, u64)],
    ) -> Result<(Kubelet, Vec<Pod>)> {
        let cgroup = Path::new(&ledger.name);
        let home = run.join("kubelet");
        let manifests = home.join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("creating {}", manifests.display()))?;
        // A kubelet refuses a cgroup root that is not there.
        for root in cgroup_roots() {
            let group = root.join(cgroup);
            fs::create_dir_all(&group).with_context(|| format!("creating {}", group.display()))?;
        }
        for leftover in folders_not_there(&LOGS) {
            ledger.record(leftover)?;
        }
        let mut planned = Vec::new();
        for (name, megabytes) in wanted {
            let pod = Planned::new(&ledger.name, name, run)?;
            let logs = Path::new(LOGS[1]).join(format!("{}_{}_{}", pod.namespace, pod.full_name(), pod.uid));
            ledger.record(Leftover::Links { folder: LOGS[0].into(), into: logs.clone() })?;
            ledger.record(Leftover::Folder { path: logs })?;
            let file = manifests.join(format!("{name}.json"));
            fs::write(&file, serde_json::to_string_pretty(&pod.manifest(*megabytes))?)
                .with_context(|| format!("writing {}", file.display()))?;
            planned.push(pod);
        }
        let ports = free_ports()?;
        let config = home.join("config.json");
        let text = serde_json::to_string_pretty(&config_of(&manifests, cgroup, ports, pace))?;
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let log = home.join("log");
        let pid = spawn(ledger, program, containerd, &home, &config, &log)?;
        let kubelet = Kubelet {
            pid,
            log,
            read: RefCell::new((0, Parser::default())),
            metrics: Metrics::watch(ports[1]),
        };
        let mut pods = Vec::new();
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        while pods.len() < planned.len() {
            if sys::state(pid).is_none_or(|state| state == 'Z') || tokio::time::Instant::now() > end {
                bail!(
                    "the kubelet has started {} of {} pods; its log ends:\n{}",
                    pods.len(),
                    planned.len(),
                    kubelet.complaints(12)
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let listed = client
                .call::<_, cri::ListContainersResponse>("ListContainers", cri::Empty {}, cri::SHORT)
                .await
                .context("listing the kubelet's containers")?;
            pods = planned.iter().filter_map(|pod| pod.running(&listed)).collect();
        }
        Ok((kubelet, pods))
    }

    /// All calls by the kubelet's own log so far; see [`Parser`].
    pub fn calls(&self) -> Vec<Call> {
        let mut read = self.read.borrow_mut();
        let (offset, parser) = &mut *read;
        let mut text = String::new();
        let more = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(*offset))?;
            file.read_to_string(&mut text)
        });
        // The file cannot vanish while its owner lives; a half character at its end comes whole the next time.
        if more.is_ok() {
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let (monotonic, realtime) = (sys::monotonic(), sys::realtime());
            text[..whole].lines().for_each(|line| parser.feed(line, monotonic, realtime));
            *offset += whole as u64;
        }
        parser.calls().to_vec()
    }

    /// The longest relist by its metric `kubelet_pleg_relist_duration_seconds`, ns: at least, and at most. They differ where
    /// several ended before the metric could be read again.
    pub fn longest_relist(&self) -> [u64; 2] {
        [&self.metrics.at_least, &self.metrics.at_most].map(|one| one.load(Ordering::Relaxed))
    }

    /// When it logged that its PLEG is not healthy, ns of CLOCK_MONOTONIC.
    pub fn unhealthy(&self) -> Vec<u64> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        times_of(&text, "PLEG is not healthy: pleg was last seen active", sys::monotonic(), sys::realtime())
    }

    /// Ends it and waits until it is gone, so that it starts nothing again.
    pub async fn stop(self) {
        sys::signal(self.pid, libc::SIGTERM);
        let gone = || sys::state(self.pid).is_none_or(|state| state == 'Z');
        sys::until(Duration::from_secs(5), gone).await; // the ledger ends it the hard way
    }

    /// What it warned of last.
    pub fn complaints(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().filter(|line| !line.contains("[RemoteRuntimeService]")).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Starts the program with a view of the kernel's settings that it may write to.
fn spawn(
    ledger: &Ledger,
    program: &Path,
    containerd: &Containerd,
    home: &Path,
    config: &Path,
    log: &Path,
) -> Result<u32> {
    let mut hide = String::from("set -e\n");
    for (number, setting) in KERNEL_SETTINGS.iter().enumerate() {
        let real = Path::new("/proc/sys").join(setting);
        let Ok(value) = fs::read(&real) else { continue }; // a kernel without it
        let copy = home.join(format!("setting-{number}"));
        fs::write(&copy, value).with_context(|| format!("writing {}", copy.display()))?;
        hide += &format!("mount --bind {} {}\n", copy.display(), real.display());
    }
    hide += "exec \"$@\"";
    let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "--", "sh", "-c", &hide, "sh"]).arg(program);
    let folder = |name: &str| format!("{}/{name}", home.display());
    command
        .arg(format!("--config={}", config.display()))
        .args(["--container-runtime=remote", &format!("--hostname-override={NODE}")])
        .arg(format!("--container-runtime-endpoint=unix://{}", containerd.socket.display()))
        .arg(format!("--pod-infra-container-image={}", image::NAME))
        .arg(format!("--root-dir={}", folder("root")))
        .arg(format!("--cert-dir={}", folder("pki")))
        .arg(format!("--volume-plugin-dir={}", folder("volume-plugins")))
        // The lines that Parser reads, and no more.
        .args(["--v=2", "--vmodule=remote_runtime=10,generic=10"])
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stderr(output.try_clone().context("duplicating the log's descriptor")?)
        .stdout(output)
        .process_group(0);
    let child = command.spawn().context("starting unshare (util-linux)")?;
    ledger.record_process(child.id(), Duration::from_secs(5))?;
    Ok(child.id())
}

fn config_of(manifests: &Path, cgroup: &Path, [port, read_only]: [u16; 2], pace: Pace) -> serde_json::Value {
    json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "staticPodPath": manifests,
        "address": "127.0.0.1",
        "port": port,
        "readOnlyPort": read_only,
        "healthzPort": 0,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": Path::new("/").join(cgroup),
        "enforceNodeAllocatable": [],
        "kubeReserved": { "cpu": "500m" },
        // What makes a kubelet update the containers again and again.
        "cpuManagerPolicy": "static",
        "cpuManagerReconcilePeriod": format!("{}ms", pace.update_every.as_millis()),
        "runtimeRequestTimeout": format!("{}ms", pace.gives_up_after.as_millis()),
        "failSwapOn": false,
        // It would add chains to the machine's own iptables, and sockets below /var/lib/kubelet.
        "makeIPTablesUtilChains": false,
        "featureGates": { "DevicePlugins": false },
        "oomScoreAdj": 0,
        // Neither the lab's pods nor its only image shall go when the machine's disk is full.
        "evictionHard": { "memory.available": "1Mi" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
}

/// Two ports of 127.0.0.1 that nobody listens on now.
fn free_ports() -> Result<[u16; 2]> {
    let listeners = [0, 1].map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; 2];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        let listener = listener.as_ref().map_err(|error| anyhow::anyhow!("no free port: {error}"))?;
        *port = listener.local_addr().context("asking for a port")?.port();
    }
    Ok(ports)
}

/// A static pod that is to be started.
struct Planned {
    name: String,
    namespace: String,
    uid: String,
    signals: PathBuf,
}

impl Planned {
    fn new(run_name: &str, name: &str, run: &Path) -> Result<Planned> {
        let signals = run.join("signals").join(name);
        fs::create_dir_all(&signals).with_context(|| format!("creating {}", signals.display()))?;
        let namespace = pods::NAMESPACE.to_owned();
        // The name of the run makes it unique on the machine, where the folder of the logs is called after it.
        Ok(Planned {
            name: name.to_owned(),
            namespace,
            uid: pods::uid(&format!("{run_name}/{name}")),
            signals,
        })
    }

    /// What the kubelet calls it.
    fn full_name(&self) -> String {
        format!("{}-{NODE}", self.name)
    }

    fn manifest(&self, megabytes: u64) -> serde_json::Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": self.name, "namespace": self.namespace, "uid": self.uid },
            "spec": {
                "hostNetwork": true,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": pods::CONTAINER,
                    "image": image::NAME,
                    "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-c", pods::script(megabytes)],
                    "volumeMounts": [{ "name": "lab", "mountPath": "/lab" }],
                }],
                "volumes": [{ "name": "lab", "hostPath": { "path": self.signals } }],
            },
        })
    }

    fn running(&self, listed: &cri::ListContainersResponse) -> Option<Pod> {
        let ours = |one: &&cri::Container| {
            one.state == cri::Container::RUNNING && one.labels.get("io.kubernetes.pod.uid") == Some(&self.uid)
        };
        let container = listed.containers.iter().find(ours)?;
        Some(Pod {
            name: self.full_name(),
            namespace: self.namespace.clone(),
            sandbox: container.pod_sandbox_id.clone(),
            container: container.id.clone(),
            container_name: pods::CONTAINER.to_owned(),
            signals: self.signals.clone(),
        })
    }
}

/// Reads the kubelet's metrics again and again, so that the longest relist is known by its own clock.
struct Metrics {
    at_least: Arc<AtomicU64>,
    at_most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    fn watch(port: u16) -> Metrics {
        let (at_least, at_most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (least, most, end) = (at_least.clone(), at_most.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut last = None;
            while !end.load(Ordering::Relaxed) {
                let seen = scrape(port).and_then(|text| relists(&text));
                if let (Some((before, sum_before)), Some((count, sum))) = (last, seen)
                    && count > before
                {
                    let all = ((sum - sum_before) * 1e9) as u64;
                    least.fetch_max(all / (count - before), Ordering::Relaxed);
                    most.fetch_max(all, Ordering::Relaxed);
                }
                last = seen.or(last);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Metrics { at_least, at_most, stop, thread: Some(thread) }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn scrape(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Count and sum (seconds) of the relists in a metrics page.
fn relists(page: &str) -> Option<(u64, f64)> {
    let value =
        |name: &str| page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let count = value("kubelet_pleg_relist_duration_seconds_count ")?;
    Some((count as u64, value("kubelet_pleg_relist_duration_seconds_sum ")?))
}

#[cfg(test)]
mod tests {
    use super::relists;

    #[test]
    fn relists_are_read_from_a_metrics_page() {
        let page = "HTTP/1.0 200 OK\r\n\r\n\
                    kubelet_pleg_relist_duration_seconds_bucket{le=\"+Inf\"} 3\n\
                    kubelet_pleg_relist_duration_seconds_sum 12.25\n\
                    kubelet_pleg_relist_duration_seconds_count 3\n";
        assert_eq!(relists(page), Some((3, 12.25)));
        assert_eq!(relists("HTTP/1.0 200 OK\r\n\r\n"), None);
    }
}
