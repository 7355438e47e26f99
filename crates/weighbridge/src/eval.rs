//! From a suite to a report, in one call.

use std::path::{Path, PathBuf};

use weighbridge_core::{Error, ErrorKind, Result};

use crate::plan::{Environment, Plan};
use crate::report::{self, Report, SampleLine};
use crate::run::{self, Observer, Start, Unobserved};
use crate::suite::Suite;

/// A finished evaluation.
#[derive(Debug)]
#[non_exhaustive]
pub struct Evaluation {
    /// The report.
    pub report: Report,
    /// One line per sample.
    pub samples: Vec<SampleLine>,
    /// The run's folder: `report.html`, `report.json`, `samples.jsonl` and the run log.
    pub dir: PathBuf,
}

/// Carries a plan out in `dir` and writes the report there. Blocks this thread.
///
/// # Errors
/// If nothing could be observed at all, or a file cannot be written. Failed calls are observations.
pub fn evaluate(
    plan: &Plan,
    dir: &Path,
    start: &Start,
    observer: &dyn Observer,
) -> Result<Evaluation> {
    let result = run::run(plan, dir, start, observer)?;
    if !report::has_observations(&result.observations) {
        let why: Vec<_> =
            result.stopped.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        let why = if why.is_empty() { "every call failed".to_owned() } else { why.join("; ") };
        return Err(Error::new(
            ErrorKind::Engine,
            format!("no model answered, so there is no report: {why}"),
        )
        .with("run", dir.display()));
    }
    let (report, samples) = report::build(plan, &result);
    report::write_all(&report, &samples, dir)?;
    Ok(Evaluation { report, samples, dir: dir.to_owned() })
}

/// Reads a suite file, runs it in a new folder `dir`, and reports. For programs that need no more.
///
/// `created` is the time as it is to stand in the record; the library asks no clock.
///
/// # Errors
/// As [`Plan::prepare`] and [`evaluate`].
pub fn evaluate_suite(
    suite: Suite,
    environment: &Environment,
    dir: &Path,
    created: &str,
) -> Result<Evaluation> {
    let plan = Plan::prepare(suite, environment)?;
    evaluate(&plan, dir, &Start::New { created: created.to_owned() }, &Unobserved)
}
