//! The crate's one error type, and the input checks that raise it.

use std::fmt;

/// Input for which no statistic is defined. Names the argument, its value and the limit.
///
/// A legitimate "undefined" (one cluster, no discordant pair) is an `Option`, not an error.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum StatsError {
    /// Fewer observations than the method needs.
    TooFew {
        /// Argument.
        name: &'static str,
        /// Observations given.
        got: usize,
        /// Observations needed.
        need: usize,
    },
    /// A number outside its range, NaN included.
    OutOfRange {
        /// Argument.
        name: &'static str,
        /// Value given.
        value: f64,
        /// Permitted range, in words.
        range: &'static str,
    },
    /// An element that is NaN or infinite.
    NotFinite {
        /// Argument.
        name: &'static str,
        /// Position of the first offender.
        index: usize,
    },
    /// Two slices that must be parallel are not.
    LengthMismatch {
        /// The second argument.
        name: &'static str,
        /// Its length.
        got: usize,
        /// Length of the first argument.
        want: usize,
    },
    /// A count above its total.
    CountExceeds {
        /// Argument.
        name: &'static str,
        /// Count given.
        got: u64,
        /// Largest permitted count.
        limit: u64,
    },
}

/// Result with [`StatsError`].
pub type Result<T> = std::result::Result<T, StatsError>;

impl fmt::Display for StatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooFew { name, got, need } => {
                write!(f, "{name} holds {got} observations, at least {need} needed")
            }
            Self::OutOfRange { name, value, range } => {
                write!(f, "{name} = {value} is outside {range}")
            }
            Self::NotFinite { name, index } => {
                write!(f, "{name}[{index}] is not finite; record missing scores as missing")
            }
            Self::LengthMismatch { name, got, want } => {
                write!(f, "{name} has length {got}, expected {want}")
            }
            Self::CountExceeds { name, got, limit } => {
                write!(f, "{name} = {got} exceeds {limit}")
            }
        }
    }
}

impl std::error::Error for StatsError {}

/// Fails unless `value` is strictly between 0 and 1. NaN fails.
pub(crate) fn check_unit_open(name: &'static str, value: f64) -> Result<()> {
    check_range(name, value, value > 0.0 && value < 1.0, "(0, 1)")
}

/// Fails unless `ok`; the caller writes `ok` so that NaN makes it false.
pub(crate) fn check_range(
    name: &'static str,
    value: f64,
    ok: bool,
    range: &'static str,
) -> Result<()> {
    if ok { Ok(()) } else { Err(StatsError::OutOfRange { name, value, range }) }
}

/// Fails if fewer than `need` elements, or any that is not finite.
pub(crate) fn check_values(name: &'static str, values: &[f64], need: usize) -> Result<()> {
    if values.len() < need {
        return Err(StatsError::TooFew { name, got: values.len(), need });
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(StatsError::NotFinite { name, index }),
        None => Ok(()),
    }
}

/// Fails unless the second slice is as long as the first.
pub(crate) fn check_same_len(name: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(StatsError::LengthMismatch { name, got, want }) }
}
