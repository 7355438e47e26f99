//! Tests of graded (non-binary) scores of two systems on the same items: sign-flip
//! permutation, plain or by cluster, and the paired t-test.

use crate::error::{Result, StatsError, check_same_len, check_values};
use crate::mean::mean;
use crate::random::bits;
use crate::special::t_two_sided_p;
use std::collections::BTreeMap;

/// Up to this many differences every one of the 2ⁿ sign patterns is counted.
pub const EXACT_LIMIT: usize = 20;

/// How many seeded sign patterns to draw where counting all of them is too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    /// Seed; record it. The same seed gives the same p-value on any machine.
    pub seed: u64,
    /// Number of draws R, at least 1; the smallest possible p is 1/(1+R).
    pub n_draws: u64,
}

/// Result of a sign-flip test.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SignFlip {
    /// Two-sided p-value, in (0, 1]; never 0.
    pub p: f64,
    /// Whether every pattern was counted (else `draws` were used).
    pub exact: bool,
}

/// Two-sided sign-flip test that the differences are symmetric about 0.
///
/// Exact up to [`EXACT_LIMIT`] differences, #{|Σεd| ≥ |Σd|}/2ⁿ; beyond, (1 + hits)/(1 + R) on
/// seeded draws. Sums within 1e-12·Σ|d| count as ties. All zeros give p = 1.
///
/// # Errors
/// No differences, one that is not finite, or `n_draws = 0`.
pub fn sign_flip(differences: &[f64], draws: Draws) -> Result<SignFlip> {
    check_values("differences", differences, 1)?;
    if draws.n_draws == 0 {
        return Err(StatsError::TooFew { name: "n_draws", got: 0, need: 1 });
    }
    let observed = differences.iter().sum::<f64>().abs();
    let total: f64 = differences.iter().map(|d| d.abs()).sum();
    let threshold = observed - 1e-12 * total;
    if differences.len() <= EXACT_LIMIT {
        Ok(SignFlip { p: exact_p(differences, threshold), exact: true })
    } else {
        Ok(SignFlip { p: drawn_p(differences, threshold, draws), exact: false })
    }
}

/// [`sign_flip`] of whole clusters: the differences of a cluster share one sign.
///
/// Valid when items inside a cluster depend on each other; the number that matters for
/// exactness and power is the number of clusters.
///
/// # Errors
/// As [`sign_flip`], or slices of different length.
pub fn sign_flip_clustered<K: Ord>(
    differences: &[f64],
    clusters: &[K],
    draws: Draws,
) -> Result<SignFlip> {
    check_values("differences", differences, 1)?;
    check_same_len("clusters", clusters.len(), differences.len())?;
    let mut sums: BTreeMap<&K, f64> = BTreeMap::new();
    for (&d, key) in differences.iter().zip(clusters) {
        *sums.entry(key).or_default() += d;
    }
    let sums: Vec<f64> = sums.into_values().collect();
    sign_flip(&sums, draws)
}

/// All signed sums of up to ten numbers.
fn signed_sums(values: &[f64]) -> Vec<f64> {
    values.iter().fold(vec![0.0], |sums, &d| sums.iter().flat_map(|s| [s + d, s - d]).collect())
}

/// Two half tables, so that no sum accumulates more than 20 roundings (a Gray code would).
fn exact_p(differences: &[f64], threshold: f64) -> f64 {
    let (left, right) = differences.split_at(differences.len() / 2);
    let (left, right) = (signed_sums(left), signed_sums(right));
    let hits: usize =
        left.iter().map(|l| right.iter().filter(|&r| (l + r).abs() >= threshold).count()).sum();
    hits as f64 / (left.len() * right.len()) as f64
}

fn drawn_p(differences: &[f64], threshold: f64, draws: Draws) -> f64 {
    let hits = (0..draws.n_draws)
        .filter(|&replicate| {
            let mut sum = 0.0;
            for (word, chunk) in differences.chunks(64).enumerate() {
                let signs = bits(draws.seed, replicate, word as u64);
                for (i, &d) in chunk.iter().enumerate() {
                    sum += if signs >> i & 1 == 1 { d } else { -d };
                }
            }
            sum.abs() >= threshold
        })
        .count();
    (1 + hits) as f64 / (1 + draws.n_draws) as f64
}

/// Result of [`paired_t`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PairedT {
    /// Mean difference.
    pub mean: f64,
    /// Its standard error, above 0.
    pub se: f64,
    /// mean / se.
    pub t: f64,
    /// n − 1.
    pub df: usize,
    /// Two-sided p-value, in [0, 1].
    pub p: f64,
}

/// Paired t-test of the differences. `None` with one item, or when all are equal (SE 0).
///
/// # Errors
/// No differences, or one that is not finite.
pub fn paired_t(differences: &[f64]) -> Result<Option<PairedT>> {
    let estimate = mean(differences)?;
    Ok(estimate.se.filter(|se| se.value > 0.0).map(|se| {
        let t = estimate.mean / se.value;
        let p = t_two_sided_p(t, se.df as f64);
        PairedT { mean: estimate.mean, se: se.value, t, df: se.df, p }
    }))
}
