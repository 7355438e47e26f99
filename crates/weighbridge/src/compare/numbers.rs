//! The statistics of one comparison. Formulas live in `weighbridge-stats`; here they are chosen.

use serde::{Deserialize, Serialize};
use weighbridge_stats::mean::{ClusterCorrection, clustered_mean, mean};
use weighbridge_stats::paired::{mcnemar_exact, tango_interval};
use weighbridge_stats::permutation::{Draws, sign_flip, sign_flip_clustered};
use weighbridge_stats::power::{
    PairedVariance, Plan, mcnemar_mde, mcnemar_sample_size, non_inferiority_sample_size,
    paired_mean_mde, paired_mean_sample_size,
};
use weighbridge_stats::{PairedTable, multiplicity};

use super::{PairTable, Power, margin};
use crate::suite::Decision;

/// Wanted probability of success of a plan.
const POWER: f64 = 0.8;

/// Draws of the sign-flip test above 20 values, and their seed: fixed, so that a report repeats.
const DRAWS: Draws = Draws { seed: 0, n_draws: 20_000 };

/// Fewer clusters say too little of how much samples of one cluster resemble each other.
pub(super) const MIN_CLUSTERS: usize = 10;

/// Share of samples on which two models of different quality typically differ, for power before a
/// run. An assumption, printed as one.
const ASSUMED_DISCORDANCE: f64 = 0.2;

/// An interval and its confidence level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
    /// Confidence level, in (0, 1).
    pub level: f64,
}

impl Interval {
    pub(crate) fn scaled(interval: weighbridge_stats::Interval, factor: f64) -> Self {
        Self { lo: interval.lo * factor, hi: interval.hi * factor, level: interval.level }
    }
}

/// A difference of two means, candidate minus reference, in percentage points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Difference {
    /// Percentage points.
    pub points: f64,
    /// Its two-sided interval, in percentage points.
    pub interval: Interval,
    /// How the interval was made.
    pub method: String,
    /// Two-sided p-value of "no difference".
    pub p_value: f64,
    /// The test it comes from.
    pub test: String,
}

/// Pairs of scores.
#[derive(Debug, Default)]
pub(crate) struct Scored {
    reference: Vec<f64>,
    candidate: Vec<f64>,
    clusters: Vec<usize>,
}

impl Scored {
    pub(super) fn push(&mut self, reference: f64, candidate: f64, cluster: Option<usize>) {
        self.reference.push(reference);
        self.candidate.push(candidate);
        self.clusters.extend(cluster);
    }

    pub(super) fn len(&self) -> usize {
        self.reference.len()
    }

    pub(super) fn mean_reference(&self) -> Option<f64> {
        mean(&self.reference).ok().map(|m| m.mean)
    }

    pub(super) fn mean_candidate(&self) -> Option<f64> {
        mean(&self.candidate).ok().map(|m| m.mean)
    }

    fn differences(&self) -> Vec<f64> {
        self.candidate.iter().zip(&self.reference).map(|(b, a)| b - a).collect()
    }

    /// Number of clusters, if some samples share one, so that they are not independent.
    pub(super) fn n_clusters(&self) -> Option<usize> {
        let mut ids = self.clusters.clone();
        ids.sort_unstable();
        ids.dedup();
        (!ids.is_empty() && ids.len() < self.len()).then_some(ids.len())
    }

    /// The 2×2 table, if every score is 0 or 1.
    pub(super) fn table(&self) -> Option<PairTable> {
        let mut table = PairTable::default();
        for (a, b) in self.reference.iter().zip(&self.candidate) {
            match (*a, *b) {
                (1.0, 1.0) => table.both += 1,
                (1.0, 0.0) => table.only_reference += 1,
                (0.0, 1.0) => table.only_candidate += 1,
                (0.0, 0.0) => table.neither += 1,
                _ => return None,
            }
        }
        Some(table)
    }
}

/// `A` is the candidate, so that a difference is candidate minus reference.
fn paired_table(table: &PairTable) -> PairedTable {
    PairedTable {
        both: table.both,
        only_a: table.only_candidate,
        only_b: table.only_reference,
        neither: table.neither,
    }
}

/// Exact McNemar, two-sided; `None` for an empty table.
pub(super) fn mcnemar(table: &PairTable) -> Option<f64> {
    (table.n() > 0).then(|| mcnemar_exact(&paired_table(table)))
}

/// p-values corrected by Holm's method, in the given order.
pub(super) fn holm(p_values: &[f64]) -> Vec<f64> {
    multiplicity::holm(p_values).unwrap_or_else(|_| vec![1.0; p_values.len()])
}

/// Candidate minus reference; `None` without pairs, or with fewer clusters than [`MIN_CLUSTERS`].
///
/// Right/wrong scores: Tango's score interval and exact McNemar. Graded ones: paired t and sign
/// flips, at least as wide as if one difference of the largest size had not been seen. Clustered
/// data: the wider of that and the clustered t interval (CR1), the larger of that p-value and that
/// of sign flips of whole clusters.
pub(super) fn difference(scored: &Scored, level: f64) -> Option<Difference> {
    if scored.len() == 0 {
        return None;
    }
    let differences = scored.differences();
    let independent = independent(scored, &differences, level)?;
    match scored.n_clusters() {
        None => Some(independent),
        Some(n) if n < MIN_CLUSTERS => None,
        Some(_) => Some(clustered(scored, &differences, independent, level)),
    }
}

fn independent(scored: &Scored, differences: &[f64], level: f64) -> Option<Difference> {
    let estimate = mean(differences).ok()?;
    let points = estimate.mean * 100.0;
    if let Some(table) = scored.table() {
        let interval = tango_interval(&paired_table(&table), level).ok()?;
        return Some(Difference {
            points,
            interval: Interval::scaled(interval, 100.0),
            method: "Tango score interval of the paired difference".to_owned(),
            p_value: mcnemar(&table)?,
            test: "exact McNemar".to_owned(),
        });
    }
    let mut interval = estimate.t_interval(level).ok()??;
    // Differences lie in [-1, 1]; Tango's interval without any discordant pair says how far the
    // mean can be off when the large ones are rare and none was drawn.
    let nothing = PairedTable { both: scored.len() as u64, only_a: 0, only_b: 0, neither: 0 };
    let floor = tango_interval(&nothing, level).ok()?;
    interval.lo = interval.lo.min(estimate.mean + floor.lo);
    interval.hi = interval.hi.max(estimate.mean + floor.hi);
    Some(Difference {
        points,
        interval: Interval::scaled(interval, 100.0),
        method: "paired t, at least as wide as what rare differences allow".to_owned(),
        p_value: sign_flip(differences, DRAWS).ok()?.p,
        test: "sign-flip permutation".to_owned(),
    })
}

/// Clusters can only widen an interval and weaken a test.
fn clustered(
    scored: &Scored,
    differences: &[f64],
    independent: Difference,
    level: f64,
) -> Difference {
    let mut found = independent;
    let estimate = clustered_mean(differences, &scored.clusters, ClusterCorrection::Cr1);
    if let Ok(estimate) = estimate
        && let Ok(Some(interval)) = estimate.t_interval(level)
    {
        let interval = Interval::scaled(interval, 100.0);
        if interval.hi - interval.lo > found.interval.hi - found.interval.lo {
            let n_clusters = estimate.se.map_or(0, |se| se.df + 1);
            found.method = format!("clustered t (CR1, {n_clusters} clusters)");
        }
        found.interval.lo = found.interval.lo.min(interval.lo);
        found.interval.hi = found.interval.hi.max(interval.hi);
    }
    if let Ok(flips) = sign_flip_clustered(differences, &scored.clusters, DRAWS)
        && flips.p >= found.p_value
    {
        found.p_value = flips.p;
        found.test = "sign-flip permutation of whole clusters".to_owned();
    }
    found
}

/// How much larger the variance is than that of as many independent samples; 1 without clusters.
fn design_effect(scored: &Scored, differences: &[f64]) -> f64 {
    if scored.n_clusters().is_none() {
        return 1.0;
    }
    let plain = mean(differences).ok().and_then(|m| m.se).map(|se| se.value);
    let with_clusters = clustered_mean(differences, &scored.clusters, ClusterCorrection::Cr1)
        .ok()
        .and_then(|m| m.se)
        .map(|se| se.value);
    match (plain, with_clusters) {
        (Some(plain), Some(clustered)) if plain > 0.0 => (clustered / plain).powi(2).max(1.0),
        _ => 1.0,
    }
}

/// What data of this kind could have shown.
pub(super) fn power(
    scored: &Scored,
    difference: Option<&Difference>,
    decision: &Decision,
) -> Power {
    let mut power = Power { detectable_points: None, n_if_real: None, n_if_zero: None };
    let Some(difference) = difference else { return power };
    let alpha = 1.0 - decision.confidence;
    // The whole two-sided interval has to clear the margin, so one side has half of alpha.
    let (Ok(two_sided), Ok(one_sided)) = (Plan::new(alpha, POWER), Plan::new(alpha / 2.0, POWER))
    else {
        return power;
    };
    let differences = scored.differences();
    let effect = design_effect(scored, &differences);
    let n_effective = ((scored.len() as f64 / effect).floor() as u64).max(1);
    let gap = difference.points / 100.0;
    let margin = margin(decision);
    let size = |n: f64| (n.is_finite() && n < 1e12).then(|| (n * effect).ceil().max(1.0) as u64);
    // The mean square of the differences: for right/wrong scores the share of discordant pairs.
    let discordance = differences.iter().map(|d| d * d).sum::<f64>() / differences.len() as f64;
    if discordance <= 0.0 {
        return power;
    }
    if scored.table().is_some() {
        power.detectable_points =
            mcnemar_mde(n_effective, discordance, two_sided).ok().flatten().map(|d| d * 100.0);
    } else if let Ok(variance) = PairedVariance::new(discordance - gap * gap) {
        power.detectable_points =
            paired_mean_mde(variance, n_effective, two_sided).ok().map(|d| d * 100.0);
    }
    power.n_if_zero =
        non_inferiority_sample_size(discordance, 0.0, margin, one_sided).ok().and_then(size);
    power.n_if_real = if gap > -margin {
        non_inferiority_sample_size(discordance, gap, margin, one_sided).ok().and_then(size)
    } else if scored.table().is_some() {
        mcnemar_sample_size(discordance, gap, two_sided).ok().and_then(size)
    } else {
        PairedVariance::new(discordance - gap * gap)
            .and_then(|v| paired_mean_sample_size(v, gap.abs(), two_sided))
            .ok()
            .and_then(size)
    };
    power
}

/// What a run of `n` samples can show, before it is made.
pub(crate) fn power_line(n: usize, decision: &Decision) -> String {
    let alpha = 1.0 - decision.confidence;
    let margin = margin(decision);
    let needed = Plan::new(alpha / 2.0, POWER)
        .and_then(|plan| non_inferiority_sample_size(ASSUMED_DISCORDANCE, 0.0, margin, plan));
    let found = Plan::new(alpha, POWER)
        .and_then(|plan| mcnemar_mde((n as u64).max(1), ASSUMED_DISCORDANCE, plan));
    let mut line = match found {
        Ok(Some(found)) => format!(
            "power     {n} samples find a true difference of {:.1} points in 80 % of runs",
            found * 100.0
        ),
        _ => format!("power     {n} samples are too few to find any difference reliably"),
    };
    if let Ok(needed) = needed {
        let needed = super::count(needed.ceil() as u64);
        line += &format!(
            "; about {needed} prove \u{201c}not worse by {} points\u{201d} if there is none \
             (assuming the models differ on {:.0} % of samples)",
            decision.margin_points,
            ASSUMED_DISCORDANCE * 100.0
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(both: usize, only_a: usize, only_b: usize, neither: usize) -> Scored {
        let mut scored = Scored::default();
        for (n, a, b) in
            [(both, 1.0, 1.0), (only_a, 1.0, 0.0), (only_b, 0.0, 1.0), (neither, 0.0, 0.0)]
        {
            for _ in 0..n {
                scored.push(a, b, None);
            }
        }
        scored
    }

    // 53 and 27 discordant of 200: p-value and Tango interval as printed by scipy and by the
    // published formula, in crates/weighbridge-stats/tests.
    #[test]
    fn right_and_wrong_go_to_tango_and_mcnemar_with_the_sign_of_the_candidate() {
        let found = difference(&binary(100, 27, 53, 20), 0.95).unwrap();
        assert!((found.points - 13.0).abs() < 1e-9);
        assert!((found.interval.lo - 4.319046206).abs() < 1e-6);
        assert!((found.interval.hi - 21.55701088).abs() < 1e-6);
        assert!((found.p_value - 0.00486815415).abs() < 1e-9);
        let mirrored = difference(&binary(100, 53, 27, 20), 0.95).unwrap();
        assert!((mirrored.interval.lo + 21.55701088).abs() < 1e-6);
    }

    #[test]
    fn graded_scores_and_clusters_choose_their_own_methods() {
        let mut graded = Scored::default();
        let mut clustered = Scored::default();
        let mut few = Scored::default();
        for i in 0..40_u32 {
            let (a, b) = (f64::from(i % 5) / 5.0, f64::from(i % 4) / 4.0);
            graded.push(a, b, None);
            // Whole clusters of four agree, so that there are ten samples rather than forty.
            let cluster = i / 4;
            let (a, b) = (f64::from(cluster % 2), f64::from(cluster % 3 % 2));
            clustered.push(a, b, Some(cluster as usize));
            few.push(f64::from(i % 2), 1.0, Some(i as usize % 9));
        }
        assert!(difference(&graded, 0.95).unwrap().method.starts_with("paired t"));
        let found = difference(&clustered, 0.95).unwrap();
        assert_eq!(found.method, "clustered t (CR1, 10 clusters)");
        assert_eq!(found.test, "sign-flip permutation of whole clusters");
        assert!(difference(&few, 0.95).is_none(), "nine clusters are too few");
        assert!(clustered.table().is_some() && graded.table().is_none());
    }

    #[test]
    fn identical_answers_have_an_honest_width() {
        let mut scored = Scored::default();
        for i in 0..100 {
            scored.push(1.0, 1.0, Some(i / 10));
        }
        let found = difference(&scored, 0.95).unwrap();
        assert_eq!(found.points, 0.0);
        assert!(found.interval.lo < 0.0 && found.interval.hi > 0.0);
        assert_eq!(found.p_value, 1.0);
    }

    // Every cluster loses the same net share: the clustered variance is zero, and proves nothing.
    #[test]
    fn clusters_never_narrow_an_interval() {
        let (mut clustered, mut independent) = (Scored::default(), Scored::default());
        for i in 0..1000_usize {
            let (a, b) = match i % 50 {
                0..4 => (1.0, 0.0),
                4..6 => (0.0, 1.0),
                _ => (1.0, 1.0),
            };
            clustered.push(a, b, Some(i / 50));
            independent.push(a, b, None);
        }
        let (clustered, independent) =
            (difference(&clustered, 0.95).unwrap(), difference(&independent, 0.95).unwrap());
        assert_eq!(clustered.interval, independent.interval);
        assert!(clustered.p_value >= independent.p_value);
    }

    #[test]
    fn equal_graded_scores_have_a_width_too() {
        let mut scored = Scored::default();
        for _ in 0..30 {
            scored.push(0.5, 0.5, None);
        }
        let found = difference(&scored, 0.95).unwrap();
        assert!(found.interval.hi - found.interval.lo > 20.0, "{found:?}");
    }

    #[test]
    fn power_grows_with_the_gap() {
        let decision = Decision::default();
        let scored = binary(80, 14, 10, 16);
        let found = power(&scored, difference(&scored, 0.95).as_ref(), &decision);
        let (real, zero) = (found.n_if_real.unwrap(), found.n_if_zero.unwrap());
        assert!(real > zero, "{found:?}");
        // (z_{0.025} + z_{0.2})² ψ / δ² with ψ = 0.2, δ = 0.05: 627.9
        assert_eq!(zero, 628);
    }
}
