//! Waiting for jobs, and fetching their answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weighbridge_core::{BatchRequest, BatchStatus, Completion, Error, ErrorKind, Result};

use crate::run::calls::write_error;
use crate::run::{RunEvent, all_calls, key_of};
use crate::runlog::NoteRecord;

use super::{BatchLane, Job, copy};

/// The kind of the note that keeps what a job's answers held beside answers.
const NOTE: &str = "batch";

impl BatchLane<'_> {
    /// Waits until a job has ended and its answers are on disk, or is left to a resume.
    pub(super) async fn wait(&mut self) -> Result<()> {
        let mut pause = self.first_pause();
        loop {
            let left = self.give_up_at.saturating_duration_since(Instant::now());
            tokio::time::sleep(pause.min(left)).await;
            let next_pause = pause.mul_f64(1.5).min(self.longest_pause());
            let jobs = std::mem::take(&mut self.jobs);
            let n_before = jobs.len();
            for job in jobs {
                if let Some(job) = self.look_after(job, next_pause).await? {
                    self.jobs.push(job);
                }
            }
            if left.is_zero() && !self.jobs.is_empty() {
                self.stop(&format!(
                    "batch jobs at work after {} h: {}. Continue to wait with --resume",
                    self.shared.plan.suite.run.batch_wait_h,
                    self.job_ids()
                ));
                self.left.append(&mut self.jobs);
            }
            if self.jobs.len() < n_before {
                return Ok(());
            }
            pause = next_pause;
        }
    }

    fn job_ids(&self) -> String {
        let ids: Vec<_> = self.jobs.iter().map(|job| job.id.0.as_str()).collect();
        ids.join(", ")
    }

    /// Asks how a job stands, and takes its answers when it has ended. Gives it back if it is to be
    /// asked again.
    async fn look_after(&mut self, job: Job, pause: Duration) -> Result<Option<Job>> {
        match self.vendor.poll(&job.id).await {
            Ok(BatchStatus::Running { n_done, n_total }) => {
                self.shared.observer.event(RunEvent::JobPolled {
                    name: &self.arm.candidate.name,
                    job_id: &job.id.0,
                    n_done,
                    n_total,
                    pause,
                });
                Ok(Some(job))
            }
            Ok(BatchStatus::Failed(error)) => {
                let ended = job.calls.into_iter().map(|call| (call, Err(copy(&error)))).collect();
                self.end(ended).await?;
                self.stop(&format!(
                    "batch job {}: {error}. Mend that and continue with --resume",
                    job.id.0
                ));
                Ok(None)
            }
            Ok(_) => self.fetch(job).await,
            Err(error) if is_hopeless(error.kind()) => {
                self.leave_job(job, &error);
                Ok(None)
            }
            Err(error) => {
                self.remark(&format!("batch job {} could not be asked: {error}", job.id.0));
                Ok(Some(job))
            }
        }
    }

    fn leave_job(&mut self, job: Job, error: &Error) {
        self.stop(&format!(
            "the answers of batch job {} cannot be had: {error}. Mend that and continue with \
             --resume",
            job.id.0
        ));
        self.left.push(job);
    }

    /// Takes the answers of an ended job. Gives it back if it is to be asked again.
    async fn fetch(&mut self, mut job: Job) -> Result<Option<Job>> {
        let requests = self.requests_of(&job)?;
        let answers = match self.vendor.fetch(&job.id, &requests).await {
            Ok(answers) => answers,
            Err(error) => {
                job.n_failed_fetches += 1;
                let max_attempts = self.shared.plan.suite.run.max_attempts;
                if is_hopeless(error.kind()) || job.n_failed_fetches >= max_attempts {
                    self.leave_job(job, &error);
                    return Ok(None);
                }
                return Ok(Some(job));
            }
        };
        for warning in &answers.warnings {
            let text = format!("batch job {}: {warning}", job.id.0);
            self.remark(&text);
            let data = serde_json::json!({"candidate": self.name(), "job": job.label});
            let note = NoteRecord::new(NOTE, text, data);
            self.shared.writer.append(note).await.map_err(|e| write_error(&e))?;
        }
        let mut results: BTreeMap<String, Result<Completion>> =
            answers.results.into_iter().map(|answer| (answer.id, answer.result)).collect();
        let ended = job.calls.into_iter().map(|call| {
            let result = results.remove(&call.request.id).unwrap_or_else(|| {
                Err(Error::new(ErrorKind::Plugin, "the plugin gave no result for this request"))
            });
            (call, result)
        });
        self.end(ended.collect()).await?;
        Ok(None)
    }

    /// All requests that the job was made of: the open ones, and those whose outcome an earlier
    /// process has written.
    fn requests_of(&self, job: &Job) -> Result<Vec<BatchRequest>> {
        let mut requests: Vec<_> = job.calls.iter().map(|call| call.request.clone()).collect();
        let (plan, state) = (self.shared.plan, self.shared.state);
        for id in all_calls(plan).filter(|id| id.arm_idx == self.arm_idx) {
            let key = key_of(plan, self.shared.hash, id);
            let is_ended_in_job = state.call(&key).is_some_and(|call| {
                call.attempts
                    .iter()
                    .any(|a| a.outcome.is_some() && a.intent.job.as_ref() == Some(&job.label))
            });
            if is_ended_in_job {
                requests.push(self.asked(id)?.request);
            }
        }
        Ok(requests)
    }
}

/// Whether asking again cannot help.
fn is_hopeless(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Auth
            | ErrorKind::Quota
            | ErrorKind::NotFound
            | ErrorKind::EgressDenied
            | ErrorKind::InvalidRequest
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
    )
}
