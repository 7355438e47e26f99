//! The page as a whole, drawn from a made-up report with hostile text in every place.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use weighbridge_core::{EngineInfo, ModelCard, Placement, Score, Weights};

use super::page::SECTIONS;
use super::render;
use crate::compare::{
    Agreement, Cause, Comparison, Difference, Evidence, EvidenceKind, Failures, Interval,
    LogprobDifference, LogprobGap, MissingAnalysis, PairTable, Power, SliceComparison,
    SliceFinding,
};
use crate::record::{ErrorRecord, ToolCallRecord};
use crate::report::{
    Answer, CandidateReport, ControlReport, Cost, DataFacts, Egress, EvaluatorFacts, HostFacts,
    Latency, MAX_HTML_SAMPLES, Quality, REPORT_VERSION, Relation, Report, SampleLine, SuiteFacts,
    Tokens,
};
use crate::scoring::Judged;
use crate::suite::{Decision, Price, PromptTemplate, RequestSettings};
use crate::verdict::{Action, Axis, Bearing, Verdict};

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u{1b}[31mred \u{202e}drawkcab & \"q\"";

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

fn interval(lo: f64, hi: f64) -> Interval {
    Interval { lo, hi, level: 0.95 }
}

fn difference(points: f64, lo: f64, hi: f64, p_value: f64) -> Option<Difference> {
    Some(Difference {
        points,
        interval: interval(lo, hi),
        method: "Tango score interval of the paired difference".into(),
        p_value,
        test: "exact McNemar".into(),
    })
}

fn candidate(
    name: &str,
    weights: Weights,
    placement: Placement,
    mean: f64,
    ms: f64,
) -> CandidateReport {
    let mut card = ModelCard::new(format!("{name}-id"), "candle", weights, placement);
    card.weights_sha256 = Some("0123456789abcdef".repeat(4));
    card.quantization = Some("F16".into());
    card.n_params = Some(583_424);
    card.n_ctx = Some(1024);
    card.license = Some("Apache-2.0".into());
    card.engine = Some(EngineInfo::new("candle", "0.11.1"));
    card.device = Some("cpu".into());
    CandidateReport {
        name: name.into(),
        model: format!("candle:fixtures/{name}"),
        card,
        is_current: false,
        is_tuned: false,
        is_control: false,
        settings: RequestSettings {
            temperature: Some(0.0),
            max_tokens: Some(64),
            ..RequestSettings::default()
        },
        prompt: PromptTemplate { system: None, user: "{{ email }}".into() },
        prompt_sha256: "ab".repeat(32),
        concurrency: 2,
        is_batch: false,
        effective: serde_json::Map::from_iter([("seed".to_owned(), 0.into())]),
        warnings: counts(&[("done_missing", 1)]),
        n_retried: 1,
        outcomes: counts(&[("ok", 297), ("truncated_by_limit", 1)]),
        n_not_run: 0,
        stopped: None,
        quality: vec![Quality {
            evaluator: "fields".into(),
            n_scored: 298,
            unscored: counts(&[]),
            missing: counts(&[("rate_limited", 2)]),
            mean: Some(mean),
            interval: Some(interval(mean - 0.04, (mean + 0.03).min(1.0))),
            method: "Wilson".into(),
            parts: vec![
                ("queue".into(), (mean + 0.05).min(1.0)),
                ("order".into(), mean),
                ("urgency".into(), (mean + 0.02).min(1.0)),
            ],
        }],
        latency: Some(Latency {
            n: 298,
            p50_ms: ms,
            p50_interval: Some(interval(ms * 0.96, ms * 1.05)),
            p95_ms: ms * 2.4,
            p95_interval: Some(interval(ms * 2.1, ms * 3.0)),
            ttft_p50_ms: Some(ms * 0.3),
            deciles_ms: [0.5, 0.7, 0.8, 0.88, 0.94, 1.0, 1.1, 1.25, 1.5, 1.9, 4.2]
                .map(|f| f * ms)
                .to_vec(),
        }),
        tokens: Tokens { n_answers: 298, n_prompt: 45_678, n_cached: 0, n_generated: 9_321 },
        price: None,
        cost: None,
        egress: Egress { destination: "nothing left the process".into(), ..Egress::default() },
    }
}

fn agreement(reference: &str, candidate: &str) -> Agreement {
    Agreement {
        reference: reference.into(),
        candidate: candidate.into(),
        is_same_weights: false,
        n_both_answered: 296,
        n_same_answer: 250,
        same_answer_interval: Some(interval(0.798, 0.882)),
        table: Some(PairTable { both: 255, only_reference: 27, only_candidate: 5, neither: 9 }),
        mcnemar_p: Some(0.000_1),
        logprobs: LogprobGap::Measured(LogprobDifference {
            mean_abs: 0.0123,
            interval: Some(interval(0.0101, 0.0145)),
            max_abs: 1.25,
            max_sample: HOSTILE.into(),
            n_tokens: 8_123,
            n_samples: 290,
            n_whole: 250,
            not_aligned: counts(&[("the first token differs", 6)]),
        }),
    }
}

fn comparison(reference: &str, candidate: &str) -> Comparison {
    let slice = |name: &str, n, points: f64, half: f64, p, finding| SliceComparison {
        slice: name.into(),
        n_pairs: n,
        reference: Some(0.96),
        candidate: Some(0.96 + points / 100.0),
        difference: difference(points, points - half, points + half, p),
        p_adjusted: (finding != SliceFinding::TooFew).then_some(p),
        finding,
    };
    Comparison {
        reference: reference.into(),
        candidate: candidate.into(),
        evaluator: Some("fields".into()),
        n_pairs: 296,
        n_withheld: 0,
        n_unscored: 0,
        agreement: agreement(reference, candidate),
        failures: Failures { only_reference: 2, only_candidate: 1, both: 1, p_value: Some(1.0) },
        difference: difference(-7.4, -11.3, -3.7, 0.000_1),
        missing: Some(MissingAnalysis {
            available: difference(-7.4, -11.3, -3.7, 0.000_1),
            as_wrong: difference(-7.0, -10.9, -3.2, 0.000_2),
            worst: difference(-8.3, -12.2, -4.6, 0.000_1),
            best: difference(-6.4, -10.2, -2.6, 0.002),
        }),
        power: Power { detectable_points: Some(5.2), n_if_real: Some(2_800), n_if_zero: Some(310) },
        slices: vec![
            slice("difficulty=easy", 140, -0.7, 2.4, 1.0, SliceFinding::NonInferior),
            slice("difficulty=hard", 68, -22.1, 9.8, 0.000_02, SliceFinding::Worse),
            slice("difficulty=medium", 88, -5.7, 6.0, 0.21, SliceFinding::Open),
            slice(HOSTILE, 12, 8.3, 24.0, 1.0, SliceFinding::TooFew),
        ],
        evidence: Evidence {
            kind: EvidenceKind::Worse,
            cause: None,
            sentence: "7.4 points worse on 296 samples (95 % −11.3 to −3.7; your limit −5)".into(),
        },
    }
}

fn axis(name: &str, bearing: Bearing, text: &str) -> Axis {
    Axis { name: name.into(), bearing, text: text.into() }
}

/// A demo: a stand-in in use, an open model against it, a damaged one for the controls.
fn report() -> Report {
    let server = Placement::LocalServer { verified: true };
    let mut large = candidate("triage-large", Weights::StandIn, server, 0.953, 61.0);
    large.is_current = true;
    large.egress = Egress {
        destination: "left the process, not the machine".into(),
        n_samples: 300,
        n_attempts: 304,
        n_prompt_bytes: 182_344,
        n_withheld: 0,
    };
    let mut open = candidate("triage-open", Weights::Open, Placement::InProcess, 0.878, 18.2);
    open.is_tuned = true;
    open.price = Some(Price {
        input_per_million: 0.05,
        output_per_million: 0.2,
        cached_input_per_million: None,
        batch_factor: None,
        fixed_per_month: 12.0,
        source: HOSTILE.into(),
        as_of: "2026-08-01".into(),
    });
    open.cost = Some(Cost {
        per_call_usd: 0.000_013_4,
        per_correct_usd: Some(0.000_015_3),
        per_correct_interval: Some(interval(0.000_014, 0.000_017)),
        per_month_usd: Some(12.67),
    });
    let mut damaged = candidate("open-damaged", Weights::Open, Placement::InProcess, 0.31, 18.0);
    damaged.is_control = true;
    damaged.stopped = Some("the spend cap of USD 5 is reached".into());
    damaged.n_not_run = 12;
    Report {
        v: REPORT_VERSION,
        tool: "weighbridge 0.1.0".into(),
        created: "2026-11-21T11:00:00Z".into(),
        notice: Some("Demo: a stand-in plays the closed model. This is evidence about no commercial model.".into()),
        suite: SuiteFacts {
            version: 1,
            name: "Support email triage".into(),
            description: "May the open model read our support mail?".into(),
            configuration_hash: "cd".repeat(32),
            evaluators: vec![EvaluatorFacts {
                name: "fields".into(),
                id: "json_fields".into(),
                version: "1".into(),
            }],
            prompt: PromptTemplate {
                system: Some("Answer with JSON.".into()),
                user: format!("{{{{ email }}}} {HOSTILE}"),
            },
            run: crate::suite::RunSettings::default(),
        },
        data: DataFacts {
            file: "emails.jsonl".into(),
            sha256: "ef".repeat(32),
            n_samples: 300,
            n_sensitive: 3,
            slices: vec!["difficulty".into()],
            cluster: Some(("template".into(), 60)),
        },
        decision: Decision { monthly_volume: Some(50_000), ..Decision::default() },
        host: HostFacts { os: "linux".into(), arch: "x86_64".into(), ..HostFacts::default() },
        candidates: vec![large, open, damaged],
        comparisons: vec![comparison("triage-large", "triage-open")],
        other_pairs: Vec::new(),
        controls: vec![
            ControlReport {
                name: "same model twice".into(),
                result: crate::report::ControlResult::AsExpected,
                finding: "no difference found: 0.0 points apart".into(),
                comparison: comparison("triage-open", "triage-open"),
            },
            ControlReport {
                name: "damaged model".into(),
                result: crate::report::ControlResult::Failed,
                finding: "switch not refused".into(),
                comparison: comparison("triage-open", "open-damaged"),
            },
        ],
        verdict: Verdict {
            action: Action::Stay,
            current: "triage-large".into(),
            challenger: Some("triage-open".into()),
            slices: Vec::new(),
            sentence: "Stay with triage-large: triage-open was 7.4 points worse on 296 samples (95 % −11.3 to −3.7; your limit −5).".into(),
            axes: vec![
                axis("quality", Bearing::Decides, "triage-large 95.3 %, triage-open 87.8 %"),
                axis("cost", Bearing::Unknown, "not meaningful: a stand-in has no price"),
                axis("latency", Bearing::DoesNotMatter, "triage-large p50 61.0 ms p95 146 ms; triage-open p50 18.2 ms p95 43.7 ms (3.4 times as fast)"),
                axis("egress", Bearing::DoesNotMatter, "triage-large: left the process, not the machine; triage-open: nothing left the process"),
                axis("licence", Bearing::DoesNotMatter, "triage-open: Apache-2.0 (as declared; read the text)"),
                axis("effort", Bearing::DoesNotMatter, "triage-open: you run the model: hardware, updates, on-call are yours"),
            ],
            next: "read the disagreements in report.html".into(),
        },
        spent_usd: 0.004,
        maybe_spent_usd: 0.001,
        n_unknown_calls: 1,
        changed_since_start: Vec::new(),
        log_root: Some("12".repeat(32)),
    }
}

fn answer(candidate: &str, score: Option<f64>, mean_logprob: f64, text: &str) -> Answer {
    let judged = match score {
        Some(value) => {
            let mut score = Score::new(value);
            score.parts = vec![("queue".into(), 1.0), ("order".into(), value)];
            Judged::Score(if value < 1.0 {
                score.with_note(
                    "order: expected \u{201c}84-2214\u{201d}, found \u{201c}84-2241\u{201d}",
                )
            } else {
                score
            })
        }
        None => Judged::Missing("rate_limited".into()),
    };
    Answer {
        candidate: candidate.into(),
        repeat: 0,
        outcome: if score.is_some() { "ok" } else { "rate_limited" }.into(),
        text: text.into(),
        tool_calls: Vec::new(),
        scores: vec![("fields".into(), judged)],
        total_ms: score.map(|_| 18.2),
        mean_logprob: score.map(|_| mean_logprob),
        error: score.is_none().then(|| ErrorRecord {
            kind: "rate_limited".into(),
            message: "429: too many requests, tried 3 times".into(),
        }),
    }
}

fn sample(i: usize) -> SampleLine {
    let (relation, current, challenger) = match i % 10 {
        0 => (Relation::OneFails, None, Some(1.0)),
        1 | 2 => (Relation::CurrentBetter, Some(1.0), Some(0.0)),
        3 => (Relation::ChallengerBetter, Some(0.0), Some(1.0)),
        _ => (Relation::Agree, Some(1.0), Some(1.0)),
    };
    let email = format!(
        "Hello,\nmy parcel 84-22{i:02} did not arrive, and the invoice names 91-1041 which I never \
         ordered. Please do not cancel, just send it again.\nThanks, Ines\n{}",
        if i == 1 { HOSTILE } else { "" }
    );
    let text =
        format!("{{\"queue\": \"shipping\", \"order\": \"84-22{i:02}\", \"urgency\": \"high\"}}");
    let wrong = format!("{{\"queue\": \"shipping\", \"order\": \"91-1041\"}} {HOSTILE}");
    let said = |score: Option<f64>| match score {
        Some(1.0) => text.clone(),
        Some(_) => wrong.clone(),
        None => String::new(),
    };
    let mut damaged = answer("open-damaged", Some(0.0), -2.0, "{\"queue\": ");
    damaged.tool_calls =
        vec![ToolCallRecord { id: "1".into(), name: "look_up".into(), arguments: "{}".into() }];
    SampleLine {
        v: REPORT_VERSION,
        id: format!("mail-{i:04}"),
        fields: json!({"email": email, "expected": text}).as_object().unwrap().clone(),
        slices: vec![format!("difficulty={}", ["easy", "medium", "hard"][i % 3])],
        cluster: Some(format!("t{}", i % 60)),
        is_sensitive: i.is_multiple_of(97),
        relations: vec![("triage-open".into(), relation)],
        answers: vec![
            answer("triage-large", current, -0.02, &said(current)),
            answer("triage-open", challenger, -0.01 * (i % 37) as f64, &said(challenger)),
            damaged,
        ],
    }
}

pub(super) fn samples(n: usize) -> Vec<SampleLine> {
    (0..n).map(sample).collect()
}

/// The JSON that the script reads.
fn data(html: &str) -> serde_json::Value {
    let (_, rest) = html.split_once("id=\"sample-data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn ids(html: &str) -> Vec<String> {
    let data = data(html);
    let samples = data["samples"].as_array().unwrap().iter();
    samples.map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

/// The page without the two assets and the data.
fn markup(html: &str) -> String {
    let mut out = html
        .replace(include_str!("../assets/report.css"), "")
        .replace(include_str!("../assets/report.js"), "");
    let from = out.find("id=\"sample-data\">").unwrap() + "id=\"sample-data\">".len();
    let to = from + out[from..].find("</script>").unwrap();
    out.replace_range(from..to, "");
    out
}

#[test]
fn every_tag_is_closed_and_every_id_is_unique() {
    let html = markup(&render(&report(), &samples(20)));
    let tag =
        regex::Regex::new(r#"<(/?)([a-zA-Z0-9]+)((?:\s+[a-zA-Z0-9-]+(?:="[^"<>]*")?)*)>"#).unwrap();
    let void = ["meta", "input", "br"];
    let (mut open, mut end, mut ids) = (Vec::new(), 0, BTreeSet::new());
    let id = regex::Regex::new(r#"\sid="([^"]*)""#).unwrap();
    let html = html.strip_prefix("<!DOCTYPE html>\n").unwrap();
    for found in tag.captures_iter(html) {
        let whole = found.get(0).unwrap();
        assert!(!html[end..whole.start()].contains(['<', '>']), "{}", &html[end..whole.start()]);
        end = whole.end();
        let name = found[2].to_owned();
        if &found[1] == "/" {
            assert_eq!(open.pop(), Some(name), "at {}", &html[..end][end.saturating_sub(200)..]);
        } else if !void.contains(&name.as_str()) {
            open.push(name);
        }
        if let Some(id) = id.captures(&found[3]) {
            assert!(ids.insert(id[1].to_owned()), "twice: {}", &id[1]);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for (section, _) in SECTIONS {
        assert!(ids.contains(section), "{section}");
    }
}

#[test]
fn the_file_loads_nothing_and_says_so_to_the_browser() {
    let html = render(&report(), &samples(5));
    assert!(html.contains(
        "content=\"default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;; \
         script-src &#39;unsafe-inline&#39;; base-uri &#39;none&#39;; form-action &#39;none&#39;\""
    ));
    let outward =
        regex::Regex::new(r#"(?i)\s(src|href|action|data)="([^"]*)"|url\(|@import|https?:"#)
            .unwrap();
    for found in outward.captures_iter(&markup(&html)) {
        assert!(
            found.get(2).is_some_and(|target| target.as_str().starts_with('#')),
            "{}",
            &found[0]
        );
    }
    let assets =
        [include_str!("../assets/report.css"), include_str!("../assets/report.js")].concat();
    for word in ["url(", "@import", "http", "fetch(", "innerHTML", "</"] {
        assert!(!assets.contains(word), "{word}");
    }
}

#[test]
fn hostile_text_is_shown_and_never_obeyed() {
    let html = render(&report(), &samples(5));
    assert_eq!(html.matches("<script").count(), 2, "the data and our own script");
    assert!(!html.contains("<img"));
    assert!(!markup(&html).contains(['\u{1b}', '\u{202e}']));
    assert!(markup(&html).contains("\\u{1b}[31mred \\u{202e}drawkcab &amp; &quot;q&quot;"));
    let data = data(&html);
    let mut samples = data["samples"].as_array().unwrap().iter();
    let email = &samples.find(|s| s["id"] == "mail-0001").unwrap()["fields"]["email"];
    assert!(email.as_str().unwrap().contains(HOSTILE));
}

#[test]
fn confidently_wrong_answers_come_first() {
    let html = render(&report(), &samples(60));
    // Wrong are 1, 2, 11, 12, …; the log-probability is −0.01 times the remainder by 37.
    assert_eq!(ids(&html)[..5], ["mail-0001", "mail-0002", "mail-0041", "mail-0042", "mail-0011"]);
}

#[test]
fn what_is_left_out_is_stated() {
    assert!(render(&report(), &samples(20)).contains("All 20 samples are here."));
    let html = render(&report(), &samples(MAX_HTML_SAMPLES + 1234));
    assert_eq!(ids(&html).len(), MAX_HTML_SAMPLES);
    assert!(html.contains("5,000 of 6,234 samples are here, the worst first; 1,234 are left out"));
    assert!(html.contains("samples.jsonl beside this file"));
}

#[test]
fn the_notice_is_in_the_banner_and_the_words_of_the_cost_axis_stay() {
    let html = markup(&render(&report(), &samples(5)));
    assert!(html.contains("<p class=\"notice\" role=\"note\">Demo: a stand-in"));
    assert!(html.contains("<p class=\"callout\">not meaningful: a stand-in has no price</p>"));
    let mut unpriced = report();
    unpriced.candidates[0].card.weights = Weights::Closed;
    unpriced.verdict.axes[1].text = "cost not compared: no price for triage-large".into();
    let html = markup(&render(&unpriced, &samples(5)));
    assert!(html.contains("<p class=\"callout\">cost not compared: no price for triage-large</p>"));
    assert!(html.contains("<td>cost not compared</td>"));
}

#[test]
fn the_same_report_gives_the_same_file() {
    assert_eq!(render(&report(), &samples(40)), render(&report(), &samples(40)));
}

#[test]
fn an_empty_report_still_has_every_section() {
    let mut empty = report();
    empty.notice = None;
    empty.suite.evaluators.clear();
    empty.candidates.clear();
    empty.comparisons.clear();
    empty.controls.clear();
    empty.verdict.axes.clear();
    empty.verdict.challenger = None;
    let html = render(&empty, &[]);
    for (section, _) in SECTIONS {
        assert_eq!(html.matches(&format!(" id=\"{section}\"")).count(), 1);
    }
    let mut bare = comparison("a", "b");
    bare.evidence = Evidence {
        kind: EvidenceKind::NotProven,
        cause: Some(Cause::NoGoldAnswers),
        sentence: "nothing says which answer is right".into(),
    };
    (bare.agreement.table, bare.difference, bare.missing) = (None, None, None);
    let reason = "a gave no log-probabilities".to_owned();
    bare.agreement.logprobs = LogprobGap::NotDefined { reason };
    bare.power = Power { detectable_points: None, n_if_real: None, n_if_zero: None };
    bare.slices.clear();
    empty.comparisons.push(bare);
    let html = render(&empty, &[]);
    assert!(html.contains("Nothing says which answer is right."));
    assert_eq!(html.matches("not defined: a gave no log-probabilities").count(), 2);
}
