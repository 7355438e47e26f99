//! How alike the candidates answer, pair by pair.

use super::escape::{Element, Markup, el};
use super::numbers::{counted, level, p_value, part, share_interval, whole};
use super::page::{Table, long, subheading};
use super::quality::fact;
use crate::compare::{Agreement, Interval, LogprobGap, PairTable, nats};
use crate::report::Report;

const NONE: &str = "\u{2013}";

/// One row per pair of candidates that are no controls; nothing without a pair.
pub(super) fn pair_by_pair(report: &Report) -> Option<Markup> {
    let compared = report.comparisons.iter().map(|comparison| &comparison.agreement);
    let pairs: Vec<&Agreement> = compared.chain(&report.other_pairs).collect();
    if pairs.is_empty() {
        return None;
    }
    let note = "Same answer: the same text but for white space. Aligned tokens: those with which \
                both answers begin, so that the same text stands before each of them. What comes \
                after the first token that differs is not in the mean: read it beside the share \
                of same answers.";
    let level = level(report.decision.confidence);
    Some(
        Markup::from(subheading("Pair by pair"))
            .and(answers(&pairs, &level))
            .and(logprobs(&pairs, &level))
            .and(el("p").class("quiet").with(note)),
    )
}

fn names(pair: &Agreement) -> Markup {
    let names = format!("{}, {}", pair.reference, pair.candidate);
    let tag = pair.is_same_weights.then(|| el("span").class("tag").with("same weights"));
    Markup::from(el("span").class("name").with(names)).and(" ").and(tag)
}

fn answers(pairs: &[&Agreement], level: &str) -> Element {
    let caption = format!("Answers of the second as against the first, {level} intervals");
    let heads = [
        "pair",
        "same answer",
        "interval",
        "right \u{2192} wrong",
        "wrong \u{2192} right",
        "exact McNemar p",
    ];
    let mut table = Table::new(&caption, &heads);
    for pair in pairs {
        let flips = |count: fn(&PairTable) -> u64| {
            pair.table.as_ref().map_or(NONE.into(), |table| whole(count(table)).into())
        };
        table.row(
            names(pair),
            [
                part(pair.n_same_answer, pair.n_both_answered).into(),
                pair.same_answer_interval
                    .as_ref()
                    .map_or(NONE.into(), |i| share_interval(i).into()),
                flips(|table| table.only_reference),
                flips(|table| table.only_candidate),
                pair.mcnemar_p.map_or(NONE.into(), |p| p_value(p).into()),
            ],
        );
    }
    table.finish()
}

fn logprobs(pairs: &[&Agreement], level: &str) -> Element {
    let caption =
        format!("|\u{394}logprob| of the same tokens, in nats, {level} intervals of the mean");
    let heads = ["pair", "mean", "interval", "largest", "aligned tokens", "samples"];
    let mut table = Table::new(&caption, &heads);
    for pair in pairs {
        let cells = match &pair.logprobs {
            LogprobGap::Measured(gap) => [
                nats(gap.mean_abs).into(),
                gap.interval.as_ref().map_or(NONE.into(), |i| nats_interval(i).into()),
                nats(gap.max_abs).into(),
                whole(gap.n_tokens).into(),
                part(gap.n_samples, pair.n_both_answered).into(),
            ],
            LogprobGap::NotDefined { reason } => [
                long(&format!("not defined: {reason}")).into(),
                NONE.into(),
                NONE.into(),
                whole(0).into(),
                whole(0).into(),
            ],
        };
        table.row(names(pair), cells);
    }
    table.finish()
}

fn nats_interval(interval: &Interval) -> String {
    format!("{} to {}", nats(interval.lo), nats(interval.hi))
}

/// The same as facts of one comparison.
pub(super) fn facts(pair: &Agreement) -> Markup {
    let interval = pair.same_answer_interval.as_ref();
    let mut facts = Markup::from(fact(
        "Same answer",
        format!(
            "{} of {} that both answered{} (agreement is not accuracy)",
            part(pair.n_same_answer, pair.n_both_answered),
            whole(pair.n_both_answered),
            interval.map_or(String::new(), |i| format!(", {}", share_interval(i)))
        ),
    ));
    if let (Some(table), Some(p)) = (&pair.table, pair.mcnemar_p) {
        facts.push(fact(
            "Flips",
            format!(
                "{} right \u{2192} wrong, {} wrong \u{2192} right (exact McNemar p {}, samples as \
                 independent)",
                whole(table.only_reference),
                whole(table.only_candidate),
                p_value(p)
            ),
        ));
    }
    facts.push(fact("Mean |\u{394}logprob|", logprob_fact(&pair.logprobs)));
    facts
}

fn logprob_fact(gap: &LogprobGap) -> String {
    let gap = match gap {
        LogprobGap::NotDefined { reason } => return format!("not defined: {reason}"),
        LogprobGap::Measured(gap) => gap,
    };
    let interval =
        gap.interval.as_ref().map_or(String::new(), |i| format!(" ({})", nats_interval(i)));
    let mut text = format!(
        "{} nats{interval}, largest {} (sample {}); over {} of {}, {} of them the same tokens to \
         the end",
        nats(gap.mean_abs),
        nats(gap.max_abs),
        gap.max_sample,
        counted(gap.n_tokens, "aligned token"),
        counted(gap.n_samples, "sample"),
        whole(gap.n_whole)
    );
    for (reason, n) in &gap.not_aligned {
        text += &format!("; {} not aligned: {reason}", counted(*n, "sample"));
    }
    text
}
