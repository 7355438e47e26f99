//! Sixty-four callers who come, stay and leave at random: nobody gets another's text, every call ends
//! once, and nothing stays behind. A few seconds; ten minutes with `cargo xtask test --full`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use common::*;
use serde_json::json;
use weighbridge_core::{
    Constraint, Event, LikelihoodItem, LikelihoodRequest, ModelRef, Prompt, Provider, Request,
    Sampling, StopReason, block_on,
};
use weighbridge_llama_cpp::LlamaCppProvider;

const N_CALLERS: usize = 64;
/// Log-probabilities of the same text in other company, in nats: F16 weights and an F16 cache.
const TOLERANCE: f64 = 0.2;
/// Parts of the time after each of which memory is looked at.
const N_PARTS: u32 = 10;
/// What the process may grow by in all parts but the first, which fills every cache and pool.
const MAX_GROWTH_BYTES: u64 = 24 << 20;

/// A text that nobody else is held to.
fn canary(caller: usize) -> String {
    format!("canary {caller:03} {}", "abcdefgh".repeat(1 + caller % 5))
}

fn prompt(caller: usize) -> Prompt {
    // Some share a long beginning, some nothing.
    let shared = "a customer writes about an order that has not come ".repeat(caller % 4);
    Prompt::Text(format!("{shared}caller {caller} says: "))
}

fn item(caller: usize) -> LikelihoodRequest {
    LikelihoodRequest::new(vec![LikelihoodItem::new(
        Arc::new(prompt(caller)),
        " where is my parcel",
    )])
}

/// Numbers from 0 on, without a pattern that matters here.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Polls a call for a while, then drops it.
fn drop_after(call: impl Future, patience: Duration) {
    let mut call = std::pin::pin!(call);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Bytes of this process that are in memory and not a file's.
fn n_own_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

#[test]
fn callers_that_come_and_go_leave_nothing_and_never_see_each_other() {
    let is_full = std::env::var_os("WEIGHBRIDGE_FULL_TESTS").is_some();
    let duration = Duration::from_secs(if is_full { 600 } else { 4 });
    let model = ModelRef::new("llama-cpp", "triage-open/triage-open-f16.gguf");
    let context = context(json!({ "n_ctx": 512, "n_ctx_total": 4096 })).with_base_dir(fixtures());
    let backend = block_on(LlamaCppProvider.open(&model, &context)).unwrap();

    let alone: Vec<f64> = (0..N_CALLERS)
        .map(|caller| {
            let mut request = item(caller);
            request.deterministic = true;
            let first = block_on(backend.log_likelihood(&request)).unwrap();
            let again = block_on(backend.log_likelihood(&request)).unwrap();
            assert_eq!(first[0].tokens, again[0].tokens, "deterministic is bit for bit");
            first[0].sum
        })
        .collect();

    let n_ended = AtomicUsize::new(0);
    let n_cancelled = AtomicUsize::new(0);
    let worst = Mutex::new(0f64);
    let begun = Instant::now();
    let serve = |until: Instant| {
        std::thread::scope(|scope| {
            for caller in 0..N_CALLERS {
                let (backend, alone) = (&backend, &alone);
                let (n_ended, n_cancelled, worst) = (&n_ended, &n_cancelled, &worst);
                scope.spawn(move || {
                    let seed = begun.elapsed().as_nanos() as u64;
                    let mut dice = Dice(seed ^ caller as u64);
                    let mut n_calls = 0;
                    while n_calls < 2 || Instant::now() < until {
                        n_calls += 1;
                        let canary = canary(caller);
                        let pattern = canary.replace(' ', "[ ]");
                        let mut request = Request::new(prompt(caller))
                            .with_sampling(Sampling::greedy())
                            .with_max_tokens(120)
                            .with_constraint(Constraint::Regex(pattern));
                        request.sampling.seed = Some(dice.below(1_000));
                        let mut seen = String::new();
                        let n_most = dice.below(6) as usize;
                        match dice.below(5) {
                            0 => {
                                let mut sink = |event: Event<'_>| {
                                    if let Event::Text(text) = event {
                                        seen.push_str(&text);
                                    }
                                    ControlFlow::Continue(())
                                };
                                let patience = Duration::from_micros(dice.below(60_000));
                                drop_after(backend.generate(&request, &mut sink), patience);
                                n_cancelled.fetch_add(1, Ordering::SeqCst);
                                assert!(canary.starts_with(&seen), "{canary}: {seen}");
                            }
                            1 => {
                                let mut sink = |event: Event<'_>| {
                                    if let Event::Text(text) = event {
                                        seen.push_str(&text);
                                    }
                                    match seen.len() > n_most {
                                        true => ControlFlow::Break(()),
                                        false => ControlFlow::Continue(()),
                                    }
                                };
                                let end = block_on(backend.generate(&request, &mut sink)).unwrap();
                                assert!(canary.starts_with(&end.text), "{canary}: {}", end.text);
                                n_ended.fetch_add(1, Ordering::SeqCst);
                            }
                            2 => {
                                let scored =
                                    block_on(backend.log_likelihood(&item(caller))).unwrap();
                                let gap = (scored[0].sum - alone[caller]).abs();
                                assert!(gap < TOLERANCE, "caller {caller}: {gap}");
                                let mut worst = worst.lock().unwrap();
                                *worst = worst.max(gap);
                                n_ended.fetch_add(1, Ordering::SeqCst);
                            }
                            _ => {
                                let mut sink = |_: Event<'_>| ControlFlow::Continue(());
                                let end = block_on(backend.generate(&request, &mut sink)).unwrap();
                                assert_eq!(end.text, canary);
                                assert_eq!(end.stop_reason, StopReason::Stop);
                                n_ended.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
                });
            }
        });
    };
    let held: Vec<Option<u64>> = (1..=N_PARTS)
        .map(|part| {
            serve(begun + duration * part / N_PARTS);
            n_own_bytes()
        })
        .collect();

    let (n_ended, n_cancelled) = (n_ended.into_inner(), n_cancelled.into_inner());
    assert!(n_ended > N_CALLERS && n_cancelled > 0, "{n_ended} ended, {n_cancelled} cancelled");
    let mebibytes: Vec<u64> = held.iter().flatten().map(|n_bytes| n_bytes >> 20).collect();
    println!(
        "{N_CALLERS} callers in {} s: {n_ended} calls ended, {n_cancelled} cancelled; \
         log-probabilities at most {:.3} nats apart; MiB held after each tenth: {mebibytes:?}",
        duration.as_secs(),
        worst.into_inner().unwrap()
    );
    if let (Some(n_before), Some(n_after)) = (held[0], held[N_PARTS as usize - 1]) {
        let n_grown = n_after.saturating_sub(n_before);
        assert!(n_grown < MAX_GROWTH_BYTES, "{n_grown} bytes more after {n_ended} calls");
    }
    // All of the cache is there for one that needs its whole share.
    let long = Request::new(Prompt::Text("one more ".repeat(20))).with_sampling(Sampling::greedy());
    let mut sink = |_: Event<'_>| ControlFlow::Continue(());
    assert!(block_on(backend.generate(&long, &mut sink)).is_ok());
    block_on(backend.close()).unwrap();
}
