//! Generation over the toy engine: what comes out, in which order, and when it ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use weighbridge_core::{
    BackendExt, ErrorKind, Event, Message, Prompt, Reasoning, Request, RequestOption, Sampling,
    StopReason, TokenId,
};
use weighbridge_engine::EngineOptions;
use weighbridge_engine::detokenizer::Detokenizer;
use weighbridge_engine::logits::Batching;
use weighbridge_engine::sampler::{Sampler, SamplerParams};
use weighbridge_engine::stop::StopScanner;
use weighbridge_engine::toy::{END, N_VOCAB, ToyOptions, row, table};

use crate::support::{Seen, TEMPLATE, complete, generate, open, text, tokens, toy, wait_for};

/// What greedy decoding says after "a": each letter is followed by the one three further.
const AFTER_A: &str = "dgjmpsvy.ehknqtwzcfilorux dgjmpsvy.";

/// The loop in its simplest form: one row after another, no cache, no batch.
pub(crate) fn brute_force(prompt: &[u32], sampling: &Sampling, max_tokens: usize) -> Vec<u32> {
    let params = SamplerParams::resolve(sampling, &Sampling::default());
    let mut sampler = Sampler::new(params, prompt);
    let (mut last, mut out) = (*prompt.last().unwrap(), Vec::new());
    while out.len() < max_tokens && out.last() != Some(&END) {
        last = sampler.sample(&row(last, N_VOCAB as usize), 0, &table(None), None).unwrap();
        out.push(last);
    }
    out
}

pub(crate) fn seeded(seed: u64) -> Sampling {
    let mut sampling = Sampling::default();
    sampling.seed = Some(seed);
    sampling.temperature = Some(1.1);
    sampling
}

#[test]
fn greedy_text_is_the_one_worked_out_by_hand() {
    let toy = toy();
    let mut seen = Seen::default();
    let completion = generate(&*toy.backend, &text("a").with_max_tokens(12), &mut seen).unwrap();
    assert_eq!(completion.text, AFTER_A[..12]);
    assert_eq!(completion.stop_reason, StopReason::Length);
    assert_eq!(completion.usage.n_prompt_tokens, Some(1));
    assert_eq!(completion.usage.n_generated_tokens, Some(12));
    assert_eq!(completion.usage.n_cached_tokens, Some(0));
    let timings = &completion.timings;
    assert!(timings.ttft.unwrap() <= timings.total);
    assert!(timings.queue.is_some() && timings.prefill.is_some() && timings.decode.is_some());
    let values = &completion.effective.values;
    assert_eq!(values["temperature"], 0.0);
    assert_eq!(values["seed"], 0);
    assert_eq!(values["max_tokens"], 12);
    assert_eq!(values["deterministic"], false);
    assert!(values["engine"].as_str().unwrap().starts_with("toy "));
    assert!(matches!(&seen.events[0], Event::Started(e) if **e == completion.effective));
    let names = seen.names();
    assert_eq!(names.iter().filter(|name| **name == "started").count(), 1);
    assert_eq!(names.last(), Some(&"usage"));
}

#[test]
fn every_way_to_feed_gives_the_same_tokens() {
    let prompt: Vec<u32> = (0..200).map(|i| 1 + i % 30).collect();
    let want = brute_force(&prompt, &seeded(5), 60);
    for batching in [Batching::One, Batching::EqualLength, Batching::Ragged] {
        for (max_feed, max_seqs, all_rows) in [(256, 4, true), (3, 2, false), (1, 1, false)] {
            for deterministic in [false, true] {
                let mut options = ToyOptions::default();
                options.caps.batching = batching;
                options.caps.max_feed = max_feed;
                options.caps.max_seqs = max_seqs;
                options.caps.all_rows = all_rows;
                let toy = open(options, EngineOptions::new("toy"));
                let mut request = Request::new(tokens(&prompt))
                    .with_sampling(seeded(5))
                    .with_max_tokens(60)
                    .with_logprobs(0);
                request.deterministic = deterministic;
                let completion = complete(&*toy.backend, &request);
                let ids: Vec<u32> =
                    completion.logprobs.unwrap().iter().map(|t| t.id.unwrap().0).collect();
                assert_eq!(ids, want, "{batching:?} {max_feed} {deterministic}");
            }
        }
    }
}

#[test]
fn seeds_repeat_and_differ() {
    let toy = toy();
    let run = |seed| {
        let request = text("abc").with_sampling(seeded(seed)).with_max_tokens(40);
        complete(&*toy.backend, &request).text
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let default =
        complete(&*toy.backend, &Request::new(Prompt::Text("abc".into())).with_max_tokens(9));
    assert_eq!(default.effective.values["seed"], 0, "recorded also when nobody chose it");
    assert_eq!(default.effective.values["temperature"], 1.0);
}

#[test]
fn stop_texts_end_the_text_and_never_show() {
    let toy = toy();
    for (stops, want) in [
        (vec!["mps"], "dgj"),
        (vec!["vy", "psv"], "dgjm"),
        (vec!["svy.e", "y."], "dgjmpsv"),
        (vec!["d"], ""),
        (vec!["ru", "xyz"], "dgjmpsvy.ehknqtwzcfilo"),
    ] {
        let mut request = text("a").with_max_tokens(30);
        request.stop = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut seen = Seen::default();
        let completion = generate(&*toy.backend, &request, &mut seen).unwrap();
        assert_eq!(completion.text, want);
        assert_eq!(completion.stop_reason, StopReason::Stop);
        assert_eq!(completion.raw_stop_reason.as_deref(), Some("stop_text"));
    }
    // Begun and never finished: let out at the end.
    let completion = complete(&*toy.backend, &text("a").with_max_tokens(4).with_stop("jmX"));
    assert_eq!(completion.text, "dgjm");
}

#[test]
fn the_scanner_does_not_care_where_tokens_end() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut word = |n: usize| -> Vec<u8> {
        let n = rng.next_u32() as usize % n + 1;
        (0..n).map(|_| b'a' + (rng.next_u32() % 2) as u8).collect()
    };
    for _ in 0..2_000 {
        let text: Vec<u8> = (0..6).flat_map(|_| word(5)).collect();
        let stops: Vec<Vec<u8>> = (0..3).map(|_| word(4)).collect();
        // The first byte after which some stop text is complete; the longest of these.
        let end = (1..=text.len()).find(|&n| stops.iter().any(|s| text[..n].ends_with(s)));
        let want = match end {
            Some(n) => {
                let longest = stops.iter().filter(|s| text[..n].ends_with(s)).map(Vec::len).max();
                &text[..n - longest.unwrap()]
            }
            None => &text[..],
        };
        let mut scanner = StopScanner::new(&stops);
        let (mut out, mut rest, mut matched) = (Vec::new(), &text[..], false);
        while !rest.is_empty() && !matched {
            let n = word(6).len().min(rest.len());
            let scanned = scanner.push(&rest[..n]);
            out.extend(scanned.bytes);
            assert!(want.starts_with(&out), "nothing of a stop text is let out");
            matched = scanned.matched.is_some();
            rest = &rest[n..];
        }
        out.extend(scanner.finish());
        assert_eq!(out, want, "{:?}", stops);
        assert_eq!(matched, end.is_some());
    }
}

#[test]
fn the_detokenizer_equals_the_lossy_conversion_of_the_whole() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let pieces: [&[u8]; 8] = [
        b"a",
        "é".as_bytes(),
        "🙂".as_bytes(),
        b"\xff",
        b"\xe2\x82",
        b"\xf0\x9f",
        b"\xc3",
        b"\xed\xa0\x80",
    ];
    for _ in 0..2_000 {
        let bytes: Vec<u8> =
            (0..8).flat_map(|_| pieces[rng.next_u32() as usize % 8].to_vec()).collect();
        let (mut detokenizer, mut text, mut rest) = (Detokenizer::new(), String::new(), &bytes[..]);
        while !rest.is_empty() {
            let n = (rng.next_u32() as usize % 3 + 1).min(rest.len());
            text.push_str(&detokenizer.push(&rest[..n]));
            rest = &rest[n..];
        }
        text.push_str(&detokenizer.finish());
        assert_eq!(text, String::from_utf8_lossy(&bytes));
        assert_eq!(detokenizer.n_replaced(), text.matches('\u{fffd}').count());
    }
}

#[test]
fn half_a_character_at_the_end_is_replaced_with_a_warning() {
    let toy = toy();
    // Only the first byte of `é` can be drawn.
    let mut sampling = Sampling::greedy();
    sampling.logit_bias = vec![(TokenId(31), 100.0)];
    let request = text("a").with_sampling(sampling).with_max_tokens(1);
    let mut seen = Seen::default();
    let completion = generate(&*toy.backend, &request, &mut seen).unwrap();
    assert_eq!(completion.text, "\u{fffd}");
    assert_eq!(completion.warnings.len(), 1);
    assert!(seen.names().contains(&"warning"));
    // Both bytes give one character, in one text event.
    let mut sampling = Sampling::greedy();
    sampling.logit_bias = vec![(TokenId(31), 100.0), (TokenId(32), 101.0)];
    sampling.presence_penalty = Some(200.0);
    let request = text("a").with_sampling(sampling).with_max_tokens(2);
    let mut seen = Seen::default();
    assert_eq!(generate(&*toy.backend, &request, &mut seen).unwrap().text, "é");
    assert_eq!(seen.names().iter().filter(|name| **name == "text").count(), 1);
}

#[test]
fn the_pushed_text_is_the_completion_s_whatever_comes() {
    let toy = toy();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut n_stopped, mut n_replaced, mut n_cancelled) = (0, 0, 0);
    for seed in 0..300 {
        let mut request = text("a").with_max_tokens(rng.next_u32() % 40 + 1).with_logprobs(0);
        request.sampling = seeded(seed);
        // Hot, and fond of the two bytes of `é`.
        request.sampling.temperature = Some(2.0);
        request.sampling.logit_bias = vec![(TokenId(31), 4.0), (TokenId(32), 4.0)];
        let mut pair = || {
            let at = rng.next_u32() as usize % (AFTER_A.len() - 1);
            AFTER_A[at..at + 2].to_owned()
        };
        request.stop = vec![pair(), pair(), pair(), "é".into()];
        let break_at = (rng.next_u32() % 4 == 0).then_some(3);
        let mut seen = Seen { break_at, ..Seen::default() };
        // `generate` compares the two texts.
        let completion = generate(&*toy.backend, &request, &mut seen).unwrap();
        assert!(request.stop.iter().all(|stop| !completion.text.contains(stop.as_str())));
        if completion.stop_reason == StopReason::Length {
            let table = table(None);
            let bytes: Vec<u8> = completion
                .logprobs
                .unwrap()
                .iter()
                .flat_map(|t| table.bytes_of(t.id.unwrap().0).to_vec())
                .collect();
            assert_eq!(completion.text, String::from_utf8_lossy(&bytes));
        }
        n_stopped += usize::from(completion.raw_stop_reason.as_deref() == Some("stop_text"));
        n_cancelled += usize::from(completion.stop_reason == StopReason::Cancelled);
        n_replaced += usize::from(!completion.warnings.is_empty());
    }
    assert!(
        n_stopped > 10 && n_replaced > 10 && n_cancelled > 10,
        "{n_stopped} {n_replaced} {n_cancelled}"
    );
}

#[test]
fn an_end_token_ends_and_has_no_text() {
    let toy = toy();
    let mut sampling = Sampling::greedy();
    sampling.logit_bias = vec![(TokenId(END), 100.0)];
    let request = text("a").with_sampling(sampling).with_logprobs(2);
    let completion = complete(&*toy.backend, &request);
    assert_eq!(completion.text, "");
    assert_eq!(completion.stop_reason, StopReason::Stop);
    assert_eq!(completion.raw_stop_reason.as_deref(), Some("end_token"));
    assert_eq!(completion.usage.n_generated_tokens, Some(1));
    let logprobs = completion.logprobs.unwrap();
    assert_eq!(logprobs.len(), 1);
    assert_eq!(logprobs[0].rank, Some(32), "the bias is not part of the distribution");
    assert_eq!(logprobs[0].top.len(), 2);
    assert_eq!(logprobs[0].top[0].bytes, b"d");
}

#[test]
fn what_does_not_fit_is_refused_before_any_feed() {
    let mut options = ToyOptions::default();
    options.caps.ctx_per_seq = 20;
    let toy = open(options, EngineOptions::new("toy"));
    let error =
        generate(&*toy.backend, &text("abcdefghij").with_max_tokens(11), &mut Seen::default())
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert_eq!(error.context("n_prompt_tokens"), Some("10"));
    assert_eq!(error.context("max_tokens"), Some("11"));
    assert_eq!(error.context("n_ctx"), Some("20"));
    let full = text(&"a".repeat(20));
    let error = generate(&*toy.backend, &full, &mut Seen::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert_eq!(toy.counters.n_feeds(), 0);
    let completion = complete(&*toy.backend, &text("abcdefghij"));
    assert_eq!(completion.stop_reason, StopReason::Length);
    assert_eq!(completion.usage.n_generated_tokens, Some(10), "to the end of the context");
    assert_eq!(completion.effective.values["max_tokens"], 10);
}

#[test]
fn a_prefix_is_reused_unless_the_request_is_deterministic() {
    let toy = toy();
    let prompt = "the quick brown fox jumps over the lazy dog";
    let first = complete(&*toy.backend, &text(prompt).with_max_tokens(5));
    assert_eq!(first.usage.n_cached_tokens, Some(0));
    let again = complete(&*toy.backend, &text(prompt).with_max_tokens(5));
    assert_eq!(again.usage.n_cached_tokens, Some(prompt.len() as u64 - 1));
    assert_eq!(again.text, first.text);
    let other = complete(&*toy.backend, &text("the quick red fox").with_max_tokens(5));
    assert_eq!(other.usage.n_cached_tokens, Some(10));
    let mut request = text(prompt).with_max_tokens(5);
    request.deterministic = true;
    let plain = complete(&*toy.backend, &request);
    assert_eq!(plain.usage.n_cached_tokens, Some(0));
    assert_eq!(plain.text, first.text);
}

#[test]
fn break_ends_in_order_with_what_was_shown() {
    let toy = toy();
    let mut seen = Seen { break_at: Some(3), ..Seen::default() };
    let request = text("a").with_logprobs(0).with_max_tokens(500);
    let completion = generate(&*toy.backend, &request, &mut seen).unwrap();
    assert_eq!(completion.stop_reason, StopReason::Cancelled);
    assert_eq!(completion.text, "dgj");
    assert_eq!(completion.logprobs.unwrap().len(), 3);
    assert!(completion.usage.n_generated_tokens.unwrap() >= 3);
    assert_eq!(seen.events.last(), Some(&Event::Text("j".into())), "nothing is pushed after Break");
    let mut at_start = |_: Event<'_>| std::ops::ControlFlow::Break(());
    let n_feeds = toy.counters.n_feeds();
    let completion =
        weighbridge_core::block_on(toy.backend.generate(&text("a"), &mut at_start)).unwrap();
    assert_eq!(completion.stop_reason, StopReason::Cancelled);
    assert_eq!(toy.counters.n_feeds(), n_feeds);
}

#[test]
fn sixty_four_jobs_at_once_do_not_mix() {
    for (batching, max_seqs) in
        [(Batching::Ragged, 5), (Batching::EqualLength, 3), (Batching::One, 2)]
    {
        let mut options = ToyOptions::default();
        options.caps.batching = batching;
        options.caps.max_seqs = max_seqs;
        options.caps.max_feed = 40;
        options.caps.max_rows = 4;
        options.caps.ctx_total = 700;
        let toy = open(options, EngineOptions::new("toy"));
        let n_ok = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for job in 0..64u64 {
                let (toy, n_ok) = (&toy, &n_ok);
                scope.spawn(move || {
                    let mut rng = ChaCha8Rng::seed_from_u64(job);
                    let n = rng.next_u32() as usize % 90 + 1;
                    let prompt: Vec<u32> = (0..n).map(|_| 1 + rng.next_u32() % 30).collect();
                    let want = brute_force(&prompt, &seeded(job), 30);
                    let mut request = Request::new(tokens(&prompt))
                        .with_sampling(seeded(job))
                        .with_max_tokens(30)
                        .with_logprobs(0);
                    request.deterministic = job % 5 == 0;
                    let completion = complete(&*toy.backend, &request);
                    let ids: Vec<u32> =
                        completion.logprobs.unwrap().iter().map(|t| t.id.unwrap().0).collect();
                    assert_eq!(ids, want, "job {job}");
                    n_ok.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(n_ok.into_inner(), 64);
    }
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    let toy = toy();
    let mut request = text("a");
    request.reasoning = Some(Reasoning::Off);
    let error = generate(&*toy.backend, &request, &mut Seen::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.context("option"), Some("reasoning"));
    let chat = Request::new(Prompt::user("hi"));
    let error = generate(&*toy.backend, &chat, &mut Seen::default()).unwrap_err();
    assert_eq!(error.context("option"), Some("prompt.chat"));
    let mut request = text("a");
    request.sampling.logit_bias = vec![(TokenId(9_999), 1.0)];
    let error = generate(&*toy.backend, &request, &mut Seen::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    let error =
        generate(&*toy.backend, &Request::new(tokens(&[9_999])), &mut Seen::default()).unwrap_err();
    assert_eq!(error.context("token_id"), Some("9999"));
    let error = generate(&*toy.backend, &text(""), &mut Seen::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[test]
fn chats_need_a_template_and_record_it() {
    let mut options =
        ToyOptions { chat_template: Some(TEMPLATE.to_owned()), ..ToyOptions::default() };
    let toy = open(options.clone(), EngineOptions::new("toy"));
    assert!(toy.backend.capabilities().supports(RequestOption::ChatPrompt));
    let prompt = Prompt::Chat(vec![Message::user("hello")]);
    // `u hello`, the end token, `a `.
    let n_tokens = weighbridge_core::block_on(toy.backend.count_tokens(&prompt)).unwrap();
    assert_eq!(n_tokens, 7 + 1 + 2);
    let completion = complete(&*toy.backend, &Request::new(prompt).with_max_tokens(3));
    let sha256 = toy.backend.card().template_sha256.clone().unwrap();
    assert_eq!(completion.effective.values["template_sha256"], sha256);

    options.chat_template = Some("{% if %}".into());
    let loader = Box::new(weighbridge_engine::toy::ToyLoader::new(options));
    let context = weighbridge_core::OpenContext::new();
    let opened = weighbridge_engine::LocalBackend::open(loader, &context, EngineOptions::new("t"));
    assert_eq!(weighbridge_core::block_on(opened).unwrap_err().kind(), ErrorKind::Template);
}

#[test]
fn long_prompts_report_progress_and_chunks_respect_the_latency() {
    let options =
        ToyOptions { delay_per_token: Duration::from_micros(1_000), ..ToyOptions::default() };
    let mut engine_options = EngineOptions::new("toy");
    engine_options.cancel_latency = Duration::from_millis(60);
    let toy = open(options, engine_options);
    let mut seen = Seen::default();
    let request = text(&"abc".repeat(100)).with_max_tokens(2);
    generate(&*toy.backend, &request, &mut seen).unwrap();
    let mut n_done = Vec::new();
    for event in &seen.events {
        if let Event::Progress { tokens, .. } = event {
            n_done.push(tokens.n_done);
            assert_eq!(tokens.n_total, 300);
        }
    }
    assert!(n_done.len() >= 4, "{n_done:?}");
    assert!(n_done.is_sorted());
    // 60 ms are 60 tokens at most; a sleep may take a little longer than asked.
    assert!(toy.counters.largest_feed() <= 64, "{}", toy.counters.largest_feed());
}

#[test]
fn feeds_are_short_only_while_somebody_follows_what_is_decoded() {
    for is_followed in [true, false] {
        let options =
            ToyOptions { delay_per_token: Duration::from_millis(1), ..ToyOptions::default() };
        let mut engine_options = EngineOptions::new("toy");
        engine_options.decode_latency = Duration::from_millis(30);
        let toy = open(options, engine_options);
        let decoded = text("a").with_max_tokens(300);
        std::thread::scope(|scope| {
            let decoding = scope.spawn(|| match is_followed {
                true => generate(&*toy.backend, &decoded, &mut Seen::default()).unwrap(),
                false => toy.backend.complete_blocking(&decoded).unwrap(),
            });
            wait_for("the first feed", || toy.counters.n_feeds() >= 1);
            complete(&*toy.backend, &text(&"abc".repeat(200)).with_max_tokens(1));
            assert!(!decoding.is_finished(), "it decoded beside all of the prompt");
        });
        let largest = toy.counters.largest_feed();
        let is_short = largest <= 40;
        assert_eq!(is_short, is_followed, "{largest} tokens");
    }
}
