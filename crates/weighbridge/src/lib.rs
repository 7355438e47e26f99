#![doc = include_str!("../README.md")]

pub mod compare;
pub mod data;
pub mod eval;
pub mod evaluators;
pub mod keys;
pub mod plan;
pub mod prompt;
pub mod record;
pub mod recorded;
pub mod report;
pub mod retry;
pub mod run;
pub mod runlog;
pub mod scoring;
pub mod suite;
pub mod verdict;

pub use eval::{Evaluation, evaluate, evaluate_suite};
pub use keys::Keys;
pub use plan::{Environment, Plan};
pub use retry::{RetryPolicy, Retrying};
pub use run::{Observer, RunEvent, Start, Unobserved};
pub use suite::Suite;
pub use weighbridge_core::*;
