//! A model that is asked again, on a virtual clock: outages, hints, deadlines and many callers.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use weighbridge::{
    Backend, BackendExt, Capabilities, Completion, Error, ErrorKind, Event, EventSink, ModelCard,
    Placement, Prompt, Request, Result, Retry, RetryPolicy, Retrying, StopReason, StopSink, Usage,
    Weights, block_on,
};

const N_CALLERS: u32 = 256;

/// What the service does with an attempt that reaches it at this time: how long it takes, and how
/// it ends.
type Behavior = Box<dyn Fn(Duration, u32) -> (Duration, Option<Error>) + Send + Sync>;

/// A service on the virtual clock, with a journal of its own.
struct Service {
    card: ModelCard,
    capabilities: Capabilities,
    started: Instant,
    behavior: Behavior,
    /// Prompt and time of every attempt.
    journal: Mutex<Vec<(String, Duration)>>,
    n_running: AtomicU32,
    max_running: AtomicU32,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

impl Service {
    fn new(
        behavior: impl Fn(Duration, u32) -> (Duration, Option<Error>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let placement = Placement::Network { host: "api.example".into() };
        Arc::new(Self {
            card: ModelCard::new("m", "service", Weights::Closed, placement),
            capabilities: Capabilities::none(),
            started: Instant::now(),
            behavior: Box::new(behavior),
            journal: Mutex::default(),
            n_running: AtomicU32::new(0),
            max_running: AtomicU32::new(0),
        })
    }

    fn n_attempts(&self) -> usize {
        self.journal.lock().unwrap().len()
    }

    /// Times of the attempts per call.
    fn calls(&self) -> BTreeMap<String, Vec<Duration>> {
        let mut calls = BTreeMap::<_, Vec<_>>::new();
        for (prompt, at) in &*self.journal.lock().unwrap() {
            calls.entry(prompt.clone()).or_default().push(*at);
        }
        calls
    }
}

/// One attempt under way.
struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Backend for Service {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
        let Prompt::Chat(messages) = &request.prompt else { unreachable!("tests chat") };
        let n = {
            let mut journal = self.journal.lock().unwrap();
            journal.push((messages[0].text(), self.started.elapsed()));
            journal.len() as u32
        };
        let n_running = self.n_running.fetch_add(1, Ordering::SeqCst) + 1;
        let _running = Running(&self.n_running);
        self.max_running.fetch_max(n_running, Ordering::SeqCst);
        let (time, error) = (self.behavior)(self.started.elapsed(), n);
        sleep(time).await;
        if let Some(error) = error {
            return Err(error);
        }
        let _ = sink.push(Event::Text("yes".into()));
        Ok(Completion::new("yes", StopReason::Stop))
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn safe(kind: ErrorKind, after: Option<Duration>) -> Option<Error> {
    Some(Error::new(kind, "not now").with_retry(Retry::Safe { after }))
}

async fn call(model: &Retrying, name: impl Into<String>) -> Result<Completion> {
    model.complete(&Request::user(name)).await
}

/// `n_calls` by each of many callers, one after the other.
async fn load(
    model: &Retrying,
    n_calls: u32,
    pause: Duration,
) -> Vec<(Duration, Result<Completion>)> {
    let callers = (0..N_CALLERS).map(|caller| async move {
        let mut results = Vec::new();
        for i in 0..n_calls {
            let before = Instant::now();
            let result = call(model, format!("{caller}/{i}")).await;
            results.push((before.elapsed(), result));
            sleep(pause).await;
        }
        results
    });
    join_all(callers).await.into_iter().flatten().collect()
}

#[tokio::test(start_paused = true)]
async fn a_full_outage_costs_few_attempts_and_ends_every_call() {
    for kind in [ErrorKind::Overloaded, ErrorKind::Transport, ErrorKind::Timeout] {
        let service = Service::new(move |_, _| (ms(20), safe(kind, None)));
        let model = Retrying::new(service.clone());
        let results = load(&model, 4, ms(100)).await;
        let n_calls = results.len();
        assert_eq!(n_calls, 1024);
        for (time, result) in results {
            let error = result.unwrap_err();
            assert!(matches!(error.retry(), Retry::Safe { .. }), "{error}");
            // Its own attempts and pauses, and its patience before each of them.
            assert!(time < Duration::from_secs(4 * (30 + 4)), "{time:?}");
        }
        let n_asked = service.calls().len().max(100);
        let n_attempts = service.n_attempts();
        assert!(n_attempts as f64 <= 1.10 * n_asked as f64, "{kind}: {n_attempts} for {n_asked}");
        // The circuit kept nearly all of them from being sent at all.
        assert!(n_attempts < n_calls / 2, "{kind}: {n_attempts}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_without_a_circuit_is_held_by_the_budget_alone() {
    // A service that says only that it is busy is not down, so the circuit stays closed.
    let service = Service::new(|_, _| (ms(20), safe(ErrorKind::RateLimited, None)));
    let model = Retrying::new(service.clone());
    let n_calls = load(&model, 4, ms(100)).await.len();
    let (n_asked, n_attempts) = (service.calls().len(), service.n_attempts());
    assert_eq!(n_asked, n_calls, "a busy service is asked");
    assert!(n_attempts as f64 <= 1.10 * n_calls as f64, "{n_attempts} for {n_calls}");
    assert!(n_attempts > n_calls, "nothing was tried again");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_down_is_probed_by_one_call_at_a_time() {
    let service = Service::new(|_, _| (ms(200), safe(ErrorKind::Overloaded, None)));
    let mut policy = RetryPolicy::default();
    policy.patience = Duration::from_secs(600);
    let model = Retrying::new(service.clone()).with_policy(policy);
    for i in 0..5 {
        let mut once = RetryPolicy::default();
        once.max_attempts = 1;
        call(&model.clone().with_policy(once), format!("{i}")).await.unwrap_err();
    }
    service.max_running.store(0, Ordering::SeqCst);
    let _ = timeout(Duration::from_secs(100), load(&model, 1, ms(0))).await;
    assert_eq!(service.max_running.load(Ordering::SeqCst), 1);
    let times: Vec<_> = service.journal.lock().unwrap()[4..].iter().map(|(_, at)| *at).collect();
    let gaps: Vec<_> = times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64().round()).collect();
    assert_eq!(gaps[..7], [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]);
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_every_caller_is_served() {
    let outage = Duration::from_secs(10)..Duration::from_secs(32);
    let (down, up) = (outage.start, outage.end);
    let service = Service::new(move |at, _| {
        let error = outage.contains(&at).then(|| safe(ErrorKind::Overloaded, None)).flatten();
        (ms(50), error)
    });
    let model = Retrying::new(service.clone());
    let results = load(&model, 200, ms(250)).await;
    let n_failed = results.iter().filter(|(_, result)| result.is_err()).count();
    let n_in_outage =
        service.journal.lock().unwrap().iter().filter(|c| c.1 > down && c.1 < up).count();
    // Those that were on their way when it began could not all be repeated.
    assert!(n_failed <= N_CALLERS as usize, "{n_failed}");
    assert!(n_in_outage <= N_CALLERS as usize + 20, "{n_in_outage}");
    let longest = results.iter().map(|(time, _)| *time).max().unwrap();
    assert!(longest < Duration::from_secs(31), "a caller starved for {longest:?}");
}

#[tokio::test(start_paused = true)]
async fn no_attempt_comes_before_its_hint_has_passed() {
    let hint = |n: u32| ms(u64::from(n % 40) * 500 + 1);
    let service = Service::new(move |_, n| match n % 3 {
        0 => (ms(30), safe(ErrorKind::RateLimited, Some(hint(n)))),
        _ => (ms(30), None),
    });
    let model = Retrying::new(service.clone());
    let results = load(&model, 20, ms(10)).await;
    let journal = service.journal.lock().unwrap().clone();
    let mut n_repeated = 0;
    let mut last: BTreeMap<&str, (u32, Duration)> = BTreeMap::new();
    for (i, (name, at)) in journal.iter().enumerate() {
        let n = i as u32 + 1;
        if let Some((before, since)) = last.insert(name, (n, *at)) {
            let waited = *at - since;
            assert!(waited >= hint(before), "{name}: {waited:?} for {:?}", hint(before));
            n_repeated += 1;
        }
    }
    assert!(n_repeated > 100, "{n_repeated}");
    assert_eq!(results.len() + n_repeated, journal.len());
    assert!(n_repeated * 10 < results.len() * 3, "{n_repeated} of {}", results.len());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_waited_for_comes_back_at_once_with_its_hint() {
    let hour = Duration::from_secs(3600);
    for (hint, limit, waits) in [
        (hour, None, false),
        (Duration::from_secs(20), Some(Duration::from_secs(5)), false),
        (Duration::from_secs(4), Some(Duration::from_secs(5)), true),
    ] {
        let service = Service::new(move |_, n| match n {
            1 => (ms(10), safe(ErrorKind::RateLimited, Some(hint))),
            _ => (ms(10), None),
        });
        let mut policy = RetryPolicy::default();
        policy.timeout = limit;
        let model = Retrying::new(service.clone()).with_policy(policy);
        let before = Instant::now();
        match call(&model, "a").await {
            Ok(_) => assert!(waits && before.elapsed() >= hint),
            Err(error) => {
                assert!(!waits && before.elapsed() < ms(20));
                assert_eq!(error.retry(), Retry::Safe { after: Some(hint) });
                assert_eq!(service.n_attempts(), 1);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_call_outlives_its_deadline() {
    let slow = Service::new(|_, _| (Duration::from_secs(500), None));
    let down = Service::new(|_, _| (ms(700), safe(ErrorKind::ServerError, None)));
    for service in [slow, down] {
        let mut policy = RetryPolicy::default();
        policy.timeout = Some(Duration::from_secs(5));
        let model = Retrying::new(service.clone()).with_policy(policy);
        for (time, result) in load(&model, 3, ms(10)).await {
            assert!(result.is_err());
            assert!(time <= ms(5100), "{time:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_cancelled_does_not_close_the_way() {
    let service = Service::new(|at, _| match at < Duration::from_secs(1) {
        true => (ms(1), safe(ErrorKind::Transport, None)),
        false => (Duration::from_secs(3), None),
    });
    let mut policy = RetryPolicy::default();
    policy.max_attempts = 1;
    let model = Retrying::new(service.clone()).with_policy(policy);
    for i in 0..5 {
        call(&model, format!("{i}")).await.unwrap_err();
    }
    sleep(Duration::from_secs(2)).await;
    timeout(Duration::from_secs(1), call(&model, "cancelled")).await.unwrap_err();
    call(&model, "next").await.unwrap();
    // Nobody waits at a closed way who has no patience for it.
    assert_eq!(service.calls()["next"].len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_patience_is_told_at_once() {
    let service = Service::new(|_, _| (ms(1), safe(ErrorKind::Transport, None)));
    let mut policy = RetryPolicy::default();
    policy.max_attempts = 1;
    policy.patience = Duration::ZERO;
    let model = Retrying::new(service.clone()).with_policy(policy);
    for i in 0..5 {
        call(&model, format!("{i}")).await.unwrap_err();
    }
    let before = Instant::now();
    let error = call(&model, "late").await.unwrap_err();
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.message().contains("`m` was not asked"), "{error}");
    assert_eq!(service.n_attempts(), 5);
}

/// Fails its first attempts at some point of an answer.
#[derive(Debug)]
struct Breaking {
    inner: Arc<Service>,
    says_first: Vec<Event<'static>>,
}

#[async_trait]
impl Backend for Breaking {
    fn card(&self) -> &ModelCard {
        self.inner.card()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
        for event in &self.says_first {
            let _ = sink.push(event.clone());
        }
        self.inner.generate(request, sink).await
    }
}

fn cut_twice() -> Arc<Service> {
    Service::new(|_, n| (ms(1), (n < 3).then(|| safe(ErrorKind::Truncated, None)).flatten()))
}

#[tokio::test(start_paused = true)]
async fn the_sink_sees_one_attempt() {
    let usage = Usage::new(7, 0);
    let says_first = vec![
        Event::Started(std::borrow::Cow::Owned(weighbridge::EffectiveParams::new())),
        Event::Usage(std::borrow::Cow::Owned(usage)),
        Event::Warning("w".into()),
    ];
    let inner = cut_twice();
    let model = Retrying::new(Arc::new(Breaking { inner: inner.clone(), says_first }));
    let mut seen = Vec::new();
    let mut sink = |event: Event<'_>| {
        let text = format!("{event:?}");
        seen.push(text.split('(').next().unwrap().to_owned());
        ControlFlow::Continue(())
    };
    let completion = model.generate(&Request::user("Hi"), &mut sink).await.unwrap();
    assert_eq!(completion.text, "yes");
    assert_eq!(seen, ["Started", "Usage", "Warning", "Text"]);
    assert_eq!(inner.n_attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_again_after_content() {
    let inner = cut_twice();
    let says_first = vec![Event::Text("Hel".into())];
    let model = Retrying::new(Arc::new(Breaking { inner: inner.clone(), says_first }));
    let error = model.generate(&Request::user("Hi"), &mut StopSink::never()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Truncated);
    assert_eq!((inner.n_attempts(), error.context("attempts")), (1, None));
}

#[test]
fn it_needs_no_runtime() {
    #[derive(Debug)]
    struct Flaky(Arc<Service>);
    #[async_trait]
    impl Backend for Flaky {
        fn card(&self) -> &ModelCard {
            self.0.card()
        }
        fn capabilities(&self) -> &Capabilities {
            self.0.capabilities()
        }
        async fn generate(&self, _: &Request, _: &mut dyn EventSink) -> Result<Completion> {
            match self.0.n_running.fetch_add(1, Ordering::SeqCst) {
                0 => Err(safe(ErrorKind::Overloaded, None).unwrap()),
                _ => Ok(Completion::new("yes", StopReason::Stop)),
            }
        }
    }
    let service = Service::new(|_, _| (ms(0), None));
    let model = Retrying::new(Arc::new(Flaky(service.clone())));
    assert_eq!(block_on(call(&model, "a")).unwrap().text, "yes");
    assert_eq!(service.n_running.load(Ordering::SeqCst), 2);
}
