//! Constrained generations through the engine, beside others.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weighbridge_core::{
    Backend, Constraint, ErrorKind, ModelCard, OpenContext, Placement, Request, Result, Sampling,
    StopReason, TokenId, Weights, block_on,
};
use weighbridge_engine::constraint::ConstraintFactory;
use weighbridge_engine::loader::{EngineLoader, TextModel};
use weighbridge_engine::logits::{EngineCaps, LogitsEngine};
use weighbridge_engine::logprob::Distribution;
use weighbridge_engine::sampler::{Sampler, SamplerParams};
use weighbridge_engine::tokenizer::load_folder;
use weighbridge_engine::tokens::{TokenEncoder, TokenKind, TokenTable};
use weighbridge_engine::toy::{self, ToyCounters, ToyEngine, ToyOptions};
use weighbridge_engine::{EngineOptions, LocalBackend};

use crate::support::{Seen, complete, fixture, generate, text};

const PROMPT: &str = "Ticket: the invoice is wrong\n";

/// The toy engine behind the fixture's tokenizer.
struct FixtureLoader {
    table: Arc<TokenTable>,
    encoder: Arc<dyn TokenEncoder>,
    options: ToyOptions,
    counters: ToyCounters,
}

impl EngineLoader for FixtureLoader {
    fn run(
        self: Box<Self>,
        _: &OpenContext,
        serve: &mut dyn FnMut(TextModel, &mut dyn LogitsEngine),
    ) -> Result<()> {
        let text = TextModel {
            card: ModelCard::new("toy", "toy", Weights::Open, Placement::InProcess),
            table: self.table,
            encoder: self.encoder,
            chat_template: None,
        };
        serve(text, &mut ToyEngine::new(self.options, self.counters));
        Ok(())
    }
}

struct Model {
    backend: Arc<dyn Backend>,
    counters: ToyCounters,
    table: Arc<TokenTable>,
    encoder: Arc<dyn TokenEncoder>,
    n_vocab: usize,
}

/// A model with `n_more` tokens that no test text has; with many, masks have threads of their own.
fn open(n_more: usize, caps: impl FnOnce(&mut EngineCaps)) -> Model {
    let text = load_folder(&fixture("triage-open")).unwrap();
    let mut table = (*text.table).clone();
    table.bytes.extend((0..n_more).map(|i| format!("zq{i}").into_bytes()));
    table.kinds.resize(table.bytes.len(), TokenKind::Text);
    let table = Arc::new(table);
    // A padded vocabulary.
    let n_vocab = table.len() + 7;
    let mut options = ToyOptions::default();
    options.caps.n_vocab = n_vocab as u32;
    caps(&mut options.caps);
    let counters = ToyCounters::default();
    let loader = FixtureLoader {
        table: Arc::clone(&table),
        encoder: text.encoder.clone(),
        options,
        counters: counters.clone(),
    };
    let context = OpenContext::new();
    let backend =
        block_on(LocalBackend::open(Box::new(loader), &context, EngineOptions::new("toy")))
            .unwrap();
    Model { backend, counters, table, encoder: text.encoder, n_vocab }
}

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "category": {"enum": ["billing", "bug", "feature request"]},
        "urgent": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 8},
        "score": {"type": "integer", "minimum": 0, "maximum": 10}},
        "required": ["category", "urgent", "note", "score"], "additionalProperties": false})
}

fn request(constraint: Constraint, seed: u64) -> Request {
    let mut sampling = Sampling::default();
    sampling.seed = Some(seed);
    text(PROMPT).with_sampling(sampling).with_constraint(constraint)
}

impl Model {
    /// The completion, drawn row by row without fast-forwarding.
    fn reference(&self, request: &Request) -> Vec<u32> {
        let factory = ConstraintFactory::new(Arc::clone(&self.table), Arc::clone(&self.encoder));
        let mut state = factory.compile(request.constraint.as_ref().unwrap()).unwrap();
        let mut tokens = Vec::new();
        self.encoder.encode(PROMPT, false, &mut tokens).unwrap();
        let n_prompt = tokens.len();
        let params = SamplerParams::resolve(&request.sampling, &Sampling::default());
        let mut sampler = Sampler::new(params, &tokens);
        while !state.is_complete() {
            let row = toy::row(*tokens.last().unwrap(), self.n_vocab);
            let mask = state.mask().unwrap();
            let id = sampler.sample(&row, 0, &self.table, Some(mask)).unwrap();
            tokens.push(id);
            if self.table.is_end(id) {
                break;
            }
            state.commit(id).unwrap();
        }
        tokens.split_off(n_prompt)
    }

    fn text_of(&self, tokens: &[u32]) -> String {
        let bytes = tokens.iter().flat_map(|id| self.table.bytes_of(*id)).copied().collect();
        String::from_utf8(bytes).unwrap()
    }
}

#[test]
fn a_schema_is_kept_and_forced_tokens_change_nothing() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for n_more in [0, 6_000] {
        let model = open(n_more, |_| {});
        for seed in 0..25 {
            let request = request(Constraint::JsonSchema(schema()), seed);
            let expected = model.reference(&request);
            let n_before = model.counters.n_feeds();
            let completion = complete(&*model.backend, &request);
            let n_feeds = model.counters.n_feeds() - n_before;
            let value: Value = serde_json::from_str(&completion.text).unwrap();
            assert!(validator.is_valid(&value), "{}", completion.text);
            assert_eq!(completion.text, model.text_of(&expected));
            assert_eq!(completion.stop_reason, StopReason::Stop);
            assert_eq!(completion.raw_stop_reason.as_deref(), Some("constraint"));
            assert_eq!(completion.usage.n_generated_tokens, Some(expected.len() as u64));
            assert!(n_feeds < expected.len(), "{n_feeds} feeds for {} tokens", expected.len());
        }
    }
}

#[test]
fn log_probabilities_of_forced_tokens_are_the_unmodified_model_s() {
    let no_rows = |caps: &mut EngineCaps| caps.all_rows = false;
    for model in [open(0, |_| {}), open(0, no_rows), open(0, |caps| caps.max_feed = 2)] {
        for seed in 0..5 {
            let mut request = request(Constraint::JsonSchema(schema()), seed);
            request.sampling.repetition_penalty = Some(1.3);
            request.sampling.temperature = Some(0.7);
            let expected = model.reference(&request);
            let completion = complete(&*model.backend, &request.clone().with_logprobs(2));
            assert_eq!(completion.text, complete(&*model.backend, &request).text);
            let entries = completion.logprobs.unwrap();
            let ids: Vec<u32> = entries.iter().map(|e| e.id.unwrap().0).collect();
            assert_eq!(ids, expected);
            assert_eq!(completion.usage.n_generated_tokens, Some(expected.len() as u64));
            let mut before = Vec::new();
            model.encoder.encode(PROMPT, false, &mut before).unwrap();
            for entry in entries {
                let row = toy::row(*before.last().unwrap(), model.n_vocab);
                let row = Distribution::new(&row, 0).unwrap();
                let id = entry.id.unwrap().0;
                assert_eq!(entry, row.describe(id, 2, &model.table));
                before.push(id);
            }
        }
    }
}

#[test]
fn a_limit_and_a_stop_text_cut_forced_tokens() {
    let model = open(0, |_| {});
    let choices = vec!["the first answer".to_owned(), "the other one".to_owned()];
    for request in [
        request(Constraint::Choice(choices.clone()), 1),
        request(Constraint::Choice(choices), 1).with_logprobs(0),
    ] {
        let expected = model.reference(&request);
        assert!(expected.len() > 4, "{expected:?}");
        for n in 1..=expected.len() {
            let completion = complete(&*model.backend, &request.clone().with_max_tokens(n as u32));
            assert_eq!(completion.text, model.text_of(&expected[..n]));
            assert_eq!(completion.usage.n_generated_tokens, Some(n as u64));
            let reason = if n < expected.len() { StopReason::Length } else { StopReason::Stop };
            assert_eq!(completion.stop_reason, reason, "{n} of {}", expected.len());
        }
        let completion = complete(&*model.backend, &request.clone().with_stop("he"));
        assert_eq!(completion.text, "t");
        assert_eq!(completion.raw_stop_reason.as_deref(), Some("stop_text"));
    }
}

#[test]
fn the_model_may_end_where_the_language_lets_it() {
    let model = open(0, |_| {});
    let mut ends = Vec::new();
    for seed in 0..40 {
        let completion =
            complete(&*model.backend, &request(Constraint::Regex("[a-z]{0,3}".into()), seed));
        assert!(completion.text.len() <= 3);
        ends.push((completion.raw_stop_reason.unwrap(), completion.text.len() == 3));
    }
    assert!(ends.iter().all(|(reason, is_full)| (reason == "constraint") == *is_full), "{ends:?}");
    assert!(ends.iter().any(|(reason, _)| reason == "end_token"), "{ends:?}");
    assert!(ends.iter().any(|(reason, _)| reason == "constraint"), "{ends:?}");
}

#[test]
fn a_ban_on_what_is_forced_is_the_constraint_s_error() {
    let model = open(0, |_| {});
    let mut request = request(Constraint::Choice(vec!["bug report".into()]), 0);
    let expected = model.reference(&request);
    for id in expected {
        request.sampling.logit_bias = vec![(TokenId(id), f32::NEG_INFINITY)];
        let error = generate(&*model.backend, &request, &mut Seen::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Constraint, "{error}");
        assert_eq!(error.context("token_id"), Some(&*id.to_string()));
    }
}

#[test]
fn constrained_and_free_sequences_share_feeds() {
    use weighbridge_engine::logits::Batching;
    for (n_more, batching) in
        [(0, Batching::Ragged), (6_000, Batching::Ragged), (0, Batching::EqualLength)]
    {
        let model = open(n_more, |caps| caps.batching = batching);
        let requests: Vec<Request> = (0..12)
            .map(|seed| match seed % 3 {
                0 => request(Constraint::JsonSchema(schema()), seed),
                1 => request(Constraint::Regex("[a-z ]{5,30}".into()), seed).with_logprobs(1),
                _ => {
                    let mut free =
                        request(Constraint::Regex(String::new()), seed).with_max_tokens(20);
                    free.constraint = None;
                    free
                }
            })
            .collect();
        let alone: Vec<String> =
            requests.iter().map(|r| complete(&*model.backend, r).text).collect();
        let together: Vec<String> = std::thread::scope(|scope| {
            let calls: Vec<_> = requests
                .iter()
                .map(|r| scope.spawn(|| complete(&*model.backend, r).text))
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        assert_eq!(together, alone, "{batching:?}");
    }
}

#[test]
fn what_is_cancelled_in_the_middle_is_freed() {
    for n_more in [0, 6_000] {
        let model = open(n_more, |_| {});
        let long = || request(Constraint::Regex("[a-z]{900}".into()), 1);
        let mut seen = Seen { break_at: Some(3), ..Seen::default() };
        let completion = generate(&*model.backend, &long(), &mut seen).unwrap();
        assert_eq!(completion.stop_reason, StopReason::Cancelled);
        // The hard way: the future is polled once and dropped.
        for _ in 0..5 {
            let (request, mut sink) = (long(), Sink);
            let mut call = model.backend.generate(&request, &mut sink);
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(call.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(
            complete(&*model.backend, &request(Constraint::Choice(vec!["yes".into()]), 0)).text,
            "yes"
        );
        let Model { backend, encoder, .. } = model;
        block_on(backend.close()).unwrap();
        drop(backend);
        // Every state holds the vocabulary, which holds the encoder.
        let begin = Instant::now();
        while Arc::strong_count(&encoder) > 1 && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(Arc::strong_count(&encoder), 1);
    }
}

struct Sink;

impl weighbridge_core::EventSink for Sink {
    fn push(&mut self, _: weighbridge_core::Event<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
