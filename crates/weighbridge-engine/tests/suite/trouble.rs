//! What goes wrong: cancels, slow callers, failures and panics of the engine.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use weighbridge_core::{
    CompletionStream, Error, ErrorKind, Event, LikelihoodItem, LikelihoodRequest, OpenContext,
    Prompt, Result, StopSink, StreamItem, block_on,
};
use weighbridge_engine::loader::{EngineLoader, TextModel};
use weighbridge_engine::logits::{Batching, Fork, LogitsEngine, Truncate};
use weighbridge_engine::toy::{ToyLoader, ToyOptions};
use weighbridge_engine::{EngineOptions, LocalBackend};

use crate::support::{Seen, complete, generate, open, text, toy, wait_for};

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn dropping_the_future_stops_within_one_feed_also_in_prefill() {
    let mut options =
        ToyOptions { delay_per_token: Duration::from_millis(2), ..ToyOptions::default() };
    options.caps.max_seqs = 1;
    let toy = open(options, EngineOptions::new("toy"));
    let prompt = "abcdefgh".repeat(100);
    let request = text(&prompt).with_max_tokens(50);
    let mut seen = Seen::default();
    {
        let mut future = pin!(toy.backend.generate(&request, &mut seen));
        assert!(poll_once(future.as_mut()).is_pending());
        wait_for("a second feed", || toy.counters.n_feeds() >= 2);
    }
    let n_feeds = toy.counters.n_feeds();
    // The next job gets the only slot as soon as the feed that was running is over.
    assert_eq!(complete(&*toy.backend, &text("a").with_max_tokens(1)).text, "d");
    assert!(toy.counters.n_feeds() <= n_feeds + 2, "one feed in flight, one for the new job");
    assert!(toy.counters.n_tokens() < prompt.len());

    let n_feeds = toy.counters.n_feeds();
    let mut scoring = LikelihoodRequest::default();
    let context = Arc::new(Prompt::Text(prompt));
    scoring.items = vec![LikelihoodItem::new(context, "b")];
    {
        let mut future = pin!(toy.backend.log_likelihood(&scoring));
        assert!(poll_once(future.as_mut()).is_pending());
        wait_for("another feed", || toy.counters.n_feeds() > n_feeds);
    }
    let n_feeds = toy.counters.n_feeds();
    complete(&*toy.backend, &text("a").with_max_tokens(1));
    assert!(toy.counters.n_feeds() <= n_feeds + 2);
}

#[test]
fn dropping_a_job_that_waits_leaves_no_trace() {
    let mut options =
        ToyOptions { delay_per_token: Duration::from_millis(3), ..ToyOptions::default() };
    options.caps.max_seqs = 1;
    let toy = open(options, EngineOptions::new("toy"));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| complete(&*toy.backend, &text("a").with_max_tokens(20)).text);
        wait_for("the first feed", || toy.counters.n_feeds() >= 1);
        {
            let request = text("zzzz").with_max_tokens(50);
            let mut sink = StopSink::never();
            let mut future = pin!(toy.backend.generate(&request, &mut sink));
            assert!(poll_once(future.as_mut()).is_pending());
        }
        assert_eq!(running.join().unwrap().len(), 20);
    });
    assert_eq!(toy.counters.n_tokens(), 20, "one of the prompt and 19 generated ones");
}

#[test]
fn a_slow_caller_pauses_only_itself() {
    for max_seqs in [2, 1] {
        let mut options = ToyOptions::default();
        options.caps.max_seqs = max_seqs;
        let toy = open(options, EngineOptions::new("toy"));
        let mut slow =
            CompletionStream::owned(Arc::clone(&toy.backend), text("a").with_max_tokens(500));
        // Reads its first text, then nothing: the channel fills up and the sequence pauses.
        let mut shown = String::new();
        while shown.is_empty() {
            if let Some(StreamItem::Event(Event::Text(text))) =
                slow.next_blocking().transpose().unwrap()
            {
                shown.push_str(&text);
            }
        }
        let n_before = toy.counters.n_tokens();
        for _ in 0..3 {
            assert_eq!(complete(&*toy.backend, &text("b").with_max_tokens(3)).text, "ehk");
        }
        let n_own = toy.counters.n_tokens() - n_before;
        assert!(n_own < 400, "the slow one did not run on: {n_own}");
        let mut completion = None;
        while let Some(item) = slow.next_blocking() {
            match item.unwrap() {
                StreamItem::Event(Event::Text(text)) => shown.push_str(&text),
                StreamItem::Completion(done) => completion = Some(done),
                _ => {}
            }
        }
        let completion = completion.unwrap();
        assert_eq!(completion.text, shown);
        assert_eq!(completion.usage.n_generated_tokens, Some(500));
        let alone = open(ToyOptions::default(), EngineOptions::new("toy"));
        let want = complete(&*alone.backend, &text("a").with_max_tokens(500)).text;
        assert_eq!(shown, want, "with {max_seqs} slots: also a slot given up and got back");
    }
}

#[test]
fn a_panic_is_a_typed_error_now_and_later() {
    let options = ToyOptions { panic_at: Some(3), ..ToyOptions::default() };
    let toy = open(options, EngineOptions::new("my model"));
    let error =
        generate(&*toy.backend, &text("a").with_max_tokens(50), &mut Seen::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EngineDied);
    assert!(error.message().contains("toy panic at feed 3"), "{error}");
    assert_eq!(error.context("model"), Some("my model"));
    for _ in 0..2 {
        let error = generate(&*toy.backend, &text("a"), &mut Seen::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EngineDied);
        assert!(error.message().contains("toy panic at feed 3"), "{error}");
    }
    wait_for("the engine to be freed", || toy.counters.n_live() == 0);
}

#[test]
fn a_feed_that_fails_fails_one_job_and_the_model_goes_on() {
    let options = ToyOptions { fail_at: Some(4), ..ToyOptions::default() };
    let toy = open(options, EngineOptions::new("toy"));
    let error =
        generate(&*toy.backend, &text("a").with_max_tokens(50), &mut Seen::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Engine);
    assert!(error.message().contains("toy failure"), "{error}");
    assert_eq!(complete(&*toy.backend, &text("a").with_max_tokens(3)).text, "dgj");
}

#[test]
fn a_shared_feed_that_fails_is_repeated_one_by_one() {
    let mut options = ToyOptions { fail_at: Some(30), ..ToyOptions::default() };
    options.delay_per_token = Duration::from_millis(1);
    let toy = open(options, EngineOptions::new("toy"));
    std::thread::scope(|scope| {
        let jobs: Vec<_> = ["a", "b", "c"]
            .map(|prompt| {
                let backend = &toy.backend;
                scope.spawn(move || {
                    complete(&**backend, &text(prompt).with_max_tokens(60)).text.len()
                })
            })
            .into();
        for job in jobs {
            assert_eq!(job.join().unwrap(), 60, "nobody loses an answer");
        }
    });
}

/// The cache has the tokens, the row did not come: it is had by feeding the last token again.
#[test]
fn a_row_that_a_failure_swallowed_is_fed_for_again() {
    for truncate in [Truncate::Any, Truncate::No] {
        for fail_late_at in 1..12 {
            let mut options =
                ToyOptions { fail_late_at: Some(fail_late_at), ..ToyOptions::default() };
            options.caps.truncate = truncate;
            options.delay_per_token = Duration::from_millis(1);
            let toy = open(options, EngineOptions::new("toy"));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    let toy = &toy;
                    scope.spawn(move || {
                        let request = text("abc").with_max_tokens(9);
                        match generate(&*toy.backend, &request, &mut Seen::default()) {
                            Ok(completion) => assert_eq!(completion.text, "filorux d"),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Engine),
                        }
                    });
                }
                let toy = &toy;
                scope.spawn(move || {
                    let context = Arc::new(Prompt::Text("abcabc".into()));
                    let item = |text: &str| LikelihoodItem::new(Arc::clone(&context), text);
                    let request = LikelihoodRequest::new(vec![item("def"), item("xy"), item("z")]);
                    if let Ok(scored) = block_on(toy.backend.log_likelihood(&request)) {
                        assert_eq!(scored.len(), 3);
                    }
                });
            });
        }
    }
}

#[test]
fn a_single_slot_is_used_again_whatever_it_can_be_cut_to() {
    for truncate in [Truncate::Any, Truncate::Last(4), Truncate::No] {
        for fork in [Fork::No, Fork::Copy, Fork::Shared] {
            let mut options = ToyOptions::default();
            options.caps.max_seqs = 1;
            options.caps.truncate = truncate;
            options.caps.fork = fork;
            let toy = open(options, EngineOptions::new("toy"));
            for prompt in ["abcdefgh", "abcdefgx", "abcdefgxy", "abcdefgxdg", "b"] {
                assert_eq!(complete(&*toy.backend, &text(prompt).with_max_tokens(2)).text.len(), 2);
            }
        }
    }
}

#[test]
fn callers_that_stall_keep_nobody_else_out() {
    let mut options = ToyOptions::default();
    options.caps.max_seqs = 100;
    options.caps.ctx_total = 100_000;
    let toy = open(options, EngineOptions::new("toy").with_max_concurrency(100));
    let stalled: Vec<CompletionStream> = (0..300)
        .map(|_| {
            let request = text("a").with_max_tokens(500);
            let mut stream = CompletionStream::owned(Arc::clone(&toy.backend), request);
            // Begins the call and then never reads again.
            let _ =
                std::pin::Pin::new(&mut stream).poll_next(&mut Context::from_waker(Waker::noop()));
            stream
        })
        .collect();
    assert_eq!(complete(&*toy.backend, &text("b").with_max_tokens(3)).text, "ehk");
    drop(stalled);
}

#[test]
fn a_damaged_row_names_its_position() {
    let options = ToyOptions { nan_from: Some(5), ..ToyOptions::default() };
    let toy = open(options, EngineOptions::new("toy"));
    let error =
        generate(&*toy.backend, &text("abc").with_max_tokens(9), &mut Seen::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Engine);
    assert_eq!(error.context("position"), Some("5"));
    assert_eq!(error.context("model"), Some("toy"));
}

#[test]
fn closing_waits_until_all_is_freed_and_dropping_frees_too() {
    let toy = toy();
    assert_eq!(toy.counters.n_live(), 1);
    block_on(toy.backend.close()).unwrap();
    assert_eq!(toy.counters.n_live(), 0);
    let error = generate(&*toy.backend, &text("a"), &mut Seen::default()).unwrap_err();
    assert!(error.message().contains("was closed"), "{error}");
    block_on(toy.backend.close()).unwrap();
    let toy = self::toy();
    drop(toy.backend);
    wait_for("the engine to be freed", || toy.counters.n_live() == 0);
}

#[test]
fn dropping_open_frees_what_was_loaded() {
    let loader = ToyLoader::new(ToyOptions::default());
    let counters = loader.counters.clone();
    let context = OpenContext::new();
    {
        let opening = LocalBackend::open(Box::new(loader), &context, EngineOptions::new("toy"));
        let _ = poll_once(pin!(opening));
    }
    wait_for("the engine to be freed", || counters.n_live() == 0);
}

enum Bad {
    Silent,
    Fails,
    Panics,
    Empty,
}

impl EngineLoader for Bad {
    fn run(
        self: Box<Self>,
        context: &OpenContext,
        serve: &mut dyn FnMut(TextModel, &mut dyn LogitsEngine),
    ) -> Result<()> {
        match *self {
            Self::Silent => Ok(()),
            Self::Fails => Err(Error::new(ErrorKind::ModelLoad, "no such tensor")),
            Self::Panics => panic!("bad file"),
            Self::Empty => {
                let mut options = ToyOptions::default();
                options.caps.max_seqs = 0;
                options.caps.batching = Batching::One;
                Box::new(ToyLoader::new(options)).run(context, serve)
            }
        }
    }
}

#[test]
fn a_loader_s_failure_comes_back_from_open() {
    for (bad, kind, part) in [
        (Bad::Silent, ErrorKind::Plugin, "without serving"),
        (Bad::Fails, ErrorKind::ModelLoad, "no such tensor"),
        (Bad::Panics, ErrorKind::EngineDied, "bad file"),
        (Bad::Empty, ErrorKind::Plugin, "`max_seqs` is 0"),
    ] {
        let context = OpenContext::new();
        let opened = LocalBackend::open(Box::new(bad), &context, EngineOptions::new("bad"));
        let error = block_on(opened).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.message().contains(part), "{error}");
    }
}
