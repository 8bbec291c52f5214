//! When a kubelet relisted and called the runtime, from its own log: the ground truth that plegscope is held against.
//!
//! Pure. The lines are those of kubelet 1.20 with `--vmodule=remote_runtime=10,generic=10` and the time zone UTC:
//!
//! ```text
//! I1123 19:55:03.123456    1234 generic.go:191] GenericPLEG: Relisting
//! I1123 19:55:03.123501    1234 remote_runtime.go:280] [RemoteRuntimeService] ListContainers (filter=…, timeout=2m0s)
//! I1123 19:55:03.125100    1234 remote_runtime.go:294] [RemoteRuntimeService] ListContainers Response (filter=…)
//! ```

use super::kubelet_like::Call;

/// Nanoseconds of a day.
const DAY: u64 = 86_400_000_000_000;
/// A relist begins this long after the one before it has ended (`relistPeriod` of the kubelet).
const RELIST_PERIOD: u64 = 1_000_000_000;
/// How a filter that lets every container through is printed; the relist's is so, the kubelet's other frequent lists
/// ask for running containers or those of one pod.
const NO_FILTER: &str = "State:nil,PodSandboxId:,LabelSelector:map[string]string{}";

/// Collects calls from log lines. `relist` calls begin with their line and end one relist period before the next one
/// begins; `ListContainers` is only the one that a relist makes, which ends with an answer or, as others with its filter run
/// into their timeouts beside it, when the relist says that it has failed; `UpdateContainerResources` are all.
#[derive(Default)]
pub struct Parser {
    calls: Vec<Call>,
    /// The relist that was begun last, and its list call.
    relist: Option<usize>,
    list: Option<usize>,
}

impl Parser {
    /// What was found so far.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Takes one line, which was written at most a day before the given times of the two clocks (ns).
    pub fn feed(&mut self, line: &str, monotonic: u64, realtime: u64) {
        let Some((time, text)) = split(line) else { return };
        let at = monotonic.saturating_sub((realtime % DAY + DAY - time) % DAY);
        if text == "GenericPLEG: Relisting" {
            if let Some(before) = self.relist {
                let end = at.saturating_sub(RELIST_PERIOD).max(self.calls[before].begin);
                self.calls[before].end = Some(end);
                self.list_ended(end, None); // It lasts no longer than its relist.
            }
            self.list = None;
            self.relist = Some(self.begin("relist", None, at));
        } else if let Some(call) = text.strip_prefix("[RemoteRuntimeService] ") {
            self.runtime_call(call, at);
        } else if let Some((id, error)) = text
            .strip_prefix("UpdateContainerResources \"")
            .and_then(|rest| rest.split_once("\" from runtime service failed: "))
        {
            self.update_ended(id, at, Some(error.to_owned()));
        } else if let Some(error) = text.strip_prefix("GenericPLEG: Unable to retrieve pods: ") {
            self.list_ended(at, Some(error.to_owned()));
        }
    }

    fn runtime_call(&mut self, call: &str, at: u64) {
        if let Some(rest) = call.strip_prefix("UpdateContainerResources Response (containerID=") {
            self.update_ended(rest.trim_end_matches(')'), at, None);
        } else if let Some(rest) = call.strip_prefix("UpdateContainerResources (containerID=") {
            let id = rest.split(',').next().unwrap_or_default().to_owned();
            self.begin("UpdateContainerResources", Some(id), at);
        } else if call.starts_with("ListContainers Response (") && call.contains(NO_FILTER) {
            self.list_ended(at, None);
        } else if call.starts_with("ListContainers (")
            && call.contains(NO_FILTER)
            && self.relist.is_some()
            && self.list.is_none()
        {
            self.list = Some(self.begin("ListContainers", None, at));
        }
    }

    fn begin(&mut self, method: &str, container: Option<String>, begin: u64) -> usize {
        self.calls.push(Call { method: method.to_owned(), container, begin, end: None, error: None });
        self.calls.len() - 1
    }

    fn update_ended(&mut self, id: &str, at: u64, error: Option<String>) {
        let of = |call: &&mut Call| {
            call.method == "UpdateContainerResources"
                && call.container.as_deref() == Some(id)
                && call.end.is_none()
        };
        if let Some(call) = self.calls.iter_mut().rev().find(of) {
            call.end = Some(at);
            call.error = error;
        }
    }

    fn list_ended(&mut self, at: u64, error: Option<String>) {
        if let Some(call) = self.list.and_then(|index| self.calls.get_mut(index))
            && call.end.is_none()
        {
            call.end = Some(at);
            call.error = error;
        }
    }
}

/// When the lines were written that have these words, by the given times of the two clocks (ns).
pub fn times_of(text: &str, words: &str, monotonic: u64, realtime: u64) -> Vec<u64> {
    text.lines()
        .filter(|line| line.contains(words))
        .filter_map(split)
        .map(|(time, _)| monotonic.saturating_sub((realtime % DAY + DAY - time) % DAY))
        .collect()
}

/// Time of day in ns, and the text, of a line with klog's header.
fn split(line: &str) -> Option<(u64, &str)> {
    let (header, text) = line.split_once("] ")?;
    let clock = header.split_whitespace().nth(1)?;
    let (whole, micros) = clock.split_once('.')?;
    let mut seconds = 0;
    for part in whole.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    Some((seconds * 1_000_000_000 + micros.parse::<u64>().ok()? * 1_000, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTER: &str =
        "filter=&ContainerFilter{Id:,State:nil,PodSandboxId:,LabelSelector:map[string]string{},}";

    fn parse(lines: &[String]) -> Vec<Call> {
        let mut parser = Parser::default();
        // It is 00:00:30 of the next day, 1000 s after boot.
        lines.iter().for_each(|line| parser.feed(line, 1_000_000_000_000, DAY * 7 + 30_000_000_000));
        parser.calls
    }

    fn line(clock: &str, text: &str) -> String {
        format!("I1123 {clock}    1234 some.go:19] {text}")
    }

    #[test]
    fn a_relist_its_list_and_an_update_are_found_across_midnight() {
        let calls = parse(&[
            line("23:59:50.000000", "GenericPLEG: Relisting"),
            line(
                "23:59:50.000100",
                &format!("[RemoteRuntimeService] ListContainers ({FILTER}, timeout=2m0s)"),
            ),
            line(
                "23:59:50.500000",
                "[RemoteRuntimeService] UpdateContainerResources (containerID=c1, timeout=2m0s)",
            ),
            line(
                "23:59:50.600000",
                "[RemoteRuntimeService] ListContainers (filter=&ContainerFilter{Id:,State:&ContainerStateValue{…},}",
            ),
            line("23:59:55.000000", "UpdateContainerResources \"c1\" from runtime service failed: gone"),
            line(
                "23:59:56.000000",
                &format!("[RemoteRuntimeService] ListContainers Response ({FILTER}, containers=[])"),
            ),
            line("23:59:58.000000", "GenericPLEG: Relisting"),
        ]);
        let second = |n: f64| 1_000_000_000_000 - (n * 1e9) as u64;
        let begins: Vec<(&str, u64, Option<u64>)> =
            calls.iter().map(|call| (call.method.as_str(), call.begin, call.end)).collect();
        assert_eq!(
            begins,
            [
                ("relist", second(40.0), Some(second(33.0))),
                ("ListContainers", second(39.9999), Some(second(34.0))),
                ("UpdateContainerResources", second(39.5), Some(second(35.0))),
                ("relist", second(32.0), None),
            ]
        );
        assert_eq!(calls[2].error.as_deref(), Some("gone"));
    }

    #[test]
    fn a_list_that_another_caller_gives_up_is_not_that_of_the_relist() {
        let list = format!("[RemoteRuntimeService] ListContainers ({FILTER}, timeout=2m0s)");
        let failed = "from runtime service failed: rpc error: code = DeadlineExceeded desc = context";
        let gave_up = format!("ListContainers with {FILTER} {failed}").replace("filter=", "filter ");
        let unable = "GenericPLEG: Unable to retrieve pods: rpc error: code = DeadlineExceeded";
        let calls = parse(&[
            line("23:50:01.000000", &list), // of the eviction manager
            line("23:50:02.000000", "GenericPLEG: Relisting"),
            line("23:50:02.000100", &list),
            line("23:52:01.000000", &gave_up),
            line("23:52:02.000200", &gave_up),
            line("23:52:02.000300", unable),
            line("23:52:03.000400", "GenericPLEG: Relisting"),
        ]);
        let begin = calls[1].begin;
        assert_eq!(calls[1].method, "ListContainers");
        assert_eq!(calls[1].end.map(|end| end - begin), Some(120_000_200_000));
        assert_eq!(calls[1].error.as_deref(), Some("rpc error: code = DeadlineExceeded"));
        assert_eq!(calls[0].end.map(|end| end - calls[0].begin), Some(120_000_400_000));
    }

    #[test]
    fn a_list_ends_with_its_relist_at_the_latest() {
        let calls = parse(&[
            line("23:50:02.000000", "GenericPLEG: Relisting"),
            line(
                "23:50:02.000100",
                &format!("[RemoteRuntimeService] ListContainers ({FILTER}, timeout=2m0s)"),
            ),
            line("23:50:05.000000", "GenericPLEG: Relisting"),
        ]);
        assert_eq!(calls[1].end, calls[0].end);
        assert_eq!(calls[1].end.map(|end| end - calls[1].begin), Some(1_999_900_000));
    }

    #[test]
    fn lines_without_the_header_are_left_alone() {
        assert!(
            parse(&["Flag --x has been deprecated".to_owned(), "] ".to_owned(), String::new()]).is_empty()
        );
    }
}
