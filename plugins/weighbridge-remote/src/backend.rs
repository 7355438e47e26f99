//! A model behind a server.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use serde_json::{Map, Value};
use weighbridge_core::{
    Backend, BatchJobs, Capabilities, Completion, Dropped, EffectiveParams, EmbedRequest,
    Embedding, Error, ErrorKind, EventSink, ModelCard, Prompt, Request, Result, Retry, StopReason,
    Timings,
};

use crate::batch::JobApi;
use crate::classify::ErrorObject;
use crate::embed;
use crate::emitter::{Emitter, Ending};
use crate::exchange::{Exchange, Head};
use crate::failure::{self, Refusal, by_status};
use crate::governor::{Gate, Permit};
use crate::http::{Call, Http};
use crate::sse::{Frame, SseParser};
use crate::text::MAX_EXCERPT_BYTES;
use crate::verify::Verifier;
use crate::wire::{Decode, Flow, Route, Wire};

/// How much of an error's body is read.
const MAX_ERROR_BODY_BYTES: usize = 64 << 10;
/// Fields of a body that hold the conversation; every other one is a setting.
const CONVERSATION_FIELDS: [&str; 8] = [
    "messages",
    "tools",
    "input",
    "instructions",
    "system",
    "contents",
    "systemInstruction",
    "requests",
];
const EVENT_STREAM: &str = "text/event-stream";

/// One model at one server, spoken to in one protocol.
#[derive(Debug)]
pub(crate) struct RemoteBackend {
    pub(crate) card: ModelCard,
    pub(crate) capabilities: Capabilities,
    pub(crate) http: Arc<Http>,
    pub(crate) wire: Box<dyn Wire>,
    /// The name of the key's secret, for messages.
    pub(crate) key_name: Option<String>,
    /// Every call passes it first.
    pub(crate) gate: Gate,
    /// The vendor's batch jobs, where it has them.
    pub(crate) jobs: Option<&'static dyn JobApi>,
}

/// What an answer came to.
struct Answer {
    ending: Ending,
    is_streamed: bool,
}

#[async_trait]
impl Backend for RemoteBackend {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
        let submitted = Instant::now();
        let dropped = self.capabilities.check(request)?;
        let verifier = Verifier::new(request, &dropped)?;
        let body = self.wire.body(&self.card.id, request, &dropped)?;
        let bytes = json_bytes(&body)?;
        let permit = self.gate.enter(estimated_tokens(&bytes, request.max_tokens)).await?;
        let queue = submitted.elapsed();
        let mut out = Emitter::new(sink, self.http.redactor(), submitted);
        out.effective = effective(body, dropped);
        out.started();
        let mut call = Call::post(self.wire.route(&self.card.id), bytes);
        call.waited = queue;
        let result = match self.converse(request, call, &permit, &verifier, &mut out).await {
            Ok(answer) => Ok(out.completion(
                answer.ending,
                queue,
                answer.is_streamed,
                request.logprobs.is_some(),
            )),
            Err(error) => {
                let error = self.http.redactor().clean(error);
                // What was shown once must not be shown again by a silent repetition.
                Err(if out.has_content() { error.with_retry(Retry::Never) } else { error })
            }
        };
        permit.ended(&result);
        if let Ok(completion) = &result {
            permit.used(&completion.usage);
        }
        result
    }

    async fn embed(&self, request: &EmbedRequest) -> Result<Vec<Embedding>> {
        let submitted = Instant::now();
        let call = self.wire.embed_call(&self.card.id, request);
        let (Some(call), Some(n_dims)) = (call, self.capabilities.embeddings) else {
            return Err(Error::unsupported("embed", "this model is not known to give embeddings")
                .with("model", &self.card.id));
        };
        if request.texts.is_empty() {
            return Ok(Vec::new());
        }
        let (route, body) = call?;
        let answer = self.ask(route, &body).await?;
        let params = effective(body, Vec::new());
        let read = || {
            let mut embeddings = self.wire.embedded(&answer)?;
            embed::check(&embeddings, request.texts.len(), n_dims)?;
            for embedding in &mut embeddings {
                if request.normalize {
                    embed::normalize(&mut embedding.vector)?;
                }
                embedding.timings = Timings::total(submitted.elapsed());
                let told = std::mem::replace(&mut embedding.effective, params.clone());
                embedding.effective.values.extend(told.values);
            }
            Ok(embeddings)
        };
        read().map_err(|error| self.http.redactor().clean(error))
    }

    async fn count_tokens(&self, prompt: &Prompt) -> Result<u64> {
        let call = self.wire.count_call(&self.card.id, prompt);
        let (Some(call), true) = (call, self.capabilities.count_tokens) else {
            return Err(Error::unsupported("count_tokens", "this API does not count tokens")
                .with("model", &self.card.id));
        };
        let (route, body) = call?;
        let answer = self.ask(route, &body).await?;
        self.wire.counted(&answer).ok_or_else(|| {
            let text = self.http.redactor().excerpt(&answer.to_string(), 400);
            Error::new(ErrorKind::Protocol, "the answer holds no number of tokens")
                .with("body", text)
        })
    }

    fn batch(&self) -> Option<&dyn BatchJobs> {
        self.jobs.map(|_| self as &dyn BatchJobs)
    }

    async fn close(&self) -> Result<()> {
        self.gate.close();
        Ok(())
    }
}

impl RemoteBackend {
    /// Asks for one JSON document, under the rules of a generation.
    async fn ask(&self, route: Route, body: &Map<String, Value>) -> Result<Value> {
        let submitted = Instant::now();
        let bytes = json_bytes(body)?;
        let permit = self.gate.enter(estimated_tokens(&bytes, None)).await?;
        let mut call = Call::post(route, bytes);
        call.waited = submitted.elapsed();
        let asked = async {
            let mut exchange = self.http.start(call)?;
            let head = exchange.head().await?;
            permit.told(&head.headers);
            if !head.is_success() {
                let body = exchange.body(MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
                return Err(match by_status(&self.http, &head, &body, self.key_name.as_deref()) {
                    Refusal::Error(error) => error,
                    Refusal::Filtered(code) => Error::new(
                        ErrorKind::InvalidRequest,
                        "the vendor's filter refused the input",
                    )
                    .with("code", code),
                });
            }
            let body = exchange.body(usize::MAX).await?;
            let document = self.whole_document(&body)?;
            match ErrorObject::find(&document) {
                Some(_) => Err(failure::in_document(&document, self.http.redactor())),
                None => Ok(document),
            }
        };
        let result = asked.await.map_err(|error| self.http.redactor().clean(error));
        permit.ended(&result);
        result
    }

    async fn converse(
        &self,
        request: &Request,
        mut call: Call,
        permit: &Permit<'_>,
        verifier: &Verifier,
        out: &mut Emitter<'_>,
    ) -> Result<Answer> {
        let cancelled = Ending { stop_reason: StopReason::Cancelled, raw: None };
        if out.is_stopped() {
            return Ok(Answer { ending: cancelled, is_streamed: false });
        }
        call.accept = "text/event-stream, application/json";
        let mut exchange = self.http.start(call)?;
        let head = exchange.head().await?;
        permit.told(&head.headers);
        if !head.is_success() {
            // A body that breaks off says nothing more than the status did.
            let body = exchange.body(MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
            return match by_status(&self.http, &head, &body, self.key_name.as_deref()) {
                Refusal::Error(error) => Err(error),
                Refusal::Filtered(code) => {
                    let ending = Ending { stop_reason: StopReason::ContentFilter, raw: Some(code) };
                    Ok(Answer { ending, is_streamed: false })
                }
            };
        }
        let mut decoder = self.wire.decoder(request);
        let is_streamed = match &*head.media_type() {
            EVENT_STREAM => {
                self.read_stream(exchange, Vec::new(), &mut *decoder, out).await?;
                true
            }
            media if media == "application/json" || media.ends_with("+json") => {
                self.read_document(&mut exchange, &mut *decoder, out).await?;
                false
            }
            "" => self.read_untyped(exchange, &head, &mut *decoder, out).await?,
            _ => return Err(self.bad_content_type(exchange, &head).await),
        };
        if out.is_stopped() {
            return Ok(Answer { ending: cancelled, is_streamed });
        }
        let ending = verifier.verify(decoder.close(out)?, out)?;
        Ok(Answer { ending, is_streamed })
    }

    /// Reads a stream to the protocol's mark of the end, or to the end of the body. `first` was
    /// read already.
    async fn read_stream(
        &self,
        mut exchange: Exchange,
        first: Vec<u8>,
        decoder: &mut dyn Decode,
        out: &mut Emitter<'_>,
    ) -> Result<()> {
        let mut parser = SseParser::new();
        let mut chunk = bytes::Bytes::from(first);
        loop {
            let mut input = &chunk[..];
            while let Some(frame) = parser.next(&mut input)? {
                let flow = decoder.frame(&frame, out).map_err(|error| placed(error, &frame))?;
                if out.is_stopped() {
                    return Ok(());
                }
                if flow == Flow::End {
                    // Comments may follow; another event may not.
                    if !matches!(parser.next(&mut input), Ok(None)) {
                        out.warning(
                            "data_after_done: data after the end of the answer was ignored",
                        );
                    } else {
                        exchange.finish();
                    }
                    return Ok(());
                }
            }
            match exchange.chunk().await {
                Ok(Some(next)) => chunk = next,
                Ok(None) => break,
                // The answer was whole before its connection failed.
                Err(error) if decoder.is_complete() => {
                    out.warning(format!("failed_after_finish: {}", error.message()));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if !decoder.is_complete() && parser.has_unfinished_event() {
            return Err(Error::new(
                ErrorKind::Truncated,
                "the stream ended in the middle of an event",
            )
            .with_retry(Retry::Safe { after: None }));
        }
        Ok(())
    }

    async fn read_document(
        &self,
        exchange: &mut Exchange,
        decoder: &mut dyn Decode,
        out: &mut Emitter<'_>,
    ) -> Result<()> {
        let body = exchange.body(usize::MAX).await?;
        if decoder.plain_document(&body, out) {
            return Ok(());
        }
        decoder.document(&self.whole_document(&body)?, out)
    }

    fn whole_document(&self, body: &[u8]) -> Result<Value> {
        serde_json::from_slice(body).map_err(|error| {
            let kind = if error.is_eof() { ErrorKind::Truncated } else { ErrorKind::Protocol };
            let text = String::from_utf8_lossy(body);
            Error::new(kind, "the answer is not a whole JSON document")
                .with("body", self.http.redactor().excerpt(text.trim(), 400))
                .with_source(error)
                .with_retry(Retry::Safe { after: None })
        })
    }

    /// An answer without a media type is what its first byte says.
    async fn read_untyped(
        &self,
        mut exchange: Exchange,
        head: &Head,
        decoder: &mut dyn Decode,
        out: &mut Emitter<'_>,
    ) -> Result<bool> {
        let first = exchange.chunk().await?.unwrap_or_default().to_vec();
        match first.first() {
            Some(b'd' | b'e' | b':' | b'i' | 0xEF | b'\r' | b'\n') => {
                self.read_stream(exchange, first, decoder, out).await?;
                Ok(true)
            }
            Some(b'{' | b'[') => {
                let rest = exchange.body(usize::MAX).await?;
                decoder.document(&self.whole_document(&[first, rest].concat())?, out)?;
                Ok(false)
            }
            _ => Err(self.bad_content_type(exchange, head).await),
        }
    }

    async fn bad_content_type(&self, mut exchange: Exchange, head: &Head) -> Error {
        let body = exchange.body(MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&body);
        let redactor = self.http.redactor();
        let content_type = head.header("content-type").unwrap_or("none");
        Error::new(
            ErrorKind::Transport,
            format!(
                "bad content type: {} answered {} with `{}` where a model's answer was expected; a \
                 proxy or login page may be in the way, or the URL is not the API's",
                self.http.address().authority(),
                head.status,
                redactor.excerpt(content_type, 100),
            ),
        )
        .with("body", redactor.excerpt(text.trim(), MAX_EXCERPT_BYTES))
        .with_retry(Retry::Safe { after: None })
    }
}

/// Damage with the place of its event in the stream.
fn placed(error: Error, frame: &Frame) -> Error {
    if error.kind() == ErrorKind::Protocol && error.context("offset").is_none() {
        return error.with("offset", frame.offset);
    }
    error
}

fn json_bytes(body: &Map<String, Value>) -> Result<Vec<u8>> {
    serde_json::to_vec(body).map_err(|error| {
        Error::new(ErrorKind::InvalidRequest, "the request is not JSON").with_source(error)
    })
}

/// What servers count before they compute: the prompt, roughly, and all that may be generated.
fn estimated_tokens(body: &[u8], max_tokens: Option<u32>) -> u64 {
    body.len() as u64 / 4 + u64::from(max_tokens.unwrap_or(0))
}

/// Every setting that was sent, apart from the conversation itself.
pub(crate) fn effective(mut body: Map<String, Value>, dropped: Vec<Dropped>) -> EffectiveParams {
    body.retain(|name, _| !CONVERSATION_FIELDS.contains(&name.as_str()));
    let mut effective = EffectiveParams::new();
    effective.values = body;
    effective.dropped = dropped;
    effective
}
