//! The same comparison within each slice, corrected for their number.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Difference, EvidenceKind, Fill, MIN_PAIRS, Pairs, evidence, numbers};
use crate::plan::Plan;
use crate::suite::Decision;

/// What was found in a slice, after correction for the number of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SliceFinding {
    /// Proven better, at a level corrected for all slices.
    Better,
    /// Proven not worse by more than the margin, at that level.
    NonInferior,
    /// Proven worse, and not within the margin, at that level.
    Worse,
    /// Nothing proven.
    Open,
    /// Fewer pairs than a comparison needs.
    TooFew,
}

/// One slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SliceComparison {
    /// `column=value`.
    pub slice: String,
    /// Pairs in it.
    pub n_pairs: u64,
    /// Mean score of the reference, in [0, 1].
    pub reference: Option<f64>,
    /// Mean score of the candidate, in [0, 1].
    pub candidate: Option<f64>,
    /// Candidate minus reference, at the declared confidence, for this slice alone.
    pub difference: Option<Difference>,
    /// The p-value, corrected over all slices by Holm's method.
    pub p_adjusted: Option<f64>,
    /// What was found.
    pub finding: SliceFinding,
}

pub(super) fn compare(plan: &Plan, pairs: &Pairs, decision: &Decision) -> Vec<SliceComparison> {
    let names: BTreeSet<&String> = plan.dataset.rows.iter().flat_map(|row| &row.slices).collect();
    let alpha = 1.0 - decision.confidence;
    let mut slices: Vec<(SliceComparison, numbers::Scored)> = names
        .into_iter()
        .map(|name| {
            let scored = pairs.complete(|i| plan.dataset.rows[i].slices.contains(name));
            let slice = SliceComparison {
                slice: name.clone(),
                n_pairs: scored.len() as u64,
                reference: scored.mean_reference(),
                candidate: scored.mean_candidate(),
                difference: numbers::difference(&scored, decision.confidence),
                p_adjusted: None,
                finding: SliceFinding::TooFew,
            };
            (slice, scored)
        })
        .collect();
    let tested: Vec<usize> = (0..slices.len())
        .filter(|&i| slices[i].0.n_pairs as usize >= MIN_PAIRS && slices[i].0.difference.is_some())
        .collect();
    let p_values: Vec<f64> = tested
        .iter()
        .map(|&i| slices[i].0.difference.as_ref().map_or(1.0, |d| d.p_value))
        .collect();
    for (&i, p_adjusted) in tested.iter().zip(numbers::holm(&p_values)) {
        let (slice, scored) = &mut slices[i];
        slice.p_adjusted = Some(p_adjusted);
        // Every claim about a slice is made at a level shared out among all slices, by the same
        // rule as the claim about the whole.
        let level = 1.0 - alpha / tested.len() as f64;
        let classify = |scored: &numbers::Scored| {
            numbers::difference(scored, level).map(|d| evidence::classify(&d, decision))
        };
        let kind = classify(scored);
        let keep = |row_idx: usize| plan.dataset.rows[row_idx].slices.contains(&slice.slice);
        let depends_on_missing = pairs.has_missing(keep)
            && [(Fill::Right, Fill::Wrong), (Fill::Wrong, Fill::Right)]
                .into_iter()
                .any(|(a, b)| classify(&pairs.filled(keep, a, b)) != kind);
        slice.finding = match kind {
            _ if depends_on_missing => SliceFinding::Open,
            Some(EvidenceKind::Better) => SliceFinding::Better,
            Some(EvidenceKind::NonInferior) => SliceFinding::NonInferior,
            Some(EvidenceKind::Worse) => SliceFinding::Worse,
            Some(EvidenceKind::NotProven) | None => SliceFinding::Open,
        };
    }
    slices.into_iter().map(|(slice, _)| slice).collect()
}
