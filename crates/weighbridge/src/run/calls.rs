//! One call: intent, attempts, outcome.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use weighbridge_core::{
    Completion, Error, ErrorKind, Event, EventSink, Outcome, OutcomeGroup, Request, Result, Retry,
};

use crate::plan::{cost_usd, request_digest};
use crate::record::ObservationRecord;
use crate::retry::{Failed, Next, RetryPolicy, within};
use crate::runlog::{Digest, IntentRecord, OutcomeRecord, Placement};

use super::CallId;
use super::lanes::{Made, Shared};

/// After so many probes of a service that is down, some 25 s after it went down, it is left alone:
/// the run can be resumed.
const GIVE_UP_AFTER_PROBES: u32 = 5;

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

    fn is_watched(&self) -> bool {
        false
    }
}

/// Makes a call, again where that is allowed, until it has an outcome.
pub(super) async fn make(shared: &Shared<'_>, call: Call) -> Result<Made> {
    let plan = shared.plan;
    let arm_idx = call.id.arm_idx;
    let arm = &plan.arms[arm_idx];
    let settings = &plan.suite.run;
    let timeout = Duration::from_secs_f64(settings.timeout_s);
    let is_remote = arm.card.placement.is_remote();
    let placement = match is_remote {
        true => Placement::Remote,
        false => Placement::Local,
    };
    let digest = request_digest(arm, &call.request);
    let retries = shared.retries(arm_idx);
    let policy = RetryPolicy { max_attempts: settings.max_attempts, ..RetryPolicy::default() };
    let mut n_ended = 0;
    let mut ended: Option<Box<ObservationRecord>> = None;
    for attempt in call.first_attempt.. {
        let reserved = call.max_cost_usd.unwrap_or(0.0);
        let leave = async {
            let pass = retries.pass().await;
            let is_covered = call.max_cost_usd.is_none() || shared.reserve(reserved).await;
            (pass, is_covered)
        };
        let Some((pass, is_covered)) = shared.unless_stopped(arm_idx, leave).await else {
            return Ok(ended.map_or(Made::Not, Made::Ended));
        };
        if !is_covered {
            let why = format!(
                "the spend cap of USD {} would be exceeded; raise run.spend_cap_usd and continue \
                 with --resume",
                settings.spend_cap_usd
            );
            return Ok(Made::Stopped(ended, why));
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
            job: None,
        };
        shared.writer.append(intent).await.map_err(|e| write_error(&e))?;

        let started = Instant::now();
        let mut sink = FirstContent { started, ttft: None };
        let generated = within(timeout, arm.backend.generate(&call.request, &mut sink)).await;
        let total = started.elapsed();
        let result = generated.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Timeout, "the call was given up at its deadline")
                .with("timeout_s", settings.timeout_s)
                .with_retry(match sink.ttft {
                    None => Retry::Safe { after: None },
                    Some(_) => Retry::Never,
                }))
        });
        n_ended += 1;
        pass.end(&result, n_ended == 1);
        let had_content = sink.ttft.is_some();
        let next = match &result {
            Ok(_) => Next::Stop,
            Err(error) => {
                let draw = draw(&call.key, n_ended);
                retries.next(Failed { error, had_content, n_ended, draw }, &policy)
            }
        };
        let record = ObservationRecord::new(&result, sink.ttft, total, attempt);
        let cost = match arm.candidate.price {
            None => Some(0.0),
            Some(_) if is_unbilled(&result, had_content) => Some(0.0),
            Some(_) => cost_usd(&arm.candidate, &record.usage),
        };
        // Money that may be owed to nobody is not owed: only a remote call can cost unseen.
        let cost = cost.or((!is_remote).then_some(0.0));
        shared.book(reserved, cost);
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
        let said = record.error.as_ref().map(|e| e.message.clone()).unwrap_or_default();
        let record = Box::new(record);
        match next {
            Next::Stop => return Ok(Made::Ended(record)),
            Next::Park(after) => return Ok(Made::Stopped(Some(record), parked(after, &said))),
            Next::After(_) if retries.n_failed_probes() >= GIVE_UP_AFTER_PROBES => {
                let why = format!(
                    "the service is down: it answered none of {GIVE_UP_AFTER_PROBES} probes, the \
                     last with: {said}. Continue with --resume when it is back"
                );
                return Ok(Made::Stopped(Some(record), why));
            }
            Next::After(pause) => {
                if shared.unless_stopped(arm_idx, tokio::time::sleep(pause)).await.is_none() {
                    return Ok(Made::Ended(record));
                }
                ended = Some(record);
            }
        }
    }
    unreachable!("attempts end before they run out of numbers")
}

/// Whether the service turned the request away as a whole, so that nothing was computed and
/// nothing can be owed.
fn is_unbilled(result: &Result<Completion>, had_content: bool) -> bool {
    use ErrorKind as K;
    let Err(error) = result else { return false };
    let kinds = [
        K::RateLimited,
        K::Quota,
        K::Auth,
        K::NotFound,
        K::InvalidRequest,
        K::ContextOverflow,
        K::Unsupported,
        K::EgressDenied,
    ];
    !had_content && kinds.contains(&error.kind())
}

/// Why a candidate is left alone whose service asks for a long pause, and until when.
fn parked(after: Duration, said: &str) -> String {
    let until = jiff::Timestamp::try_from(SystemTime::now() + after)
        .map(|until| until.strftime("%Y-%m-%d %H:%M UTC").to_string())
        .unwrap_or_default();
    format!(
        "the service asks to wait {} s, until {until} ({said}); continue then with --resume",
        after.as_secs_f64().ceil()
    )
}

/// A number in `0.0..=1.0` from the call's key, so that a run repeats.
fn draw(key: &Digest, n_ended: u32) -> f64 {
    let digest = Digest::of(format!("{key} {n_ended}").as_bytes()).to_string();
    f64::from(u32::from_str_radix(&digest[..8], 16).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

pub(super) fn write_error(error: &crate::runlog::RunLogError) -> Error {
    Error::new(ErrorKind::Io, format!("the run log cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_repeat_and_differ_by_attempt() {
        let key = Digest::of(b"call");
        let draws: Vec<f64> = (1..30).map(|n| draw(&key, n)).collect();
        assert_eq!(draws, (1..30).map(|n| draw(&key, n)).collect::<Vec<_>>());
        assert!(draws.iter().all(|d| (0.0..=1.0).contains(d)) && draws[0] != draws[1]);
    }

    #[test]
    fn a_request_that_was_turned_away_costs_nothing() {
        let unbilled = |kind, had_content| is_unbilled(&Err(Error::new(kind, "x")), had_content);
        assert!(unbilled(ErrorKind::RateLimited, false) && unbilled(ErrorKind::Auth, false));
        assert!(!unbilled(ErrorKind::RateLimited, true));
        for kind in [ErrorKind::Timeout, ErrorKind::Transport, ErrorKind::ServerError] {
            assert!(!unbilled(kind, false), "{kind}");
        }
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
}
