//! Ratio of two means over the same items, such as cost per correct answer: Σ cost / Σ correct.

use crate::Interval;
use crate::error::{Result, StatsError, check_same_len, check_unit_open, check_values};
use crate::mean::welford;
use crate::quantile::{sorted, sorted_quantile};
use crate::random::below;
use crate::special::t_two_sided;

fn check(numerator: &[f64], denominator: &[f64], level: f64) -> Result<()> {
    check_values("numerator", numerator, 2)?;
    check_same_len("denominator", denominator.len(), numerator.len())?;
    check_values("denominator", denominator, 2)?;
    check_unit_open("level", level)
}

/// Σ numerator / Σ denominator. `None` if the denominator sums to 0 (no correct answer).
///
/// # Errors
/// Empty input, slices of different length, or a value that is not finite.
pub fn ratio(numerator: &[f64], denominator: &[f64]) -> Result<Option<f64>> {
    check_values("numerator", numerator, 1)?;
    check_same_len("denominator", denominator.len(), numerator.len())?;
    check_values("denominator", denominator, 1)?;
    let sum: f64 = denominator.iter().sum();
    Ok((sum != 0.0).then(|| numerator.iter().sum::<f64>() / sum))
}

/// Fieller's interval of mean(numerator)/mean(denominator) (Fieller 1954), t with n − 1 df.
///
/// `None` is "unbounded": the denominator's mean is not distinguishable from 0 at this level,
/// and the confidence set is no interval.
///
/// # Errors
/// Fewer than 2 items, slices of different length, a value that is not finite, or `level`
/// outside (0, 1).
pub fn fieller(numerator: &[f64], denominator: &[f64], level: f64) -> Result<Option<Interval>> {
    check(numerator, denominator, level)?;
    let n = numerator.len() as f64;
    let (y, m2_y) = welford(numerator);
    let (x, m2_x) = welford(denominator);
    let cross: f64 = numerator.iter().zip(denominator).map(|(v, u)| (v - y) * (u - x)).sum();
    // (Co)variances of the means, times t².
    let t = t_two_sided(level, n - 1.0);
    let scale = t * t / ((n - 1.0) * n);
    let (v_yy, v_xx, v_xy) = (scale * m2_y, scale * m2_x, scale * cross);
    let a = x * x - v_xx;
    if a <= 0.0 {
        return Ok(None);
    }
    let b = x * y - v_xy;
    let c = y * y - v_yy;
    let root = (b * b - a * c).max(0.0).sqrt();
    Ok(Some(Interval { lo: (b - root) / a, hi: (b + root) / a, level }))
}

/// Result of [`bootstrap`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BootstrapRatio {
    /// Ratio of the sample.
    pub ratio: f64,
    /// Standard deviation of the replicates (n − 1). Not divided by √B: more replicates make it
    /// more precise, not smaller.
    pub se: f64,
    /// Percentile interval (type-7 quantiles of the replicates).
    pub interval: Interval,
    /// The seed used.
    pub seed: u64,
    /// Replicates B.
    pub n_replicates: u64,
}

/// Paired bootstrap of Σ numerator / Σ denominator: resamples items, keeping both numbers.
///
/// `None` if the denominator sums to 0 in the sample or in any replicate: no finite interval
/// is honest then. Depends on nothing but the inputs and `seed`.
///
/// # Errors
/// As [`fieller`], or fewer than 2 replicates, or too few for the tail (B·(1−level)/2 < 1).
pub fn bootstrap(
    numerator: &[f64],
    denominator: &[f64],
    level: f64,
    n_replicates: u64,
    seed: u64,
) -> Result<Option<BootstrapRatio>> {
    check(numerator, denominator, level)?;
    let need = (2.0 / (1.0 - level) * (1.0 - 1e-12)).ceil().max(2.0);
    if (n_replicates as f64) < need {
        let got = n_replicates as usize;
        return Err(StatsError::TooFew { name: "n_replicates", got, need: need as usize });
    }
    let n = numerator.len();
    let Some(ratio) = ratio(numerator, denominator)? else {
        return Ok(None);
    };
    let replicates: Option<Vec<f64>> = (0..n_replicates)
        .map(|replicate| {
            let (mut y, mut x) = (0.0, 0.0);
            for draw in 0..n as u64 {
                let i = below(seed, replicate, draw, n);
                y += numerator[i];
                x += denominator[i];
            }
            (x != 0.0).then(|| y / x)
        })
        .collect();
    let Some(replicates) = replicates else {
        return Ok(None);
    };
    let (_, m2) = welford(&replicates);
    let sorted = sorted(&replicates);
    let tail = 0.5 * (1.0 - level);
    let (lo, hi) = (sorted_quantile(&sorted, tail), sorted_quantile(&sorted, 1.0 - tail));
    Ok(Some(BootstrapRatio {
        ratio,
        se: (m2 / (n_replicates - 1) as f64).sqrt(),
        interval: Interval { lo, hi, level },
        seed,
        n_replicates,
    }))
}
