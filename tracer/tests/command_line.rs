//! The command line from outside: what is refused and how that is told, `status` and `incidents` beside disks that hang,
//! settings and where they come from, and what is made for shells and manuals. Runs the real program; attaches nothing.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};
use tracer::{
    node::clock::Anchor,
    sinks::deliver::state::{Health, State, VERSION},
};

fn plegscope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plegscope"));
    // Whatever the one who runs the tests has set.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLEGSCOPE_")) {
        command.env_remove(name);
    }
    command
}

fn run(args: &[&str]) -> Output {
    plegscope().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("plegscope-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Something whose opening never comes back, like a file on a stuck disk: a pipe nobody writes to.
    fn stuck(&self, name: &str) -> String {
        let path = self.0.join(name);
        let c = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a valid path.
        assert_eq!(unsafe { libc::mkfifo(c.as_ptr(), 0o644) }, 0);
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_refused_says_what_to_do() {
    let mut told = String::new();
    for args in [
        &["no-such-verb"][..],
        &["watch", "--umount-over", "soon"],
        &["watch", "--umount-over", "0s"],
        &["watch", "--probes", "some"],
        &["watch", "--json", "--quiet"],
        &["watch", "--config", "none", "--exec", "page", "--urgent"],
        &["watch", "--config", "none", "--webhook", "ftp://x", "--store", "here", "--hold-off", "x"],
        &["watch", "--config", "none", "--webhook-ca", "/ca.pem"],
        &["watch", "--config", "/no/such/file.toml"],
        &["config", "check", "--config", "/no/such/file.toml"],
        &["live", "--max-target-cost", "much"],
        &["incidents", "--since", "yesterday"],
        &["incidents", "--store", "/no/such/folder"],
        &["man", "/no/such/folder"],
        &["completions", "tcsh"],
    ] {
        let output = run(args);
        assert!(output.stdout.is_empty(), "{args:?}");
        let code = output.status.code().unwrap();
        told.push_str(&format!("$ plegscope {}\n{}[{code}]\n\n", args.join(" "), text(&output.stderr)));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn the_first_setting_that_is_said_counts_and_show_says_where() {
    let folder = Folder::new("config");
    let file = folder.file("config.toml", "umount-over = '1s'\nlock-over = '2s'\njournal = true\n");
    let show = |command: &mut Command| {
        let output = command.args(["--umount-over", "3s"]).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = show(
        plegscope().args(["config", "show"]).env("PLEGSCOPE_CONFIG", &file).env("PLEGSCOPE_LOCK_OVER", "4s"),
    );
    assert_eq!((code, err.as_str()), (0, ""));
    let says = |name: &str, value: &str, origin: &str| {
        let line = out.lines().find(|line| line.starts_with(&format!("{name} = "))).unwrap();
        assert!(
            line.starts_with(&format!("{name} = {value} ")) && line.ends_with(&format!("# {origin}")),
            "{line}"
        );
    };
    says("umount-over", "\"3s\"", "--umount-over");
    says("lock-over", "\"4s\"", "$PLEGSCOPE_LOCK_OVER");
    says("journal", "true", &file);
    says("cri-over", "\"5s\"", "default");

    let check = |file: &str| {
        let output = run(&["config", "check", "--config", file]);
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, _) = check(&file);
    assert_eq!((code, out), (0, format!("the settings are right ({file})\n")));
    let wrong =
        folder.file("wrong.toml", "umount_over = '1s'\nwebhook = 'https://x/'\nwebhook-ca = 'ca.pem'\n");
    let (code, out, err) = check(&wrong);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("is umount-over meant?"), "{err}");
    // The files it names are looked into as well.
    let ca = folder.file("ca.pem", "no certificate");
    let named = folder.file("named.toml", format!("webhook = 'https://x/'\nwebhook-ca = '{ca}'\n"));
    assert!(check(&named).2.contains("no certificate"), "{:?}", check(&named));
    // Whoever can write it can have anything run as root.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let (code, _, err) = check(&file);
    assert!(code == 2 && err.contains("others can write to it"), "{err}");
}

#[test]
fn a_settings_file_that_hangs_is_not_waited_for() {
    let folder = Folder::new("hangs");
    let begin = Instant::now();
    let output = run(&["config", "check", "--config", &folder.stuck("config.toml")]);
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(output.status.code(), Some(2));
    let err = text(&output.stderr);
    assert!(err.contains("its disk may be stuck; --config none goes without it"), "{err}");
}

fn state(health: Health, line: &str, age: u64) -> Vec<u8> {
    let anchor = Anchor::now().unwrap();
    State {
        version: VERSION,
        health,
        line: line.to_owned(),
        at: anchor.monotonic.saturating_sub(age * 1_000_000_000),
        time: "now".to_owned(),
        boot_id: anchor.boot_id,
        pid: 1,
        open: Vec::new(),
        open_total: 0,
        told: 0,
        held: 0,
        deliveries: Vec::new(),
        blind_spots: Vec::new(),
        lost: 0,
    }
    .file()
}

#[test]
fn status_answers_as_health_checks_expect() {
    let folder = Folder::new("status");
    let status = |file: &str| {
        let output = run(&["status", "--state-file", file]);
        assert!(output.stderr.is_empty());
        (output.status.code().unwrap(), text(&output.stdout))
    };
    let fine = folder.file("fine", state(Health::Fine, "OK nothing is stuck", 0));
    assert_eq!(status(&fine), (0, "OK nothing is stuck\n".to_owned()));
    let stuck = folder.file("stuck", state(Health::Problem, "STUCK 5.0s; sync of /dev/x\u{1b}[2J", 0));
    assert_eq!(status(&stuck), (1, "STUCK 5.0s; sync of /dev/x\u{fffd}[2J\n".to_owned()));
    let blind = folder.file("blind", state(Health::Unknown, "UNKNOWN no containerd is seen", 0));
    assert_eq!(status(&blind), (2, "UNKNOWN no containerd is seen\n".to_owned()));
    let stale = folder.file("stale", state(Health::Fine, "OK", 60));
    let (code, out) = status(&stale);
    assert!(code == 2 && out.starts_with("UNKNOWN plegscope watch has told nothing for 1m00s"), "{out}");
    let (code, out) = status(&folder.file("damaged", "OK nothing is stuck\n{"));
    assert!(code == 2 && out.contains("damaged"), "{out}");
    let (code, out) = status("/no/such/state");
    assert!(code == 2 && out.contains("watch does not run"), "{out}");
    let open = folder.file("open", state(Health::Fine, "OK", 0));
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    let (code, out) = status(&open);
    assert!(code == 2 && out.contains("others can write to it"), "{out}");
    let json = run(&["status", "--json", "--state-file", &fine]).stdout;
    assert_eq!(serde_json::from_slice::<State>(&json).unwrap().health, Health::Fine);
}

#[test]
fn status_and_incidents_do_not_wait_for_a_disk_that_hangs() {
    let folder = Folder::new("stuck");
    let begin = Instant::now();
    let output = run(&["status", "--state-file", &folder.stuck("state"), "--within", "200ms"]);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("does not answer"));

    let store = folder.0.join("store");
    fs::create_dir(&store).unwrap();
    let stuck = Folder(store.clone());
    stuck.stuck("1709204400000-unmount-1.json");
    let begin = Instant::now();
    let output = run(&["incidents", "--store", store.to_str().unwrap(), "--within", "200ms"]);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("its disk may be stuck"), "{}", text(&output.stderr));
}

#[test]
fn shells_and_manuals_get_what_the_command_line_is() {
    let folder = Folder::new("man");
    let output = run(&["man", folder.0.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = |name: &str| fs::read_to_string(folder.0.join(name)).unwrap();
    assert!(page("plegscope.1").contains("Kubernetes"));
    let watch = page("plegscope-watch.1");
    for option in ["umount\\-over", "notready\\-within", "webhook\\-token\\-file"] {
        assert!(watch.contains(option), "{option}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&run(&["completions", shell]).stdout);
        assert!(script.contains("capture-on-incident") && script.contains("incidents"), "{shell}");
    }
    // bash itself understands it.
    let script = folder.file("bash", run(&["completions", "bash"]).stdout);
    let checked = Command::new("bash").args(["-n", &script]).output();
    assert!(checked.is_ok_and(|output| output.status.success() && output.stderr.is_empty()));
}

#[test]
fn the_settings_that_are_shipped_are_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text_of = |name: &str| fs::read_to_string(root.join("deploy").join(name)).unwrap();
    let folder = Folder::new("shipped");
    // Each example, as if it were no comment.
    let lines = text_of("config.toml");
    let all: String = lines
        .lines()
        .map(|l| l.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n");
    assert!(all.contains("webhook"), "{all}");
    let without_files = all.replace("webhook-token-file", "# webhook-token-file");
    let output = run(&["config", "check", "--config", &folder.file("all.toml", without_files)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // What they run is what there is.
    let plugin: serde_json::Value =
        serde_json::from_str(&text_of("node-problem-detector/plegscope.json")).unwrap();
    let rule = &plugin["rules"][0];
    assert_eq!(
        (rule["path"].as_str(), &rule["args"]),
        (Some("/usr/local/bin/plegscope"), &serde_json::json!(["status"]))
    );
    let types: Vec<_> = plugin["conditions"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
    assert!(types.contains(&&rule["condition"]));
    let unit = text_of("plegscope.service");
    let exec =
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/plegscope watch ")).unwrap();
    let mut args = vec!["config", "check", "--config", "none"];
    args.extend(exec.split_whitespace());
    assert!(run(&args).status.success(), "{exec}");
}
