//! One order of sources, one table of settings, errors that say where.

use super::keys::{self, Kind};
use super::*;
use crate::thresholds::{SECOND, Thresholds};
use std::collections::BTreeSet;

fn file(text: &str) -> Result<Layer, Vec<String>> {
    Layer::of_file(Path::new("/etc/x.toml"), text)
}

fn environment(pairs: &[(&str, &str)]) -> Layer {
    let find = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    Layer::of_environment(find).unwrap()
}

fn flags(pairs: &[(&'static str, &str)]) -> Layer {
    let mut layer = Layer::default();
    pairs.iter().for_each(|(name, value)| layer.flag(name, Some(Value::Text((*value).to_owned()))));
    layer
}

#[test]
fn nothing_said_is_the_defaults_of_the_rest_of_the_program() {
    let watching = Config::merge([]).resolve().unwrap();
    assert_eq!(watching.thresholds, Thresholds::DEFAULT);
    assert_eq!(watching.alerts.hold_off, crate::alert::HOLD_OFF);
    assert_eq!(watching.alerts.not_ready_within, Thresholds::DEFAULT.not_ready_within);
    assert_eq!(
        (watching.probes, watching.max_target_cost),
        ((crate::warden::Ladder::Kernel, true), Some(20_000))
    );
    assert_eq!((watching.exec, watching.webhook, watching.journal), (None, None, false));
    assert_eq!((watching.state_file, watching.store), (Place::Auto, Place::Auto));
    use crate::sinks::deliver::{store, webhook};
    assert_eq!((watching.store_incidents, watching.store_bytes), (store::INCIDENTS, store::BYTES));
    assert_eq!(watching.webhook_limit, webhook::LIMIT);
}

#[test]
fn flags_count_before_the_environment_and_that_before_the_file() {
    let from_file =
        file("umount-over = \"1s\"\nlock-over = \"2s\"\ncri-over = '3s'\njournal = true\nexec-at-once = 7");
    let from_environment = environment(&[("PLEGSCOPE_UMOUNT_OVER", "4s"), ("PLEGSCOPE_LOCK_OVER", "5s")]);
    let config = Config::merge([flags(&[("umount-over", "6s")]), from_environment, from_file.unwrap()]);
    let watching = config.resolve().unwrap();
    let t = &watching.thresholds;
    assert_eq!([t.unmount, t.lock, t.cri, t.relist], [6, 5, 3, 5].map(|s| s * SECOND));
    assert!(watching.journal && watching.exec_at_once == 7);
    let shown = config.show();
    for line in [
        "umount-over = \"6s\"                         # --umount-over",
        "lock-over = \"5s\"                           # $PLEGSCOPE_LOCK_OVER",
        "cri-over = \"3s\"                            # /etc/x.toml",
        "relist-over = \"5s\"                         # default",
        "journal = true                             # /etc/x.toml",
        "# webhook =                                # not set",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} in\n{shown}");
    }
    // What is shown can be used as a file, and says the same.
    let again = Config::merge([file(&shown).unwrap()]);
    assert_eq!(again.resolve().unwrap(), watching);
}

#[test]
fn programs_are_lists_of_words_and_never_read_by_a_shell() {
    let words = |layer: Layer| Config::merge([layer]).resolve().map(|w| w.exec.unwrap());
    let expected = vec!["/bin/page".to_owned(), "$(id); x y".to_owned()];
    assert_eq!(words(file(r#"exec = ["/bin/page", "$(id); x y"]"#).unwrap()), Ok(expected.clone()));
    assert_eq!(words(environment(&[("PLEGSCOPE_EXEC", r#"["/bin/page", "$(id); x y"]"#)])), Ok(expected));
    assert_eq!(words(environment(&[("PLEGSCOPE_EXEC", "/bin/a b")])), Ok(vec!["/bin/a b".to_owned()]));
    let error = words(file(r#"exec = "page""#).unwrap()).unwrap_err();
    assert_eq!(error, [r#"exec (/etc/x.toml): "page": give the program by its absolute path"#]);
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_where_it_is() {
    let wrong = file("umount_over = '2s'\nnonsense = 1\njournal = 'maybe'\ncri-over = 3").unwrap_err();
    assert_eq!(
        wrong,
        [
            "/etc/x.toml: cri-over: 3 is no string",
            "/etc/x.toml: journal: \"maybe\" is neither true nor false",
            "/etc/x.toml: there is no setting \"nonsense\"; `plegscope config show` lists all",
            "/etc/x.toml: there is no setting \"umount_over\"; is umount-over meant?",
        ]
    );
    assert!(file("umount-over = ").unwrap_err()[0].contains("line 1"));
    let layers = [
        flags(&[
            ("umount-over", "soon"),
            ("probes", "some"),
            ("without", "kprobe,x"),
            ("webhook-ca", "/ca.pem"),
        ]),
        environment(&[("PLEGSCOPE_HOLD_OFF", "-1s"), ("PLEGSCOPE_EXEC_AT_ONCE", "0")]),
        file("state-file = 'here'\nwebhook-limit = '0s'\nstore-bytes = '1KiB'").unwrap(),
    ];
    let wrong = Config::merge(layers).resolve().unwrap_err();
    let places = [
        "umount-over (--umount-over): \"soon\":",
        "hold-off ($PLEGSCOPE_HOLD_OFF): \"-1s\":",
        "probes (--probes): \"some\": none of none, kernel, auto, all",
        "without (--without): \"kprobe,x\": \"x\" is none of fentry, kprobe, tracepoint, uprobe",
        "exec-at-once ($PLEGSCOPE_EXEC_AT_ONCE): \"0\":",
        "webhook-limit (/etc/x.toml): \"0s\": longer than nothing",
        "state-file (/etc/x.toml): \"here\": give an absolute path",
        "store-bytes (/etc/x.toml): \"1KiB\": less than 64KiB",
        "webhook-ca (--webhook-ca): nothing is sent anywhere without webhook",
    ];
    assert_eq!(wrong.len(), places.len(), "{wrong:#?}");
    for place in places {
        assert!(wrong.iter().any(|line| line.starts_with(place)), "{place} in {wrong:#?}");
    }
}

#[test]
fn none_is_none_only_where_that_means_something() {
    let with = |name, value| Config::merge([flags(&[(name, value)])]).resolve();
    assert_eq!(with("hold-off", "none").unwrap().alerts.hold_off, 0);
    assert_eq!(with("notready-within", "none").unwrap().thresholds.not_ready_within, 0);
    assert!(with("umount-over", "none").is_err());
    assert_eq!(with("max-target-cost", "none").unwrap().max_target_cost, None);
    assert_eq!(with("without", "none").unwrap().without, []);
    let without = with("without", "kprobe, uprobe").unwrap().without;
    assert_eq!(without, [crate::event::SeenBy::Kprobe, crate::event::SeenBy::Uprobe]);
    assert_eq!(with("store", "none").unwrap().store, Place::None);
    assert_eq!(with("store-bytes", "1000000").unwrap().store_bytes, 1_000_000);
    assert_eq!(with("store-bytes", "2 MiB").unwrap().store_bytes, 2 << 20);
    assert!(with("store-bytes", "99999999999GiB").is_err() && with("store-bytes", "MiB").is_err());
}

#[test]
fn every_name_is_one_and_every_default_is_valid() {
    let names: BTreeSet<&str> = keys::KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), keys::KEYS.len());
    assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
    let switches = keys::KEYS.iter().filter(|key| key.kind == Kind::Switch);
    assert!(switches.into_iter().all(|key| key.default == "false"), "a flag turns something on");
}
