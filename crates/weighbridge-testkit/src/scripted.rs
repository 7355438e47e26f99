//! A scripted backend: it answers step by step as a test tells it to, and remembers what it was
//! asked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use weighbridge_core::{
    Backend, Capabilities, Completion, ConstraintKind, Error, ErrorKind, Event, EventSink,
    ModelCard, ModelListing, ModelRef, OpenContext, Placement, Probe, Prompt, Provider,
    ProviderInfo, Request, RequestOption, Result, Retry, StopReason, TokenLogprob, ToolCall,
    TopLogprob, Usage, Weights,
};

/// One thing that a scripted model does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Pushes text.
    Say(String),
    /// Pushes reasoning.
    Think(String),
    /// Pushes one token with its log-probability, in nats, and one alternative.
    Token(String, f64),
    /// Calls a tool with these arguments, which are pushed in two fragments.
    Call(&'static str, &'static str),
    /// Waits on the timer of the caller's tokio runtime.
    Wait(Duration),
    /// Uses so many tokens; 7 and 3 where no step says so.
    Use(Usage),
    /// Fails.
    Fail(ErrorKind, &'static str, Option<Retry>),
    /// Ends for this reason; [`StopReason::Stop`] where no step says so.
    End(StopReason),
}

impl Step {
    /// [`Step::Say`].
    pub fn say(text: impl Into<String>) -> Self {
        Self::Say(text.into())
    }

    /// [`Step::Think`].
    pub fn think(text: impl Into<String>) -> Self {
        Self::Think(text.into())
    }

    /// [`Step::Token`].
    pub fn token(text: impl Into<String>, logprob: f64) -> Self {
        Self::Token(text.into(), logprob)
    }

    /// [`Step::Fail`] with the kind's own advice on trying again.
    pub fn fail(kind: ErrorKind) -> Self {
        Self::Fail(kind, "the script failed", None)
    }
}

/// From a prompt, and how often this model was asked it before, to what the model does.
type Script = Box<dyn Fn(&str, usize) -> Vec<Step> + Send + Sync>;

/// A model that follows a script.
pub struct Scripted {
    card: ModelCard,
    capabilities: Capabilities,
    script: Script,
    requests: Mutex<Vec<Request>>,
    n_ended: AtomicUsize,
}

impl Scripted {
    /// A model in this process that does the same at every call.
    pub fn new(steps: Vec<Step>) -> Arc<Self> {
        Self::with_script("scripted", Placement::InProcess, move |_, _| steps.clone())
    }

    /// A model that does what `script` makes of a prompt and of the number of earlier calls with
    /// it. A script that panics is a process that dies in the middle of a call.
    pub fn with_script(
        id: &str,
        placement: Placement,
        script: impl Fn(&str, usize) -> Vec<Step> + Send + Sync + 'static,
    ) -> Arc<Self> {
        use RequestOption as O;
        let mut capabilities = Capabilities::none().with_options([
            O::ChatPrompt,
            O::TextPrompt,
            O::TokenPrompt,
            O::Temperature,
            O::TopP,
            O::Seed,
            O::Stop,
            O::MaxTokens,
            O::Logprobs,
            O::Tools,
            O::ToolChoice,
            O::Constraint,
        ]);
        capabilities.max_top_logprobs = 5;
        capabilities.constraints = vec![ConstraintKind::JsonSchema];
        Arc::new(Self {
            card: ModelCard::new(id, "scripted", Weights::Open, placement),
            capabilities,
            script: Box::new(script),
            requests: Mutex::default(),
            n_ended: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().clone()
    }

    /// Calls with this prompt so far.
    pub fn n_asked(&self, prompt: &str) -> usize {
        self.lock().iter().filter(|request| text(&request.prompt) == prompt).count()
    }

    /// Calls that ended in any way, dropped ones included.
    pub fn n_ended(&self) -> usize {
        self.n_ended.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripted").field("id", &self.card.id).finish_non_exhaustive()
    }
}

/// The text of a prompt, of a chat that of its last message.
fn text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Chat(messages) => messages.last().map(|m| m.text()).unwrap_or_default(),
        Prompt::Text(text) => text.clone(),
        other => format!("{other:?}"),
    }
}

/// Counts when it is dropped, so also when a call is.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Backend for Scripted {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
        let _ended = Ended(&self.n_ended);
        self.capabilities.check(request)?;
        let prompt = text(&request.prompt);
        let n_before = {
            let mut requests = self.lock();
            let n_before = requests.iter().filter(|r| text(&r.prompt) == prompt).count();
            requests.push(request.clone());
            n_before
        };
        let mut completion = Completion::new("", StopReason::Stop);
        completion.usage = Usage::new(7, 3);
        completion.logprobs = request.logprobs.map(|_| Vec::new());
        for step in (self.script)(&prompt, n_before) {
            match step {
                Step::Wait(time) => tokio::time::sleep(time).await,
                Step::Fail(kind, message, retry) => {
                    let error = Error::new(kind, message);
                    return Err(match retry {
                        Some(retry) => error.with_retry(retry),
                        None => error,
                    });
                }
                step => play(step, &mut completion, sink),
            }
        }
        Ok(completion)
    }
}

/// Carries out a step that neither waits nor fails. What the sink answers is not obeyed: a script
/// goes on as it was written.
fn play(step: Step, completion: &mut Completion, sink: &mut dyn EventSink) {
    match step {
        Step::Say(text) => {
            completion.text.push_str(&text);
            let _ = sink.push(Event::Text(text.into()));
        }
        Step::Think(text) => {
            completion.reasoning.push_str(&text);
            let _ = sink.push(Event::Reasoning(text.into()));
        }
        Step::Token(text, logprob) => {
            let bytes = text.as_bytes().to_vec();
            let mut token = TokenLogprob::new(None, bytes.clone(), Some(logprob));
            token.top = vec![
                TopLogprob::new(None, bytes, logprob),
                TopLogprob::new(None, b"other".to_vec(), logprob - 1.0),
            ];
            if let Some(tokens) = &mut completion.logprobs {
                tokens.push(token.clone());
                let _ = sink.push(Event::Tokens(vec![token].into()));
            }
            play(Step::Say(text), completion, sink);
        }
        Step::Call(name, arguments) => {
            let index = completion.tool_calls.len();
            let id = format!("call-{index}");
            let (start, name_text) = (id.as_str().into(), name.into());
            let _ = sink.push(Event::ToolStart { index, id: start, name: name_text });
            for fragment in [&arguments[..1], &arguments[1..]] {
                let _ = sink.push(Event::ToolArgs { index, fragment: fragment.into() });
            }
            let _ = sink.push(Event::ToolEnd { index });
            completion.tool_calls.push(ToolCall::new(id, name, arguments));
        }
        Step::Use(usage) => completion.usage = usage,
        Step::End(reason) => completion.stop_reason = reason,
        Step::Wait(_) | Step::Fail(..) => unreachable!("generate does these itself"),
    }
}

/// The provider `scripted`: opens scripted models by their id.
#[derive(Debug)]
pub struct ScriptedProvider(BTreeMap<String, Arc<Scripted>>);

impl ScriptedProvider {
    /// A provider of these models. Whoever keeps one of them sees what it is asked.
    pub fn new(models: impl IntoIterator<Item = Arc<Scripted>>) -> Self {
        Self(models.into_iter().map(|model| (model.card.id.clone(), model)).collect())
    }
}

#[async_trait]
impl Provider for ScriptedProvider {
    fn id(&self) -> &str {
        "scripted"
    }

    fn describe(&self) -> ProviderInfo {
        ProviderInfo::new("models that follow a script", "ID")
    }

    async fn probe(&self, _: &ModelRef, _: &OpenContext) -> Probe {
        Probe::Yes
    }

    async fn list(&self, _: &OpenContext) -> Result<Vec<ModelListing>> {
        Ok(Vec::new())
    }

    async fn open(&self, model: &ModelRef, _: &OpenContext) -> Result<Arc<dyn Backend>> {
        match self.0.get(&model.location) {
            Some(model) => Ok(Arc::clone(model) as Arc<dyn Backend>),
            None => Err(Error::new(ErrorKind::NotFound, "there is no such script")
                .with("model", &model.location)),
        }
    }
}
