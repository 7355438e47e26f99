//! The contract of a judge of recorded observations.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Completion, Error, Outcome, Request, Result, StopReason, TokenLogprob, ToolCall, Usage,
};

/// One item of the workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// Unique within the data.
    pub id: String,
    /// The row's fields, as the data has them.
    pub fields: Map<String, Value>,
}

impl Sample {
    /// A sample with its fields.
    pub fn new(id: impl Into<String>, fields: Map<String, Value>) -> Self {
        Self { id: id.into(), fields }
    }
}

/// What was seen of one call: everything an evaluator may look at.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Observation {
    /// What came of the call.
    pub outcome: Outcome,
    /// The answer; empty if there is none.
    pub text: String,
    /// Tools the model wanted called.
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended, if it ended.
    pub stop_reason: Option<StopReason>,
    /// Tokens used.
    pub usage: Usage,
    /// Log-probabilities, if they were asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
}

impl Observation {
    /// An observation without completion.
    pub fn without_completion(outcome: Outcome) -> Self {
        Self {
            outcome,
            text: String::new(),
            tool_calls: Vec::new(),
            stop_reason: None,
            usage: Usage::default(),
            logprobs: None,
        }
    }

    /// What is to be seen of a call.
    pub fn of(result: &Result<Completion>) -> Self {
        let outcome = Outcome::of(result);
        match result {
            Err(_) => Self::without_completion(outcome),
            Ok(completion) => Self {
                outcome,
                text: completion.text.clone(),
                tool_calls: completion.tool_calls.clone(),
                stop_reason: Some(completion.stop_reason.clone()),
                usage: completion.usage.clone(),
                logprobs: completion.logprobs.clone(),
            },
        }
    }
}

/// A verdict on one observation, in [0, 1]. Higher is better.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Score {
    /// In [0, 1]; 0 and 1 for evaluators that know only right and wrong.
    pub value: f64,
    /// Why, for a person: what was expected and what was found.
    pub note: Option<String>,
    /// Scores of named parts, such as one per JSON field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(String, f64)>,
}

impl Score {
    /// Right (1) or wrong (0).
    pub fn binary(is_right: bool) -> Self {
        Self::new(if is_right { 1.0 } else { 0.0 })
    }

    /// A graded score.
    pub fn new(value: f64) -> Self {
        Self { value, note: None, parts: Vec::new() }
    }

    /// Adds the reason.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// Why there is no score. Never turned into a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Unscored {
    /// The reason, for a person.
    pub reason: String,
}

impl Unscored {
    /// No score, for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Asked {
    /// A judge model of that role name.
    Model {
        /// The role under which the suite names the judge.
        role: String,
        /// What it is asked.
        request: Box<Request>,
    },
    /// An embedding of each text, by the model of that role.
    Embedding {
        /// The role under which the suite names the embedder.
        role: String,
        /// The texts.
        texts: Vec<String>,
    },
    /// A command of the suite, fed with this JSON on standard input.
    Command {
        /// The name under which the suite declares the command.
        name: String,
        /// The input.
        input: Value,
    },
    /// A person.
    Person {
        /// The question.
        text: String,
        /// The possible answers; empty for free text.
        choices: Vec<String>,
    },
}

/// A question that has to be answered before there is a score. The orchestrator asks it, records
/// it and bills it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Question {
    /// Unique within the step; the answer names it.
    pub id: String,
    /// Who is asked what.
    pub asked: Asked,
}

impl Question {
    /// A question with its id.
    pub fn new(id: impl Into<String>, asked: Asked) -> Self {
        Self { id: id.into(), asked }
    }
}

/// An answer to a [`Question`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The question's id.
    pub id: String,
    /// The answer as JSON (a string for text, an array for vectors), or why there is none.
    pub value: Result<Value, String>,
}

impl Answer {
    /// An answer to the question with that id.
    pub fn new(id: impl Into<String>, value: Result<Value, String>) -> Self {
        Self { id: id.into(), value }
    }
}

/// What an evaluator says.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// The verdict.
    Score(Score),
    /// There is none, and why.
    Unscored(Unscored),
    /// It needs answers first, and is then called again with all of them so far.
    Ask(Vec<Question>),
}

/// What must be observed for an evaluator to work, checked before a call is paid for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Needs {
    /// Fields every sample must have.
    pub fields: Vec<String>,
    /// Log-probabilities with that many alternatives.
    pub logprobs: Option<u8>,
    /// Roles of judge models that the suite must name.
    pub roles: Vec<String>,
}

/// Judges recorded observations. Synchronous and pure: same inputs, same answers, same score,
/// forever. It has no client, no clock and no randomness.
pub trait Evaluator: fmt::Debug + Send + Sync {
    /// Name, such as `exact_match`.
    fn id(&self) -> &str;

    /// Raised whenever any score would change.
    fn version(&self) -> &str;

    /// What must be observed.
    fn needs(&self) -> Needs;

    /// A score, a reason for none, or questions first.
    fn step(&self, sample: &Sample, observation: &Observation, answers: &[Answer]) -> Step;
}

/// Makes evaluators of one kind from a suite's settings.
pub trait EvaluatorFactory: fmt::Debug + Send + Sync {
    /// The kind, as a suite names it.
    fn id(&self) -> &str;

    /// One sentence for a list.
    fn summary(&self) -> &str;

    /// JSON Schema of the settings.
    fn option_schema(&self) -> Value;

    /// An evaluator with these settings.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) that names the setting.
    fn build(&self, options: &Map<String, Value>) -> Result<Box<dyn Evaluator>, Error>;
}
