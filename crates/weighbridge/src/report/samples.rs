//! `samples.jsonl`: one line per sample, with every candidate's answer and what was said of it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::plan::Plan;
use crate::record::{ErrorRecord, ObservationRecord, ToolCallRecord};
use crate::run::CallId;
use crate::scoring::{Judged, Scores};

/// One sample with all answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SampleLine {
    /// [`REPORT_VERSION`](super::REPORT_VERSION).
    pub v: u32,
    /// The sample's id.
    pub id: String,
    /// Its fields as the data has them.
    pub fields: Map<String, Value>,
    /// `column=value` for each slice column.
    pub slices: Vec<String>,
    /// Its cluster.
    pub cluster: Option<String>,
    /// It must stay on this machine.
    pub is_sensitive: bool,
    /// How each challenger's first answer relates to that of the candidate in use.
    pub relations: Vec<(String, Relation)>,
    /// The answers, in suite order of the candidates, repeats after one another.
    pub answers: Vec<Answer>,
}

/// How a challenger's first answer relates to that of the candidate in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Relation {
    /// Equal scores; without scores, the same text.
    Agree,
    /// The challenger scored higher.
    ChallengerBetter,
    /// The candidate in use scored higher.
    CurrentBetter,
    /// No scores, and the texts differ.
    Differ,
    /// One of them, or both, gave no answer.
    OneFails,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Answer {
    /// The candidate.
    pub candidate: String,
    /// The repeat, from 0.
    pub repeat: u32,
    /// What came of the call; `not_run` if it was not made.
    pub outcome: String,
    /// The answer's text.
    pub text: String,
    /// Tools it wanted called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallRecord>,
    /// One entry per evaluator, by name.
    pub scores: Vec<(String, Judged)>,
    /// The whole call, in milliseconds.
    pub total_ms: Option<f64>,
    /// Mean log-probability of the generated tokens, in nats, where they were asked for: the
    /// model's own confidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_logprob: Option<f64>,
    /// The error, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorRecord>,
}

impl Answer {
    /// The model answered.
    pub fn is_answered(&self) -> bool {
        !self.scores.iter().any(|(_, judged)| matches!(judged, Judged::Missing(_)))
            && self.error.is_none()
            && self.outcome != "not_run"
    }

    /// The score of the evaluator that decides.
    pub fn score(&self) -> Option<f64> {
        self.scores.first().and_then(|(_, judged)| judged.value())
    }
}

/// One line per sample.
pub fn sample_lines(
    plan: &Plan,
    observations: &HashMap<CallId, ObservationRecord>,
    scores: &Scores,
) -> Vec<SampleLine> {
    plan.dataset
        .rows
        .iter()
        .enumerate()
        .map(|(row_idx, row)| {
            let mut answers = Vec::new();
            for arm_idx in 0..plan.arms.len() {
                for repeat in 0..plan.suite.run.repeats {
                    let id = CallId { arm_idx, row_idx, repeat };
                    answers.push(answer(plan, scores, id, observations.get(&id)));
                }
            }
            let relations = relations(plan, &answers);
            SampleLine {
                v: super::REPORT_VERSION,
                id: row.sample.id.clone(),
                fields: row.sample.fields.clone(),
                slices: row.slices.clone(),
                cluster: row.cluster.clone(),
                is_sensitive: row.is_sensitive,
                relations,
                answers,
            }
        })
        .collect()
}

fn answer(plan: &Plan, scores: &Scores, id: CallId, record: Option<&ObservationRecord>) -> Answer {
    let scores = plan
        .evaluators
        .iter()
        .enumerate()
        .map(|(e, (name, _))| {
            (name.clone(), scores.of(e, id.arm_idx, id.row_idx)[id.repeat as usize].clone())
        })
        .collect();
    let mean_logprob = record.and_then(|r| r.logprobs.as_ref()).and_then(|tokens| {
        let values: Vec<f64> = tokens.iter().filter_map(|t| t.logprob).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    });
    Answer {
        candidate: plan.arms[id.arm_idx].candidate.name.clone(),
        repeat: id.repeat,
        outcome: record.map_or("not_run", |r| r.outcome.as_str()).to_owned(),
        text: record.map_or(String::new(), |r| r.text.clone()),
        tool_calls: record.map_or(Vec::new(), |r| r.tool_calls.clone()),
        scores,
        total_ms: record
            .filter(|r| r.outcome.is_scored() && !plan.arms[id.arm_idx].candidate.batch)
            .map(|r| r.timings.total_us as f64 / 1000.0),
        mean_logprob,
        error: record.and_then(|r| r.error.clone()),
    }
}

fn relations(plan: &Plan, answers: &[Answer]) -> Vec<(String, Relation)> {
    let first = |name: &str| answers.iter().find(|a| a.candidate == name && a.repeat == 0);
    let Some(current) = first(&plan.suite.current) else { return Vec::new() };
    plan.suite
        .candidates
        .iter()
        .filter(|c| c.name != plan.suite.current && !c.control_only)
        .filter_map(|c| Some((c.name.clone(), relation(current, first(&c.name)?))))
        .collect()
}

fn relation(current: &Answer, challenger: &Answer) -> Relation {
    if !current.is_answered() || !challenger.is_answered() {
        return Relation::OneFails;
    }
    match (current.score(), challenger.score()) {
        (Some(a), Some(b)) if b > a => Relation::ChallengerBetter,
        (Some(a), Some(b)) if b < a => Relation::CurrentBetter,
        (Some(_), Some(_)) => Relation::Agree,
        _ if current.text.split_whitespace().eq(challenger.text.split_whitespace()) => {
            Relation::Agree
        }
        _ => Relation::Differ,
    }
}

/// Samples on which a challenger and the candidate in use disagree, worst first: those that the
/// challenger alone got wrong, the most confident answers before the others, then the rest.
pub(super) fn disagreements<'a>(
    samples: &'a [SampleLine],
    challenger: &str,
) -> Vec<(&'a SampleLine, Relation)> {
    let mut found: Vec<_> = samples
        .iter()
        .filter_map(|s| {
            let (_, relation) = s.relations.iter().find(|(name, _)| name == challenger)?;
            (*relation != Relation::Agree).then_some((s, *relation))
        })
        .collect();
    let confidence = |s: &SampleLine| {
        s.answers
            .iter()
            .find(|a| a.candidate == challenger)
            .and_then(|a| a.mean_logprob)
            .unwrap_or(f64::NEG_INFINITY)
    };
    let severity = |relation: Relation| match relation {
        Relation::CurrentBetter => 0,
        Relation::OneFails => 1,
        Relation::Differ => 2,
        Relation::ChallengerBetter => 3,
        Relation::Agree => 4,
    };
    // Stable, so that equals stay in the order of the data.
    found.sort_by(|(a, ra), (b, rb)| {
        severity(*ra).cmp(&severity(*rb)).then(confidence(b).total_cmp(&confidence(a)))
    });
    found
}
