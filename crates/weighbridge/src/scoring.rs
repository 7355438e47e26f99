//! Scores of recorded observations.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use weighbridge_core::{Evaluator, Outcome, Sample, Score, Step};

use crate::plan::Plan;
use crate::record::ObservationRecord;
use crate::run::CallId;

/// What one evaluator says of one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Judged {
    /// A score.
    Score(Score),
    /// The model answered and there is no score.
    Unscored(String),
    /// There is no answer of the model: missing data, never a wrong answer.
    Missing(String),
}

impl Judged {
    /// The score, if there is one.
    pub fn value(&self) -> Option<f64> {
        match self {
            Self::Score(score) => Some(score.value),
            _ => None,
        }
    }
}

/// Judges one observation.
pub fn judge(evaluator: &dyn Evaluator, sample: &Sample, record: &ObservationRecord) -> Judged {
    let wrong = |why: &str| Judged::Score(Score::binary(false).with_note(why));
    match record.outcome {
        // A whole answer is what is judged; what the model cut or withheld is a wrong answer.
        Outcome::TruncatedByLimit => wrong("cut at the token limit"),
        Outcome::Refused => wrong("the model declined"),
        Outcome::Filtered => wrong("a filter removed the answer"),
        Outcome::ContextOverflow => wrong("the prompt does not fit the model's context"),
        outcome if !outcome.is_scored() => Judged::Missing(outcome.as_str().to_owned()),
        _ => match evaluator.step(sample, &record.observation(), &[]) {
            Step::Score(score) if score.value.is_finite() && (0.0..=1.0).contains(&score.value) => {
                Judged::Score(score)
            }
            Step::Score(score) => Judged::Unscored(format!(
                "evaluator `{}` gave {}, which is not in 0 to 1",
                evaluator.id(),
                score.value
            )),
            Step::Unscored(unscored) => Judged::Unscored(unscored.reason),
            _ => Judged::Unscored(format!(
                "evaluator `{}` asks questions, and nobody answers them in this run",
                evaluator.id()
            )),
        },
    }
}

/// All verdicts of a run, shape `(n_evaluators, n_arms, n_rows, n_repeats)`.
#[derive(Debug)]
pub struct Scores {
    judged: Vec<Vec<Vec<Vec<Judged>>>>,
}

impl Scores {
    /// Judges every observation.
    pub fn new(plan: &Plan, observations: &HashMap<CallId, ObservationRecord>) -> Self {
        let judged = plan
            .evaluators
            .iter()
            .map(|(_, evaluator)| {
                (0..plan.arms.len())
                    .map(|arm_idx| {
                        let rows = plan.dataset.rows.iter().enumerate();
                        rows.map(|(row_idx, row)| {
                            (0..plan.suite.run.repeats)
                                .map(|repeat| {
                                    let id = CallId { arm_idx, row_idx, repeat };
                                    match observations.get(&id) {
                                        Some(record) => judge(&**evaluator, &row.sample, record),
                                        None => Judged::Missing("not_run".to_owned()),
                                    }
                                })
                                .collect()
                        })
                        .collect()
                    })
                    .collect()
            })
            .collect();
        Self { judged }
    }

    /// The verdicts on the repeats of one row.
    pub fn of(&self, evaluator_idx: usize, arm_idx: usize, row_idx: usize) -> &[Judged] {
        &self.judged[evaluator_idx][arm_idx][row_idx]
    }

    /// What is known of one row's score.
    pub(crate) fn row(&self, evaluator_idx: usize, arm_idx: usize, row_idx: usize) -> RowScore {
        RowScore::of(self.of(evaluator_idx, arm_idx, row_idx))
    }

    /// Mean score per row over its repeats, `None` where no repeat has one. Repeats never multiply
    /// the number of samples.
    pub fn per_row(&self, evaluator_idx: usize, arm_idx: usize) -> Vec<Option<f64>> {
        self.judged[evaluator_idx][arm_idx].iter().map(|repeats| mean_of(repeats)).collect()
    }
}

/// What is known of the score of one row, averaged over its repeats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RowScore {
    /// Held back on purpose: outside of what is compared.
    Withheld,
    /// Answered, and nothing says what would be right: outside of what is compared.
    Unscored,
    /// Some or all repeats have a score.
    Known {
        /// Mean over the repeats with a score; `None` if there is none.
        available: Option<f64>,
        /// Mean with every missing repeat as wrong.
        low: f64,
        /// Mean with every missing repeat as right.
        high: f64,
        /// Repeats without an answer.
        n_missing: usize,
        /// All repeats.
        n_repeats: usize,
    },
}

impl RowScore {
    fn of(repeats: &[Judged]) -> Self {
        let withheld = Outcome::Withheld.as_str();
        if repeats.iter().any(|j| matches!(j, Judged::Missing(why) if why == withheld)) {
            return Self::Withheld;
        }
        if repeats.iter().any(|j| matches!(j, Judged::Unscored(_))) {
            return Self::Unscored;
        }
        let n_missing = repeats.iter().filter(|j| matches!(j, Judged::Missing(_))).count();
        let sum: f64 = repeats.iter().filter_map(Judged::value).sum();
        let n = repeats.len().max(1) as f64;
        Self::Known {
            available: mean_of(repeats),
            low: sum / n,
            high: (sum + n_missing as f64) / n,
            n_missing,
            n_repeats: repeats.len(),
        }
    }
}

fn mean_of(repeats: &[Judged]) -> Option<f64> {
    let values: Vec<f64> = repeats.iter().filter_map(Judged::value).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighbridge_core::{Completion, Error, ErrorKind, Registry, StopReason};

    #[test]
    fn refusals_are_wrong_and_failures_are_missing() {
        let registry = Registry::new([crate::evaluators::plugin()]).unwrap();
        let options = serde_json::json!({"target": "t"}).as_object().unwrap().clone();
        let evaluator = registry.evaluator("exact_match").unwrap().build(&options).unwrap();
        let fields = serde_json::json!({"t": "yes"}).as_object().unwrap().clone();
        let sample = Sample::new("1", fields);
        let run = |result| {
            let record = ObservationRecord::new(&result, None, std::time::Duration::ZERO, 1);
            judge(&*evaluator, &sample, &record)
        };
        assert_eq!(run(Ok(Completion::new("yes", StopReason::Stop))).value(), Some(1.0));
        assert_eq!(run(Ok(Completion::new("yes", StopReason::Length))).value(), Some(0.0));
        assert_eq!(run(Ok(Completion::new("yes", StopReason::Refusal))).value(), Some(0.0));
        assert_eq!(run(Ok(Completion::new("", StopReason::Stop))).value(), Some(0.0));
        assert_eq!(
            run(Err(Error::new(ErrorKind::RateLimited, "x"))),
            Judged::Missing("rate_limited".into())
        );
    }

    #[test]
    fn repeats_are_averaged_and_do_not_count_as_samples() {
        let score = |v| Judged::Score(Score::new(v));
        assert_eq!(mean_of(&[score(1.0), score(0.0), Judged::Missing("x".into())]), Some(0.5));
        assert_eq!(mean_of(&[Judged::Missing("x".into())]), None);
        assert_eq!(
            RowScore::of(&[score(1.0), Judged::Missing("cut_stream".into())]),
            RowScore::Known {
                available: Some(1.0),
                low: 0.5,
                high: 1.0,
                n_missing: 1,
                n_repeats: 2
            }
        );
        assert_eq!(RowScore::of(&[Judged::Missing("withheld".into())]), RowScore::Withheld);
        assert_eq!(RowScore::of(&[Judged::Unscored("x".into())]), RowScore::Unscored);
    }
}
