//! The decoder as a [`LogitsEngine`]: sequences, limits, and the bookkeeping between feeds.

use weighbridge_core::{Error, ErrorKind, OpenContext, Result};
use weighbridge_engine::logits::{
    Batching, EngineCaps, Fork, Input, Interrupt, LogitsEngine, RowSink, SeqId, SnapshotKind, Span,
    Truncate,
};

use crate::cache::{Cache, CacheShape};
use crate::decoder::{Decoder, Segment};
use crate::device::{self, DeviceModel};
use crate::files::ModelFiles;
use crate::options::{Compute, Options};
use crate::weights::Reader;

/// Sequences that can live at once.
pub(crate) const MAX_SEQS: u32 = 16;
/// Positions of one feed.
const MAX_FEED: u32 = 512;
/// Rows of logits of one feed.
const MAX_ROWS: u32 = 256;
/// Memory for keys and values of all sequences together, unless a single one needs more.
const KV_BUDGET_BYTES: usize = 1 << 30;

/// A decoder with a cache for each sequence, whose rules the engine has checked.
pub(crate) trait Sequences: std::fmt::Debug {
    /// Fills the caches with the parts' tokens and gives out the wanted rows, each with the index of
    /// its part and its position. The caches' lengths change only if all layers worked.
    fn forward(
        &mut self,
        parts: &[Segment<'_>],
        rows: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()>;

    /// Filled positions of a cache.
    fn len(&self, cache_idx: usize) -> usize;

    /// Forgets the positions from `len` on.
    fn truncate(&mut self, cache_idx: usize, len: usize) -> Result<()>;

    /// Replaces a cache by a copy of the first `len` positions of another.
    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()>;
}

/// The plugin's own decoder for the CPU.
#[derive(Debug)]
struct HostModel {
    decoder: Decoder,
    caches: Vec<Cache>,
}

impl HostModel {
    fn new(decoder: Decoder, n_seqs: u32) -> Self {
        let caches = (0..n_seqs).map(|_| Cache::new(decoder.cache_shape())).collect();
        Self { decoder, caches }
    }
}

impl Sequences for HostModel {
    fn forward(
        &mut self,
        parts: &[Segment<'_>],
        rows: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        self.decoder.forward(parts, &mut self.caches, rows)
    }

    fn len(&self, cache_idx: usize) -> usize {
        self.caches[cache_idx].len()
    }

    fn truncate(&mut self, cache_idx: usize, len: usize) -> Result<()> {
        self.caches[cache_idx].truncate(len);
        Ok(())
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.caches[to] = self.caches[from].fork(len);
        Ok(())
    }
}

/// A loaded model that turns tokens into logits.
#[derive(Debug)]
pub struct CandleEngine {
    model: Box<dyn Sequences>,
    caps: EngineCaps,
}

impl CandleEngine {
    /// Loads the weights of files that were looked at, for the device and the kernels that the
    /// options of `context` name. Reports progress through `context` and stops between tensors when
    /// it is cancelled. `start` is the progress already made.
    ///
    /// # Errors
    /// [`ModelLoad`](ErrorKind::ModelLoad) for weights that cannot be used, and for a device that
    /// cannot; [`InvalidInput`](ErrorKind::InvalidInput) for options;
    /// [`Cancelled`](ErrorKind::Cancelled).
    pub fn load(
        files: &mut ModelFiles,
        n_ctx: u32,
        context: &OpenContext,
        start: f32,
    ) -> Result<Self> {
        let compute = Options::read(context)?.compute()?;
        Self::load_for(&compute, files, n_ctx, context, start)
    }

    /// As [`load`](Self::load), for a device that is open.
    pub(crate) fn load_for(
        compute: &Compute,
        files: &mut ModelFiles,
        n_ctx: u32,
        context: &OpenContext,
        start: f32,
    ) -> Result<Self> {
        let config = files.config().clone();
        let mut reader = Reader::new(files.weights(), context, start);
        let (model, shape): (Box<dyn Sequences>, CacheShape) = match compute {
            Compute::Own => {
                let decoder = Decoder::load(&config, n_ctx as usize, &mut reader)?;
                let shape = decoder.cache_shape();
                (Box::new(HostModel::new(decoder, MAX_SEQS)), shape)
            }
            Compute::Candle(target) => {
                let decoder = device::Decoder::load(&config, n_ctx as usize, &mut reader, target)?;
                let shape = decoder.cache_shape();
                (Box::new(DeviceModel::new(decoder, MAX_SEQS)), shape)
            }
        };
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
        Ok(Self { model, caps })
    }

    /// The index of a sequence's cache.
    fn cache_idx(&self, seq: SeqId) -> Result<usize> {
        let is_known = seq.0 < self.caps.max_seqs;
        is_known.then_some(seq.0 as usize).ok_or_else(|| limit("sequence", seq.0, MAX_SEQS))
    }

    /// Positions of all sequences.
    fn n_held(&self) -> usize {
        (0..self.caps.max_seqs as usize).map(|cache_idx| self.model.len(cache_idx)).sum()
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
            let cache_idx = self.cache_idx(span.seq)?;
            let len = self.model.len(cache_idx);
            if parts.iter().any(|part: &Segment<'_>| part.cache_idx == cache_idx) {
                return Err(Error::new(ErrorKind::Engine, "a sequence has two spans in one feed")
                    .with("seq", span.seq.0));
            }
            if span.pos as usize != len {
                return Err(Error::new(
                    ErrorKind::Engine,
                    "a span does not start where its sequence ends",
                )
                .with("seq", span.seq.0)
                .with("pos", span.pos)
                .with("len", len));
            }
            if len + tokens.len() > caps.ctx_per_seq as usize {
                return Err(Error::new(
                    ErrorKind::Engine,
                    "a sequence would exceed the context; open the model with a larger `n_ctx`",
                )
                .with("n_positions", len + tokens.len())
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
        let n_held = self.n_held() as u64;
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
        self.model.forward(&parts, &mut |span_idx, pos, logits| {
            rows.row(span_idx, pos as u32, logits);
        })
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.cache_idx(seq).map_or(0, |cache_idx| self.model.len(cache_idx) as u32)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<u32> {
        let cache_idx = self.cache_idx(seq)?;
        self.model.truncate(cache_idx, len as usize)?;
        Ok(self.model.len(cache_idx) as u32)
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<u32> {
        if from == to {
            return self.truncate(from, len);
        }
        let (source, copy) = (self.cache_idx(from)?, self.cache_idx(to)?);
        let n_copied = self.model.len(source).min(len as usize);
        let n_held = self.n_held() - self.model.len(copy) + n_copied;
        if n_held > self.caps.ctx_total as usize {
            return Err(Error::new(ErrorKind::Engine, "too many positions of all sequences")
                .with("n", n_held)
                .with("most", self.caps.ctx_total));
        }
        self.model.copy(source, copy, n_copied)?;
        Ok(n_copied as u32)
    }

    fn release(&mut self, seq: SeqId) {
        if let Ok(cache_idx) = self.cache_idx(seq) {
            // To cut a sequence to nothing takes no memory and no computation that could fail.
            let _ = self.model.truncate(cache_idx, 0);
        }
    }
}
