//! The decoder as a [`LogitsEngine`]: sequences, limits, and the bookkeeping between feeds.

use weighbridge_core::{Error, ErrorKind, OpenContext, Result};
use weighbridge_engine::logits::{
    Batching, EngineCaps, Fork, Input, Interrupt, LogitsEngine, RowSink, SeqId, SnapshotKind, Span,
    Truncate,
};

use crate::cache::Cache;
use crate::decoder::{Decoder, Segment};
use crate::files::ModelFiles;
use crate::weights::Reader;

/// Sequences that can live at once.
pub(crate) const MAX_SEQS: u32 = 16;
/// Positions of one feed.
const MAX_FEED: u32 = 512;
/// Rows of logits of one feed.
const MAX_ROWS: u32 = 256;
/// Memory for keys and values of all sequences together, unless a single one needs more.
const KV_BUDGET_BYTES: usize = 1 << 30;

/// A loaded model that turns tokens into logits, in `f32` on the CPU.
#[derive(Debug)]
pub struct CandleEngine {
    decoder: Decoder,
    caches: Vec<Cache>,
    caps: EngineCaps,
}

impl CandleEngine {
    /// Loads the weights of files that were looked at. Reports progress through `context` and
    /// stops between tensors when it is cancelled. `start` is the progress already made.
    ///
    /// # Errors
    /// [`ModelLoad`](ErrorKind::ModelLoad) for weights that cannot be used;
    /// [`Cancelled`](ErrorKind::Cancelled).
    pub fn load(
        files: &mut ModelFiles,
        n_ctx: u32,
        context: &OpenContext,
        start: f32,
    ) -> Result<Self> {
        let config = files.config().clone();
        let mut reader = Reader::new(files.weights(), context, start);
        let decoder = Decoder::load(&config, n_ctx as usize, &mut reader)?;
        let shape = decoder.cache_shape();
        let affordable = KV_BUDGET_BYTES / shape.n_bytes().max(1);
        let affordable = u32::try_from(affordable).unwrap_or(u32::MAX);
        let caps = EngineCaps {
            n_vocab: config.vocab_size as u32,
            max_seqs: MAX_SEQS,
            ctx_total: n_ctx.saturating_mul(MAX_SEQS).min(affordable.max(n_ctx)),
            ctx_per_seq: n_ctx,
            max_feed: MAX_FEED,
            max_rows: MAX_ROWS,
            batching: Batching::Ragged,
            truncate: Truncate::Any,
            fork: Fork::Copy,
            snapshot: SnapshotKind::No,
            all_rows: true,
            interrupt: Interrupt::BetweenSteps,
            n_embd_input: None,
            n_embd_output: None,
        };
        let caches = (0..MAX_SEQS).map(|_| Cache::new(shape)).collect();
        Ok(Self { decoder, caches, caps })
    }

    fn cache(&mut self, seq: SeqId) -> Result<&mut Cache> {
        self.caches.get_mut(seq.0 as usize).ok_or_else(|| limit("sequence", seq.0, MAX_SEQS))
    }

    /// The spans as parts of a batch, if every rule holds.
    fn checked<'a>(&self, spans: &'a [Span<'_>]) -> Result<Vec<Segment<'a>>> {
        let caps = &self.caps;
        let mut parts = Vec::with_capacity(spans.len());
        let (mut n_positions, mut n_rows) = (0u64, 0u64);
        for span in spans {
            let Input::Tokens(tokens) = span.tokens else {
                return Err(Error::unsupported("embeddings", "candle takes tokens only"));
            };
            let cache_idx = span.seq.0 as usize;
            let Some(cache) = self.caches.get(cache_idx) else {
                return Err(limit("sequence", span.seq.0, caps.max_seqs));
            };
            if parts.iter().any(|part: &Segment<'_>| part.cache_idx == cache_idx) {
                return Err(Error::new(ErrorKind::Engine, "a sequence has two spans in one feed")
                    .with("seq", span.seq.0));
            }
            if span.pos as usize != cache.len() {
                return Err(Error::new(
                    ErrorKind::Engine,
                    "a span does not start where its sequence ends",
                )
                .with("seq", span.seq.0)
                .with("pos", span.pos)
                .with("len", cache.len()));
            }
            if cache.len() + tokens.len() > caps.ctx_per_seq as usize {
                return Err(Error::new(
                    ErrorKind::Engine,
                    "a sequence would exceed the context; open the model with a larger `n_ctx`",
                )
                .with("n_positions", cache.len() + tokens.len())
                .with("n_ctx", caps.ctx_per_seq));
            }
            if let Some(token) = tokens.iter().find(|token| **token >= caps.n_vocab) {
                return Err(limit("token id", *token, caps.n_vocab));
            }
            let first_wanted = span.want.first(tokens.len());
            n_positions += tokens.len() as u64;
            n_rows += (tokens.len() - first_wanted) as u64;
            parts.push(Segment { cache_idx, tokens, first_wanted });
        }
        let n_held: u64 = self.caches.iter().map(|cache| cache.len() as u64).sum();
        for (what, n, most) in [
            ("positions in one feed", n_positions, caps.max_feed),
            ("rows in one feed", n_rows, caps.max_rows),
            ("positions of all sequences", n_held + n_positions, caps.ctx_total),
        ] {
            if n > u64::from(most) {
                return Err(Error::new(ErrorKind::Engine, format!("too many {what}"))
                    .with("n", n)
                    .with("most", most));
            }
        }
        Ok(parts)
    }
}

fn limit(what: &str, id: u32, below: u32) -> Error {
    Error::new(ErrorKind::Engine, format!("{what} {id} is out of range"))
        .with("id", id)
        .with("must_be_below", below)
}

impl LogitsEngine for CandleEngine {
    fn caps(&self) -> &EngineCaps {
        &self.caps
    }

    fn feed(&mut self, spans: &[Span<'_>], rows: &mut dyn RowSink) -> Result<()> {
        let parts = self.checked(spans)?;
        self.decoder.forward(&parts, &mut self.caches, &mut |span_idx, pos, logits| {
            rows.row(span_idx, pos as u32, logits);
        })
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.caches.get(seq.0 as usize).map_or(0, |cache| cache.len() as u32)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<u32> {
        let cache = self.cache(seq)?;
        cache.truncate(len as usize);
        Ok(cache.len() as u32)
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<u32> {
        let source = self.cache(from)?;
        if from == to {
            source.truncate(len as usize);
            return Ok(source.len() as u32);
        }
        let n_copied = source.len().min(len as usize);
        let n_freed = self.cache(to)?.len();
        let n_held: usize = self.caches.iter().map(Cache::len).sum();
        if n_held - n_freed + n_copied > self.caps.ctx_total as usize {
            return Err(Error::new(ErrorKind::Engine, "too many positions of all sequences")
                .with("n", n_held - n_freed + n_copied)
                .with("most", self.caps.ctx_total));
        }
        let copy = self.cache(from)?.fork(n_copied);
        *self.cache(to)? = copy;
        Ok(n_copied as u32)
    }

    fn release(&mut self, seq: SeqId) {
        if let Ok(cache) = self.cache(seq) {
            cache.truncate(0);
        }
    }
}
