//! Trying again: when it is worth it, how long to wait first, and when to leave a service alone.
//!
//! A run and [`Retrying`] go by the same rules, which are functions of what happened and when:
//!
//! - Only failures between us and the answer are tried again, only where the error says that this
//!   is safe, and never after content was shown.
//! - A pause is the service's hint plus full jitter: uniform below 0.5 s doubled per attempt, at
//!   most 30 s. A service that asks for more than [`RetryPolicy::longest_wait`] is left alone.
//! - All calls of a model share a budget of repetitions: a tenth of its calls plus one per second
//!   while it answers. A timeout costs two. In a full outage of 100 calls or more there are at most
//!   1.10 attempts per call.
//! - After five failures in a row the circuit opens: no call is made until one probe was answered.
//!   Probes are 1, 2, 4, 8, 10, 10, … s apart.

mod backend;
mod breaker;
mod budget;

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use tokio::sync::Notify;
use weighbridge_core::{Error, ErrorKind, Result, Retry};

pub use backend::Retrying;
use breaker::{Admission, Breaker};
use budget::RetryBudget;

/// Full jitter starts at this.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// Full jitter never waits longer than this.
const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// What the repetition of a call costs that was given up at a deadline: it held a place all along.
const TIMEOUT_COST: f64 = 2.0;

/// How often and how patiently a call is tried.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts per call, the first included. Default 4.
    pub max_attempts: u32,
    /// Longest pause that a service may ask for. A longer one ends the call with the service's own
    /// error, whose advice holds the pause. Default 60 s.
    pub longest_wait: Duration,
    /// How long a call waits for a service that is down, before it is given up. Default 30 s; zero
    /// gives up at once, which suits a caller with another model to turn to.
    pub patience: Duration,
    /// Limit of a whole call with all its attempts and pauses. Default none: the model's own.
    pub timeout: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 4,
            longest_wait: Duration::from_secs(60),
            patience: Duration::from_secs(30),
            timeout: None,
        }
    }
}

/// What comes after an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Not to be tried again.
    Stop,
    /// Try again after this pause.
    After(Duration),
    /// The service asks for a pause that is too long to sit through.
    Park(Duration),
}

/// An attempt that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed<'a> {
    pub(crate) error: &'a Error,
    pub(crate) had_content: bool,
    /// Attempts of this call that ended.
    pub(crate) n_ended: u32,
    /// In `0.0..1.0`: which of the possible pauses.
    pub(crate) draw: f64,
}

/// What all calls of one model share: the budget of repetitions and the circuit breaker.
#[derive(Debug)]
pub(crate) struct Retries {
    state: Mutex<State>,
    /// Held by whom it is next to wait for the circuit, so that calls pass in the order in which
    /// they came.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    budget: RetryBudget,
    breaker: Breaker,
}

impl Retries {
    pub(crate) fn new() -> Self {
        let state = State { budget: RetryBudget::new(), breaker: Breaker::new() };
        Self { state: Mutex::new(state), turn: tokio::sync::Mutex::new(()), changed: Notify::new() }
    }

    /// Leave for one attempt, as soon as the circuit lets it pass.
    pub(crate) async fn pass(&self) -> Pass<'_> {
        let _turn = self.turn.lock().await;
        loop {
            let admission = self.lock().breaker.admit(now());
            match admission {
                Admission::Yes => return Pass::new(self, false),
                Admission::Probe => return Pass::new(self, true),
                Admission::After(pause) => {
                    select(pin!(sleep(pause)), pin!(self.changed.notified())).await;
                }
                Admission::AfterProbe => self.changed.notified().await,
            }
        }
    }

    /// What comes after a failed attempt. Takes the repetition out of the budget.
    pub(crate) fn next(&self, failed: Failed<'_>, policy: &RetryPolicy) -> Next {
        let Retry::Safe { after } = failed.error.retry() else { return Next::Stop };
        if failed.had_content || !is_between_us(failed.error.kind()) {
            return Next::Stop;
        }
        if let Some(after) = after.filter(|after| *after > policy.longest_wait) {
            return Next::Park(after);
        }
        let cost = if failed.error.kind() == ErrorKind::Timeout { TIMEOUT_COST } else { 1.0 };
        if failed.n_ended >= policy.max_attempts || !self.lock().budget.spend(cost) {
            return Next::Stop;
        }
        Next::After(after.unwrap_or_default() + jitter(failed.n_ended, failed.draw))
    }

    /// Probes that failed since the service last answered.
    pub(crate) fn n_failed_probes(&self) -> u32 {
        self.lock().breaker.n_failed_probes()
    }

    fn n_failed_in_row(&self) -> u32 {
        self.lock().breaker.n_failed_in_row()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to make one attempt. Dropped without a result, it tells nothing about the service.
#[derive(Debug)]
#[must_use]
pub(crate) struct Pass<'a> {
    retries: &'a Retries,
    is_probe: bool,
    is_ended: bool,
}

impl<'a> Pass<'a> {
    fn new(retries: &'a Retries, is_probe: bool) -> Self {
        Self { retries, is_probe, is_ended: false }
    }

    /// The attempt ended; `is_first` if it was the call's first.
    pub(crate) fn end<T>(mut self, result: &Result<T>, is_first: bool) {
        self.is_ended = true;
        let now = now();
        let mut state = self.retries.lock();
        if is_first {
            state.budget.call();
        }
        match Sign::of(result) {
            Sign::Answer => {
                state.budget.answer(now);
                state.breaker.answered();
            }
            Sign::Failure => state.breaker.failed(self.is_probe, now),
            Sign::None => state.breaker.learned_nothing(self.is_probe, now),
        }
        drop(state);
        self.retries.changed.notify_one();
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe && !self.is_ended {
            self.retries.lock().breaker.learned_nothing(true, now());
            self.retries.changed.notify_one();
        }
    }
}

/// What the end of an attempt says about the service.
enum Sign {
    Answer,
    Failure,
    None,
}

impl Sign {
    fn of<T>(result: &Result<T>) -> Self {
        use ErrorKind as K;
        match result.as_ref().map_err(Error::kind) {
            Ok(_) | Err(K::Auth | K::Quota | K::NotFound) => Self::Answer,
            Err(
                K::Overloaded
                | K::ServerError
                | K::Timeout
                | K::Truncated
                | K::Transport
                | K::Protocol,
            ) => Self::Failure,
            // It may never have been asked, or answered only that it is busy.
            Err(_) => Self::None,
        }
    }
}

/// Whether a failure of this kind lies between us and the answer, so that another attempt may fare
/// better.
fn is_between_us(kind: ErrorKind) -> bool {
    use ErrorKind as K;
    matches!(
        kind,
        K::RateLimited
            | K::Overloaded
            | K::ServerError
            | K::Timeout
            | K::Truncated
            | K::Transport
            | K::Protocol
            | K::Engine
            | K::EngineDied
            | K::Plugin
            | K::ModelLoad
            | K::Io
    )
}

/// Full jitter after `n_ended` attempts: the `draw`-th part of the base doubled per attempt, at
/// most the cap.
fn jitter(n_ended: u32, draw: f64) -> Duration {
    let ceiling = BACKOFF_BASE.saturating_mul(1 << n_ended.saturating_sub(1).min(10));
    ceiling.min(BACKOFF_CAP).mul_f64(draw.clamp(0.0, 1.0))
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Sleeps on the timers of the caller's tokio runtime; where there is none, on a thread.
async fn sleep(duration: Duration) {
    if tokio::runtime::Handle::try_current().is_ok() {
        return tokio::time::sleep(duration).await;
    }
    let (wake, woken) = oneshot::channel::<()>();
    // Dropped with this future, which ends the thread.
    let (_sleeper, is_gone) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _ = is_gone.recv_timeout(duration);
        drop(wake);
    });
    let _ = woken.await;
}

/// What the future comes to, unless `limit` passes first.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    match select(pin!(future), pin!(sleep(limit))).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(retries: &Retries, error: &Error, had_content: bool, n_ended: u32) -> Next {
        let failed = Failed { error, had_content, n_ended, draw: 0.5 };
        retries.next(failed, &RetryPolicy::default())
    }

    fn safe(kind: ErrorKind, after: Option<u64>) -> Error {
        let after = after.map(Duration::from_secs);
        Error::new(kind, "x").with_retry(Retry::Safe { after })
    }

    #[test]
    fn jitter_doubles_up_to_its_cap() {
        let ceiling = |n_ended| jitter(n_ended, 1.0).as_millis();
        assert_eq!([1, 2, 3, 6, 7, 100].map(ceiling), [500, 1000, 2000, 16_000, 30_000, 30_000]);
        assert_eq!(jitter(3, 0.25), Duration::from_millis(500));
        assert_eq!(jitter(0, 0.0), Duration::ZERO);
    }

    #[test]
    fn only_what_is_safe_is_tried_again() {
        let retries = Retries::new();
        let overloaded = safe(ErrorKind::Overloaded, None);
        assert_eq!(next(&retries, &overloaded, false, 1), Next::After(BACKOFF_BASE / 2));
        assert_eq!(next(&retries, &overloaded, true, 1), Next::Stop);
        assert_eq!(next(&retries, &overloaded, false, 4), Next::Stop);
        let never = Error::new(ErrorKind::Overloaded, "x");
        assert_eq!(next(&retries, &never, false, 1), Next::Stop);
        for kind in [ErrorKind::Auth, ErrorKind::Quota, ErrorKind::InvalidRequest] {
            assert_eq!(next(&retries, &safe(kind, None), false, 1), Next::Stop);
        }
    }

    #[test]
    fn a_hint_is_waited_for_in_full_or_not_at_all() {
        let retries = Retries::new();
        let limited = |after| safe(ErrorKind::RateLimited, Some(after));
        let pause = Duration::from_millis(60_250);
        assert_eq!(next(&retries, &limited(60), false, 1), Next::After(pause));
        let hour = Duration::from_secs(3600);
        assert_eq!(next(&retries, &limited(3600), false, 1), Next::Park(hour));
        assert_eq!(next(&retries, &limited(3600), false, 4), Next::Park(hour));
    }

    #[test]
    fn a_timeout_costs_two_repetitions() {
        for (kind, n_covered) in [(ErrorKind::Overloaded, 10), (ErrorKind::Timeout, 5)] {
            let retries = Retries::new();
            let error = safe(kind, None);
            let n = (0..20).filter(|_| next(&retries, &error, false, 1) != Next::Stop).count();
            assert_eq!(n, n_covered, "{kind}");
        }
    }
}
