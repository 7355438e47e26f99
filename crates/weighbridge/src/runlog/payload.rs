//! Payloads of format version 1: JSON objects, one shape per record type.
//!
//! These are the record format, not the messages of the core crates: conversions are explicit and live with the
//! caller. Fields a reader does not know are ignored; a missing optional field is `None`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::digest::Digest;
use super::frame::RecordType;

/// Value of [`RunRecord::schema`] written by this version.
pub const PAYLOAD_SCHEMA: u32 = 1;

/// One record, typed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// The run.
    Run(RunRecord),
    /// A call is about to be made.
    Intent(IntentRecord),
    /// A call ended.
    Outcome(OutcomeRecord),
    /// Something a reader should know.
    Note(NoteRecord),
    /// How many records are synced.
    Mark(MarkRecord),
    /// Closed in good order.
    Seal(SealRecord),
    /// A vendor took a batch job.
    Job(JobRecord),
    /// An optional record of a type this program does not know.
    Unknown {
        /// Number of the record type.
        record_type: u8,
    },
}

/// Record 0: what this run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of the payload shapes, [`PAYLOAD_SCHEMA`].
    pub schema: u32,
    /// The program and its version that started the run.
    pub tool_version: String,
    /// Hash of everything that may change an answer. A resume with another hash is refused.
    pub configuration_hash: Digest,
    /// Digest of the configuration as JSON, kept as a blob so that a refused resume can show the difference.
    pub configuration_digest: Digest,
    /// When the run was created, as the caller writes times. The log does not interpret it.
    pub created: String,
}

/// Where a call goes, as far as the log cares: whether it can cost money that a crash does not give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// A byte will leave the machine. The intent is synced before it may.
    Remote,
    /// On this device. The intent survives a crash of the process, and names the input that crashed it.
    Local,
}

/// A call is about to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// Identity of the call; see [`call_key`](super::call_key).
    pub call_key: Digest,
    /// The sample.
    pub sample_id: String,
    /// The candidate: a model with its settings.
    pub candidate: String,
    /// Repetition of the same sample and candidate, from 0.
    pub repeat: u32,
    /// Attempt of the call, from 1.
    pub attempt: u32,
    /// SHA-256 of the request. The body need not be stored.
    pub request_digest: Digest,
    /// Remote or on this device.
    pub placement: Placement,
    /// The most this attempt can cost, in US dollars. Counts as spent when the outcome is never known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_cap_usd: Option<f64>,
    /// Label of the batch job that the call is part of; `None` for a call of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

/// A vendor took a batch job. Its calls are the intents that name its label; one whose label has
/// no such record may or may not have been handed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Our label of the job.
    pub label: String,
    /// The vendor's id of it.
    pub job_id: String,
    /// The candidate whose calls it holds.
    pub candidate: String,
}

/// A call ended, well or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutcomeRecord {
    /// The call.
    pub call_key: Digest,
    /// The attempt that ended.
    pub attempt: u32,
    /// Class of the outcome, e.g. `ok`, `refused`, `rate_limited`. The log does not interpret it.
    pub outcome: String,
    /// Digest of the observation, kept as a blob.
    pub observation_digest: Digest,
    /// What the attempt cost, in US dollars; absent when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Whether another attempt may follow. `false` makes this outcome final for its call.
    pub retryable: bool,
}

/// Something a reader should know. The log itself writes the kinds `recovery`, `disk_full` and `erased`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoteRecord {
    /// Kind, for programs.
    pub kind: String,
    /// A sentence, for people.
    pub text: String,
    /// Details.
    #[serde(default)]
    pub data: Value,
}

/// An otherwise empty record whose header carries how many records are synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MarkRecord {}

/// The log was closed in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRecord {
    /// Number of `OUTCOME` records before this one.
    pub outcomes: u64,
    /// RFC 6962 root over the hashes of all records before this one.
    pub root: Digest,
}

impl Record {
    /// The type in the record header.
    pub fn record_type(&self) -> RecordType {
        match self {
            Self::Run(_) => RecordType::Run,
            Self::Intent(_) => RecordType::Intent,
            Self::Outcome(_) => RecordType::Outcome,
            Self::Note(_) => RecordType::Note,
            Self::Mark(_) => RecordType::Mark,
            Self::Seal(_) => RecordType::Seal,
            Self::Job(_) => RecordType::Job,
            Self::Unknown { record_type } => RecordType::Unknown(*record_type),
        }
    }

    /// Whether the record is acknowledged only once it is on stable storage.
    pub(super) fn needs_sync(&self) -> bool {
        match self {
            Self::Intent(intent) => intent.placement == Placement::Remote,
            Self::Mark(_) => false,
            _ => true,
        }
    }

    /// The digest of the body that must be on stable storage before the record is written.
    pub(super) fn body_digest(&self) -> Option<Digest> {
        match self {
            Self::Run(run) => Some(run.configuration_digest),
            Self::Outcome(outcome) => Some(outcome.observation_digest),
            _ => None,
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let json = match self {
            Self::Run(payload) => serde_json::to_vec(payload),
            Self::Intent(payload) => serde_json::to_vec(payload),
            Self::Outcome(payload) => serde_json::to_vec(payload),
            Self::Note(payload) => serde_json::to_vec(payload),
            Self::Mark(payload) => serde_json::to_vec(payload),
            Self::Seal(payload) => serde_json::to_vec(payload),
            Self::Job(payload) => serde_json::to_vec(payload),
            Self::Unknown { record_type } => {
                return Err(format!("record type {record_type} is not known"));
            }
        };
        json.map_err(|error| error.to_string())
    }

    pub(super) fn decode(record_type: RecordType, payload: &[u8]) -> Result<Self, String> {
        let record = match record_type {
            RecordType::Run => serde_json::from_slice(payload).map(Self::Run),
            RecordType::Intent => serde_json::from_slice(payload).map(Self::Intent),
            RecordType::Outcome => serde_json::from_slice(payload).map(Self::Outcome),
            RecordType::Note => serde_json::from_slice(payload).map(Self::Note),
            RecordType::Mark => serde_json::from_slice(payload).map(Self::Mark),
            RecordType::Seal => serde_json::from_slice(payload).map(Self::Seal),
            RecordType::Job => serde_json::from_slice(payload).map(Self::Job),
            RecordType::Checkpoint | RecordType::Unknown(_) => {
                Ok(Self::Unknown { record_type: record_type.number() })
            }
        };
        record.map_err(|error| error.to_string())
    }
}

impl NoteRecord {
    /// A note with details.
    pub fn new(kind: impl Into<String>, text: impl Into<String>, data: Value) -> Self {
        Self { kind: kind.into(), text: text.into(), data }
    }

    /// The note that says a body was erased on purpose.
    pub(super) fn erased(digest: &Digest, reason: &str) -> Self {
        let data = Map::from_iter([("digest".to_owned(), Value::from(digest.to_string()))]);
        Self::new("erased", reason, Value::Object(data))
    }

    /// The digest an `erased` note names.
    pub(super) fn erased_digest(&self) -> Option<Digest> {
        if self.kind != "erased" {
            return None;
        }
        self.data.get("digest")?.as_str()?.parse().ok()
    }
}

macro_rules! into_record {
    ($($payload:ident => $variant:ident),*) => {$(
        impl From<$payload> for Record {
            fn from(payload: $payload) -> Self {
                Self::$variant(payload)
            }
        }
    )*};
}
into_record!(
    RunRecord => Run, IntentRecord => Intent, OutcomeRecord => Outcome, NoteRecord => Note, MarkRecord => Mark,
    SealRecord => Seal, JobRecord => Job
);
