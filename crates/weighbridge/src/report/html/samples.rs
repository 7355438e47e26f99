//! Side by side: the samples as data, and the frame that the script fills.

use serde::Serialize;

use super::escape::{Element, el, json};
use super::numbers::{counted, whole};
use super::page::section;
use crate::report::{MAX_HTML_SAMPLES, Relation, Report, SampleLine};

/// Bytes of samples embedded at most, so that a browser still opens the file.
const MAX_BYTES: usize = 64 << 20;

/// What the script reads.
#[derive(Serialize)]
struct Data<'a> {
    current: &'a str,
    challengers: Vec<&'a str>,
    samples: Vec<&'a SampleLine>,
}

pub(super) fn samples(report: &Report, samples: &[SampleLine]) -> Element {
    let challengers: Vec<&str> = challengers(report);
    let (embedded, is_size_limit) = choose(samples, &challengers, MAX_HTML_SAMPLES, MAX_BYTES);
    let left_out = samples.len() - embedded.len();
    let statement = match left_out {
        0 => format!("All {} are here.", counted(samples.len() as u64, "sample")),
        n => format!(
            "{} of {} samples are here, the worst first; {} are left out to keep this file {}. All \
             of them are in samples.jsonl beside this file.",
            whole(embedded.len() as u64),
            whole(samples.len() as u64),
            whole(n as u64),
            if is_size_limit { "small enough to open" } else { "fast" }
        ),
    };
    let data = Data { current: &report.verdict.current, challengers, samples: embedded };
    section("samples", "Side by side", report)
        .with(el("p").with(statement).with(
            " Confidently wrong answers come first: wrong ones by the mean log-probability of \
             their tokens where the model gives it, then other wrong answers, then answers that \
             are missing, then the rest.",
        ))
        .with(el("noscript").with(el("p").class("callout").with(
            "Only this section needs JavaScript, which is off. The samples are in samples.jsonl, \
             one per line.",
        )))
        .with(browser())
        .with(el("script").attr("type", "application/json").attr("id", "sample-data").json(&data))
}

/// Those held against the candidate in use, the one of the verdict first.
fn challengers(report: &Report) -> Vec<&str> {
    let first = report.verdict.challenger.as_deref();
    let others = report
        .candidates
        .iter()
        .filter(|c| !c.is_control && c.name != report.verdict.current)
        .map(|c| c.name.as_str())
        .filter(|name| Some(*name) != first);
    first.into_iter().chain(others).collect()
}

/// The samples to embed, worst first for the first challenger. Where some are left out, those
/// stay that are bad for any challenger. Also says whether it was their size that cut them.
fn choose<'a>(
    samples: &'a [SampleLine],
    challengers: &[&str],
    max_samples: usize,
    max_bytes: usize,
) -> (Vec<&'a SampleLine>, bool) {
    let worst = |s: &SampleLine| {
        challengers.iter().map(|c| badness(s, c)).max_by(compare).unwrap_or_default()
    };
    let mut chosen: Vec<&SampleLine> = samples.iter().collect();
    chosen.sort_by(|a, b| compare(&worst(b), &worst(a)));
    chosen.truncate(max_samples);
    let mut n_bytes = 0;
    let n_fit = chosen
        .iter()
        .take_while(|sample| {
            n_bytes += json(sample).len() + 1;
            n_bytes <= max_bytes
        })
        .count();
    let is_size_limit = n_fit < chosen.len();
    chosen.truncate(n_fit);
    if let Some(first) = challengers.first() {
        chosen.sort_by(|a, b| compare(&badness(b, first), &badness(a, first)));
    }
    (chosen, is_size_limit)
}

/// How much a sample speaks against a challenger: group, confidence within it, relation.
type Badness = (u8, f64, u8);

fn compare(a: &Badness, b: &Badness) -> std::cmp::Ordering {
    a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
}

fn badness(sample: &SampleLine, challenger: &str) -> Badness {
    let answer = sample.answers.iter().find(|a| a.candidate == challenger && a.repeat == 0);
    let relation = sample.relations.iter().find(|(name, _)| name == challenger);
    let severity = relation.map_or(0, |(_, relation)| match relation {
        Relation::CurrentBetter => 4,
        Relation::OneFails => 3,
        Relation::Differ => 2,
        Relation::ChallengerBetter => 1,
        Relation::Agree => 0,
    });
    let Some(answer) = answer else { return (0, f64::NEG_INFINITY, severity) };
    let confidence = answer.mean_logprob.unwrap_or(f64::NEG_INFINITY);
    match answer.score() {
        Some(score) if score <= 0.0 => (3, confidence, severity),
        Some(score) if score < 1.0 => (2, -score, severity),
        None if !answer.is_answered() || severity == 2 => (1, f64::NEG_INFINITY, severity),
        _ => (0, f64::NEG_INFINITY, severity),
    }
}

/// The controls of the browser; the script shows them and fills the list.
fn browser() -> Element {
    let relations = [
        ("all", "all"),
        ("disagree", "disagree"),
        ("current_better", "current better"),
        ("challenger_better", "challenger better"),
        ("one_fails", "one fails"),
        ("agree", "agree"),
    ];
    let chips = relations.iter().map(|(value, label)| {
        let input = el("input").attr("type", "radio").attr("name", "relation").attr("value", value);
        let input = if *value == "all" { input.flag("checked") } else { input };
        el("label").class("chip").with(input).with(
            el("span")
                .with(*label)
                .with(" ")
                .with(el("span").class("count").attr("data-count", value)),
        )
    });
    let select = |id: &'static str, label: &'static str| {
        el("label").class("field").with(el("span").with(label)).with(el("select").attr("id", id))
    };
    let search = el("label").class("field grow").with(el("span").with("Search")).with(
        el("input")
            .attr("type", "search")
            .attr("id", "sample-search")
            .attr("placeholder", "text of input, answer or note")
            .attr("autocomplete", "off"),
    );
    let page = |direction: &'static str, label: &'static str| {
        el("button").attr("type", "button").attr("data-page", direction).with(label)
    };
    let pager = || {
        el("div")
            .class("pager")
            .with(page("-1", "\u{2190} Previous"))
            .with(el("span").class("range"))
            .with(page("1", "Next \u{2192}"))
    };
    el("div")
        .attr("id", "browser")
        .flag("hidden")
        .with(
            el("div")
                .class("toolbar")
                .with(
                    el("fieldset")
                        .with(el("legend").with("How the answers relate"))
                        .with_all(chips),
                )
                .with(select("sample-challenger", "Held against the candidate in use"))
                .with(select("sample-slice", "Slice"))
                .with(search)
                .with(
                    el("label")
                        .class("check")
                        .with(el("input").attr("type", "checkbox").attr("id", "sample-open"))
                        .with(" open all inputs"),
                ),
        )
        .with(el("p").attr("id", "sample-status").attr("role", "status").class("quiet"))
        .with(pager())
        .with(el("div").attr("id", "sample-list").attr("tabindex", "-1"))
        .with(pager())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::samples;

    #[test]
    fn large_samples_are_left_out_by_size() {
        let all = samples(40);
        let worst = choose(&all, &["triage-open"], 3, usize::MAX);
        assert_eq!((worst.0.len(), worst.1), (3, false));
        let n_bytes = json(worst.0[0]).len() + json(worst.0[1]).len() + 2;
        let (chosen, is_size_limit) = choose(&all, &["triage-open"], 3, n_bytes);
        assert_eq!((chosen.as_slice(), is_size_limit), (&worst.0[..2], true));
    }
}
