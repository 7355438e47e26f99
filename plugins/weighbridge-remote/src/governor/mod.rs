//! How many calls go to a model at once, and when: adapted to what its server bears and tells.
//!
//! All backends of one origin, key and model in a process share one governor, because the server
//! counts them together. Calls enter in the order in which they came. A governor
//!
//! - halves the number of calls at once when the server pushes back (429, 503, 529), and adds one
//!   per round of answers, between 1 and `max_concurrency`;
//! - holds all calls back while a server that refused one of them asked to be left alone, and while
//!   a budget that it tells is used up;
//! - keeps to the user's `requests_per_minute` and `tokens_per_minute` in any 60 seconds.
//!
//! A call that would have to wait for more than a minute or beyond its deadline fails at once,
//! unsent, with the wait as its advice.

mod cap;
mod state;
mod told;
mod window;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use hyper::header::HeaderMap;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, Sleep};
use weighbridge_core::{Error, ErrorKind, Result, Retry, Secret, Usage};

use crate::runtime;
use state::{Blocked, State, Ticket, Why};

/// A longer wait is the caller's to decide on.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a backend's options allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_concurrency: u32,
    pub(crate) requests_per_minute: Option<u64>,
    pub(crate) tokens_per_minute: Option<u64>,
}

/// Whose calls a server counts together, by model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    origin: String,
    /// A digest of the key that only this process can make.
    key: Option<u64>,
    model: String,
}

impl Account {
    pub(crate) fn new(origin: String, key: Option<&Secret>) -> Self {
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let key = key.map(|key| STATE.hash_one(key.expose()));
        Self { origin, key, model: String::new() }
    }

    #[must_use]
    pub(crate) fn of_model(self, model: &str) -> Self {
        Self { model: model.to_owned(), ..self }
    }
}

/// One backend's way to the governor of its model.
#[derive(Debug)]
pub(crate) struct Gate {
    governor: Arc<Governor>,
    /// This backend's own calls at once; closed when the backend is.
    permits: Semaphore,
    place: String,
    /// Limit of a whole call, waiting included.
    timeout: Duration,
}

impl Gate {
    /// The way to the governor of `account`, which is made if there is none. `place` is the server's
    /// name for people.
    ///
    /// # Errors
    /// If the runtime cannot be started.
    pub(crate) fn open(
        account: Account,
        place: &str,
        limits: Limits,
        timeout: Duration,
    ) -> Result<Self> {
        static GOVERNORS: LazyLock<Mutex<HashMap<Account, Weak<Governor>>>> =
            LazyLock::new(Mutex::default);
        let timers = runtime::handle()?;
        let mut governors = GOVERNORS.lock().unwrap_or_else(PoisonError::into_inner);
        governors.retain(|_, governor| governor.strong_count() > 0);
        let governor = match governors.get(&account).and_then(Weak::upgrade) {
            Some(governor) => {
                governor.lock().join(limits);
                governor
            }
            None => {
                let governor = Arc::new(Governor::new(limits, timers.clone()));
                governors.insert(account, Arc::downgrade(&governor));
                governor
            }
        };
        Ok(Self::to(governor, place, limits, timeout))
    }

    fn to(governor: Arc<Governor>, place: &str, limits: Limits, timeout: Duration) -> Self {
        let permits = Semaphore::new(limits.max_concurrency as usize);
        Self { governor, permits, place: place.to_owned(), timeout }
    }

    /// Leave for one call of some `n_tokens`, in its turn. Dropping the future gives the place in
    /// the queue up.
    ///
    /// # Errors
    /// [`RateLimited`](ErrorKind::RateLimited), with the wait as advice, for a call that cannot go
    /// in time; [`Cancelled`](ErrorKind::Cancelled) once the gate is closed.
    pub(crate) async fn enter(&self, n_tokens: u64) -> Result<Permit<'_>> {
        let deadline = self.governor.now() + self.timeout;
        let entering = async {
            let permit = self.permits.acquire().await.map_err(|_| {
                Error::new(ErrorKind::Cancelled, "the model was closed").with("host", &self.place)
            })?;
            let ticket = self.governor.enter(n_tokens, deadline).await;
            let ticket = ticket.map_err(|(wait, why)| self.too_long(wait, why))?;
            Ok(Permit { governor: &self.governor, ticket, _permit: permit })
        };
        let mut entering = pin!(entering);
        // Mostly it is nobody else's turn, and no timer is needed.
        if let Some(entered) = entering.as_mut().now_or_never() {
            return entered;
        }
        let too_late = self.governor.sleep_until(deadline);
        match select(entering, pin!(too_late)).await {
            Either::Left((entered, _)) => entered,
            Either::Right(_) => Err(Error::new(
                ErrorKind::RateLimited,
                format!(
                    "no turn came within {} s at {}, and nothing was sent; lower the concurrency, \
                     or raise `timeout_s` or `max_concurrency`",
                    self.timeout.as_secs_f64(),
                    self.place,
                ),
            )
            .with("phase", "queue")
            .with_retry(Retry::Safe { after: None })),
        }
    }

    /// Lets no further call in.
    pub(crate) fn close(&self) {
        self.permits.close();
    }

    fn too_long(&self, wait: Duration, why: Why) -> Error {
        let why = match why {
            Why::Held => "asked to be left alone",
            Why::Budget => "has no budget left",
            Why::Cap => "is at `requests_per_minute` or `tokens_per_minute`",
        };
        Error::new(
            ErrorKind::RateLimited,
            format!("{} {why} for {:.1} s, and nothing was sent", self.place, wait.as_secs_f64()),
        )
        .with("phase", "queue")
        .with_retry(Retry::Safe { after: Some(wait) })
    }
}

/// What the backends of one account share.
#[derive(Debug)]
struct Governor {
    state: Mutex<State>,
    /// Held by whom it is next to enter. Fair: who comes first is next.
    turn: tokio::sync::Mutex<()>,
    /// Tells the next one that something changed.
    changed: Notify,
    /// Whose timers are used. Callers may have none.
    timers: Handle,
}

impl Governor {
    fn new(limits: Limits, timers: Handle) -> Self {
        Self {
            state: Mutex::new(State::new(limits)),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            timers,
        }
    }

    /// Waits for a turn and for leave; fails with the wait that would be too long.
    async fn enter(&self, n_tokens: u64, deadline: Instant) -> Result<Ticket, (Duration, Why)> {
        let now = self.now();
        let _waiting = {
            let mut state = self.lock();
            if state.n_waiting == 0
                && let Ok(ticket) = state.admit(n_tokens, now)
            {
                return Ok(ticket);
            }
            state.n_waiting += 1;
            Waiting(self)
        };
        let _turn = self.turn.lock().await;
        loop {
            let now = self.now();
            let blocked = self.lock().admit(n_tokens, now);
            match blocked {
                Ok(ticket) => return Ok(ticket),
                Err(Blocked::Until(until, why)) => {
                    if until > deadline || until - now > LONGEST_WAIT {
                        return Err((until - now, why));
                    }
                    select(pin!(self.sleep_until(until)), pin!(self.changed.notified())).await;
                }
                Err(Blocked::Full) => self.changed.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        let _timers = self.timers.enter();
        Instant::now()
    }

    fn sleep_until(&self, at: Instant) -> Sleep {
        let _timers = self.timers.enter();
        tokio::time::sleep_until(at)
    }
}

/// A call that waits for its turn. Nobody overtakes it.
struct Waiting<'a>(&'a Governor);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().n_waiting -= 1;
    }
}

/// Leave for one call. Dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    governor: &'a Governor,
    ticket: Ticket,
    _permit: SemaphorePermit<'a>,
}

impl Permit<'_> {
    /// The head of an answer came.
    pub(crate) fn told(&self, headers: &HeaderMap) {
        let told = told::told(headers);
        if told.iter().any(Option::is_some) {
            let now = self.governor.now();
            self.governor.lock().told(self.ticket, told, now);
            self.governor.changed.notify_one();
        }
    }

    /// The call ended.
    pub(crate) fn ended<T>(&self, result: &Result<T>) {
        let Err(error) = result else { return self.governor.lock().answered() };
        if matches!(error.kind(), ErrorKind::RateLimited | ErrorKind::Overloaded) {
            let after = match error.retry() {
                Retry::Safe { after } => after,
                _ => None,
            };
            let now = self.governor.now();
            self.governor.lock().pushed_back(self.ticket, after, now);
        }
    }

    /// What the call really used, as far as it is known.
    pub(crate) fn used(&self, usage: &Usage) {
        if let (Some(n_prompt), Some(n_out)) = (usage.n_prompt_tokens, usage.n_generated_tokens) {
            self.governor.lock().used(self.ticket, n_prompt.saturating_add(n_out));
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.governor.lock().leave();
        self.governor.changed.notify_one();
    }
}
