#![doc = include_str!("../README.md")]

mod backend;
mod batch;
mod capabilities;
mod card;
mod completion;
mod egress;
mod error;
mod evaluator;
mod event;
mod ext;
mod message;
mod model_ref;
mod outcome;
mod provider;
mod registry;
mod request;
mod secret;

pub use async_trait::async_trait;
pub use backend::Backend;
pub use batch::{
    BatchAnswers, BatchId, BatchJobs, BatchLimits, BatchLookup, BatchRequest, BatchResult,
    BatchStatus, Submission,
};
pub use capabilities::{Capabilities, ConstraintKind, Dropped, RequestOption, TemperatureRange};
pub use card::{EngineInfo, ModelCard, Placement, Weights};
pub use completion::{
    ClassLabel, Classification, Completion, EffectiveParams, Embedding, Likelihood, StopReason,
    Timings, TokenId, TokenLogprob, TopLogprob, Usage,
};
pub use egress::{Egress, EgressEntry, EgressLedger, EgressScope};
pub use error::{Error, ErrorKind, Result, Retry};
pub use evaluator::{
    Answer, Asked, Evaluator, EvaluatorFactory, Needs, Observation, Question, Sample, Score, Step,
    Unscored,
};
pub use event::{Event, EventSink, Phase, PromptTokens, StopSink};
pub use ext::{BackendExt, CompletionStream, StreamItem, block_on};
pub use message::{Message, Part, Prompt, Role, Tool, ToolCall, ToolChoice};
pub use model_ref::ModelRef;
pub use outcome::{Outcome, OutcomeGroup};
pub use provider::{ModelListing, OpenContext, Probe, Provider, ProviderInfo, check_options};
pub use registry::{LinkedPlugin, Plugin, Registration, Registry};
pub use request::{
    ClassifyRequest, Constraint, EmbedRequest, LikelihoodItem, LikelihoodRequest, Reasoning,
    Request, Sampling, Window,
};
pub use secret::{NoSecrets, Secret, Secrets};

#[doc(hidden)]
pub use inventory;
