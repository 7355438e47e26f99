//! Confidence intervals for one proportion, `k` successes in `n` independent trials.

use crate::Interval;
use crate::error::{Result, StatsError, check_unit_open};
use crate::special::{beta_quantile, normal_two_sided};

fn check(k: u64, n: u64, level: f64) -> Result<()> {
    if n == 0 {
        return Err(StatsError::TooFew { name: "n", got: 0, need: 1 });
    }
    if k > n {
        return Err(StatsError::CountExceeds { name: "k", got: k, limit: n });
    }
    check_unit_open("level", level)
}

/// Wilson score interval (Wilson 1927), within [0, 1]. The default for accuracies.
///
/// Coverage is nominal on average over p and may fall slightly below it. At `k = 0` the lower
/// limit is exactly 0, at `k = n` the upper is exactly 1.
///
/// # Errors
/// `n = 0`, `k > n`, or `level` outside (0, 1).
pub fn wilson(k: u64, n: u64, level: f64) -> Result<Interval> {
    check(k, n, level)?;
    let (nf, p) = (n as f64, k as f64 / n as f64);
    let z = normal_two_sided(level);
    let shrink = 1.0 + z * z / nf;
    let center = (p + z * z / (2.0 * nf)) / shrink;
    let half = z / shrink * (p * (1.0 - p) / nf + z * z / (4.0 * nf * nf)).sqrt();
    // Rounding leaves 0.9999999999999999 at k = n; the limit is 1 by algebra.
    let lo = if k == 0 { 0.0 } else { (center - half).max(0.0) };
    let hi = if k == n { 1.0 } else { (center + half).min(1.0) };
    Ok(Interval { lo, hi, level })
}

/// Clopper–Pearson "exact" interval (1934): coverage never below `level`, so often wider.
///
/// Beta quantiles; 0 at `k = 0`, 1 at `k = n`.
///
/// # Errors
/// `n = 0`, `k > n`, or `level` outside (0, 1).
pub fn clopper_pearson(k: u64, n: u64, level: f64) -> Result<Interval> {
    check(k, n, level)?;
    let tail = 0.5 * (1.0 - level);
    let (k_f, m) = (k as f64, (n - k) as f64);
    let lo = if k == 0 { 0.0 } else { beta_quantile(tail, k_f, m + 1.0, false) };
    let hi = if k == n { 1.0 } else { beta_quantile(tail, k_f + 1.0, m, true) };
    Ok(Interval { lo, hi, level })
}

/// Jeffreys interval: equal-tailed posterior of Beta(½, ½) (Brown, Cai, DasGupta 2001).
///
/// The ends are *not* snapped to 0 and 1 at `k = 0` and `k = n`, as in statsmodels; some texts
/// do snap, which gives slightly higher coverage there.
///
/// # Errors
/// `n = 0`, `k > n`, or `level` outside (0, 1).
pub fn jeffreys(k: u64, n: u64, level: f64) -> Result<Interval> {
    check(k, n, level)?;
    let tail = 0.5 * (1.0 - level);
    let (a, b) = (k as f64 + 0.5, (n - k) as f64 + 0.5);
    let lo = beta_quantile(tail, a, b, false);
    let hi = beta_quantile(tail, a, b, true);
    Ok(Interval { lo, hi, level })
}
