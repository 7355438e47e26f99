//! One opaque error: a kind for programs, context for people, retry advice for the orchestrator.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The result of every fallible call across the contracts.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for programs.
///
/// A refusal, a truncation at the token limit or a content filter is an outcome and never an
/// error: see [`StopReason`](crate::StopReason).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The key is missing, wrong, or not allowed to use the model.
    Auth,
    /// No such model, file or route.
    NotFound,
    /// Too many requests for now; waiting helps.
    RateLimited,
    /// The account's quota or spend limit is used up; waiting does not help.
    Quota,
    /// The service is out of capacity.
    Overloaded,
    /// The service failed (5xx that is not an overload).
    ServerError,
    /// The prompt plus the tokens asked for exceed the context window.
    ContextOverflow,
    /// An option that this model or engine cannot honour exactly.
    Unsupported,
    /// The request contradicts itself or the contract.
    InvalidRequest,
    /// A file, suite or argument given by the user is unusable.
    InvalidInput,
    /// The weights or a file beside them could not be loaded.
    ModelLoad,
    /// The chat template failed or refused the messages.
    Template,
    /// The constraint cannot be compiled, or no token satisfies it.
    Constraint,
    /// A deadline passed.
    Timeout,
    /// The source ended without its own terminal: never a completion.
    Truncated,
    /// The connection failed or answered with something that is not the protocol.
    Transport,
    /// The peer speaks the protocol wrongly.
    Protocol,
    /// The engine reported a failure.
    Engine,
    /// The engine's process or thread died.
    EngineDied,
    /// A plugin broke the contract.
    Plugin,
    /// The caller cancelled before there was a completion.
    Cancelled,
    /// An outward call was attempted without an [`Egress`](crate::Egress) token for it.
    EgressDenied,
    /// Reading or writing local files failed.
    Io,
}

impl ErrorKind {
    /// The stable, snake-case name used in records and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::NotFound => "not_found",
            Self::RateLimited => "rate_limited",
            Self::Quota => "quota",
            Self::Overloaded => "overloaded",
            Self::ServerError => "server_error",
            Self::ContextOverflow => "context_overflow",
            Self::Unsupported => "unsupported",
            Self::InvalidRequest => "invalid_request",
            Self::InvalidInput => "invalid_input",
            Self::ModelLoad => "model_load",
            Self::Template => "template",
            Self::Constraint => "constraint",
            Self::Timeout => "timeout",
            Self::Truncated => "truncated",
            Self::Transport => "transport",
            Self::Protocol => "protocol",
            Self::Engine => "engine",
            Self::EngineDied => "engine_died",
            Self::Plugin => "plugin",
            Self::Cancelled => "cancelled",
            Self::EgressDenied => "egress_denied",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the same call may be made again, set where the cause is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retry {
    /// Repeating the call cannot help, or is not safe.
    #[default]
    Never,
    /// Repeating the call is safe: no content reached the sink.
    Safe {
        /// Wait at least this long first; `None` leaves it to the caller's back-off.
        after: Option<Duration>,
    },
}

/// An error with its kind, its context and its retry advice.
///
/// `Display` prints the message, then the context as `name=value` pairs. The source is not
/// repeated there; walk [`StdError::source`]. A secret must never enter message or context.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    context: Vec<(Cow<'static, str>, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    retry: Retry,
}

impl Error {
    /// An error of `kind` with a message in lower case, without full stop, that names the remedy.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            context: Vec::new(),
            source: None,
            retry: Retry::Never,
        }))
    }

    /// An option that cannot be honoured, and why.
    pub fn unsupported(option: impl Into<String>, why: impl fmt::Display) -> Self {
        let option = option.into();
        Self::new(ErrorKind::Unsupported, format!("cannot honour `{option}`: {why}"))
            .with("option", option)
    }

    /// Adds a named value to the context.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl fmt::Display) -> Self {
        self.0.context.push((name.into(), value.to_string()));
        self
    }

    /// Sets the underlying cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets the retry advice.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// What went wrong, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message without context and source.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The first context value of that name.
    pub fn context(&self, name: &str) -> Option<&str> {
        self.0.context.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All context in the order in which it was added.
    pub fn contexts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.context.iter().map(|(n, v)| (n.as_ref(), v.as_str()))
    }

    /// Whether the call may be made again.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Message, context and every cause on one line, for logs and reports.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut shown = self.0.context.iter().filter(|(name, _)| name != "option").peekable();
        if shown.peek().is_some() {
            f.write_str(" (")?;
            for (i, (name, value)) in shown.enumerate() {
                if i > 0 {
                    f.write_str(", ")?;
                }
                write!(f, "{name}={value}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Error");
        s.field("kind", &self.0.kind).field("message", &self.0.message);
        for (name, value) in &self.0.context {
            s.field(name, value);
        }
        s.field("retry", &self.0.retry);
        if let Some(source) = &self.0.source {
            s.field("source", source);
        }
        s.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_value_and_report_adds_the_cause_once() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Error::new(ErrorKind::ContextOverflow, "prompt is too long")
            .with("n_prompt_tokens", 900)
            .with("n_ctx", 512)
            .with_source(io);
        assert_eq!(error.to_string(), "prompt is too long (n_prompt_tokens=900, n_ctx=512)");
        assert_eq!(
            error.report(),
            "prompt is too long (n_prompt_tokens=900, n_ctx=512): no such file"
        );
        assert_eq!(error.context("n_ctx"), Some("512"));
        assert_eq!(error.retry(), Retry::Never);
    }
}
