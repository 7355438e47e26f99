//! A model that is asked again where that is safe.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use weighbridge_core::{
    Backend, BatchJobs, Capabilities, Classification, ClassifyRequest, Completion, EmbedRequest,
    Embedding, Error, ErrorKind, Event, EventSink, Likelihood, LikelihoodRequest, ModelCard,
    Prompt, Request, Result, Retry,
};

use super::{Failed, Next, Pass, Retries, RetryPolicy, now, sleep, within};

/// A model that is asked again after failures, by the rules that runs go by.
///
/// Its clones share one budget of repetitions and one circuit breaker; make one per model and clone
/// it. Nothing is sent again after content reached the sink. Events of an attempt before its first
/// content are held back until there is some, so that the sink sees one attempt only; `Started`
/// and `Progress` pass at once. The error of a call that was tried several times says how often, as
/// `attempts`. Vendor batches pass as they are.
///
/// Pauses use the timers of the caller's tokio runtime, which has to have them enabled; outside of
/// one a pause takes a thread of its own.
///
/// ```
/// use std::sync::Arc;
/// use weighbridge::{Backend, Retrying, RetryPolicy};
///
/// fn in_production(model: Arc<dyn Backend>) -> Arc<dyn Backend> {
///     let mut policy = RetryPolicy::default();
///     policy.timeout = Some(std::time::Duration::from_secs(90));
///     Arc::new(Retrying::new(model).with_policy(policy))
/// }
/// ```
#[derive(Clone)]
pub struct Retrying {
    inner: Arc<dyn Backend>,
    policy: RetryPolicy,
    retries: Arc<Retries>,
}

impl Retrying {
    /// `inner` with the usual policy.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, policy: RetryPolicy::default(), retries: Arc::new(Retries::new()) }
    }

    /// The same with another policy.
    #[must_use]
    pub fn with_policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    fn attempts(&self) -> Attempts<'_> {
        let deadline = self.policy.timeout.map(|timeout| now() + timeout);
        Attempts { model: self, deadline, n_ended: 0, last: None }
    }
}

impl fmt::Debug for Retrying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retrying")
            .field("inner", &self.inner)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// The attempts of one call.
struct Attempts<'a> {
    model: &'a Retrying,
    deadline: Option<Instant>,
    n_ended: u32,
    last: Option<Error>,
}

impl<'a> Attempts<'a> {
    /// Leave for the next attempt.
    async fn pass(&mut self) -> Result<Pass<'a>> {
        let Retrying { policy, retries, inner } = self.model;
        let patience = self.time_left().map_or(policy.patience, |left| policy.patience.min(left));
        if let Some(pass) = within(patience, retries.pass()).await {
            return Ok(pass);
        }
        Err(self.last.take().unwrap_or_else(|| {
            Error::new(
                ErrorKind::Overloaded,
                format!(
                    "`{}` was not asked: it does not answer since {} attempts, and is probed \
                     before further calls are sent",
                    inner.card().id,
                    retries.n_failed_in_row(),
                ),
            )
            .with_retry(Retry::Safe { after: None })
        }))
    }

    /// What an attempt comes to, within the limit of the call.
    async fn limit<T>(&self, attempt: impl Future<Output = Result<T>>) -> Result<T> {
        let Some((timeout, left)) = self.model.policy.timeout.zip(self.time_left()) else {
            return attempt.await;
        };
        within(left, attempt).await.unwrap_or_else(|| {
            Err(Error::new(
                ErrorKind::Timeout,
                "the call was given up at its deadline; raise the policy's `timeout` if that is \
                 too short",
            )
            .with("timeout_s", timeout.as_secs_f64()))
        })
    }

    /// Waits until the next attempt, unless this one was the last.
    async fn next<T>(
        &mut self,
        pass: Pass<'_>,
        result: Result<T>,
        had_content: bool,
    ) -> ControlFlow<Result<T>> {
        self.n_ended += 1;
        pass.end(&result, self.n_ended == 1);
        let error = match result {
            Ok(value) => return ControlFlow::Break(Ok(value)),
            Err(error) => error,
        };
        let draw = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
        let failed = Failed { error: &error, had_content, n_ended: self.n_ended, draw };
        let Next::After(pause) = self.model.retries.next(failed, &self.model.policy) else {
            return ControlFlow::Break(Err(self.counted(error)));
        };
        // What cannot be waited for is for the caller to know, with the service's hint.
        if self.time_left().is_some_and(|left| left <= pause) {
            return ControlFlow::Break(Err(self.counted(error)));
        }
        self.last = Some(self.counted(error));
        sleep(pause).await;
        ControlFlow::Continue(())
    }

    fn counted(&self, error: Error) -> Error {
        if self.n_ended > 1 { error.with("attempts", self.n_ended) } else { error }
    }

    fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(now()))
    }
}

/// Passes one attempt on: what precedes its first content only once there is some.
struct OneAttempt<'a> {
    sink: &'a mut dyn EventSink,
    held: Vec<Event<'static>>,
    has_started: bool,
    has_content: bool,
}

impl OneAttempt<'_> {
    fn release(&mut self) -> ControlFlow<()> {
        self.held.drain(..).try_for_each(|event| self.sink.push(event))
    }
}

impl EventSink for OneAttempt<'_> {
    fn push(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Started(_) if std::mem::replace(&mut self.has_started, true) => {
                ControlFlow::Continue(())
            }
            Event::Started(_) | Event::Progress { .. } => self.sink.push(event),
            event if self.has_content || event.is_content() => {
                self.has_content = true;
                self.release()?;
                self.sink.push(event)
            }
            event => {
                self.held.push(event.into_owned());
                ControlFlow::Continue(())
            }
        }
    }

    fn is_watched(&self) -> bool {
        self.sink.is_watched()
    }
}

/// A call without a sink, tried until it has a result.
macro_rules! tried {
    ($model:ident, $call:expr) => {{
        let mut attempts = $model.attempts();
        loop {
            let pass = attempts.pass().await?;
            let result = attempts.limit($call).await;
            if let ControlFlow::Break(result) = attempts.next(pass, result, false).await {
                return result;
            }
        }
    }};
}

#[async_trait]
impl Backend for Retrying {
    fn card(&self) -> &ModelCard {
        self.inner.card()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
        let mut attempts = self.attempts();
        let mut one = OneAttempt { sink, held: Vec::new(), has_started: false, has_content: false };
        loop {
            let pass = attempts.pass().await?;
            let result = attempts.limit(self.inner.generate(request, &mut one)).await;
            match attempts.next(pass, result, one.has_content).await {
                ControlFlow::Break(result) => {
                    // The call is over; a sink that wants no more has no more to come.
                    let _ = one.release();
                    return result;
                }
                ControlFlow::Continue(()) => one.held.clear(),
            }
        }
    }

    async fn log_likelihood(&self, request: &LikelihoodRequest) -> Result<Vec<Likelihood>> {
        tried!(self, self.inner.log_likelihood(request))
    }

    async fn embed(&self, request: &EmbedRequest) -> Result<Vec<Embedding>> {
        tried!(self, self.inner.embed(request))
    }

    async fn classify(&self, request: &ClassifyRequest) -> Result<Vec<Classification>> {
        tried!(self, self.inner.classify(request))
    }

    async fn count_tokens(&self, prompt: &Prompt) -> Result<u64> {
        tried!(self, self.inner.count_tokens(prompt))
    }

    fn batch(&self) -> Option<&dyn BatchJobs> {
        self.inner.batch()
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
