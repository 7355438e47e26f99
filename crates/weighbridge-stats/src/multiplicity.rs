//! p-values adjusted for having asked many questions. Reject where the adjusted value is ≤ α.
//!
//! Results keep the order of the input, lie in [0, 1], and are empty for empty input.

use crate::error::{Result, check_range};

fn check(p_values: &[f64]) -> Result<()> {
    p_values.iter().try_for_each(|&p| check_range("p", p, (0.0..=1.0).contains(&p), "[0, 1]"))
}

/// Positions from the smallest p-value to the largest.
fn order(p_values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&i, &j| p_values[i].total_cmp(&p_values[j]));
    order
}

/// Bonferroni: m·p. Controls the family-wise error under any dependence.
///
/// # Errors
/// A p-value outside [0, 1].
pub fn bonferroni(p_values: &[f64]) -> Result<Vec<f64>> {
    check(p_values)?;
    Ok(p_values.iter().map(|p| (p * p_values.len() as f64).min(1.0)).collect())
}

/// Holm 1979: p₍ᵢ₎·(m−i+1), running maximum. As safe as Bonferroni and never weaker; for
/// confirmatory comparisons.
///
/// # Errors
/// A p-value outside [0, 1].
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>> {
    check(p_values)?;
    let m = p_values.len();
    let mut adjusted = vec![0.0; m];
    let mut running: f64 = 0.0;
    for (rank, i) in order(p_values).into_iter().enumerate() {
        running = running.max(p_values[i] * (m - rank) as f64).min(1.0);
        adjusted[i] = running;
    }
    Ok(adjusted)
}

/// Benjamini–Hochberg 1995: p₍ᵢ₎·m/i, running minimum from the top. False discovery rate under
/// independence or positive dependence; for exploratory slices.
///
/// # Errors
/// A p-value outside [0, 1].
pub fn benjamini_hochberg(p_values: &[f64]) -> Result<Vec<f64>> {
    step_up(p_values, 1.0)
}

/// Benjamini–Yekutieli 2001: BH × Σ1/i. False discovery rate under any dependence.
///
/// # Errors
/// A p-value outside [0, 1].
pub fn benjamini_yekutieli(p_values: &[f64]) -> Result<Vec<f64>> {
    step_up(p_values, (1..=p_values.len()).map(|i| 1.0 / i as f64).sum())
}

fn step_up(p_values: &[f64], factor: f64) -> Result<Vec<f64>> {
    check(p_values)?;
    let m = p_values.len() as f64;
    let mut adjusted = vec![0.0; p_values.len()];
    let mut running: f64 = 1.0;
    for (rank, i) in order(p_values).into_iter().enumerate().rev() {
        running = running.min(p_values[i] * factor * m / (rank + 1) as f64);
        adjusted[i] = running;
    }
    Ok(adjusted)
}
