//! A candidate's calls as batch jobs: handed in, waited for, fetched, and found again by a later
//! process.
//!
//! The order is that of single calls. The intents of a job, with its label, are synced before a
//! byte leaves; the vendor's id of the job is synced as soon as it is told. A process that finds
//! intents without that id asks the vendor for the label.

mod end;
mod wait;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use weighbridge_core::{
    BatchId, BatchJobs, BatchLookup, BatchRequest, Error, ErrorKind, Outcome, Result, Retry,
    Submission,
};

use crate::plan::{Arm, max_cost_usd, request_digest};
use crate::record::ObservationRecord;
use crate::runlog::{CallState, Digest, IntentRecord, JobRecord, Placement};

use super::calls::write_error;
use super::lanes::Shared;
use super::{CallId, RunEvent, key_of};

/// The first question how a job stands comes after this; each later pause is half as long again,
/// up to `run.batch_poll_s`.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// A vendor that asks for a longer pause is left alone: the run can be resumed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One call of a job, or for one.
struct Asked {
    id: CallId,
    key: Digest,
    attempt: u32,
    /// Attempts of this process that ended.
    n_ended: u32,
    /// Under the call's key.
    request: BatchRequest,
    /// Set aside while it is in a job.
    max_cost_usd: Option<f64>,
}

/// A job at the vendor.
struct Job {
    label: String,
    id: BatchId,
    calls: Vec<Asked>,
    n_failed_fetches: u32,
}

/// Makes the calls, in as many jobs as they need.
pub(super) async fn run_arm(
    shared: &Shared<'_>,
    arm_idx: usize,
    pending: Vec<CallId>,
) -> Result<()> {
    let arm = &shared.plan.arms[arm_idx];
    let Some(vendor) = arm.backend.batch() else {
        return Err(Error::new(ErrorKind::Plugin, "the batch jobs of the model are gone"));
    };
    let settings = &shared.plan.suite.run;
    let mut lane = BatchLane {
        shared,
        arm_idx,
        arm,
        vendor,
        pending: VecDeque::new(),
        jobs: Vec::new(),
        left: Vec::new(),
        n_parts: 0,
        run_tag: run_tag(shared.hash, &arm.candidate.name),
        give_up_at: Instant::now() + Duration::from_secs_f64(settings.batch_wait_h * 3600.0),
    };
    lane.take_up(pending).await?;
    let worked = lane.work().await;
    lane.leave();
    worked
}

/// Something that no other process and no other run has.
fn run_tag(hash: &Digest, candidate: &str) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let seed = format!("{hash} {candidate} {} {now}", std::process::id());
    Digest::of(seed.as_bytes()).to_string()[..20].to_owned()
}

struct BatchLane<'a> {
    shared: &'a Shared<'a>,
    arm_idx: usize,
    arm: &'a Arm,
    vendor: &'a dyn BatchJobs,
    /// Calls that are in no job.
    pending: VecDeque<Asked>,
    jobs: Vec<Job>,
    /// Jobs that this process waits for no longer.
    left: Vec<Job>,
    n_parts: u32,
    run_tag: String,
    give_up_at: Instant,
}

impl BatchLane<'_> {
    fn name(&self) -> &str {
        &self.arm.candidate.name
    }

    fn is_stopped(&self) -> bool {
        self.shared.is_stopped(self.arm_idx)
    }

    fn stop(&self, why: &str) {
        self.shared.stop(self.arm_idx, why);
    }

    fn remark(&self, text: &str) {
        self.shared.observer.event(RunEvent::Remark { name: self.name(), text });
    }

    fn asked(&self, id: CallId) -> Result<Asked> {
        let plan = self.shared.plan;
        let key = key_of(plan, self.shared.hash, id);
        let request = self.arm.request(&plan.dataset.rows[id.row_idx])?;
        Ok(Asked {
            id,
            attempt: self.shared.state.call(&key).map_or(1, CallState::next_attempt),
            n_ended: 0,
            max_cost_usd: max_cost_usd(self.arm, &request),
            request: BatchRequest::new(key.to_string(), request),
            key,
        })
    }

    /// Sorts out what earlier processes left: calls in jobs, and calls to make.
    async fn take_up(&mut self, pending: Vec<CallId>) -> Result<()> {
        let mut labels: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
        for id in pending {
            let asked = self.asked(id)?;
            match self.shared.state.call(&asked.key).and_then(CallState::open_job) {
                Some(label) => labels.entry(label.to_owned()).or_default().push(asked),
                None => self.pending.push_back(asked),
            }
        }
        for (label, calls) in labels {
            if let Some(job) = self.shared.state.job(&label) {
                self.adopt(label, BatchId(job.job_id.clone()), calls);
                continue;
            }
            let why = match self.vendor.find(&label).await {
                Ok(BatchLookup::Found(id)) => {
                    self.log_job(&label, &id).await?;
                    self.adopt(label, id, calls);
                    continue;
                }
                Ok(BatchLookup::Absent) => "its vendor lists no such job",
                Ok(_) => "its vendor cannot look a job up by our label",
                Err(error) => {
                    self.stop(&format!(
                        "an earlier process may have handed in the batch job `{label}`, and its \
                         vendor could not be asked: {error}. Mend that and continue with --resume"
                    ));
                    continue;
                }
            };
            self.remark(&format!(
                "an earlier process may have handed in the batch job `{label}`, but {why}: {} \
                 calls may have been billed. Look at the vendor's console",
                calls.len()
            ));
            self.disown(calls);
        }
        Ok(())
    }

    async fn log_job(&self, label: &str, id: &BatchId) -> Result<()> {
        let record = JobRecord {
            label: label.to_owned(),
            job_id: id.0.clone(),
            candidate: self.name().to_owned(),
        };
        self.shared.writer.append(record).await.map_err(|e| write_error(&e)).map(drop)
    }

    /// Goes on with a job of an earlier process. What that process set aside for its calls counted
    /// as perhaps spent until now.
    fn adopt(&mut self, label: String, id: BatchId, mut calls: Vec<Asked>) {
        for call in &mut calls {
            let attempts = self.shared.state.call(&call.key).map(|known| &known.attempts[..]);
            if let Some(last) = attempts.and_then(<[_]>::last) {
                call.attempt = last.intent.attempt;
                call.max_cost_usd = last.intent.price_cap_usd;
            }
        }
        let caps: f64 = calls.iter().filter_map(|call| call.max_cost_usd).sum();
        {
            let mut result = self.shared.result.borrow_mut();
            result.maybe_spent_usd = (result.maybe_spent_usd - caps).max(0.0);
            result.n_unknown = result.n_unknown.saturating_sub(calls.len());
        }
        self.shared.reserved_usd.set(self.shared.reserved_usd.get() + caps);
        self.add_job(label, id, calls);
    }

    fn add_job(&mut self, label: String, id: BatchId, calls: Vec<Asked>) {
        self.shared.observer.event(RunEvent::JobSubmitted {
            name: &self.arm.candidate.name,
            job_id: &id.0,
            n_calls: calls.len(),
        });
        self.jobs.push(Job { label, id, calls, n_failed_fetches: 0 });
    }

    /// Calls of a job that cannot be found: made again where that is allowed.
    fn disown(&mut self, calls: Vec<Asked>) {
        if self.shared.resend {
            self.pending.extend(calls);
        } else {
            calls.iter().for_each(|call| self.observe_unknown(call.id));
        }
    }

    fn observe_unknown(&self, id: CallId) {
        let record = ObservationRecord::without_call(
            Outcome::UnknownOutcome,
            "the call was part of a batch job that may have been handed in; it may have been \
             billed",
        );
        self.shared.result.borrow_mut().observations.insert(id, record);
    }

    /// Hands in and waits until nothing is left to do. A candidate that is stopped hands in
    /// nothing more, and still waits for what is paid for.
    async fn work(&mut self) -> Result<()> {
        loop {
            self.hand_in().await?;
            if self.jobs.is_empty() {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    /// Hands in as many calls as money and the vendor allow.
    async fn hand_in(&mut self) -> Result<()> {
        while !self.is_stopped() {
            let part = self.next_part().await?;
            if part.is_empty() {
                return Ok(());
            }
            self.submit(part).await?;
        }
        Ok(())
    }

    /// The calls of the next job, with money set aside for each.
    async fn next_part(&mut self) -> Result<Vec<Asked>> {
        let limits = self.vendor.limits();
        let mut part: Vec<Asked> = Vec::new();
        let mut n_bytes = 0;
        while let Some(call) = self.pending.front() {
            let size = self.vendor.size(&call.request).and_then(|size| match size {
                size if size <= limits.max_bytes => Ok(size),
                size => Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "the request is larger than the vendor takes in a batch job",
                )
                .with("n_bytes", size)
                .with("max_bytes", limits.max_bytes)),
            });
            if let Ok(size) = size
                && (part.len() == limits.max_requests || n_bytes + size > limits.max_bytes)
            {
                break;
            }
            let usd = call.max_cost_usd.unwrap_or(0.0);
            let is_covered = match call.max_cost_usd {
                None => true,
                // Only the other candidates stand between it and the cap.
                Some(_) if part.is_empty() && self.jobs.is_empty() => {
                    self.shared.reserve(usd).await
                }
                Some(_) => self.try_reserve(usd),
            };
            if !is_covered {
                if part.is_empty() && self.jobs.is_empty() {
                    self.stop(&format!(
                        "the spend cap of USD {} would be exceeded; raise run.spend_cap_usd and \
                         continue with --resume",
                        self.shared.plan.suite.run.spend_cap_usd
                    ));
                }
                break;
            }
            let Some(call) = self.pending.pop_front() else { break };
            match size {
                Ok(size) => {
                    n_bytes += size;
                    part.push(call);
                }
                Err(error) => {
                    self.log_intents(std::slice::from_ref(&call), None).await?;
                    self.end(vec![(call, Err(error))]).await?;
                }
            }
        }
        Ok(part)
    }

    /// Sets money aside if that is possible now.
    fn try_reserve(&self, usd: f64) -> bool {
        let spent = {
            let result = self.shared.result.borrow();
            result.spent_usd + result.maybe_spent_usd
        };
        let reserved = self.shared.reserved_usd.get() + usd;
        let is_covered = spent + reserved <= self.shared.plan.suite.run.spend_cap_usd;
        if is_covered {
            self.shared.reserved_usd.set(reserved);
        }
        is_covered
    }

    async fn log_intents(&self, calls: &[Asked], label: Option<&str>) -> Result<()> {
        let plan = self.shared.plan;
        let acks: Vec<_> = calls
            .iter()
            .map(|call| {
                self.shared.writer.append(IntentRecord {
                    call_key: call.key,
                    sample_id: plan.dataset.rows[call.id.row_idx].sample.id.clone(),
                    candidate: self.name().to_owned(),
                    repeat: call.id.repeat,
                    attempt: call.attempt,
                    request_digest: request_digest(self.arm, &call.request.request),
                    placement: Placement::Remote,
                    price_cap_usd: call.max_cost_usd,
                    job: label.map(str::to_owned),
                })
            })
            .collect();
        for ack in acks {
            ack.await.map_err(|e| write_error(&e))?;
        }
        Ok(())
    }

    async fn submit(&mut self, part: Vec<Asked>) -> Result<()> {
        self.n_parts += 1;
        let label = format!("wb-{}-{}", self.run_tag, self.n_parts);
        self.log_intents(&part, Some(&label)).await?;
        let requests: Vec<_> = part.iter().map(|call| call.request.clone()).collect();
        let id = match self.vendor.submit(&label, &requests).await {
            Ok(Submission::Accepted(id)) => id,
            Ok(Submission::Unknown(error)) => match self.vendor.find(&label).await {
                Ok(BatchLookup::Found(id)) => id,
                _ => {
                    self.lose(part, &label, &error);
                    return Ok(());
                }
            },
            Ok(_) => return Err(Error::new(ErrorKind::Plugin, "a submission of no known kind")),
            Err(error) => return self.refuse(part, error).await,
        };
        self.log_job(&label, &id).await?;
        self.add_job(label, id, part);
        Ok(())
    }

    /// The job may be there and nobody can tell: nothing is handed in twice.
    fn lose(&self, part: Vec<Asked>, label: &str, error: &Error) {
        self.shared.result.borrow_mut().n_unknown += part.len();
        for call in part {
            self.shared.book(call.max_cost_usd.unwrap_or(0.0), None);
            self.observe_unknown(call.id);
        }
        self.stop(&format!(
            "the batch job `{label}` may have been handed in and may be billed, its vendor did \
             not say: {error}. Look at the vendor's console; --resume hands its calls in again, \
             --no-resend leaves them out"
        ));
    }

    /// The vendor took no job. Every call ends with that, and those that may be tried again wait
    /// as long as it asks.
    async fn refuse(&mut self, part: Vec<Asked>, error: Error) -> Result<()> {
        let ended = part.into_iter().map(|call| (call, Err(copy(&error)))).collect();
        self.end(ended).await?;
        let Retry::Safe { after } = error.retry() else {
            self.stop(&format!(
                "no batch job was accepted: {error}. Mend that and continue with --resume"
            ));
            return Ok(());
        };
        match after {
            Some(after) if after > LONGEST_WAIT => self.stop(&format!(
                "the service asks to wait {} s ({error}); continue later with --resume",
                after.as_secs()
            )),
            after => tokio::time::sleep(after.unwrap_or_else(|| self.first_pause())).await,
        }
        Ok(())
    }

    fn longest_pause(&self) -> Duration {
        Duration::from_secs_f64(self.shared.plan.suite.run.batch_poll_s)
    }

    fn first_pause(&self) -> Duration {
        FIRST_PAUSE.min(self.longest_pause())
    }
}

/// The same error for another call.
fn copy(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message().to_owned());
    for (name, value) in error.contexts() {
        copy = copy.with(name.to_owned(), value);
    }
    copy.with_retry(error.retry())
}
