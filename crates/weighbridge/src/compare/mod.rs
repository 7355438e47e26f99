//! Two candidates on the same samples: where they agree, where they differ, where one fails.

mod agreement;
mod evidence;
mod numbers;
mod slices;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use weighbridge_core::Outcome;

use crate::plan::Plan;
use crate::record::ObservationRecord;
use crate::run::CallId;
use crate::scoring::{RowScore, Scores};
use crate::suite::Decision;

pub(crate) use agreement::nats;
pub use agreement::{Agreement, LogprobDifference, LogprobGap};
pub use evidence::{Cause, Evidence, EvidenceKind};
pub(crate) use evidence::{grouped, thousands as count};
pub(crate) use numbers::power_line;
pub use numbers::{Difference, Interval};
pub use slices::{SliceComparison, SliceFinding};

/// Below so many pairs a comparison is a reading sheet: it can show a failure, never equality.
pub const MIN_PAIRS: usize = 30;

/// Largest tolerated difference between the shares of missing answers, in percentage points.
pub const MAX_MISSING_GAP_POINTS: f64 = 1.0;

/// How many samples both, one, or neither got right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PairTable {
    /// Both right.
    pub both: u64,
    /// Only the reference right.
    pub only_reference: u64,
    /// Only the candidate right.
    pub only_candidate: u64,
    /// Neither right.
    pub neither: u64,
}

impl PairTable {
    /// All pairs.
    pub fn n(&self) -> u64 {
        self.both + self.only_reference + self.only_candidate + self.neither
    }
}

/// Samples without an answer of the model.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failures {
    /// Only the reference failed.
    pub only_reference: u64,
    /// Only the candidate failed.
    pub only_candidate: u64,
    /// Both failed.
    pub both: u64,
    /// Exact McNemar on failed / not failed; `None` if nobody failed.
    pub p_value: Option<f64>,
}

/// The difference under four assumptions about missing scores, in percentage points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MissingAnalysis {
    /// Pairs scored on both sides only.
    pub available: Option<Difference>,
    /// A missing score counts as wrong.
    pub as_wrong: Option<Difference>,
    /// Missing scores of the candidate count as wrong, those of the reference as right.
    pub worst: Option<Difference>,
    /// The other way round.
    pub best: Option<Difference>,
}

/// What the data could have shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Power {
    /// Smallest true difference found in 80 % of runs of this size, in percentage points.
    pub detectable_points: Option<f64>,
    /// Samples that prove the observed difference, if it is the true one, in 80 % of runs: a
    /// loss within the margin, or beyond zero where it is not.
    pub n_if_real: Option<u64>,
    /// Samples that prove no loss beyond the margin, if there is no difference, in 80 % of runs.
    pub n_if_zero: Option<u64>,
}

/// One candidate held against the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Comparison {
    /// The yardstick.
    pub reference: String,
    /// Who is held against it.
    pub candidate: String,
    /// The evaluator that decides; `None`: nothing says what is right, and only agreement is shown.
    pub evaluator: Option<String>,
    /// Samples scored on both sides.
    pub n_pairs: u64,
    /// Samples outside of the comparison, because one side must not see them.
    pub n_withheld: u64,
    /// Samples outside of the comparison, because nothing says what is right.
    pub n_unscored: u64,
    /// How alike they answer.
    pub agreement: Agreement,
    /// Who failed outright.
    pub failures: Failures,
    /// Candidate minus reference, over the pairs.
    pub difference: Option<Difference>,
    /// The same under other assumptions, if anything is missing.
    pub missing: Option<MissingAnalysis>,
    /// What the data could have shown.
    pub power: Power,
    /// The same per slice.
    pub slices: Vec<SliceComparison>,
    /// What follows.
    pub evidence: Evidence,
}

/// The pairs of one comparison, ready for the numbers.
pub(crate) struct Pairs {
    reference: Vec<RowScore>,
    candidate: Vec<RowScore>,
    /// Cluster of each row, if the suite declares any.
    clusters: Option<Vec<usize>>,
}

/// How a missing score is filled in.
#[derive(Clone, Copy)]
enum Fill {
    Wrong,
    Right,
}

impl Fill {
    fn apply(self, row: RowScore) -> Option<f64> {
        match (row, self) {
            (RowScore::Known { low, .. }, Self::Wrong) => Some(low),
            (RowScore::Known { high, .. }, Self::Right) => Some(high),
            _ => None,
        }
    }
}

impl Pairs {
    fn new(plan: &Plan, scores: &Scores, reference_idx: usize, candidate_idx: usize) -> Self {
        let n_rows = plan.dataset.rows.len();
        let rows = |arm_idx| match plan.evaluators.is_empty() {
            true => vec![RowScore::Unscored; n_rows],
            false => (0..n_rows).map(|row_idx| scores.row(0, arm_idx, row_idx)).collect(),
        };
        Self {
            reference: rows(reference_idx),
            candidate: rows(candidate_idx),
            clusters: cluster_ids(plan),
        }
    }

    fn scored(
        &self,
        keep: impl Fn(usize) -> bool,
        value: impl Fn(RowScore, RowScore) -> Option<(f64, f64)>,
    ) -> numbers::Scored {
        let mut scored = numbers::Scored::default();
        for (i, (a, b)) in self.reference.iter().zip(&self.candidate).enumerate() {
            if keep(i)
                && let Some((a, b)) = value(*a, *b)
            {
                scored.push(a, b, self.clusters.as_ref().map(|c| c[i]));
            }
        }
        scored
    }

    /// Rows scored on both sides, restricted to those where `keep` holds.
    fn complete(&self, keep: impl Fn(usize) -> bool) -> numbers::Scored {
        self.scored(keep, |a, b| match (a, b) {
            (
                RowScore::Known { available: Some(a), .. },
                RowScore::Known { available: Some(b), .. },
            ) => Some((a, b)),
            _ => None,
        })
    }

    /// All rows that both sides may be judged on, missing scores filled in.
    fn filled(
        &self,
        keep: impl Fn(usize) -> bool,
        reference: Fill,
        candidate: Fill,
    ) -> numbers::Scored {
        self.scored(keep, |a, b| Some((reference.apply(a)?, candidate.apply(b)?)))
    }

    /// Rows where `keep` holds that may be judged and lack an answer on some side.
    fn has_missing(&self, keep: impl Fn(usize) -> bool) -> bool {
        let lacks = |row: &RowScore| matches!(row, RowScore::Known { n_missing: 1.., .. });
        let mut pairs = self.reference.iter().zip(&self.candidate).enumerate();
        pairs.any(|(i, (a, b))| {
            let is_judged = |row: &RowScore| matches!(row, RowScore::Known { .. });
            keep(i) && is_judged(a) && is_judged(b) && (lacks(a) || lacks(b))
        })
    }

    /// Difference of the shares of missing answers, in percentage points, over the rows that both
    /// sides may see.
    fn missing_gap_points(&self) -> f64 {
        let mut missing = [0, 0];
        let mut all = [0, 0];
        for (a, b) in self.reference.iter().zip(&self.candidate) {
            if *a == RowScore::Withheld || *b == RowScore::Withheld {
                continue;
            }
            for (side, row) in [a, b].into_iter().enumerate() {
                if let RowScore::Known { n_missing, n_repeats, .. } = row {
                    missing[side] += n_missing;
                    all[side] += n_repeats;
                }
            }
        }
        let share = |side: usize| missing[side] as f64 / (all[side] as f64).max(1.0);
        (share(0) - share(1)).abs() * 100.0
    }

    fn n_either(&self, wanted: RowScore) -> u64 {
        let pairs = self.reference.iter().zip(&self.candidate);
        pairs.filter(|(a, b)| **a == wanted || **b == wanted).count() as u64
    }
}

/// How alike two candidates answer that are not held against each other.
pub fn agreement(
    plan: &Plan,
    observations: &HashMap<CallId, ObservationRecord>,
    scores: &Scores,
    reference_idx: usize,
    candidate_idx: usize,
) -> Agreement {
    let pairs = Pairs::new(plan, scores, reference_idx, candidate_idx);
    agreement::agreement(plan, observations, &pairs, reference_idx, candidate_idx)
}

/// Holds one candidate against another, every claim at this confidence level.
pub fn compare(
    plan: &Plan,
    observations: &HashMap<CallId, ObservationRecord>,
    scores: &Scores,
    reference_idx: usize,
    candidate_idx: usize,
    level: f64,
) -> Comparison {
    let decision = &Decision { confidence: level, ..plan.suite.decision.clone() };
    let has_evaluator = !plan.evaluators.is_empty();
    let n_rows = plan.dataset.rows.len();
    let pairs = Pairs::new(plan, scores, reference_idx, candidate_idx);
    let scored = pairs.complete(|_| true);
    let difference = numbers::difference(&scored, level);
    let answers = |arm_idx| answers_of(plan, observations, arm_idx);
    let (reference_answers, candidate_answers) = (answers(reference_idx), answers(candidate_idx));
    let failures = failures(&reference_answers, &candidate_answers);
    let filled = |a, b| numbers::difference(&pairs.filled(|_| true, a, b), level);
    let missing = pairs.has_missing(|_| true).then(|| MissingAnalysis {
        available: difference.clone(),
        as_wrong: filled(Fill::Wrong, Fill::Wrong),
        worst: filled(Fill::Right, Fill::Wrong),
        best: filled(Fill::Wrong, Fill::Right),
    });
    let power = numbers::power(&scored, difference.as_ref(), decision);
    let slices = slices::compare(plan, &pairs, decision);
    let evidence = evidence::judge(&evidence::Facts {
        has_evaluator,
        n_pairs: scored.len(),
        n_rows,
        n_clusters: scored.n_clusters(),
        nobody_right: scored.mean_reference() == Some(0.0) && scored.mean_candidate() == Some(0.0),
        missing_gap_points: pairs.missing_gap_points(),
        difference: difference.as_ref(),
        missing: missing.as_ref(),
        power: &power,
        decision,
    });
    Comparison {
        reference: plan.arms[reference_idx].candidate.name.clone(),
        candidate: plan.arms[candidate_idx].candidate.name.clone(),
        evaluator: plan.evaluators.first().map(|(name, _)| name.clone()),
        n_pairs: scored.len() as u64,
        n_withheld: pairs.n_either(RowScore::Withheld),
        n_unscored: if has_evaluator { pairs.n_either(RowScore::Unscored) } else { 0 },
        agreement: agreement::agreement(plan, observations, &pairs, reference_idx, candidate_idx),
        failures,
        difference,
        missing,
        power,
        slices,
        evidence,
    }
}

/// Cluster number of each row; rows of one cluster share it.
fn cluster_ids(plan: &Plan) -> Option<Vec<usize>> {
    plan.suite.data.cluster.as_ref()?;
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let ids = plan
        .dataset
        .rows
        .iter()
        .map(|row| {
            let next = numbers.len();
            *numbers.entry(row.cluster.as_deref().unwrap_or("")).or_insert(next)
        })
        .collect();
    Some(ids)
}

/// What a candidate said to each row.
enum Said<'a> {
    /// Its first answer.
    Answer(&'a str),
    /// At least one repeat has no answer of the model: an infrastructure failure, or never asked.
    Nothing,
    /// Not asked on purpose; neither an answer nor a failure.
    Withheld,
}

fn answers_of<'a>(
    plan: &Plan,
    observations: &'a HashMap<CallId, ObservationRecord>,
    arm_idx: usize,
) -> Vec<Said<'a>> {
    (0..plan.dataset.rows.len())
        .map(|row_idx| {
            let record = |repeat| observations.get(&CallId { arm_idx, row_idx, repeat });
            let mut repeats = (0..plan.suite.run.repeats).map(record);
            match record(0) {
                Some(first) if first.outcome == Outcome::Withheld => Said::Withheld,
                Some(first) if repeats.all(|r| r.is_some_and(|r| r.outcome.is_scored())) => {
                    Said::Answer(&first.text)
                }
                _ => Said::Nothing,
            }
        })
        .collect()
}

fn failures(reference: &[Said<'_>], candidate: &[Said<'_>]) -> Failures {
    let mut failures = Failures::default();
    let mut n_neither = 0;
    for pair in reference.iter().zip(candidate) {
        match pair {
            (Said::Withheld, _) | (_, Said::Withheld) => {}
            (Said::Nothing, Said::Nothing) => failures.both += 1,
            (Said::Nothing, Said::Answer(_)) => failures.only_reference += 1,
            (Said::Answer(_), Said::Nothing) => failures.only_candidate += 1,
            (Said::Answer(_), Said::Answer(_)) => n_neither += 1,
        }
    }
    if failures.only_reference + failures.only_candidate + failures.both > 0 {
        let table = PairTable {
            both: failures.both,
            only_reference: failures.only_reference,
            only_candidate: failures.only_candidate,
            neither: n_neither,
        };
        failures.p_value = numbers::mcnemar(&table);
    }
    failures
}

/// Formats percentage points with sign, as in `−3.3`.
pub(crate) fn points(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    match rounded {
        r if r < 0.0 => format!("\u{2212}{:.1}", -r),
        r if r > 0.0 => format!("+{r:.1}"),
        _ => "0.0".to_owned(),
    }
}

/// The margin of a decision as a fraction.
pub(crate) fn margin(decision: &Decision) -> f64 {
    decision.margin_points / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_have_a_sign_and_one_digit() {
        assert_eq!(points(-3.34), "−3.3");
        assert_eq!(points(2.0), "+2.0");
        assert_eq!(points(-0.04), "0.0");
    }

    #[test]
    fn withheld_samples_are_no_failures() {
        let reference = [Said::Answer("a b"), Said::Nothing, Said::Withheld, Said::Nothing];
        let candidate =
            [Said::Answer("a  b\n"), Said::Answer("x"), Said::Answer("y"), Said::Nothing];
        let failures = failures(&reference, &candidate);
        assert_eq!((failures.only_reference, failures.only_candidate, failures.both), (1, 0, 1));
        assert_eq!(failures.p_value, Some(1.0));
    }
}
