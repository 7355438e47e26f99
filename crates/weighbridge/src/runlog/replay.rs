//! The fold of all records, and what a resumed run has to do.

use std::collections::{BTreeMap, BTreeSet};

use super::digest::Digest;
use super::payload::{
    IntentRecord, JobRecord, NoteRecord, OutcomeRecord, Placement, Record, RunRecord, SealRecord,
};

/// One attempt of a call.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CallAttempt {
    /// The intent.
    pub intent: IntentRecord,
    /// Its sequence number.
    pub intent_seq: u64,
    /// The outcome and its sequence number; `None` while it is open.
    pub outcome: Option<(u64, OutcomeRecord)>,
}

/// All attempts of one call.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct CallState {
    /// In order of attempt; never empty.
    pub attempts: Vec<CallAttempt>,
}

impl CallState {
    /// The outcome that ended the call, if one did: the one that is not retryable.
    pub fn final_outcome(&self) -> Option<&OutcomeRecord> {
        self.attempts.iter().find_map(|attempt| match &attempt.outcome {
            Some((_, outcome)) if !outcome.retryable => Some(outcome),
            _ => None,
        })
    }

    /// Number of the next attempt, from 1.
    pub fn next_attempt(&self) -> u32 {
        self.attempts.last().map_or(1, |last| last.intent.attempt.saturating_add(1))
    }

    /// Label of the batch job that the last attempt is part of, while that has no outcome.
    pub fn open_job(&self) -> Option<&str> {
        let last = self.attempts.last().filter(|last| last.outcome.is_none())?;
        last.intent.job.as_deref()
    }

    fn n_outcomes(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.outcome.is_some()).count()
    }
}

/// An intent without an outcome: the call may have been made, and may have been billed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OpenIntent {
    /// Sequence number of the intent.
    pub seq: u64,
    /// The intent.
    pub intent: IntentRecord,
    /// Attempt number to use if it is made again.
    pub next_attempt: u32,
}

/// A call that has an outcome.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Finished {
    /// The intent that led to it.
    pub intent: IntentRecord,
    /// The outcome.
    pub outcome: OutcomeRecord,
}

/// A call whose last attempt may be repeated.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Retry {
    /// The intent of the last attempt.
    pub intent: IntentRecord,
    /// How it ended.
    pub outcome: OutcomeRecord,
    /// Attempt number to use.
    pub next_attempt: u32,
}

/// What a resumed run decides about unfinished calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumePolicy {
    /// Most attempts of one call that may end in an outcome. Attempts cut off by a crash do not count.
    pub max_attempts: u32,
    /// Whether an open remote call is sent again, as its next attempt. Otherwise it stays missing.
    pub resend: bool,
}

/// What is left to do for the calls the log knows, each list in the order in which the calls were first begun.
///
/// Calls of the plan whose key is in none of these lists were never begun.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct ResumePlan {
    /// Ended by a final outcome. Never sent again.
    pub finished: Vec<Finished>,
    /// Last attempt ended retryably and the budget allows another.
    pub retry: Vec<Retry>,
    /// Last attempt ended retryably and the budget is used up. The last outcome stands.
    pub exhausted: Vec<Finished>,
    /// Open on this device: run again.
    pub rerun: Vec<OpenIntent>,
    /// Open remotely: send again as the next attempt; the open one may have been billed.
    pub resend: Vec<OpenIntent>,
    /// Open remotely and not to be sent again: missing data.
    pub missing: Vec<OpenIntent>,
}

/// Everything the records say, folded in order.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RunState {
    run: Option<RunRecord>,
    calls: BTreeMap<Digest, CallState>,
    jobs: BTreeMap<String, JobRecord>,
    notes: Vec<(u64, NoteRecord)>,
    erased: BTreeSet<Digest>,
    seal: Option<SealRecord>,
    n_records: u64,
    n_outcomes: u64,
    violations: Vec<String>,
}

impl RunState {
    /// The `RUN` record.
    pub fn run(&self) -> Option<&RunRecord> {
        self.run.as_ref()
    }

    /// Every call with its key, in order of the key.
    pub fn calls(&self) -> impl Iterator<Item = (&Digest, &CallState)> {
        self.calls.iter()
    }

    /// One call.
    pub fn call(&self, call_key: &Digest) -> Option<&CallState> {
        self.calls.get(call_key)
    }

    /// The final outcome of a call; at most one exists.
    pub fn final_outcome(&self, call_key: &Digest) -> Option<&OutcomeRecord> {
        self.calls.get(call_key)?.final_outcome()
    }

    /// Every intent without an outcome, in log order, also those whose call was finished by a later attempt.
    pub fn open_intents(&self) -> Vec<OpenIntent> {
        let mut open: Vec<OpenIntent> = self.calls.values().flat_map(open_of).collect();
        open.sort_unstable_by_key(|intent| intent.seq);
        open
    }

    /// Sum of the known costs of all attempts, in US dollars.
    pub fn known_cost_usd(&self) -> f64 {
        self.attempts().filter_map(|attempt| attempt.outcome.as_ref()?.1.cost_usd).sum()
    }

    /// Sum of the price caps of remote attempts whose cost is unknown, because they have no outcome or one without a
    /// cost, in US dollars. Counts as spent.
    pub fn unknown_cost_cap_usd(&self) -> f64 {
        self.attempts()
            .filter(|attempt| attempt.intent.placement == Placement::Remote)
            .filter(|attempt| {
                attempt.outcome.as_ref().is_none_or(|(_, outcome)| outcome.cost_usd.is_none())
            })
            .filter_map(|attempt| attempt.intent.price_cap_usd)
            .sum()
    }

    /// The batch job with this label, if a vendor is known to have taken it.
    pub fn job(&self, label: &str) -> Option<&JobRecord> {
        self.jobs.get(label)
    }

    /// Every note with its sequence number.
    pub fn notes(&self) -> &[(u64, NoteRecord)] {
        &self.notes
    }

    /// Digests of bodies that were erased on purpose.
    pub fn erased(&self) -> impl Iterator<Item = &Digest> {
        self.erased.iter()
    }

    /// Whether this body was erased on purpose.
    pub fn is_erased(&self, digest: &Digest) -> bool {
        self.erased.contains(digest)
    }

    /// The `SEAL` record, if nothing but marks follows it.
    pub fn seal(&self) -> Option<&SealRecord> {
        self.seal.as_ref()
    }

    /// Number of records folded.
    pub fn n_records(&self) -> u64 {
        self.n_records
    }

    /// Number of `OUTCOME` records.
    pub fn n_outcomes(&self) -> u64 {
        self.n_outcomes
    }

    /// What breaks the invariants, in words. A log of this program has none.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// What is left to do for the calls the log knows.
    pub fn resume_plan(&self, policy: &ResumePolicy) -> ResumePlan {
        let mut plan = ResumePlan::default();
        let mut calls: Vec<&CallState> = self.calls.values().collect();
        calls.sort_unstable_by_key(|call| call.attempts.first().map(|first| first.intent_seq));
        for call in calls {
            let ended = |attempt: &CallAttempt| {
                let (_, outcome) = attempt.outcome.clone()?;
                Some(Finished { intent: attempt.intent.clone(), outcome })
            };
            let last_of = |wanted: bool| {
                call.attempts
                    .iter()
                    .rev()
                    .filter_map(ended)
                    .find(|finished| finished.outcome.retryable == wanted)
            };
            if let Some(finished) = last_of(false) {
                plan.finished.push(finished);
                continue;
            }
            let Some(last) = call.attempts.last() else { continue };
            match (ended(last), last.intent.placement) {
                (Some(Finished { intent, outcome }), _) => {
                    if call.n_outcomes() < policy.max_attempts as usize {
                        plan.retry.push(Retry {
                            intent,
                            outcome,
                            next_attempt: call.next_attempt(),
                        });
                    } else {
                        plan.exhausted.push(Finished { intent, outcome });
                    }
                }
                (None, Placement::Local) => plan.rerun.extend(open_of(call).last()),
                (None, Placement::Remote) if policy.resend => {
                    plan.resend.extend(open_of(call).last())
                }
                (None, Placement::Remote) => plan.missing.extend(open_of(call).last()),
            }
        }
        plan
    }

    /// Digests of all bodies that records name.
    pub(super) fn body_digests(&self) -> impl Iterator<Item = Digest> {
        let outcomes = self
            .attempts()
            .filter_map(|attempt| Some(attempt.outcome.as_ref()?.1.observation_digest));
        self.run.iter().map(|run| run.configuration_digest).chain(outcomes)
    }

    /// Whether the record keeps the invariants; if not, why.
    pub(super) fn check(&self, record: &Record) -> Result<(), String> {
        match record {
            Record::Run(_) if self.n_records > 0 => {
                Err("a run log has one RUN record, its first".to_owned())
            }
            Record::Run(_) => Ok(()),
            _ if self.n_records == 0 => {
                Err("the first record of a run log is its RUN record".to_owned())
            }
            Record::Intent(intent) => self.check_intent(intent),
            Record::Outcome(outcome) => self.check_outcome(outcome),
            Record::Job(job) => self.check_job(job),
            _ => Ok(()),
        }
    }

    fn check_intent(&self, intent: &IntentRecord) -> Result<(), String> {
        check_usd("price_cap_usd", intent.price_cap_usd)?;
        let key = intent.call_key;
        let next = self.calls.get(&key).map_or(1, CallState::next_attempt);
        if let Some(call) = self.calls.get(&key) {
            if call.final_outcome().is_some() {
                return Err(format!("call {key} has its final outcome; it must not be made again"));
            }
            let first = &call.attempts[0].intent;
            if (&first.sample_id, &first.candidate, first.repeat)
                != (&intent.sample_id, &intent.candidate, intent.repeat)
            {
                return Err(format!(
                    "call {key} is sample `{}`, candidate `{}`, repeat {}; the intent says sample `{}`, candidate `{}`, \
                     repeat {}; compute the key from all of them",
                    first.sample_id,
                    first.candidate,
                    first.repeat,
                    intent.sample_id,
                    intent.candidate,
                    intent.repeat
                ));
            }
        }
        if intent.attempt != next {
            return Err(format!(
                "attempt {} of call {key} is out of order; the next one is {next}",
                intent.attempt
            ));
        }
        Ok(())
    }

    fn check_outcome(&self, outcome: &OutcomeRecord) -> Result<(), String> {
        check_usd("cost_usd", outcome.cost_usd)?;
        let key = outcome.call_key;
        let Some(call) = self.calls.get(&key) else {
            return Err(format!(
                "outcome of call {key}, which has no intent; append the intent first"
            ));
        };
        if call.final_outcome().is_some() {
            return Err(format!("call {key} has its final outcome already"));
        }
        match call.attempts.iter().find(|attempt| attempt.intent.attempt == outcome.attempt) {
            None => Err(format!(
                "attempt {} of call {key} has no intent; append the intent first",
                outcome.attempt
            )),
            Some(attempt) if attempt.outcome.is_some() => {
                Err(format!("attempt {} of call {key} has its outcome already", outcome.attempt))
            }
            Some(_) => Ok(()),
        }
    }

    fn check_job(&self, job: &JobRecord) -> Result<(), String> {
        let JobRecord { label, job_id, .. } = job;
        if let Some(known) = self.jobs.get(label) {
            let known = &known.job_id;
            return Err(format!("job `{label}` is `{known}` already; it cannot be `{job_id}` too"));
        }
        if !self.attempts().any(|attempt| attempt.intent.job.as_ref() == Some(label)) {
            return Err(format!("job `{label}` has no intents; append them first"));
        }
        Ok(())
    }

    /// Adds a record. One that breaks an invariant is listed and has no other effect, so a first final outcome stays.
    pub(super) fn apply(&mut self, seq: u64, record: &Record) {
        let checked = self.check(record);
        self.n_records += 1;
        if !matches!(record, Record::Mark(_)) {
            self.seal = None;
        }
        if let Record::Outcome(_) = record {
            self.n_outcomes += 1;
        }
        if let Err(why) = checked {
            self.violations.push(format!("record {seq}: {why}"));
            return;
        }
        match record {
            Record::Run(run) => self.run = Some(run.clone()),
            Record::Intent(intent) => self
                .calls
                .entry(intent.call_key)
                .or_default()
                .attempts
                .push(CallAttempt { intent: intent.clone(), intent_seq: seq, outcome: None }),
            Record::Outcome(outcome) => {
                let attempts = self.calls.get_mut(&outcome.call_key).map(|call| &mut call.attempts);
                let attempt =
                    attempts.into_iter().flatten().find(|a| a.intent.attempt == outcome.attempt);
                attempt.expect("check found the attempt").outcome = Some((seq, outcome.clone()));
            }
            Record::Job(job) => {
                self.jobs.insert(job.label.clone(), job.clone());
            }
            Record::Note(note) => {
                self.erased.extend(note.erased_digest());
                self.notes.push((seq, note.clone()));
            }
            Record::Seal(seal) => self.seal = Some(*seal),
            Record::Mark(_) | Record::Unknown { .. } => {}
        }
    }

    /// Notes that a payload could not be read.
    pub(super) fn unreadable(&mut self, seq: u64, why: &str) {
        self.n_records += 1;
        self.violations.push(format!("record {seq}: {why}"));
    }

    fn attempts(&self) -> impl Iterator<Item = &CallAttempt> {
        self.calls.values().flat_map(|call| &call.attempts)
    }
}

fn open_of(call: &CallState) -> impl Iterator<Item = OpenIntent> {
    let next_attempt = call.next_attempt();
    call.attempts.iter().filter(|attempt| attempt.outcome.is_none()).map(move |attempt| {
        OpenIntent { seq: attempt.intent_seq, intent: attempt.intent.clone(), next_attempt }
    })
}

fn check_usd(field: &str, usd: Option<f64>) -> Result<(), String> {
    match usd {
        Some(usd) if !(usd.is_finite() && usd >= 0.0) => {
            Err(format!("{field} is {usd}, not an amount of money"))
        }
        _ => Ok(()),
    }
}
