//! A toy engine: a bigram model whose probabilities can be worked out by hand.
//!
//! It is the template for an engine of one's own: a [`LogitsEngine`] that turns tokens into rows of
//! logits, a [`TokenEncoder`], and an [`EngineLoader`] that hands both over. It has no weights, so it
//! also tests everything that stands above an engine.
//!
//! The vocabulary is `<end>` (id 0), then the letters of a small alphabet, one byte each. After the
//! token `a` the token `b` has the logit [`weight`]`(a, b)`, a multiple of 1/4; so the log-probability
//! of `b` is `weight(a, b) − ln Σ_c exp(weight(a, c))`. Greedy text goes on with the letter three
//! further: after `a` comes `dgjmpsvy.ehk…`.
//!
//! Every sequence keeps its tokens, which is all the state that a bigram model needs, and a running
//! checksum of them stands for the KV cache: a row is refused if it does not belong to the tokens. Each
//! token fills a numbered cell, so the engine knows exactly when its memory is full.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use weighbridge_core::{
    EngineInfo, Error, ErrorKind, ModelCard, OpenContext, Placement, Result, Weights,
};

use crate::loader::{EngineLoader, TextModel};
use crate::logits::{
    Batching, EngineCaps, Fork, Input, Interrupt, LogitsEngine, RowSink, SeqId, SnapshotKind, Span,
    Truncate,
};
use crate::tokens::{TokenEncoder, TokenKind, TokenTable};

/// The letters of the toy vocabulary; letter `i` has the id `i + 1`. The two bytes of `é` follow, as
/// two tokens, so that half a character can be generated.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz .,#";

/// The id that ends a text.
pub const END: u32 = 0;

/// Number of ids of the toy vocabulary, byte tokens of `é` included.
pub const N_VOCAB: u32 = 1 + LETTERS.len() as u32 + 2;

/// What a toy engine does besides computing.
#[derive(Clone, Debug)]
pub struct ToyOptions {
    /// What it says it can.
    pub caps: EngineCaps,
    /// Time that each token of a feed takes.
    pub delay_per_token: Duration,
    /// The feed with this number (the first is 1) fails.
    pub fail_at: Option<usize>,
    /// The feed with this number panics.
    pub panic_at: Option<usize>,
    /// Every row has a NaN from this position on.
    pub nan_from: Option<u32>,
    /// The chat template handed over.
    pub chat_template: Option<String>,
    /// Put before raw text.
    pub bos_id: Option<u32>,
}

impl Default for ToyOptions {
    /// Everything an engine can do, no delay, no failure, no template.
    fn default() -> Self {
        Self {
            caps: EngineCaps {
                n_vocab: N_VOCAB,
                max_seqs: 4,
                ctx_total: 4096,
                ctx_per_seq: 1024,
                max_feed: 256,
                max_rows: 256,
                batching: Batching::Ragged,
                truncate: Truncate::Any,
                fork: Fork::Copy,
                snapshot: SnapshotKind::No,
                all_rows: true,
                interrupt: Interrupt::BetweenSteps,
                n_embd_input: None,
                n_embd_output: None,
            },
            delay_per_token: Duration::ZERO,
            fail_at: None,
            panic_at: None,
            nan_from: None,
            chat_template: None,
            bos_id: None,
        }
    }
}

/// What a toy engine has done, seen from outside its thread.
#[derive(Clone, Debug, Default)]
pub struct ToyCounters {
    n_feeds: Arc<AtomicUsize>,
    n_tokens: Arc<AtomicUsize>,
    n_live: Arc<AtomicUsize>,
    largest_feed: Arc<AtomicUsize>,
}

impl ToyCounters {
    /// Feeds so far.
    pub fn n_feeds(&self) -> usize {
        self.n_feeds.load(Ordering::SeqCst)
    }

    /// Tokens fed so far.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens.load(Ordering::SeqCst)
    }

    /// Engines alive.
    pub fn n_live(&self) -> usize {
        self.n_live.load(Ordering::SeqCst)
    }

    /// Tokens of the largest feed so far.
    pub fn largest_feed(&self) -> usize {
        self.largest_feed.load(Ordering::SeqCst)
    }
}

/// Opens toy engines.
#[derive(Clone, Debug, Default)]
pub struct ToyLoader {
    /// What the engine does.
    pub options: ToyOptions,
    /// What it has done.
    pub counters: ToyCounters,
}

impl ToyLoader {
    /// A loader with these options.
    pub fn new(options: ToyOptions) -> Self {
        Self { options, counters: ToyCounters::default() }
    }
}

impl EngineLoader for ToyLoader {
    fn run(
        self: Box<Self>,
        context: &OpenContext,
        serve: &mut dyn FnMut(TextModel, &mut dyn LogitsEngine),
    ) -> Result<()> {
        if context.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "loading was cancelled"));
        }
        let mut card = ModelCard::new("toy", "toy", Weights::Open, Placement::InProcess);
        card.engine = Some(EngineInfo::new("toy", env!("CARGO_PKG_VERSION")));
        let text = TextModel {
            card,
            table: Arc::new(table(self.options.bos_id)),
            encoder: Arc::new(ToyEncoder),
            chat_template: self.options.chat_template.clone(),
        };
        let mut engine = ToyEngine::new(self.options, self.counters);
        serve(text, &mut engine);
        Ok(())
    }
}

/// The engine.
#[derive(Debug)]
pub struct ToyEngine {
    options: ToyOptions,
    counters: ToyCounters,
    sequences: Vec<ToySequence>,
    /// Cells of the KV cache that were ever filled.
    n_cells: u64,
}

/// What a sequence holds.
#[derive(Clone, Debug, Default)]
struct ToySequence {
    held: Vec<u32>,
    checksum: u64,
    /// The cell of each token; forks that share memory have the same ones.
    cells: Vec<u64>,
}

impl ToyEngine {
    /// An engine with empty sequences.
    pub fn new(options: ToyOptions, counters: ToyCounters) -> Self {
        counters.n_live.fetch_add(1, Ordering::SeqCst);
        let sequences = vec![ToySequence::default(); options.caps.max_seqs as usize];
        Self { options, counters, sequences, n_cells: 0 }
    }

    /// Cells of the KV cache that some sequence uses.
    fn n_cells_used(&self) -> usize {
        let cells = self.sequences.iter().flat_map(|sequence| &sequence.cells);
        cells.collect::<HashSet<_>>().len()
    }

    fn sequence(&mut self, seq: SeqId) -> Result<&mut ToySequence> {
        self.sequences
            .get_mut(seq.0 as usize)
            .ok_or_else(|| Error::new(ErrorKind::Engine, "no such sequence").with("seq", seq.0))
    }
}

impl Drop for ToyEngine {
    fn drop(&mut self) {
        self.counters.n_live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl LogitsEngine for ToyEngine {
    fn caps(&self) -> &EngineCaps {
        &self.options.caps
    }

    fn feed(&mut self, spans: &[Span<'_>], rows: &mut dyn RowSink) -> Result<()> {
        let n_feed = self.counters.n_feeds.fetch_add(1, Ordering::SeqCst) + 1;
        let n_tokens: usize = spans.iter().map(Span::len).sum();
        self.counters.n_tokens.fetch_add(n_tokens, Ordering::SeqCst);
        self.counters.largest_feed.fetch_max(n_tokens, Ordering::SeqCst);
        let error = |message: &'static str| Err(Error::new(ErrorKind::Engine, message));
        if self.options.panic_at == Some(n_feed) {
            panic!("toy panic at feed {n_feed}");
        }
        if self.options.fail_at == Some(n_feed) {
            return error("toy failure");
        }
        let caps = &self.options.caps;
        let n_rows: usize = spans.iter().map(|s| s.len() - s.want.first(s.len())).sum();
        let is_equal = spans.windows(2).all(|pair| pair[0].len() == pair[1].len());
        if n_tokens > caps.max_feed as usize || n_rows > caps.max_rows as usize {
            return error("the feed is too large");
        }
        if (caps.batching == Batching::One && spans.len() > 1)
            || (caps.batching == Batching::EqualLength && !is_equal)
        {
            return error("the spans do not fit into one feed");
        }
        let only_last = |s: &Span<'_>| s.want.first(s.len()) + 1 >= s.len();
        if !caps.all_rows && !spans.iter().all(only_last) {
            return error("only the last row can be had");
        }
        let (n_vocab, n_ctx, nan_from) = (caps.n_vocab, caps.ctx_per_seq, self.options.nan_from);
        if self.n_cells_used() + n_tokens > self.options.caps.ctx_total as usize {
            return error("the KV cache is full");
        }
        for (span_idx, span) in spans.iter().enumerate() {
            std::thread::sleep(self.options.delay_per_token * span.len() as u32);
            let Input::Tokens(tokens) = span.tokens else { return error("tokens only") };
            let first_cell = self.n_cells;
            self.n_cells += tokens.len() as u64;
            let ToySequence { held, checksum, cells } = self.sequence(span.seq)?;
            if span.pos as usize != held.len() {
                return error("the span does not begin where the sequence ends");
            }
            if held.len() + tokens.len() > n_ctx as usize {
                return error("the context is full");
            }
            for (index, &token) in tokens.iter().enumerate() {
                if token >= n_vocab {
                    return error("no such token");
                }
                held.push(token);
                cells.push(first_cell + index as u64);
                *checksum = mix(*checksum, token);
                if index >= span.want.first(tokens.len()) {
                    let position = span.pos + index as u32;
                    let mut row = row(token, n_vocab as usize);
                    if *checksum != held.iter().fold(0, |sum, &token| mix(sum, token)) {
                        return error("the cache does not belong to the tokens");
                    }
                    if nan_from.is_some_and(|from| position >= from) {
                        row[1] = f32::NAN;
                    }
                    rows.row(span_idx, position, &row);
                }
            }
        }
        Ok(())
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(seq.0 as usize).map_or(0, |sequence| sequence.held.len() as u32)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<u32> {
        let now = self.len(seq);
        let kept = match self.options.caps.truncate {
            _ if len >= now => now,
            Truncate::Any => len,
            Truncate::Last(n) if now - len <= n => len,
            Truncate::Last(_) | Truncate::No => 0,
        };
        let ToySequence { held, checksum, cells } = self.sequence(seq)?;
        held.truncate(kept as usize);
        cells.truncate(kept as usize);
        *checksum = held.iter().fold(0, |sum, &token| mix(sum, token));
        Ok(kept)
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<u32> {
        if self.options.caps.fork == Fork::No {
            return Err(Error::unsupported("fork", "this toy was told not to"));
        }
        let mut copy = self.sequence(from)?.clone();
        if self.options.caps.fork == Fork::Copy {
            let n_cells = copy.cells.len() as u64;
            copy.cells = (self.n_cells..self.n_cells + n_cells).collect();
            self.n_cells += n_cells;
        }
        *self.sequence(to)? = copy;
        let kept = self.truncate(to, len)?;
        if self.n_cells_used() > self.options.caps.ctx_total as usize {
            self.release(to);
            return Err(Error::new(ErrorKind::Engine, "the KV cache is full"));
        }
        Ok(kept)
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(seq.0 as usize) {
            *sequence = ToySequence::default();
        }
    }
}

/// The logits after a token, shape `(n_vocab,)`: multiples of 1/4 in [−2, 4], exact in f32.
pub fn row(after: u32, n_vocab: usize) -> Vec<f32> {
    (0..n_vocab as u32).map(|token| weight(after, token)).collect()
}

/// The logit of `token` after `after`. The text tends to go on with the letter three further, and
/// ends rarely.
pub fn weight(after: u32, token: u32) -> f32 {
    if token == END {
        return if after % 7 == 3 { 1.0 } else { -2.0 };
    }
    if token == after % 26 + 3 {
        return 4.0;
    }
    ((after * 31 + token * 17) % 13) as f32 / 4.0 - 1.0
}

/// The toy vocabulary.
pub fn table(bos_id: Option<u32>) -> TokenTable {
    let mut bytes = vec![Vec::new()];
    bytes.extend(LETTERS.bytes().map(|byte| vec![byte]));
    bytes.extend("é".bytes().map(|byte| vec![byte]));
    let mut kinds = vec![TokenKind::Text; bytes.len()];
    kinds[END as usize] = TokenKind::Control;
    TokenTable { bytes, kinds, end_ids: vec![END], bos_id }
}

/// One token per byte; `<end>` is the end token where special tokens are parsed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToyEncoder;

impl TokenEncoder for ToyEncoder {
    fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<u32>) -> Result<()> {
        let table = table(None);
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if parse_special && let Some(after) = rest.strip_prefix("<end>") {
                out.push(END);
                rest = after;
                continue;
            }
            let (now, after) = rest.split_at(c.len_utf8());
            for byte in now.bytes() {
                let id = table.bytes.iter().position(|bytes| bytes == &[byte]);
                let id = id.ok_or_else(|| {
                    Error::new(ErrorKind::InvalidRequest, format!("the toy has no letter `{c}`"))
                })?;
                out.push(id as u32);
            }
            rest = after;
        }
        Ok(())
    }
}

fn mix(checksum: u64, token: u32) -> u64 {
    (checksum ^ u64::from(token) ^ 0x9e37_79b9).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
}
