//! How alike two candidates answer: the same text, the same score, the same tokens with the same
//! log-probabilities. This describes a pair; it says nothing of who is right.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use weighbridge_core::TokenLogprob;
use weighbridge_stats::mean::{ClusterCorrection, clustered_mean};
use weighbridge_stats::proportion::wilson;

use super::numbers::{self, MIN_CLUSTERS};
use super::{Interval, PairTable, Pairs, Said, answers_of, cluster_ids, grouped};
use crate::plan::{Arm, Plan};
use crate::record::ObservationRecord;
use crate::run::CallId;

/// How alike two candidates answer, at the declared confidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Agreement {
    /// The one.
    pub reference: String,
    /// The other.
    pub candidate: String,
    /// Both run the same weights: their files have one digest, or the suite says so.
    pub is_same_weights: bool,
    /// Samples that both answered.
    pub n_both_answered: u64,
    /// Of them, those whose answers are the same text but for white space.
    pub n_same_answer: u64,
    /// Interval of the share of same answers, in [0, 1]: Wilson's, and where samples are clustered
    /// at least as wide as the clustered t interval. `None` with too few clusters.
    pub same_answer_interval: Option<Interval>,
    /// The 2×2 table, for scores that are only right or wrong. `only_reference` are the flips from
    /// right to wrong, `only_candidate` those from wrong to right.
    pub table: Option<PairTable>,
    /// Exact McNemar of that table, two-sided. It takes samples as independent; where they are
    /// clustered, the test of [`Difference`](super::Difference) decides.
    pub mcnemar_p: Option<f64>,
    /// How far the log-probabilities of the same tokens lie apart.
    pub logprobs: LogprobGap,
}

/// How far the log-probabilities of the same tokens lie apart, or why that cannot be said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum LogprobGap {
    /// Some tokens are aligned.
    Measured(LogprobDifference),
    /// No token is aligned. That is not a gap of zero.
    NotDefined {
        /// Why.
        reason: String,
    },
}

/// |candidate − reference| of the log-probabilities of aligned tokens, in nats.
///
/// The tokens of a sample are aligned as far as both first answers begin with the same tokens: the
/// model then saw the same text before each of them, so that a difference is the set-up's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogprobDifference {
    /// Mean over the aligned tokens.
    pub mean_abs: f64,
    /// Clustered t interval of the mean (CR1): tokens of one sample, or of one cluster of samples,
    /// are not independent. `None` with too few of them, or where all differences are equal.
    pub interval: Option<Interval>,
    /// Largest over the aligned tokens.
    pub max_abs: f64,
    /// The sample in which it is.
    pub max_sample: String,
    /// Aligned tokens.
    pub n_tokens: u64,
    /// Samples with an aligned token.
    pub n_samples: u64,
    /// Of them, those whose answers are the same text from the same tokens to the end.
    pub n_whole: u64,
    /// Samples that both answered and that have no aligned token, by reason.
    pub not_aligned: BTreeMap<String, u64>,
}

impl Agreement {
    /// In one line, for the first screen.
    pub(crate) fn in_words(&self) -> String {
        if self.n_both_answered == 0 {
            return "no sample was answered by both".to_owned();
        }
        let mut share = format!(
            "{} of {} answers the same",
            grouped(self.n_same_answer),
            grouped(self.n_both_answered)
        );
        if let Some(i) = &self.same_answer_interval {
            share += &format!(" ({:.1} to {:.1} %)", i.lo * 100.0, i.hi * 100.0);
        }
        let flips = self.table.map_or(String::new(), |t| {
            format!(
                ", {} right \u{2192} wrong, {} wrong \u{2192} right",
                grouped(t.only_reference),
                grouped(t.only_candidate)
            )
        });
        let gap = match &self.logprobs {
            LogprobGap::Measured(gap) => format!(
                ", mean |\u{394}logprob| {} nats, largest {}",
                nats(gap.mean_abs),
                nats(gap.max_abs)
            ),
            LogprobGap::NotDefined { reason } => {
                format!(", |\u{394}logprob| not defined: {reason}")
            }
        };
        share + &flips + &gap
    }
}

/// Nats to three significant digits, as in `0.0123`.
pub(crate) fn nats(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v < 0.000_1 => format!("{v:.2e}"),
        v => {
            let digits = (2 - v.log10().floor() as i32).max(0) as usize;
            format!("{v:.digits$}")
        }
    }
}

/// Holds two candidates beside each other.
pub(super) fn agreement(
    plan: &Plan,
    observations: &HashMap<CallId, ObservationRecord>,
    pairs: &Pairs,
    reference_idx: usize,
    candidate_idx: usize,
) -> Agreement {
    let (reference, candidate) = (&plan.arms[reference_idx], &plan.arms[candidate_idx]);
    let clusters = cluster_ids(plan);
    let level = plan.suite.decision.confidence;
    let answers = answers_of(plan, observations, reference_idx).into_iter().zip(answers_of(
        plan,
        observations,
        candidate_idx,
    ));
    let (mut same, mut answered) = (Vec::new(), Vec::new());
    for (row_idx, pair) in answers.enumerate() {
        if let (Said::Answer(a), Said::Answer(b)) = pair {
            same.push(a.split_whitespace().eq(b.split_whitespace()));
            answered.push(row_idx);
        }
    }
    let table = pairs.complete(|_| true).table();
    let cluster_of = |row_idx: &usize| clusters.as_ref().map_or(*row_idx, |ids| ids[*row_idx]);
    let logprobs = match not_comparable(reference, candidate) {
        Some(reason) => LogprobGap::NotDefined { reason },
        None => {
            let record = |arm_idx, row_idx| &observations[&CallId { arm_idx, row_idx, repeat: 0 }];
            logprob_gap(
                answered.iter().map(|row_idx| Pair {
                    id: &plan.dataset.rows[*row_idx].sample.id,
                    cluster: cluster_of(row_idx),
                    reference: record(reference_idx, *row_idx),
                    candidate: record(candidate_idx, *row_idx),
                }),
                [&reference.candidate.name, &candidate.candidate.name],
                level,
            )
        }
    };
    Agreement {
        reference: reference.candidate.name.clone(),
        candidate: candidate.candidate.name.clone(),
        is_same_weights: is_same_weights(reference, candidate),
        n_both_answered: same.len() as u64,
        n_same_answer: same.iter().filter(|same| **same).count() as u64,
        same_answer_interval: share_interval(
            &same,
            clusters.is_some().then(|| answered.iter().map(cluster_of).collect()),
            level,
        ),
        table,
        mcnemar_p: table.and_then(|table| numbers::mcnemar(&table)),
        logprobs,
    }
}

fn is_same_weights(a: &Arm, b: &Arm) -> bool {
    let is_known_equal = |a: &Option<String>, b: &Option<String>| a.is_some() && a == b;
    is_known_equal(&a.candidate.weights_of, &b.candidate.weights_of)
        || is_known_equal(&a.card.weights_sha256, &b.card.weights_sha256)
}

/// Why the tokens of two candidates do not stand in the same context, if they do not.
fn not_comparable(reference: &Arm, candidate: &Arm) -> Option<String> {
    if reference.prompter.sha256 != candidate.prompter.sha256 {
        return Some("their prompts differ".to_owned());
    }
    let mut arms = [reference, candidate].into_iter();
    let warm = arms.find(|arm| arm.settings.temperature != Some(0.0))?;
    Some(format!("{} is not asked at temperature 0", warm.candidate.name))
}

/// The first answers of both to one sample.
struct Pair<'a> {
    id: &'a str,
    cluster: usize,
    reference: &'a ObservationRecord,
    candidate: &'a ObservationRecord,
}

fn logprob_gap<'a>(
    pairs: impl Iterator<Item = Pair<'a>>,
    names: [&str; 2],
    level: f64,
) -> LogprobGap {
    let mut gap = LogprobDifference {
        mean_abs: 0.0,
        interval: None,
        max_abs: 0.0,
        max_sample: String::new(),
        n_tokens: 0,
        n_samples: 0,
        n_whole: 0,
        not_aligned: BTreeMap::new(),
    };
    let (mut values, mut clusters) = (Vec::new(), Vec::new());
    for pair in pairs {
        match align(pair.reference, pair.candidate) {
            Err(reason) => {
                *gap.not_aligned.entry(reason.in_words(names)).or_default() += 1;
            }
            Ok(aligned) => {
                gap.n_samples += 1;
                gap.n_whole += u64::from(aligned.is_whole);
                for value in aligned.gaps {
                    if values.is_empty() || value > gap.max_abs {
                        gap.max_abs = value;
                        gap.max_sample = pair.id.to_owned();
                    }
                    values.push(value);
                    clusters.push(pair.cluster);
                }
            }
        }
    }
    let Ok(mean) = clustered_mean(&values, &clusters, ClusterCorrection::Cr1) else {
        let reasons: Vec<_> = gap.not_aligned.into_keys().collect();
        let reason = match reasons.is_empty() {
            true => "no sample was answered by both".to_owned(),
            false => reasons.join("; "),
        };
        return LogprobGap::NotDefined { reason };
    };
    gap.mean_abs = mean.mean;
    gap.n_tokens = values.len() as u64;
    gap.interval = mean
        .se
        .filter(|se| se.value > 0.0 && se.df + 1 >= MIN_CLUSTERS)
        .and_then(|_| mean.t_interval(level).ok()?)
        .map(|interval| Interval { lo: interval.lo.max(0.0), hi: interval.hi, level });
    LogprobGap::Measured(gap)
}

/// What two answers have in common.
#[derive(Debug, PartialEq)]
struct Aligned {
    /// |candidate − reference| of each aligned token, in nats; at least one.
    gaps: Vec<f64>,
    /// The answers are the same text from the same tokens to the end.
    is_whole: bool,
}

/// Why no token of a sample is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotAligned {
    /// Of the reference, the candidate, or both.
    NoLogprobs([bool; 2]),
    /// Not the same context.
    PromptTokens,
    /// The same text in different tokens.
    Tokenization,
    /// They differ from the first token on.
    FirstToken,
}

impl NotAligned {
    fn in_words(self, [reference, candidate]: [&str; 2]) -> String {
        match self {
            Self::NoLogprobs([true, true]) => "neither gave log-probabilities".to_owned(),
            Self::NoLogprobs([true, false]) => format!("{reference} gave no log-probabilities"),
            Self::NoLogprobs(_) => format!("{candidate} gave no log-probabilities"),
            Self::PromptTokens => "the prompt is a different number of tokens".to_owned(),
            Self::Tokenization => "the same text is cut into different tokens".to_owned(),
            Self::FirstToken => "the first token differs".to_owned(),
        }
    }
}

/// The gaps of the tokens that both answers begin with.
fn align(
    reference: &ObservationRecord,
    candidate: &ObservationRecord,
) -> Result<Aligned, NotAligned> {
    let a = reference.logprobs.as_deref().unwrap_or_default();
    let b = candidate.logprobs.as_deref().unwrap_or_default();
    if a.is_empty() || b.is_empty() {
        return Err(NotAligned::NoLogprobs([a.is_empty(), b.is_empty()]));
    }
    let n_prompt = |record: &ObservationRecord| record.usage.n_prompt_tokens;
    if let (Some(a), Some(b)) = (n_prompt(reference), n_prompt(candidate))
        && a != b
    {
        return Err(NotAligned::PromptTokens);
    }
    let n_same = a.iter().zip(b).take_while(|(a, b)| is_same_token(a, b)).count();
    if is_cut_differently(&a[n_same..], &b[n_same..]) {
        return Err(NotAligned::Tokenization);
    }
    let gaps: Vec<f64> = a
        .iter()
        .zip(b)
        .take(n_same)
        .filter_map(|(a, b)| Some((b.logprob? - a.logprob?).abs()))
        .collect();
    match gaps.is_empty() {
        true => Err(NotAligned::FirstToken),
        false => Ok(Aligned {
            gaps,
            // Some vendors list the end token, others do not; it has no text.
            is_whole: n_same == a.len().min(b.len()) && reference.text == candidate.text,
        }),
    }
}

/// The same bytes, and the same index where both tell it.
fn is_same_token(a: &TokenLogprob, b: &TokenLogprob) -> bool {
    let is_other_id = matches!((a.id, b.id), (Some(a), Some(b)) if a != b);
    a.bytes == b.bytes && !is_other_id
}

/// Whether the text goes on the same where the tokens do not.
fn is_cut_differently(a: &[TokenLogprob], b: &[TokenLogprob]) -> bool {
    let (Some(first_a), Some(first_b)) = (a.first(), b.first()) else { return false };
    let n_bytes = first_a.bytes.len().max(first_b.bytes.len());
    let text = |tokens: &[TokenLogprob]| -> Vec<u8> {
        tokens.iter().flat_map(|t| t.bytes.iter().copied()).take(n_bytes).collect()
    };
    n_bytes > 0 && text(a) == text(b)
}

/// Interval of a share. Clusters can only widen it; below [`MIN_CLUSTERS`] there is none.
fn share_interval(hits: &[bool], clusters: Option<Vec<usize>>, level: f64) -> Option<Interval> {
    let n_hits = hits.iter().filter(|hit| **hit).count();
    let mut interval = wilson(n_hits as u64, hits.len() as u64, level).ok()?;
    if let Some(clusters) = clusters {
        let values: Vec<f64> = hits.iter().map(|hit| f64::from(u8::from(*hit))).collect();
        let estimate = clustered_mean(&values, &clusters, ClusterCorrection::Cr1).ok()?;
        estimate.se.filter(|se| se.df + 1 >= MIN_CLUSTERS)?;
        let clustered = estimate.t_interval(level).ok()??;
        interval.lo = interval.lo.min(clustered.lo.max(0.0));
        interval.hi = interval.hi.max(clustered.hi.min(1.0));
    }
    Some(Interval::scaled(interval, 1.0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weighbridge_core::{Completion, StopReason, TokenId, Usage};

    use super::*;

    fn record(tokens: &[(u32, &str, f64)]) -> ObservationRecord {
        let text: String = tokens.iter().map(|(_, text, _)| *text).collect();
        let mut completion = Completion::new(text, StopReason::Stop);
        completion.usage = Usage::new(7, tokens.len() as u64);
        let token = |(id, text, logprob): &(u32, &str, f64)| {
            TokenLogprob::new(Some(TokenId(*id)), text.as_bytes().to_vec(), Some(*logprob))
        };
        completion.logprobs = Some(tokens.iter().map(token).collect());
        ObservationRecord::new(&Ok(completion), None, Duration::ZERO, 1)
    }

    const ABC: [(u32, &str, f64); 3] = [(1, "a", -0.5), (2, "b", -1.0), (3, "c", -2.0)];

    #[test]
    fn tokens_are_aligned_up_to_the_first_that_differs() {
        let other = record(&[(1, "a", -0.75), (2, "b", -0.5), (4, "d", -9.0)]);
        let aligned = align(&record(&ABC), &other).unwrap();
        assert_eq!(aligned, Aligned { gaps: vec![0.25, 0.5], is_whole: false });
        assert!(align(&record(&ABC), &record(&ABC)).unwrap().is_whole);
        // One of them ends earlier.
        let shorter = align(&record(&ABC), &record(&ABC[..2])).unwrap();
        assert_eq!(shorter, Aligned { gaps: vec![0.0, 0.0], is_whole: false });
        // The vendor of one side tells no indices, and no end token.
        let ended = record(&[ABC[0], ABC[1], ABC[2], (0, "", -0.125)]);
        assert!(align(&ended, &record(&ABC)).unwrap().is_whole);
        let mut without_ids = record(&ABC);
        for token in without_ids.logprobs.iter_mut().flatten() {
            token.id = None;
        }
        assert!(align(&record(&ABC), &without_ids).unwrap().is_whole);
    }

    #[test]
    fn what_cannot_be_aligned_says_why_and_is_not_zero() {
        let reason = |other: &ObservationRecord| align(&record(&ABC), other).unwrap_err();
        assert_eq!(reason(&record(&[(4, "d", -1.0)])), NotAligned::FirstToken);
        // The same text from other tokens, by index or by bytes, also behind a common beginning.
        assert_eq!(reason(&record(&[(9, "a", -0.5)])), NotAligned::Tokenization);
        assert_eq!(reason(&record(&[(9, "ab", -0.5), (3, "c", -1.0)])), NotAligned::Tokenization);
        assert_eq!(reason(&record(&[(1, "a", -0.5), (9, "bc", 0.0)])), NotAligned::Tokenization);
        let mut other_prompt = record(&ABC);
        other_prompt.usage.n_prompt_tokens = Some(8);
        assert_eq!(reason(&other_prompt), NotAligned::PromptTokens);
        let mut silent = record(&ABC);
        silent.logprobs = None;
        assert_eq!(reason(&silent), NotAligned::NoLogprobs([false, true]));

        let one = record(&ABC);
        let pair = |id| Pair { id, cluster: 0, reference: &one, candidate: &silent };
        let gap = logprob_gap([pair("s1"), pair("s2")].into_iter(), ["open", "closed"], 0.95);
        let reason = "closed gave no log-probabilities".to_owned();
        assert_eq!(gap, LogprobGap::NotDefined { reason });
    }

    // Reference: numpy 2.4 and scipy 1.18 over the same differences, with the clustered variance
    // G/(G−1)·Σ R²/n² written out and scipy.stats.t.ppf(0.975, 11).
    #[test]
    fn the_mean_is_over_tokens_and_its_interval_over_samples() {
        let reference = record(&ABC);
        let candidates: Vec<ObservationRecord> = (0..12_u32)
            .map(|i| {
                let gap = f64::from(i % 4) * 0.125;
                // Every third sample leaves the common path after two tokens.
                let last = if i % 3 == 0 { (4, "d", -1.0) } else { (3, "c", -2.0 + gap * 2.0) };
                record(&[(1, "a", -0.5 - gap), (2, "b", -1.0), last])
            })
            .collect();
        let ids: Vec<String> = (0..12).map(|i| format!("s{i}")).collect();
        let pairs = candidates.iter().enumerate().map(|(i, candidate)| Pair {
            id: &ids[i],
            cluster: i,
            reference: &reference,
            candidate,
        });
        let LogprobGap::Measured(gap) = logprob_gap(pairs, ["a", "b"], 0.95) else { panic!() };
        assert_eq!((gap.n_tokens, gap.n_samples, gap.n_whole), (32, 12, 8));
        assert_eq!((gap.max_abs, gap.max_sample.as_str()), (0.75, "s7"));
        assert!((gap.mean_abs - 0.164_062_5).abs() < 1e-12, "{gap:?}");
        let interval = gap.interval.unwrap();
        assert!((interval.lo - 0.073_106_389_268).abs() < 1e-9, "{interval:?}");
        assert!((interval.hi - 0.255_018_610_732).abs() < 1e-9, "{interval:?}");
    }

    #[test]
    fn clusters_widen_the_share_and_too_few_take_it_away() {
        let hits: Vec<bool> = (0..40).map(|i| i % 40 >= 8).collect();
        let alone = share_interval(&hits, None, 0.95).unwrap();
        let in_tens = share_interval(&hits, Some((0..40).map(|i| i / 4).collect()), 0.95).unwrap();
        assert!(in_tens.lo < alone.lo && in_tens.hi > alone.hi, "{alone:?} {in_tens:?}");
        assert!(share_interval(&hits, Some((0..40).map(|i| i / 8).collect()), 0.95).is_none());
        assert!(share_interval(&[], None, 0.95).is_none());
    }

    #[test]
    fn nats_have_three_digits() {
        let shown = [0.0, 0.000_001_234, 0.012_34, 1.5, 123.4].map(nats);
        assert_eq!(shown, ["0", "1.23e-6", "0.0123", "1.50", "123"]);
    }
}
