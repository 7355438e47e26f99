//! From observations to a report.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weighbridge_core::{Outcome, Placement, Prompt, Weights};
use weighbridge_stats::mean::{ClusterCorrection, clustered_mean, mean};
use weighbridge_stats::proportion::wilson;
use weighbridge_stats::quantile::{quantile, quantile_interval};
use weighbridge_stats::ratio::fieller;

use super::{
    CandidateReport, ControlReport, ControlResult, Cost, DataFacts, Egress, EvaluatorFacts,
    HostFacts, Latency, Quality, REPORT_VERSION, Report, SampleLine, SuiteFacts, Tokens,
    sample_lines,
};
use crate::compare::{self, Cause, Comparison, EvidenceKind, Interval, SliceFinding};
use crate::plan::{Arm, Plan, cost_usd, placement_text};
use crate::record::ObservationRecord;
use crate::run::{CallId, RunResult};
use crate::scoring::{Judged, Scores};
use crate::suite::{Control, Expect};
use crate::verdict::{self, Action, Verdict};

/// Judges, compares and draws the verdict. Depends on nothing but plan and observations, apart
/// from what it says about this machine.
pub fn build(plan: &Plan, result: &RunResult) -> (Report, Vec<SampleLine>) {
    let scores = Scores::new(plan, &result.observations);
    let samples = sample_lines(plan, &result.observations, &scores);
    let compare = |a: usize, b: usize, level: f64| {
        compare::compare(plan, &result.observations, &scores, a, b, level)
    };
    let current_idx =
        plan.arm_idx(&plan.suite.current).expect("the suite's `current` was checked when read");
    let challengers: Vec<usize> = (0..plan.arms.len())
        .filter(|&i| i != current_idx && !plan.arms[i].candidate.control_only)
        .collect();
    // The best of several is chosen, so the error rate is shared out among them.
    let alpha = (1.0 - plan.suite.decision.confidence) / challengers.len().max(1) as f64;
    let comparisons = challengers.iter().map(|i| compare(current_idx, *i, 1.0 - alpha)).collect();
    let other_pairs = challengers
        .iter()
        .enumerate()
        .flat_map(|(n, a)| challengers[n + 1..].iter().map(move |b| (*a, *b)))
        .map(|(a, b)| compare::agreement(plan, &result.observations, &scores, a, b))
        .collect();
    let controls = plan.suite.controls.iter().map(|c| control(plan, c, &compare)).collect();
    let suite = &plan.suite;
    let mut report = Report {
        v: REPORT_VERSION,
        tool: concat!("weighbridge ", env!("CARGO_PKG_VERSION")).to_owned(),
        created: result.created.clone(),
        notice: notice(plan),
        suite: SuiteFacts {
            version: suite.version,
            name: suite.name.clone(),
            description: suite.description.clone(),
            configuration_hash: plan.configuration_hash().to_string(),
            evaluators: plan
                .evaluators
                .iter()
                .map(|(name, e)| EvaluatorFacts {
                    name: name.clone(),
                    id: e.id().to_owned(),
                    version: e.version().to_owned(),
                })
                .collect(),
            prompt: suite.prompt.clone(),
            run: suite.run.clone(),
        },
        data: data_facts(plan),
        decision: suite.decision.clone(),
        host: HostFacts::current(),
        candidates: (0..plan.arms.len()).map(|i| candidate(plan, result, &scores, i)).collect(),
        comparisons,
        other_pairs,
        controls,
        verdict: Verdict {
            action: Action::NotEnoughEvidence,
            current: suite.current.clone(),
            challenger: None,
            slices: Vec::new(),
            sentence: String::new(),
            axes: Vec::new(),
            next: String::new(),
        },
        spent_usd: result.spent_usd,
        maybe_spent_usd: result.maybe_spent_usd,
        n_unknown_calls: result.n_unknown,
        changed_since_start: result.changed_since_start.clone(),
        log_root: result.log_root.clone(),
    };
    report.verdict = verdict::judge(&report);
    (report, samples)
}

/// The suite's notice; for a run with a stand-in there always is one.
fn notice(plan: &Plan) -> Option<String> {
    let has_stand_in = plan.arms.iter().any(|arm| arm.card.weights == Weights::StandIn);
    plan.suite.notice.clone().or_else(|| {
        has_stand_in.then(|| {
            "Demo: a stand-in plays the closed model. This is evidence about no commercial model."
                .to_owned()
        })
    })
}

fn data_facts(plan: &Plan) -> DataFacts {
    let data = &plan.suite.data;
    let rows = &plan.dataset.rows;
    let cluster = data.cluster.clone().map(|column| {
        let names: BTreeSet<_> = rows.iter().map(|row| &row.cluster).collect();
        (column, names.len())
    });
    DataFacts {
        file: data.file.display().to_string(),
        sha256: plan.dataset.sha256.clone(),
        n_samples: rows.len(),
        n_sensitive: rows.iter().filter(|row| row.is_sensitive).count(),
        slices: data.slices.clone(),
        cluster,
    }
}

fn candidate(plan: &Plan, result: &RunResult, scores: &Scores, arm_idx: usize) -> CandidateReport {
    let arm = &plan.arms[arm_idx];
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut n_not_run = 0;
    let mut records = Vec::new();
    for row_idx in 0..plan.dataset.rows.len() {
        for repeat in 0..plan.suite.run.repeats {
            match result.observations.get(&CallId { arm_idx, row_idx, repeat }) {
                Some(record) => {
                    *outcomes.entry(record.outcome.as_str().to_owned()).or_default() += 1;
                    records.push((row_idx, record));
                }
                None => n_not_run += 1,
            }
        }
    }
    let name = &arm.candidate.name;
    let level = plan.suite.decision.confidence;
    CandidateReport {
        name: name.clone(),
        model: arm.candidate.model.clone(),
        card: arm.card.clone(),
        is_current: *name == plan.suite.current,
        is_tuned: arm.is_tuned,
        is_control: arm.candidate.control_only,
        settings: arm.settings.clone(),
        prompt: arm.candidate.prompt.clone().unwrap_or_else(|| plan.suite.prompt.clone()),
        prompt_sha256: arm.prompter.sha256.clone(),
        concurrency: arm.concurrency,
        is_batch: arm.candidate.batch,
        effective: records
            .iter()
            .find(|(_, r)| r.outcome.is_scored() && !r.effective.is_empty())
            .map(|(_, r)| {
                let mut effective = r.effective.clone();
                // The name of one answer is no setting.
                effective.remove("response_id");
                effective
            })
            .unwrap_or_default(),
        warnings: warnings(&records),
        n_retried: records.iter().filter(|(_, r)| r.n_attempts > 1).count() as u64,
        outcomes,
        n_not_run,
        stopped: result.stopped.iter().find(|(n, _)| n == name).map(|(_, why)| why.clone()),
        quality: (0..plan.evaluators.len()).map(|e| quality(plan, scores, e, arm_idx)).collect(),
        latency: latency(arm, &records, level),
        tokens: tokens(&records),
        price: arm.candidate.price.clone(),
        cost: cost(plan, arm, scores, arm_idx, &records),
        egress: egress(plan, arm, &records),
    }
}

fn warnings(records: &[(usize, &ObservationRecord)]) -> BTreeMap<String, u64> {
    let mut warnings = BTreeMap::new();
    for warning in records.iter().flat_map(|(_, r)| &r.warnings) {
        *warnings.entry(warning.clone()).or_default() += 1;
    }
    warnings
}

fn quality(plan: &Plan, scores: &Scores, evaluator_idx: usize, arm_idx: usize) -> Quality {
    let level = plan.suite.decision.confidence;
    let per_row = scores.per_row(evaluator_idx, arm_idx);
    let mut values = Vec::new();
    let mut clusters = Vec::new();
    for (row, value) in plan.dataset.rows.iter().zip(&per_row) {
        if let Some(value) = value {
            values.push(*value);
            clusters.extend(row.cluster.as_deref());
        }
    }
    let mut unscored: BTreeMap<String, u64> = BTreeMap::new();
    let mut missing: BTreeMap<String, u64> = BTreeMap::new();
    let mut parts: BTreeMap<String, (f64, u64)> = BTreeMap::new();
    let mut part_order = Vec::new();
    for row_idx in 0..per_row.len() {
        for judged in scores.of(evaluator_idx, arm_idx, row_idx) {
            match judged {
                Judged::Unscored(reason) => *unscored.entry(reason.clone()).or_default() += 1,
                Judged::Missing(reason) => *missing.entry(reason.clone()).or_default() += 1,
                Judged::Score(score) => {
                    for (name, value) in &score.parts {
                        let part = parts.entry(name.clone()).or_insert_with(|| {
                            part_order.push(name.clone());
                            (0.0, 0)
                        });
                        part.0 += value;
                        part.1 += 1;
                    }
                }
            }
        }
    }
    let (interval, method) = mean_interval(&values, &clusters, level);
    Quality {
        evaluator: plan.evaluators[evaluator_idx].0.clone(),
        n_scored: values.len() as u64,
        unscored,
        missing,
        mean: mean(&values).ok().map(|m| m.mean),
        interval,
        method,
        parts: part_order
            .into_iter()
            .map(|name| {
                let (sum, n) = parts[&name];
                (name, sum / n as f64)
            })
            .collect(),
    }
}

fn mean_interval(values: &[f64], clusters: &[&str], level: f64) -> (Option<Interval>, String) {
    let none = (None, "none: too few scores".to_owned());
    let names: BTreeSet<_> = clusters.iter().collect();
    if clusters.len() == values.len() && (2..values.len()).contains(&names.len()) {
        let found = clustered_mean(values, clusters, ClusterCorrection::Cr1).ok();
        if let Some(m) = found
            && m.se.is_some_and(|se| se.value > 0.0)
            && let Ok(Some(interval)) = m.t_interval(level)
        {
            let clipped = weighbridge_stats::Interval {
                lo: interval.lo.max(0.0),
                hi: interval.hi.min(1.0),
                level,
            };
            let method = format!("clustered t (CR1, {} clusters)", names.len());
            return (Some(Interval::scaled(clipped, 1.0)), method);
        }
    }
    if values.iter().all(|v| *v == 0.0 || *v == 1.0) {
        let k = values.iter().filter(|v| **v == 1.0).count() as u64;
        return match wilson(k, values.len() as u64, level) {
            Ok(interval) => (Some(Interval::scaled(interval, 1.0)), "Wilson".to_owned()),
            Err(_) => none,
        };
    }
    match mean(values).and_then(|m| m.t_interval(level)) {
        Ok(Some(interval)) => (Some(Interval::scaled(interval, 1.0)), "t".to_owned()),
        _ => none,
    }
}

fn latency(arm: &Arm, records: &[(usize, &ObservationRecord)], level: f64) -> Option<Latency> {
    // How long a job lay in a vendor's queue says nothing about the model.
    if arm.card.placement == Placement::Recorded || arm.candidate.batch {
        return None;
    }
    let answered = || records.iter().map(|(_, r)| r).filter(|r| r.outcome.is_scored());
    let totals: Vec<f64> = answered().map(|r| r.timings.total_us as f64 / 1000.0).collect();
    let ttfts: Vec<f64> =
        answered().filter_map(|r| r.timings.ttft_us).map(|us| us as f64 / 1000.0).collect();
    let at = |q: f64| quantile(&totals, q).ok();
    let interval = |q: f64| {
        let found = quantile_interval(&totals, q, level).ok().flatten();
        found.map(|i| Interval::scaled(i, 1.0))
    };
    Some(Latency {
        n: totals.len() as u64,
        p50_ms: at(0.5)?,
        p50_interval: interval(0.5),
        p95_ms: at(0.95)?,
        p95_interval: interval(0.95),
        ttft_p50_ms: quantile(&ttfts, 0.5).ok(),
        deciles_ms: (0..=10).filter_map(|i| at(f64::from(i) / 10.0)).collect(),
    })
}

fn tokens(records: &[(usize, &ObservationRecord)]) -> Tokens {
    let mut tokens = Tokens::default();
    for (_, record) in records {
        let usage = &record.usage;
        if let (Some(prompt), Some(generated)) = (usage.n_prompt_tokens, usage.n_generated_tokens) {
            tokens.n_answers += 1;
            tokens.n_prompt += prompt;
            tokens.n_generated += generated;
            tokens.n_cached += usage.n_cached_tokens.unwrap_or(0);
        }
    }
    tokens
}

fn cost(
    plan: &Plan,
    arm: &Arm,
    scores: &Scores,
    arm_idx: usize,
    records: &[(usize, &ObservationRecord)],
) -> Option<Cost> {
    let price = arm.candidate.price.as_ref()?;
    // Cost and calls of each row; repeats of a row are not independent.
    let mut rows: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (row_idx, record) in records {
        if let Some(cost) = cost_usd(&arm.candidate, &record.usage) {
            let row = rows.entry(*row_idx).or_default();
            row.0 += cost;
            row.1 += 1.0;
        }
    }
    let (cost, n_calls) =
        rows.values().fold((0.0, 0.0), |(cost, n), row| (cost + row.0, n + row.1));
    if n_calls == 0.0 {
        return None;
    }
    let per_call_usd = cost / n_calls;
    // Per right answer: rows with a score only.
    let per_row = match plan.evaluators.is_empty() {
        true => Vec::new(),
        false => scores.per_row(0, arm_idx),
    };
    let (mut costs, mut right) = (Vec::new(), Vec::new());
    for (row_idx, (cost, n_calls)) in &rows {
        if let Some(Some(score)) = per_row.get(*row_idx) {
            costs.push(*cost);
            right.push(score * n_calls);
        }
    }
    let n_right: f64 = right.iter().sum();
    let level = plan.suite.decision.confidence;
    let per_correct_interval = fieller(&costs, &right, level).ok().flatten();
    Some(Cost {
        per_call_usd,
        per_correct_usd: (n_right > 0.0).then(|| costs.iter().sum::<f64>() / n_right),
        per_correct_interval: per_correct_interval
            .filter(|_| n_right > 0.0)
            .map(|i| Interval::scaled(i, 1.0)),
        per_month_usd: plan
            .suite
            .decision
            .monthly_volume
            .map(|n| n as f64 * per_call_usd + price.fixed_per_month),
    })
}

fn egress(plan: &Plan, arm: &Arm, records: &[(usize, &ObservationRecord)]) -> Egress {
    let destination = match &arm.card.placement {
        Placement::InProcess => "nothing left the process".to_owned(),
        Placement::Recorded => "not known: the answers were made elsewhere".to_owned(),
        Placement::LocalServer { verified: true } => "left the process, not the machine".to_owned(),
        Placement::LocalServer { verified: false } => {
            "left the process; the local server is not verified to compute here".to_owned()
        }
        Placement::Network { host } => format!("sent to {host}"),
        other => placement_text(other),
    };
    let mut egress = Egress { destination, ..Egress::default() };
    egress.n_withheld =
        records.iter().filter(|(_, r)| r.outcome == Outcome::Withheld).count() as u64;
    if !arm.card.placement.is_remote() {
        return egress;
    }
    let mut rows = BTreeSet::new();
    for (row_idx, record) in records {
        if record.n_attempts == 0 {
            continue;
        }
        rows.insert(*row_idx);
        egress.n_attempts += u64::from(record.n_attempts);
        if let Ok(request) = arm.request(&plan.dataset.rows[*row_idx])
            && let Prompt::Chat(messages) = &request.prompt
        {
            let n_bytes: usize = messages.iter().map(|m| m.text().len()).sum();
            egress.n_prompt_bytes += n_bytes as u64 * u64::from(record.n_attempts);
        }
    }
    egress.n_samples = rows.len() as u64;
    egress
}

fn control(
    plan: &Plan,
    control: &Control,
    compare: &dyn Fn(usize, usize, f64) -> Comparison,
) -> ControlReport {
    let idx = |name: &str| {
        plan.arm_idx(name).expect("the suite's controls were checked when it was read")
    };
    let level = plan.suite.decision.confidence;
    let comparison = compare(idx(&control.reference), idx(&control.candidate), level);
    let seen = comparison.evidence.sentence.clone();
    // A comparison that could not be made says nothing about the scale.
    let is_decidable =
        matches!(comparison.evidence.cause, None | Some(Cause::TooFewSamples | Cause::NobodyRight));
    if !is_decidable {
        let finding = format!("not decidable: {seen}");
        return ControlReport {
            name: control.name.clone(),
            result: ControlResult::NotDecidable,
            finding,
            comparison,
        };
    }
    let (passed, finding) = match control.expect {
        Expect::NoDifference => {
            let p = comparison.difference.as_ref().map_or(0.0, |d| d.p_value);
            let no_slice = comparison
                .slices
                .iter()
                .all(|s| !matches!(s.finding, SliceFinding::Worse | SliceFinding::Better));
            let none = p > 1.0 - plan.suite.decision.confidence && no_slice;
            let word = if none { "no difference found" } else { "a difference found" };
            (none, format!("{word}: {seen}"))
        }
        Expect::BadSlice => {
            let wanted = control.slice.as_deref().unwrap_or_default();
            let worse: Vec<_> = comparison
                .slices
                .iter()
                .filter(|s| s.finding == SliceFinding::Worse)
                .map(|s| s.slice.as_str())
                .collect();
            let found = if worse.is_empty() { "no bad slice".to_owned() } else { worse.join(", ") };
            (worse == [wanted], format!("planted {wanted}, found {found}"))
        }
        Expect::RefuseSwitch => {
            let refused = comparison.evidence.kind == EvidenceKind::Worse;
            let word = if refused { "switch refused" } else { "switch not refused" };
            (refused, format!("{word}: {seen}"))
        }
    };
    let result = if passed { ControlResult::AsExpected } else { ControlResult::Failed };
    ControlReport { name: control.name.clone(), result, finding, comparison }
}

/// Whether anything at all was observed.
pub(crate) fn has_observations(observations: &HashMap<CallId, ObservationRecord>) -> bool {
    observations.values().any(|record| record.outcome.is_scored())
}
