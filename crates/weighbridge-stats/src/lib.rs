#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod random;
mod root;
mod special;

pub mod eprocess;
pub mod mean;
pub mod missing;
pub mod multiplicity;
pub mod paired;
pub mod permutation;
pub mod power;
pub mod proportion;
pub mod quantile;
pub mod ratio;

pub use error::{Result, StatsError};
pub use paired::PairedTable;

/// A two-sided interval `[lo, hi]` and the confidence level it was built for.
///
/// Units are those of the estimate. `level` is in (0, 1), e.g. 0.95.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower limit.
    pub lo: f64,
    /// Upper limit, at least `lo`.
    pub hi: f64,
    /// Nominal two-sided confidence level, in (0, 1).
    pub level: f64,
}

impl Interval {
    /// `hi − lo`, in the unit of the estimate.
    pub fn width(&self) -> f64 {
        self.hi - self.lo
    }

    /// Whether `value` lies in the closed interval. False for NaN.
    pub fn contains(&self, value: f64) -> bool {
        self.lo <= value && value <= self.hi
    }
}
