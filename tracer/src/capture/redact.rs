//! Names out, their hashes in: the same name becomes the same hash, in every capture that is made with the same key.
//!
//! Hidden are names that people give: of nodes, pods, namespaces, containers, control groups and folders. Kept are the
//! numbers by which the node's own logs can be searched: container ids, pod uids, processes, devices. Text for people
//! (why something cannot be seen) is kept but for paths and names in it; messages of plegscope itself are left out.
//!
//! It sits before everything that tells anything: no diagnosis and no record is ever made of the names themselves.

use super::{Header, Line};
use crate::event::{Body, Container, Event, Operation, Role};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::collections::BTreeMap;

/// Names that are remembered, to be found again in text.
const MOST_NAMES: usize = 16_384;
/// A shorter name is not looked for in text: it may be any word.
const SHORTEST: usize = 3;

/// Parts of paths that say nothing about whose they are.
const PLAIN: [&str; 52] = [
    "",
    ".",
    "..",
    "bin",
    "boot",
    "bundle",
    "cgroup",
    "containerd",
    "containers",
    "cri",
    "data",
    "default",
    "dev",
    "devices",
    "empty-dir",
    "etc",
    "fs",
    "home",
    "init.scope",
    "k3s",
    "k8s.io",
    "kubelet",
    "kubepods",
    "kubepods.slice",
    "lib",
    "log",
    "merged",
    "mnt",
    "moby",
    "opt",
    "overlay",
    "overlayfs",
    "pids",
    "pods",
    "proc",
    "rancher",
    "rootfs",
    "root",
    "run",
    "runc",
    "sandboxes",
    "shm",
    "snapshots",
    "srv",
    "state",
    "sys",
    "system.slice",
    "tmp",
    "upper",
    "user.slice",
    "usr",
    "var",
];
/// Parts of paths that begin so.
const PLAIN_BEGIN: [&str; 5] =
    ["io.containerd.", "kubepods-", "kubernetes.io~", "cri-containerd-", "containerd-mount"];
/// The folder of the bundles: below it are namespaces, and below these the ids of containers.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// Units whose names are known to everybody.
const PLAIN_UNITS: [&str; 4] = ["containerd.service", "kubelet.service", "k3s.service", "k3s-agent.service"];

/// Replaces names.
pub struct Redactor {
    key: Hmac<Sha256>,
    /// Names that were seen, and what became of them.
    names: BTreeMap<String, String>,
}

impl Redactor {
    /// With a key: who has it can find out whether a name is the one behind a hash, and nobody else.
    pub fn new(key: &[u8]) -> Redactor {
        // A key may have any length.
        let key = Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
        Redactor { key, names: BTreeMap::new() }
    }

    fn hash(&self, of: &str, name: &str) -> String {
        let mut mac = self.key.clone();
        mac.update(of.as_bytes());
        mac.update(&[0]);
        mac.update(name.as_bytes());
        let hash = mac.finalize().into_bytes();
        hash.iter().take(6).fold(format!("{of}-"), |text, byte| format!("{text}{byte:02x}"))
    }

    /// A name that is remembered.
    fn name(&mut self, of: &str, name: &mut String) {
        if name.is_empty() {
            return;
        }
        let hash = self.hash(of, name);
        if name.len() >= SHORTEST && self.names.len() < MOST_NAMES {
            self.names.insert(std::mem::take(name), hash.clone());
        }
        *name = hash;
    }

    /// The header's names.
    pub fn header(&mut self, header: &mut Header) {
        self.name("host", &mut header.host);
        header.redacted = true;
    }

    /// All names in a line.
    pub fn line(&mut self, line: &mut Line) {
        match line {
            Line::Header(header) => self.header(header),
            Line::Event(event) | Line::Known(event) => self.event(event),
            Line::Survey(survey) => {
                for probe in &mut survey.probes {
                    self.text(&mut probe.note);
                    self.text(&mut probe.loss);
                }
                survey.programs.iter_mut().for_each(|program| self.comm(program.role, &mut program.comm));
            }
            Line::Log { text, .. } => *text = "(left out, since names are hidden)".to_owned(),
            Line::Heard(_) | Line::Clock(_) | Line::Incident(_) | Line::Loss(_) | Line::End(_) => {}
        }
    }

    fn event(&mut self, event: &mut Event) {
        match &mut event.body {
            Body::InFlight(op) | Body::Ended(op, _) => self.operation(op),
            Body::Container(container) => self.container(container),
            Body::Process(process) => {
                self.comm(process.role, &mut process.comm);
                process.version.iter_mut().for_each(|version| self.text(version));
            }
            Body::Cost(cost) => self.comm(cost.role, &mut cost.comm),
            Body::Writers(writers) => {
                writers.of.iter_mut().for_each(|writer| writer.cgroup = self.path(&writer.cgroup));
                self.text(&mut writers.reason);
            }
            Body::Kubelet(kubelet) => {
                let places = kubelet.pleg_threshold.iter_mut().map(|(_, place)| place);
                let places: Vec<&mut String> =
                    places.chain(kubelet.cpu_manager_policy.iter_mut().map(|(_, place)| place)).collect();
                places.into_iter().for_each(|place| self.text(place));
            }
            Body::Pins(pins) => {
                pins.path = self.path(&pins.path);
                self.text(&mut pins.reason);
                for pin in &mut pins.of {
                    self.name("comm", &mut pin.comm);
                    self.text(&mut pin.how);
                }
            }
            Body::BlindSpot { what, reason } => {
                self.text(what);
                self.text(reason);
            }
            Body::Woken { .. }
            | Body::PollComplete { .. }
            | Body::ProcessGone { .. }
            | Body::LockIdentity { .. }
            | Body::ThreadSite(_)
            | Body::Device(_)
            | Body::Memory { .. }
            | Body::Pressure(_)
            | Body::LeakedShim { .. }
            | Body::Looked { .. }
            | Body::GoroutineSite(_)
            | Body::Lost { .. } => {}
        }
    }

    fn operation(&mut self, op: &mut Operation) {
        if let Some(path) = &mut op.path {
            *path = self.path(path);
        }
        self.text(&mut op.method);
    }

    fn container(&mut self, container: &mut Container) {
        for (of, name) in [
            ("pod", &mut container.pod),
            ("ns", &mut container.namespace),
            ("container", &mut container.name),
        ] {
            name.iter_mut().for_each(|name| self.name(of, name));
        }
        if !PLAIN.contains(&container.runtime_namespace.as_str()) {
            self.name("ns", &mut container.runtime_namespace);
        }
    }

    /// Names of what plegscope looks at are known to everybody, others' are not.
    fn comm(&mut self, role: Role, comm: &mut String) {
        if role == Role::Other {
            self.name("comm", comm);
        }
    }

    /// A path, part by part: what everybody's paths have, and numbers, stay.
    fn path(&self, path: &str) -> String {
        let parts: Vec<&str> = path.split('/').collect();
        // Not every id has the form of one, and ids stay.
        let id = parts.iter().position(|part| *part == TASKS).map(|at| at + 2);
        let hidden = parts
            .iter()
            .enumerate()
            .map(|(n, part)| if Some(n) == id { (*part).to_owned() } else { self.part(part) });
        hidden.collect::<Vec<_>>().join("/")
    }

    fn part(&self, part: &str) -> String {
        let plain = PLAIN.contains(&part)
            || PLAIN_UNITS.contains(&part)
            || is_number(part)
            || PLAIN_BEGIN.iter().any(|begin| {
                part.strip_prefix(begin).is_some_and(|rest| *begin != "kubepods-" || is_pod(rest))
            });
        if plain {
            return part.to_owned();
        }
        if let Some(hash) = self.names.get(part) {
            return hash.clone();
        }
        // What kind of unit it is can be told.
        match part.rsplit_once('.') {
            Some((name, kind @ ("slice" | "scope" | "service"))) => {
                format!("{}.{kind}", self.hash("name", name))
            }
            _ => self.hash("name", part),
        }
    }

    /// Text for people: paths in it, and names that were seen.
    fn text(&self, text: &mut String) {
        let known = |word: &str| {
            let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
            if let Some(hash) = self.names.get(bare) {
                return word.replace(bare, hash);
            }
            if word.contains('/') {
                let end = word.trim_end_matches([',', ';', ':', ')', '.', '\'', '"']).len();
                let (path, end) = word.split_at(end);
                let begin = path.len() - path.trim_start_matches(['(', '\'', '"']).len();
                let (begin, path) = path.split_at(begin);
                return format!("{begin}{}{end}", self.path(path));
            }
            word.to_owned()
        };
        if text.contains('/') || !self.names.is_empty() {
            *text = text.split(' ').map(known).collect::<Vec<_>>().join(" ");
        }
    }
}

/// A number, a uid, or the id of a container.
fn is_number(part: &str) -> bool {
    let decimal = part.bytes().all(|b| b.is_ascii_digit());
    let hex = part.len() >= 12 && part.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'_');
    decimal || hex
}

/// What follows on `kubepods-`: `burstable.slice`, `besteffort-pod0123….slice`.
fn is_pod(rest: &str) -> bool {
    let rest = rest.trim_end_matches(".slice");
    let class = ["besteffort", "burstable"].iter().find_map(|class| rest.strip_prefix(class)).unwrap_or(rest);
    class.is_empty() || class.trim_start_matches('-').strip_prefix("pod").is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Actor, Began, Kind, Pin, Pins, SeenBy, Writer, Writers};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn container() -> Container {
        Container {
            id: ID.into(),
            runtime_namespace: "k8s.io".into(),
            pod: Some("billing-7".into()),
            namespace: Some("acme".into()),
            name: Some("ledger".into()),
            sandbox: false,
            shim: Some(7),
            upper: None,
            volatile: None,
        }
    }

    fn redacted(redactor: &mut Redactor, body: Body) -> String {
        let mut line = Line::Event(Event { at: 1, body });
        redactor.line(&mut line);
        serde_json::to_string(&line).unwrap()
    }

    #[test]
    fn no_name_is_left_and_numbers_stay() {
        let mut redactor = Redactor::new(b"key");
        let mut all = redacted(&mut redactor, Body::Container(container()));
        let path = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/rootfs");
        let operation = Operation {
            kind: Kind::Unmount,
            method: String::new(),
            actor: Actor { pid: 5, tid: 5, g: None, goid: None },
            begin: 1,
            began: Began::Then,
            object: 0,
            container: Some(ID.into()),
            path: Some(path.clone()),
            device: None,
            fs_type: None,
            seen_by: SeenBy::Uprobe,
        };
        let kept = redacted(&mut redactor, Body::InFlight(operation.clone()));
        assert!(kept.contains(&path), "{kept}");
        let volume = "/var/lib/kubelet/pods/0b5c2d1e-1111-2222-3333-444455556666/volumes/acme-share";
        all += &redacted(
            &mut redactor,
            Body::InFlight(Operation { path: Some(volume.into()), ..operation.clone() }),
        );
        let stalled = "frozen by its cgroup /acme.slice/ledger.service";
        all += &redacted(&mut redactor, Body::InFlight(Operation { method: stalled.into(), ..operation }));
        let pin = Pin { pid: 1, comm: "ledgerd".into(), container: None, how: "works in /srv/acme".into() };
        let pins =
            Pins { path: volume.into(), of: vec![pin], reason: "pod billing-7, (acme) /acme/x: no".into() };
        all += &redacted(&mut redactor, Body::Pins(pins));
        let cgroup = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b5c2d1e_1111_2222_3333_444455556666.slice";
        let writer = |cgroup: String| Writer {
            cgroup,
            container: None,
            gone: false,
            dirty: 1,
            writeback: 0,
            written: vec![],
        };
        let writers = |cgroup: &str| {
            Body::Writers(Writers { of: vec![writer(cgroup.into())], left_out: 0, reason: String::new() })
        };
        assert!(redacted(&mut redactor, writers(cgroup)).contains(cgroup));
        all += &redacted(&mut redactor, writers("/system.slice/acme-billing.service"));
        for name in ["billing", "acme", "ledger"] {
            assert!(!all.contains(name), "{name} in {all}");
        }
        for kept in ["0b5c2d1e-1111", ID, "system.slice", ".service", "frozen by its cgroup /"] {
            assert!(all.contains(kept), "{kept} not in {all}");
        }
    }

    #[test]
    fn the_same_name_has_the_same_hash_with_the_same_key_only() {
        let hashed = |key: &[u8]| redacted(&mut Redactor::new(key), Body::Container(container()));
        assert_eq!(hashed(b"a"), hashed(b"a"));
        assert_ne!(hashed(b"a"), hashed(b"b"));
        // A pod and a namespace of one name are not told to be the same.
        let redactor = Redactor::new(b"a");
        assert_ne!(redactor.hash("pod", "x")[4..], redactor.hash("ns", "x")[3..]);
        // From elsewhere: hmac.new(b'a', b'pod\0x', 'sha256').hexdigest()[:12].
        assert_eq!(redactor.hash("pod", "x"), "pod-83a014606ba2");
    }
}
