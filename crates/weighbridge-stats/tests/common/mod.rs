//! What the test files share: comparison by tolerance, and a small generator.
#![allow(dead_code)]

use serde_json::Value;

/// Relative comparison, absolute below 1e-300 (where want is 0).
#[track_caller]
pub(crate) fn close(got: f64, want: f64, tol: f64) {
    let error = if want == 0.0 { got.abs() } else { ((got - want) / want).abs() };
    assert!(error <= tol, "got {got:e}, want {want:e}, error {error:.1e} > {tol:e}");
}

/// A number of a vector file.
#[track_caller]
pub(crate) fn num(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {v}"))
}

/// A count of a vector file.
#[track_caller]
pub(crate) fn int(v: &Value, key: &str) -> u64 {
    v[key].as_u64().unwrap_or_else(|| panic!("no count {key} in {v}"))
}

/// A list of numbers.
#[track_caller]
pub(crate) fn list(v: &Value) -> Vec<f64> {
    let items = v.as_array().expect("a list");
    items.iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn flip(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box–Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let r = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        r * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
