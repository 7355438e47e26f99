//! Special functions: the one module that knows where they come from.
//!
//! `erfc` and `lgamma` are libm's. The incomplete beta function is written here because the
//! libraries tried (statrs 0.19, puruspe 0.4, special 0.14) take its prefix from a difference of
//! log-gammas, which loses digits in proportion to n (puruspe also lost the lower tail, 1e-25, at
//! n = 1,000), and their inverses cannot be told the upper tail. The prefix below is Loader's
//! saddle-point form, so nothing large cancels at n = 10⁶; tails are carried as logarithms, so a
//! p-value of 1e-300 stays one.

use crate::root::brent;
use std::f64::consts::{LN_2, PI, SQRT_2};

/// Upper tail of the standard normal, P(Z > z).
pub(crate) fn normal_sf(z: f64) -> f64 {
    0.5 * libm::erfc(z / SQRT_2)
}

/// Φ(z).
pub(crate) fn normal_cdf(z: f64) -> f64 {
    normal_sf(-z)
}

/// z with P(Z > z) = q, for q in (0, 1).
///
/// Start: Abramowitz–Stegun 26.2.23. Then Newton on ln P(Z > z), which converges in either tail.
pub(crate) fn normal_isf(q: f64) -> f64 {
    if q > 0.5 {
        return -normal_isf(1.0 - q);
    }
    let t = (-2.0 * q.ln()).sqrt();
    let mut z = t
        - (2.515517 + t * (0.802853 + t * 0.010328))
            / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    for _ in 0..20 {
        let sf = normal_sf(z);
        let density = (-0.5 * z * z).exp() / (2.0 * PI).sqrt();
        let step = (sf / q).ln() * sf / density;
        if !step.is_finite() {
            break;
        }
        z += step;
        if step.abs() <= 1e-15 * z.abs().max(1e-3) {
            break;
        }
    }
    z
}

/// z such that P(|Z| > z) = 1 − level.
pub(crate) fn normal_two_sided(level: f64) -> f64 {
    normal_isf(0.5 * (1.0 - level))
}

/// Error of Stirling's formula, lnΓ(z) − [(z−½)ln z − z + ½ln 2π], z > 0 (Loader 2000).
fn stirling_error(z: f64) -> f64 {
    if z < 15.0 {
        return libm::lgamma(z) - ((z - 0.5) * z.ln() - z + 0.5 * (2.0 * PI).ln());
    }
    let w = 1.0 / (z * z);
    let tail = 1.0 / 1680.0 - w * (1.0 / 1188.0 - w * (691.0 / 360_360.0 - w / 156.0));
    (1.0 / 12.0 - w * (1.0 / 360.0 - w * (1.0 / 1260.0 - w * tail))) / z
}

/// Deviance part x·ln(x/m) + m − x without cancellation (Loader 2000, `bd0`).
fn deviance(x: f64, m: f64) -> f64 {
    let diff = x - m;
    if diff.abs() >= 0.1 * (x + m) {
        return x * (x / m).ln() - diff;
    }
    let v = diff / (x + m);
    let mut sum = diff * v;
    let mut term = 2.0 * x * v;
    for j in 1..1000 {
        term *= v * v;
        let next = sum + term / f64::from(2 * j + 1);
        if next == sum {
            break;
        }
        sum = next;
    }
    sum
}

/// ln B(a, b), a, b > 0.
pub(crate) fn ln_beta(a: f64, b: f64) -> f64 {
    let n = a + b;
    let ratios = a * -(b / a).ln_1p() + b * -(a / b).ln_1p();
    0.5 * (2.0 * PI * (1.0 / a + 1.0 / b)).ln() + stirling_error(a) + stirling_error(b)
        - stirling_error(n)
        + ratios
}

/// ln of the two tails of the regularised incomplete beta function, (ln I_x(a,b), ln I_y(b,a)),
/// y = 1 − x given separately so that neither end loses digits. a, b > 0; x, y in [0, 1].
pub(crate) fn ln_beta_tails(a: f64, b: f64, x: f64, y: f64) -> (f64, f64) {
    if x <= 0.0 {
        return (f64::NEG_INFINITY, 0.0);
    }
    if y <= 0.0 {
        return (0.0, f64::NEG_INFINITY);
    }
    let n = a + b;
    // x^a y^b / B(a, b)
    let ln_prefix = 0.5 * (a / n * b / (2.0 * PI)).ln() + stirling_error(n)
        - stirling_error(a)
        - stirling_error(b)
        - deviance(a, n * x)
        - deviance(b, n * y);
    if x < (a + 1.0) / (n + 2.0) {
        let lower = (ln_prefix + (beta_fraction(a, b, x) / a).ln()).min(0.0);
        (lower, ln_one_minus_exp(lower))
    } else {
        let upper = (ln_prefix + (beta_fraction(b, a, y) / b).ln()).min(0.0);
        (ln_one_minus_exp(upper), upper)
    }
}

/// ln(1 − e^v), v ≤ 0.
fn ln_one_minus_exp(v: f64) -> f64 {
    if v > -LN_2 { (-v.exp_m1()).ln() } else { (-v.exp()).ln_1p() }
}

/// Continued fraction DLMF 8.17.22, by the modified Lentz method.
fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let guard = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut h = d;
    for m in 1..200_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / guard(1.0 + even * d);
        c = guard(1.0 + even / c);
        h *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / guard(1.0 + odd * d);
        c = guard(1.0 + odd / c);
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-16 {
            break;
        }
    }
    h
}

/// x with I_x(a, b) = p (`upper` false), or with I_{1−x}(b, a) = p (`upper` true); p in (0, 1).
///
/// Solved in logit x and log tail, so both ends keep their relative precision.
pub(crate) fn beta_quantile(p: f64, a: f64, b: f64, upper: bool) -> f64 {
    let logistic = |u: f64| (1.0 / (1.0 + (-u).exp()), 1.0 / (1.0 + u.exp()));
    // Compare in whichever tail is below one half: near 1 its logarithm carries no digits.
    let (p, upper) = if p > 0.5 { (1.0 - p, !upper) } else { (p, upper) };
    let ln_p = p.ln();
    let u = brent(-700.0, 700.0, |u| {
        let (x, y) = logistic(u);
        let (lower_tail, upper_tail) = ln_beta_tails(a, b, x, y);
        if upper { ln_p - upper_tail } else { lower_tail - ln_p }
    });
    logistic(u).0
}

/// ln P(X ≤ k), ln P(X > k) for X ~ Bin(n, p), p in (0, 1).
pub(crate) fn ln_binomial_tails(k: u64, n: u64, p: f64) -> (f64, f64) {
    if k >= n {
        return (0.0, f64::NEG_INFINITY);
    }
    let (upper, lower) = ln_beta_tails(k as f64 + 1.0, (n - k) as f64, p, 1.0 - p);
    (lower, upper)
}

/// P(X ≤ k).
pub(crate) fn binomial_cdf(k: u64, n: u64, p: f64) -> f64 {
    ln_binomial_tails(k, n, p).0.exp()
}

/// P(X = k) (Loader 2000), p in (0, 1), k ≤ n.
pub(crate) fn binomial_pmf(k: u64, n: u64, p: f64) -> f64 {
    let (kf, nf) = (k as f64, n as f64);
    if k == 0 {
        return (nf * (-p).ln_1p()).exp();
    }
    if k == n {
        return (nf * p.ln()).exp();
    }
    let m = nf - kf;
    let ln_mass = 0.5 * (nf / (2.0 * PI * kf * m)).ln() + stirling_error(nf)
        - stirling_error(kf)
        - stirling_error(m)
        - deviance(kf, nf * p)
        - deviance(m, nf * (1.0 - p));
    ln_mass.exp()
}

/// Smallest k with P(X ≤ k) ≥ q.
pub(crate) fn binomial_quantile(q: f64, n: u64, p: f64) -> u64 {
    let (mut lo, mut hi) = (0, n);
    while lo < hi {
        let mid = lo + (hi - lo) / 2;
        // One rounding error must not move a rank where the cdf equals q by construction.
        if binomial_cdf(mid, n, p) >= q * (1.0 - 8.0 * f64::EPSILON) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    lo
}

/// P(|T| > |t|) for Student's t with `df` > 0 degrees of freedom.
pub(crate) fn t_two_sided_p(t: f64, df: f64) -> f64 {
    let s = t * t / df;
    if s.is_infinite() {
        return 0.0;
    }
    ln_beta_tails(0.5 * df, 0.5, 1.0 / (1.0 + s), s / (1.0 + s)).0.exp()
}

/// t with P(|T| > t) = 1 − level. From the beta quantile: x = df/(df + t²).
pub(crate) fn t_two_sided(level: f64, df: f64) -> f64 {
    // Solve for y = t²/(df + t²) ~ Beta(½, df/2): it stays small where df is large.
    let y = beta_quantile(1.0 - level, 0.5, 0.5 * df, true);
    let x = beta_quantile(1.0 - level, 0.5 * df, 0.5, false);
    (df * y / x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64, tol: f64) {
        assert!(((got - want) / want).abs() <= tol, "got {got:e}, want {want:e}");
    }

    #[test]
    fn t_matches_closed_forms() {
        for level in [0.5, 0.8, 0.9, 0.95, 0.99, 0.999] {
            let q = 0.5 + level / 2.0;
            close(t_two_sided(level, 1.0), (PI * (q - 0.5)).tan(), 1e-11);
            close(t_two_sided(level, 2.0), (2.0 * q - 1.0) / (2.0 * q * (1.0 - q)).sqrt(), 1e-11);
        }
    }

    #[test]
    fn far_tails_survive() {
        // 2^-1000 and its neighbour are exact references.
        close(binomial_cdf(0, 1000, 0.5), 2f64.powi(-1000), 1e-12);
        close(binomial_cdf(1, 1000, 0.5), 1001.0 * 2f64.powi(-1000), 1e-12);
        close(binomial_pmf(500, 1000, 0.5), 0.025225018178360802, 1e-13);
        close(normal_sf(37.0), 5.725571222524577e-300, 1e-12);
        close(normal_isf(5.725571222524577e-300), 37.0, 1e-13);
        assert!(normal_isf(0.5).abs() < 1e-15);
    }

    #[test]
    fn beta_quantile_inverts_in_both_tails() {
        for (a, b) in [(0.5, 20.5), (3.0, 8.0), (82.0, 182.0), (5e5, 5.1e5), (1.0, 1e6)] {
            for p in [1e-12, 1e-4, 0.025, 0.3, 0.7, 0.975] {
                for upper in [false, true] {
                    let x = beta_quantile(p, a, b, upper);
                    let (lower, above) = ln_beta_tails(a, b, x, 1.0 - x);
                    close((if upper { above } else { lower }).exp(), p, 1e-8);
                }
            }
        }
    }
}
