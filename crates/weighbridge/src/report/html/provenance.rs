//! Where every number comes from.

use std::collections::BTreeSet;

use serde_json::Value;
use weighbridge_core::{Outcome, Placement, Weights};

use super::escape::{Element, Markup, el};
use super::numbers::{bytes, counted, level, whole};
use super::page::{Table, candidate_label, section, subheading};
use crate::report::{CandidateReport, Report};
use crate::suite::{PromptTemplate, RunSettings};

pub(super) fn provenance(report: &Report) -> Element {
    section("provenance", "Provenance", report)
        .with(subheading("Candidates"))
        .with(el("div").class("cards").with_all(report.candidates.iter().map(card)))
        .with(subheading("Prompt"))
        .with(prompt(report))
        .with(subheading("What left this process"))
        .with(egress_table(report))
        .with(subheading("Outcomes of the calls"))
        .with(outcome_table(report))
        .with(subheading("Run"))
        .with(run(report))
}

fn row(term: &str, text: impl Into<Markup>) -> Element {
    el("div").with(el("dt").with(term)).with(el("dd").with(text))
}

fn known(text: Option<impl Into<Markup>>) -> Markup {
    text.map_or_else(|| el("span").class("quiet").with("not known").into(), Into::into)
}

fn digest(hex: Option<&String>) -> Markup {
    known(hex.map(|hex| el("code").with(hex)))
}

fn card(candidate: &CandidateReport) -> Element {
    let card = &candidate.card;
    let engine = card.engine.as_ref().map(|engine| {
        let build = engine.build.as_ref().map(|b| format!(" ({b})")).unwrap_or_default();
        format!("{} {}{build}", engine.name, engine.version)
    });
    let prompt =
        if candidate.is_tuned { "its own (tuned)" } else { "the same as the others\u{2019}" };
    let facts = el("dl")
        .class("facts narrow")
        .with(row("Model", el("code").with(&candidate.model)))
        .with(row("Id", &card.id))
        .with(row("Provider", &card.provider))
        .with(row("Weights", weights(card.weights)))
        .with(row("Weights SHA-256", digest(card.weights_sha256.as_ref())))
        .with(row("Quantization", known(card.quantization.as_ref())))
        .with(row("Parameters", known(card.n_params.map(whole))))
        .with(row("Context", known(card.n_ctx.map(|n| counted(n.into(), "token")))))
        .with(row("Engine", known(engine)))
        .with(row("Device", known(card.device.as_ref())))
        .with(row("Placement", placement(&card.placement)))
        .with(row("Licence", known(card.license.as_ref())))
        .with(row("Chat template SHA-256", digest(card.template_sha256.as_ref())))
        .with(row("Tokenizer SHA-256", digest(card.tokenizer_sha256.as_ref())))
        .with(row("Prompt", prompt))
        .with(row("Prompt SHA-256", digest(Some(&candidate.prompt_sha256))))
        .with(row("Settings", settings(candidate)))
        .with(row("In effect", effective(candidate)))
        .with((!candidate.warnings.is_empty()).then(|| row("Warnings", warnings(candidate))))
        .with(row(
            "Calls at once",
            match candidate.is_batch {
                true => "in batch jobs".into(),
                false => whole(candidate.concurrency.into()),
            },
        ))
        .with(candidate.stopped.as_ref().map(|why| {
            row("Broken off", format!("{why}; {} not made", counted(candidate.n_not_run, "call")))
        }));
    el("article").class("card").with(el("h4").with(candidate_label(candidate))).with(facts)
}

fn weights(weights: Weights) -> &'static str {
    match weights {
        Weights::Open => "open",
        Weights::Closed => "closed",
        Weights::Unknown => "not declared",
        Weights::StandIn => "stand-in: a demo model that plays a closed one",
        _ => "another kind",
    }
}

fn placement(placement: &Placement) -> String {
    match placement {
        Placement::InProcess => "in this process".to_owned(),
        Placement::LocalServer { verified: true } => "a server on this machine".to_owned(),
        Placement::LocalServer { verified: false } => {
            "a local server, not verified to compute here".to_owned()
        }
        Placement::Network { host } => format!("network: {host}"),
        Placement::Recorded => "recorded answers".to_owned(),
        _ => "another kind".to_owned(),
    }
}

/// The settings that are set; the model's own hold for the rest.
fn settings(candidate: &CandidateReport) -> Markup {
    let json = serde_json::to_value(&candidate.settings).expect("settings are plain data");
    let set: Vec<String> = json
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| match value {
            Value::Number(n) if n.as_f64() == Some(0.0) => format!("{name} 0"),
            value => format!("{name} {value}"),
        })
        .collect();
    format!("{}; the model\u{2019}s own for the rest", set.join(", ")).into()
}

fn calls(run: &RunSettings) -> String {
    format!(
        "given up after {} s; at most {}; spend cap USD {}; {}",
        run.timeout_s,
        counted(run.max_attempts.into(), "attempt"),
        run.spend_cap_usd,
        if run.offline { "offline" } else { "network allowed" }
    )
}

/// What the first answer tells of the settings really used.
fn effective(candidate: &CandidateReport) -> Markup {
    if candidate.effective.is_empty() {
        return known(None::<String>);
    }
    let shown: Vec<String> = candidate.effective.iter().map(|(n, v)| format!("{n} {v}")).collect();
    shown.join(", ").into()
}

fn warnings(candidate: &CandidateReport) -> String {
    let shown: Vec<String> =
        candidate.warnings.iter().map(|(text, n)| format!("{text} ({})", whole(*n))).collect();
    shown.join("; ")
}

/// The common prompt, then those of tuned candidates.
fn prompt(report: &Report) -> Markup {
    let tuned = report.candidates.iter().filter(|c| c.is_tuned);
    tuned.fold(prompt_parts("", &report.suite.prompt), |markup, candidate| {
        markup.and(prompt_parts(&format!(" of {}", candidate.name), &candidate.prompt))
    })
}

fn prompt_parts(whose: &str, prompt: &PromptTemplate) -> Markup {
    let part = |name: &str, text: &str| {
        Markup::from(el("p").class("part-name").with(format!("{name}{whose}")))
            .and(el("pre").with(text))
    };
    let system = prompt.system.as_ref().map(|text| part("System message", text));
    Markup::from(system).and(part("User message", &prompt.user))
}

fn egress_table(report: &Report) -> Element {
    let heads =
        ["candidate", "where it went", "samples sent", "attempts", "prompt text", "withheld"];
    let mut table = Table::new("Egress per candidate", &heads).class("numbers words");
    for candidate in &report.candidates {
        let egress = &candidate.egress;
        table.row(
            candidate_label(candidate),
            [
                Markup::from(&egress.destination),
                whole(egress.n_samples).into(),
                whole(egress.n_attempts).into(),
                bytes(egress.n_prompt_bytes).into(),
                whole(egress.n_withheld).into(),
            ],
        );
    }
    table.finish()
}

/// One row per outcome that occurred, in the order of the taxonomy, then what is not in it.
fn outcome_table(report: &Report) -> Element {
    let names: Vec<&str> = report.candidates.iter().map(|c| c.name.as_str()).collect();
    let heads: Vec<&str> = ["outcome", "counts as"].into_iter().chain(names).collect();
    let mut table = Table::new("Number of calls per outcome", &heads).class("numbers words");
    let occurred: BTreeSet<&str> =
        report.candidates.iter().flat_map(|c| c.outcomes.keys().map(String::as_str)).collect();
    let listed =
        Outcome::ALL.map(|o| (o.as_str(), if o.is_scored() { "scored" } else { "missing" }));
    let unlisted = occurred.iter().filter(|name| listed.iter().all(|(known, _)| known != *name));
    let rows = listed.iter().copied().filter(|(name, _)| occurred.contains(name));
    for (name, group) in rows.chain(unlisted.map(|name| (*name, "missing"))) {
        let counts = report.candidates.iter().map(|c| c.outcomes.get(name).copied().unwrap_or(0));
        table.row(name, [group.into()].into_iter().chain(counts.map(|n| whole(n).into())));
    }
    let not_run = report.candidates.iter().map(|c| Markup::from(whole(c.n_not_run)));
    table.row("not run", ["missing".into()].into_iter().chain(not_run));
    table.finish()
}

fn run(report: &Report) -> Element {
    let (suite, data, host) = (&report.suite, &report.data, &report.host);
    let evaluators: Vec<_> = suite
        .evaluators
        .iter()
        .map(|e| format!("{} ({}, version {})", e.name, e.id, e.version))
        .collect();
    let cluster = data.cluster.as_ref().map_or("none".to_owned(), |(column, n)| {
        format!("{column} ({})", counted(*n as u64, "cluster"))
    });
    let slices = if data.slices.is_empty() { "none".to_owned() } else { data.slices.join(", ") };
    let machine: Vec<String> = [
        Some(format!("{} {}", host.os, host.arch)),
        host.cpu.clone(),
        host.n_cpus.map(|n| counted(n as u64, "processor")),
        host.memory_bytes.map(|n| format!("{} memory", bytes(n))),
    ]
    .into_iter()
    .flatten()
    .collect();
    el("dl")
        .class("facts")
        .with(row("Suite", format!("{} (format version {})", suite.name, suite.version)))
        .with(row("Configuration SHA-256", el("code").with(&suite.configuration_hash)))
        .with(row("Evaluators", known((!evaluators.is_empty()).then(|| evaluators.join(", ")))))
        .with(row("Answers per sample", whole(suite.run.repeats.into())))
        .with(row("Calls", calls(&suite.run)))
        .with(row(
            "To be proven",
            format!(
                "at most {} points lost, at {} confidence",
                report.decision.margin_points,
                level(report.decision.confidence)
            ),
        ))
        .with(row(
            "Data",
            format!(
                "{}, {}, {} sensitive",
                data.file,
                counted(data.n_samples as u64, "sample"),
                whole(data.n_sensitive as u64)
            ),
        ))
        .with(row("Data SHA-256", el("code").with(&data.sha256)))
        .with(row("Slices by", slices))
        .with(row("Clusters by", cluster))
        .with(row("Machine", machine.join(", ")))
        .with(row("Program", &report.tool))
        .with(row("Run created", &report.created))
        .with(row("Run log root", digest(report.log_root.as_ref())))
        .with(row("Report format", format!("version {}", report.v)))
}
