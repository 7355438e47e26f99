//! Outcomes of calls that were in jobs.

use std::time::Duration;

use weighbridge_core::{Completion, ErrorKind, Outcome, Result, Retry};

use crate::plan::cost_usd;
use crate::record::ObservationRecord;
use crate::run::RunEvent;
use crate::run::calls::{is_final, write_error};
use crate::runlog::{Digest, OutcomeRecord};

use super::{Asked, BatchLane};

impl BatchLane<'_> {
    /// Writes outcomes, then tells of them. Calls that may be tried again are pending after it.
    pub(super) async fn end(&mut self, ended: Vec<(Asked, Result<Completion>)>) -> Result<()> {
        let mut written = Vec::with_capacity(ended.len());
        for (call, result) in ended {
            let record = ObservationRecord::new(&result, None, Duration::ZERO, call.attempt);
            let cost = self.cost(&result, &record);
            self.shared.book(call.max_cost_usd.unwrap_or(0.0), cost);
            let body = serde_json::to_vec(&record).expect("records are plain data");
            let outcome = OutcomeRecord {
                call_key: call.key,
                attempt: call.attempt,
                outcome: record.outcome.as_str().to_owned(),
                observation_digest: Digest::of(&body),
                cost_usd: cost.filter(|_| self.arm.candidate.price.is_some()),
                retryable: !is_final(&record, true),
            };
            let ack = self.shared.writer.append_with(outcome, vec![body]);
            written.push((call, result.err(), record, ack));
        }
        let max_attempts = self.shared.plan.suite.run.max_attempts;
        for (mut call, error, record, ack) in written {
            ack.await.map_err(|e| write_error(&e))?;
            let outcome = record.outcome;
            self.shared.result.borrow_mut().observations.insert(call.id, record);
            let name = &self.arm.candidate.name;
            self.shared.observer.event(RunEvent::CallEnded { name, outcome });
            let Some(error) = error else { continue };
            call.n_ended += 1;
            if matches!(error.retry(), Retry::Safe { .. }) && call.n_ended < max_attempts {
                call.attempt += 1;
                self.pending.push_back(call);
            } else if matches!(outcome, Outcome::Auth | Outcome::Quota) && !self.is_stopped() {
                self.stop(&format!(
                    "{error}. No further job was handed in; mend that and continue with --resume"
                ));
            }
        }
        Ok(())
    }

    /// What a call cost; `None` if that is not known. A request without an answer costs nothing,
    /// unless the answer was lost or damaged on its way.
    fn cost(&self, result: &Result<Completion>, record: &ObservationRecord) -> Option<f64> {
        self.arm.candidate.price.as_ref()?;
        match result {
            Ok(_) => cost_usd(&self.arm.candidate, &record.usage),
            Err(error) => match error.kind() {
                ErrorKind::Truncated | ErrorKind::Protocol | ErrorKind::Plugin => None,
                _ => Some(0.0),
            },
        }
    }

    /// Money of jobs that go on without this process counts as perhaps spent.
    pub(super) fn leave(&mut self) {
        let jobs = std::mem::take(&mut self.jobs).into_iter();
        for job in jobs.chain(std::mem::take(&mut self.left)) {
            self.shared.result.borrow_mut().n_unknown += job.calls.len();
            for call in job.calls {
                self.shared.book(call.max_cost_usd.unwrap_or(0.0), None);
            }
        }
    }
}
