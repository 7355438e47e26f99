//! One call: intent, attempts, outcome.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use weighbridge_core::{
    Completion, Error, ErrorKind, Event, EventSink, Outcome, OutcomeGroup, Request, Result, Retry,
};

use crate::plan::{cost_usd, request_digest};
use crate::record::ObservationRecord;
use crate::runlog::{Digest, IntentRecord, OutcomeRecord, Placement};

use super::CallId;
use super::lanes::{Made, Shared, with_deadline};

/// Full jitter starts at this.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// Full jitter never waits longer than this.
const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// A service that asks for a longer pause is left alone: the run can be resumed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A call to be made.
pub(super) struct Call {
    pub(super) id: CallId,
    pub(super) key: Digest,
    pub(super) request: Request,
    pub(super) max_cost_usd: Option<f64>,
    /// Attempt numbers go on over all processes; the budget of attempts is this process's own.
    pub(super) first_attempt: u32,
}

/// Whether the same call would end the same way however often a run is resumed. Anything else is
/// only what stands for now: a resume makes the call again, with a budget of its own.
pub(super) fn is_final(record: &ObservationRecord, is_remote: bool) -> bool {
    match record.outcome {
        Outcome::Auth | Outcome::Quota => false,
        // No such model or route: that is mended at the service.
        Outcome::BadRequest => !(is_remote && is_kind(record, ErrorKind::NotFound)),
        outcome => matches!(outcome.group(), OutcomeGroup::Model | OutcomeGroup::Account),
    }
}

pub(super) fn is_kind(record: &ObservationRecord, kind: ErrorKind) -> bool {
    record.error.as_ref().is_some_and(|error| error.kind == kind.as_str())
}

/// Notes when the first content came, and that there was some.
struct FirstContent {
    started: Instant,
    ttft: Option<Duration>,
}

impl EventSink for FirstContent {
    fn push(&mut self, event: Event<'_>) -> ControlFlow<()> {
        if self.ttft.is_none() && event.is_content() {
            self.ttft = Some(self.started.elapsed());
        }
        ControlFlow::Continue(())
    }
}

/// Makes a call, again where that is allowed, until it has an outcome.
pub(super) async fn make(shared: &Shared<'_>, call: Call) -> Result<Made> {
    let plan = shared.plan;
    let arm = &plan.arms[call.id.arm_idx];
    let settings = &plan.suite.run;
    let timeout = Duration::from_secs_f64(settings.timeout_s);
    let is_remote = arm.card.placement.is_remote();
    let placement = match is_remote {
        true => Placement::Remote,
        false => Placement::Local,
    };
    let digest = request_digest(arm, &call.request);
    let mut n_ended = 0;
    for attempt in call.first_attempt.. {
        let reserved = call.max_cost_usd.unwrap_or(0.0);
        if call.max_cost_usd.is_some() && !shared.reserve(reserved).await {
            return Ok(Made::Skipped(format!(
                "the spend cap of USD {} would be exceeded; raise run.spend_cap_usd and continue \
                 with --resume",
                settings.spend_cap_usd
            )));
        }
        let intent = IntentRecord {
            call_key: call.key,
            sample_id: plan.dataset.rows[call.id.row_idx].sample.id.clone(),
            candidate: arm.candidate.name.clone(),
            repeat: call.id.repeat,
            attempt,
            request_digest: digest,
            placement,
            price_cap_usd: call.max_cost_usd,
        };
        shared.writer.append(intent).await.map_err(|e| write_error(&e))?;

        let started = Instant::now();
        let mut sink = FirstContent { started, ttft: None };
        let generated =
            with_deadline(arm.backend.generate(&call.request, &mut sink), timeout).await;
        let total = started.elapsed();
        let result = generated.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Timeout, "the call was given up at its deadline")
                .with("timeout_s", settings.timeout_s)
                .with_retry(match sink.ttft {
                    None => Retry::Safe { after: None },
                    Some(_) => Retry::Never,
                }))
        });
        let mut record = ObservationRecord::new(&result, sink.ttft, total, attempt);
        if record.outcome == Outcome::Withheld {
            // An outward path was refused in the middle of a call: keep the reason.
            record.n_attempts = attempt;
        }
        n_ended += 1;
        let wait = retry_wait(&result, &record, sink.ttft.is_some(), &call.key, n_ended);
        let cost = match arm.candidate.price {
            None => Some(0.0),
            Some(_) => cost_usd(&arm.candidate, &record.usage),
        };
        // Money that may be owed to nobody is not owed: only a remote call can cost unseen.
        shared.book(reserved, cost.or((!is_remote).then_some(0.0)));
        let body = serde_json::to_vec(&record).expect("records are plain data");
        let outcome = OutcomeRecord {
            call_key: call.key,
            attempt,
            outcome: record.outcome.as_str().to_owned(),
            observation_digest: Digest::of(&body),
            cost_usd: cost.filter(|_| arm.candidate.price.is_some()),
            retryable: !is_final(&record, is_remote),
        };
        shared.writer.append_with(outcome, vec![body]).await.map_err(|e| write_error(&e))?;
        match wait {
            Wait::TooLong(after) => {
                let why = format!(
                    "the service asks to wait {} s ({}); continue later with --resume",
                    after.as_secs(),
                    record.error.as_ref().map(|e| e.message.as_str()).unwrap_or_default()
                );
                return Ok(Made::Parked(Box::new(record), why));
            }
            Wait::For(pause) if n_ended < settings.max_attempts => tokio::time::sleep(pause).await,
            _ => return Ok(Made::Ended(Box::new(record))),
        }
    }
    unreachable!("attempts end before they run out of numbers")
}

enum Wait {
    /// Not to be tried again.
    No,
    /// Try again after this pause.
    For(Duration),
    /// The service asks for a pause that is too long to sit through.
    TooLong(Duration),
}

fn retry_wait(
    result: &Result<Completion>,
    record: &ObservationRecord,
    had_content: bool,
    key: &Digest,
    n_ended: u32,
) -> Wait {
    let Err(error) = result else { return Wait::No };
    let group = record.outcome.group();
    if had_content || !matches!(group, OutcomeGroup::Infrastructure | OutcomeGroup::Local) {
        return Wait::No;
    }
    match error.retry() {
        Retry::Safe { after } => {
            let pause = after.unwrap_or_default() + jitter(key, n_ended);
            match after {
                Some(after) if after > LONGEST_WAIT => Wait::TooLong(after),
                _ => Wait::For(pause),
            }
        }
        _ => Wait::No,
    }
}

/// Full jitter, drawn from the call's key so that a run repeats: uniform below the base doubled
/// per attempt, at most the cap.
fn jitter(key: &Digest, n_ended: u32) -> Duration {
    let ceiling =
        BACKOFF_BASE.saturating_mul(1 << n_ended.min(10).saturating_sub(1)).min(BACKOFF_CAP);
    let draw = Digest::of(format!("{key} {n_ended}").as_bytes()).to_string();
    let draw = u32::from_str_radix(&draw[..8], 16).unwrap_or(u32::MAX);
    ceiling.mul_f64(f64::from(draw) / f64::from(u32::MAX))
}

fn write_error(error: &crate::runlog::RunLogError) -> Error {
    Error::new(ErrorKind::Io, format!("the run log cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_bounded_and_repeats() {
        let key = Digest::of(b"call");
        for n in 1..30 {
            assert!(jitter(&key, n) <= BACKOFF_CAP);
            assert_eq!(jitter(&key, n), jitter(&key, n));
        }
        assert!(jitter(&key, 1) <= BACKOFF_BASE);
    }

    #[test]
    fn only_an_answer_or_a_refused_request_is_final() {
        let is_final = |kind, is_remote| {
            let result = Err(Error::new(kind, "x"));
            is_final(&ObservationRecord::new(&result, None, Duration::ZERO, 1), is_remote)
        };
        for kind in [
            ErrorKind::Auth,
            ErrorKind::Quota,
            ErrorKind::Transport,
            ErrorKind::Truncated,
            ErrorKind::RateLimited,
            ErrorKind::EngineDied,
            ErrorKind::Cancelled,
        ] {
            assert!(!is_final(kind, true) && !is_final(kind, false), "{kind:?}");
        }
        for kind in [ErrorKind::InvalidRequest, ErrorKind::Unsupported, ErrorKind::ContextOverflow]
        {
            assert!(is_final(kind, true) && is_final(kind, false), "{kind:?}");
        }
        assert!(is_final(ErrorKind::NotFound, false) && !is_final(ErrorKind::NotFound, true));
    }

    #[test]
    fn only_what_is_safe_is_tried_again() {
        let key = Digest::of(b"call");
        let wait = |kind, retry, had_content| {
            let result = Err(Error::new(kind, "x").with_retry(retry));
            let record = ObservationRecord::new(&result, None, Duration::ZERO, 1);
            retry_wait(&result, &record, had_content, &key, 1)
        };
        let safe = |after| Retry::Safe { after };
        assert!(matches!(wait(ErrorKind::Overloaded, safe(None), false), Wait::For(_)));
        assert!(matches!(wait(ErrorKind::Overloaded, safe(None), true), Wait::No));
        assert!(matches!(wait(ErrorKind::Overloaded, Retry::Never, false), Wait::No));
        assert!(matches!(wait(ErrorKind::Auth, safe(None), false), Wait::No));
        let hour = Some(Duration::from_secs(3600));
        assert!(matches!(wait(ErrorKind::RateLimited, safe(hour), false), Wait::TooLong(_)));
        let second = Some(Duration::from_secs(1));
        let Wait::For(pause) = wait(ErrorKind::RateLimited, safe(second), false) else { panic!() };
        assert!(pause >= Duration::from_secs(1));
    }
}
