//! Which containers there are and what they are called, from their runtime bundles; never from CRI.
//!
//! A bundle disappears when its container is deleted, which is when its name is wanted most: names are read at first
//! sight and kept. Bundles are looked at on a worker with a time limit. Usually they lie on a tmpfs and the answer
//! comes at once; where they do not, a look that hangs is left alone, and not repeated until it has come back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::ReadError;
use super::bundle::{self, BundleId, Folder, Names};
use super::mounts::{Mounts, Overlay};
use super::worker::{WorkerError, Workers};
use crate::event::Container;

/// Containers remembered at most, deleted ones included. Beyond it the ones deleted first are forgotten.
const LIMIT: usize = 4096;
/// Containers remembered that are gone: nothing about them can be read any more, and all that could has been told.
const GONE: usize = 512;
/// `config.json` files read in one look at a folder.
const CONFIGS_PER_LOOK: usize = 256;
/// Longest a caller waits for one look.
const LOOK: Duration = Duration::from_millis(250);
/// Looks after which a `config.json` that cannot be understood, or a rootfs that is not mounted, is given up. A bundle
/// is there before its files, and its rootfs is mounted when the container is created.
const TRIES: u32 = 30;

/// What is new since the previous scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Containers seen for the first time, or of which more is known.
    pub containers: Vec<Container>,
    /// What cannot be seen and why, as for [`crate::event::Body::BlindSpot`]; an empty reason ends one.
    pub blind_spots: Vec<(String, String)>,
}

/// The containers of the node.
pub struct Containers {
    shims: BTreeMap<u32, BundleId>,
    places: BTreeMap<Place, PlaceState>,
    known: BTreeMap<BundleId, Known>,
    scans: u64,
    blind: BTreeMap<String, String>,
    /// Longest wait for one look.
    patience: Duration,
}

impl Default for Containers {
    fn default() -> Self {
        Self::new()
    }
}

/// Where bundles lie: a namespace of one containerd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    state: PathBuf,
    namespace: String,
}

/// Looks that have been started. One that somebody else still holds has not come back.
#[derive(Default)]
struct PlaceState {
    bundles: Arc<()>,
    mounts: Arc<()>,
}

#[derive(Default)]
struct Known {
    /// `None` until it has been read.
    names: Option<Names>,
    /// `None` until it is known what is mounted, then `None` inside when it is no overlay.
    overlay: Option<Option<Overlay>>,
    name_tries: u32,
    mount_tries: u32,
    shim: Option<u32>,
    /// The scan that missed it first.
    gone: Option<u64>,
    shown: Option<Container>,
}

impl Place {
    fn of(bundle: &BundleId) -> Place {
        Place { state: bundle.state.clone(), namespace: bundle.namespace.clone() }
    }

    fn bundle(&self, id: &str) -> BundleId {
        BundleId { state: self.state.clone(), namespace: self.namespace.clone(), id: id.into() }
    }
}

/// What a look at the bundles of one place gave.
struct Bundles {
    ids: BTreeSet<String>,
    names: Vec<(String, Result<Names, ReadError>)>,
}

/// What is mounted as the root file system of a container.
enum Rootfs {
    Nothing,
    NoOverlay,
    Overlay(Overlay),
}

impl Containers {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Containers {
            shims: BTreeMap::new(),
            places: BTreeMap::new(),
            known: BTreeMap::new(),
            scans: 0,
            blind: BTreeMap::new(),
            patience: LOOK,
        }
    }

    /// A shim has appeared: its bundles are looked at from the next scan on. Gives the bundle it was started for. Fails
    /// for a process that is not (yet) in a bundle; ask again later.
    pub fn shim_appeared(&mut self, pid: u32) -> Result<BundleId, ReadError> {
        let bundle = bundle::of_shim(pid)?;
        self.places.entry(Place::of(&bundle)).or_default();
        self.shims.insert(pid, bundle.clone());
        Ok(bundle)
    }

    /// A shim has ended. What it ran stays known until there are too many.
    pub fn shim_gone(&mut self, pid: u32) {
        self.shims.remove(&pid);
    }

    /// What is known of a container. Where several containerds use different names for the same state folder
    /// (`/var/run`), a container of that namespace and id is taken if there is only one.
    pub fn get(&self, bundle: &BundleId) -> Option<&Container> {
        if let Some(known) = self.known.get(bundle) {
            return known.shown.as_ref();
        }
        let mut alike = self
            .known
            .iter()
            .filter(|(other, _)| other.id == bundle.id && other.namespace == bundle.namespace);
        match (alike.next(), alike.next()) {
            (Some((_, only)), None) => only.shown.as_ref(),
            _ => None,
        }
    }

    /// The container whose root file system is mounted at this path, as an unmount names it.
    pub fn at_rootfs(&self, path: &Path) -> Option<&Container> {
        path.file_name().filter(|name| *name == "rootfs")?;
        self.get(&BundleId::of_path(path)?)
    }

    /// Looks at the bundles and mounts of every place. Waits for each at most a quarter of a second.
    pub fn scan(&mut self, workers: &Workers) -> Changes {
        self.scans += 1;
        let mut troubles = BTreeMap::new();
        let places: Vec<Place> = self.places.keys().cloned().collect();
        for place in &places {
            let shims: Vec<(u32, BundleId)> = self
                .shims
                .iter()
                .filter(|(_, bundle)| Place::of(bundle) == *place)
                .map(|(pid, bundle)| (*pid, bundle.clone()))
                .collect();
            let called = format!("{} of {}", place.namespace, place.state.display());
            if shims.is_empty() {
                // Without a shim there is no way in that does not walk through other file systems, and nothing runs.
                self.settle(place, BTreeSet::new());
                self.places.remove(place);
                continue;
            }
            match self.look_at_bundles(place, shims.clone(), workers) {
                Ok(found) => self.learn_names(place, found, &mut troubles),
                Err(why) => _ = troubles.insert(format!("containers in {called}"), why),
            }
            match self.look_at_mounts(place, &shims, workers) {
                Ok(found) => self.learn_mounts(found),
                Err(why) => _ = troubles.insert(format!("upper file systems in {called}"), why),
            }
        }
        let refused = self.forget();
        if refused > 0 {
            let why = format!("{refused} more than the {LIMIT} that are remembered");
            troubles.insert("containers".into(), why);
        }
        Changes { containers: self.news(), blind_spots: self.blind_spots(troubles) }
    }

    fn look_at_bundles(
        &self,
        place: &Place,
        shims: Vec<(u32, BundleId)>,
        workers: &Workers,
    ) -> Result<Bundles, String> {
        let settled: BTreeSet<String> = self
            .of_place(place)
            .filter(|(_, known)| known.gone.is_none() && (known.names.is_some() || known.name_tries >= TRIES))
            .map(|(bundle, _)| bundle.id.clone())
            .collect();
        let started = self.places.get(place).map(|state| Arc::clone(&state.bundles)).unwrap_or_default();
        run_once(workers, self.patience, started, move || look_at_bundles(&shims, &settled))?
            .map_err(|e| e.to_string())
    }

    /// Finds out what is mounted for those containers of which it is not known.
    fn look_at_mounts(
        &self,
        place: &Place,
        shims: &[(u32, BundleId)],
        workers: &Workers,
    ) -> Result<Vec<(BundleId, Rootfs)>, String> {
        let Some((any, _)) = shims.first() else { return Ok(Vec::new()) };
        let wanted: Vec<(BundleId, u32)> = self
            .of_place(place)
            .filter(|(_, known)| known.gone.is_none() && known.overlay.is_none() && known.mount_tries < TRIES)
            .map(|(bundle, known)| {
                let own = known.shim.filter(|pid| self.shims.contains_key(pid));
                (bundle.clone(), own.unwrap_or(*any))
            })
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let started = self.places.get(place).map(|state| Arc::clone(&state.mounts)).unwrap_or_default();
        run_once(workers, self.patience, started, move || look_at_mounts(wanted))?.map_err(|e| e.to_string())
    }

    fn of_place<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = (&'a BundleId, &'a Known)> {
        self.known.range(place.bundle("")..).take_while(|(bundle, _)| Place::of(bundle) == *place)
    }

    fn learn_names(&mut self, place: &Place, found: Bundles, troubles: &mut BTreeMap<String, String>) {
        for id in &found.ids {
            let known = self.known.entry(place.bundle(id)).or_default();
            if known.gone.is_some() {
                // Deleted and made again under the same id: what was known is about the other one.
                *known = Known { shown: known.shown.take(), ..Known::default() };
            }
        }
        for (id, names) in found.names {
            let Some(known) = self.known.get_mut(&place.bundle(&id)) else { continue };
            known.name_tries += 1;
            match names {
                Ok(names) => known.names = Some(names),
                Err(why) if known.name_tries >= TRIES && !why.is_gone() => {
                    _ = troubles.insert(format!("name of container {id}"), why.to_string());
                }
                Err(_) => {}
            }
        }
        self.settle(place, found.ids);
        // A sandbox is run by the shim that was started for it, and so is everything else in its pod.
        let shims: HashMap<&BundleId, u32> = self.shims.iter().map(|(pid, bundle)| (bundle, *pid)).collect();
        let first = place.bundle("");
        let here = self.known.range_mut(&first..).take_while(|(bundle, _)| Place::of(bundle) == *place);
        for (bundle, known) in here {
            let sandbox = known.names.as_ref().and_then(|names| names.sandbox_id.as_deref());
            let started_for = sandbox.map(|id| place.bundle(id));
            known.shim = shims.get(started_for.as_ref().unwrap_or(bundle)).copied().or(known.shim);
        }
        self.name_by_sandbox(place);
    }

    /// containerd 1.4 writes the pod's name into the sandbox only.
    fn name_by_sandbox(&mut self, place: &Place) {
        let nameless: Vec<(BundleId, BundleId)> = self
            .of_place(place)
            .filter_map(|(bundle, known)| {
                let names = known.names.as_ref().filter(|names| names.pod.is_none() && !names.sandbox)?;
                Some((bundle.clone(), place.bundle(names.sandbox_id.as_deref()?)))
            })
            .collect();
        for (bundle, sandbox) in nameless {
            let pod =
                self.known.get(&sandbox).and_then(|known| known.names.as_ref()).filter(|names| names.sandbox);
            let Some((pod, namespace)) = pod.map(|names| (names.pod.clone(), names.namespace.clone())) else {
                continue;
            };
            if let Some(names) = self.known.get_mut(&bundle).and_then(|known| known.names.as_mut()) {
                (names.pod, names.namespace) = (pod, namespace);
            }
        }
    }

    fn learn_mounts(&mut self, found: Vec<(BundleId, Rootfs)>) {
        for (bundle, rootfs) in found {
            let Some(known) = self.known.get_mut(&bundle) else { continue };
            known.mount_tries += 1;
            match rootfs {
                Rootfs::Nothing => {}
                Rootfs::NoOverlay => known.overlay = Some(None),
                Rootfs::Overlay(overlay) => known.overlay = Some(Some(overlay)),
            }
        }
    }

    /// Marks what is not in `present` as gone.
    fn settle(&mut self, place: &Place, present: BTreeSet<String>) {
        let scan = self.scans;
        let first = place.bundle("");
        let here = self.known.range_mut(&first..).take_while(|(bundle, _)| Place::of(bundle) == *place);
        for (_, known) in here.filter(|(bundle, _)| !present.contains(&bundle.id)) {
            known.gone.get_or_insert(scan);
        }
    }

    /// Keeps to the limits; gives how many containers that are there had to be forgotten.
    fn forget(&mut self) -> usize {
        let mut refused = 0;
        let mut gone = self.known.values().filter(|known| known.gone.is_some()).count();
        while self.known.len() > LIMIT || gone > GONE {
            gone = gone.saturating_sub(1);
            let oldest = self.known.iter().min_by_key(|(_, known)| known.gone.unwrap_or(u64::MAX));
            let Some((bundle, there)) = oldest.map(|(bundle, known)| (bundle.clone(), known.gone.is_none()))
            else {
                break;
            };
            refused += usize::from(there);
            self.known.remove(&bundle);
        }
        refused
    }

    /// What has not been shown yet.
    fn news(&mut self) -> Vec<Container> {
        let mut news = Vec::new();
        for (bundle, known) in &mut self.known {
            // Nothing is said of a container while its name may still come.
            if known.names.is_none() && known.gone.is_none() && known.name_tries < TRIES {
                continue;
            }
            let names = known.names.clone().unwrap_or_default();
            let overlay = known.overlay.clone().flatten();
            let container = Container {
                id: bundle.id.clone(),
                runtime_namespace: bundle.namespace.clone(),
                pod: names.pod,
                namespace: names.namespace,
                name: names.container,
                sandbox: names.sandbox,
                shim: known.shim,
                volatile: overlay.as_ref().map(|overlay| overlay.volatile),
                upper: overlay.and_then(|overlay| overlay.upper),
            };
            if known.shown.as_ref() != Some(&container) {
                known.shown = Some(container.clone());
                news.push(container);
            }
        }
        news
    }

    /// What has changed in what cannot be seen.
    fn blind_spots(&mut self, troubles: BTreeMap<String, String>) -> Vec<(String, String)> {
        let ended = self.blind.keys().filter(|what| !troubles.contains_key(*what));
        let mut changes: Vec<(String, String)> = ended.map(|what| (what.clone(), String::new())).collect();
        let new = troubles.iter().filter(|(what, why)| self.blind.get(*what) != Some(*why));
        changes.extend(new.map(|(what, why)| (what.clone(), why.clone())));
        self.blind = troubles;
        changes
    }
}

/// Runs a look on a worker unless the previous one of its kind, which held `started` too, has not come back.
fn run_once<T: Send + 'static>(
    workers: &Workers,
    patience: Duration,
    started: Arc<()>,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    // One for whom it is kept, one here.
    if Arc::strong_count(&started) > 2 {
        return Err("an earlier look has not come back from the file system".into());
    }
    let outcome = workers.run(patience, move || {
        let answer = look();
        drop(started);
        answer
    });
    outcome.map_err(|e: WorkerError| e.to_string())
}

/// Lists the bundles of a place and reads the names in those that are not settled. May hang.
fn look_at_bundles(shims: &[(u32, BundleId)], settled: &BTreeSet<String>) -> Result<Bundles, ReadError> {
    let mut refused = None;
    for (pid, bundle) in shims {
        let folder = match Folder::of_shim(*pid, bundle) {
            Ok(folder) => folder,
            Err(e) => {
                refused = Some(e);
                continue;
            }
        };
        let what = || format!("the bundles beside {}", bundle.path().display());
        let ids = folder.ids(LIMIT * 2).map_err(|e| ReadError::new(what(), e))?;
        let ids: BTreeSet<String> = ids.into_iter().collect();
        let wanted = ids.iter().filter(|id| !settled.contains(*id)).take(CONFIGS_PER_LOOK);
        let names = wanted.map(|id| (id.clone(), folder.names(id))).collect();
        return Ok(Bundles { ids, names });
    }
    let nobody = || ReadError::malformed("the bundles", "no shim is there any more");
    Err(refused.unwrap_or_else(nobody))
}

/// Finds what is mounted for each container, as its shim sees it. May hang.
fn look_at_mounts(wanted: Vec<(BundleId, u32)>) -> Result<Vec<(BundleId, Rootfs)>, ReadError> {
    // Shims of one containerd share a mount namespace, so its mounts are read once.
    let mut read: HashMap<OsString, Mounts> = HashMap::new();
    let mut found = Vec::with_capacity(wanted.len());
    for (bundle, pid) in wanted {
        let link = format!("/proc/{pid}/ns/mnt");
        let namespace = match std::fs::read_link(&link).map_err(|e| ReadError::new(link, e)) {
            Ok(namespace) => namespace.into_os_string(),
            Err(e) if e.is_gone() => continue,
            Err(e) => return Err(e),
        };
        if !read.contains_key(&namespace) {
            match Mounts::of(pid) {
                Ok(mounts) => _ = read.insert(namespace.clone(), mounts),
                Err(e) if e.is_gone() => continue,
                Err(e) => return Err(e),
            }
        }
        let Some(mounts) = read.get(&namespace) else { continue };
        let rootfs = bundle.rootfs();
        let seen = match mounts.overlay_at(&rootfs) {
            Some(overlay) => Rootfs::Overlay(overlay),
            None if mounts.at(&rootfs).is_some() => Rootfs::NoOverlay,
            None => Rootfs::Nothing,
        };
        found.push((bundle, seen));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::bundle::tests::State;
    use std::fs;

    const SANDBOX: &str = "aa00000000000000000000000000000000000000000000000000000000000001";
    const MEMBER: &str = "bb00000000000000000000000000000000000000000000000000000000000002";

    /// Never gives up on a look: a loaded machine is no reason for a test to fail.
    fn patient() -> Containers {
        Containers { patience: Duration::from_secs(600), ..Containers::new() }
    }

    fn config(kind: &str, names: &str) -> String {
        format!(
            r#"{{"annotations":{{"io.kubernetes.cri.container-type":"{kind}","io.kubernetes.cri.sandbox-id":"{SANDBOX}"{names}}}}}"#
        )
    }

    const NAMES: &str =
        r#","io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop""#;

    #[test]
    fn a_pod_comes_and_goes_and_its_names_stay() {
        let state = State::new("pod", SANDBOX);
        state.write_config(SANDBOX, &config("sandbox", NAMES));
        let workers = Workers::new(2);
        let mut containers = patient();
        let pid = state.shim.id();
        assert_eq!(containers.shim_appeared(pid).unwrap(), state.bundle(SANDBOX));

        let changes = containers.scan(&workers);
        let sandbox = Container {
            id: SANDBOX.into(),
            runtime_namespace: "k8s.io".into(),
            pod: Some("web-0".into()),
            namespace: Some("shop".into()),
            name: None,
            sandbox: true,
            shim: Some(pid),
            upper: None,
            volatile: None,
        };
        assert_eq!(changes, Changes { containers: vec![sandbox.clone()], blind_spots: vec![] });
        assert_eq!(containers.scan(&workers), Changes::default());

        // The bundle is there before its file is complete.
        state.write_config(MEMBER, "{\"annotations\":");
        assert_eq!(containers.scan(&workers), Changes::default());
        let names = format!(r#"{NAMES},"io.kubernetes.cri.container-name":"nginx""#);
        state.write_config(MEMBER, &config("container", &names));
        let member = Container { id: MEMBER.into(), name: Some("nginx".into()), sandbox: false, ..sandbox };
        assert_eq!(containers.scan(&workers).containers, vec![member.clone()]);

        fs::remove_dir_all(state.bundle(MEMBER).path()).unwrap();
        assert_eq!(containers.scan(&workers), Changes::default());
        assert_eq!(containers.at_rootfs(&state.bundle(MEMBER).rootfs()), Some(&member));
        assert_eq!(containers.at_rootfs(&state.bundle(MEMBER).path()), None);
        let elsewhere = BundleId { state: "/var/run/x".into(), ..state.bundle(MEMBER) };
        assert_eq!(containers.get(&elsewhere), Some(&member));
        containers.shim_gone(pid);
        assert_eq!(containers.scan(&workers), Changes::default());
        assert_eq!(containers.get(&state.bundle(MEMBER)), Some(&member));
    }

    #[test]
    fn old_containerd_names_its_members_by_the_sandbox() {
        let state = State::new("old", SANDBOX);
        let folder = r#","io.kubernetes.cri.sandbox-log-directory":"/var/log/pods/shop_web-0_0f2b""#;
        state.write_config(SANDBOX, &config("sandbox", folder));
        state.write_config(MEMBER, &config("container", ""));
        let mut containers = patient();
        containers.shim_appeared(state.shim.id()).unwrap();
        let seen = containers.scan(&Workers::new(1)).containers;
        let member = seen.iter().find(|c| c.id == MEMBER).unwrap();
        assert_eq!((member.pod.as_deref(), member.namespace.as_deref()), (Some("web-0"), Some("shop")));
        assert_eq!((member.name.as_deref(), member.shim), (None, Some(state.shim.id())));
    }

    #[test]
    fn a_container_made_again_under_the_same_id_is_read_again() {
        let state = State::new("again", SANDBOX);
        state.write_config(SANDBOX, &config("sandbox", NAMES));
        let workers = Workers::new(1);
        let mut containers = patient();
        containers.shim_appeared(state.shim.id()).unwrap();
        state.write_config("job", "{}");
        assert_eq!(containers.scan(&workers).containers.len(), 2);
        fs::remove_dir_all(state.bundle("job").path()).unwrap();
        assert_eq!(containers.scan(&workers), Changes::default());
        state.write_config("job", &config("container", r#","io.kubernetes.cri.container-name":"second""#));
        let changes = containers.scan(&workers).containers;
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].name.as_deref(), Some("second"));
    }

    #[test]
    fn a_config_that_never_makes_sense_is_given_up_with_a_reason() {
        let state = State::new("broken", SANDBOX);
        state.write_config(SANDBOX, "no json");
        let workers = Workers::new(1);
        let mut containers = patient();
        containers.shim_appeared(state.shim.id()).unwrap();
        for _ in 1..TRIES {
            assert_eq!(containers.scan(&workers), Changes::default());
        }
        let changes = containers.scan(&workers);
        assert_eq!(changes.containers.len(), 1);
        assert_eq!((changes.containers[0].pod.as_deref(), changes.containers[0].sandbox), (None, false));
        let (what, why) = &changes.blind_spots[0];
        assert!(what.contains(SANDBOX) && why.contains("config.json"), "{what}: {why}");
    }

    #[test]
    fn without_a_worker_it_says_so_and_recovers() {
        let state = State::new("busy", SANDBOX);
        state.write_config(SANDBOX, &config("sandbox", NAMES));
        let mut containers = patient();
        containers.shim_appeared(state.shim.id()).unwrap();
        let changes = containers.scan(&Workers::new(0));
        assert_eq!(changes.containers, vec![]);
        let (what, why) = &changes.blind_spots[0];
        assert!(what.contains("k8s.io") && why.contains("workers are taken"), "{what}: {why}");
        let changes = containers.scan(&Workers::new(1));
        assert_eq!(changes.containers.len(), 1);
        assert_eq!(changes.blind_spots, vec![(what.clone(), String::new())]);
    }

    #[test]
    fn a_look_that_hangs_is_not_repeated() {
        let workers = Workers::new(3);
        let started = Arc::new(());
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let first = run_once(&workers, Duration::from_millis(1), Arc::clone(&started), move || wait.recv());
        assert!(first.unwrap_err().contains("no answer within 1 ms"));
        let second = run_once(&workers, LOOK, Arc::clone(&started), || ());
        assert!(second.unwrap_err().contains("not come back"));
        assert_eq!(workers.stuck(), 1);
        release.send(()).unwrap();
        while Arc::strong_count(&started) > 1 {
            std::thread::yield_now();
        }
        assert_eq!(run_once(&workers, Duration::from_secs(600), started, || 5), Ok(5));
    }

    #[test]
    fn the_ones_deleted_first_are_forgotten_first() {
        let mut containers = patient();
        let place = Place { state: "/run/x".into(), namespace: "k8s.io".into() };
        for n in 0..LIMIT + 3 {
            let gone = (n % 16 == 0).then_some((LIMIT * 2 - n) as u64);
            containers.known.insert(place.bundle(&format!("c{n}")), Known { gone, ..Known::default() });
        }
        assert_eq!(containers.forget(), 0);
        assert_eq!(containers.known.len(), LIMIT);
        for n in [LIMIT, LIMIT - 16, LIMIT - 32] {
            assert!(!containers.known.contains_key(&place.bundle(&format!("c{n}"))), "{n}");
        }
        for known in containers.known.values_mut() {
            known.gone = None;
        }
        containers.known.insert(place.bundle("one-more"), Known::default());
        assert_eq!(containers.forget(), 1);
    }

    #[test]
    fn few_of_the_deleted_ones_are_remembered() {
        let mut containers = patient();
        let place = Place { state: "/run/x".into(), namespace: "k8s.io".into() };
        containers.known.insert(place.bundle("there"), Known::default());
        for n in 0..GONE + 2 {
            let gone = Some(n as u64);
            containers.known.insert(place.bundle(&format!("c{n}")), Known { gone, ..Known::default() });
        }
        assert_eq!(containers.forget(), 0);
        assert_eq!(containers.known.len(), GONE + 1);
        for (name, kept) in [("there", true), ("c0", false), ("c1", false), ("c2", true)] {
            assert_eq!(containers.known.contains_key(&place.bundle(name)), kept, "{name}");
        }
    }

    /// Against containers that run on this machine, whoever started them: every overlay that findmnt shows in a bundle
    /// must be known, on the device that stat names for its upper folder.
    #[test]
    #[ignore = "needs root and a containerd that runs containers"]
    fn containers_of_a_real_containerd() {
        use std::os::linux::fs::MetadataExt;
        let mut processes = crate::node::procs::Processes::new();
        let workers = Workers::new(4);
        processes.scan(&workers, false).unwrap();
        let mut containers = patient();
        let shims = processes.iter().filter(|p| p.comm.starts_with("containerd-shim"));
        let shims: Vec<u32> =
            shims.map(|p| p.pid).filter(|pid| containers.shim_appeared(*pid).is_ok()).collect();
        assert!(!shims.is_empty(), "no shim runs here; start a container first");
        let changes = containers.scan(&workers);
        assert_eq!(changes.blind_spots, vec![]);

        let args = ["--raw", "--noheadings", "--types", "overlay", "--output", "TARGET,OPTIONS"];
        let answer = std::process::Command::new("findmnt").args(args).output().unwrap();
        let mut checked = 0;
        for line in String::from_utf8(answer.stdout).unwrap().lines() {
            let (target, options) = line.split_once(' ').unwrap();
            let Some(bundle) = BundleId::of_path(Path::new(target)) else { continue };
            let container = containers.at_rootfs(Path::new(target)).unwrap();
            let upper = options.split(',').find_map(|o| o.strip_prefix("upperdir=")).unwrap();
            let device = fs::metadata(upper).unwrap().st_dev();
            let (seen, _) = container.upper.as_ref().unwrap();
            assert_eq!((seen.major, seen.minor), (libc::major(device), libc::minor(device)), "{target}");
            assert_eq!(container.volatile, Some(options.split(',').any(|o| o == "volatile")));
            assert!(shims.contains(&container.shim.unwrap()), "{container:?}");
            let config = fs::read_to_string(bundle.path().join("config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            let annotation = |name: &str| config["annotations"][format!("io.kubernetes.cri.{name}")].as_str();
            assert_eq!(container.pod.as_deref(), annotation("sandbox-name"));
            assert_eq!(container.namespace.as_deref(), annotation("sandbox-namespace"));
            assert_eq!(container.name.as_deref(), annotation("container-name"));
            checked += 1;
        }
        assert!(checked > 0, "no overlay is mounted in a bundle");
    }
}
