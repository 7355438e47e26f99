//! Weighbridge as a library: open a model, stream a chat, read log-probabilities, compare on three samples.
#![allow(clippy::print_stdout)] // An example shows what it gets.

use std::path::Path;
use std::sync::Arc;

use weighbridge::{
    BackendExt as _, Environment, Event, LikelihoodItem, LikelihoodRequest, OpenContext, Prompt,
    Request, StreamItem, block_on, evaluate_suite, link_plugins, report, suite,
};

const SUITE: &str = r#"
version = 1
name = "three-samples"
current = "large"
prompt = { user = "Triage this email as JSON with queue, order, urgency.\n\n{{ email }}" }
data = { file = "workloads/triage-300.jsonl", id = "id", limit = 3 }
request = { max_tokens = 64 }
candidate = [{ name = "large", model = "candle:triage-large" }, { name = "open", model = "candle:triage-open" }]
evaluator = [{ kind = "json_fields", target = "target" }]
"#;

fn main() -> weighbridge::Result<()> {
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures"));
    let registry = link_plugins!(weighbridge_candle)?;

    let context = OpenContext::new().with_base_dir(fixtures);
    let provider = registry.provider("candle")?;
    let model = block_on(provider.open(&"candle:triage-open".parse()?, &context))?;

    let prompt = "Triage this email as JSON with queue, order, urgency.\n\nSubject: Invoice\n\nI was charged twice for order 481516.";
    let mut stream = model.stream(Request::user(prompt).with_max_tokens(64));
    while let Some(item) = stream.next_blocking() {
        match item? {
            StreamItem::Event(Event::Text(text)) => print!("{text}"),
            StreamItem::Completion(done) => println!("  [{}]", done.stop_reason.as_str()),
            _ => {}
        }
    }

    let context = Arc::new(Prompt::user(prompt));
    let items = ["{\"queue\":\"billing\"", "{\"queue\":\"sales\""]
        .map(|text| LikelihoodItem::new(Arc::clone(&context), text));
    for likelihood in block_on(model.log_likelihood(&LikelihoodRequest::new(items.to_vec())))? {
        println!("log-likelihood {:.3} over {} tokens", likelihood.sum, likelihood.tokens.len());
    }

    let runs = std::env::temp_dir().join(format!("weighbridge-example-{}", std::process::id()));
    let suite = suite::read_str(SUITE, fixtures, "the example's suite")?;
    let evaluation =
        evaluate_suite(suite, &Environment::new(registry), &runs, "2026-01-01T00:00:00Z")?;
    print!("{}", report::render_terminal(&evaluation.report, &evaluation.samples, 100, false));
    Ok(())
}
