//! Our own client at our own server: what goes in comes out.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use weighbridge_core::{
    Backend, BackendExt, Egress, EgressEntry, EgressLedger, EgressScope, ErrorKind, ModelRef,
    OpenContext, Outcome, Provider, Request, Secret, Secrets, StopReason, StopSink, Tool, block_on,
};
use weighbridge_remote::{Remote, Vendor};
use weighbridge_server::{Running, Server};

use crate::support::{Scripted, Step, free, server, within_a_second};

#[derive(Debug)]
struct Ignore;

impl EgressLedger for Ignore {
    fn record(&self, _: EgressEntry) {}
}

#[derive(Debug)]
struct OneKey;

impl Secrets for OneKey {
    fn secret(&self, name: &str) -> Option<Secret> {
        (name == "TOKEN").then(|| Secret::new("t0ken"))
    }
}

fn open(
    server: &Running,
    options: serde_json::Value,
) -> weighbridge_core::Result<Arc<dyn Backend>> {
    let model: ModelRef = format!("openai-compatible:http://{}/v1", server.addr()).parse()?;
    let context = OpenContext::new()
        .with_options(options.as_object().unwrap().clone())
        .with_egress(Egress::grant(EgressScope::Loopback, Arc::new(Ignore)))
        .with_secrets(Arc::new(OneKey));
    block_on(Remote::new(Vendor::OpenAiCompatible).open(&model, &context))
}

#[test]
fn text_reasoning_usage_and_log_probabilities_survive() {
    let steps = vec![
        Step::think("hm"),
        Step::token("Gr\u{fc}\u{df}e ", -0.5),
        Step::token("\u{1F600}", -0.25),
        Step::End(StopReason::Length),
    ];
    let model = Scripted::new(steps);
    let server = server(&model);
    let request = Request::user("Hi").with_logprobs(2).with_max_tokens(9).with_stop("\n");
    let direct = model.complete_blocking(&request).unwrap();
    for stream in [true, false] {
        let backend = open(&server, json!({"stream": stream})).unwrap();
        let remote = backend.complete_blocking(&request).unwrap();
        assert_eq!(remote.text, direct.text);
        assert_eq!(remote.reasoning, direct.reasoning);
        assert_eq!(remote.stop_reason, direct.stop_reason);
        assert_eq!(remote.usage.n_prompt_tokens, direct.usage.n_prompt_tokens);
        assert_eq!(remote.usage.n_generated_tokens, direct.usage.n_generated_tokens);
        assert_eq!(remote.warnings, Vec::<String>::new());
        let (remote, direct) = (remote.logprobs.unwrap(), direct.logprobs.clone().unwrap());
        assert_eq!(remote.len(), direct.len());
        for (a, b) in remote.iter().zip(&direct) {
            assert_eq!((&a.bytes, a.logprob, &a.top), (&b.bytes, b.logprob, &b.top));
            assert_eq!(a.rank, Some(0));
        }
        let seen = model.requests().pop().unwrap();
        assert_eq!(seen, request);
    }
}

#[test]
fn tools_and_refusals_survive() {
    let steps = vec![Step::Call("f", "{\"a\":1}"), Step::End(StopReason::ToolCalls)];
    let server_of_tools = server(&Scripted::new(steps));
    let request =
        Request::user("Hi").with_tools(vec![Tool::new("f", "d", json!({"type": "object"}))]);
    for stream in [true, false] {
        let backend = open(&server_of_tools, json!({"stream": stream})).unwrap();
        let completion = backend.complete_blocking(&request).unwrap();
        assert_eq!(completion.stop_reason, StopReason::ToolCalls);
        assert_eq!(completion.tool_calls[0].arguments, "{\"a\":1}");
    }
    let refusing = Scripted::new(vec![Step::say("no"), Step::End(StopReason::Refusal)]);
    let server = server(&refusing);
    let backend = open(&server, json!({"stream": false})).unwrap();
    assert_eq!(Outcome::of(&backend.complete_blocking(&Request::user("Hi"))), Outcome::Refused);
}

#[test]
fn row_78_failures_keep_their_class_and_no_half_answer_passes() {
    for (kind, outcome) in [
        (ErrorKind::ContextOverflow, Outcome::ContextOverflow),
        (ErrorKind::RateLimited, Outcome::RateLimited),
        (ErrorKind::Quota, Outcome::Quota),
        (ErrorKind::Overloaded, Outcome::Overloaded),
        (ErrorKind::Engine, Outcome::ServerError),
        (ErrorKind::NotFound, Outcome::BadRequest),
    ] {
        let server = server(&Scripted::new(vec![Step::fail(kind)]));
        let backend = open(&server, json!({})).unwrap();
        let result = backend.complete_blocking(&Request::user("Hi"));
        if kind == ErrorKind::NotFound {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
        } else {
            assert_eq!(Outcome::of(&result), outcome, "{kind:?}");
        }
    }
    let server = server(&Scripted::new(vec![Step::say("half"), Step::fail(ErrorKind::Overloaded)]));
    let backend = open(&server, json!({})).unwrap();
    let result = backend.complete_blocking(&Request::user("Hi"));
    assert_eq!(Outcome::of(&result), Outcome::Overloaded);
    assert_eq!(server.stats().models["m"].failed, 1);
}

#[test]
fn a_stop_at_the_client_ends_the_generation_at_the_server() {
    let model = Scripted::new(vec![Step::say("a"), Step::Wait(Duration::from_secs(60))]);
    let server = server(&model);
    let backend = open(&server, json!({})).unwrap();
    let completion =
        block_on(backend.generate(&Request::user("Hi"), &mut StopSink::after_texts(1))).unwrap();
    assert_eq!(completion.stop_reason, StopReason::Cancelled);
    within_a_second("cancelled", || server.stats().models["m"].cancelled == 1);
}

#[test]
fn a_token_opens_the_server() {
    let backend: Arc<dyn Backend> = Scripted::new(vec![Step::say("a")]);
    let server = Server::new([("m".to_owned(), backend)])
        .with_token(Secret::new("t0ken"))
        .spawn(free())
        .unwrap();
    let error = open(&server, json!({})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
    assert!(error.message().contains("name the secret that holds it"), "{error}");
    let backend = open(&server, json!({"api_key_env": "TOKEN"})).unwrap();
    assert_eq!(backend.complete_blocking(&Request::user("Hi")).unwrap().text, "a");
}

#[test]
fn many_calls_at_once_are_neither_lost_nor_doubled() {
    let model =
        Scripted::new(vec![Step::say("a"), Step::Wait(Duration::from_millis(1)), Step::say("b")]);
    let server = server(&model);
    let backend = open(&server, json!({"max_concurrency": 16})).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..25 {
                    assert_eq!(backend.complete_blocking(&Request::user("Hi")).unwrap().text, "ab");
                }
            });
        }
    });
    let stats = server.stats().models["m"];
    assert_eq!((stats.started, stats.completed), (400, 400));
    assert_eq!(model.requests().len(), 400);
}
