//! What every bench shares: series and their ratios, the report, the machine.
#![allow(clippy::print_stdout)] // A program talks to its user.

pub mod machine;
pub mod report;
pub mod series;

/// A bench stops at the first thing that goes wrong, and says what it was.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
