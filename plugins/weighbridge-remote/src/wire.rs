//! What tells one vendor's protocol from another's: the body it takes and the answers it gives.
//! Connections, deadlines, framing and events are the same for all of them.

use std::fmt;

use serde_json::{Map, Value};
use weighbridge_core::{
    Capabilities, Dropped, EmbedRequest, Embedding, Error, ErrorKind, Prompt, Request,
    RequestOption, Result,
};

use crate::emitter::{Emitter, Ending};
use crate::sse::Frame;

/// A route below the base URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Begins with a slash; needs no encoding.
    pub(crate) path: String,
    /// Without the question mark. Never holds a key.
    pub(crate) query: Option<String>,
    /// Beside the base rather than below it: a last `/v1` of the base does not count.
    pub(crate) is_beside: bool,
}

impl Route {
    pub(crate) fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), query: None, is_beside: false }
    }

    /// A route of the server's own API, which lies beside the one at `/v1`.
    pub(crate) fn beside(path: impl Into<String>) -> Self {
        Self { is_beside: true, ..Self::new(path) }
    }

    #[must_use]
    pub(crate) fn with_query(mut self, query: impl Into<String>) -> Self {
        self.query = Some(query.into());
        self
    }
}

/// What a server tells of one of its models. What it does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Listed {
    pub(crate) id: String,
    pub(crate) n_ctx: Option<u32>,
    pub(crate) n_params: Option<u64>,
    pub(crate) quantization: Option<String>,
    pub(crate) license: Option<String>,
    /// Lower-case hex SHA-256 of the weights.
    pub(crate) weights_sha256: Option<String>,
    /// Name and version of the engine behind the server.
    pub(crate) engine: Option<(String, String)>,
    /// The weights lie in a file of the server.
    pub(crate) has_weights: bool,
    /// Another host computes.
    pub(crate) remote_host: Option<String>,
    pub(crate) takes_images: Option<bool>,
    /// Size of its embeddings.
    pub(crate) n_dims: Option<u32>,
}

impl Listed {
    /// A model of which nothing but its name is known.
    pub(crate) fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), ..Self::default() }
    }
}

/// A question about one model: a route, and the body if it is posted.
pub(crate) type DetailsCall = (Route, Option<Value>);

/// Part of a server's list of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) models: Vec<Listed>,
    /// Where the next part begins, in the vendor's word.
    pub(crate) next: Option<String>,
}

/// The error for an event of a stream that is not JSON.
pub(crate) fn not_json(frame: &Frame, error: serde_json::Error, out: &Emitter<'_>) -> Error {
    const MAX_BYTES: usize = 200;
    Error::new(ErrorKind::Protocol, "an event of the stream is not JSON")
        .with("offset", frame.offset)
        .with("data", out.excerpt(&frame.data, MAX_BYTES))
        .with_source(error)
}

/// A protocol.
pub(crate) trait Wire: fmt::Debug + Send + Sync {
    /// The route of a generation.
    fn route(&self, model: &str) -> Route;

    /// The route of the list of models, from `next` of the page before.
    fn models_route(&self, next: Option<&str>) -> Route {
        let _ = next;
        Route::new("/models")
    }

    /// Reads a part of the list of models; `None` if it is none.
    fn models(&self, document: &Value) -> Option<Page> {
        let ids = document["data"].as_array()?.iter().filter_map(|model| model["id"].as_str());
        Some(Page { models: ids.map(Listed::new).collect(), next: None })
    }

    /// The call that tells of one model what the list does not; `None` where there is none.
    fn details_call(&self, model: &str) -> Option<DetailsCall> {
        let _ = model;
        None
    }

    /// Adds what the answer to a [`details_call`](Self::details_call) tells.
    fn add_details(&self, listed: &mut Listed, answer: &Value) {
        let _ = (listed, answer);
    }

    /// What a model behind this protocol can be asked, as far as its name tells.
    fn capabilities(&self, model: &str) -> Capabilities;

    /// The body of a generation. Options in `dropped` are left out.
    ///
    /// # Errors
    /// `Unsupported` or `InvalidRequest` for what the protocol has no words for.
    fn body(
        &self,
        model: &str,
        request: &Request,
        dropped: &[Dropped],
    ) -> Result<Map<String, Value>>;

    /// A decoder for the answer to one request.
    fn decoder(&self, request: &Request) -> Box<dyn Decode>;

    /// Route and body of a call that counts a prompt's tokens; `None` where there is no such call.
    /// A wire that has one says so in [`capabilities`](Self::capabilities).
    fn count_call(
        &self,
        model: &str,
        prompt: &Prompt,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let _ = (model, prompt);
        None
    }

    /// The number of tokens in the answer to a [`count_call`](Self::count_call).
    fn counted(&self, answer: &Value) -> Option<u64> {
        let _ = answer;
        None
    }

    /// The length of a model's embeddings, where it is known without asking.
    fn embedding_size(&self, model: &str) -> Option<u32> {
        let _ = model;
        None
    }

    /// Route and body of a call that embeds texts; `None` where there is no such call.
    fn embed_call(
        &self,
        model: &str,
        request: &EmbedRequest,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let _ = (model, request);
        None
    }

    /// The embeddings in the answer to an [`embed_call`](Self::embed_call), in the order of the
    /// texts.
    ///
    /// # Errors
    /// `Protocol` for a damaged answer.
    fn embedded(&self, answer: &Value) -> Result<Vec<Embedding>> {
        let _ = answer;
        Err(Error::unsupported("embed", "this protocol gives no embeddings"))
    }
}

/// Adds a caller's verbatim fields to a body. Objects are merged field by field; any other value
/// replaces what was there.
pub(crate) fn add_verbatim(body: &mut Map<String, Value>, fields: &Map<String, Value>) {
    for (name, value) in fields {
        match (body.get_mut(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => add_verbatim(old, new),
            _ => {
                body.insert(name.clone(), value.clone());
            }
        }
    }
}

/// A value as part of a query.
pub(crate) fn in_query(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Log-probabilities that were asked for and did not come are an option that was not honoured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskedLogprobs {
    asked: Option<u8>,
    is_wish: bool,
}

impl AskedLogprobs {
    pub(crate) fn new(request: &Request) -> Self {
        let is_wish = request.wishes.contains(&RequestOption::Logprobs);
        Self { asked: request.logprobs, is_wish }
    }

    /// # Errors
    /// `Unsupported` where they are missing and were not just a wish.
    pub(crate) fn check(self, out: &mut Emitter<'_>) -> Result<()> {
        let Some(asked) = self.asked else { return Ok(()) };
        if !out.collected_logprobs().is_empty() || out.collected_text().is_empty() {
            return Ok(());
        }
        if self.is_wish {
            out.warning("logprobs_missing: the server sent none");
            return Ok(());
        }
        Err(Error::unsupported(
            "logprobs",
            format!("{asked} were asked for and the server sent its answer without any"),
        ))
    }
}

/// Whether a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// More is to come.
    More,
    /// The protocol's own mark of the end.
    End,
}

/// Reads the answer to one request.
pub(crate) trait Decode: Send {
    /// Takes one event of a stream.
    ///
    /// # Errors
    /// `Protocol` for damaged data; the vendor's error where the event is one.
    fn frame(&mut self, frame: &Frame, out: &mut Emitter<'_>) -> Result<Flow>;

    /// Takes an answer that came as one document if it can be read without a tree of its values;
    /// `false` if not, and then nothing of it was taken.
    fn plain_document(&mut self, json: &[u8], out: &mut Emitter<'_>) -> bool {
        let _ = (json, out);
        false
    }

    /// Takes an answer that came as one document.
    ///
    /// # Errors
    /// As [`frame`](Self::frame).
    fn document(&mut self, document: &Value, out: &mut Emitter<'_>) -> Result<()>;

    /// Whether the answer is whole by the protocol's completion rule.
    fn is_complete(&self) -> bool;

    /// The end of an answer.
    ///
    /// # Errors
    /// `Truncated` if it is not complete.
    fn close(&mut self, out: &mut Emitter<'_>) -> Result<Ending>;
}
