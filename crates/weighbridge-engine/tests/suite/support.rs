//! What the tests share: opening toys, collecting events.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weighbridge_core::{
    Backend, Completion, Event, OpenContext, Prompt, Request, Result, Sampling, TokenId, block_on,
};
use weighbridge_engine::toy::{ToyCounters, ToyLoader, ToyOptions};
use weighbridge_engine::{EngineOptions, LocalBackend};

/// A template that writes role and content.
pub(crate) const TEMPLATE: &str =
    "{% for m in messages %}{{ m.role[0] }} {{ m.content }}<end>{% endfor %}a ";

pub(crate) struct Toy {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) counters: ToyCounters,
}

#[track_caller]
pub(crate) fn open(toy: ToyOptions, options: EngineOptions) -> Toy {
    let loader = ToyLoader::new(toy);
    let counters = loader.counters.clone();
    let context = OpenContext::new();
    let opened = LocalBackend::open(Box::new(loader), &context, options);
    Toy { backend: block_on(opened).unwrap(), counters }
}

#[track_caller]
pub(crate) fn toy() -> Toy {
    open(ToyOptions::default(), EngineOptions::new("toy"))
}

pub(crate) fn text(prompt: &str) -> Request {
    Request::new(Prompt::Text(prompt.to_owned())).with_sampling(Sampling::greedy())
}

pub(crate) fn tokens(ids: &[u32]) -> Prompt {
    Prompt::Tokens(ids.iter().map(|&id| TokenId(id)).collect())
}

/// What a sink saw.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    pub(crate) text: String,
    pub(crate) events: Vec<Event<'static>>,
    /// Break at the text event with this number.
    pub(crate) break_at: Option<usize>,
}

impl Seen {
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let name = |event: &Event<'_>| match event {
            Event::Started(_) => "started",
            Event::Progress { .. } => "progress",
            Event::Text(_) => "text",
            Event::Tokens(_) => "tokens",
            Event::Usage(_) => "usage",
            Event::Warning(_) => "warning",
            _ => "other",
        };
        self.events.iter().map(name).collect()
    }
}

impl weighbridge_core::EventSink for Seen {
    fn push(&mut self, event: Event<'_>) -> ControlFlow<()> {
        let mut answer = ControlFlow::Continue(());
        if let Event::Text(text) = &event {
            self.text.push_str(text);
            let n_texts = self.names().iter().filter(|name| **name == "text").count() + 1;
            if self.break_at == Some(n_texts) {
                answer = ControlFlow::Break(());
            }
        }
        self.events.push(event.into_owned());
        answer
    }
}

pub(crate) fn generate(
    backend: &dyn Backend,
    request: &Request,
    seen: &mut Seen,
) -> Result<Completion> {
    let completion = block_on(backend.generate(request, seen))?;
    assert_eq!(completion.text, seen.text, "the pushed text is the completion's");
    Ok(completion)
}

#[track_caller]
pub(crate) fn complete(backend: &dyn Backend, request: &Request) -> Completion {
    generate(backend, request, &mut Seen::default()).unwrap()
}

pub(crate) fn golden(name: &str) -> serde_json::Value {
    let path = format!("{}/tests/goldens/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// Waits until something holds, for a while.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
