//! What a kubelet really uses: its flags, its configuration files, and what its CPU manager has written down.
//!
//! `cmdline` waits for the process's memory-map lock and the files may lie on a stuck disk, so all of it is for a worker;
//! `cmdline` is read only while no thread of the process is in uninterruptible sleep (one may hold that lock). Paths are
//! looked up below `/proc/PID/root`, for kubelets that run in a container.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ReadError, read_file, threads};
use crate::event::Ns;

/// A command line or a configuration file is not larger.
const LARGEST: usize = 1 << 20;
/// Files read of a `--config-dir`.
const MOST_FILES: usize = 64;
/// Threads asked for their state.
const MOST_THREADS: usize = 4096;
/// How often a process with a thread in uninterruptible sleep is looked at before it is left alone, and after what time.
const TRIES: u32 = 10;
/// See [`TRIES`].
const AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(50);

/// What was found, each with where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    /// `cpuManagerPolicy`; from the state file, if there is one, since that is what it uses.
    pub cpu_manager_policy: Option<(String, String)>,
    /// `runtimeRequestTimeout`.
    pub request_timeout: Option<(Ns, String)>,
    /// Feature gate `EventedPLEG`.
    pub evented_pleg: Option<(bool, String)>,
    /// `--root-dir`.
    pub root: Option<PathBuf>,
    /// What could not be read.
    pub troubles: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    cpu_manager_policy: Option<String>,
    runtime_request_timeout: Option<String>,
    feature_gates: std::collections::BTreeMap<String, bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CpuManagerState {
    policy_name: String,
}

/// Reads all of a kubelet's. May wait: for a worker.
pub fn configured(pid: u32) -> Result<Configured, ReadError> {
    let flags = command_line(pid)?;
    let flag = |name: &str| flag_of(&flags, name);
    let inside = |path: &str| Path::new(&format!("/proc/{pid}/root")).join(path.trim_start_matches('/'));
    let mut found = Configured::default();
    // What comes later wins, as in the kubelet: file, then folder in the order of names, then flags.
    let mut files: Vec<String> = flag("config").into_iter().collect();
    if let Some(folder) = flag("config-dir") {
        match std::fs::read_dir(inside(&folder)) {
            Ok(entries) => {
                let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
                let mut names: Vec<String> =
                    names.filter(|n| n.ends_with(".conf")).take(MOST_FILES).collect();
                names.sort_unstable();
                files.extend(names.iter().map(|name| format!("{folder}/{name}")));
            }
            Err(why) => found.troubles.push(format!("{folder}: {why}")),
        }
    }
    for name in files {
        match read_file(&inside(&name).to_string_lossy(), LARGEST).map_err(|e| e.why.to_string()) {
            Ok(text) => match parse_file(&text) {
                Ok(file) => found.take(file, &name),
                Err(why) => found.troubles.push(format!("{name}: {why}")),
            },
            Err(why) => found.troubles.push(format!("{name}: {why}")),
        }
    }
    found.take_flags(&flags);
    let root = flag("root-dir").unwrap_or_else(|| "/var/lib/kubelet".into());
    let state = format!("{root}/cpu_manager_state");
    match read_file(&inside(&state).to_string_lossy(), LARGEST) {
        Ok(text) => match serde_json::from_slice::<CpuManagerState>(&text) {
            Ok(is) => found.cpu_manager_policy = Some((is.policy_name, state)),
            Err(why) => found.troubles.push(format!("{state}: {why}")),
        },
        // A kubelet whose CPU manager is off writes none.
        Err(why) if why.is_gone() => {}
        Err(why) => found.troubles.push(format!("{state}: {}", why.why)),
    }
    found.root = Some(root.into());
    Ok(found)
}

impl Configured {
    fn take(&mut self, file: File, from: &str) {
        if let Some(policy) = file.cpu_manager_policy.filter(|p| !p.is_empty()) {
            self.cpu_manager_policy = Some((policy, from.into()));
        }
        if let Some(timeout) =
            file.runtime_request_timeout.as_deref().and_then(go_duration).filter(|t| *t > 0)
        {
            self.request_timeout = Some((timeout, from.into()));
        }
        if let Some(on) = file.feature_gates.get("EventedPLEG") {
            self.evented_pleg = Some((*on, from.into()));
        }
    }

    fn take_flags(&mut self, flags: &[String]) {
        if let Some(policy) = flag_of(flags, "cpu-manager-policy") {
            self.cpu_manager_policy = Some((policy, "--cpu-manager-policy".into()));
        }
        if let Some(timeout) = flag_of(flags, "runtime-request-timeout").as_deref().and_then(go_duration) {
            self.request_timeout = Some((timeout, "--runtime-request-timeout".into()));
        }
        for gate in flag_of(flags, "feature-gates").iter().flat_map(|gates| gates.split(',')) {
            if let Some(value) = gate.trim().strip_prefix("EventedPLEG=") {
                self.evented_pleg = Some((value.eq_ignore_ascii_case("true"), "--feature-gates".into()));
            }
        }
    }
}

/// The arguments a daemon was started with. May wait: for a worker.
pub fn command_line(pid: u32) -> Result<Vec<String>, ReadError> {
    let path = format!("/proc/{pid}/cmdline");
    // A thread that merely reads a page is in that state for a moment; one that is stuck stays in it.
    let mut tries = 0;
    while let Some(tid) = stuck_thread(pid)? {
        tries += 1;
        if tries == TRIES {
            let stuck = std::io::Error::other(format!("its thread {tid} is stuck in the kernel; not tried"));
            return Err(ReadError::new(path, stuck));
        }
        std::thread::sleep(AGAIN_AFTER);
    }
    let text = read_file(&path, LARGEST)?;
    Ok(text.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// A thread of the process that is in uninterruptible sleep.
fn stuck_thread(pid: u32) -> Result<Option<u32>, ReadError> {
    let is_stuck = |tid: &u32| {
        let stat = read_file(&format!("/proc/{pid}/task/{tid}/stat"), 16 * 1024).ok();
        stat.and_then(|text| super::procs::parse_stat(&text)).is_some_and(|stat| stat.state == 'D')
    };
    Ok(threads::of_process(pid, MOST_THREADS)?.into_iter().find(is_stuck))
}

/// The value of `--name=value` or `--name value`; the last one counts.
pub fn flag_of(arguments: &[String], name: &str) -> Option<String> {
    let mut value = None;
    for (at, argument) in arguments.iter().enumerate() {
        let Some(rest) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { continue };
        match rest.strip_prefix(name) {
            Some("") => value = arguments.get(at + 1).cloned(),
            Some(rest) => value = rest.strip_prefix('=').map(str::to_owned).or(value),
            None => {}
        }
    }
    value.filter(|value| !value.is_empty())
}

/// A `KubeletConfiguration` in YAML or JSON.
fn parse_file(text: &[u8]) -> Result<File, String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    serde_saphyr::from_str(text).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

/// A duration as Go prints and reads it: `2m0s`, `1.5h`, `300ms`. In nanoseconds.
pub fn go_duration(text: &str) -> Option<Ns> {
    let (mut total, mut rest) = (0f64, text);
    if rest == "0" {
        return Some(0);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * unit;
        rest = tail;
    }
    (!text.is_empty() && total < 1e18).then_some(total as Ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    #[test]
    fn durations_as_go_writes_them() {
        for (text, ns) in
            [("2m0s", 120_000_000_000), ("1.5h", 5_400_000_000_000), ("300ms", 300_000_000), ("0", 0)]
        {
            assert_eq!(go_duration(text), Some(ns), "{text}");
        }
        for text in ["", "2", "m", "2x", "-1s", "1.2.3s"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    #[test]
    fn flags_in_both_forms() {
        let flags: Vec<String> =
            ["kubelet", "--config=/a", "--root-dir", "/b", "--config", "/c", "--configure=x", "--v=2"]
                .map(String::from)
                .into();
        assert_eq!(flag_of(&flags, "config").as_deref(), Some("/c"));
        assert_eq!(flag_of(&flags, "root-dir").as_deref(), Some("/b"));
        assert_eq!(flag_of(&flags, "cpu-manager-policy"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "\\PC{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (go_duration(&text), flag_of(std::slice::from_ref(&text), "config"), parse_file(text.as_bytes()), parse_file(&bytes));
        }
    }

    /// A process with a kubelet's command line and real files.
    #[test]
    fn a_configured_kubelet() {
        let folder = std::env::temp_dir().join(format!("kubelet-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write(
            "c.yaml",
            "kind: KubeletConfiguration\ncpuManagerPolicy: none\nruntimeRequestTimeout: 2m0s\nfeatureGates:\n  EventedPLEG: false\nauthentication: {anonymous: {enabled: true}}\n",
        );
        write("d/10.conf", "{\"cpuManagerPolicy\": \"static\", \"kind\": \"KubeletConfiguration\"}");
        write("d/ignored.txt", ":::");
        let f = folder.display();
        let mut child = Command::new("sh")
            .args([
                "-c",
                "read x; :",
                "kubelet",
                &format!("--config={f}/c.yaml"),
                &format!("--config-dir={f}/d"),
            ])
            .args([&format!("--root-dir={f}"), "--feature-gates=A=true,EventedPLEG=true"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        while !std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().starts_with(b"sh\0-c") {
            std::thread::yield_now();
        }
        let found = configured(child.id()).unwrap();
        let policy = |found: &Configured| found.cpu_manager_policy.clone().unwrap();
        assert_eq!(policy(&found), ("static".into(), format!("{f}/d/10.conf")));
        assert_eq!(found.request_timeout, Some((120_000_000_000, format!("{f}/c.yaml"))));
        assert_eq!(found.evented_pleg, Some((true, "--feature-gates".into())));
        assert_eq!(found.root.as_deref(), Some(folder.as_path()));
        assert!(found.troubles.is_empty(), "{found:?}");
        // What the CPU manager wrote down is what it uses; a file that cannot be understood is said.
        write(
            "cpu_manager_state",
            "{\"policyName\":\"none\",\"defaultCpuSet\":\"\",\"checksum\":1353318690}",
        );
        write("c.yaml", "cpuManagerPolicy: [\n");
        let found = configured(child.id()).unwrap();
        assert_eq!(policy(&found), ("none".into(), format!("{f}/cpu_manager_state")));
        assert_eq!(found.troubles.len(), 1, "{found:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
