//! A context that turns a text's tokens into one vector.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use weighbridge_core::{Error, ErrorKind, Result};

use crate::decoder::with_log;
use crate::native;

/// One context for one text at a time. A text is computed as a whole, because pooling and attention
/// in both directions need all of it at once.
pub(crate) struct Embedder<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    n_ctx: u32,
    n_vocab: u32,
    /// Whether the model only encodes and keeps nothing.
    is_encoder: bool,
    before: Vec<u32>,
    after: Vec<u32>,
}

impl<'m> Embedder<'m> {
    /// `marks` are what the model puts before and after a text.
    pub(crate) fn new(
        context: LlamaContext<'m>,
        n_vocab: u32,
        is_encoder: bool,
        marks: (Vec<u32>, Vec<u32>),
    ) -> Self {
        let n_ctx = context.n_ubatch();
        let batch = LlamaBatch::new(n_ctx as usize, 1);
        Self { context, batch, n_ctx, n_vocab, is_encoder, before: marks.0, after: marks.1 }
    }

    /// The vector of a text as the model gives it, not normalised, shape `(n_embd_out,)`.
    pub(crate) fn embed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let before = if tokens.starts_with(&self.before) { &[] } else { self.before.as_slice() };
        let after = if tokens.ends_with(&self.after) { &[] } else { self.after.as_slice() };
        let n_tokens = before.len() + tokens.len() + after.len();
        if n_tokens == 0 {
            return Err(Error::new(ErrorKind::InvalidRequest, "the text has no tokens"));
        }
        if n_tokens > self.n_ctx as usize {
            return Err(Error::new(
                ErrorKind::ContextOverflow,
                "the text is longer than the context; shorten it, or open the model with a larger \
                 `n_ctx` if it has one",
            )
            .with("n_tokens", n_tokens)
            .with("n_ctx", self.n_ctx));
        }
        if let Some(token) = tokens.iter().find(|token| **token >= self.n_vocab) {
            return Err(Error::new(ErrorKind::Engine, format!("token id {token} is out of range"))
                .with("must_be_below", self.n_vocab));
        }
        self.batch.clear();
        for (pos, token) in before.iter().chain(tokens).chain(after).enumerate() {
            self.batch.add(LlamaToken(*token as i32), pos as i32, &[0], true).map_err(|error| {
                Error::new(ErrorKind::Engine, "the batch is full").with_source(error)
            })?;
        }
        let computed = self.compute();
        if !self.is_encoder {
            self.context.clear_kv_cache();
        }
        computed
    }

    fn compute(&mut self) -> Result<Vec<f32>> {
        native::take_log();
        let outcome = match self.is_encoder {
            true => self.context.encode(&mut self.batch).map_err(|error| error.to_string()),
            false => self.context.decode(&mut self.batch).map_err(|error| error.to_string()),
        };
        let failed = |why: String| {
            let error =
                Error::new(ErrorKind::Engine, format!("the text could not be embedded: {why}"));
            with_log(error, &native::take_log())
        };
        outcome.map_err(failed)?;
        let vector =
            self.context.embeddings_seq_ith(0).map_err(|error| failed(error.to_string()))?;
        Ok(vector.to_vec())
    }
}
