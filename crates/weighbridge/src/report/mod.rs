//! The report: one structure, version 1, from which every output is drawn.

mod build;
mod first_screen;
mod html;
mod samples;
mod terminal;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use weighbridge_core::{Error, ErrorKind, ModelCard, Result};

use crate::compare::{Agreement, Comparison, Interval};
use crate::suite::{Decision, Price, RequestSettings};
use crate::verdict::Verdict;

pub use build::build;
pub(crate) use build::has_observations;
pub use first_screen::{Line, first_screen};
pub use html::render as render_html;
pub use samples::{Answer, Relation, SampleLine, sample_lines};
pub use terminal::render as render_terminal;

/// The version of `report.json` and `samples.jsonl` that this build writes.
pub const REPORT_VERSION: u32 = 1;

/// Samples embedded in `report.html` at most; what is left out is stated there.
pub const MAX_HTML_SAMPLES: usize = 5_000;

/// Everything a run has to say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub v: u32,
    /// Program and version.
    pub tool: String,
    /// When the run was created, as its first process wrote it.
    pub created: String,
    /// Repeated in every output, such as "demo models".
    pub notice: Option<String>,
    /// The suite.
    pub suite: SuiteFacts,
    /// The workload.
    pub data: DataFacts,
    /// What was to be proven.
    pub decision: Decision,
    /// The machine.
    pub host: HostFacts,
    /// The candidates, in suite order.
    pub candidates: Vec<CandidateReport>,
    /// Every challenger against the candidate in use.
    pub comparisons: Vec<Comparison>,
    /// How alike challengers answer that are not held against each other.
    pub other_pairs: Vec<Agreement>,
    /// Comparisons whose result was known beforehand.
    pub controls: Vec<ControlReport>,
    /// What follows.
    pub verdict: Verdict,
    /// USD spent as far as prices and counts are known.
    pub spent_usd: f64,
    /// USD that calls without a known end may have cost.
    pub maybe_spent_usd: f64,
    /// Calls that were begun and whose end was never seen.
    pub n_unknown_calls: usize,
    /// Settings that changed between the start of the run and a resume, each with both values. A
    /// margin that changed after answers were seen weakens every claim.
    pub changed_since_start: Vec<String>,
    /// RFC 6962 root over the run log's records, once it is sealed.
    pub log_root: Option<String>,
}

/// The suite in brief.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SuiteFacts {
    /// Format version.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// What is decided.
    pub description: String,
    /// Hash of everything that may change an answer.
    pub configuration_hash: String,
    /// Evaluators by name, with id and version; the first one decides.
    pub evaluators: Vec<EvaluatorFacts>,
    /// The common prompt, as templates.
    pub prompt: crate::suite::PromptTemplate,
    /// How the run behaved: repeats, timeout, attempts, spend cap, offline.
    pub run: crate::suite::RunSettings,
}

/// An evaluator in brief.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EvaluatorFacts {
    /// Name in this suite.
    pub name: String,
    /// Kind.
    pub id: String,
    /// Version of its scores.
    pub version: String,
}

/// The workload in brief.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DataFacts {
    /// The file, as the suite names it.
    pub file: String,
    /// Lower-case hex SHA-256 of the file.
    pub sha256: String,
    /// Samples used.
    pub n_samples: usize,
    /// Of them, those that must stay on this machine.
    pub n_sensitive: usize,
    /// Columns that make slices.
    pub slices: Vec<String>,
    /// Column that makes clusters, and how many there are.
    pub cluster: Option<(String, usize)>,
}

/// The machine the run was made on.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HostFacts {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Processor name, where the system tells it.
    pub cpu: Option<String>,
    /// Processors this process may use.
    pub n_cpus: Option<usize>,
    /// Memory in bytes, where the system tells it.
    pub memory_bytes: Option<u64>,
}

impl HostFacts {
    /// What the system tells about this machine.
    pub fn current() -> Self {
        let field = |file: &str, name: &str| -> Option<String> {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: field("/proc/cpuinfo", "model name"),
            n_cpus: std::thread::available_parallelism().ok().map(usize::from),
            memory_bytes: memory_kib.map(|kib| kib * 1024),
        }
    }
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CandidateReport {
    /// Name in the suite.
    pub name: String,
    /// Model name in the suite.
    pub model: String,
    /// What it is.
    pub card: ModelCard,
    /// It is the one in use.
    pub is_current: bool,
    /// It has a prompt of its own.
    pub is_tuned: bool,
    /// It takes part in controls only.
    pub is_control: bool,
    /// How it was asked.
    pub settings: RequestSettings,
    /// What it was asked, as templates.
    pub prompt: crate::suite::PromptTemplate,
    /// Lower-case hex SHA-256 over its prompt templates.
    pub prompt_sha256: String,
    /// Calls at once.
    pub concurrency: u32,
    /// It was asked in batch jobs of its vendor, so nothing is said about its latency.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_batch: bool,
    /// The settings that were really used, as its first answer in the order of the data tells.
    pub effective: serde_json::Map<String, serde_json::Value>,
    /// Warnings of its answers, by number.
    pub warnings: BTreeMap<String, u64>,
    /// Calls that took more than one attempt.
    pub n_retried: u64,
    /// Number of calls per outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Calls that were not made.
    pub n_not_run: u64,
    /// Why its remaining calls were not made.
    pub stopped: Option<String>,
    /// One entry per evaluator.
    pub quality: Vec<Quality>,
    /// How long answers took; `None` without any, or for recorded answers.
    pub latency: Option<Latency>,
    /// Tokens, summed over answers that told them.
    pub tokens: Tokens,
    /// Its price as typed.
    pub price: Option<Price>,
    /// What it costs; `None`: no price, or no token counts.
    pub cost: Option<Cost>,
    /// What left this process for it.
    pub egress: Egress,
}

/// One evaluator's scores of one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Quality {
    /// The evaluator.
    pub evaluator: String,
    /// Samples with a score.
    pub n_scored: u64,
    /// Samples that were answered and have none, by reason.
    pub unscored: BTreeMap<String, u64>,
    /// Samples without an answer, by outcome.
    pub missing: BTreeMap<String, u64>,
    /// Mean score in [0, 1].
    pub mean: Option<f64>,
    /// Interval of the mean.
    pub interval: Option<Interval>,
    /// Method of the interval.
    pub method: String,
    /// Mean score of named parts, such as one per JSON field.
    pub parts: Vec<(String, f64)>,
}

/// Latency of answered calls, in milliseconds, as the caller saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Latency {
    /// Answered calls.
    pub n: u64,
    /// Median of the whole call, with its interval.
    pub p50_ms: f64,
    /// Order-statistic interval of the median.
    pub p50_interval: Option<Interval>,
    /// 95th percentile of the whole call.
    pub p95_ms: f64,
    /// Order-statistic interval of the 95th percentile.
    pub p95_interval: Option<Interval>,
    /// Median time to the first token, where streamed.
    pub ttft_p50_ms: Option<f64>,
    /// Deciles of the whole call, from 0 % to 100 %.
    pub deciles_ms: Vec<f64>,
}

/// Tokens of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tokens {
    /// Answers that told their counts.
    pub n_answers: u64,
    /// Prompt tokens, cached ones included.
    pub n_prompt: u64,
    /// Prompt tokens read from a cache.
    pub n_cached: u64,
    /// Generated tokens.
    pub n_generated: u64,
}

/// Cost of one candidate, in USD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cost {
    /// Per answered call.
    pub per_call_usd: f64,
    /// Per right answer, with the interval of the ratio where there is one.
    pub per_correct_usd: Option<f64>,
    /// Interval of the cost per right answer.
    pub per_correct_interval: Option<Interval>,
    /// Per month at the suite's volume, fixed cost included.
    pub per_month_usd: Option<f64>,
}

/// What left this process for one candidate.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Egress {
    /// In words: where it went.
    pub destination: String,
    /// Samples whose text was sent.
    pub n_samples: u64,
    /// Attempts made, failed ones included.
    pub n_attempts: u64,
    /// Bytes of prompt text sent, over all attempts.
    pub n_prompt_bytes: u64,
    /// Samples held back because they are sensitive.
    pub n_withheld: u64,
}

/// A comparison whose result was known beforehand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ControlReport {
    /// What it shows.
    pub name: String,
    /// Whether it came out as it must.
    pub result: ControlResult,
    /// What came out.
    pub finding: String,
    /// The comparison.
    pub comparison: Comparison,
}

/// Whether a control came out as it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ControlResult {
    /// It did.
    AsExpected,
    /// It did not: the verdict is taken away.
    Failed,
    /// The data cannot tell, for instance because there are too few samples.
    NotDecidable,
}

/// Writes `report.json`, `samples.jsonl` and `report.html` into a run's folder, each whole or not
/// at all.
///
/// # Errors
/// [`ErrorKind::Io`] that names the file.
pub fn write_all(report: &Report, samples: &[SampleLine], dir: &Path) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(report).expect("reports are plain data");
    json.push(b'\n');
    write_whole(&dir.join("report.json"), &json)?;
    let mut lines = Vec::new();
    for sample in samples {
        serde_json::to_writer(&mut lines, sample).expect("samples are plain data");
        lines.push(b'\n');
    }
    write_whole(&dir.join("samples.jsonl"), &lines)?;
    write_whole(&dir.join("report.html"), render_html(report, samples).as_bytes())
}

/// Writes to a temporary file, syncs and renames, so that a reader sees the old or the new file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        Error::new(ErrorKind::Io, format!("cannot write {}", path.display())).with_source(e)
    })
}
