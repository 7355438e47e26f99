//! Opening models and looking at what they do.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use weighbridge_core::{
    Backend, BackendExt, Completion, Egress, EgressEntry, EgressLedger, EgressScope, Error, Event,
    ModelRef, OpenContext, Outcome, Provider, Request, Result, Secret, Secrets, block_on,
};
use weighbridge_remote::{Remote, Vendor};

use weighbridge_testkit::player::{Act, Player};

pub(crate) const CANARY: &str = "sk-canary/7f+3e\"9";

#[derive(Debug, Default)]
pub(crate) struct Ledger(pub(crate) Mutex<Vec<EgressEntry>>);

impl EgressLedger for Ledger {
    fn record(&self, entry: EgressEntry) {
        self.0.lock().unwrap().push(entry);
    }
}

#[derive(Debug)]
pub(crate) struct Keys(pub(crate) BTreeMap<String, String>);

impl Secrets for Keys {
    fn secret(&self, name: &str) -> Option<Secret> {
        self.0.get(name).map(Secret::new)
    }
}

pub(crate) fn context(options: Value, scope: EgressScope, ledger: &Arc<Ledger>) -> OpenContext {
    let keys = Keys(BTreeMap::from([("CANARY_KEY".to_owned(), CANARY.to_owned())]));
    OpenContext::new()
        .with_options(options.as_object().unwrap().clone())
        .with_egress(Egress::grant(scope, ledger.clone()))
        .with_secrets(Arc::new(keys))
}

pub(crate) fn try_open(url: &str, options: Value) -> Result<Arc<dyn Backend>> {
    let model: ModelRef = format!("openai-compatible:{url}").parse().unwrap();
    let context = context(options, EgressScope::Loopback, &Arc::default());
    block_on(Remote::new(Vendor::OpenAiCompatible).open(&model, &context))
}

/// The model `m` at a player, with a key.
pub(crate) fn open(player: &Player, options: Value) -> Arc<dyn Backend> {
    let mut all = json!({"model": "m", "api_key_env": "CANARY_KEY"});
    all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    try_open(&player.url(), all).unwrap()
}

/// What one question to this script comes to.
pub(crate) fn ask(script: Vec<Act>) -> Result<Completion> {
    open(&Player::one(script), json!({})).complete_blocking(&Request::user("Hi"))
}

/// Everything that a call shows: events as text, then the terminal and its outcome.
pub(crate) fn transcript(backend: &dyn Backend, request: &Request) -> Vec<String> {
    let mut shown = Vec::new();
    let mut text = String::new();
    let mut sink = |event: Event<'_>| {
        if let Event::Text(t) = &event {
            text.push_str(t);
        }
        if !matches!(event, Event::Started(_)) {
            shown.push(format!("{event:?}"));
        }
        ControlFlow::Continue(())
    };
    let result = block_on(backend.generate(request, &mut sink));
    let outcome = Outcome::of(&result);
    match result {
        Ok(completion) => {
            assert_eq!(completion.text, text, "pushed and returned text differ");
            shown.push(format!(
                "{outcome:?} {:?} {:?} {:?}",
                completion.raw_stop_reason, completion.tool_calls, completion.warnings
            ));
        }
        Err(error) => {
            assert_no_canary(&error);
            shown.push(format!("{outcome:?}"));
        }
    }
    shown
}

/// Every way in which an error can be printed; none may hold the key.
#[track_caller]
pub(crate) fn assert_no_canary(error: &Error) {
    let all = format!("{error} {error:?} {error:#?} {}", error.report());
    for needle in ["canary", "7f+3e", "7f%2B3e", "c2stY2FuYXJ5"] {
        assert!(!all.contains(needle), "{needle} in {all}");
    }
}
