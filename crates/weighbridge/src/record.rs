//! The stored form of one observation, version 1. Core messages do not double as it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weighbridge_core::{
    Completion, Dropped, Error, Observation, Outcome, Result, StopReason, TokenLogprob, ToolCall,
    Usage,
};

/// The version of the stored form that this build writes.
pub const OBSERVATION_VERSION: u32 = 1;

/// One finished call, as the run log keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ObservationRecord {
    /// [`OBSERVATION_VERSION`].
    pub v: u32,
    /// What came of the call.
    pub outcome: Outcome,
    /// The answer; empty if there is none.
    #[serde(default)]
    pub text: String,
    /// Reasoning that was shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    /// Tools the model wanted called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallRecord>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// The reason in the vendor's own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_stop_reason: Option<String>,
    /// Tokens used.
    #[serde(default)]
    pub usage: Usage,
    /// Where the time went.
    pub timings: TimingsRecord,
    /// Log-probabilities, if asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// The settings that were really used.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub effective: Map<String, Value>,
    /// Wishes that were not honoured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
    /// Things worth knowing that are not errors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The error, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorRecord>,
    /// Attempts that this call took, this one included.
    pub n_attempts: u32,
}

/// A tool call as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ToolCallRecord {
    /// Id of the call.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// Arguments as the model wrote them.
    pub arguments: String,
}

/// Timings in microseconds; absent where unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TimingsRecord {
    /// Submit to start of work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_us: Option<u64>,
    /// The prompt pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_us: Option<u64>,
    /// Submit to the first non-empty token, as the caller saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_us: Option<u64>,
    /// First to last token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_us: Option<u64>,
    /// Submit to the end, as the caller saw it.
    pub total_us: u64,
}

/// An error as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErrorRecord {
    /// The error's kind.
    pub kind: String,
    /// Message, context and causes.
    pub message: String,
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl ObservationRecord {
    /// The record of a call that took `total`, with the first content after `ttft`, both as the
    /// caller saw them.
    pub fn new(
        result: &Result<Completion>,
        ttft: Option<Duration>,
        total: Duration,
        n_attempts: u32,
    ) -> Self {
        let mut record = Self::empty(Outcome::of(result), n_attempts);
        record.timings.total_us = us(total);
        record.timings.ttft_us = ttft.map(us);
        match result {
            Ok(completion) => record.fill(completion),
            Err(error) => record.error = Some(ErrorRecord::new(error)),
        }
        record
    }

    /// A record without a call, such as a withheld sample, and why.
    pub fn without_call(outcome: Outcome, why: &str) -> Self {
        let mut record = Self::empty(outcome, 0);
        record.error =
            Some(ErrorRecord { kind: outcome.as_str().to_owned(), message: why.to_owned() });
        record
    }

    fn empty(outcome: Outcome, n_attempts: u32) -> Self {
        Self {
            v: OBSERVATION_VERSION,
            outcome,
            text: String::new(),
            reasoning: String::new(),
            tool_calls: Vec::new(),
            stop_reason: None,
            raw_stop_reason: None,
            usage: Usage::default(),
            timings: TimingsRecord::default(),
            logprobs: None,
            effective: Map::new(),
            dropped: Vec::new(),
            warnings: Vec::new(),
            error: None,
            n_attempts,
        }
    }

    fn fill(&mut self, completion: &Completion) {
        self.text = completion.text.clone();
        self.reasoning = completion.reasoning.clone();
        self.tool_calls = completion
            .tool_calls
            .iter()
            .map(|call| ToolCallRecord {
                id: call.id.clone(),
                name: call.name.clone(),
                arguments: call.arguments.clone(),
            })
            .collect();
        self.stop_reason = Some(completion.stop_reason.as_str().to_owned());
        self.raw_stop_reason = completion.raw_stop_reason.clone();
        self.usage = completion.usage.clone();
        self.timings.queue_us = completion.timings.queue.map(us);
        self.timings.prefill_us = completion.timings.prefill.map(us);
        self.timings.decode_us = completion.timings.decode.map(us);
        self.logprobs = completion.logprobs.clone();
        self.effective = completion.effective.values.clone();
        self.dropped = completion.effective.dropped.clone();
        self.warnings = completion.warnings.clone();
    }

    /// What an evaluator gets to see.
    pub fn observation(&self) -> Observation {
        let mut observation = Observation::without_completion(self.outcome);
        observation.text = self.text.clone();
        observation.tool_calls = self
            .tool_calls
            .iter()
            .map(|call| ToolCall::new(&call.id, &call.name, &call.arguments))
            .collect();
        observation.stop_reason = self.stop_reason.as_deref().map(stop_reason);
        observation.usage = self.usage.clone();
        observation.logprobs = self.logprobs.clone();
        observation
    }
}

impl ErrorRecord {
    /// An error as stored.
    pub fn new(error: &Error) -> Self {
        Self { kind: error.kind().to_string(), message: error.report() }
    }
}

fn stop_reason(name: &str) -> StopReason {
    match name {
        "stop" => StopReason::Stop,
        "length" => StopReason::Length,
        "content_filter" => StopReason::ContentFilter,
        "refusal" => StopReason::Refusal,
        "tool_calls" => StopReason::ToolCalls,
        "malformed" => StopReason::Malformed,
        "cancelled" => StopReason::Cancelled,
        _ => StopReason::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighbridge_core::ErrorKind;

    #[test]
    fn a_record_survives_the_round_trip_and_shows_what_the_completion_showed() {
        let mut completion = Completion::new("hi", StopReason::Length);
        completion.usage = Usage::new(10, 2);
        completion.tool_calls.push(ToolCall::new("c1", "f", "{}"));
        let result = Ok(completion);
        let record = ObservationRecord::new(
            &result,
            Some(Duration::from_millis(3)),
            Duration::from_millis(9),
            2,
        );
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<ObservationRecord>(&json).unwrap(), record);
        assert_eq!(record.observation(), Observation::of(&result));
        assert_eq!(record.timings.ttft_us, Some(3000));

        let failed = Err(Error::new(ErrorKind::Truncated, "cut"));
        let record = ObservationRecord::new(&failed, None, Duration::ZERO, 1);
        assert_eq!(record.outcome, Outcome::CutStream);
        assert_eq!(record.error.unwrap().message, "cut");
    }
}
