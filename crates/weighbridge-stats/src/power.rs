//! Planning: how many items, and what a given number can show.
//!
//! α is two-sided unless a name says otherwise; power is 1 − β. Sizes are returned unrounded;
//! round up. All are normal approximations.

use crate::error::{Result, StatsError, check_range, check_unit_open};
use crate::root::brent;
use crate::special::{normal_cdf, normal_isf};

/// α and power of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    alpha: f64,
    power: f64,
}

impl Plan {
    /// `alpha` in (0, 1), `power` in [½, 1).
    ///
    /// # Errors
    /// Either out of range.
    pub fn new(alpha: f64, power: f64) -> Result<Self> {
        check_unit_open("alpha", alpha)?;
        check_range("power", power, (0.5..1.0).contains(&power), "[0.5, 1)")?;
        Ok(Self { alpha, power })
    }

    /// Significance level.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Wanted probability of success.
    pub fn power(&self) -> f64 {
        self.power
    }

    fn z_two_sided(&self) -> f64 {
        normal_isf(0.5 * self.alpha)
    }

    fn z_one_sided(&self) -> f64 {
        normal_isf(self.alpha)
    }

    fn z_power(&self) -> f64 {
        normal_isf(1.0 - self.power)
    }
}

fn check_discordance(discordance: f64) -> Result<()> {
    check_range("discordance", discordance, discordance > 0.0 && discordance <= 1.0, "(0, 1]")
}

/// A difference cannot exceed the discordant rate that produces it.
fn check_difference(name: &'static str, difference: f64, discordance: f64) -> Result<()> {
    check_discordance(discordance)?;
    let ok = difference.abs() <= discordance;
    check_range(name, difference, ok, "[-discordance, discordance]")
}

fn check_n(n: u64) -> Result<()> {
    if n == 0 { Err(StatsError::TooFew { name: "n", got: 0, need: 1 }) } else { Ok(()) }
}

/// Items for McNemar's test to find `difference` ≠ 0 (Connor 1987), not rounded:
/// [z_{α/2}√ψ + z_β√(ψ−δ²)]²/δ², ψ = `discordance`, the expected share of flips.
///
/// # Errors
/// `difference` 0 or above `discordance` in size, `discordance` outside (0, 1].
pub fn mcnemar_sample_size(discordance: f64, difference: f64, plan: Plan) -> Result<f64> {
    check_difference("difference", difference, discordance)?;
    check_range("difference", difference, difference != 0.0, "nonzero differences")?;
    Ok(connor(discordance, difference, plan))
}

fn connor(psi: f64, delta: f64, plan: Plan) -> f64 {
    let spread = (psi - delta * delta).max(0.0).sqrt();
    let root = plan.z_two_sided() * psi.sqrt() + plan.z_power() * spread;
    root * root / (delta * delta)
}

/// Power of McNemar's test on `n` items: Φ[(|δ|√n − z_{α/2}√ψ)/√(ψ−δ²)], Connor's formula
/// solved for power. In [0, 1]; ignores the opposite rejection region (α/2 at δ = 0).
///
/// # Errors
/// `n = 0`, or arguments outside the ranges of [`mcnemar_sample_size`].
pub fn mcnemar_power(n: u64, discordance: f64, difference: f64, alpha: f64) -> Result<f64> {
    check_n(n)?;
    check_unit_open("alpha", alpha)?;
    check_difference("difference", difference, discordance)?;
    let excess =
        difference.abs() * (n as f64).sqrt() - normal_isf(0.5 * alpha) * discordance.sqrt();
    let spread = (discordance - difference * difference).max(0.0).sqrt();
    if spread == 0.0 {
        // Every item flips the same way: the statistic does not vary.
        return Ok(if excess >= 0.0 { 1.0 } else { 0.0 });
    }
    Ok(normal_cdf(excess / spread))
}

/// Smallest difference that McNemar's test on `n` items finds with the plan's power, in
/// (0, discordance]: the root of Connor's formula in δ.
///
/// `None` if even δ = ψ (every flip the same way) needs more items. Print it beside every
/// non-significant result.
///
/// # Errors
/// `n = 0`, or `discordance` outside (0, 1].
pub fn mcnemar_mde(n: u64, discordance: f64, plan: Plan) -> Result<Option<f64>> {
    check_n(n)?;
    check_discordance(discordance)?;
    let n = n as f64;
    if connor(discordance, discordance, plan) > n {
        return Ok(None);
    }
    // n·δ² is finite at δ = 0, where Connor's n is not.
    let gap = |delta: f64| {
        let spread = (discordance - delta * delta).max(0.0).sqrt();
        delta * n.sqrt() - plan.z_two_sided() * discordance.sqrt() - plan.z_power() * spread
    };
    Ok(Some(brent(0.0, discordance, gap)))
}

/// Items so that "A is at most `margin` worse" succeeds when the true difference is
/// `difference`, not rounded: (z_α + z_β)²(ψ − d²)/(d + δ)², one-sided α, d = `difference`
/// (A − B), δ = `margin`, ψ − d² the variance of one item's difference.
///
/// # Errors
/// `margin` outside (0, 1], `difference` ≤ −`margin` (nothing to show), `discordance` outside
/// (0, 1] or below |difference|.
pub fn non_inferiority_sample_size(
    discordance: f64,
    difference: f64,
    margin: f64,
    plan: Plan,
) -> Result<f64> {
    check_range("margin", margin, margin > 0.0 && margin <= 1.0, "(0, 1]")?;
    check_difference("difference", difference, discordance)?;
    check_range("difference", difference, difference > -margin, "(-margin, 1]")?;
    let z = plan.z_one_sided() + plan.z_power();
    let gap = difference + margin;
    Ok(z * z * (discordance - difference * difference) / (gap * gap))
}

/// Variance of one item's paired difference of graded scores (Miller 2024, section 5).
///
/// Estimate the parts from a pilot, and print them as assumptions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedVariance {
    per_item: f64,
}

impl PairedVariance {
    /// `omega2`: variance over items of the difference of the two expected scores.
    /// Adds response noise with [`Self::with_responses`].
    ///
    /// # Errors
    /// Negative, infinite or NaN.
    pub fn new(omega2: f64) -> Result<Self> {
        check_variance("omega2", omega2)?;
        Ok(Self { per_item: omega2 })
    }

    /// Adds the response variance `sigma2` of one system, averaged over `k` repeats per item.
    /// Call once for A and once for B.
    ///
    /// # Errors
    /// `sigma2` negative, infinite or NaN; `k = 0`.
    pub fn with_responses(self, sigma2: f64, k: u64) -> Result<Self> {
        check_variance("sigma2", sigma2)?;
        if k == 0 {
            return Err(StatsError::TooFew { name: "k", got: 0, need: 1 });
        }
        Ok(Self { per_item: self.per_item + sigma2 / k as f64 })
    }
}

fn check_variance(name: &'static str, value: f64) -> Result<()> {
    check_range(name, value, value >= 0.0 && value.is_finite(), "[0, inf)")
}

/// Items to find a mean difference `delta` ≠ 0, not rounded:
/// (z_{α/2}+z_β)²(ω²+σ_A²/K_A+σ_B²/K_B)/δ² (Miller 2024).
///
/// # Errors
/// `delta` zero, infinite or NaN.
pub fn paired_mean_sample_size(variance: PairedVariance, delta: f64, plan: Plan) -> Result<f64> {
    check_range("delta", delta, delta.is_finite() && delta != 0.0, "nonzero finite numbers")?;
    let z = plan.z_two_sided() + plan.z_power();
    Ok(z * z * variance.per_item / (delta * delta))
}

/// Smallest mean difference found on `n` items with the plan's power, in the unit of the score:
/// (z_{α/2}+z_β)√[(ω²+σ_A²/K_A+σ_B²/K_B)/n] (Miller 2024).
///
/// # Errors
/// `n = 0`.
pub fn paired_mean_mde(variance: PairedVariance, n: u64, plan: Plan) -> Result<f64> {
    check_n(n)?;
    Ok((plan.z_two_sided() + plan.z_power()) * (variance.per_item / n as f64).sqrt())
}
