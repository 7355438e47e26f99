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
    /// The caller's id; answers are joined by it, never by position.
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

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchStatus {
    /// Accepted and working.
    Running {
        /// Requests finished so far.
        n_done: u64,
        /// Requests in the job.
        n_total: u64,
    },
    /// Answers can be fetched; some may be errors.
    Ended,
    /// The vendor ended it early, in its own words.
    Stopped(String),
}

/// The answer to one request of a job.
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchResult {
    /// The caller's id.
    pub id: String,
    /// What came of it.
    pub result: Result<Completion, Error>,
}

impl BatchResult {
    /// The answer to the request with that id.
    pub fn new(id: impl Into<String>, result: Result<Completion, Error>) -> Self {
        Self { id: id.into(), result }
    }
}

/// Jobs at a vendor.
#[async_trait]
pub trait BatchJobs: Send + Sync {
    /// Hands in a job.
    async fn submit(&self, requests: &[BatchRequest]) -> Result<BatchId>;

    /// Asks how it stands.
    async fn poll(&self, id: &BatchId) -> Result<BatchStatus>;

    /// Fetches the answers of an ended job.
    async fn fetch(&self, id: &BatchId) -> Result<Vec<BatchResult>>;

    /// Asks the vendor to stop it.
    async fn cancel(&self, id: &BatchId) -> Result<()>;
}
