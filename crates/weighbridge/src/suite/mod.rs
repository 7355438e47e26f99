//! `suite.toml`: the workload, the candidates, how answers are judged, and what is to be decided.
//!
//! Format version 1. Every key, its default and its meaning stand in `docs/suite.md`.

mod parse;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weighbridge_core::{Error, ErrorKind, ModelRef, Result, Weights};

pub use parse::{nearest, read, read_str};

/// The version of the suite format that this build reads.
pub const SUITE_VERSION: u32 = 1;

/// A suite as written, defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Suite {
    /// Format version; must be [`SUITE_VERSION`].
    pub version: u32,
    /// Names the run's folder and the report.
    pub name: String,
    /// What is decided here, for the report's reader.
    #[serde(default)]
    pub description: String,
    /// A notice that every output of the run repeats, such as "demo models".
    #[serde(default)]
    pub notice: Option<String>,
    /// The candidate in use today. The burden of proof lies on change.
    pub current: String,
    /// Where the samples are.
    pub data: Data,
    /// What every candidate is asked, unless it has a prompt of its own.
    pub prompt: PromptTemplate,
    /// How every candidate is asked, unless it says otherwise.
    #[serde(default)]
    pub request: RequestSettings,
    /// The models to weigh.
    #[serde(rename = "candidate")]
    pub candidates: Vec<Candidate>,
    /// How answers are judged; the first one decides.
    #[serde(rename = "evaluator", default)]
    pub evaluators: Vec<EvaluatorSpec>,
    /// Comparisons with a known result, which show that the scale works.
    #[serde(rename = "control", default)]
    pub controls: Vec<Control>,
    /// What is to be proven.
    #[serde(default)]
    pub decision: Decision,
    /// How the run behaves.
    #[serde(default)]
    pub run: RunSettings,
    /// The folder that relative paths start from: where the suite file lies.
    #[serde(skip)]
    pub base_dir: PathBuf,
    /// What `${NAME}` in a candidate's model stands for, such as the address of a server that was
    /// started for this run. Not part of the suite's identity: a resumed run may have others.
    #[serde(skip)]
    pub defines: BTreeMap<String, String>,
}

/// Where the samples are and what their columns mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Data {
    /// A `.jsonl` or `.csv` file, relative to the suite.
    pub file: PathBuf,
    /// Column with a unique id per sample. Without it samples are numbered from 1.
    #[serde(default)]
    pub id: Option<String>,
    /// Name in templates and evaluators = column in the file, for columns that are renamed.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// Columns whose values split the data into slices, each compared on its own.
    #[serde(default)]
    pub slices: Vec<String>,
    /// Column that groups samples which are not independent (a template, a customer, a thread).
    #[serde(default)]
    pub cluster: Option<String>,
    /// Column that is true where a sample must stay on this machine.
    #[serde(default)]
    pub sensitive: Option<String>,
    /// Use only the first so many samples.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// A prompt as Jinja templates over the sample's fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PromptTemplate {
    /// System message; none if absent.
    #[serde(default)]
    pub system: Option<String>,
    /// User message.
    pub user: String,
}

/// How a model is asked. Absent settings come from the suite's `[request]`, then the defaults.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RequestSettings {
    /// Default 0.
    pub temperature: Option<f64>,
    /// Default 512, or half of the smallest context of the suite's models.
    pub max_tokens: Option<u32>,
    /// Default: the model's own.
    pub top_p: Option<f64>,
    /// Default: the model's own.
    pub top_k: Option<u32>,
    /// Default: none is sent.
    pub seed: Option<u64>,
    /// Default: none.
    pub stop: Option<Vec<String>>,
    /// Number of alternatives to ask log-probabilities for. Default: none are asked.
    pub logprobs: Option<u8>,
    /// Options that are not sent at all, such as `temperature` to a model that refuses it.
    pub omit: Option<Vec<String>>,
}

/// Default of `request.max_tokens`, unless the smallest context is below twice that.
pub const DEFAULT_MAX_TOKENS: u32 = 512;

impl RequestSettings {
    /// These settings where set, otherwise those of `base`.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        Self {
            temperature: self.temperature.or(base.temperature),
            max_tokens: self.max_tokens.or(base.max_tokens),
            top_p: self.top_p.or(base.top_p),
            top_k: self.top_k.or(base.top_k),
            seed: self.seed.or(base.seed),
            stop: self.stop.clone().or_else(|| base.stop.clone()),
            logprobs: self.logprobs.or(base.logprobs),
            omit: self.omit.clone().or_else(|| base.omit.clone()),
        }
    }
}

/// One model to weigh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Candidate {
    /// Name in reports; letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// `PROVIDER:LOCATION[@revision][#variant]`.
    pub model: String,
    /// Who holds the weights, where the provider cannot know: a server behind a URL.
    #[serde(default)]
    pub weights: Option<Weights>,
    /// The model whose weights these are, in any words: candidates that say the same run one model
    /// in another engine, file format or precision, and the report says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_of: Option<String>,
    /// Options of the provider.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// A prompt of its own; the report then calls the candidate tuned.
    #[serde(default)]
    pub prompt: Option<PromptTemplate>,
    /// Request settings of its own.
    #[serde(default)]
    pub request: RequestSettings,
    /// What it costs; absent: cost is not compared.
    #[serde(default)]
    pub price: Option<Price>,
    /// Licence or terms, in the words to be shown.
    #[serde(default)]
    pub license: Option<String>,
    /// Calls at once, at most what the backend allows. Default 4.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// Ask through the vendor's batch jobs: cheaper, and answered within a day.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub batch: bool,
    /// Only there for a control: takes no part in the verdict.
    #[serde(default)]
    pub control_only: bool,
}

/// A typed price with its source. No price is built in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Price {
    /// USD per million prompt tokens.
    pub input_per_million: f64,
    /// USD per million generated tokens.
    pub output_per_million: f64,
    /// USD per million cached prompt tokens; absent: as other prompt tokens, never free.
    #[serde(default)]
    pub cached_input_per_million: Option<f64>,
    /// What a token costs in a batch job, as a share of these prices; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_factor: Option<f64>,
    /// USD per month that are paid whatever is used, such as the share of a machine.
    #[serde(default)]
    pub fixed_per_month: f64,
    /// Where the price was read.
    pub source: String,
    /// The day on which it was read, as `YYYY-MM-DD`.
    pub as_of: String,
}

/// One way to judge answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EvaluatorSpec {
    /// The kind: `exact_match`, `contains`, `regex`, `json_fields`, or one that a plugin brings.
    pub kind: String,
    /// Name in reports; the kind if absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Settings of the kind.
    #[serde(flatten)]
    pub options: Map<String, Value>,
}

impl EvaluatorSpec {
    /// The name in reports.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.kind)
    }
}

/// A comparison whose result is known beforehand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Control {
    /// What it shows, for the report.
    pub name: String,
    /// The candidate that is the yardstick.
    pub reference: String,
    /// The candidate that is held against it.
    pub candidate: String,
    /// What must come out.
    pub expect: Expect,
    /// For [`Expect::BadSlice`]: the slice, as `column=value`.
    #[serde(default)]
    pub slice: Option<String>,
}

/// What a control must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Expect {
    /// No difference: neither better nor worse.
    NoDifference,
    /// The candidate is proven worse on the slice.
    BadSlice,
    /// The candidate is proven worse, so that a switch is refused.
    RefuseSwitch,
}

/// What is to be proven before a change is advised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Decision {
    /// How many points of quality may be lost at most, in percentage points. Default 5.
    pub margin_points: f64,
    /// Confidence of intervals and claims, in (0.5, 1). Default 0.95.
    pub confidence: f64,
    /// Calls per month, for monthly cost.
    pub monthly_volume: Option<u64>,
}

impl Default for Decision {
    fn default() -> Self {
        Self { margin_points: 5.0, confidence: 0.95, monthly_volume: None }
    }
}

/// How the run behaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RunSettings {
    /// Answers per sample and candidate, averaged per sample. Default 1.
    pub repeats: u32,
    /// Seconds until a call is given up. Default 120.
    pub timeout_s: f64,
    /// Attempts per call; only infrastructure failures are tried again. Default 3.
    pub max_attempts: u32,
    /// USD after which no further priced call is made. Default 5.
    pub spend_cap_usd: f64,
    /// No outward client can be built. Default false.
    pub offline: bool,
    /// Longest pause between two questions how a batch job stands, in seconds. Default 60.
    pub batch_poll_s: f64,
    /// Hours that batch jobs are waited for; a resume waits on. Default 25: the vendors promise
    /// 24.
    pub batch_wait_h: f64,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            repeats: 1,
            timeout_s: 120.0,
            max_attempts: 3,
            spend_cap_usd: 5.0,
            offline: false,
            batch_poll_s: 60.0,
            batch_wait_h: 25.0,
        }
    }
}

impl Suite {
    /// A candidate by name.
    pub fn candidate(&self, name: &str) -> Option<&Candidate> {
        self.candidates.iter().find(|c| c.name == name)
    }

    /// A candidate's model name, `${NAME}` filled in.
    ///
    /// # Errors
    /// [`InvalidInput`](weighbridge_core::ErrorKind::InvalidInput) for a name that is not defined
    /// or a model name that cannot be read.
    pub fn model(&self, candidate: &Candidate) -> Result<ModelRef> {
        let mut text = candidate.model.clone();
        while let Some(start) = text.find("${") {
            let Some(len) = text[start..].find('}') else { break };
            let name = text[start + 2..start + len].to_owned();
            let Some(value) = self.defines.get(&name) else {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "model `{}` needs a value for ${{{name}}}; pass --define {name}=VALUE",
                        candidate.model
                    ),
                ));
            };
            text.replace_range(start..=start + len, value);
        }
        text.parse()
    }

    /// A path of the suite, made absolute or relative to the working directory.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.base_dir.join(path)
    }
}
