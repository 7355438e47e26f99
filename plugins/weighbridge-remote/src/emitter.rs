//! Collects an answer while it is pushed into the caller's sink, so that both are the same.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde_json::Value;
use weighbridge_core::{
    Completion, EffectiveParams, Event, EventSink, StopReason, Timings, TokenLogprob, ToolCall,
    Usage,
};

use crate::text::Redactor;

/// Why an answer ended, in our word and the vendor's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) stop_reason: StopReason,
    pub(crate) raw: Option<String>,
}

/// Where content goes; arguments by the index of their tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Text,
    Reasoning,
    ToolArgs(usize),
}

/// What came on a channel, and how much of it was pushed: an end that may be the beginning of the
/// key waits for what follows on the same channel.
#[derive(Debug, Default)]
struct Collected {
    text: String,
    n_pushed: usize,
}

impl Collected {
    /// What the sink was shown.
    fn shown(mut self) -> String {
        self.text.truncate(self.n_pushed);
        self.text
    }
}

/// The one way from a wire to the sink.
pub(crate) struct Emitter<'a> {
    sink: &'a mut dyn EventSink,
    redactor: &'a Redactor,
    submitted: Instant,
    first_content: Option<Instant>,
    last_content: Option<Instant>,
    is_stopped: bool,
    has_content: bool,
    pub(crate) effective: EffectiveParams,
    text: Collected,
    reasoning: Collected,
    /// Without their arguments.
    tool_calls: Vec<ToolCall>,
    tool_args: Vec<Collected>,
    opaque: Vec<(String, Value)>,
    logprobs: Vec<TokenLogprob>,
    usage: Usage,
    warnings: Vec<String>,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(
        sink: &'a mut dyn EventSink,
        redactor: &'a Redactor,
        submitted: Instant,
    ) -> Self {
        Self {
            sink,
            redactor,
            submitted,
            first_content: None,
            last_content: None,
            is_stopped: false,
            has_content: false,
            effective: EffectiveParams::default(),
            text: Collected::default(),
            reasoning: Collected::default(),
            tool_calls: Vec::new(),
            tool_args: Vec::new(),
            opaque: Vec::new(),
            logprobs: Vec::new(),
            usage: Usage::default(),
            warnings: Vec::new(),
        }
    }

    /// The sink asked for an early stop; nothing is collected any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Content came, so the call must not be repeated silently.
    pub(crate) fn has_content(&self) -> bool {
        self.has_content
    }

    pub(crate) fn has_tool_calls(&self) -> bool {
        !self.tool_calls.is_empty()
    }

    pub(crate) fn collected_text(&self) -> &str {
        &self.text.text
    }

    pub(crate) fn has_reasoning(&self) -> bool {
        !self.reasoning.text.is_empty()
    }

    pub(crate) fn collected_usage(&self) -> &Usage {
        &self.usage
    }

    pub(crate) fn collected_logprobs(&self) -> &[TokenLogprob] {
        &self.logprobs
    }

    pub(crate) fn redactor(&self) -> &'a Redactor {
        self.redactor
    }

    /// Some of the server's text, fit for an error.
    pub(crate) fn excerpt(&self, text: &str, max_bytes: usize) -> String {
        self.redactor.excerpt(text, max_bytes)
    }

    pub(crate) fn started(&mut self) {
        if self.sink.push(Event::Started(Cow::Borrowed(&self.effective))).is_break() {
            self.is_stopped = true;
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.content(Channel::Text, text);
    }

    pub(crate) fn reasoning(&mut self, text: &str) {
        self.content(Channel::Reasoning, text);
    }

    /// Begins a tool call; `index` is its position, one after the last begun.
    pub(crate) fn tool_start(&mut self, id: &str, name: &str) {
        if self.is_stopped {
            return;
        }
        self.note_content();
        let index = self.tool_calls.len();
        let (id, name) = (self.redactor.redact(id), self.redactor.redact(name));
        self.push(Event::ToolStart { index, id: id.as_str().into(), name: name.as_str().into() });
        self.tool_calls.push(ToolCall::new(id, name, ""));
        self.tool_args.push(Collected::default());
    }

    pub(crate) fn tool_args(&mut self, index: usize, fragment: &str) {
        if index < self.tool_calls.len() {
            self.content(Channel::ToolArgs(index), fragment);
        }
    }

    pub(crate) fn tool_end(&mut self, index: usize) {
        if index < self.tool_calls.len() {
            self.release(Channel::ToolArgs(index));
        }
        if !self.is_stopped {
            self.push(Event::ToolEnd { index });
        }
    }

    pub(crate) fn tokens(&mut self, mut tokens: Vec<TokenLogprob>) {
        if self.is_stopped || tokens.is_empty() {
            return;
        }
        self.has_content = true;
        if self.redactor.guards_content() {
            for token in &mut tokens {
                let tops = token.top.iter_mut().map(|top| &mut top.bytes);
                for bytes in tops.chain([&mut token.bytes]) {
                    let clean = str::from_utf8(bytes).ok().and_then(|t| self.redactor.redacted(t));
                    if let Some(clean) = clean {
                        *bytes = clean.into_bytes();
                    }
                }
            }
        }
        self.push(Event::Tokens(Cow::Borrowed(&tokens)));
        self.logprobs.extend(tokens);
    }

    pub(crate) fn usage(&mut self, mut usage: Usage) {
        usage.raw = usage.raw.map(|raw| self.redactor.redact_json(raw));
        if !self.is_stopped {
            self.push(Event::Usage(Cow::Borrowed(&usage)));
            self.usage = usage;
        }
    }

    /// Notes something once.
    pub(crate) fn warning(&mut self, text: impl Into<String>) {
        let text = self.redactor.redact(&text.into());
        if !self.is_stopped && !self.warnings.contains(&text) {
            self.push(Event::Warning(text.as_str().into()));
            self.warnings.push(text);
        }
    }

    /// Passes on something of the wire that this build does not know.
    pub(crate) fn unknown(&mut self, raw: &str) {
        if !self.is_stopped {
            let raw = self.redactor.redact(raw);
            self.push(Event::Unknown(raw.into()));
        }
    }

    /// Keeps vendor data that must be echoed back with this turn.
    pub(crate) fn opaque(&mut self, provider: &'static str, data: Value) {
        if !self.is_stopped {
            let data = self.redactor.redact_json(data);
            self.push(Event::Opaque {
                provider: Cow::Borrowed(provider),
                data: Cow::Borrowed(&data),
            });
            self.opaque.push((provider.to_owned(), data));
        }
    }

    /// Notes a value that the server told.
    pub(crate) fn told(&mut self, name: &'static str, value: Value) {
        let value = self.redactor.redact_json(value);
        self.effective.values.insert(name.to_owned(), value);
    }

    /// What was collected. `is_streamed`: moments of arrival are moments of generation.
    pub(crate) fn completion(
        mut self,
        ending: Ending,
        queue: Duration,
        is_streamed: bool,
        asks_logprobs: bool,
    ) -> Completion {
        self.release(Channel::Reasoning);
        self.release(Channel::Text);
        for index in 0..self.tool_calls.len() {
            self.release(Channel::ToolArgs(index));
        }
        for (call, arguments) in self.tool_calls.iter_mut().zip(self.tool_args) {
            call.arguments = arguments.shown();
        }
        let mut timings = Timings::total(self.submitted.elapsed());
        timings.queue = Some(queue);
        if is_streamed {
            timings.ttft = self.first_content.map(|first| first - self.submitted);
            timings.decode =
                self.first_content.zip(self.last_content).map(|(first, last)| last - first);
        }
        let mut completion = Completion::new(self.text.shown(), ending.stop_reason);
        completion.raw_stop_reason =
            ending.raw.map(|raw| self.redactor.redacted(&raw).unwrap_or(raw));
        completion.reasoning = self.reasoning.shown();
        completion.tool_calls = self.tool_calls;
        completion.opaque = self.opaque;
        completion.usage = self.usage;
        completion.timings = timings;
        completion.logprobs = asks_logprobs.then_some(self.logprobs);
        completion.effective = self.effective;
        completion.warnings = self.warnings;
        completion
    }

    /// Collects content and pushes what is certainly not the beginning of the key.
    fn content(&mut self, channel: Channel, text: &str) {
        if self.is_stopped || text.is_empty() {
            return;
        }
        self.note_content();
        let redactor = self.redactor;
        let Collected { text: collected, n_pushed } = self.collected(channel);
        collected.push_str(text);
        if !redactor.guards_content() {
            return self.release(channel);
        }
        let clean = redactor.redacted(&collected[*n_pushed..]);
        if let Some(clean) = &clean {
            collected.replace_range(*n_pushed.., clean);
        }
        let n_ready = collected.len() - redactor.n_open(&collected[*n_pushed..]);
        self.push_until(channel, n_ready);
        if clean.is_some() {
            self.warning("key_redacted: the answer held the key, which was taken out");
        }
    }

    /// Pushes what waited for more.
    fn release(&mut self, channel: Channel) {
        let n_ready = self.collected(channel).text.len();
        self.push_until(channel, n_ready);
    }

    fn push_until(&mut self, channel: Channel, n_ready: usize) {
        let is_stopped = self.is_stopped;
        let collected = self.collected(channel);
        if is_stopped || n_ready == collected.n_pushed {
            return;
        }
        let n_pushed = std::mem::replace(&mut collected.n_pushed, n_ready);
        let text = std::mem::take(&mut collected.text);
        let ready = Cow::Borrowed(&text[n_pushed..n_ready]);
        self.push(match channel {
            Channel::Text => Event::Text(ready),
            Channel::Reasoning => Event::Reasoning(ready),
            Channel::ToolArgs(index) => Event::ToolArgs { index, fragment: ready },
        });
        self.collected(channel).text = text;
    }

    fn collected(&mut self, channel: Channel) -> &mut Collected {
        match channel {
            Channel::Text => &mut self.text,
            Channel::Reasoning => &mut self.reasoning,
            Channel::ToolArgs(index) => &mut self.tool_args[index],
        }
    }

    fn note_content(&mut self) {
        self.has_content = true;
        let now = Instant::now();
        self.first_content.get_or_insert(now);
        self.last_content = Some(now);
    }

    fn push(&mut self, event: Event<'_>) {
        if self.sink.push(event).is_break() {
            self.is_stopped = true;
        }
    }
}
