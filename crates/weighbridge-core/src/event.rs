//! Events of a running generation and who receives them.

use std::borrow::Cow;
use std::ops::ControlFlow;

use serde_json::Value;

use crate::{EffectiveParams, TokenLogprob, Usage};

/// What an engine is busy with before content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for a place.
    Queue,
    /// Reading the prompt.
    Prefill,
}

/// Progress of a phase, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptTokens {
    /// Done so far.
    pub n_done: u64,
    /// All there is.
    pub n_total: u64,
}

impl PromptTokens {
    /// `n_done` of `n_total`.
    pub fn new(n_done: u64, n_total: u64) -> Self {
        Self { n_done, n_total }
    }
}

/// One event of a generation, borrowed where the source can lend it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Once, after validation and before content.
    Started(Cow<'a, EffectiveParams>),
    /// A long phase goes on; prefill may outlast any stall limit.
    Progress {
        /// Which phase.
        phase: Phase,
        /// How far it is.
        tokens: PromptTokens,
    },
    /// More of the answer. Valid UTF-8; stop texts never show.
    Text(Cow<'a, str>),
    /// More of the reasoning.
    Reasoning(Cow<'a, str>),
    /// A tool call begins.
    ToolStart {
        /// Position among this turn's calls.
        index: usize,
        /// Id of the call.
        id: Cow<'a, str>,
        /// Name of the tool.
        name: Cow<'a, str>,
    },
    /// More of a call's argument text.
    ToolArgs {
        /// Position among this turn's calls.
        index: usize,
        /// A fragment of JSON text.
        fragment: Cow<'a, str>,
    },
    /// A tool call is complete.
    ToolEnd {
        /// Position among this turn's calls.
        index: usize,
    },
    /// Log-probabilities of tokens, if asked. May precede the text they belong to, because text
    /// is held back until characters are whole and no stop text can begin.
    Tokens(Cow<'a, [TokenLogprob]>),
    /// Token counts; may repeat, the last one holds.
    Usage(Cow<'a, Usage>),
    /// Vendor data to be echoed back verbatim.
    Opaque {
        /// The provider it belongs to.
        provider: Cow<'a, str>,
        /// The data.
        data: Cow<'a, Value>,
    },
    /// Something worth knowing that is not an error.
    Warning(Cow<'a, str>),
    /// An event of the wire that this build does not know.
    Unknown(Cow<'a, str>),
}

impl Event<'_> {
    /// The same event, owning what it shows.
    pub fn into_owned(self) -> Event<'static> {
        fn own<T: ToOwned + ?Sized>(value: Cow<'_, T>) -> Cow<'static, T> {
            Cow::Owned(value.into_owned())
        }
        match self {
            Self::Started(v) => Event::Started(own(v)),
            Self::Progress { phase, tokens } => Event::Progress { phase, tokens },
            Self::Text(v) => Event::Text(own(v)),
            Self::Reasoning(v) => Event::Reasoning(own(v)),
            Self::ToolStart { index, id, name } => {
                Event::ToolStart { index, id: own(id), name: own(name) }
            }
            Self::ToolArgs { index, fragment } => {
                Event::ToolArgs { index, fragment: own(fragment) }
            }
            Self::ToolEnd { index } => Event::ToolEnd { index },
            Self::Tokens(v) => Event::Tokens(own(v)),
            Self::Usage(v) => Event::Usage(own(v)),
            Self::Opaque { provider, data } => {
                Event::Opaque { provider: own(provider), data: own(data) }
            }
            Self::Warning(v) => Event::Warning(own(v)),
            Self::Unknown(v) => Event::Unknown(own(v)),
        }
    }

    /// Whether this event shows content, after which a call must not be repeated silently.
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Text(_)
                | Self::Reasoning(_)
                | Self::ToolStart { .. }
                | Self::ToolArgs { .. }
                | Self::ToolEnd { .. }
                | Self::Tokens(_)
        )
    }
}

/// Receives events while a model decodes.
pub trait EventSink: Send {
    /// Takes one event, in order. Cheap, awaits nothing. `Break` asks for an orderly early stop:
    /// a completion with [`StopReason::Cancelled`](crate::StopReason::Cancelled).
    fn push(&mut self, event: Event<'_>) -> ControlFlow<()>;

    /// Whether somebody follows the events as they come, as by default. A backend may give the others
    /// more throughput at less even steps.
    fn is_watched(&self) -> bool {
        true
    }
}

impl<F: FnMut(Event<'_>) -> ControlFlow<()> + Send> EventSink for F {
    fn push(&mut self, event: Event<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// A sink that ignores what it gets.
#[derive(Clone, Copy, Debug, Default)]
pub struct StopSink {
    n_left: Option<usize>,
}

impl StopSink {
    /// Never stops.
    pub fn never() -> Self {
        Self { n_left: None }
    }

    /// Asks for a stop at the `n`-th text event.
    pub fn after_texts(n: usize) -> Self {
        Self { n_left: Some(n) }
    }
}

impl EventSink for StopSink {
    fn push(&mut self, event: Event<'_>) -> ControlFlow<()> {
        if let (Some(n_left), Event::Text(_)) = (&mut self.n_left, &event) {
            *n_left = n_left.saturating_sub(1);
            if *n_left == 0 {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn is_watched(&self) -> bool {
        self.n_left.is_some()
    }
}
