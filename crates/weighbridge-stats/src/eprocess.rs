//! Evidence that stays valid however often one looks: the paired e-process.

use crate::error::{Result, check_unit_open};
use crate::paired::PairedTable;
use crate::special::ln_beta;
use std::f64::consts::LN_2;

/// ln E after the discordant pairs seen so far: ln B(1+b, 1+c) + (b+c)·ln 2, b and c the pairs
/// only A and only B got right, in nats.
///
/// The mixture of likelihood ratios against ½ over a uniform rate; a martingale under equality,
/// so by Ville's inequality P(sup E ≥ 1/α) ≤ α at any number of looks. 0 (E = 1) without
/// discordant pairs; negative when the data favor equality. Multiply E across independent runs
/// (add the logarithms).
pub fn ln_e_value(table: &PairedTable) -> f64 {
    if table.n_discordant() == 0 {
        return 0.0;
    }
    let (b, c) = (table.only_a as f64, table.only_b as f64);
    ln_beta(1.0 + b, 1.0 + c) + (b + c) * LN_2
}

/// Anytime-valid p-value min(1, 1/E_max) from the largest ln E of all looks so far, in (0, 1].
///
/// May underflow to 0 beyond ln E ≈ 745; report ln E there. 1 for NaN.
pub fn anytime_p(max_ln_e: f64) -> f64 {
    (-max_ln_e.max(0.0)).exp()
}

/// Whether ln E reaches ln(1/α): equality may be rejected now, and sampling may stop.
///
/// # Errors
/// `alpha` outside (0, 1).
pub fn rejects(ln_e: f64, alpha: f64) -> Result<bool> {
    check_unit_open("alpha", alpha)?;
    Ok(ln_e >= -alpha.ln())
}
