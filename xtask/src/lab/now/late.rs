//! `live` and `watch`, started in the middle of the stall: they show what began before them, and that it ends.

use super::judge::{self, Facts};
use super::stall::Stall;
use super::store;
use crate::lab;
use crate::lab::cleanup::Ledger;
use crate::lab::cri::{self, Client};
use crate::lab::kubelet_like::{Call, KubeletLike};
use crate::lab::states;
use crate::lab::stories::checks::said::{kind, list, now};
use crate::lab::story::Truth;
use crate::lab::sys::{self, seconds};
use crate::lab::tracer::{Line, Tracer};
use crate::lab::verdict::{self, Seen, Verdict};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// How soon after its start the chain is shown, and how soon after the end of the stall it is gone, ns.
const SOON: u64 = 3_000_000_000;
/// What the lab sees of an end, it sees up to this late, ns.
const LAG: u64 = 500_000_000;
/// How long they watch the stall before a second list call comes.
const ALONE: Duration = Duration::from_secs(4);

/// Starts them, has another list call made, waits for the end of the stall and judges.
#[expect(clippy::too_many_arguments, reason = "one call, and each is another thing")]
pub async fn play(
    ledger: &Ledger,
    binary: &Path,
    stall: &Stall<'_>,
    client: &KubeletLike,
    facts: &Facts,
    keep: Option<&Path>,
    verdict: &mut Verdict,
    say: &mut impl FnMut(&str),
) -> Result<()> {
    let live = Tracer::start(ledger, binary, &["live", "--json"], |_, _| {})?;
    let started = live.started;
    let truth = stall.truth(client);
    let shows =
        |lines: &[Line]| verdict::frames(lines).iter().any(|seen| judge::drawn(&truth, &seen.frame).is_ok());
    sys::until(Duration::from_secs(8), || shows(&live.lines())).await;
    say("live shows the chain, or has had time to");
    let watch = Tracer::start(ledger, binary, &["watch", "--json"], |_, _| {})?;
    tokio::time::sleep(ALONE).await;
    let second = tokio::spawn({
        let own = Client::connect(&stall.lab().containerd.socket, cri::SHORT).await?;
        async move {
            let begin = sys::monotonic();
            let answer =
                own.call::<_, cri::ListContainersResponse>("ListContainers", cri::Empty {}, cri::LONG);
            let error = answer.await.err().map(|status| status.to_string());
            let end = Some(sys::monotonic());
            Call { method: "ListContainers".to_owned(), container: None, begin, end, error }
        }
    });
    tokio::time::sleep(Duration::from_millis(2500)).await;
    ensure!(!stall.is_over(), "the stall was over before a second list call had hung for seconds");
    ensure!(sys::until(Duration::from_secs(120), || stall.is_over()).await, "the unmount does not end");
    let second = second.await?;
    say("the stall is over");
    // An attempt to handle the exit may have been given up a moment before; then the exit is late until the next one.
    let states = states::Watch::start(&stall.lab().containerd.socket)?;
    let mut handled = None;
    sys::until(Duration::from_secs(60), || {
        handled = states.states().first(&stall.victim.container, "EXITED");
        handled.is_some()
    })
    .await;
    let handled = handled.context("containerd does not say that the container has exited")?;
    drop(states);
    tokio::time::sleep(Duration::from_nanos(SOON) + Duration::from_secs(1)).await;
    let (exit, took, lines, messages) = live.quit().await?;
    let (watch_exit, watch_took, told, _) = watch.quit().await?;
    let join =
        |lines: &[Line]| lines.iter().map(|line| format!("{}\t{}\n", line.at, line.text)).collect::<String>();
    store(keep, "late-frames.tsv", &join(&lines))?;
    store(keep, "late-messages.tsv", &join(&messages))?;
    store(keep, "late-watch.tsv", &join(&told))?;
    let truth = stall.truth(client);
    let frames = verdict::frames(&lines);
    shown(&truth, facts, started, &frames, verdict);
    later(&second, &frames, verdict);
    ended(&truth, handled, &frames, verdict);
    verdict.ended(exit, took, lab::QUIT_WITHIN);
    watched(&truth, &told, verdict);
    verdict.ended(watch_exit, watch_took, lab::QUIT_WITHIN);
    for line in messages.iter().filter(|line| line.text.contains("defect")) {
        verdict.check("no defect is told", "", line.text.as_str(), false);
    }
    Ok(())
}

/// The same chain, in time, with ages that are not too old and not too young.
fn shown(truth: &Truth, facts: &Facts, started: u64, frames: &[Seen], verdict: &mut Verdict) {
    let over = truth.blocked_unmount().map_or(u64::MAX, |(_, end)| end);
    // Of the stall that lasts; its threads are inside until it is over.
    let mut lasting = truth.clone();
    lasting.unmounts.iter_mut().filter(|stay| stay.end == Some(over)).for_each(|stay| stay.end = None);
    let all: Vec<&Seen> =
        frames.iter().filter(|seen| now(seen) < over && judge::drawn(truth, &seen.frame).is_ok()).collect();
    let first = all.first().map(|seen| seen.at - started);
    verdict.check(
        "live: the chain is shown",
        format!("within {} of its start", seconds(SOON)),
        first.map_or("never".to_owned(), |after| format!("{} after it", seconds(after))),
        first.is_some_and(|after| after <= SOON),
    );
    let told = frames
        .iter()
        .filter(|seen| now(seen) < over)
        .rev()
        .find_map(|seen| judge::drawn(truth, &seen.frame).err());
    let (Some(first), Some(last)) = (all.first(), all.last()) else {
        return verdict.note("live: shown instead", "", told.unwrap_or_default());
    };
    // From then on it goes on being shown.
    let (from, to) = (now(first), over.saturating_sub(LAG));
    let since = frames.iter().filter(|seen| (from..to).contains(&now(seen))).count();
    let shown = all.iter().filter(|seen| (from..to).contains(&now(seen))).count();
    verdict.check(
        "live: and goes on being shown",
        format!("in {since} frames until the end"),
        format!("in {shown}; else: {}", told.unwrap_or_else(|| "-".to_owned())),
        since > 0 && shown == since,
    );
    judge::chain(&lasting, facts, &last.frame, verdict);
    let watched = now(last) - now(first);
    let young: Vec<&str> = judge::drawn(truth, &last.frame).map_or(Vec::new(), |drawn| {
        list(&drawn.diagnosis["chain"], "links")
            .filter(|link| link["age"].as_u64().unwrap_or(0) + 20_000_000 < watched)
            .map(kind)
            .collect()
    });
    verdict.check(
        "live: no age is younger than it has watched",
        format!("at least {}", seconds(watched)),
        young.join(", "),
        young.is_empty(),
    );
    let too_old = all.iter().any(|seen| {
        let begin = truth.longest("ListContainers").map_or(0, |call| call.begin);
        let age =
            judge::drawn(truth, &seen.frame).ok().and_then(|drawn| drawn.diagnosis["chain"]["age"].as_u64());
        age.is_some_and(|age| age > (now(seen) - begin) + (now(seen) - begin) / 20)
    });
    verdict.check("live: in no frame too old", "", if too_old { "one is" } else { "none is" }, !too_old);
}

/// A list call that came later is known exactly.
fn later(call: &Call, frames: &[Seen], verdict: &mut Verdict) {
    // The client hears of its end later than that is.
    let end = call.end.unwrap_or(call.begin).saturating_sub(LAG);
    let during = frames.iter().rev().find(|seen| (call.begin..end).contains(&now(seen)));
    let age = during.map(|seen| now(seen) - call.begin);
    let list_calls: Vec<&Value> = during.map_or(Vec::new(), |seen| {
        let calls = list(&seen.frame, "diagnoses").flat_map(|one| list(one, "stuck_calls"));
        calls.filter(|one| one["id"]["method"] == "ListContainers").collect()
    });
    let said = list_calls.iter().find(|one| one["at_least"] == false);
    verdict.duration("live: a second list call, exactly", age, said.and_then(|one| one["age"].as_u64()));
    let first = list_calls.iter().any(|one| one["at_least"] == true);
    verdict.check(
        "live: beside the first",
        "which is said with at least",
        format!("{} stuck list calls", list_calls.len()),
        first && list_calls.len() == 2,
    );
}

/// No chain of it after the end. Without news there is no frame: the last one says what holds from then on. It is no older than the
/// end of the unmount, but may be older than `over`: that the exit was handled the lab hears late.
fn gone(container: &str, unmounted: u64, over: u64, frames: &[Seen], verdict: &mut Verdict) {
    let after = |seen: &&Seen| now(seen) > over + SOON;
    let last = frames.last().filter(|seen| now(seen) + LAG >= unmounted);
    let late: Vec<String> = frames
        .iter()
        .filter(after)
        .chain(last)
        .flat_map(|seen| list(&seen.frame, "diagnoses"))
        .filter(|one| one.to_string().contains(container))
        .map(verdict::words)
        .collect();
    verdict.check(
        "live: frames after the end",
        "show no chain of it",
        format!(
            "{} frames, {}",
            frames.iter().filter(after).count(),
            late.first().cloned().unwrap_or_default()
        ),
        late.is_empty() && last.is_some(),
    );
}

/// When it is over that is seen; it is when the exit has been handled as well.
fn ended(truth: &Truth, handled: u64, frames: &[Seen], verdict: &mut Verdict) {
    let Some((_, unmounted)) = truth.blocked_unmount() else {
        return verdict.check("live: the end", "an unmount that ended", "none", false);
    };
    let over = unmounted.max(handled);
    gone(&truth.container, unmounted, over, frames, verdict);
    let mut incidents: Vec<(&str, Option<u64>)> = Vec::new();
    for incident in frames.iter().flat_map(|seen| list(&seen.frame, "incidents")) {
        let about = incident.to_string().contains(&truth.container);
        if let Some(id) = incident["id"].as_str().filter(|_| about) {
            incidents.retain(|(known, _)| *known != id);
            incidents.push((id, incident["ended"].as_u64()));
        }
    }
    let told: Vec<String> = incidents
        .iter()
        .map(|(id, ended)| match ended {
            Some(at) if *at >= over => format!("{id} {} after the end", seconds(at - over)),
            Some(at) => format!("{id} {} before the end", seconds(over - at)),
            None => format!("{id} is open"),
        })
        .collect();
    let near = |at: &Option<u64>| at.is_some_and(|at| at + SOON / 6 >= unmounted && at <= over + SOON);
    verdict.check(
        "live: its incident",
        format!("one, ended within {}", seconds(SOON)),
        told.join(", "),
        incidents.len() == 1 && incidents.iter().all(|(_, ended)| near(ended)),
    );
}

/// `watch` tells that it is stuck while it is, and that it is over.
fn watched(truth: &Truth, lines: &[Line], verdict: &mut Verdict) {
    let over = truth.blocked_unmount().map_or(0, |(_, end)| end);
    let told: Vec<(u64, Value)> = lines
        .iter()
        .filter_map(|line| Some((line.at, serde_json::from_str::<Value>(&line.text).ok()?)))
        .filter(|(_, incident)| incident.to_string().contains(&truth.container))
        .collect();
    let changes: Vec<String> = told
        .iter()
        .map(|(at, one)| {
            let (change, _) = verdict::variant(&one["change"]);
            let when = if *at < over { "while it lasted" } else { "afterwards" };
            format!("{change} {when}")
        })
        .collect();
    let at = |name: &str| {
        told.iter().find(|(_, one)| verdict::variant(&one["change"]).0 == name).map(|(at, _)| *at)
    };
    let last = told.last().and_then(|(_, one)| one["sentence"].as_str());
    verdict.note("watch: said last", "", last.unwrap_or("-"));
    verdict.check(
        "watch: tells it",
        "Crossed while it lasts, Ended when it is over",
        changes.join("; "),
        at("Crossed").is_some_and(|at| at < over) && at("Ended").is_some_and(|at| at + SOON / 6 >= over),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn frame(at: u64, stuck: Value) -> Seen {
        Seen { at, frame: json!({"now": at, "diagnoses": [{"stuck_calls": stuck}]}) }
    }

    #[test]
    fn a_later_call_is_exact_and_the_first_is_not() {
        let call = Call {
            method: "ListContainers".into(),
            container: None,
            begin: 1_000,
            end: Some(9_000 + LAG),
            error: None,
        };
        let stuck = |age: u64, least: bool| {
            json!([
                {"id": {"method": "ListContainers"}, "at_least": true, "age": 90_000},
                {"id": {"method": "ListContainers"}, "at_least": least, "age": age},
            ])
        };
        let judge = |frames: &[Seen]| {
            let mut verdict = Verdict::default();
            later(&call, frames, &mut verdict);
            verdict.failures()
        };
        assert_eq!(judge(&[frame(8_000, stuck(7_000, false))]), 0);
        assert_eq!(judge(&[frame(8_000, stuck(6_000, false))]), 1, "a wrong age");
        assert_eq!(judge(&[frame(8_000, stuck(7_000, true))]), 1, "not exact");
        assert_eq!(judge(&[frame(9_500, stuck(8_500, false))]), 2, "after it was over");
    }

    #[test]
    fn the_last_frame_holds_from_the_end_on() {
        const SECOND: u64 = 1_000_000_000;
        let (unmounted, over) = (30 * SECOND, 32 * SECOND);
        let judge = |at: &[(u64, bool)]| {
            let stuck = |is_stuck: bool| if is_stuck { json!(["c1"]) } else { json!([]) };
            let frames: Vec<Seen> = at.iter().map(|(at, is_stuck)| frame(*at, stuck(*is_stuck))).collect();
            let mut verdict = Verdict::default();
            gone("c1", unmounted, over, &frames, &mut verdict);
            verdict.failures()
        };
        let during = (29 * SECOND, true);
        assert_eq!(judge(&[during, (over, false)]), 0);
        assert_eq!(judge(&[during, (unmounted, false)]), 0, "before the lab heard that the exit was handled");
        assert_eq!(judge(&[during, (over, true)]), 1, "it stays");
        assert_eq!(
            judge(&[during, (unmounted, false), (over + SOON + 1, true), (60 * SECOND, false)]),
            1,
            "again"
        );
        assert_eq!(judge(&[during, (29 * SECOND, false)]), 1, "gone before the unmount was");
        assert_eq!(judge(&[during]), 1, "no frame of the end");
        assert_eq!(judge(&[]), 1);
    }
}
