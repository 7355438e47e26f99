//! Answers joined to requests by id.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde_json::Value;
use weighbridge_core::{
    BatchAnswers, BatchRequest, BatchResult, Completion, Error, ErrorKind, Event, Request, Result,
    Retry, StopReason, Timings,
};

use crate::backend::{RemoteBackend, effective};
use crate::classify::{Class, ErrorObject, classify};
use crate::emitter::{Emitter, Ending};
use crate::verify::Verifier;

use super::ids::custom_id;

/// Why a request of a job has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The vendor says that it is through with the job.
    Lost,
    /// The job expired.
    Expired,
    /// The job was cancelled.
    Cancelled,
}

impl Missing {
    pub(super) fn error(self) -> Error {
        match self {
            Self::Lost => Error::new(
                ErrorKind::Truncated,
                "the job ended, and its answers have none to this request; it may have been billed",
            ),
            Self::Expired => Error::new(
                ErrorKind::Timeout,
                "the job expired before the vendor came to this request",
            )
            .with("phase", "batch"),
            Self::Cancelled => Error::new(
                ErrorKind::Cancelled,
                "the job was cancelled before the vendor came to this request",
            ),
        }
    }
}

/// What the vendor says about one request.
pub(super) enum Answer<'v> {
    /// The document that a call of its own would have got.
    Document(&'v Value),
    /// An error, with the HTTP status that it has or that its code stands for.
    Refused(u16, &'v Value),
    /// No answer.
    Error(Error),
}

/// Collects the answers of a job.
pub(crate) struct Join<'a> {
    at: &'a RemoteBackend,
    requests: &'a [BatchRequest],
    idx_of: HashMap<String, usize>,
    results: Vec<Option<Result<Completion>>>,
    strangers: Vec<String>,
    n_strangers: usize,
}

/// So many of them are named in a warning.
const MAX_NAMED: usize = 3;

impl<'a> Join<'a> {
    pub(super) fn new(at: &'a RemoteBackend, requests: &'a [BatchRequest]) -> Self {
        let ids = requests.iter().enumerate();
        Self {
            at,
            requests,
            idx_of: ids.map(|(idx, request)| (custom_id(&request.id), idx)).collect(),
            results: requests.iter().map(|_| None).collect(),
            strangers: Vec::new(),
            n_strangers: 0,
        }
    }

    /// Takes what the vendor says under that id.
    pub(super) fn take(&mut self, custom_id: &str, answer: Answer<'_>) {
        let Some(&idx) = self.idx_of.get(custom_id) else {
            self.stranger(custom_id);
            return;
        };
        let result = match self.results[idx] {
            // Which of them is the model's cannot be told.
            Some(_) => Err(Error::new(
                ErrorKind::Protocol,
                "the vendor answered this request of the job more than once",
            )),
            None => self.read(&self.requests[idx].request, answer),
        };
        self.results[idx] = Some(result.map_err(|error| self.at.clean(error)));
    }

    /// Takes something that names no request.
    pub(super) fn stranger(&mut self, text: &str) {
        self.n_strangers += 1;
        if self.strangers.len() < MAX_NAMED {
            self.strangers.push(format!("`{}`", self.at.excerpt(text)));
        }
    }

    pub(super) fn finish(self, missing: Missing) -> BatchAnswers {
        let mut warnings = Vec::new();
        if self.n_strangers > 0 {
            warnings.push(format!(
                "{} answers of the job belong to none of its requests and were ignored: {}{}",
                self.n_strangers,
                self.strangers.join(", "),
                if self.n_strangers > MAX_NAMED { ", …" } else { "" }
            ));
        }
        let results = self.requests.iter().zip(self.results).map(|(request, result)| {
            BatchResult::new(&request.id, result.unwrap_or_else(|| Err(missing.error())))
        });
        BatchAnswers::new(results.collect(), warnings)
    }

    fn read(&self, request: &Request, answer: Answer<'_>) -> Result<Completion> {
        let refused = match answer {
            Answer::Document(document) => return self.decode(request, Some(document), None),
            Answer::Error(error) => return Err(error),
            Answer::Refused(status, body) => (ErrorObject::find_in_error_body(body), status, body),
        };
        let (object, status, body) = refused;
        let word = object.as_ref().and_then(|o| o.code.clone().or_else(|| o.kind.clone()));
        let (kind, is_retryable) = match classify(Some(status), object.as_ref()) {
            Class::Error { kind, is_retryable } => (kind, is_retryable),
            Class::Filtered => {
                let ending = Ending { stop_reason: StopReason::ContentFilter, raw: word };
                return self.decode(request, None, Some(ending));
            }
        };
        let said = object.and_then(|o| o.message).unwrap_or_else(|| body.to_string());
        let said = self.at.excerpt(&said);
        let mut error =
            Error::new(kind, format!("the vendor did not answer this request of the job: {said}"));
        if let Some(word) = word {
            error = error.with("code", self.at.excerpt(&word));
        }
        Err(if is_retryable { error.with_retry(Retry::Safe { after: None }) } else { error })
    }

    /// What the wire reads in a document, or an ending without one.
    fn decode(
        &self,
        request: &Request,
        document: Option<&Value>,
        ending: Option<Ending>,
    ) -> Result<Completion> {
        let (body, dropped) = self.at.job_body(request)?;
        let mut nobody = |_: Event<'_>| ControlFlow::Continue(());
        let mut out = Emitter::new(&mut nobody, self.at.http.redactor(), Instant::now());
        let verifier = Verifier::new(request, &dropped)?;
        out.effective = effective(body, dropped);
        let mut decoder = self.at.wire.decoder(request);
        if let Some(document) = document {
            decoder.document(document, &mut out)?;
        }
        let ending = match ending {
            Some(ending) => ending,
            None => verifier.verify(decoder.close(&mut out)?, &mut out)?,
        };
        let mut completion =
            out.completion(ending, Duration::ZERO, false, request.logprobs.is_some());
        completion.timings = Timings::default();
        Ok(completion)
    }
}
