//! The governor on a virtual clock.

use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::{join_all, poll_immediate};
use hyper::header::{HeaderName, HeaderValue};
use tokio::time::{sleep, timeout};
use weighbridge_core::{Completion, StopReason};

use super::*;

const LIMITS: Limits =
    Limits { max_concurrency: 8, requests_per_minute: None, tokens_per_minute: None };

fn gate(limits: Limits, timeout_s: u64) -> Gate {
    let governor = Arc::new(Governor::new(limits, Handle::current()));
    Gate::to(governor, "api.example", limits, Duration::from_secs(timeout_s))
}

fn sibling(gate: &Gate) -> Gate {
    Gate::to(Arc::clone(&gate.governor), &gate.place, LIMITS, gate.timeout)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn ok() -> Result<Completion> {
    Ok(Completion::new("yes", StopReason::Stop))
}

fn busy(after: Option<Duration>) -> Result<Completion> {
    Err(Error::new(ErrorKind::RateLimited, "x").with_retry(Retry::Safe { after }))
}

fn headers(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = headers.iter().copied();
    pairs.map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

#[tokio::test(start_paused = true)]
async fn calls_enter_in_the_order_in_which_they_came() {
    let gate = gate(LIMITS, 600);
    let order = Mutex::new(Vec::new());
    let calls = (0..64).map(|i| {
        let (gate, order) = (&gate, &order);
        async move {
            let permit = gate.enter(1).await.unwrap();
            order.lock().unwrap().push(i);
            sleep(ms(10 + i % 7)).await;
            permit.ended(&ok());
        }
    });
    join_all(calls).await;
    assert_eq!(order.into_inner().unwrap(), (0..64).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_a_call_that_waits() {
    let narrow = Limits { max_concurrency: 1, ..LIMITS };
    let gate = sibling(&gate(narrow, 600));
    let first = gate.enter(1).await.unwrap();
    let mut second = Box::pin(gate.enter(1));
    assert!(poll_immediate(&mut second).await.is_none());
    drop(first);
    let mut third = Box::pin(gate.enter(1));
    assert!(poll_immediate(&mut third).await.is_none());
    drop(second.await.unwrap());
    third.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_leaves_the_queue_leaves_no_hole() {
    let limits = Limits { max_concurrency: 1, ..LIMITS };
    let gate = gate(limits, 600);
    let first = gate.enter(1).await.unwrap();
    // The head of the queue and those behind it, each given up at another moment.
    for i in 0..20 {
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(gate.enter(1))).collect();
        for call in &mut waiting {
            assert!(poll_immediate(call).await.is_none());
        }
        drop(waiting.remove(i % 3));
        drop(waiting);
    }
    let next = Box::pin(gate.enter(1));
    drop(first);
    let next = timeout(ms(1), next).await.unwrap().unwrap();
    // Leave that was given but not taken goes to the next.
    let mut taken_back = Box::pin(gate.enter(1));
    assert!(poll_immediate(&mut taken_back).await.is_none());
    drop(next);
    drop(taken_back);
    timeout(ms(1), gate.enter(1)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn push_back_narrows_and_answers_widen() {
    let gate = gate(LIMITS, 600);
    let width = async || {
        let mut permits = Vec::new();
        while let Ok(permit) = timeout(ms(1), gate.enter(1)).await {
            permits.push(permit.unwrap());
        }
        permits.len()
    };
    assert_eq!(width().await, 8);
    let permits = join_all((0..8).map(|_| gate.enter(1))).await;
    for permit in &permits {
        permit.as_ref().unwrap().ended(&busy(None));
    }
    drop(permits);
    assert_eq!(width().await, 4);
    for _ in 0..40 {
        gate.enter(1).await.unwrap().ended(&ok());
    }
    assert_eq!(width().await, 8);
}

#[tokio::test(start_paused = true)]
async fn a_hint_to_one_call_holds_its_siblings_back() {
    let gate = gate(LIMITS, 600);
    let other = sibling(&gate);
    let start = Instant::now();
    gate.enter(1).await.unwrap().ended(&busy(Some(ms(7000))));
    let calls = (0..4).map(|_| async {
        other.enter(1).await.unwrap().ended(&ok());
        start.elapsed()
    });
    assert!(join_all(calls).await.iter().all(|entered| entered.as_secs() == 7));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_too_long_fails_at_once_with_its_length() {
    for (timeout_s, hint_s) in [(600, 3600), (5, 20)] {
        let gate = gate(LIMITS, timeout_s);
        let start = Instant::now();
        gate.enter(1).await.unwrap().ended(&busy(Some(Duration::from_secs(hint_s))));
        for entered in join_all((0..100).map(|_| gate.enter(1))).await {
            let error = entered.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RateLimited);
            let after = Some(Duration::from_secs(hint_s));
            assert_eq!(error.retry(), Retry::Safe { after });
            assert!(error.message().contains("api.example asked to be left alone"), "{error}");
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        sleep(Duration::from_secs(hint_s)).await;
        gate.enter(1).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_call_waits_beyond_its_deadline() {
    let gate = gate(Limits { max_concurrency: 1, ..LIMITS }, 5);
    let _running = gate.enter(1).await.unwrap();
    let start = Instant::now();
    let entered = join_all((0..256).map(|_| gate.enter(1))).await;
    assert!(entered.iter().all(|e| e.as_ref().unwrap_err().context("phase") == Some("queue")));
    assert!(start.elapsed() <= ms(5100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_is_waited_for() {
    for (told, wait) in [
        ([("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6s")], Some(6)),
        ([("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "1m0s")], Some(60)),
        ([("x-ratelimit-remaining-tokens", "1"), ("x-ratelimit-reset-tokens", "6m0s")], None),
        ([("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "0s")], None),
    ] {
        let gate = gate(LIMITS, 600);
        let start = Instant::now();
        let permit = gate.enter(10).await.unwrap();
        permit.told(&headers(&told));
        gate.enter(10).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), wait.unwrap_or(0), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_after_a_call_is_not_in_the_budget_that_it_is_told() {
    let gate = gate(LIMITS, 600);
    let start = Instant::now();
    let permits: Vec<_> = join_all((0..4).map(|_| gate.enter(100))).await;
    let first = permits[0].as_ref().unwrap();
    first.told(&headers(&[
        ("x-ratelimit-remaining-requests", "5"),
        ("x-ratelimit-reset-requests", "30s"),
    ]));
    // Three of the five are on their way already.
    for n_seconds in [0, 0, 30] {
        gate.enter(100).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), n_seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn a_users_own_limits_hold_in_any_minute() {
    let limits = Limits { requests_per_minute: Some(30), tokens_per_minute: Some(1000), ..LIMITS };
    let gate = gate(limits, 6000);
    let start = Instant::now();
    let times = Mutex::new(Vec::new());
    let calls = (0..100_u64).map(|i| {
        let (gate, times) = (&gate, &times);
        async move {
            let n_tokens = 20 + i % 30;
            let permit = gate.enter(n_tokens).await.unwrap();
            times.lock().unwrap().push((start.elapsed(), n_tokens));
            sleep(ms(500)).await;
            permit.ended(&ok());
        }
    });
    join_all(calls).await;
    let times = times.into_inner().unwrap();
    for (at, _) in &times {
        let minute = times.iter().filter(|(t, _)| t >= at && *t < *at + Duration::from_secs(60));
        assert!(minute.clone().count() <= 30);
        assert!(minute.map(|(_, n)| n).sum::<u64>() <= 1000);
    }
    // No slower than the limits ask: 30 per minute in the first, then as tokens allow.
    assert!(start.elapsed() < Duration::from_secs(241), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn tokens_that_were_not_used_are_free_again() {
    let gate = gate(Limits { tokens_per_minute: Some(1000), ..LIMITS }, 600);
    let start = Instant::now();
    for _ in 0..10 {
        gate.enter(900).await.unwrap().used(&Usage::new(5, 5));
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    gate.enter(900).await.unwrap();
    gate.enter(900).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_closed_gate_lets_nobody_in_and_leaves_its_siblings_open() {
    let gate = gate(Limits { max_concurrency: 1, ..LIMITS }, 600);
    let other = sibling(&gate);
    let running = gate.enter(1).await.unwrap();
    let mut waiting = Box::pin(gate.enter(1));
    assert!(poll_immediate(&mut waiting).await.is_none());
    gate.close();
    assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(gate.enter(1).await.unwrap_err().kind(), ErrorKind::Cancelled);
    drop(running);
    other.enter(1).await.unwrap();
}

#[tokio::test]
async fn one_account_has_one_governor_and_the_strictest_limits_hold() {
    let origin = "https://governor.test";
    let open = |key: &str, model: &str, limits| {
        let account = Account::new(origin.into(), Some(&Secret::new(key))).of_model(model);
        Gate::open(account, "governor.test", limits, ms(1000)).unwrap()
    };
    let strict = Limits { requests_per_minute: Some(1), ..LIMITS };
    let (first, second) = (open("k", "m", LIMITS), open("k", "m", strict));
    assert!(Arc::ptr_eq(&first.governor, &second.governor));
    for other in [open("k", "n", LIMITS), open("l", "m", LIMITS)] {
        assert!(!Arc::ptr_eq(&first.governor, &other.governor));
    }
    first.enter(1).await.unwrap();
    let error = second.enter(1).await.unwrap_err();
    assert!(error.message().contains("requests_per_minute"), "{error}");
    drop((first, second));
    open("k", "m", LIMITS).enter(1).await.unwrap();
}

/// A service that bears so many calls at once, and refuses more with a hint.
#[tokio::test(start_paused = true)]
async fn many_callers_find_what_a_service_bears_and_none_starves() {
    const BEARS: u32 = 12;
    let limits = Limits { max_concurrency: 256, ..LIMITS };
    let gate = gate(limits, 3600);
    let (n_running, n_refused, n_answered) =
        (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let start = Instant::now();
    let callers = (0..256).map(|_| async {
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            let asked = Instant::now();
            loop {
                let permit = gate.enter(1).await.unwrap();
                let is_too_many = n_running.fetch_add(1, Ordering::SeqCst) >= BEARS;
                sleep(ms(if is_too_many { 5 } else { 100 })).await;
                n_running.fetch_sub(1, Ordering::SeqCst);
                if !is_too_many {
                    n_answered.fetch_add(1, Ordering::SeqCst);
                    permit.ended(&ok());
                    break;
                }
                n_refused.fetch_add(1, Ordering::SeqCst);
                permit.ended(&busy(Some(ms(200))));
            }
            longest = longest.max(asked.elapsed());
        }
        longest
    });
    let longest = join_all(callers).await.into_iter().max().unwrap();
    let (n_answered, n_refused) = (n_answered.into_inner(), n_refused.into_inner());
    assert_eq!(n_answered, 2560);
    // Without adapting, nearly every call would be refused many times.
    assert!(n_refused < n_answered / 2, "{n_refused}");
    // Alone, 12 at once would take 2560 / 12 · 0.1 s.
    let ideal = ms(2560 * 100 / u64::from(BEARS));
    assert!(start.elapsed() < ideal * 4, "{:?} of {ideal:?}", start.elapsed());
    assert!(longest < start.elapsed() / 3, "{longest:?} of {:?}", start.elapsed());
}
