//! The prefix cache and the budget of the KV cache: what is fed once, what gives way, what is exact.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use weighbridge_core::{
    Backend, ErrorKind, LikelihoodItem, LikelihoodRequest, Prompt, Request, Window, block_on,
};
use weighbridge_engine::EngineOptions;
use weighbridge_engine::logits::{Batching, Fork, SnapshotKind, Truncate};
use weighbridge_engine::toy::{END, ToyOptions};

use crate::decode::{brute_force, seeded};
use crate::support::{Seen, Toy, complete, generate, open, tokens};

fn options(change: impl FnOnce(&mut ToyOptions)) -> ToyOptions {
    let mut options = ToyOptions::default();
    change(&mut options);
    options
}

fn with_prefix(shared: &[u32], own: u64, n_own: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(own);
    let own = (0..n_own).map(|_| 1 + rng.next_u32() % 30);
    shared.iter().copied().chain(own).collect()
}

fn request(prompt: &[u32], seed: u64, max_tokens: u32) -> Request {
    Request::new(tokens(prompt))
        .with_sampling(seeded(seed))
        .with_max_tokens(max_tokens)
        .with_logprobs(0)
}

#[track_caller]
fn check(backend: &dyn Backend, prompt: &[u32], seed: u64, max_tokens: u32) -> u64 {
    let completion = complete(backend, &request(prompt, seed, max_tokens));
    let ids: Vec<u32> = completion.logprobs.unwrap().iter().map(|t| t.id.unwrap().0).collect();
    assert_eq!(ids, brute_force(prompt, &seeded(seed), max_tokens as usize));
    completion.usage.n_cached_tokens.unwrap()
}

/// All prompts at once; the tokens that were fed.
fn run_all(toy: &Toy, prompts: &[Vec<u32>]) -> usize {
    std::thread::scope(|scope| {
        for (seed, prompt) in prompts.iter().enumerate() {
            scope.spawn(move || check(&*toy.backend, prompt, seed as u64, 5));
        }
    });
    toy.counters.n_tokens()
}

#[test]
fn a_shared_prefix_is_fed_once_by_requests_that_come_together() {
    let shared: Vec<u32> = (0..300).map(|i| 1 + i % 29).collect();
    let prompts: Vec<Vec<u32>> = (0..24).map(|own| with_prefix(&shared, own, 10)).collect();
    let fed_by = |fork, truncate, max_seqs| {
        let toy = open(
            options(|o| {
                o.caps.fork = fork;
                o.caps.truncate = truncate;
                o.caps.max_seqs = max_seqs;
                o.caps.ctx_total = 40_000;
                o.delay_per_token = Duration::from_micros(20);
            }),
            EngineOptions::new("toy"),
        );
        run_all(&toy, &prompts)
    };
    // Own tokens and what is generated; a sequence that ends early feeds less.
    let n_own = 24 * (10 + 4);
    for fork in [Fork::Shared, Fork::Copy] {
        for truncate in [Truncate::Any, Truncate::Last(1), Truncate::No] {
            for max_seqs in [32, 6] {
                let n_fed = fed_by(fork, truncate, max_seqs);
                // The first may come before there is another to keep a checkpoint for.
                let n_shared = if truncate == Truncate::Any { 300 } else { 600 };
                let most = n_shared + n_own + 40;
                assert!(n_fed <= most, "{fork:?} {truncate:?} {max_seqs}: {n_fed}");
            }
        }
    }
    let n_without = fed_by(Fork::No, Truncate::No, 6);
    assert!(n_without >= 24 * 300, "{n_without}");
    let n_taken_over = fed_by(Fork::No, Truncate::Any, 4);
    assert!(n_taken_over <= 4 * 300 + n_own + 300, "{n_taken_over}");
}

#[test]
fn conversations_keep_their_place_beside_each_other() {
    for fork in [Fork::Shared, Fork::Copy] {
        let toy = open(options(|o| o.caps.fork = fork), EngineOptions::new("toy"));
        let system: Vec<u32> = (0..60).map(|i| 1 + i % 29).collect();
        let mut talks: Vec<Vec<u32>> = (0..3).map(|own| with_prefix(&system, own, 90)).collect();
        for (talk_idx, talk) in talks.iter().enumerate() {
            let n_cached = check(&*toy.backend, talk, 1, 3);
            assert_eq!(n_cached, if talk_idx == 0 { 0 } else { 60 });
        }
        for turn in 0..4 {
            for talk in &mut talks {
                let n_before = talk.len() as u64;
                *talk = with_prefix(talk, turn, 20);
                assert!(check(&*toy.backend, talk, 1, 3) >= n_before - 1, "{fork:?} turn {turn}");
            }
        }
    }
}

/// What lies idle in a pool costs the engine time, so it is taken out, and comes back when it is
/// needed.
#[test]
fn long_conversations_in_a_shared_pool_are_parked_and_come_back() {
    for (snapshot, truncate) in [
        (SnapshotKind::Full, Truncate::Any),
        (SnapshotKind::Checkpoint, Truncate::No),
        (SnapshotKind::No, Truncate::Any),
    ] {
        let toy = open(
            options(|o| {
                o.caps.fork = Fork::Shared;
                o.caps.snapshot = snapshot;
                o.caps.truncate = truncate;
                o.caps.ctx_total = 3_000;
            }),
            EngineOptions::new("toy"),
        );
        let mut talks: Vec<Vec<u32>> = (0..6).map(|own| with_prefix(&[], own, 400)).collect();
        for turn in 0..3 {
            for talk in &mut talks {
                let completion = complete(&*toy.backend, &request(talk, 1, 3));
                let answer = completion.logprobs.unwrap();
                let ids: Vec<u32> = answer.iter().map(|t| t.id.unwrap().0).collect();
                assert_eq!(ids, brute_force(talk, &seeded(1), 3));
                let n_cached = completion.usage.n_cached_tokens.unwrap() as usize;
                match (turn, snapshot) {
                    (0, _) => assert_eq!(n_cached, 0),
                    (_, SnapshotKind::No) => assert_eq!(n_cached, 0, "gone"),
                    _ => assert_eq!(n_cached, talk.len() - 20, "{snapshot:?}"),
                }
                // The engine holds all but the last token that was drawn.
                talk.extend(&ids[..ids.len() - 1]);
                *talk = with_prefix(talk, turn, 20);
            }
        }
    }
}

#[test]
fn a_full_cache_preempts_the_youngest_and_loses_nothing() {
    for (fork, ctx_total) in [(Fork::Shared, 400), (Fork::Copy, 400), (Fork::No, 330)] {
        let toy = open(
            options(|o| {
                o.caps.fork = fork;
                o.caps.ctx_total = ctx_total;
                o.caps.ctx_per_seq = 320;
                o.caps.max_seqs = 8;
            }),
            EngineOptions::new("toy"),
        );
        let n_preempted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for job in 0..12u64 {
                let (toy, n_preempted) = (&toy, &n_preempted);
                scope.spawn(move || {
                    let prompt = with_prefix(&[], job, 20);
                    let mut request = request(&prompt, job, 250);
                    // Never the end: every sequence grows to 270 positions.
                    request.sampling.logit_bias =
                        vec![(weighbridge_core::TokenId(END), f32::NEG_INFINITY)];
                    let completion = complete(&*toy.backend, &request);
                    assert_eq!(completion.usage.n_generated_tokens, Some(250));
                    let n = completion.timings.n_preemptions as usize;
                    n_preempted.fetch_add(n, Ordering::SeqCst);
                    let ids: Vec<u32> =
                        completion.logprobs.unwrap().iter().map(|t| t.id.unwrap().0).collect();
                    let sampling = request.sampling.clone();
                    assert_eq!(ids, brute_force(&prompt, &sampling, 250), "job {job}");
                });
            }
        });
        assert!(n_preempted.into_inner() > 0, "{fork:?}");
    }
}

#[test]
fn the_last_that_came_is_not_starved_by_better_ones() {
    let toy = open(
        options(|o| {
            o.caps.max_seqs = 2;
            o.delay_per_token = Duration::from_micros(200);
        }),
        EngineOptions::new("toy"),
    );
    let shared: Vec<u32> = (0..100).map(|i| 1 + i % 29).collect();
    let is_done = AtomicBool::new(false);
    let n_others = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for stream in 0..4u64 {
            let (toy, shared, is_done, n_others) = (&toy, &shared, &is_done, &n_others);
            scope.spawn(move || {
                for n in 0..2_000 {
                    if is_done.load(Ordering::SeqCst) {
                        return;
                    }
                    let prompt = with_prefix(shared, stream * 10_000 + n, 3);
                    complete(&*toy.backend, &request(&prompt, n, 2));
                    n_others.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(30));
        let n_before = n_others.load(Ordering::SeqCst);
        complete(&*toy.backend, &request(&[7], 1, 1));
        is_done.store(true, Ordering::SeqCst);
        let n_passed = n_others.load(Ordering::SeqCst) - n_before;
        assert!(n_passed < 200, "{n_passed} went before it");
    });
}

#[test]
fn deterministic_calls_have_the_engine_for_themselves() {
    let toy = open(
        options(|o| o.delay_per_token = Duration::from_micros(300)),
        EngineOptions::new("toy"),
    );
    std::thread::scope(|scope| {
        for job in 0..12u64 {
            let toy = &toy;
            scope.spawn(move || {
                let prompt = with_prefix(&[5; 50], job, 9);
                let mut request = request(&prompt, job, 9);
                request.deterministic = job % 3 == 0;
                let completion = complete(&*toy.backend, &request);
                let ids: Vec<u32> =
                    completion.logprobs.unwrap().iter().map(|t| t.id.unwrap().0).collect();
                assert_eq!(ids, brute_force(&prompt, &seeded(job), 9));
                if request.deterministic {
                    assert_eq!(completion.usage.n_cached_tokens, Some(0));
                }
            });
        }
    });
}

/// Chunks of a fixed length may be longer than what the latency allows.
#[test]
fn long_chunks_of_deterministic_calls_need_no_fast_engine() {
    let mut options = EngineOptions::new("toy");
    (options.deterministic_chunk, options.cancel_latency) = (64, Duration::from_millis(1));
    let toy = open(self::options(|o| o.delay_per_token = Duration::from_micros(500)), options);
    let prompt = with_prefix(&[5; 150], 1, 9);
    let mut request = request(&prompt, 1, 9);
    request.deterministic = true;
    let completion = complete(&*toy.backend, &request);
    let ids: Vec<u32> = completion.logprobs.unwrap().iter().map(|t| t.id.unwrap().0).collect();
    assert_eq!(ids, brute_force(&prompt, &seeded(1), 9));
}

fn score(backend: &dyn Backend, request: &LikelihoodRequest) -> Vec<Vec<Option<f64>>> {
    let scored = block_on(backend.log_likelihood(request)).unwrap();
    scored.iter().map(|s| s.tokens.iter().map(|t| t.logprob).collect()).collect()
}

#[test]
fn options_of_many_questions_cost_what_they_have_of_their_own() {
    let shots = "the quick brown fox jumps over the lazy dog. ".repeat(10);
    let items: Vec<LikelihoodItem> = (0..12u8)
        .flat_map(|question| {
            let question =
                format!("{shots}{}#", char::from(b'a' + question).to_string().repeat(20));
            let context = Arc::new(Prompt::Text(question));
            ["yes", "no", "maybe", "x"].map(|o| LikelihoodItem::new(Arc::clone(&context), o))
        })
        .collect();
    let mut want = None;
    for (fork, most) in [(Fork::Shared, 0), (Fork::Copy, 0), (Fork::No, 4 * shots.len())] {
        for deterministic in [false, true] {
            let toy = open(
                options(|o| {
                    o.caps.fork = fork;
                    o.caps.ctx_total = 20_000;
                    o.caps.max_seqs = 5;
                }),
                EngineOptions::new("toy"),
            );
            let mut request = LikelihoodRequest::new(items.clone());
            request.deterministic = deterministic;
            let scored = score(&*toy.backend, &request);
            assert_eq!(*want.get_or_insert(scored.clone()), scored);
            let n_own = shots.len() + 12 * (21 + 2 + 1 + 4) + 60;
            if !deterministic {
                assert!(toy.counters.n_tokens() <= n_own + most, "{fork:?}");
            }
        }
    }
}

#[test]
fn windows_score_every_token_once_with_the_context_they_promise() {
    let toy = open(options(|o| o.caps.ctx_per_seq = 16), EngineOptions::new("toy"));
    let long = "the quick brown fox jumps over the lazy dog and runs";
    for context in ["", "ab", "a context of twenty c"] {
        let item = LikelihoodItem::new(Arc::new(Prompt::Text(context.to_owned())), long);
        let mut request = LikelihoodRequest::new(vec![item.clone(), item]);
        let error = block_on(toy.backend.log_likelihood(&request)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ContextOverflow);
        for (n_tokens, stride) in [(16, 15), (16, 8), (7, 1), (2, 1)] {
            request.window = Some(Window { n_tokens, stride });
            let scored = block_on(toy.backend.log_likelihood(&request)).unwrap();
            let all = format!("{context}{long}");
            let ids: Vec<u32> = all.bytes().map(token_of).collect();
            let want: Vec<Option<f64>> = (context.len()..all.len())
                .map(|i| (i > 0).then(|| crate::scoring::logprob(ids[i - 1], ids[i])))
                .collect();
            for scored in &scored {
                assert_eq!(scored.tokens.len(), long.len());
                for (token, want) in scored.tokens.iter().zip(&want) {
                    match (token.logprob, want) {
                        (Some(got), Some(want)) => assert!((got - want).abs() < 1e-12),
                        (got, want) => assert_eq!(got.is_some(), want.is_some()),
                    }
                }
                let n = want.iter().flatten().count() as f64;
                let perplexity = (-want.iter().flatten().sum::<f64>() / n).exp();
                assert!((scored.perplexity().unwrap() - perplexity).abs() < 1e-9);
            }
        }
        for (n_tokens, stride) in [(17, 1), (8, 8), (8, 0), (1, 1)] {
            request.window = Some(Window { n_tokens, stride });
            let error = block_on(toy.backend.log_likelihood(&request)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{n_tokens} {stride}");
        }
    }
}

fn token_of(byte: u8) -> u32 {
    let table = weighbridge_engine::toy::table(None);
    table.bytes.iter().position(|bytes| bytes == &[byte]).unwrap() as u32
}

/// Ten minutes with `cargo xtask test --full`, two seconds otherwise.
#[test]
fn random_calls_and_cancels_leave_nothing_behind_and_never_mix() {
    let is_full = std::env::var_os("WEIGHBRIDGE_FULL_TESTS").is_some();
    let until = Instant::now() + Duration::from_secs(if is_full { 200 } else { 2 });
    for (fork, truncate, batching) in [
        (Fork::Shared, Truncate::Any, Batching::Ragged),
        (Fork::Copy, Truncate::No, Batching::EqualLength),
        (Fork::No, Truncate::Last(3), Batching::One),
    ] {
        let until = until + if is_full { Duration::from_secs(200) } else { Duration::ZERO };
        let toy = open(
            options(|o| {
                o.caps.fork = fork;
                o.caps.truncate = truncate;
                o.caps.batching = batching;
                o.caps.max_seqs = 9;
                o.caps.ctx_total = 900;
                o.caps.ctx_per_seq = 300;
                o.caps.max_feed = 64;
                o.caps.max_rows = 16;
            }),
            EngineOptions::new("toy"),
        );
        let n_ended = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for caller in 0..64u64 {
                let (toy, n_ended) = (&toy, &n_ended);
                scope.spawn(move || {
                    let mut rng = ChaCha8Rng::seed_from_u64(caller);
                    let mut n_calls = 0;
                    while n_calls < 3 || Instant::now() < until {
                        n_calls += 1;
                        let shared = vec![1 + (rng.next_u32() % 3); rng.next_u32() as usize % 90];
                        let prompt = with_prefix(&shared, rng.next_u64(), 1 + caller as usize % 9);
                        let mut request = request(&prompt, caller, 40);
                        request.deterministic = rng.next_u32() % 97 == 0;
                        let mut seen = Seen::default();
                        match rng.next_u32() % 4 {
                            // Gone in the middle.
                            0 => {
                                let call = toy.backend.generate(&request, &mut seen);
                                let patience = Duration::from_micros(rng.next_u64() % 3_000);
                                drop_after(call, patience);
                            }
                            1 => {
                                seen.break_at = Some(1 + rng.next_u32() as usize % 5);
                                generate(&*toy.backend, &request, &mut seen).unwrap();
                                n_ended.fetch_add(1, Ordering::SeqCst);
                            }
                            _ => {
                                check(&*toy.backend, &prompt, caller, 40);
                                n_ended.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
                });
            }
        });
        assert!(n_ended.into_inner() > 64);
        // Everything is there again for one that needs the whole context.
        check(&*toy.backend, &with_prefix(&[], 1, 260), 3, 40);
        let backend = Arc::clone(&toy.backend);
        block_on(backend.close()).unwrap();
        assert_eq!(toy.counters.n_live(), 0);
    }
}

/// Polls a call for a while, then drops it.
fn drop_after(call: impl Future, patience: Duration) {
    let mut call = std::pin::pin!(call);
    let until = Instant::now() + patience;
    let waker = std::task::Waker::noop();
    while Instant::now() < until {
        if call.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready() {
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}
