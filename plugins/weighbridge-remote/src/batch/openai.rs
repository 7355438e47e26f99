//! OpenAI's Batch API: a file of requests goes up, two files of answers come down.
//!
//! Shapes as in `openai` 3.54 for Python (`types/batch.py`, `types/batch_create_params.py`,
//! `types/file_create_params.py`) and the API reference's request and output objects of a batch.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use weighbridge_core::{
    BatchId, BatchLimits, BatchLookup, BatchStatus, Error, ErrorKind, Result, Submission,
};

use crate::backend::RemoteBackend;
use crate::http::Call;
use crate::wire::Route;

use super::ids::plain;
use super::join::{Answer, Join, Missing};
use super::lines::Lines;
use super::{JobApi, MAX_PAGES, MAX_RESULT_BYTES, TRANSFER_LIMIT, submission};

/// Metadata of a job that holds our label.
const LABEL: &str = "weighbridge_job";
const PAGE: u32 = 100;

/// Jobs of OpenAI, and of Azure, which took over its API.
#[derive(Debug)]
pub(super) struct OpenAiJobs;

/// What a request is sent to, as a job names it: the path with its version, whatever the base
/// URL is.
fn endpoint(at: &RemoteBackend) -> String {
    format!("/v1{}", at.wire.route(&at.card.id).path)
}

fn job_route(id: &str) -> Result<Route> {
    Ok(Route::new(format!("/batches/{}", plain("job", id)?)))
}

#[async_trait]
impl JobApi for OpenAiJobs {
    fn limits(&self) -> BatchLimits {
        BatchLimits::new(50_000, 200_000_000)
    }

    fn item(&self, at: &RemoteBackend, custom_id: String, body: Map<String, Value>) -> Value {
        json!({"custom_id": custom_id, "method": "POST", "url": endpoint(at), "body": body})
    }

    async fn submit(
        &self,
        at: &RemoteBackend,
        label: &str,
        items: Vec<Vec<u8>>,
    ) -> Result<Submission> {
        let file = at.document(upload(label, items)).await?;
        let Some(file_id) = file["id"].as_str() else {
            return Err(at.unexpected("the file's id", &file));
        };
        let job = json!({
            "input_file_id": file_id,
            "endpoint": endpoint(at),
            "completion_window": "24h",
            "metadata": {LABEL: label},
        });
        let call = Call::post(Route::new("/batches"), job.to_string().into_bytes());
        submission(at, at.document(call).await, |job| job["id"].as_str())
    }

    async fn find(&self, at: &RemoteBackend, label: &str) -> Result<BatchLookup> {
        let mut query = format!("limit={PAGE}");
        for _ in 0..MAX_PAGES {
            let page = at.document(Call::get(Route::new("/batches").with_query(query))).await?;
            let Some(jobs) = page["data"].as_array() else {
                return Err(at.unexpected("the list of jobs", &page));
            };
            let found = jobs.iter().find(|job| job["metadata"][LABEL].as_str() == Some(label));
            if let Some(id) = found.and_then(|job| job["id"].as_str()) {
                return Ok(BatchLookup::Found(BatchId(id.to_owned())));
            }
            let last = jobs.last().and_then(|job| job["id"].as_str());
            match last.filter(|_| page["has_more"].as_bool() == Some(true)) {
                Some(last) => query = format!("limit={PAGE}&after={}", plain("job", last)?),
                None => return Ok(BatchLookup::Absent),
            }
        }
        Ok(BatchLookup::Unknown)
    }

    async fn poll(&self, at: &RemoteBackend, id: &str) -> Result<BatchStatus> {
        let job = at.document(Call::get(job_route(id)?)).await?;
        Ok(match job["status"].as_str() {
            Some("completed" | "expired" | "cancelled") => BatchStatus::Ended,
            Some("failed") => BatchStatus::Failed(failure(at, &job)),
            Some(_) => {
                let n = |name| job["request_counts"][name].as_u64().unwrap_or(0);
                BatchStatus::Running { n_done: n("completed") + n("failed"), n_total: n("total") }
            }
            None => return Err(at.unexpected("the job's status", &job)),
        })
    }

    async fn fetch(&self, at: &RemoteBackend, id: &str, join: &mut Join<'_>) -> Result<Missing> {
        let job = at.document(Call::get(job_route(id)?)).await?;
        for file in ["output_file_id", "error_file_id"] {
            let Some(file) = job[file].as_str() else { continue };
            let route = Route::new(format!("/files/{}/content", plain("file", file)?));
            let mut call = Call::get(route);
            call.accept = "application/binary";
            call.max_bytes = MAX_RESULT_BYTES;
            call.patience = Some(TRANSFER_LIMIT);
            let mut lines = Lines::new(at.call(call).await?);
            while let Some(line) = lines.next().await? {
                match &line {
                    Ok(line) => take(line, join),
                    Err(text) => join.stranger(text),
                }
            }
        }
        Ok(match job["status"].as_str() {
            Some("expired") => Missing::Expired,
            Some("cancelled") => Missing::Cancelled,
            _ => Missing::Lost,
        })
    }

    async fn cancel(&self, at: &RemoteBackend, id: &str) -> Result<()> {
        let mut route = job_route(id)?;
        route.path.push_str("/cancel");
        at.document(Call::post_empty(route)).await.map(drop)
    }
}

fn take(line: &Value, join: &mut Join<'_>) {
    let Some(custom_id) = line["custom_id"].as_str() else {
        join.stranger(&line.to_string());
        return;
    };
    let answer = match (&line["error"], line["response"]["status_code"].as_u64()) {
        (error, _) if error["code"] == "batch_expired" => Answer::Error(Missing::Expired.error()),
        (error, _) if error["code"] == "batch_cancelled" => {
            Answer::Error(Missing::Cancelled.error())
        }
        (Value::Null, Some(200..300)) => Answer::Document(&line["response"]["body"]),
        (Value::Null, Some(status)) => {
            let status = u16::try_from(status).unwrap_or(u16::MAX);
            Answer::Refused(status, &line["response"]["body"])
        }
        (Value::Null, None) => Answer::Error(Error::new(
            ErrorKind::Protocol,
            "the job's answer to this request is neither a response nor an error",
        )),
        // It failed without an answer of the model's, and so without a status.
        (error, _) => Answer::Refused(500, error),
    };
    join.take(custom_id, answer);
}

/// Why a job failed as a whole, from the first error that it lists.
fn failure(at: &RemoteBackend, job: &Value) -> Error {
    let first = &job["errors"]["data"][0];
    let kind = match first["code"].as_str() {
        // Too many tokens wait in the account's other jobs.
        Some("token_limit_exceeded") => ErrorKind::RateLimited,
        Some("billing_hard_limit_reached" | "insufficient_quota") => ErrorKind::Quota,
        Some("model_not_found") => ErrorKind::NotFound,
        _ => ErrorKind::InvalidRequest,
    };
    let said = at.excerpt(first["message"].as_str().unwrap_or("no reason was given"));
    let mut error = Error::new(kind, format!("the vendor did not accept the job: {said}"));
    if let Some(code) = first["code"].as_str() {
        error = error.with("code", at.excerpt(code));
    }
    if let Some(line) = first["line"].as_u64() {
        error = error.with("line", line);
    }
    error
}

/// The upload of a file of requests, as `multipart/form-data` (RFC 7578).
fn upload(label: &str, items: Vec<Vec<u8>>) -> Call {
    let mut file = items.join(&b'\n');
    file.push(b'\n');
    // What stands in a file cannot hold the file's own digest.
    let boundary: String =
        Sha256::digest(&file).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; \
         filename=\"{label}.jsonl\"\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(&file);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let mut call = Call::post_empty(Route::new("/files"));
    call.body = Some((format!("multipart/form-data; boundary={boundary}").into(), body));
    call.patience = Some(TRANSFER_LIMIT);
    call
}
