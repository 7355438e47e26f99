//! Carries a plan out: every call logged before it is made and before anyone is told of its end.

mod calls;
mod lanes;

use std::collections::HashMap;
use std::path::Path;
use std::thread;

use weighbridge_core::{Error, ErrorKind, Outcome, Result};

use crate::plan::Plan;
use crate::record::ObservationRecord;
use crate::runlog::{
    Digest, RunLogError, RunLogErrorKind, RunLogReader, RunLogWriter, RunRecord, RunState,
    WriterOptions, call_key,
};

/// The folder of the run log inside a run's folder.
pub const LOG_DIR: &str = "log";

/// One cell of the run: which arm was asked about which row, and for the how-manieth time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    /// Index into [`Plan::arms`].
    pub arm_idx: usize,
    /// Index into the dataset's rows.
    pub row_idx: usize,
    /// Repeat, from 0.
    pub repeat: u32,
}

/// What happens while a run goes on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum RunEvent<'a> {
    /// A candidate's calls begin; some may be finished by an earlier process.
    ArmStarted {
        /// The candidate.
        name: &'a str,
        /// Calls finished already.
        n_done: usize,
        /// All calls.
        n_total: usize,
    },
    /// A call ended and its outcome is on disk.
    CallEnded {
        /// The candidate.
        name: &'a str,
        /// How.
        outcome: Outcome,
    },
    /// A candidate's remaining calls are not made.
    ArmStopped {
        /// The candidate.
        name: &'a str,
        /// Why, and what helps.
        why: &'a str,
    },
    /// A candidate's calls are through.
    ArmEnded {
        /// The candidate.
        name: &'a str,
    },
}

/// Is told what happens, on the run's own thread.
pub trait Observer: Sync {
    /// One event, in order per candidate.
    fn event(&self, event: RunEvent<'_>);
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn event(&self, _: RunEvent<'_>) {}
}

/// Everything that was observed.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RunResult {
    /// One record per finished call.
    pub observations: HashMap<CallId, ObservationRecord>,
    /// Candidates whose calls were broken off, and why.
    pub stopped: Vec<(String, String)>,
    /// USD spent as far as prices and counts are known.
    pub spent_usd: f64,
    /// USD that calls without a known end may have cost.
    pub maybe_spent_usd: f64,
    /// Calls that were begun and whose end was never seen.
    pub n_unknown: usize,
    /// Root over the run log's records, lower-case hex, once it is sealed.
    pub log_root: Option<String>,
    /// When the run was created, as its first process wrote it.
    pub created: String,
}

/// How a run begins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Start {
    /// In an empty folder.
    New {
        /// The time, as it is to stand in the record.
        created: String,
    },
    /// In the folder of a run that was broken off.
    Resume {
        /// Whether a call whose end was never seen is made again, though it may have been billed.
        resend: bool,
        /// The time for the record, should the earlier process have died before it wrote one.
        created: String,
    },
}

/// Runs the plan in `dir`, blocking this thread. May be called from anywhere, also from inside an
/// async runtime's blocking pool: it brings its own.
///
/// # Errors
/// If the log cannot be written, or a resume does not fit the log. A failed call is not an error:
/// it is an observation.
pub fn run(plan: &Plan, dir: &Path, start: &Start, observer: &dyn Observer) -> Result<RunResult> {
    let log_dir = dir.join(LOG_DIR);
    std::fs::create_dir_all(dir).map_err(|e| {
        Error::new(ErrorKind::Io, format!("cannot create the run folder {}", dir.display()))
            .with_source(e)
    })?;
    let hash = plan.configuration_hash();
    let opened = match start {
        Start::New { created } => create(&log_dir, dir, plan, hash, created)?,
        Start::Resume { resend, created } => match reopen(&log_dir, dir, plan, &hash, *resend)? {
            Some(opened) => opened,
            None => create(&log_dir, dir, plan, hash, created)?,
        },
    };
    let mut result = RunResult { created: opened.created.clone(), ..RunResult::default() };
    replay(plan, &hash, &opened, &log_dir, dir, &mut result)?;
    let Some(writer) = opened.writer else {
        // Sealed: every call has its outcome, nothing is left to do.
        return Ok(result);
    };
    // The runner needs timers and nothing else of a runtime; its own thread keeps it out of the
    // caller's.
    let result = thread::scope(|scope| {
        let thread = thread::Builder::new().name("weighbridge-run".to_owned());
        let handle = thread
            .spawn_scoped(scope, || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().build()?;
                Ok(runtime.block_on(lanes::run(
                    plan,
                    &hash,
                    &writer,
                    &opened.state,
                    opened.resend,
                    result,
                    observer,
                )))
            })
            .map_err(|e| {
                Error::new(ErrorKind::Io, "cannot start the run's thread").with_source(e)
            })?;
        match handle.join() {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => {
                let e: std::io::Error = e;
                Err(Error::new(ErrorKind::Io, "cannot start the run's timers").with_source(e))
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    let mut result = result.map_err(|e| match writer.failure() {
        Some(failure) => log_error(&failure, dir),
        None => e,
    })?;
    if result.stopped.is_empty() {
        let sealed = writer.seal().wait().map_err(|e| log_error(&e, dir))?;
        result.log_root = Some(sealed.root.to_string());
    }
    writer.close().map_err(|e| log_error(&e, dir))?;
    Ok(result)
}

struct Opened {
    writer: Option<RunLogWriter>,
    state: RunState,
    resend: bool,
    created: String,
}

fn create(log_dir: &Path, dir: &Path, plan: &Plan, hash: Digest, created: &str) -> Result<Opened> {
    let configuration = plan.configuration.to_string();
    let record = RunRecord {
        schema: crate::runlog::PAYLOAD_SCHEMA,
        tool_version: concat!("weighbridge ", env!("CARGO_PKG_VERSION")).to_owned(),
        configuration_hash: hash,
        configuration_digest: Digest::of(configuration.as_bytes()),
        created: created.to_owned(),
    };
    let options = WriterOptions::default();
    let writer = RunLogWriter::create(log_dir, record, configuration.into_bytes(), options)
        .map_err(|e| log_error(&e, dir))?;
    let state = RunState::default();
    Ok(Opened { writer: Some(writer), state, resend: true, created: created.to_owned() })
}

/// Opens the log of an earlier process; `None` if that died before it had written anything.
fn reopen(
    log_dir: &Path,
    dir: &Path,
    plan: &Plan,
    hash: &Digest,
    resend: bool,
) -> Result<Option<Opened>> {
    let reader = RunLogReader::open(log_dir).map_err(|e| log_error(&e, dir))?;
    let Some(run) = reader.state().run().cloned() else {
        return match reader.damage() {
            Some(damage) if !damage.torn_tail => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("the run log of {} is damaged from its first record on", dir.display()),
            )),
            _ => Ok(None),
        };
    };
    if run.configuration_hash != *hash {
        let old = reader
            .blob(&run.configuration_digest)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let mut changed = Vec::new();
        differences("", &old, &plan.configuration, &mut changed);
        changed.truncate(8);
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "cannot resume {}: suite, data, models or program changed since ({}); undo the \
                 change, or start a new run",
                dir.display(),
                changed.join("; ")
            ),
        ));
    }
    let created = run.created;
    if reader.state().seal().is_some() && reader.damage().is_none() {
        let state = reader.state().clone();
        return Ok(Some(Opened { writer: None, state, resend, created }));
    }
    drop(reader);
    let (writer, state) = RunLogWriter::resume(log_dir, Some(hash), WriterOptions::default())
        .map_err(|e| log_error(&e, dir))?;
    Ok(Some(Opened { writer: Some(writer), state, resend, created }))
}

/// The paths at which two configurations differ, with both values.
fn differences(
    path: &str,
    old: &serde_json::Value,
    new: &serde_json::Value,
    out: &mut Vec<String>,
) {
    use serde_json::Value;
    if old == new {
        return;
    }
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let mut keys: Vec<_> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let null = &Value::Null;
            differences(&path, a.get(key).unwrap_or(null), b.get(key).unwrap_or(null), out);
        }
        return;
    }
    if let (Value::Array(a), Value::Array(b)) = (old, new)
        && a.len() == b.len()
    {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            differences(&format!("{path}[{i}]"), a, b, out);
        }
        return;
    }
    let short = |v: &Value| v.to_string().chars().take(60).collect::<String>();
    out.push(format!("{path}: {} → {}", short(old), short(new)));
}

/// Fills in what earlier processes observed.
fn replay(
    plan: &Plan,
    hash: &Digest,
    opened: &Opened,
    log_dir: &Path,
    dir: &Path,
    result: &mut RunResult,
) -> Result<()> {
    result.spent_usd = opened.state.known_cost_usd();
    result.maybe_spent_usd = opened.state.unknown_cost_cap_usd();
    if opened.state.n_outcomes() == 0 {
        return Ok(());
    }
    let reader = RunLogReader::open(log_dir).map_err(|e| log_error(&e, dir))?;
    result.log_root = opened.state.seal().map(|seal| seal.root.to_string());
    for id in all_calls(plan) {
        let key = key_of(plan, hash, id);
        let Some(outcome) = lanes::settled(&opened.state, &key, plan.suite.run.max_attempts) else {
            continue;
        };
        let body = reader.blob(&outcome.observation_digest).map_err(|e| log_error(&e, dir))?;
        let record: ObservationRecord = serde_json::from_slice(&body).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, "an observation in the run log cannot be read")
                .with("digest", outcome.observation_digest)
                .with_source(e)
        })?;
        result.observations.insert(id, record);
    }
    Ok(())
}

/// Every cell of the run.
pub(crate) fn all_calls(plan: &Plan) -> impl Iterator<Item = CallId> {
    let (n_arms, n_rows, n_repeats) =
        (plan.arms.len(), plan.dataset.rows.len(), plan.suite.run.repeats);
    (0..n_arms).flat_map(move |arm_idx| {
        (0..n_rows).flat_map(move |row_idx| {
            (0..n_repeats).map(move |repeat| CallId { arm_idx, row_idx, repeat })
        })
    })
}

pub(crate) fn key_of(plan: &Plan, hash: &Digest, id: CallId) -> Digest {
    let sample = &plan.dataset.rows[id.row_idx].sample.id;
    call_key(hash, sample, &plan.arms[id.arm_idx].candidate.name, id.repeat)
}

pub(crate) fn log_error(error: &RunLogError, dir: &Path) -> Error {
    let kind = match error.kind() {
        RunLogErrorKind::Io
        | RunLogErrorKind::DiskFull { .. }
        | RunLogErrorKind::Poisoned { .. } => ErrorKind::Io,
        _ => ErrorKind::InvalidInput,
    };
    Error::new(kind, format!("run log of {}: {error}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_changed_configuration_is_named_by_path() {
        let mut out = Vec::new();
        let old = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        let new = json!({"a": {"b": 2, "c": [1, 3]}, "e": 1});
        differences("", &old, &new, &mut out);
        assert_eq!(out, ["a.b: 1 → 2", "a.c[1]: 2 → 3", "d: 1 → null", "e: null → 1"]);
    }
}
