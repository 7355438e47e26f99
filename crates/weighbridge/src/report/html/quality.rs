//! Quality with intervals, comparisons, and the controls that show that the scale works.

use std::collections::BTreeMap;

use super::charts::{Guide, Lane, Scale, ends, lanes};
use super::escape::{Element, Markup, el};
use super::numbers::{
    counted, level, p_value, part, points_interval, share, share_interval, whole,
};
use super::page::{
    Table, badge, callout, candidate_label, control_badge, long, section, subheading,
};
use super::pairs;
use crate::compare::{
    Cause, Comparison, Difference, EvidenceKind, Failures, MIN_PAIRS, MissingAnalysis, PairTable,
    SliceComparison, SliceFinding, points,
};
use crate::report::{CandidateReport, ControlReport, ControlResult, Quality, Report};

pub(super) fn quality(report: &Report) -> Element {
    let weighed: Vec<_> = report.candidates.iter().filter(|c| !c.is_control).collect();
    let mut body = Markup::default();
    if report.suite.evaluators.is_empty() {
        body.push(callout(
            "No evaluator: nothing says which answer is right. The comparisons below show where \
             the models agree, and agreement is not accuracy.",
        ));
    }
    for (i, evaluator) in report.suite.evaluators.iter().enumerate() {
        let role = if i == 0 { "decides" } else { "shown beside" };
        let heading =
            format!("{} ({}, version {})", evaluator.name, evaluator.id, evaluator.version);
        body.push(subheading(&heading).with(" ").with(badge(role, "plain")));
        body.push(scores(&weighed, &evaluator.name, report.decision.confidence));
    }
    body.push(pairs::pair_by_pair(report));
    for comparison in &report.comparisons {
        let title = format!("{} against {}", comparison.candidate, comparison.reference);
        body.push(subheading(&title).with(" ").with(evidence_badge(comparison)));
        body.push(held_against(report, comparison));
    }
    section("quality", "Quality", report).with(body)
}

pub(super) fn controls(report: &Report) -> Element {
    let section = section("controls", "Controls", report);
    if report.controls.is_empty() {
        return section.with(el("p").with(
            "The suite declares no control: nothing here shows that the scale finds a difference \
             that is there, and none where there is none.",
        ));
    }
    let intro = "Comparisons whose result was known beforehand. If one of them fails, this set-up \
                 cannot be trusted and there is no verdict.";
    let only_there: Vec<_> = report.candidates.iter().filter(|c| c.is_control).collect();
    let mut section = section
        .with(el("p").with(intro))
        .with_all(report.controls.iter().map(|c| control(report, c)));
    if let (Some(evaluator), false) = (report.suite.evaluators.first(), only_there.is_empty()) {
        section = section
            .with(subheading("Candidates that are there for controls only"))
            .with(scores(&only_there, &evaluator.name, report.decision.confidence));
    }
    section
}

fn control(report: &Report, control: &ControlReport) -> Element {
    let comparison = &control.comparison;
    let details = el("details").class("more").with(
        el("summary").with(format!("{} against {}", comparison.candidate, comparison.reference)),
    );
    let details = match control.result {
        ControlResult::AsExpected => details,
        _ => details.flag("open"),
    };
    el("article")
        .class("control")
        .with(el("h3").with(&control.name).with(" ").with(control_badge(control.result)))
        .with(el("p").with(&control.finding))
        .with(details.with(held_against(report, comparison)))
}

/// Chart and tables of one evaluator's scores.
fn scores(candidates: &[&CandidateReport], evaluator: &str, confidence: f64) -> Markup {
    let found: Vec<(&CandidateReport, &Quality)> = candidates
        .iter()
        .filter_map(|c| Some((*c, c.quality.iter().find(|q| q.evaluator == evaluator)?)))
        .collect();
    let values = found.iter().flat_map(|(_, q)| {
        let (lo, hi) = q.interval.as_ref().map_or((q.mean, q.mean), |i| (Some(i.lo), Some(i.hi)));
        [q.mean, lo, hi].into_iter().flatten().map(|v| v * 100.0)
    });
    let scale = Scale::linear(values);
    let rows = found.iter().map(|(candidate, q)| Lane {
        label: candidate_label(candidate),
        point: q.mean.map(|m| m * 100.0),
        interval: q.interval.as_ref().map(|i| ends(i, 100.0)),
        value: mean_and_interval(q),
        spoken: match (q.mean, &q.interval) {
            (Some(mean), Some(i)) => {
                format!("{}: mean {}, {}", candidate.name, share(mean), share_interval(i))
            }
            (Some(mean), None) => format!("{}: mean {}, no interval", candidate.name, share(mean)),
            _ => format!("{}: not scored", candidate.name),
        },
    });
    let caption = format!("Mean score with its {} interval", level(confidence));
    Markup::from(lanes(&caption, &scale, |v| format!("{} %", tidy(v)), &[], rows.collect()))
        .and(score_table(&found))
        .and(parts_table(&found))
}

/// A tick without digits that say nothing.
fn tidy(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn mean_and_interval(q: &Quality) -> Markup {
    match q.mean {
        Some(mean) => Markup::from(el("strong").with(share(mean)))
            .and(" ")
            .and(q.interval.as_ref().map(|i| el("span").class("quiet").with(share_interval(i)))),
        None => "not scored".into(),
    }
}

fn score_table(found: &[(&CandidateReport, &Quality)]) -> Element {
    let mut table = Table::new(
        "Scores per candidate",
        &["candidate", "mean", "interval", "method", "scored", "unscored", "missing"],
    );
    for (candidate, q) in found {
        table.row(
            candidate_label(candidate),
            [
                q.mean.map_or("\u{2013}".into(), |m| share(m).into()),
                q.interval.as_ref().map_or("\u{2013}".into(), |i| share_interval(i).into()),
                long(&q.method).into(),
                whole(q.n_scored).into(),
                reasons(&q.unscored),
                reasons(&q.missing),
            ],
        );
    }
    table.finish()
}

/// Counts by reason, or 0.
fn reasons(counts: &BTreeMap<String, u64>) -> Markup {
    if counts.values().sum::<u64>() == 0 {
        return "0".into();
    }
    let shown: Vec<_> = counts.iter().map(|(why, n)| format!("{} {why}", whole(*n))).collect();
    shown.join(", ").into()
}

fn parts_table(found: &[(&CandidateReport, &Quality)]) -> Option<Element> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in found.iter().flat_map(|(_, q)| &q.parts) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return None;
    }
    let heads: Vec<&str> = ["candidate"].into_iter().chain(names.iter().copied()).collect();
    let mut table = Table::new("Mean score per part", &heads);
    for (candidate, q) in found {
        let cells = names.iter().map(|name| {
            let found = q.parts.iter().find(|(part, _)| part == name);
            found.map_or("\u{2013}".into(), |(_, mean)| Markup::from(share(*mean)))
        });
        table.row(candidate_label(candidate), cells);
    }
    Some(table.finish())
}

fn evidence_badge(comparison: &Comparison) -> Element {
    match comparison.evidence.kind {
        EvidenceKind::Better => badge("\u{25b2} better", "good"),
        EvidenceKind::NonInferior => badge("\u{2713} not worse than the limit", "good"),
        EvidenceKind::Worse => badge("\u{25bc} worse", "bad"),
        EvidenceKind::NotProven => badge("? not proven", "open"),
    }
}

fn cause_text(cause: Cause) -> &'static str {
    match cause {
        Cause::NoGoldAnswers => "no evaluator",
        Cause::NoPairs => "no sample has a score on both sides",
        Cause::MissingAnswers => "missing answers",
        Cause::ReadingSheet => "fewer pairs than a comparison needs",
        Cause::NobodyRight => "nobody right",
        Cause::TooFewClusters => "too few clusters",
        Cause::TooFewSamples => "too few samples",
    }
}

/// Everything there is to say of one comparison.
fn held_against(report: &Report, comparison: &Comparison) -> Markup {
    let mut body =
        Markup::from(el("p").class("evidence").with(sentence_case(&comparison.evidence.sentence)));
    if let Some(cause) = comparison.evidence.cause {
        body.push(
            el("p")
                .with("Not proven because of: ")
                .with(el("strong").with(cause_text(cause)))
                .with("."),
        );
    }
    body.push(difference_chart(report, comparison));
    let mut facts = el("dl").class("facts");
    if let Some(difference) = &comparison.difference {
        facts = facts
            .with(fact(
                "p-value of \u{201c}no difference\u{201d}",
                format!("{} ({})", p_value(difference.p_value), difference.test),
            ))
            .with(fact("Interval", difference.method.clone()));
    }
    facts = facts
        .with((comparison.n_withheld > 0).then(|| {
            fact(
                "Outside",
                format!(
                    "{} that one side must not see; nothing is known of them",
                    counted(comparison.n_withheld, "sensitive sample")
                ),
            )
        }))
        .with((comparison.n_unscored > 0).then(|| {
            fact(
                "No score",
                format!("{} without a right answer", counted(comparison.n_unscored, "sample")),
            )
        }))
        .with(fact(
            "Pairs",
            format!(
                "{} scored on both sides, of {}",
                whole(comparison.n_pairs),
                counted(report.data.n_samples as u64, "sample")
            ),
        ))
        .with(pairs::facts(&comparison.agreement));
    facts = facts.with(power_facts(report, comparison));
    body.push(facts);
    let tables = el("div")
        .class("side-by-side")
        .with(comparison.agreement.table.as_ref().map(|table| pair_table(comparison, table)))
        .with(failure_table(report, comparison));
    body.push(tables);
    if let Some(missing) = &comparison.missing {
        body.push(missing_chart(report, missing));
    }
    if !comparison.slices.is_empty() {
        body.push(slices(report, comparison));
    }
    body
}

pub(super) fn fact(term: &'static str, text: impl Into<Markup>) -> Element {
    el("div").with(el("dt").with(term)).with(el("dd").with(text))
}

fn power_facts(report: &Report, comparison: &Comparison) -> Markup {
    let power = &comparison.power;
    let mut facts = Markup::default();
    if let Some(detectable) = power.detectable_points {
        facts.push(fact(
            "Detectable difference",
            format!("{detectable:.1} points are found in 80 % of runs of this size"),
        ));
    }
    let needed = |n: Option<u64>| {
        n.map_or("not attainable".to_owned(), |n| format!("about {}", crate::compare::count(n)))
    };
    if power.n_if_real.is_some() || power.n_if_zero.is_some() {
        facts.push(fact(
            "Samples for a proof",
            format!(
                "{} if the gap is as seen; {} if there is none (limit \u{2212}{} points, 80 % power)",
                needed(power.n_if_real),
                needed(power.n_if_zero),
                report.decision.margin_points
            ),
        ));
    }
    facts
}

/// An evidence sentence begins in lower case because it follows a name elsewhere.
fn sentence_case(text: &str) -> String {
    let mut chars = text.chars();
    let head = chars.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default();
    let stop = if text.ends_with('.') { "" } else { "." };
    format!("{head}{}{stop}", chars.as_str())
}

/// A scale of differences that shows zero and the limit too.
fn difference_scale<'a>(
    report: &Report,
    differences: impl IntoIterator<Item = &'a Difference>,
) -> (Scale, [Guide; 2]) {
    let limit = -report.decision.margin_points;
    let values = differences
        .into_iter()
        .flat_map(|d| [d.points, d.interval.lo, d.interval.hi])
        .chain([0.0, limit]);
    (Scale::linear(values), [Guide::Zero, Guide::Limit(limit)])
}

fn difference_lane(
    label: Markup,
    difference: Option<&Difference>,
    spoken: &str,
    more: Markup,
) -> Lane {
    let value = match difference {
        Some(d) => Markup::from(el("strong").with(points(d.points)))
            .and(" ")
            .and(el("span").class("quiet").with(points_interval(&d.interval))),
        None => "no interval".into(),
    };
    Lane {
        label,
        point: difference.map(|d| d.points),
        interval: difference.map(|d| ends(&d.interval, 1.0)),
        value: value.and(more),
        spoken: match difference {
            Some(d) => {
                format!("{spoken}: {} points, {}", points(d.points), points_interval(&d.interval))
            }
            None => format!("{spoken}: no interval"),
        },
    }
}

fn difference_chart(report: &Report, comparison: &Comparison) -> Option<Element> {
    let difference = comparison.difference.as_ref()?;
    let (scale, guides) = difference_scale(report, [difference]);
    let caption = format!(
        "{} minus {} in percentage points (below zero: worse), {} interval",
        comparison.candidate,
        comparison.reference,
        level(difference.interval.level)
    );
    let lane =
        difference_lane("all pairs".into(), Some(difference), "all pairs", Markup::default());
    Some(lanes(&caption, &scale, tidy_points, &guides, vec![lane]))
}

fn tidy_points(value: f64) -> String {
    let text = points(value);
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

fn pair_table(comparison: &Comparison, pairs: &PairTable) -> Element {
    let n = pairs.n();
    let (reference, candidate) = (&comparison.reference, &comparison.candidate);
    let right = format!("{candidate} right");
    let wrong = format!("{candidate} wrong");
    let mut table = Table::new("Right and wrong", &["", &right, &wrong, "all"]);
    let cell = |k: u64| Markup::from(part(k, n));
    table.row(
        format!("{reference} right"),
        [cell(pairs.both), cell(pairs.only_reference), cell(pairs.both + pairs.only_reference)],
    );
    table.row(
        format!("{reference} wrong"),
        [
            cell(pairs.only_candidate),
            cell(pairs.neither),
            cell(pairs.only_candidate + pairs.neither),
        ],
    );
    table.row(
        "all",
        [
            cell(pairs.both + pairs.only_candidate),
            cell(pairs.only_reference + pairs.neither),
            whole(n).into(),
        ],
    );
    table.finish()
}

fn failure_table(report: &Report, comparison: &Comparison) -> Element {
    let Failures { only_reference, only_candidate, both, p_value: p } = comparison.failures;
    let n = report.data.n_samples as u64;
    let mut table = Table::new("Failures, which are not wrong answers", &["who failed", "samples"]);
    table.row(format!("only {}", comparison.reference), [Markup::from(part(only_reference, n))]);
    table.row(format!("only {}", comparison.candidate), [Markup::from(part(only_candidate, n))]);
    table.row("both", [Markup::from(part(both, n))]);
    if let Some(p) = p {
        table.row("p-value (exact McNemar)", [Markup::from(p_value(p))]);
    }
    table.finish()
}

fn missing_chart(report: &Report, missing: &MissingAnalysis) -> Element {
    let rows = [
        ("pairs scored on both sides", &missing.available),
        ("missing counts as wrong", &missing.as_wrong),
        ("worst case for the candidate", &missing.worst),
        ("best case for the candidate", &missing.best),
    ];
    let (scale, guides) = difference_scale(report, rows.iter().filter_map(|(_, d)| d.as_ref()));
    let rows = rows
        .into_iter()
        .map(|(label, d)| difference_lane(label.into(), d.as_ref(), label, Markup::default()));
    lanes(
        "The difference under four assumptions about missing scores",
        &scale,
        tidy_points,
        &guides,
        rows.collect(),
    )
}

fn finding_badge(finding: SliceFinding) -> Element {
    match finding {
        SliceFinding::Better => badge("\u{25b2} better", "good"),
        SliceFinding::NonInferior => badge("\u{2713} not worse", "good"),
        SliceFinding::Worse => badge("\u{25bc} worse", "bad"),
        SliceFinding::Open => badge("? open", "open"),
        SliceFinding::TooFew => badge("too few", "plain"),
    }
}

fn slices(report: &Report, comparison: &Comparison) -> Markup {
    let (scale, guides) =
        difference_scale(report, comparison.slices.iter().filter_map(|s| s.difference.as_ref()));
    let rows = comparison.slices.iter().map(|s| {
        let label = Markup::from(&s.slice)
            .and(" ")
            .and(el("span").class("quiet").with(format!("n\u{a0}{}", whole(s.n_pairs))));
        let more = Markup::from(" ").and(finding_badge(s.finding));
        difference_lane(label, s.difference.as_ref(), &s.slice, more)
    });
    let chart = lanes(
        "The difference per slice, in percentage points (below zero: worse)",
        &scale,
        tidy_points,
        &guides,
        rows.collect(),
    );
    let note = format!(
        "A finding is corrected for the number of slices (p-values by Holm\u{2019}s method, \
         \u{201c}not worse\u{201d} at a shared level); the interval drawn is that of the slice \
         alone. Below {MIN_PAIRS} pairs nothing is said."
    );
    Markup::from(chart).and(slice_table(comparison)).and(el("p").class("quiet").with(note))
}

fn slice_table(comparison: &Comparison) -> Element {
    let (reference, candidate) = (&comparison.reference, &comparison.candidate);
    let heads = ["slice", "pairs", reference, candidate, "difference", "adjusted p", "finding"];
    let mut table = Table::new("Slices", &heads);
    let mean = |m: Option<f64>| m.map_or("\u{2013}".into(), |m| Markup::from(share(m)));
    for s in &comparison.slices {
        table.row(long(&s.slice), slice_cells(s, mean));
    }
    table.finish()
}

fn slice_cells(s: &SliceComparison, mean: impl Fn(Option<f64>) -> Markup) -> [Markup; 6] {
    let difference = s.difference.as_ref().map_or("\u{2013}".to_owned(), |d| {
        format!("{} ({})", points(d.points), points_interval(&d.interval))
    });
    [
        whole(s.n_pairs).into(),
        mean(s.reference),
        mean(s.candidate),
        difference.into(),
        s.p_adjusted.map_or("\u{2013}".into(), |p| Markup::from(p_value(p))),
        finding_badge(s.finding).into(),
    ]
}
