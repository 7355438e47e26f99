//! Quantiles of latencies, with intervals that assume nothing about their distribution.
//!
//! Observations must be independent: use open-loop arrival times, and never average percentiles.

use crate::Interval;
use crate::error::{Result, StatsError, check_unit_open, check_values};
use crate::special::{binomial_cdf, binomial_quantile};

/// Sample quantile, type 7 of Hyndman and Fan 1996 (R's and NumPy's default): linear between
/// the order statistics around position (n−1)q. `q` in [0, 1]; unit of the values.
///
/// # Errors
/// No values, one that is not finite, or `q` out of range.
pub fn quantile(values: &[f64], q: f64) -> Result<f64> {
    check_values("values", values, 1)?;
    crate::error::check_range("q", q, (0.0..=1.0).contains(&q), "[0, 1]")?;
    Ok(sorted_quantile(&sorted(values), q))
}

pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

pub(crate) fn sorted_quantile(sorted: &[f64], q: f64) -> f64 {
    let position = (sorted.len() - 1) as f64 * q;
    let below = position.floor();
    let lo = sorted[below as usize];
    let hi = sorted[(below as usize + 1).min(sorted.len() - 1)];
    lo + (position - below) * (hi - lo)
}

/// Ranks (1-based, into the sorted values) whose order statistics bound a quantile.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RankInterval {
    /// Rank of the lower limit; `None` if n is too small to bound from below.
    pub lo: Option<u64>,
    /// Rank of the upper limit; `None` if n is too small to bound from above.
    pub hi: Option<u64>,
    /// Exact probability that the ranks enclose the quantile of a continuous distribution,
    /// an absent end counting as infinite.
    pub coverage: f64,
}

/// Order-statistic interval for quantile `q` of `n` independent observations:
/// lo = BinomPPF(α/2; n, q), hi = BinomPPF(1−α/2; n, q) + 1 (David and Nagaraja 2003, 7.1).
///
/// # Errors
/// `n = 0`, `q` or `level` outside (0, 1).
pub fn quantile_ranks(n: u64, q: f64, level: f64) -> Result<RankInterval> {
    check_n(n)?;
    check_unit_open("q", q)?;
    check_unit_open("level", level)?;
    let tail = 0.5 * (1.0 - level);
    let lo = binomial_quantile(tail, n, q);
    let hi = binomial_quantile(1.0 - tail, n, q) + 1;
    let below = if lo == 0 { 0.0 } else { binomial_cdf(lo - 1, n, q) };
    let coverage = binomial_cdf(hi - 1, n, q) - below;
    Ok(RankInterval { lo: (lo > 0).then_some(lo), hi: (hi <= n).then_some(hi), coverage })
}

/// [`quantile_ranks`] applied to `values`. `None` if either end is out of reach with so few.
///
/// The level stored is the nominal one; ties only raise the coverage.
///
/// # Errors
/// No values, one that is not finite, `q` or `level` outside (0, 1).
pub fn quantile_interval(values: &[f64], q: f64, level: f64) -> Result<Option<Interval>> {
    check_values("values", values, 1)?;
    let ranks = quantile_ranks(values.len() as u64, q, level)?;
    let sorted = sorted(values);
    Ok(ranks.lo.zip(ranks.hi).map(|(lo, hi)| Interval {
        lo: sorted[lo as usize - 1],
        hi: sorted[hi as usize - 1],
        level,
    }))
}

/// Rank of the smallest order statistic that is an upper bound of quantile `q` with one-sided
/// confidence `level`. `None` if `n` is below [`min_n_for_upper_bound`].
///
/// # Errors
/// `n = 0`, `q` or `level` outside (0, 1).
pub fn upper_bound_rank(n: u64, q: f64, level: f64) -> Result<Option<u64>> {
    check_n(n)?;
    check_unit_open("q", q)?;
    check_unit_open("level", level)?;
    let rank = binomial_quantile(level, n, q) + 1;
    Ok((rank <= n).then_some(rank))
}

/// Fewest observations whose maximum bounds quantile `q` from above with one-sided confidence
/// `level`: least n with 1 − qⁿ ≥ level. 59 for p95 at 95 %.
///
/// # Errors
/// `q` or `level` outside (0, 1).
pub fn min_n_for_upper_bound(q: f64, level: f64) -> Result<u64> {
    check_unit_open("q", q)?;
    check_unit_open("level", level)?;
    // The slack keeps an exact integer (q = ½, level = ¾) from being rounded up by one.
    let n = (-level).ln_1p() / q.ln();
    Ok((n * (1.0 - 8.0 * f64::EPSILON)).ceil().max(1.0) as u64)
}

fn check_n(n: u64) -> Result<()> {
    if n == 0 { Err(StatsError::TooFew { name: "n", got: 0, need: 1 }) } else { Ok(()) }
}
