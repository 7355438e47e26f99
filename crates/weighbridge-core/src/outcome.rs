//! One taxonomy of what came of a call, for local and remote models alike.

use serde::{Deserialize, Serialize};

use crate::{Completion, Error, ErrorKind, Result, StopReason};

/// Which table an outcome belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutcomeGroup {
    /// The model answered, declined or was cut: its own doing, and scored.
    Model,
    /// Missing data: something between us and the answer failed.
    Infrastructure,
    /// The account or the request is at fault; the same call fails again.
    Account,
    /// The engine's process failed.
    Local,
    /// Not known to be finished.
    Open,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// A whole answer.
    Ok,
    /// A whole answer that ended for a reason this build does not know.
    OkUnknownReason,
    /// Cut at the token limit; never compared as a whole answer.
    TruncatedByLimit,
    /// The model declined.
    Refused,
    /// A filter of the vendor removed or cut it.
    Filtered,
    /// A whole answer without any content.
    Empty,
    /// The model's own output cannot be read, such as broken tool arguments.
    MalformedOutput,
    /// The stream ended without its terminal.
    CutStream,
    /// The peer's framing was damaged: says nothing about the model.
    MalformedWire,
    /// The connection failed.
    Transport,
    /// Out of capacity.
    Overloaded,
    /// The service failed.
    ServerError,
    /// A deadline passed.
    Deadline,
    /// Too many requests.
    RateLimited,
    /// The account's quota or spend limit is used up.
    Quota,
    /// The key is missing or wrong.
    Auth,
    /// The request was refused as such.
    BadRequest,
    /// The prompt does not fit the model's context.
    ContextOverflow,
    /// The engine failed or died.
    EngineFailed,
    /// Withheld: a sensitive sample is never sent to a model that is not local.
    Withheld,
    /// Cancelled by the user or by a budget.
    Cancelled,
    /// The call was begun and its end was not seen; it may have been billed.
    UnknownOutcome,
}

impl Outcome {
    /// Every outcome, in the order of reports.
    pub const ALL: [Self; 22] = [
        Self::Ok,
        Self::OkUnknownReason,
        Self::TruncatedByLimit,
        Self::Refused,
        Self::Filtered,
        Self::Empty,
        Self::MalformedOutput,
        Self::CutStream,
        Self::MalformedWire,
        Self::Transport,
        Self::Overloaded,
        Self::ServerError,
        Self::Deadline,
        Self::RateLimited,
        Self::Quota,
        Self::Auth,
        Self::BadRequest,
        Self::ContextOverflow,
        Self::EngineFailed,
        Self::Withheld,
        Self::Cancelled,
        Self::UnknownOutcome,
    ];

    /// The outcome of a call.
    pub fn of(result: &Result<Completion>) -> Self {
        match result {
            Ok(completion) => Self::of_completion(completion),
            Err(error) => Self::of_error(error),
        }
    }

    fn of_completion(completion: &Completion) -> Self {
        let is_empty = completion.text.trim().is_empty() && completion.tool_calls.is_empty();
        match completion.stop_reason {
            StopReason::ContentFilter => Self::Filtered,
            StopReason::Refusal => Self::Refused,
            StopReason::Length => Self::TruncatedByLimit,
            StopReason::Cancelled => Self::Cancelled,
            StopReason::Malformed => Self::MalformedOutput,
            _ if is_empty => Self::Empty,
            StopReason::ToolCalls
                if completion.tool_calls.iter().any(|call| {
                    serde_json::from_str::<serde_json::Value>(&call.arguments).is_err()
                }) =>
            {
                Self::MalformedOutput
            }
            StopReason::Stop | StopReason::ToolCalls => Self::Ok,
            StopReason::Other => Self::OkUnknownReason,
        }
    }

    fn of_error(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Auth => Self::Auth,
            ErrorKind::RateLimited => Self::RateLimited,
            ErrorKind::Quota => Self::Quota,
            ErrorKind::Overloaded => Self::Overloaded,
            ErrorKind::ServerError => Self::ServerError,
            ErrorKind::ContextOverflow => Self::ContextOverflow,
            ErrorKind::Timeout => Self::Deadline,
            ErrorKind::Truncated => Self::CutStream,
            ErrorKind::Protocol => Self::MalformedWire,
            ErrorKind::Transport => Self::Transport,
            ErrorKind::Engine
            | ErrorKind::EngineDied
            | ErrorKind::Plugin
            | ErrorKind::ModelLoad
            | ErrorKind::Io => Self::EngineFailed,
            ErrorKind::Cancelled => Self::Cancelled,
            ErrorKind::EgressDenied => Self::Withheld,
            ErrorKind::NotFound
            | ErrorKind::Unsupported
            | ErrorKind::InvalidRequest
            | ErrorKind::InvalidInput
            | ErrorKind::Template
            | ErrorKind::Constraint => Self::BadRequest,
        }
    }

    /// Which table it belongs to.
    pub fn group(self) -> OutcomeGroup {
        match self {
            Self::Ok
            | Self::OkUnknownReason
            | Self::TruncatedByLimit
            | Self::Refused
            | Self::Filtered
            | Self::Empty
            | Self::MalformedOutput
            // The prompt is too long for this model: a limit of the model, not of the wire.
            | Self::ContextOverflow => OutcomeGroup::Model,
            Self::CutStream
            | Self::MalformedWire
            | Self::Transport
            | Self::Overloaded
            | Self::ServerError
            | Self::Deadline
            | Self::RateLimited => OutcomeGroup::Infrastructure,
            Self::Quota | Self::Auth | Self::BadRequest | Self::Withheld => OutcomeGroup::Account,
            Self::EngineFailed => OutcomeGroup::Local,
            Self::Cancelled | Self::UnknownOutcome => OutcomeGroup::Open,
        }
    }

    /// Whether the model itself answered, so that the answer is scored (also as wrong).
    pub fn is_scored(self) -> bool {
        self.group() == OutcomeGroup::Model
    }

    /// The stable name used in records and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::OkUnknownReason => "ok_unknown_reason",
            Self::TruncatedByLimit => "truncated_by_limit",
            Self::Refused => "refused",
            Self::Filtered => "filtered",
            Self::Empty => "empty",
            Self::MalformedOutput => "malformed_output",
            Self::CutStream => "cut_stream",
            Self::MalformedWire => "malformed_wire",
            Self::Transport => "transport",
            Self::Overloaded => "overloaded",
            Self::ServerError => "server_error",
            Self::Deadline => "deadline",
            Self::RateLimited => "rate_limited",
            Self::Quota => "quota",
            Self::Auth => "auth",
            Self::BadRequest => "bad_request",
            Self::ContextOverflow => "context_overflow",
            Self::EngineFailed => "engine_failed",
            Self::Withheld => "withheld",
            Self::Cancelled => "cancelled",
            Self::UnknownOutcome => "unknown_outcome",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_with_the_serialized_form_and_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for outcome in Outcome::ALL {
            let json = serde_json::to_value(outcome).unwrap();
            assert_eq!(json, outcome.as_str());
            assert!(seen.insert(outcome.as_str()));
        }
    }

    #[test]
    fn a_refusal_is_scored_and_a_cut_stream_is_not() {
        let refusal: Result<Completion> = Ok(Completion::new("no", StopReason::Refusal));
        assert!(Outcome::of(&refusal).is_scored());
        let cut: Result<Completion> = Err(Error::new(ErrorKind::Truncated, "cut"));
        assert!(!Outcome::of(&cut).is_scored());
        let empty: Result<Completion> = Ok(Completion::new(" ", StopReason::Stop));
        assert_eq!(Outcome::of(&empty), Outcome::Empty);
        let broken: Result<Completion> = Ok(Completion::new("{", StopReason::Malformed));
        assert_eq!(Outcome::of(&broken), Outcome::MalformedOutput);
    }
}
