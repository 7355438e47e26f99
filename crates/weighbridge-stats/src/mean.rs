//! Means with their standard errors: independent items, or items in clusters.
//!
//! Repeats are not items: average the K responses of an item first (Miller 2024,
//! arXiv 2411.00640), then pass one number per item.

use crate::Interval;
use crate::error::{Result, check_same_len, check_unit_open, check_values};
use crate::special::t_two_sided;
use std::collections::BTreeMap;

/// A mean, its standard error and the degrees of freedom of its t interval.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MeanEstimate {
    /// Number of items.
    pub n: usize,
    /// Arithmetic mean, in the unit of the values.
    pub mean: f64,
    /// Standard error, same unit, and degrees of freedom (at least 1).
    /// `None` with one item or one cluster: it is undefined, not 0.
    pub se: Option<StandardError>,
}

/// A standard error and the degrees of freedom it was estimated with.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StandardError {
    /// Standard error, in the unit of the values, at least 0.
    pub value: f64,
    /// n − 1 for independent items, G − 1 for G clusters.
    pub df: usize,
}

impl MeanEstimate {
    /// Student t interval, mean ± t·SE. `None` if the standard error is undefined.
    ///
    /// Width 0 if all values (or all cluster sums of residuals) agree: that reflects the data
    /// seen, not certainty.
    ///
    /// # Errors
    /// `level` outside (0, 1).
    pub fn t_interval(&self, level: f64) -> Result<Option<Interval>> {
        check_unit_open("level", level)?;
        Ok(self.se.map(|se| {
            let half = t_two_sided(level, se.df as f64) * se.value;
            Interval { lo: self.mean - half, hi: self.mean + half, level }
        }))
    }
}

/// Which clustered variance. The two conventions differ by √(G/(G−1)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClusterCorrection {
    /// Σ R_g²/n², no correction (Miller 2024, appendix A). Too small for few clusters.
    Cr0,
    /// CR0 × G/(G−1). The default.
    #[default]
    Cr1,
}

/// Mean and sum of squared deviations in one pass (Welford 1962). `values` not empty.
pub(crate) fn welford(values: &[f64]) -> (f64, f64) {
    let (mut mean, mut m2) = (0.0, 0.0);
    for (i, &x) in values.iter().enumerate() {
        let delta = x - mean;
        mean += delta / (i + 1) as f64;
        m2 += delta * (x - mean);
    }
    (mean, m2)
}

/// Mean of independent values; SE = √[Σ(x−x̄)²/(n−1)/n].
///
/// # Errors
/// Empty input, or a value that is not finite.
pub fn mean(values: &[f64]) -> Result<MeanEstimate> {
    check_values("values", values, 1)?;
    let n = values.len();
    let (mean, m2) = welford(values);
    let se = (n > 1)
        .then(|| StandardError { value: (m2 / (n - 1) as f64 / n as f64).sqrt(), df: n - 1 });
    Ok(MeanEstimate { n, mean, se })
}

/// Mean of values that fall in clusters (documents, sessions, templates), `clusters[i]` being
/// the cluster of `values[i]`. Degrees of freedom G − 1; below about 30 clusters prefer
/// [`crate::permutation::sign_flip_clustered`].
///
/// # Errors
/// Empty input, slices of different length, or a value that is not finite.
pub fn clustered_mean<K: Ord>(
    values: &[f64],
    clusters: &[K],
    correction: ClusterCorrection,
) -> Result<MeanEstimate> {
    check_values("values", values, 1)?;
    check_same_len("clusters", clusters.len(), values.len())?;
    let n = values.len();
    let (mean, _) = welford(values);
    let mut residuals: BTreeMap<&K, f64> = BTreeMap::new();
    for (&x, key) in values.iter().zip(clusters) {
        *residuals.entry(key).or_default() += x - mean;
    }
    let n_clusters = residuals.len();
    let sum: f64 = residuals.values().map(|r| r * r).sum();
    let se = (n_clusters > 1).then(|| {
        let factor = match correction {
            ClusterCorrection::Cr0 => 1.0,
            ClusterCorrection::Cr1 => n_clusters as f64 / (n_clusters - 1) as f64,
        };
        StandardError { value: (factor * sum).sqrt() / n as f64, df: n_clusters - 1 }
    });
    Ok(MeanEstimate { n, mean, se })
}

/// Mean of the differences `a[i] − b[i]` of two systems on the same items.
///
/// # Errors
/// Empty input, slices of different length, or a value that is not finite.
pub fn paired_mean(a: &[f64], b: &[f64]) -> Result<MeanEstimate> {
    mean(&differences(a, b)?)
}

/// [`paired_mean`] with clusters: [`clustered_mean`] of the differences.
///
/// # Errors
/// As [`clustered_mean`].
pub fn clustered_paired_mean<K: Ord>(
    a: &[f64],
    b: &[f64],
    clusters: &[K],
    correction: ClusterCorrection,
) -> Result<MeanEstimate> {
    clustered_mean(&differences(a, b)?, clusters, correction)
}

/// `a[i] − b[i]`, checked.
pub(crate) fn differences(a: &[f64], b: &[f64]) -> Result<Vec<f64>> {
    check_values("a", a, 1)?;
    check_same_len("b", b.len(), a.len())?;
    check_values("b", b, 1)?;
    Ok(a.iter().zip(b).map(|(x, y)| x - y).collect())
}
