//! What tells one vendor's protocol from another's: the body it takes and the answers it gives.
//! Connections, deadlines, framing and events are the same for all of them.

use std::fmt;

use serde_json::{Map, Value};
use weighbridge_core::{Capabilities, Dropped, Request, Result};

use crate::emitter::{Emitter, Ending};
use crate::sse::Frame;

/// A protocol.
pub(crate) trait Wire: fmt::Debug + Send + Sync {
    /// The route of a generation, below the base URL.
    fn route(&self) -> &'static str;

    /// What every model behind this protocol can be asked.
    fn capabilities(&self) -> Capabilities;

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
