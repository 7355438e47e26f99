//! A model behind a server.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use serde_json::{Map, Value};
use weighbridge_core::{
    Backend, Capabilities, Completion, Dropped, EffectiveParams, Error, ErrorKind, EventSink,
    ModelCard, Request, Result, Retry, StopReason,
};

use crate::emitter::{Emitter, Ending};
use crate::exchange::{Exchange, Head};
use crate::failure::{Refusal, by_status};
use crate::governor::{Gate, Permit};
use crate::http::{Call, Http};
use crate::sse::SseParser;
use crate::text::MAX_EXCERPT_BYTES;
use crate::wire::{Decode, Flow, Wire};

/// How much of an error's body is read.
const MAX_ERROR_BODY_BYTES: usize = 64 << 10;
/// Fields of a body that hold the conversation; every other one is a setting.
const CONVERSATION_FIELDS: [&str; 7] =
    ["messages", "tools", "input", "instructions", "system", "contents", "systemInstruction"];
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
        let body = self.wire.body(&self.card.id, request, &dropped)?;
        let bytes = serde_json::to_vec(&body).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, "the request is not JSON").with_source(error)
        })?;
        let permit = self.gate.enter(estimated_tokens(&bytes, request)).await?;
        let queue = submitted.elapsed();
        let mut out = Emitter::new(sink, self.http.redactor(), submitted);
        out.effective = effective(&body, dropped);
        out.started();
        let mut call = Call::post(self.wire.route(&self.card.id), bytes);
        call.waited = queue;
        let result = match self.converse(request, call, &permit, &mut out).await {
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

    async fn close(&self) -> Result<()> {
        self.gate.close();
        Ok(())
    }
}

impl RemoteBackend {
    async fn converse(
        &self,
        request: &Request,
        mut call: Call,
        permit: &Permit<'_>,
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
        let is_streamed = match head.media_type().as_str() {
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
        let ending = decoder.close(out)?;
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
                let flow = decoder.frame(&frame, out)?;
                if out.is_stopped() {
                    return Ok(());
                }
                if flow == Flow::End {
                    if input.iter().any(|b| !matches!(b, b'\r' | b'\n')) {
                        out.warning("data_after_done: data after [DONE] was ignored");
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
        let document: Value = serde_json::from_slice(&body).map_err(|error| {
            let kind = if error.is_eof() { ErrorKind::Truncated } else { ErrorKind::Protocol };
            let text = String::from_utf8_lossy(&body);
            Error::new(kind, "the answer is not a whole JSON document")
                .with("body", out.excerpt(text.trim(), MAX_EXCERPT_BYTES.min(400)))
                .with_source(error)
                .with_retry(Retry::Safe { after: None })
        })?;
        decoder.document(&document, out)
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
            Some(b'{') => {
                let rest = exchange.body(usize::MAX).await?;
                let body = [first, rest].concat();
                let document: Value = serde_json::from_slice(&body).map_err(|error| {
                    Error::new(ErrorKind::Truncated, "the answer is not a whole JSON document")
                        .with_source(error)
                })?;
                decoder.document(&document, out)?;
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

/// What servers count before they compute: the prompt, roughly, and all that may be generated.
fn estimated_tokens(body: &[u8], request: &Request) -> u64 {
    body.len() as u64 / 4 + u64::from(request.max_tokens.unwrap_or(0))
}

/// Every setting that was sent, apart from the conversation itself.
fn effective(body: &Map<String, Value>, dropped: Vec<Dropped>) -> EffectiveParams {
    let mut effective = EffectiveParams::new();
    effective.dropped = dropped;
    effective.values = body
        .iter()
        .filter(|(name, _)| !CONVERSATION_FIELDS.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    effective
}
