//! Four wires at a scripted server.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use weighbridge_core::{
    Backend, BackendExt, Completion, Egress, EgressEntry, EgressLedger, EgressScope, Error,
    ModelRef, OpenContext, Outcome, Request, Result, Secret, Secrets, block_on,
};
use weighbridge_testkit::player::{Act, Player, Script};

pub(crate) const CANARY: &str = "sk-canary/7f+3e\"9";

/// The four protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Wire {
    Chat,
    Messages,
    Responses,
    Gemini,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Vec<EgressEntry>>);

impl Ledger {
    /// Requests that were made.
    pub(crate) fn n_exchanges(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl EgressLedger for Ledger {
    fn record(&self, entry: EgressEntry) {
        self.0.lock().unwrap().push(entry);
    }
}

#[derive(Debug)]
struct Keys(BTreeMap<String, String>);

impl Secrets for Keys {
    fn secret(&self, name: &str) -> Option<Secret> {
        self.0.get(name).map(Secret::new)
    }
}

impl Wire {
    pub(crate) const ALL: [Self; 4] = [Self::Chat, Self::Messages, Self::Responses, Self::Gemini];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Messages => "messages",
            Self::Responses => "responses",
            Self::Gemini => "gemini",
        }
    }

    /// The header that carries the key, and its value.
    pub(crate) fn key_header(self) -> (&'static str, String) {
        match self {
            Self::Chat | Self::Responses => ("authorization", format!("Bearer {CANARY}")),
            Self::Messages => ("x-api-key", CANARY.to_owned()),
            Self::Gemini => ("x-goog-api-key", CANARY.to_owned()),
        }
    }

    /// The model `m` below this origin.
    pub(crate) fn try_open(
        self,
        origin: &str,
        options: Value,
        scope: EgressScope,
    ) -> Result<Arc<dyn Backend>> {
        self.connect(origin, options, scope, Arc::default())
    }

    /// The same, with its requests in this ledger.
    pub(crate) fn connect(
        self,
        origin: &str,
        options: Value,
        scope: EgressScope,
        ledger: Arc<Ledger>,
    ) -> Result<Arc<dyn Backend>> {
        let (provider, version) = match self {
            Self::Chat | Self::Responses => ("openai", "v1"),
            Self::Messages => ("anthropic", "v1"),
            Self::Gemini => ("gemini", "v1beta"),
        };
        let mut all = json!({"base_url": format!("{origin}/{version}"), "api_key_env": "CANARY_KEY", "timeout_s": 10});
        if provider == "openai" {
            all["api"] = self.name().into();
        }
        let fields = all.as_object_mut().unwrap();
        fields.extend(options.as_object().unwrap().clone());
        let keys = Keys(BTreeMap::from([("CANARY_KEY".to_owned(), CANARY.to_owned())]));
        let context = OpenContext::new()
            .with_options(fields.clone())
            .with_egress(Egress::grant(scope, ledger))
            .with_secrets(Arc::new(keys));
        let registry = weighbridge_core::link_plugins!(weighbridge_remote).unwrap();
        let model: ModelRef = format!("{provider}:m").parse().unwrap();
        block_on(registry.provider(provider).unwrap().open(&model, &context))
    }

    pub(crate) fn open(self, player: &Player, options: Value) -> Arc<dyn Backend> {
        self.try_open(&player.origin(), options, EgressScope::Loopback).unwrap()
    }

    /// What one question to this script comes to.
    #[track_caller]
    pub(crate) fn ask(self, script: Script) -> Result<Completion> {
        self.ask_with(script, json!({}))
    }

    #[track_caller]
    pub(crate) fn ask_with(self, script: Script, options: Value) -> Result<Completion> {
        let player = Player::one(script);
        let result = self.open(&player, options).complete_blocking(&Request::user("Hi"));
        assert_eq!(player.journal().len(), 1, "{self:?}: one call is one request");
        if let Err(error) = &result {
            assert_no_canary(error);
        }
        result
    }

    #[track_caller]
    pub(crate) fn outcome(self, script: Script) -> Outcome {
        Outcome::of(&self.ask(script))
    }

    /// The events of an answer with these pieces of text. The first `n_opening` hold no text.
    pub(crate) fn events(self, texts: &[&str]) -> Vec<String> {
        let whole = texts.concat();
        match self {
            Self::Chat => {
                let chunk = |delta: Value, finish: Value| {
                    data(&json!({"id": "c", "object": "chat.completion.chunk", "created": 1,
                        "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
                };
                let mut events =
                    vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
                events.extend(texts.iter().map(|t| chunk(json!({"content": t}), Value::Null)));
                events.push(chunk(json!({}), "stop".into()));
                events.push(data(
                    &json!({"id": "c", "object": "chat.completion.chunk", "created": 1,
                    "model": "m", "choices": [], "usage":
                    {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}}),
                ));
                events.push("data: [DONE]\n\n".to_owned());
                events
            }
            Self::Messages => {
                let mut events = vec![
                    named(&json!({"type": "message_start", "message": {"id": "msg_1",
                        "type": "message", "role": "assistant", "model": "m", "content": [],
                        "stop_reason": null, "stop_sequence": null,
                        "usage": {"input_tokens": 9, "output_tokens": 1}}})),
                    named(&json!({"type": "content_block_start", "index": 0,
                        "content_block": {"type": "text", "text": ""}})),
                ];
                events.extend(texts.iter().map(|t| {
                    named(&json!({"type": "content_block_delta", "index": 0,
                        "delta": {"type": "text_delta", "text": t}}))
                }));
                events.push(named(&json!({"type": "content_block_stop", "index": 0})));
                events.push(named(&json!({"type": "message_delta",
                    "delta": {"stop_reason": "end_turn", "stop_sequence": null},
                    "usage": {"output_tokens": 4}})));
                events.push(named(&json!({"type": "message_stop"})));
                events
            }
            Self::Responses => {
                let response = |status: &str, output: Value, usage: Value| {
                    json!({"id": "resp_1", "object": "response", "created_at": 1, "status": status,
                        "error": null, "incomplete_details": null, "model": "m", "output": output,
                        "usage": usage})
                };
                let part = json!({"type": "output_text", "text": whole, "annotations": []});
                let item = json!({"id": "msg_0", "type": "message", "status": "completed",
                    "role": "assistant", "content": [part]});
                let place = json!({"item_id": "msg_0", "output_index": 0, "content_index": 0});
                let at = |kind: &str, more: Value| {
                    let mut event = json!({"type": kind});
                    let fields = event.as_object_mut().unwrap();
                    fields.extend(place.as_object().unwrap().clone());
                    fields.extend(more.as_object().unwrap().clone());
                    event
                };
                let mut events = vec![
                    json!({"type": "response.created",
                        "response": response("in_progress", json!([]), Value::Null)}),
                    json!({"type": "response.output_item.added", "output_index": 0, "item":
                        {"id": "msg_0", "type": "message", "status": "in_progress",
                        "role": "assistant", "content": []}}),
                    at(
                        "response.content_part.added",
                        json!({"part":
                        {"type": "output_text", "text": "", "annotations": []}}),
                    ),
                ];
                events.extend(
                    texts.iter().map(|t| at("response.output_text.delta", json!({"delta": t}))),
                );
                events.push(at("response.output_text.done", json!({"text": whole})));
                events.push(at("response.content_part.done", json!({"part": part})));
                events.push(json!({"type": "response.output_item.done", "output_index": 0,
                    "item": item}));
                let usage = json!({"input_tokens": 9, "output_tokens": 4, "total_tokens": 13,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens_details": {"reasoning_tokens": 0}});
                events.push(json!({"type": "response.completed",
                    "response": response("completed", json!([item]), usage)}));
                for (n, event) in events.iter_mut().enumerate() {
                    event["sequence_number"] = n.into();
                }
                events.iter().map(named).collect()
            }
            Self::Gemini => {
                let chunk = |text: &str, finish: Option<&str>| {
                    let mut candidate = json!({"content": {"parts": [{"text": text}], "role": "model"}, "index": 0});
                    if let Some(finish) = finish {
                        candidate["finishReason"] = finish.into();
                    }
                    data(
                        &json!({"candidates": [candidate], "usageMetadata": {"promptTokenCount": 9,
                        "candidatesTokenCount": 4, "totalTokenCount": 13}, "modelVersion": "m",
                        "responseId": "r"}),
                    )
                };
                let mut events: Vec<String> = texts.iter().map(|t| chunk(t, None)).collect();
                events.push(chunk("", Some("STOP")));
                events
            }
        }
    }

    /// Events before the first text.
    pub(crate) fn n_opening(self) -> usize {
        match self {
            Self::Chat => 1,
            Self::Messages => 2,
            Self::Responses => 3,
            Self::Gemini => 0,
        }
    }

    /// Events of a whole answer with `n_texts` pieces, up to and with the one that completes it.
    pub(crate) fn n_to_whole(self, n_texts: usize) -> usize {
        let closing = match self {
            Self::Chat | Self::Gemini => 1,
            Self::Messages => 3,
            Self::Responses => 4,
        };
        self.n_opening() + n_texts + closing
    }

    /// The beginning of an answer, up to and with this text.
    pub(crate) fn begun(self, text: &str) -> String {
        self.events(&[text])[..=self.n_opening()].concat()
    }

    /// A whole answer with this text.
    pub(crate) fn whole(self, text: &str) -> String {
        self.events(&[text]).concat()
    }

    /// The same answer as one document.
    pub(crate) fn document(self, text: &str) -> Value {
        match self {
            Self::Chat => {
                json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}})
            }
            Self::Messages => json!({"id": "msg_1", "type": "message", "role": "assistant",
                "model": "m", "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"input_tokens": 9, "output_tokens": 4}}),
            Self::Responses => json!({"id": "resp_1", "object": "response", "created_at": 1,
                "status": "completed", "error": null, "incomplete_details": null, "model": "m",
                "output": [{"id": "msg_0", "type": "message", "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": text, "annotations": []}]}],
                "usage": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens_details": {"reasoning_tokens": 0}}}),
            Self::Gemini => json!({"candidates": [{"content": {"parts": [{"text": text}],
                    "role": "model"}, "finishReason": "STOP", "index": 0}],
                "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4,
                    "totalTokenCount": 13}, "modelVersion": "m", "responseId": "r"}),
        }
    }

    /// An error as this vendor words it in the body of a refusal.
    pub(crate) fn refusal(self, status: u16, code: &str, message: &str) -> Value {
        match self {
            Self::Chat | Self::Responses => json!({"error":
                {"message": message, "type": "t", "param": null, "code": code}}),
            Self::Messages => json!({"type": "error", "request_id": "req_1",
                "error": {"type": code, "message": message}}),
            Self::Gemini => json!({"error":
                {"code": status, "status": code, "message": message, "details": []}}),
        }
    }
}

/// Tells a process that it is a child which makes a call for its parent: the wire's name and the
/// server's origin.
const CHILD_CALL: &str = "WEIGHBRIDGE_CHILD_CALL";

/// If this process is a child: the wire that it speaks, and the origin of the server.
pub(crate) fn child_call() -> Option<(Wire, String)> {
    let spec = std::env::var(CHILD_CALL).ok()?;
    let (wire, origin) = spec.split_once(' ').unwrap();
    Some((Wire::ALL.into_iter().find(|w| w.name() == wire).unwrap(), origin.to_owned()))
}

/// Runs the test of this name in a process of its own, with these variables; there
/// [`child_call`] says what to do. Gives back what it printed behind `child: `.
#[track_caller]
pub(crate) fn in_child(test: &str, wire: Wire, origin: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD_CALL, format!("{} {origin}", wire.name()))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = printed.lines().find_map(|line| Some(line.split_once("child: ")?.1.to_owned()));
    said.unwrap_or_else(|| {
        panic!("{wire:?}: {printed}\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// A nameless event.
pub(crate) fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// An event that is named after its type.
pub(crate) fn named(value: &Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap())
}

/// Waits for the client to close, for ever.
pub(crate) fn hang() -> Act {
    Act::AwaitClose
}

/// Every way in which an error can be printed; none may hold the key.
#[track_caller]
pub(crate) fn assert_no_canary(error: &Error) {
    let all = format!("{error} {error:?} {error:#?} {}", error.report());
    for needle in ["canary", "7f+3e", "7f%2B3e", "c2stY2FuYXJ5"] {
        assert!(!all.contains(needle), "{needle} in {all}");
    }
}
