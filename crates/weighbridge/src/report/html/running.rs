//! What a candidate takes to run: latency, tokens and cost.

use super::charts::{Lane, Scale, curves, ends, lanes};
use super::escape::{Element, Markup, el};
use super::numbers::{level, usd, usd_typed, whole};
use super::page::{Table, callout, candidate_label, long, section, subheading};
use crate::compare::Interval;
use crate::report::{CandidateReport, Cost, Latency, Report};
use crate::suite::Price;
use crate::verdict::ms;
use weighbridge_core::Weights;

pub(super) fn running(report: &Report) -> Element {
    let weighed: Vec<_> = report.candidates.iter().filter(|c| !c.is_control).collect();
    section("running", "Latency and cost", report)
        .with(subheading("Latency"))
        .with(latency(report, &weighed))
        .with(subheading("Tokens"))
        .with(tokens(&weighed))
        .with(subheading("Cost"))
        .with(cost(report, &weighed))
}

fn latency(report: &Report, candidates: &[&CandidateReport]) -> Markup {
    let measured: Vec<(&CandidateReport, &Latency)> =
        candidates.iter().filter_map(|c| Some((*c, c.latency.as_ref()?))).collect();
    if measured.is_empty() {
        return el("p").with("No latency was measured: there are no answered calls, or the answers were recorded elsewhere.").into();
    }
    let scale = Scale::positive(measured.iter().flat_map(|(_, l)| l.deciles_ms.iter().copied()));
    let series: Vec<(&str, &[f64])> =
        measured.iter().map(|(c, l)| (c.name.as_str(), l.deciles_ms.as_slice())).collect();
    let spoken: Vec<_> = measured
        .iter()
        .map(|(c, l)| {
            format!("{}: median {}, 95th percentile {}", c.name, ms(l.p50_ms), ms(l.p95_ms))
        })
        .collect();
    let axis = if scale.is_log() { " (logarithmic)" } else { "" };
    let caption = format!("Share of answered calls that took at most so long{axis}");
    let chart = curves(&caption, &spoken.join("; "), &scale, tick, &series);
    Markup::from(chart).and(latency_table(report, candidates)).and(el("p").class("quiet").with(
        "The whole call as the caller saw it, queue and network included, at the concurrency \
         stated. Numbers from other hardware or another load differ.",
    ))
}

fn tick(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{} s", v / 1000.0),
        v => format!("{} ms", (v * 1000.0).round() / 1000.0),
    }
}

fn latency_table(report: &Report, candidates: &[&CandidateReport]) -> Element {
    let confidence = level(report.decision.confidence);
    let heads = [
        "candidate",
        "calls",
        "p50",
        &format!("p50, {confidence}"),
        "p95",
        &format!("p95, {confidence}"),
        "first token p50",
        "calls at once",
    ];
    let mut table = Table::new("Latency per candidate", &heads);
    let dash = || Markup::from("\u{2013}");
    let interval = |i: &Option<Interval>| {
        i.as_ref().map_or_else(dash, |i| format!("{} to {}", ms(i.lo), ms(i.hi)).into())
    };
    for candidate in candidates {
        let Some(l) = &candidate.latency else {
            let (why, at_once) = match candidate.is_batch {
                true => ("batch", dash()),
                false => ("not measured", whole(candidate.concurrency.into()).into()),
            };
            let empty = std::iter::repeat_with(dash).take(5);
            let cells = [Markup::from(why)].into_iter().chain(empty).chain([at_once]);
            table.row(candidate_label(candidate), cells);
            continue;
        };
        table.row(
            candidate_label(candidate),
            [
                whole(l.n).into(),
                ms(l.p50_ms).into(),
                interval(&l.p50_interval),
                ms(l.p95_ms).into(),
                interval(&l.p95_interval),
                l.ttft_p50_ms.map_or_else(dash, |v| ms(v).into()),
                whole(candidate.concurrency.into()).into(),
            ],
        );
    }
    table.finish()
}

fn tokens(candidates: &[&CandidateReport]) -> Element {
    let heads = [
        "candidate",
        "answers with counts",
        "prompt",
        "of them cached",
        "generated",
        "prompt per answer",
        "generated per answer",
    ];
    let mut table = Table::new("Tokens per candidate", &heads);
    for candidate in candidates {
        let t = candidate.tokens;
        let each = |n: u64| match t.n_answers {
            0 => Markup::from("\u{2013}"),
            answers => format!("{:.1}", n as f64 / answers as f64).into(),
        };
        let counts =
            [t.n_answers, t.n_prompt, t.n_cached, t.n_generated].map(|n| Markup::from(whole(n)));
        table.row(
            candidate_label(candidate),
            counts.into_iter().chain([each(t.n_prompt), each(t.n_generated)]),
        );
    }
    table.finish()
}

fn cost(report: &Report, candidates: &[&CandidateReport]) -> Markup {
    let mut body = Markup::default();
    let axis = report.verdict.axes.iter().find(|axis| axis.name == "cost");
    if let Some(axis) = axis {
        body.push(callout(&axis.text));
    }
    // The verdict may have no axes; a stand-in's cost means nothing all the same.
    let is_demo = candidates.iter().any(|c| c.card.weights == Weights::StandIn);
    if !is_demo {
        body.push(cost_chart(candidates));
    }
    body.push(cost_table(report, candidates));
    body.push(price_table(candidates));
    body.push(spent(report));
    body
}

fn cost_chart(candidates: &[&CandidateReport]) -> Option<Element> {
    let known: Vec<(&CandidateReport, f64, &Cost)> = candidates
        .iter()
        .filter_map(|c| {
            let cost = c.cost.as_ref()?;
            Some((*c, cost.per_correct_usd?, cost))
        })
        .collect();
    if known.len() < 2 {
        return None;
    }
    let values = known.iter().flat_map(|(_, usd, cost)| {
        let (lo, hi) = cost.per_correct_interval.as_ref().map_or((*usd, *usd), |i| ends(i, 1.0));
        [*usd, lo, hi].map(|v| v * 1000.0)
    });
    let scale = Scale::positive(values);
    let rows = known.iter().map(|(candidate, per_correct, cost)| Lane {
        label: candidate_label(candidate),
        point: Some(per_correct * 1000.0),
        interval: cost.per_correct_interval.as_ref().map(|i| ends(i, 1000.0)),
        value: el("strong").with(usd(per_correct * 1000.0)).into(),
        spoken: format!(
            "{}: {} per 1,000 right answers",
            candidate.name,
            usd(per_correct * 1000.0)
        ),
    });
    let axis = if scale.is_log() { ", logarithmic" } else { "" };
    let caption = format!("Cost of 1,000 right answers with its interval{axis}");
    // Ticks are round: the zeros at their end say nothing.
    let tick = |value: f64| {
        let text = usd(value);
        match text.split_once('.') {
            Some((_, digits)) if digits.len() > 2 => text.trim_end_matches('0').to_owned(),
            _ => text,
        }
    };
    Some(lanes(&caption, &scale, tick, &[], rows.collect()))
}

fn cost_table(report: &Report, candidates: &[&CandidateReport]) -> Element {
    let per_month = match report.decision.monthly_volume {
        Some(n) => format!("a month at {} calls", whole(n)),
        None => "a month (no volume in the suite)".to_owned(),
    };
    let heads = ["candidate", "a call", "a right answer", "its interval", &per_month];
    let mut table = Table::new("Cost per candidate", &heads);
    for candidate in candidates {
        let without = match candidate.card.weights {
            Weights::StandIn => Some("not meaningful"),
            _ if candidate.cost.is_none() => Some("cost not compared"),
            _ => None,
        };
        let cells = match (&candidate.cost, without) {
            (Some(cost), None) => cost_cells(cost),
            (_, why) => {
                [why.unwrap_or("\u{2013}"), "\u{2013}", "\u{2013}", "\u{2013}"].map(Markup::from)
            }
        };
        table.row(candidate_label(candidate), cells);
    }
    table.finish()
}

fn cost_cells(cost: &Cost) -> [Markup; 4] {
    let or_dash =
        |text: Option<String>| Markup::from(text.unwrap_or_else(|| "\u{2013}".to_owned()));
    let interval = cost.per_correct_interval.as_ref();
    [
        usd(cost.per_call_usd).into(),
        or_dash(cost.per_correct_usd.map(usd)),
        or_dash(interval.map(|i| format!("{} to {}", usd(i.lo), usd(i.hi)))),
        or_dash(cost.per_month_usd.map(usd)),
    ]
}

fn price_table(candidates: &[&CandidateReport]) -> Option<Element> {
    let priced: Vec<(&CandidateReport, &Price)> =
        candidates.iter().filter_map(|c| Some((*c, c.price.as_ref()?))).collect();
    if priced.is_empty() {
        return None;
    }
    let heads = [
        "candidate",
        "million prompt tokens",
        "million cached",
        "million generated",
        "fixed a month",
        "source",
        "as of",
    ];
    let mut table = Table::new("Prices as typed in the suite", &heads);
    for (candidate, price) in priced {
        let cached =
            price.cached_input_per_million.map_or("as other prompt tokens".to_owned(), usd_typed);
        table.row(
            candidate_label(candidate),
            [
                Markup::from(usd_typed(price.input_per_million)),
                cached.into(),
                usd_typed(price.output_per_million).into(),
                usd_typed(price.fixed_per_month).into(),
                long(&price.source).into(),
                (&price.as_of).into(),
            ],
        );
    }
    Some(table.finish())
}

fn spent(report: &Report) -> Element {
    let mut text =
        format!("This run spent {} as far as prices and counts are known.", usd(report.spent_usd));
    if report.n_unknown_calls > 0 {
        text += &format!(
            " Calls whose end was never seen: {}. They may have cost up to {} more.",
            whole(report.n_unknown_calls as u64),
            usd(report.maybe_spent_usd)
        );
    }
    el("p").with(text)
}
