//! Anthropic's Message Batches: requests inline, answers as JSON lines.
//!
//! Shapes as in `anthropic` 2.12 for Python (`types/messages/message_batch*.py`). A job has no
//! place for a label of ours, so none can be found by it.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use url::Url;
use weighbridge_core::{
    BatchLimits, BatchLookup, BatchStatus, Error, ErrorKind, Result, Submission,
};

use crate::backend::RemoteBackend;
use crate::http::Call;
use crate::wire::Route;

use super::ids::plain;
use super::join::{Answer, Join, Missing};
use super::lines::Lines;
use super::{JobApi, MAX_RESULT_BYTES, TRANSFER_LIMIT, submission};

/// Jobs of Anthropic.
#[derive(Debug)]
pub(super) struct AnthropicJobs;

fn job_route(id: &str) -> Result<Route> {
    Ok(Route::new(format!("/messages/batches/{}", plain("job", id)?)))
}

#[async_trait]
impl JobApi for AnthropicJobs {
    fn limits(&self) -> BatchLimits {
        BatchLimits::new(100_000, 256_000_000)
    }

    fn item(&self, _: &RemoteBackend, custom_id: String, body: Map<String, Value>) -> Value {
        json!({"custom_id": custom_id, "params": body})
    }

    async fn submit(
        &self,
        at: &RemoteBackend,
        _label: &str,
        items: Vec<Vec<u8>>,
    ) -> Result<Submission> {
        let body = [b"{\"requests\":[", &items.join(&b',')[..], b"]}"].concat();
        let mut call = Call::post(Route::new("/messages/batches"), body);
        call.patience = Some(TRANSFER_LIMIT);
        submission(at, at.document(call).await, |job| job["id"].as_str())
    }

    async fn find(&self, _: &RemoteBackend, _label: &str) -> Result<BatchLookup> {
        Ok(BatchLookup::Unknown)
    }

    async fn poll(&self, at: &RemoteBackend, id: &str) -> Result<BatchStatus> {
        let job = at.document(Call::get(job_route(id)?)).await?;
        Ok(match job["processing_status"].as_str() {
            Some("ended") => BatchStatus::Ended,
            Some(_) => {
                let n = |name| job["request_counts"][name].as_u64().unwrap_or(0);
                let n_done = n("succeeded") + n("errored") + n("canceled") + n("expired");
                BatchStatus::Running { n_done, n_total: n_done + n("processing") }
            }
            None => return Err(at.unexpected("the job's processing_status", &job)),
        })
    }

    async fn fetch(&self, at: &RemoteBackend, id: &str, join: &mut Join<'_>) -> Result<Missing> {
        let job = at.document(Call::get(job_route(id)?)).await?;
        let Some(url) = job["results_url"].as_str() else {
            let why = match job["archived_at"].as_str() {
                Some(at) => format!("the vendor archived the job's answers at {at}"),
                None => "the job has no answers to fetch yet".to_owned(),
            };
            return Err(Error::new(ErrorKind::NotFound, at.excerpt(&why)));
        };
        let mut call = Call::get(own_route(at, url)?);
        call.accept = "application/binary";
        call.max_bytes = MAX_RESULT_BYTES;
        call.patience = Some(TRANSFER_LIMIT);
        let mut lines = Lines::new(at.call(call).await?);
        while let Some(line) = lines.next().await? {
            match &line {
                Ok(line) => take(at, line, join),
                Err(text) => join.stranger(text),
            }
        }
        Ok(Missing::Lost)
    }

    async fn cancel(&self, at: &RemoteBackend, id: &str) -> Result<()> {
        let mut route = job_route(id)?;
        route.path.push_str("/cancel");
        at.document(Call::post_empty(route)).await.map(drop)
    }
}

/// The route of a URL that the vendor gave. The key goes with the call, so it must lie below the
/// base URL that the key was opened for.
fn own_route(at: &RemoteBackend, url: &str) -> Result<Route> {
    let base = at.http.address().join(&Route::new(""));
    let denied = |place: &str| {
        let own = at.http.address().authority();
        Err(Error::new(
            ErrorKind::EgressDenied,
            format!("the job's answers are said to be at {place}; only {own} is asked for them"),
        ))
    };
    let Ok(url) = Url::parse(url) else { return denied("something that is not a URL") };
    if url.origin() != base.origin() || !url.username().is_empty() || url.password().is_some() {
        return denied(&at.excerpt(&url.origin().ascii_serialization()));
    }
    let Some(path) = url.path().strip_prefix(base.path().trim_end_matches('/')) else {
        return denied("another path of its host");
    };
    let route = Route::new(path);
    Ok(match url.query() {
        Some(query) => route.with_query(query),
        None => route,
    })
}

fn take(at: &RemoteBackend, line: &Value, join: &mut Join<'_>) {
    let Some(custom_id) = line["custom_id"].as_str() else {
        join.stranger(&line.to_string());
        return;
    };
    let result = &line["result"];
    let answer = match result["type"].as_str() {
        Some("succeeded") => Answer::Document(&result["message"]),
        Some("errored") => Answer::Refused(status(&result["error"]), &result["error"]),
        Some("expired") => Answer::Error(Missing::Expired.error()),
        Some("canceled") => Answer::Error(Missing::Cancelled.error()),
        _ => Answer::Error(at.unexpected("a result of a known type", result)),
    };
    join.take(custom_id, answer);
}

/// The HTTP status that goes with an error's type, by Anthropic's table of errors.
fn status(error: &Value) -> u16 {
    match error["error"]["type"].as_str() {
        Some("invalid_request_error") => 400,
        Some("authentication_error") => 401,
        Some("billing_error") => 402,
        Some("permission_error") => 403,
        Some("not_found_error") => 404,
        Some("request_too_large") => 413,
        Some("rate_limit_error") => 429,
        Some("timeout_error") => 504,
        Some("overloaded_error") => 529,
        _ => 500,
    }
}
