//! Packages of other Debian suites, fetched beside the system: old and new containerds, compilers, source trees.
//!
//! The work is apt's own: each suite gets a private apt root in the cache, with nothing in it but the mirror this
//! machine is set up with. So downloads are checked as apt checks them (signature of the suite, then SHA-256 of the
//! index and of the file), and the system's sources and state stay as they are. Root is not needed. What is unpacked is
//! checked whenever it is used, by the package's own list of sums.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{
    env,
    fs::{self, File},
};

/// The package's list of sums, in the folder it is unpacked to.
const SUMS: &str = ".md5sums";

/// A suite of the machine's Debian mirror, its index freshly read.
pub struct Suite {
    name: String,
    folder: PathBuf,
}

/// Which index of a suite is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// Built packages.
    Packages,
    /// Source packages.
    Sources,
}

impl Suite {
    /// Reads the suite's index from the mirror.
    pub fn open(name: &str, index: Index) -> Result<Suite> {
        let mirror = Mirror::of_this_machine()?;
        let suffix = if index == Index::Sources { "-sources" } else { "" };
        let folder = shell::cache()?.join(format!("apt/{name}{suffix}"));
        let _alone = alone("packages")?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot create {}", folder.join(part).display()))?;
        }
        let suite = Suite { name: name.into(), folder };
        fs::write(suite.folder.join("sources.list"), mirror.line(name, index))?;
        fs::write(suite.folder.join("status"), "")?;
        fs::write(suite.folder.join("apt.conf"), apt_settings(&suite.folder))?;
        shell::capture(suite.apt("apt-get").args(["--quiet=2", "--error-on=any", "update"])).with_context(
            || format!("the index of the Debian suite {name} cannot be read from {}", mirror.uri),
        )?;
        Ok(suite)
    }

    /// The versions of a built package in this suite, newest first; empty when it has none.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let listed = shell::capture(self.apt("apt-cache").args(["madison", package]))?;
        let mut versions: Vec<String> =
            listed.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect();
        versions.dedup();
        Ok(versions)
    }

    /// What the newest version of a built package depends on with an exact version: (package, version).
    pub fn pinned_dependencies(&self, package: &str) -> Result<Vec<(String, String)>> {
        let shown = shell::capture(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let line = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        let pinned = |one: &str| {
            let (name, version) = one.trim().split_once(" (= ")?;
            Some((name.to_owned(), version.strip_suffix(')')?.to_owned()))
        };
        Ok(line.split(',').filter_map(pinned).collect())
    }

    /// Built packages and all that they need to run (nothing of what they only recommend), with their newest version.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<(String, String)>> {
        let mut install = self.apt("apt-get");
        install.args(["--quiet=2", "--simulate", "--no-install-recommends", "install"]).args(packages);
        let planned = shell::capture(&mut install).with_context(|| {
            format!("{} of {} cannot be installed together", packages.join(", "), self.name)
        })?;
        Ok(planned.lines().filter_map(to_be_installed).collect())
    }

    /// Fetches one version of a built package and unpacks it (nothing of it is run) into a folder of the cache, which is
    /// returned. What is there already, and whole, is not fetched again.
    pub fn unpack(&self, package: &str, version: &str) -> Result<PathBuf> {
        let name = format!("{package}_{version}").replace(':', "%3a");
        let unpacked = shell::cache()?.join("packages").join(name);
        let _alone = alone("packages")?;
        if is_whole(&unpacked) {
            return Ok(unpacked);
        }
        let download = fresh_folder(&unpacked.with_added_extension("download"))?;
        let mut get = self.apt("apt-get");
        get.args(["--quiet=2", "download", &format!("{package}={version}")]).current_dir(&download);
        shell::capture(&mut get)
            .with_context(|| format!("{package} {version} of {} cannot be fetched", self.name))?;
        let deb = only_file(&download, "deb")?;
        let partial = fresh_folder(&unpacked.with_added_extension("partial"))?;
        shell::capture(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&partial))?;
        let sums = shell::capture(Command::new("dpkg-deb").arg("--info").arg(&deb).arg("md5sums"))?;
        fs::write(partial.join(SUMS), sums)?;
        if !is_whole(&partial) {
            bail!("{package} {version} is not what its own list of sums says: {}", partial.display());
        }
        if unpacked.exists() {
            println!("{} is not whole, and fetched anew", unpacked.display());
            fs::remove_dir_all(&unpacked)?;
        }
        fs::rename(&partial, &unpacked).with_context(|| format!("cannot create {}", unpacked.display()))?;
        fs::remove_dir_all(download)?;
        Ok(unpacked)
    }

    /// Fetches the original tarball of a source package into `folder`.
    pub fn fetch_tarball(&self, package: &str, folder: &Path) -> Result<()> {
        let mut get = self.apt("apt-get");
        get.args(["--quiet=2", "source", "--tar-only", "--only-source", package]).current_dir(folder);
        shell::capture(&mut get).with_context(|| {
            format!("the original tarball of {package} in {} cannot be fetched", self.name)
        })?;
        Ok(())
    }

    /// An apt program that sees nothing but this suite.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--config-file").arg(self.folder.join("apt.conf")).env("LC_ALL", "C");
        command
    }
}

/// Settings that confine apt to `folder`.
fn apt_settings(folder: &Path) -> String {
    let inside = |part: &str| folder.join(part).to_string_lossy().into_owned();
    let settings = [
        ("Dir::Etc::SourceList", inside("sources.list")),
        ("Dir::Etc::SourceParts", "/dev/null".into()),
        ("Dir::Etc::Preferences", "/dev/null".into()),
        ("Dir::Etc::PreferencesParts", "/dev/null".into()),
        ("Dir::State", inside("state")),
        ("Dir::State::Status", inside("status")),
        ("Dir::Cache", inside("cache")),
        ("APT::Default-Release", String::new()),
        ("Acquire::Languages", "none".into()),
        // As root, apt would download as another user, who cannot write here.
        ("APT::Sandbox::User", "root".into()),
    ];
    settings.iter().map(|(name, value)| format!("{name} \"{value}\";\n")).collect()
}

/// A package and its version in a line of what apt would do: `Inst libc6 (2.36-9 Debian:12/stable [amd64])`.
fn to_be_installed(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
}

/// The codename of the Debian that this machine runs.
pub fn own_suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.map(|name| name.trim_matches('"').to_owned()).context("this machine's system has no codename")
}

/// The newest of `versions` (newest first) whose upstream part is `wanted` or begins with `wanted` and a separator.
pub fn newest<'a>(versions: &'a [String], wanted: &str) -> Option<&'a str> {
    let fits = |version: &&String| {
        let upstream = version.split_once(':').map_or(version.as_str(), |(_, upstream)| upstream);
        upstream
            .strip_prefix(wanted)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    versions.iter().find(fits).map(String::as_str)
}

/// Whether all files of an unpacked package are there and have the sums that the package lists.
fn is_whole(unpacked: &Path) -> bool {
    let lists = fs::metadata(unpacked.join(SUMS)).is_ok_and(|sums| sums.len() > 0);
    let mut check = Command::new("md5sum");
    check.args(["--check", "--quiet", "--strict", SUMS]).current_dir(unpacked);
    lists && shell::capture(&mut check).is_ok()
}

/// Waits until no other run of ours changes this part of the cache; the value keeps the others waiting.
pub fn alone(part: &str) -> Result<File> {
    let path = shell::cache()?.join(format!("{part}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("waiting for {}", path.display()))?;
    Ok(file)
}

/// An empty folder of this path; what was there before is removed.
pub fn fresh_folder(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path.into())
}

fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    found
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("apt left no .{extension} in {}", folder.display()))
}

/// The Debian mirror the machine is set up with.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    /// `signed-by` of its entry, a key file.
    signed_by: Option<String>,
}

impl Mirror {
    fn of_this_machine() -> Result<Mirror> {
        if let Ok(uri) = env::var("PLEGSCOPE_DEBIAN_MIRROR") {
            let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
            return Ok(Mirror { uri, signed_by: Path::new(keys).is_file().then(|| keys.into()) });
        }
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let value = |key: &str| {
            release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim_matches('"')
        };
        let (id, codename) = (value("ID="), value("VERSION_CODENAME="));
        const CURE: &str =
            "set PLEGSCOPE_DEBIAN_MIRROR to the address of a Debian mirror (needs apt and dpkg-deb)";
        if id != "debian" {
            bail!("this machine is not Debian but {id:?}, so it has no Debian mirror configured; {CURE}");
        }
        let mut texts = Vec::new();
        let mut read = |path: PathBuf| texts.extend(fs::read_to_string(path));
        read("/etc/apt/sources.list".into());
        let mut parts: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        parts.sort_by_key(|path| Reverse(path.extension().is_some_and(|extension| extension == "sources")));
        parts.into_iter().for_each(&mut read);
        texts.iter().find_map(|text| Mirror::find(text, codename)).with_context(|| {
            format!("no entry for the suite {codename} in /etc/apt/sources.list or sources.list.d; {CURE}")
        })
    }

    /// The entry for `suite`, in the one-line form or in deb822 form.
    fn find(text: &str, suite: &str) -> Option<Mirror> {
        text.split("\n\n").find_map(|stanza| Mirror::in_stanza(stanza, suite)).or_else(|| {
            text.lines().find_map(|line| {
                let rest = line.trim().strip_prefix("deb ")?.trim_start();
                let (options, rest) = match rest.strip_prefix('[') {
                    Some(rest) => rest.split_once(']')?,
                    None => ("", rest),
                };
                let mut words = rest.split_whitespace();
                let uri = words.next()?;
                let signed_by =
                    options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
                (words.next()? == suite)
                    .then(|| Mirror { uri: uri.into(), signed_by: signed_by.map(String::from) })
            })
        })
    }

    fn in_stanza(stanza: &str, suite: &str) -> Option<Mirror> {
        let value = |wanted: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(wanted).then(|| value.trim())
            })
        };
        let enabled = value("Enabled").is_none_or(|answer| !answer.eq_ignore_ascii_case("no"));
        let fits = value("Types")?.split_whitespace().any(|found| found == "deb")
            && value("Suites")?.split_whitespace().any(|found| found == suite);
        let uri = value("URIs")?.split_whitespace().next()?;
        // A key may also stand in the entry itself; then apt's own trusted keys have to do.
        let signed_by = value("Signed-By").filter(|value| value.starts_with('/'));
        (enabled && fits).then(|| Mirror { uri: uri.into(), signed_by: signed_by.map(String::from) })
    }

    /// An entry for apt that takes only one index of one suite from here.
    fn line(&self, suite: &str, index: Index) -> String {
        let (kind, target) = match index {
            Index::Packages => ("deb", "Packages"),
            Index::Sources => ("deb-src", "Sources"),
        };
        let signed_by = self.signed_by.iter().map(|keys| format!(" signed-by={keys}")).collect::<String>();
        format!("{kind} [target={target}{signed_by}] {} {suite} main\n", self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment: with a colon\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /keys/debian.gpg\n\n\
        Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n";

    fn mirror(uri: &str, signed_by: Option<&str>) -> Option<Mirror> {
        Some(Mirror { uri: uri.into(), signed_by: signed_by.map(String::from) })
    }

    #[test]
    fn the_mirror_is_the_one_that_has_the_machines_own_suite() {
        assert_eq!(
            Mirror::find(DEB822, "bookworm"),
            mirror("http://mirror.example/debian", Some("/keys/debian.gpg"))
        );
        assert_eq!(Mirror::find(DEB822, "trixie"), None);
        let disabled = DEB822.replace("Types: deb\n#", "Types: deb\nEnabled: no\n#");
        assert_eq!(Mirror::find(&disabled, "bookworm"), None);
    }

    #[test]
    fn one_line_entries_are_read_with_and_without_options() {
        let list = "# deb http://commented.example/debian bookworm main\n\
            deb-src http://sources.example/debian bookworm main\n\
            deb http://updates.example/debian bookworm-updates main\n\
            deb [arch=amd64 signed-by=/keys/a.gpg] http://mirror.example/debian bookworm main contrib\n";
        assert_eq!(
            Mirror::find(list, "bookworm"),
            mirror("http://mirror.example/debian", Some("/keys/a.gpg"))
        );
        let plain = "deb   http://mirror.example/debian   bookworm main";
        assert_eq!(Mirror::find(plain, "bookworm"), mirror("http://mirror.example/debian", None));
    }

    #[test]
    fn what_apt_would_install_is_read() {
        let read = |line: &str| to_be_installed(line);
        let seccomp = ("libseccomp2".to_owned(), "2.5.4-1+deb12u1".to_owned());
        assert_eq!(
            read("Inst libseccomp2 (2.5.4-1+deb12u1 Debian:12.15/oldstable [amd64]) []"),
            Some(seccomp)
        );
        assert_eq!(read("Conf libseccomp2 (2.5.4-1+deb12u1 Debian:12.15/oldstable [amd64])"), None);
    }

    #[test]
    fn only_what_is_as_the_package_lists_it_is_whole() {
        let folder =
            fresh_folder(&env::temp_dir().join(format!("plegscope-whole-{}", std::process::id()))).unwrap();
        let put = |name: &str, content: &str| fs::write(folder.join(name), content).unwrap();
        put("a", "one\n");
        assert!(!is_whole(&folder), "without a list");
        put(SUMS, "");
        assert!(!is_whole(&folder), "with an empty one");
        put(SUMS, "5bbf5a52328e7439ae6e719dfe712200  a\n");
        assert!(is_whole(&folder));
        put("a", "one");
        assert!(!is_whole(&folder), "cut off");
        fs::remove_file(folder.join("a")).unwrap();
        assert!(!is_whole(&folder), "not there");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_version_is_matched_at_a_separator() {
        let versions =
            ["1.96.1+dfsg1-2", "1.95.0+dfsg1-2~bpo13+1", "1.9.5-1", "2:1.15.1-3"].map(String::from);
        assert_eq!(newest(&versions, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(newest(&versions, "1.9"), Some("1.9.5-1"));
        assert_eq!(newest(&versions, "1.15"), Some("2:1.15.1-3"));
        assert_eq!(newest(&versions, "1"), Some("1.96.1+dfsg1-2"));
        assert_eq!(newest(&versions, "1.6"), None);
    }
}
