//! Batch jobs of OpenAI, Anthropic and Gemini: one contract, three envelopes. Bodies and answers
//! inside of an envelope are those of the vendor's wire.

mod anthropic;
mod gemini;
mod ids;
mod join;
mod lines;
mod openai;

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use weighbridge_core::{
    BatchAnswers, BatchId, BatchJobs, BatchLimits, BatchLookup, BatchRequest, BatchStatus, Dropped,
    Error, ErrorKind, Request, Result, Submission,
};

use crate::backend::RemoteBackend;
use crate::exchange::Exchange;
use crate::failure::{Refusal, by_status};
use crate::http::Call;
use crate::vendor::Vendor;

use ids::{custom_id, is_plain};
use join::{Join, Missing};

/// How long a job's requests or answers may travel, whatever a single call's limits are.
const TRANSFER_LIMIT: Duration = Duration::from_secs(3600);
/// Largest file of answers.
const MAX_RESULT_BYTES: u64 = 4 << 30;
/// How much of an error's body is read.
const MAX_ERROR_BODY_BYTES: usize = 64 << 10;
/// Pages of a vendor's list of jobs that are looked through.
const MAX_PAGES: usize = 20;
/// Fields of a body that only a call of its own can have.
const STREAM_FIELDS: [&str; 2] = ["stream", "stream_options"];

/// What tells one vendor's jobs from another's.
#[async_trait]
pub(crate) trait JobApi: fmt::Debug + Send + Sync {
    fn limits(&self) -> BatchLimits;

    /// One request as it stands in a job.
    fn item(&self, at: &RemoteBackend, custom_id: String, body: Map<String, Value>) -> Value;

    /// Hands in items, each as JSON.
    async fn submit(
        &self,
        at: &RemoteBackend,
        label: &str,
        items: Vec<Vec<u8>>,
    ) -> Result<Submission>;

    async fn find(&self, at: &RemoteBackend, label: &str) -> Result<BatchLookup>;

    async fn poll(&self, at: &RemoteBackend, id: &str) -> Result<BatchStatus>;

    /// Gives every answer to `join`, and says why the others are missing.
    async fn fetch(&self, at: &RemoteBackend, id: &str, join: &mut Join<'_>) -> Result<Missing>;

    async fn cancel(&self, at: &RemoteBackend, id: &str) -> Result<()>;
}

/// The jobs of a vendor, if it has any.
pub(crate) fn of(vendor: Vendor) -> Option<&'static dyn JobApi> {
    match vendor {
        Vendor::OpenAi | Vendor::AzureOpenAi => Some(&openai::OpenAiJobs),
        Vendor::Anthropic => Some(&anthropic::AnthropicJobs),
        Vendor::Gemini => Some(&gemini::GeminiJobs),
        _ => None,
    }
}

#[async_trait]
impl BatchJobs for RemoteBackend {
    fn limits(&self) -> BatchLimits {
        self.jobs.map_or(BatchLimits::new(0, 0), JobApi::limits)
    }

    fn size(&self, request: &BatchRequest) -> Result<u64> {
        // One byte more for what separates it from the next.
        self.item(self.jobs()?, request).map(|item| item.len() as u64 + 1)
    }

    async fn submit(&self, label: &str, requests: &[BatchRequest]) -> Result<Submission> {
        let jobs = self.jobs()?;
        if !is_plain(label) || label.len() > 64 {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "a job's label is 1 to 64 letters, digits, `-` and `_`",
            )
            .with("label", label));
        }
        let items: Vec<_> = requests.iter().map(|r| self.item(jobs, r)).collect::<Result<_>>()?;
        check_size(requests, &items, jobs.limits())?;
        let submitted = jobs.submit(self, label, items).await;
        match submitted.map_err(|error| self.clean(error))? {
            Submission::Unknown(error) => Ok(Submission::Unknown(self.clean(error))),
            accepted => Ok(accepted),
        }
    }

    async fn find(&self, label: &str) -> Result<BatchLookup> {
        self.jobs()?.find(self, label).await.map_err(|error| self.clean(error))
    }

    async fn poll(&self, id: &BatchId) -> Result<BatchStatus> {
        let status = self.jobs()?.poll(self, &id.0).await;
        match status.map_err(|error| self.clean(error))? {
            BatchStatus::Failed(error) => Ok(BatchStatus::Failed(self.clean(error))),
            status => Ok(status),
        }
    }

    async fn fetch(&self, id: &BatchId, requests: &[BatchRequest]) -> Result<BatchAnswers> {
        let mut join = Join::new(self, requests);
        let missing = self.jobs()?.fetch(self, &id.0, &mut join).await;
        Ok(join.finish(missing.map_err(|error| self.clean(error))?))
    }

    async fn cancel(&self, id: &BatchId) -> Result<()> {
        self.jobs()?.cancel(self, &id.0).await.map_err(|error| self.clean(error))
    }
}

impl RemoteBackend {
    fn jobs(&self) -> Result<&'static dyn JobApi> {
        self.jobs.ok_or_else(|| Error::unsupported("batch", "this provider has no batch jobs"))
    }

    /// The body of one request of a job, and the wishes that it leaves out.
    fn job_body(&self, request: &Request) -> Result<(Map<String, Value>, Vec<Dropped>)> {
        let dropped = self.capabilities.check(request)?;
        let mut body = self.wire.body(&self.card.id, request, &dropped)?;
        for field in STREAM_FIELDS {
            body.remove(field);
        }
        Ok((body, dropped))
    }

    fn item(&self, jobs: &dyn JobApi, request: &BatchRequest) -> Result<Vec<u8>> {
        let (body, _) = self.job_body(&request.request)?;
        let item = jobs.item(self, custom_id(&request.id), body);
        serde_json::to_vec(&item).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, "the request is not JSON").with_source(error)
        })
    }

    fn clean(&self, error: Error) -> Error {
        self.http.redactor().clean(error)
    }

    /// An excerpt of the vendor's text, fit for an error or a warning.
    fn excerpt(&self, text: &str) -> String {
        self.http.redactor().excerpt(text, 200)
    }

    /// Starts a call; its answer is a success.
    async fn call(&self, call: Call) -> Result<Exchange> {
        let mut exchange = self.http.start(call)?;
        let head = exchange.head().await?;
        if head.is_success() {
            return Ok(exchange);
        }
        let body = exchange.body(MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
        Err(match by_status(&self.http, &head, &body, self.key_name.as_deref()) {
            Refusal::Error(error) => error,
            Refusal::Filtered(code) => {
                Error::new(ErrorKind::InvalidRequest, "the vendor's filter refused the job")
                    .with("code", self.excerpt(&code))
            }
        })
    }

    /// A call whose answer is a JSON document.
    async fn document(&self, call: Call) -> Result<Value> {
        let body = self.call(call).await?.body(usize::MAX).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let text = String::from_utf8_lossy(&body);
            let place = self.http.address().authority();
            Error::new(ErrorKind::Protocol, format!("{place} answered with something not JSON"))
                .with("body", self.excerpt(text.trim()))
                .with_source(error)
        })
    }

    /// A part of the vendor's answer that is not what its documentation says.
    fn unexpected(&self, what: &str, found: &Value) -> Error {
        let place = self.http.address().authority();
        Error::new(ErrorKind::Protocol, format!("{what} is not in the answer of {place}"))
            .with("found", self.excerpt(&found.to_string()))
    }
}

/// What came of the call that makes a job. `id` finds the job's name in the answer.
fn submission(
    at: &RemoteBackend,
    answer: Result<Value>,
    id: impl Fn(&Value) -> Option<&str>,
) -> Result<Submission> {
    match answer {
        Ok(document) => Ok(match id(&document) {
            Some(id) => Submission::Accepted(BatchId(id.to_owned())),
            None => Submission::Unknown(at.unexpected("the job's id", &document)),
        }),
        Err(error) if made_no_job(&error) => Err(error),
        Err(error) => Ok(Submission::Unknown(error)),
    }
}

/// Whether the call that makes a job certainly made none: it never arrived, or was refused.
fn made_no_job(error: &Error) -> bool {
    match error.context("status").and_then(|status| status.parse::<u16>().ok()) {
        Some(status) => status != 408 && (status < 500 || matches!(status, 501 | 503 | 529)),
        None => {
            error.kind() == ErrorKind::EgressDenied
                || matches!(error.context("phase"), Some("dns" | "connect" | "tls"))
        }
    }
}

fn check_size(requests: &[BatchRequest], items: &[Vec<u8>], limits: BatchLimits) -> Result<()> {
    let bad = |message: &'static str| Err(Error::new(ErrorKind::InvalidRequest, message));
    if requests.is_empty() {
        return bad("a job needs a request");
    }
    let n_bytes: u64 = items.iter().map(|item| item.len() as u64 + 1).sum();
    if requests.len() > limits.max_requests || n_bytes > limits.max_bytes {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "the job is larger than the vendor takes; hand it in in parts",
        )
        .with("n_requests", requests.len())
        .with("n_bytes", n_bytes)
        .with("max_requests", limits.max_requests)
        .with("max_bytes", limits.max_bytes));
    }
    let mut ids = HashSet::new();
    if let Some(twice) = requests.iter().find(|request| !ids.insert(&request.id)) {
        return Err(Error::new(ErrorKind::InvalidRequest, "an id stands twice in the job")
            .with("id", &twice.id));
    }
    Ok(())
}
