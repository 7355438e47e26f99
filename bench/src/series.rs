//! Repeated measurements of one quantity, and the ratio of two that were taken in turns.

use serde_json::{Value, json};

/// Values of one quantity, in the order of the rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Series(Vec<f64>);

impl Series {
    /// Nothing measured yet.
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// Adds the value of the next round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle value, or the mean of the two middle ones. NaN if nothing was measured.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// The least value; NaN if nothing was measured.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The greatest value; NaN if nothing was measured.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// This over the other, round by round: what disturbs the machine for longer than a round
    /// disturbs both.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// Median, range and all values.
    pub fn to_json(&self) -> Value {
        json!({ "median": self.median(), "min": self.min(), "max": self.max(), "values": self.0 })
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_outliers_only_widen_the_spread() {
        let odd: Series = [3.0, 100.0, 1.0].into_iter().collect();
        assert_eq!((odd.median(), odd.min(), odd.max()), (3.0, 1.0, 100.0));
        let even: Series = [4.0, 1.0, 2.0, 100.0].into_iter().collect();
        assert_eq!(even.median(), 3.0);
        assert!(Series::empty().median().is_nan());
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let ours: Series = [10.0, 5.0].into_iter().collect();
        let peer: Series = [5.0, 2.5].into_iter().collect();
        assert_eq!(ours.over(&peer), [2.0, 2.0].into_iter().collect());
    }
}
