//! Gemini's batch mode with inlined requests: the job is a long-running operation that holds its
//! answers.
//!
//! Shapes as in `google-genai` 3.4 for Python (`batches.py`, the `*_mldev` converters) and the REST
//! reference of `models.batchGenerateContent`.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use weighbridge_core::{
    BatchId, BatchLimits, BatchLookup, BatchStatus, Error, ErrorKind, Result, Submission,
};

use crate::backend::RemoteBackend;
use crate::http::Call;
use crate::wire::Route;

use super::ids::plain;
use super::join::{Answer, Join, Missing};
use super::{JobApi, MAX_PAGES, TRANSFER_LIMIT, submission};

/// Metadata of a request that holds its id.
const KEY: &str = "key";
/// Requests take at most 20 MB; answers come as one document.
const MAX_JOB_BYTES: u64 = 512 << 20;
/// Room in a job for what is not a request.
const ENVELOPE_BYTES: u64 = 1000;
const PAGE: u32 = 100;

/// Jobs of Gemini.
#[derive(Debug)]
pub(super) struct GeminiJobs;

fn job_route(id: &str, action: &str) -> Result<Route> {
    let name = id.strip_prefix("batches/").unwrap_or_default();
    Ok(Route::new(format!("/batches/{}{action}", plain("job", name)?)))
}

/// The whole operation. It holds the answers as soon as there are some.
async fn operation(at: &RemoteBackend, id: &str) -> Result<Value> {
    let mut call = Call::get(job_route(id, "")?);
    call.max_bytes = MAX_JOB_BYTES;
    call.patience = Some(TRANSFER_LIMIT);
    at.document(call).await
}

/// The job's state without its prefix, which is `BATCH_STATE_` in the REST reference and
/// `JOB_STATE_` in the SDK's types.
fn state(operation: &Value) -> Option<&str> {
    let state = operation["metadata"]["state"].as_str()?;
    Some(state.strip_prefix("BATCH_STATE_").or(state.strip_prefix("JOB_STATE_")).unwrap_or(state))
}

#[async_trait]
impl JobApi for GeminiJobs {
    fn limits(&self) -> BatchLimits {
        BatchLimits::new(usize::MAX, 20_000_000 - ENVELOPE_BYTES)
    }

    fn item(&self, _: &RemoteBackend, custom_id: String, body: Map<String, Value>) -> Value {
        json!({"request": body, "metadata": {KEY: custom_id}})
    }

    async fn submit(
        &self,
        at: &RemoteBackend,
        label: &str,
        items: Vec<Vec<u8>>,
    ) -> Result<Submission> {
        let head = format!(r#"{{"batch":{{"displayName":"{label}","inputConfig":"#);
        let requests = items.join(&b',');
        let body = [head.as_bytes(), br#"{"requests":{"requests":["#, &requests, b"]}}}}"].concat();
        let generate = at.wire.route(&at.card.id).path;
        let model = generate.rsplit_once(':').map_or(&generate[..], |(model, _)| model);
        let mut call = Call::post(Route::new(format!("{model}:batchGenerateContent")), body);
        call.patience = Some(TRANSFER_LIMIT);
        submission(at, at.document(call).await, |operation| operation["name"].as_str())
    }

    async fn find(&self, at: &RemoteBackend, label: &str) -> Result<BatchLookup> {
        let mut query = format!("pageSize={PAGE}");
        for _ in 0..MAX_PAGES {
            let mut call = Call::get(Route::new("/batches").with_query(query));
            call.max_bytes = MAX_JOB_BYTES;
            let page = at.document(call).await?;
            // An account without jobs gets an empty object.
            let jobs = page["operations"].as_array().map_or(&[][..], Vec::as_slice);
            let found =
                jobs.iter().find(|job| job["metadata"]["displayName"].as_str() == Some(label));
            if let Some(name) = found.and_then(|job| job["name"].as_str()) {
                return Ok(BatchLookup::Found(BatchId(name.to_owned())));
            }
            match page["nextPageToken"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => query = format!("pageSize={PAGE}&pageToken={}", encoded(token)),
                None => return Ok(BatchLookup::Absent),
            }
        }
        Ok(BatchLookup::Unknown)
    }

    async fn poll(&self, at: &RemoteBackend, id: &str) -> Result<BatchStatus> {
        let operation = operation(at, id).await?;
        Ok(match state(&operation) {
            Some("SUCCEEDED" | "PARTIALLY_SUCCEEDED" | "EXPIRED" | "CANCELLED") => {
                BatchStatus::Ended
            }
            Some("FAILED") => BatchStatus::Failed(failure(at, &operation["error"])),
            Some(_) => {
                let n = |name| count(&operation["metadata"]["batchStats"][name]);
                let n_done = n("successfulRequestCount") + n("failedRequestCount");
                BatchStatus::Running { n_done, n_total: n("requestCount") }
            }
            None => return Err(at.unexpected("the job's state", &operation)),
        })
    }

    async fn fetch(&self, at: &RemoteBackend, id: &str, join: &mut Join<'_>) -> Result<Missing> {
        let operation = operation(at, id).await?;
        let outputs = [&operation["metadata"]["output"], &operation["response"]];
        let answers = outputs
            .iter()
            .find_map(|output| output["inlinedResponses"]["inlinedResponses"].as_array());
        for answer in answers.into_iter().flatten() {
            take(at, answer, join);
        }
        Ok(match state(&operation) {
            Some("EXPIRED") => Missing::Expired,
            Some("CANCELLED") => Missing::Cancelled,
            _ => Missing::Lost,
        })
    }

    async fn cancel(&self, at: &RemoteBackend, id: &str) -> Result<()> {
        at.document(Call::post_empty(job_route(id, ":cancel")?)).await.map(drop)
    }
}

fn take(at: &RemoteBackend, answer: &Value, join: &mut Join<'_>) {
    let Some(custom_id) = answer["metadata"][KEY].as_str() else {
        join.stranger(&answer.to_string());
        return;
    };
    let read = match (&answer["response"], &answer["error"]) {
        (document @ Value::Object(_), Value::Null) => Answer::Document(document),
        (_, error @ Value::Object(_)) => {
            let body = json!({"error": error});
            return join.take(custom_id, Answer::Refused(status(error), &body));
        }
        _ => Answer::Error(at.unexpected("a response or an error", answer)),
    };
    join.take(custom_id, read);
}

/// A text as it stands in a query.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// A 64-bit integer, which JSON of Google carries as text.
fn count(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// The HTTP status of a `google.rpc.Status`, by the table in `google/rpc/code.proto`. A code that
/// is an HTTP status already stays.
fn status(error: &Value) -> u16 {
    match error["code"].as_u64() {
        Some(1) => 499,
        Some(3 | 9 | 11) => 400,
        Some(4) => 504,
        Some(5) => 404,
        Some(6 | 10) => 409,
        Some(7) => 403,
        Some(8) => 429,
        Some(12) => 501,
        Some(14) => 503,
        Some(16) => 401,
        Some(code @ 400..600) => u16::try_from(code).unwrap_or(500),
        _ => 500,
    }
}

/// Why a job failed as a whole.
fn failure(at: &RemoteBackend, error: &Value) -> Error {
    let kind = match status(error) {
        429 => ErrorKind::RateLimited,
        401 | 403 => ErrorKind::Auth,
        400 | 404 => ErrorKind::InvalidRequest,
        _ => ErrorKind::ServerError,
    };
    let said = at.excerpt(error["message"].as_str().unwrap_or("no reason was given"));
    Error::new(kind, format!("the vendor did not carry the job out: {said}"))
}
