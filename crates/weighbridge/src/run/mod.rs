//! Carries a plan out: every call logged before it is made and before anyone is told of its end.

mod batch;
mod calls;
mod lanes;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::thread;

use weighbridge_core::{Error, ErrorKind, Outcome, Result};

use crate::plan::Plan;
use crate::record::ObservationRecord;
use crate::runlog::{
    CallState, Digest, NoteRecord, Placement, RunLogError, RunLogErrorKind, RunLogReader,
    RunLogWriter, RunRecord, RunState, WriterOptions, call_key,
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
    /// A batch job is at a vendor, handed in by this process or an earlier one.
    JobSubmitted {
        /// The candidate.
        name: &'a str,
        /// The vendor's id of the job.
        job_id: &'a str,
        /// Calls in it.
        n_calls: usize,
    },
    /// A vendor was asked how its batch job stands.
    JobPolled {
        /// The candidate.
        name: &'a str,
        /// The vendor's id of the job.
        job_id: &'a str,
        /// Calls that the vendor has finished, as far as it tells.
        n_done: u64,
        /// Calls in it.
        n_total: u64,
        /// When it is asked again.
        pause: std::time::Duration,
    },
    /// Something about a candidate that is worth knowing and stops nothing.
    Remark {
        /// The candidate.
        name: &'a str,
        /// In words.
        text: &'a str,
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
    /// One record per finished call. One that failed for want of a network, a key or money stands
    /// for now: a resume makes the call again.
    pub observations: HashMap<CallId, ObservationRecord>,
    /// Candidates whose calls were broken off, and why.
    pub stopped: Vec<(String, String)>,
    /// USD spent as far as prices and counts are known.
    pub spent_usd: f64,
    /// USD that calls without a known end may have cost.
    pub maybe_spent_usd: f64,
    /// Calls to other machines that were begun and whose end was never seen, also those that were
    /// then made again: each may have been billed.
    pub n_unknown: usize,
    /// Root over the run log's records, lower-case hex, once it is sealed; it is sealed when no
    /// call is left that a resume would make.
    pub log_root: Option<String>,
    /// What a resume found changed since the run was started, as `path: old → new`. None of it can
    /// change an answer or its score; a changed decision can still change the verdict.
    pub changed_since_start: Vec<String>,
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
    let mut result = RunResult {
        created: opened.created.clone(),
        changed_since_start: opened.changed.clone(),
        ..RunResult::default()
    };
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
    let unfinished: HashSet<usize> = all_calls(plan)
        .filter(|id| {
            let is_remote = plan.arms[id.arm_idx].card.placement.is_remote();
            let record = result.observations.get(id);
            !record.is_some_and(|record| calls::is_final(record, is_remote))
        })
        .map(|id| id.arm_idx)
        .collect();
    // Whatever stopped a candidate whose calls all have their end took nothing away.
    result
        .stopped
        .retain(|(name, _)| plan.arm_idx(name).is_some_and(|idx| unfinished.contains(&idx)));
    result.spent_usd = usd(result.spent_usd);
    result.maybe_spent_usd = usd(result.maybe_spent_usd);
    if unfinished.is_empty() {
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
    changed: Vec<String>,
}

/// The kind of the note that lists what a resume found changed.
const CHANGED_NOTE: &str = "configuration_changed";

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
    let (created, changed) = (created.to_owned(), Vec::new());
    Ok(Opened { writer: Some(writer), state, resend: true, created, changed })
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
        let old = stored_configuration(&reader, &run).unwrap_or_default();
        let mut changed = Vec::new();
        differences("", &old["identity"], &parsed(&plan.configuration)["identity"], &mut changed);
        changed.truncate(8);
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "cannot resume {}: suite, data or models changed since ({}); undo the \
                 change, or start a new run",
                dir.display(),
                changed.join("; ")
            ),
        ));
    }
    let mut old = stored_configuration(&reader, &run).map_err(|e| log_error(&e, dir))?;
    let mut new = parsed(&plan.configuration);
    for configuration in [&mut old, &mut new] {
        configuration["identity"] = serde_json::Value::Null;
    }
    let mut changed = Vec::new();
    differences("", &old, &new, &mut changed);
    let noted = noted_changes(reader.state());
    let is_noted = noted.last().map_or(changed.is_empty(), |last| *last == changed);
    let now = changed.clone();
    // What an earlier resume tried and this one took back has been seen all the same.
    for earlier in noted.into_iter().flatten().filter(|c| !now.contains(c)) {
        let earlier = format!("{earlier} (in an earlier resume)");
        if !changed.contains(&earlier) {
            changed.push(earlier);
        }
    }
    let created = run.created;
    if reader.state().seal().is_some() && reader.damage().is_none() && is_noted {
        let state = reader.state().clone();
        return Ok(Some(Opened { writer: None, state, resend, created, changed }));
    }
    drop(reader);
    let (writer, state) = RunLogWriter::resume(log_dir, Some(hash), WriterOptions::default())
        .map_err(|e| log_error(&e, dir))?;
    if !is_noted {
        let text = match now.is_empty() {
            true => "resumed with the settings of the start again".to_owned(),
            false => format!("resumed with other settings: {}", now.join("; ")),
        };
        let note = NoteRecord::new(CHANGED_NOTE, text, serde_json::json!({ "changes": now }));
        writer.append(note).wait().map_err(|e| log_error(&e, dir))?;
    }
    Ok(Some(Opened { writer: Some(writer), state, resend, created, changed }))
}

/// The configuration that the run was started with.
fn stored_configuration(
    reader: &RunLogReader,
    run: &RunRecord,
) -> std::result::Result<serde_json::Value, RunLogError> {
    let bytes = reader.blob(&run.configuration_digest)?;
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}

/// A configuration as it would come back from the log, so that numbers compare equal.
fn parsed(configuration: &serde_json::Value) -> serde_json::Value {
    serde_json::from_str(&configuration.to_string()).unwrap_or_default()
}

/// What each resume with other settings found changed, in order.
fn noted_changes(state: &RunState) -> Vec<Vec<String>> {
    let notes = state.notes().iter().filter(|(_, note)| note.kind == CHANGED_NOTE);
    notes
        .map(|(_, note)| serde_json::from_value(note.data["changes"].clone()).unwrap_or_default())
        .collect()
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

/// An amount of money to the millionth of a millionth: sums in another order give the same, and
/// nothing is never minus nothing.
fn usd(amount: f64) -> f64 {
    (amount * 1e12).round() / 1e12 + 0.0
}

/// Whether the last attempt left the machine and its end was never seen.
fn is_open(call: &CallState) -> bool {
    call.attempts
        .last()
        .is_some_and(|a| a.outcome.is_none() && a.intent.placement == Placement::Remote)
}

/// Fills in what earlier processes observed, and what stands for calls that are not to be made.
fn replay(
    plan: &Plan,
    hash: &Digest,
    opened: &Opened,
    log_dir: &Path,
    dir: &Path,
    result: &mut RunResult,
) -> Result<()> {
    let state = &opened.state;
    result.spent_usd = usd(state.known_cost_usd());
    result.maybe_spent_usd = usd(state.unknown_cost_cap_usd());
    let open = state.open_intents();
    result.n_unknown = open.iter().filter(|o| o.intent.placement == Placement::Remote).count();
    let is_sealed = opened.writer.is_none();
    if is_sealed {
        result.log_root = state.seal().map(|seal| seal.root.to_string());
    }
    let reader = match state.n_outcomes() {
        0 => None,
        _ => Some(RunLogReader::open(log_dir).map_err(|e| log_error(&e, dir))?),
    };
    for id in all_calls(plan) {
        if plan.dataset.rows[id.row_idx].is_sensitive && !plan.arms[id.arm_idx].is_local() {
            let record = ObservationRecord::without_call(
                Outcome::Withheld,
                "the sample is sensitive and this model does not run on this machine",
            );
            result.observations.insert(id, record);
            continue;
        }
        let Some(call) = state.call(&key_of(plan, hash, id)) else { continue };
        if call.open_job().is_some() && !is_sealed {
            // Its job may still be at work.
            continue;
        }
        if is_open(call) && (is_sealed || !opened.resend) {
            let record = ObservationRecord::without_call(
                Outcome::UnknownOutcome,
                "the call was begun and its end was not seen; it may have been billed",
            );
            result.observations.insert(id, record);
            continue;
        }
        // The final outcome, or the last one, which stands until the call is made again.
        let ended = call.attempts.iter().rev().find_map(|a| Some(&a.outcome.as_ref()?.1));
        let Some((outcome, reader)) = call.final_outcome().or(ended).zip(reader.as_ref()) else {
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
