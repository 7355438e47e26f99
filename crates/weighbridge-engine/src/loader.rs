//! How an engine and its texts come into being on the model's own thread.

use std::fmt;
use std::sync::Arc;

use weighbridge_core::{ModelCard, OpenContext, Result};

use crate::logits::LogitsEngine;
use crate::tokens::{TokenEncoder, TokenTable};

/// Everything about a model's text that the decode loop needs; the same for every engine.
#[derive(Clone)]
pub struct TextModel {
    /// What the model is.
    pub card: ModelCard,
    /// Bytes and kind of every token.
    pub table: Arc<TokenTable>,
    /// Text to tokens.
    pub encoder: Arc<dyn TokenEncoder>,
    /// The chat template's source, as the model's files have it; `None`: no chat prompts.
    pub chat_template: Option<String>,
}

impl fmt::Debug for TextModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextModel").field("card", &self.card).finish_non_exhaustive()
    }
}

/// Loads a model on the thread that will own it.
///
/// `run` loads, calls `serve` once with what it loaded, and frees everything after `serve`
/// returned. So an engine whose context borrows its model keeps both in the stack frame of `run`
/// and needs no unsafe code.
pub trait EngineLoader: Send {
    /// Loads and serves.
    ///
    /// # Errors
    /// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) and others, before `serve` is called.
    fn run(
        self: Box<Self>,
        context: &OpenContext,
        serve: &mut dyn FnMut(TextModel, &mut dyn LogitsEngine),
    ) -> Result<()>;
}
