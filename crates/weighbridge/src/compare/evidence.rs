//! What a comparison proves.

use serde::{Deserialize, Serialize};

use super::{
    Difference, MAX_MISSING_GAP_POINTS, MIN_PAIRS, MissingAnalysis, Power, margin,
    numbers::MIN_CLUSTERS, points,
};
use crate::suite::Decision;

/// What was shown of the candidate, as against the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EvidenceKind {
    /// Better: the whole interval lies above zero.
    Better,
    /// Not worse by more than the margin: the whole interval lies above −margin.
    NonInferior,
    /// Worse: the whole interval lies below zero, and not within the margin.
    Worse,
    /// Neither of these; the cause says why.
    NotProven,
}

/// Why nothing is proven. Exactly one is named: the first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// No evaluator: nothing says what is right.
    NoGoldAnswers,
    /// No sample has a score on both sides.
    NoPairs,
    /// Too much, or too unevenly much, is missing.
    MissingAnswers,
    /// Neither side got anything right: prompt, token limit or evaluator do not fit.
    NobodyRight,
    /// Below [`MIN_PAIRS`] pairs.
    ReadingSheet,
    /// Fewer clusters than a statement about clustered samples needs.
    TooFewClusters,
    /// The interval reaches over the margin.
    TooFewSamples,
}

/// What a comparison proves, in one word and one sentence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evidence {
    /// In one word.
    pub kind: EvidenceKind,
    /// Why nothing is proven.
    pub cause: Option<Cause>,
    /// In one sentence.
    pub sentence: String,
}

pub(super) struct Facts<'a> {
    pub(super) has_evaluator: bool,
    pub(super) n_pairs: usize,
    pub(super) n_rows: usize,
    /// Every score on both sides is 0.
    pub(super) nobody_right: bool,
    pub(super) n_clusters: Option<usize>,
    pub(super) missing_gap_points: f64,
    pub(super) difference: Option<&'a Difference>,
    pub(super) missing: Option<&'a MissingAnalysis>,
    pub(super) power: &'a Power,
    pub(super) decision: &'a Decision,
}

pub(super) fn judge(facts: &Facts<'_>) -> Evidence {
    let not_proven = |cause, sentence: String| Evidence {
        kind: EvidenceKind::NotProven,
        cause: Some(cause),
        sentence,
    };
    if !facts.has_evaluator {
        return not_proven(
            Cause::NoGoldAnswers,
            "nothing says which answer is right; agreement between models is not accuracy".into(),
        );
    }
    if let Some(n) = facts.n_clusters
        && n < MIN_CLUSTERS
        && facts.n_pairs >= MIN_PAIRS
    {
        return not_proven(
            Cause::TooFewClusters,
            format!(
                "{} samples in {n} clusters; below {MIN_CLUSTERS} clusters nothing can be said of \
                 others like them",
                facts.n_pairs
            ),
        );
    }
    let Some(difference) = facts.difference else {
        if facts.n_pairs > 0 && facts.n_pairs < MIN_PAIRS {
            return not_proven(Cause::ReadingSheet, reading_sheet(facts.n_pairs));
        }
        return not_proven(
            Cause::NoPairs,
            format!("none of {} samples has a score on both sides", facts.n_rows),
        );
    };
    let n = facts.n_pairs;
    if facts.nobody_right {
        return not_proven(
            Cause::NobodyRight,
            format!("neither side got one of {n} samples right, so the scale is empty"),
        );
    }
    if n < MIN_PAIRS {
        return not_proven(Cause::ReadingSheet, reading_sheet(n));
    }
    let gap = facts.missing_gap_points;
    if gap > MAX_MISSING_GAP_POINTS {
        return not_proven(
            Cause::MissingAnswers,
            format!(
                "the shares of missing answers differ by {gap:.1} points; above \
                 {MAX_MISSING_GAP_POINTS:.0} the sides are not compared"
            ),
        );
    }
    let kind = classify(difference, facts.decision);
    if let Some(missing) = facts.missing {
        let others = [&missing.as_wrong, &missing.worst, &missing.best];
        let differs = others
            .iter()
            .any(|other| other.as_ref().is_none_or(|d| classify(d, facts.decision) != kind));
        if differs {
            return not_proven(
                Cause::MissingAnswers,
                "the result depends on what the missing answers would have been".into(),
            );
        }
    }
    let observed = sentence(difference, n, facts.decision);
    match kind {
        EvidenceKind::NotProven => {
            let needed = match (facts.power.n_if_real, facts.power.n_if_zero) {
                (Some(real), Some(zero)) => format!(
                    "; if that gap is real, proof needs about {} samples; if it is zero, about {}",
                    thousands(real),
                    thousands(zero)
                ),
                (None, Some(zero)) => {
                    format!("; if there is no gap, proof needs about {} samples", thousands(zero))
                }
                _ => String::new(),
            };
            not_proven(Cause::TooFewSamples, format!("{observed}{needed}"))
        }
        kind => Evidence { kind, cause: None, sentence: observed },
    }
}

fn reading_sheet(n: usize) -> String {
    format!(
        "{n} pairs are a reading sheet: they can show a failure, never equality; {MIN_PAIRS} are \
         the least"
    )
}

pub(super) fn classify(difference: &Difference, decision: &Decision) -> EvidenceKind {
    let (lo, hi) = (difference.interval.lo, difference.interval.hi);
    let margin = margin(decision) * 100.0;
    if lo > 0.0 {
        EvidenceKind::Better
    } else if lo > -margin {
        EvidenceKind::NonInferior
    } else if hi < 0.0 {
        EvidenceKind::Worse
    } else {
        EvidenceKind::NotProven
    }
}

fn sentence(difference: &Difference, n: usize, decision: &Decision) -> String {
    let gap = difference.points;
    let direction = match points(gap).as_str() {
        "0.0" => "0.0 points apart".to_owned(),
        shown if gap < 0.0 => format!("{} points worse", shown.trim_start_matches('\u{2212}')),
        shown => format!("{} points better", shown.trim_start_matches('+')),
    };
    format!(
        "{direction} on {n} samples ({} % {} to {}; your limit \u{2212}{})",
        percent(difference.interval.level),
        points(difference.interval.lo),
        points(difference.interval.hi),
        decision.margin_points
    )
}

/// A confidence level in per cent, at most two digits behind the point.
fn percent(level: f64) -> String {
    let rounded = (level * 10_000.0).round() / 100.0;
    rounded.to_string()
}

/// A count of samples for a person, as in `2,800`; above 10,000 rounded up to two digits.
pub(crate) fn thousands(n: u64) -> String {
    if n <= 10_000 {
        return grouped(n);
    }
    let unit = 10_u64.pow(n.ilog10() - 1);
    grouped(n.div_ceil(unit) * unit)
}

/// A whole number, as in `12,345`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Interval;

    fn difference(points: f64, lo: f64, hi: f64) -> Difference {
        Difference {
            points,
            interval: Interval { lo, hi, level: 0.95 },
            method: String::new(),
            p_value: 1.0,
            test: String::new(),
        }
    }

    #[test]
    fn the_interval_decides_and_never_the_point() {
        let kind = |lo, hi| classify(&difference((lo + hi) / 2.0, lo, hi), &Decision::default());
        assert_eq!(kind(0.1, 9.0), EvidenceKind::Better);
        assert_eq!(kind(-4.9, 1.0), EvidenceKind::NonInferior);
        assert_eq!(kind(-4.0, -1.0), EvidenceKind::NonInferior);
        assert_eq!(kind(-9.0, -0.1), EvidenceKind::Worse);
        assert_eq!(kind(-9.0, 2.3), EvidenceKind::NotProven);
    }

    fn facts_sentence(
        n_pairs: usize,
        failed: u64,
        difference: &Difference,
    ) -> (Option<Cause>, String) {
        let power = Power { detectable_points: None, n_if_real: Some(2_800), n_if_zero: Some(310) };
        let evidence = judge(&Facts {
            has_evaluator: true,
            n_pairs,
            n_rows: n_pairs + failed as usize,
            nobody_right: false,
            n_clusters: None,
            missing_gap_points: failed as f64 / (n_pairs as f64 + failed as f64) * 100.0,
            difference: Some(difference),
            missing: None,
            power: &power,
            decision: &Decision::default(),
        });
        (evidence.cause, evidence.sentence)
    }

    #[test]
    fn the_sentence_names_the_gap_the_interval_the_limit_and_the_need() {
        let (cause, sentence) = facts_sentence(120, 0, &difference(-3.33, -9.04, 2.3));
        assert_eq!(cause, Some(Cause::TooFewSamples));
        assert_eq!(
            sentence,
            "3.3 points worse on 120 samples (95 % −9.0 to +2.3; your limit −5); if that gap is \
             real, proof needs about 2,800 samples; if it is zero, about 310"
        );
    }

    #[test]
    fn small_or_lopsided_data_proves_nothing() {
        let clear = difference(9.0, 4.0, 14.0);
        assert_eq!(facts_sentence(29, 0, &clear).0, Some(Cause::ReadingSheet));
        assert_eq!(facts_sentence(100, 2, &clear).0, Some(Cause::MissingAnswers));
        assert_eq!(facts_sentence(100, 0, &clear).0, None);
    }

    #[test]
    fn large_counts_are_rounded_up() {
        assert_eq!(thousands(310), "310");
        assert_eq!(thousands(2800), "2,800");
        assert_eq!(thousands(1_234_567), "1,300,000");
    }
}
