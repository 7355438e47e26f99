//! Models at a vendor of batch jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use weighbridge_core::{
    Backend, BatchAnswers, BatchId, BatchJobs, BatchRequest, BatchStatus, Egress, EgressEntry,
    EgressLedger, EgressScope, ModelRef, OpenContext, Provider, Request, Result, Secret, Secrets,
    Submission, block_on,
};
use weighbridge_remote::{Remote, Vendor};
use weighbridge_testkit::batch_vendor::{Api, BatchVendor, Reply};

pub(crate) const CANARY: &str = "sk-canary-1";
/// Every vendor, and for OpenAI both protocols.
pub(crate) const WIRES: [(Vendor, Api, Option<&str>); 4] = [
    (Vendor::OpenAi, Api::OpenAi, Some("responses")),
    (Vendor::OpenAi, Api::OpenAi, Some("chat")),
    (Vendor::Anthropic, Api::Anthropic, None),
    (Vendor::Gemini, Api::Gemini, None),
];

#[derive(Debug)]
struct Nowhere;

impl EgressLedger for Nowhere {
    fn record(&self, _: EgressEntry) {}
}

#[derive(Debug)]
struct Keys(BTreeMap<&'static str, &'static str>);

impl Secrets for Keys {
    fn secret(&self, name: &str) -> Option<Secret> {
        self.0.get(name).copied().map(Secret::new)
    }
}

/// The model `m` at this base URL, with a key.
pub(crate) fn open(vendor: Vendor, url: &str, protocol: Option<&str>) -> Arc<dyn Backend> {
    let mut options = json!({"base_url": url, "api_key_env": "CANARY_KEY"});
    if let Some(protocol) = protocol {
        options["api"] = protocol.into();
    }
    let context = OpenContext::new()
        .with_options(options.as_object().unwrap().clone())
        .with_egress(Egress::grant(EgressScope::Loopback, Arc::new(Nowhere)))
        .with_secrets(Arc::new(Keys(BTreeMap::from([("CANARY_KEY", CANARY)]))));
    let provider = Remote::new(vendor);
    block_on(provider.open(&ModelRef::new(provider.id(), "m"), &context)).unwrap()
}

/// Requests under ids that no vendor would take.
pub(crate) fn requests() -> Vec<BatchRequest> {
    ["first/../id", "zweite Frage ä", ""]
        .iter()
        .enumerate()
        .map(|(i, id)| {
            let mut request = Request::user(format!("question {i}"));
            request.max_tokens = Some(16);
            BatchRequest::new(*id, request)
        })
        .collect()
}

/// The vendor's answer that repeats the number of the question.
pub(crate) fn echo(body: &str) -> Reply {
    Reply::Text(format!("answer {}", number(body)))
}

/// Which of [`requests`] a body is of.
pub(crate) fn number(body: &str) -> usize {
    let at = body.find("question ").unwrap() + "question ".len();
    body[at..=at].parse().unwrap()
}

pub(crate) fn submit(jobs: &dyn BatchJobs, requests: &[BatchRequest]) -> BatchId {
    match block_on(jobs.submit("label-1", requests)).unwrap() {
        Submission::Accepted(id) => id,
        other => panic!("{other:?}"),
    }
}

/// Hands in, polls once and fetches.
pub(crate) fn whole_job(vendor: &BatchVendor, wire: usize) -> Result<BatchAnswers> {
    let (remote, _, protocol) = WIRES[wire];
    let model = open(remote, &vendor.url(), protocol);
    let jobs = model.batch().unwrap();
    let requests = requests();
    let id = submit(jobs, &requests);
    assert!(matches!(block_on(jobs.poll(&id)).unwrap(), BatchStatus::Ended));
    block_on(jobs.fetch(&id, &requests))
}

/// Every result as a line: id, then text or kind and message.
pub(crate) fn shown(answers: &BatchAnswers) -> Vec<String> {
    let results = answers.results.iter().map(|answer| match &answer.result {
        Ok(completion) => format!("{:?}: {}", answer.id, completion.text),
        Err(error) => {
            let retry = match error.retry() {
                weighbridge_core::Retry::Safe { .. } => ", again",
                _ => "",
            };
            format!("{:?}: {}{retry}", answer.id, error.kind())
        }
    });
    results.collect()
}

/// A body as JSON, for a snapshot.
pub(crate) fn pretty(body: &str) -> String {
    match serde_json::from_str::<Value>(body) {
        Ok(value) => serde_json::to_string_pretty(&value).unwrap(),
        Err(_) => body.replace('\r', "\\r"),
    }
}
