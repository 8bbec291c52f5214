//! `doctor`: what can be seen on this node, how, and what not and why. Attaches nothing.

use crate::{
    bpf::{features::Answer, known_bad},
    cli::Doctor,
    correlator::{
        advice::{self, Circumstances},
        frame::{DeviceName, EndsIn, Fix},
    },
    event::Role,
    exit::Exit,
    exposure,
    sinks::{json, sanitise},
    source::Messages,
    warden::{
        self, Settings,
        protocol::{Message, Survey},
    },
};
use anyhow::{Context, bail};
use serde::Serialize;
use std::{fmt::Write, io::Write as _, time::Duration};

/// The survey reads every program that takes part; a disk that does not answer shall not keep the user waiting.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the verb.
pub fn run(options: &Doctor) -> anyhow::Result<Exit> {
    let without = options.without.0.clone();
    let socket = warden::fork(Settings { survey_only: true, without, ..Settings::default() })
        .context("starting the warden process")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let heard = runtime.block_on(async {
        let mut heard = Heard::default();
        match tokio::time::timeout(PATIENCE, listen(socket, &mut heard)).await {
            Ok(end) => end?,
            Err(_) if heard.survey.attached_after.is_none() => {
                let why = format!("it did not come back within {PATIENCE:?}: a program file cannot be read, its disk may be stuck");
                heard.exposure.not_known.push(("what can be seen".into(), why));
            }
            Err(_) => {}
        }
        anyhow::Ok(heard)
    })?;
    runtime.shutdown_background();
    let Heard { survey, exposure: facts } = heard;
    let verdict = exposure::judge(&facts, options.write_rate);
    let fixes = fixes(&facts, &verdict);
    let findings = findings(&survey);
    if options.json {
        #[derive(Serialize)]
        struct Report<'a> {
            verdict: &'a exposure::Verdict,
            fixes: &'a [Fix],
            exposure: &'a exposure::Facts,
            findings: &'a [Finding],
            survey: &'a Survey,
        }
        say(&json::pretty(&Report {
            verdict: &verdict,
            fixes: &fixes,
            exposure: &facts,
            findings: &findings,
            survey: &survey,
        })?)?;
    } else {
        let mut out = format!("{}\n\n", sanitise(&verdict.sentence));
        out.extend(exposure::text(&facts, &verdict).lines().map(|line| format!("{}\n", sanitise(line))));
        if !fixes.is_empty() {
            out += "\nwhat helps here\n";
            out.extend(fixes.iter().map(|fix| format!("  - {}\n", sanitise(&in_words(fix)))));
        }
        out += "\nwhat can be seen\n";
        out += &text(&survey, &findings);
        say(out.trim_end().as_bytes())?;
    }
    Ok(match survey.features.as_ref().map(|f| f.bpf.yes() && f.ring_buffer.yes()) {
        Some(true) if findings.is_empty() => Exit::Done,
        Some(true) => Exit::PartlyBlind,
        _ => Exit::NotAllowed,
    })
}

/// Writes to standard output; not with `print!`, which panics when nobody reads.
fn say(text: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// What the warden has told so far.
#[derive(Default)]
struct Heard {
    survey: Survey,
    exposure: exposure::Facts,
}

/// Hears until all is known; what came before a time-out stays in `heard`.
async fn listen(socket: std::os::unix::net::UnixStream, heard: &mut Heard) -> anyhow::Result<()> {
    let mut source = Messages::new(socket)?;
    loop {
        if heard.survey.attached_after.is_some() && heard.exposure.complete {
            return Ok(());
        }
        match source.next().await.context("hearing from the warden")? {
            Some(Message::Survey(survey)) => heard.survey = survey,
            Some(Message::Exposure(facts)) => heard.exposure = facts,
            Some(Message::Fatal(reason)) => bail!("{reason}"),
            Some(_) => {}
            None => bail!("the warden process ended before it had an answer"),
        }
    }
}

/// What would help on this node; from the table that diagnoses use.
fn fixes(facts: &exposure::Facts, verdict: &exposure::Verdict) -> Vec<Fix> {
    if !matches!(verdict.level, exposure::Level::AtRisk | exposure::Level::MayBe) {
        return Vec::new();
    }
    let Some(upper) = facts.uppers.iter().find(|upper| upper.syncing > 0) else { return Vec::new() };
    let none =
        |k: &crate::event::KubeletFacts| k.cpu_manager_policy.as_ref().is_some_and(|(p, _)| p == "none");
    let ends_in = EndsIn::UnmountSync {
        device: Some(DeviceName { device: upper.device, name: upper.name.clone() }),
        fs_type: Some(upper.fs_type.clone()),
    };
    let mut daemons = facts.processes.iter().filter(|p| p.role == crate::event::Role::Containerd);
    let sole = daemons.next().filter(|_| daemons.next().is_none());
    let on = Circumstances {
        containerd: sole.and_then(|p| p.version.as_deref()),
        cpu_manager: facts.kubelets.iter().all(none).then_some("none"),
        ..Circumstances::default()
    };
    advice::in_advance(&ends_in, &on)
}

fn in_words(fix: &Fix) -> String {
    let label =
        |word: &str, text: &str| if text.is_empty() { String::new() } else { format!("; {word}{text}") };
    let (since, price) = (label("since ", &fix.since), label("but: ", &fix.side_effects));
    format!("{}: {}{}{since}{price}", fix.what, fix.effect, label("how: ", &fix.how))
}

/// Something that cannot be seen and matters for the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    why: String,
}

/// What matters, in the order in which an SRE would want to mend it. Pure.
fn findings(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |what: &str, why: String| findings.push(Finding { what: what.into(), why });
    if let Some(features) = &survey.features {
        for (what, answer) in
            [("BPF", &features.bpf), ("ring buffer", &features.ring_buffer), ("uprobes", &features.uprobes)]
        {
            if let Some(reason) = answer.reason() {
                add(what, reason.to_owned());
            }
        }
    }
    if !survey.programs.iter().any(|p| p.role == Role::Containerd) {
        add("containerd", super::follow::no_containerd(survey));
    }
    for probe in survey.probes.iter().filter(|p| p.how.is_none()) {
        add(&probe.what, reason(probe));
    }
    findings
}

/// What an absent probe means, and why it is absent.
fn reason(probe: &crate::bpf::plan::Probe) -> String {
    [probe.loss.as_str(), probe.note.as_str()]
        .iter()
        .filter(|s| !s.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join("; ")
}

fn text(survey: &Survey, findings: &[Finding]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, survey, findings);
    out
}

fn write_text(out: &mut String, survey: &Survey, findings: &[Finding]) -> std::fmt::Result {
    let sites: u32 = survey.probes.iter().map(|p| p.sites).sum();
    let on = survey.probes.iter().filter(|p| p.how.is_some()).count();
    if findings.is_empty() {
        writeln!(out, "All of the chain can be seen: {on} probes at {sites} sites.")?;
    } else {
        writeln!(
            out,
            "{on} of {} probes can be had; {} things cannot be seen:",
            survey.probes.len(),
            findings.len()
        )?;
        for finding in findings {
            writeln!(out, "  - {}: {}", sanitise(&finding.what), sanitise(&finding.why))?;
        }
    }
    if let Some(f) = &survey.features {
        writeln!(out, "\nkernel {}", sanitise(&f.kernel))?;
        for defect in known_bad::defects(&f.kernel) {
            writeln!(out, "  known defect: {} ({})", defect.what, defect.citation)?;
        }
        let answers: [(&str, &Answer); 10] = [
            ("BPF programs", &f.bpf),
            ("type description (BTF)", &f.btf),
            ("fentry, fexit", &f.trampolines),
            ("kprobes", &f.kprobes),
            ("uprobes", &f.uprobes),
            ("uprobe-multi links", &f.uprobe_multi),
            ("attach cookies", &f.cookies),
            ("ring buffer", &f.ring_buffer),
            ("kernel memory", &f.kernel_memory),
            ("system-call tracepoints", &f.syscall_tracepoints),
        ];
        for (what, answer) in answers {
            match answer {
                Answer::Yes => writeln!(out, "  {what:<24} yes")?,
                Answer::No(reason) => writeln!(out, "  {what:<24} no: {}", sanitise(reason))?,
                Answer::Unknown(reason) => writeln!(out, "  {what:<24} not known: {}", sanitise(reason))?,
            }
        }
    }
    writeln!(out, "\nprograms")?;
    for program in &survey.programs {
        let pids: Vec<String> = program.pids.iter().take(8).map(u32::to_string).collect();
        let more = if program.pids.len() > 8 {
            format!(" and {} more", program.pids.len() - 8)
        } else {
            String::new()
        };
        writeln!(
            out,
            "  {} ({:?}), {}, pid {}{more}",
            sanitise(&program.comm),
            program.role,
            sanitise(&program.go_version),
            pids.join(" ")
        )?;
    }
    if survey.programs.is_empty() {
        writeln!(out, "  none; {}", super::follow::no_containerd(survey))?;
    }
    write_costs(out, survey)?;
    writeln!(out, "\nprobes")?;
    for probe in &survey.probes {
        match probe.how {
            Some(how) => {
                let cheap = if how == crate::event::SeenBy::Uprobe {
                    format!(", {} of {} sites emulated", probe.emulated, probe.sites)
                } else {
                    String::new()
                };
                writeln!(out, "  on   {:<44} {}{cheap}", sanitise(&probe.what), crate::bpf::load::word(how))?;
            }
            None => writeln!(out, "  off  {:<44} {}", sanitise(&probe.what), sanitise(&reason(probe)))?,
        }
    }
    Ok(())
}

/// What attaching would put into the programs. What a hit costs is measured when something is attached, so not here.
fn write_costs(out: &mut String, survey: &Survey) -> std::fmt::Result {
    let probed = || survey.programs.iter().filter(|program| program.pages > 0);
    if probed().next().is_none() {
        return Ok(());
    }
    writeln!(
        out,
        "\nmemory that probes would put into them (each page with a probe is copied into each process)"
    )?;
    let mut all = 0;
    for program in probed() {
        let (each, processes) = (u64::from(program.pages) * 4, program.pids.len() as u64);
        all += each * processes;
        let comm = sanitise(&program.comm);
        writeln!(out, "  {comm:<24} {} pages, {each} kB in each of {processes} processes", program.pages)?;
    }
    writeln!(out, "  {:<24} {all} kB", "in all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_program_gets_out_of_its_line() {
        let hostile = "x\u{1b}[2J\n\u{202e}y\u{9b}";
        let probe = |how| crate::bpf::plan::Probe {
            what: hostile.into(),
            target: hostile.into(),
            how,
            sites: 1,
            emulated: 1,
            loss: hostile.into(),
            note: hostile.into(),
        };
        let program = crate::warden::protocol::GoProgram {
            role: Role::Other,
            comm: hostile.into(),
            go_version: hostile.into(),
            pids: vec![1],
            build_id: Some(hostile.into()),
            pages: 1,
        };
        let probes = vec![probe(None), probe(Some(crate::event::SeenBy::Uprobe))];
        let mut survey = Survey { programs: vec![program], probes, ..Survey::default() };
        let lines = |survey: &Survey| text(survey, &findings(survey)).lines().count();
        let told = text(&survey, &findings(&survey));
        assert!(told.lines().all(|line| sanitise(line) == line), "{told:?}");
        let hostile_lines = lines(&survey);
        survey.programs[0].comm = "x".into();
        survey.probes.iter_mut().for_each(|probe| probe.what = "x".into());
        assert_eq!(lines(&survey), hostile_lines);
        let json = String::from_utf8(json::pretty(&survey).unwrap()).unwrap();
        assert!(json.lines().all(|line| sanitise(line) == line), "{json:?}");
    }

    #[test]
    fn what_it_would_cost_is_told_by_program() {
        let program = crate::warden::protocol::GoProgram {
            role: Role::Shim,
            comm: "containerd-shim".into(),
            go_version: "go1.19.8".into(),
            pids: (1..=250).collect(),
            build_id: None,
            pages: 20,
        };
        let survey = Survey { programs: vec![program], ..Survey::default() };
        let told = text(&survey, &[]);
        assert!(told.contains("20 pages, 80 kB in each of 250 processes"), "{told}");
        assert!(told.contains("20000 kB"), "{told}");
    }

    #[test]
    fn a_node_without_containerd_is_a_finding_with_a_cure() {
        let found = findings(&Survey::default());
        assert_eq!(found.len(), 1);
        assert!(found[0].why.contains("pgrep -a containerd"));
        assert!(text(&Survey::default(), &found).contains("no process contains its functions"));
    }
}
