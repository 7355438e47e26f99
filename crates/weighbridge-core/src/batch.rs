//! Vendor batch jobs: cheaper, slower, and alive after the process died.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Completion, Error, Request, Result};

/// The vendor's id of a job; kept in the run log, so that a later process can fetch it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub String);

/// One request of a job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatchRequest {
    /// The caller's id, any text, unique in its job; answers are joined by it, never by position.
    pub id: String,
    /// What to generate.
    pub request: Request,
}

impl BatchRequest {
    /// A request under the caller's id.
    pub fn new(id: impl Into<String>, request: Request) -> Self {
        Self { id: id.into(), request }
    }
}

/// What one job may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchLimits {
    /// Largest number of requests.
    pub max_requests: usize,
    /// Largest sum of [`BatchJobs::size`] over the requests, in bytes.
    pub max_bytes: u64,
}

impl BatchLimits {
    /// So many requests, and so many bytes in all.
    pub fn new(max_requests: usize, max_bytes: u64) -> Self {
        Self { max_requests, max_bytes }
    }
}

/// What came of handing in a job. An `Err` beside it means that there is no job.
#[derive(Debug)]
#[non_exhaustive]
pub enum Submission {
    /// The vendor took it.
    Accepted(BatchId),
    /// It was sent and no answer came, so the job may exist and may be billed. Never hand it in
    /// again before [`BatchJobs::find`] has said that it is absent.
    Unknown(Error),
}

/// Whether a vendor has a job under a label.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchLookup {
    /// It has this one.
    Found(BatchId),
    /// It lists its jobs, and none of the recent ones has the label.
    Absent,
    /// It keeps no labels, or has too many jobs to look through.
    Unknown,
}

/// Where a job stands.
#[derive(Debug)]
#[non_exhaustive]
pub enum BatchStatus {
    /// Accepted and working.
    Running {
        /// Requests finished so far, as far as the vendor tells while it works.
        n_done: u64,
        /// Requests in the job.
        n_total: u64,
    },
    /// Answers can be fetched; some may be errors, also all of them.
    Ended,
    /// The vendor did none of it, for this reason.
    Failed(Error),
}

/// The answer to one request of a job.
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchResult {
    /// The caller's id.
    pub id: String,
    /// What came of it. Its timings say nothing: nobody waited for it.
    pub result: Result<Completion, Error>,
}

impl BatchResult {
    /// The answer to the request with that id.
    pub fn new(id: impl Into<String>, result: Result<Completion, Error>) -> Self {
        Self { id: id.into(), result }
    }
}

/// The answers of a job.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct BatchAnswers {
    /// One per request, in the order of the requests.
    pub results: Vec<BatchResult>,
    /// What else the vendor sent, such as answers to requests that nobody made.
    pub warnings: Vec<String>,
}

impl BatchAnswers {
    /// These results, and what else there was.
    pub fn new(results: Vec<BatchResult>, warnings: Vec<String>) -> Self {
        Self { results, warnings }
    }
}

/// Jobs at a vendor.
///
/// # Contract
/// - [`fetch`](Self::fetch) joins by id: it gives exactly one result per request. A request whose
///   answer is missing, cut, twice there or damaged fails alone.
/// - A request that the vendor did not get to is [`Timeout`](crate::ErrorKind::Timeout) where the
///   job expired, [`Cancelled`](crate::ErrorKind::Cancelled) where it was cancelled.
/// - Nothing is retried and nothing waits: when to ask again is the caller's business.
#[async_trait]
pub trait BatchJobs: Send + Sync {
    /// What one job may hold.
    fn limits(&self) -> BatchLimits;

    /// The bytes that this request takes of a job.
    ///
    /// # Errors
    /// As [`Backend::generate`](crate::Backend::generate), for a request that cannot be put into
    /// words for this model: it has no place in any job.
    fn size(&self, request: &BatchRequest) -> Result<u64>;

    /// Hands in a job under the caller's own label: 1 to 64 letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// Where there is certainly no job: the vendor refused it, or was not reached; and
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) for a job that is empty, too large, or
    /// has an id twice.
    async fn submit(&self, label: &str, requests: &[BatchRequest]) -> Result<Submission>;

    /// Looks a job up by its label.
    async fn find(&self, label: &str) -> Result<BatchLookup>;

    /// Asks how it stands.
    async fn poll(&self, id: &BatchId) -> Result<BatchStatus>;

    /// Fetches the answers of an ended job to these requests, which are those it was made of.
    async fn fetch(&self, id: &BatchId, requests: &[BatchRequest]) -> Result<BatchAnswers>;

    /// Asks the vendor to stop it. What is finished by then can still be fetched, once it ended.
    async fn cancel(&self, id: &BatchId) -> Result<()>;
}
