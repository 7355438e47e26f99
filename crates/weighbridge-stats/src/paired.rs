//! Two systems, A and B, on the same items with right/wrong answers: tests, intervals of the
//! difference, non-inferiority and equivalence.

use crate::Interval;
use crate::error::{Result, StatsError, check_range, check_unit_open};
use crate::proportion::wilson;
use crate::root::brent;
use crate::special::{binomial_pmf, ln_binomial_tails, normal_sf, normal_two_sided};
use std::f64::consts::LN_2;

/// The 2×2 table of paired right/wrong answers. Counts are items, not responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PairedTable {
    /// Both right.
    pub both: u64,
    /// A right, B wrong.
    pub only_a: u64,
    /// B right, A wrong.
    pub only_b: u64,
    /// Both wrong.
    pub neither: u64,
}

impl PairedTable {
    /// Counts (A right, B right) pairs, one per item.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut table = Self::default();
        for pair in pairs {
            *match pair {
                (true, true) => &mut table.both,
                (true, false) => &mut table.only_a,
                (false, true) => &mut table.only_b,
                (false, false) => &mut table.neither,
            } += 1;
        }
        table
    }

    /// Number of items.
    pub fn n(&self) -> u64 {
        self.both + self.only_a + self.only_b + self.neither
    }

    /// Items on which exactly one is right ("flips"). Print it: equal accuracies can hide many.
    pub fn n_discordant(&self) -> u64 {
        self.only_a + self.only_b
    }

    /// Accuracy of A minus accuracy of B, in [−1, 1]. `None` without items.
    pub fn difference(&self) -> Option<f64> {
        (self.n() > 0).then(|| self.delta())
    }

    fn delta(&self) -> f64 {
        (self.only_a as f64 - self.only_b as f64) / self.n() as f64
    }

    fn check(&self, level: f64) -> Result<f64> {
        check_unit_open("level", level)?;
        if self.n() == 0 {
            return Err(StatsError::TooFew { name: "table", got: 0, need: 1 });
        }
        Ok(self.n() as f64)
    }
}

/// Exact two-sided McNemar p-value, min(1, 2·P(Bin(b+c, ½) ≤ min(b, c))), in (0, 1].
///
/// 1 without discordant pairs: the data say nothing against equality.
pub fn mcnemar_exact(table: &PairedTable) -> f64 {
    let (m, discordant) = discordant(table);
    (LN_2 + ln_binomial_tails(m, discordant, 0.5).0).min(0.0).exp()
}

/// Mid-p McNemar, 2·P(X ≤ m) − P(X = m), capped at 1 (Fagerland, Lydersen, Laake 2013).
///
/// Less conservative than [`mcnemar_exact`]; its type-I error may exceed α slightly.
/// 1 without discordant pairs.
pub fn mcnemar_mid_p(table: &PairedTable) -> f64 {
    let (m, discordant) = discordant(table);
    if discordant == 0 {
        return 1.0;
    }
    let doubled = (LN_2 + ln_binomial_tails(m, discordant, 0.5).0).exp();
    (doubled - binomial_pmf(m, discordant, 0.5)).min(1.0)
}

fn discordant(table: &PairedTable) -> (u64, u64) {
    (table.only_a.min(table.only_b), table.n_discordant())
}

/// Tango's score interval of the difference A − B (Tango 1998), within [−1, 1]. The default.
///
/// Solves T(Δ) = ±z with the nuisance rate at its constrained maximum-likelihood value. Stays
/// proper at the edges: without discordant pairs it is ±z²/(n+z²), not a point.
///
/// # Errors
/// Empty table, or `level` outside (0, 1).
pub fn tango_interval(table: &PairedTable, level: f64) -> Result<Interval> {
    let n = table.check(level)?;
    let z = normal_two_sided(level);
    let (b, c) = (table.only_a as f64, table.only_b as f64);
    let delta = (b - c) / n;
    // In these three tables the variance vanishes at Δ̂ itself, so the root sought is the other
    // one; it has a closed form.
    if b + c == 0.0 {
        let half = z * z / (n + z * z);
        return Ok(Interval { lo: -half, hi: half, level });
    }
    let inner = (n - z * z) / (n + z * z);
    if b == n {
        return Ok(Interval { lo: inner, hi: 1.0, level });
    }
    if c == n {
        return Ok(Interval { lo: -1.0, hi: -inner, level });
    }
    // Numerator minus z times the standard deviation: same roots as T − z, but no division.
    let score = |x: f64, z: f64| b - c - n * x - z * tango_variance(b, c, n, x).sqrt();
    let lo = brent(-1.0, delta, |x| score(x, z));
    let hi = brent(delta, 1.0, |x| score(x, -z));
    Ok(Interval { lo, hi, level })
}

/// Variance of b − c under difference `x`, with the restricted estimate of the rate of "only B".
fn tango_variance(b: f64, c: f64, n: f64, x: f64) -> f64 {
    let qa = 2.0 * n;
    let qb = -b - c + (2.0 * n - b + c) * x;
    let qc = -c * x * (1.0 - x);
    let root = (qb * qb - 4.0 * qa * qc).max(0.0).sqrt();
    // The textbook root cancels when qb > 0; this is the same root, rationalised.
    let q = if qb > 0.0 { -2.0 * qc / (root + qb) } else { (root - qb) / (2.0 * qa) };
    (n * (2.0 * q.max(0.0) + x * (1.0 - x))).max(0.0)
}

/// Newcombe's hybrid score interval of A − B (Newcombe 1998, method 10), within [−1, 1].
///
/// Combines two Wilson intervals through a continuity-corrected φ, which is 0 if a margin is.
///
/// # Errors
/// Empty table, or `level` outside (0, 1).
pub fn newcombe_interval(table: &PairedTable, level: f64) -> Result<Interval> {
    let n = table.check(level)?;
    let (both, only_a) = (table.both as f64, table.only_a as f64);
    let (only_b, neither) = (table.only_b as f64, table.neither as f64);
    let right_a = table.both + table.only_a;
    let right_b = table.both + table.only_b;
    let wilson_a = wilson(right_a, table.n(), level)?;
    let wilson_b = wilson(right_b, table.n(), level)?;
    let (p_a, p_b) = (right_a as f64 / n, right_b as f64 / n);
    let margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither);
    let phi = if margins == 0.0 {
        0.0
    } else {
        let cross = both * neither - only_a * only_b;
        let corrected = if cross > 0.0 { (cross - n / 2.0).max(0.0) } else { cross };
        corrected / margins.sqrt()
    };
    let combine = |u: f64, v: f64| (u * u - 2.0 * phi * u * v + v * v).max(0.0).sqrt();
    let delta = table.delta();
    let lo = delta - combine(p_a - wilson_a.lo, wilson_b.hi - p_b);
    let hi = delta + combine(wilson_a.hi - p_a, p_b - wilson_b.lo);
    Ok(Interval { lo: lo.max(-1.0), hi: hi.min(1.0), level })
}

/// Wald standard error of A − B, √[b+c−(b−c)²/n]/n. Reference only. `None` without items.
///
/// 0 without discordant pairs, which is why it must not be used for small samples.
pub fn wald_se(table: &PairedTable) -> Option<f64> {
    let n = table.n() as f64;
    let net = table.only_a as f64 - table.only_b as f64;
    (table.n() > 0).then(|| (table.n_discordant() as f64 - net * net / n).max(0.0).sqrt() / n)
}

/// Wald interval of A − B, not clipped. For comparison with other tools; never a default.
///
/// # Errors
/// Empty table, or `level` outside (0, 1).
pub fn wald_interval(table: &PairedTable, level: f64) -> Result<Interval> {
    table.check(level)?;
    let half = normal_two_sided(level) * wald_se(table).unwrap_or(f64::INFINITY);
    let delta = table.delta();
    Ok(Interval { lo: delta - half, hi: delta + half, level })
}

/// Verdict of [`non_inferiority`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct NonInferiority {
    /// Accuracy of candidate A minus reference B.
    pub difference: f64,
    /// One-sided lower confidence limit of the difference, at level 1 − α.
    pub lower_limit: f64,
    /// The margin δ > 0 it was judged against.
    pub margin: f64,
    /// Whether `lower_limit > −margin`. False is "not shown", never "inferior".
    pub non_inferior: bool,
}

/// Is candidate A no more than `margin` worse than reference B?
///
/// Lower end of the two-sided (1 − 2α) [`tango_interval`], against −margin. Declare the margin
/// before looking. `alpha` in (0, ½) is one-sided, `margin` in (0, 1] is in units of accuracy.
///
/// # Errors
/// Empty table, `alpha` or `margin` out of range.
pub fn non_inferiority(table: &PairedTable, margin: f64, alpha: f64) -> Result<NonInferiority> {
    let interval = one_sided_interval(table, margin, alpha)?;
    Ok(NonInferiority {
        difference: table.delta(),
        lower_limit: interval.lo,
        margin,
        non_inferior: interval.lo > -margin,
    })
}

fn one_sided_interval(table: &PairedTable, margin: f64, alpha: f64) -> Result<Interval> {
    check_range("margin", margin, margin > 0.0 && margin <= 1.0, "(0, 1]")?;
    check_range("alpha", alpha, alpha > 0.0 && alpha < 0.5, "(0, 0.5)")?;
    tango_interval(table, 1.0 - 2.0 * alpha)
}

/// Verdict of [`equivalence`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Equivalence {
    /// The two-sided (1 − 2α) Tango interval of A − B.
    pub interval: Interval,
    /// max of the two one-sided score p-values, in [0, 1]; below α exactly when `equivalent`.
    pub p: f64,
    /// Whether the interval lies strictly inside (−margin, margin).
    pub equivalent: bool,
}

/// Two one-sided tests (Schuirmann 1987): do A and B differ by less than `margin`?
///
/// # Errors
/// As [`non_inferiority`].
pub fn equivalence(table: &PairedTable, margin: f64, alpha: f64) -> Result<Equivalence> {
    let interval = one_sided_interval(table, margin, alpha)?;
    let p = score_p(table, -margin).max(score_p(&swapped(table), -margin));
    let equivalent = interval.lo > -margin && interval.hi < margin;
    Ok(Equivalence { interval, p, equivalent })
}

/// One-sided score p-value of H₀: Δ ≤ x.
fn score_p(table: &PairedTable, x: f64) -> f64 {
    let (b, c, n) = (table.only_a as f64, table.only_b as f64, table.n() as f64);
    let excess = b - c - n * x;
    let variance = tango_variance(b, c, n, x);
    if excess == 0.0 {
        // The variance may be 0 as well (all items flipped, x = ±1); the limit is one half.
        return 0.5;
    }
    normal_sf(excess / variance.sqrt())
}

fn swapped(table: &PairedTable) -> PairedTable {
    PairedTable { only_a: table.only_b, only_b: table.only_a, ..*table }
}
