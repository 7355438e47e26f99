//! What a local engine is to the decode loop: tokens in, logits out.

use weighbridge_core::Result;

/// A sequence of an engine: a slot with its own KV cache. Below [`EngineCaps::max_seqs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u32);

/// Which rows of logits of a span are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the tokens only fill the KV cache.
    None,
    /// The row after the last token.
    Last,
    /// The rows after the tokens at this index of the span and all later ones.
    From(usize),
    /// The row after each token.
    All,
}

impl Want {
    /// Index of the first wanted row in a span of `n_tokens`, or `n_tokens` for none.
    pub fn first(self, n_tokens: usize) -> usize {
        match self {
            Self::None => n_tokens,
            Self::Last => n_tokens.saturating_sub(1),
            Self::From(index) => index.min(n_tokens),
            Self::All => 0,
        }
    }
}

/// Tokens to be appended to one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The sequence.
    pub seq: SeqId,
    /// Position of the first token; must equal the sequence's length.
    pub pos: u32,
    /// What is appended.
    pub tokens: Input<'a>,
    /// Which rows come back.
    pub want: Want,
}

impl Span<'_> {
    /// Number of positions the span fills.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it fills none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What fills the positions of a span.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids below [`EngineCaps::n_vocab`].
    Tokens(&'a [u32]),
    /// Embeddings, shape `(n_positions, n_embd)`, for engines with [`EngineCaps::n_embd_input`].
    Embeddings {
        /// Row-major values.
        values: &'a [f32],
        /// Width of a row.
        n_embd: usize,
    },
}

impl Input<'_> {
    /// Number of positions.
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Embeddings { values, n_embd } => values.len() / (*n_embd).max(1),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Receives rows of logits while an engine works; each row is lent for the call.
pub trait RowSink {
    /// The logits after the token at position `pos` of span number `span_idx`: the model's final
    /// ones, unscaled, shape `(n_vocab,)`.
    fn row(&mut self, span_idx: usize, pos: u32, logits: &[f32]);
}

impl<F: FnMut(usize, u32, &[f32])> RowSink for F {
    fn row(&mut self, span_idx: usize, pos: u32, logits: &[f32]) {
        self(span_idx, pos, logits);
    }
}

/// How sequences of one [`LogitsEngine::feed`] may differ in length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// One span per feed.
    One,
    /// Several spans of equal length.
    EqualLength,
    /// Any spans.
    Ragged,
}

/// How far back a sequence can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// To any length.
    Any,
    /// By at most this many positions.
    Last(u32),
    /// Only to nothing.
    No,
}

/// Whether a sequence can be continued twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// Yes, sharing memory.
    Shared,
    /// Yes, by copying.
    Copy,
    /// No.
    No,
}

/// What can be kept of a sequence outside its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Everything.
    Full,
    /// The state at one position, from which it can only go on.
    Checkpoint,
    /// Nothing.
    No,
}

/// When a running [`LogitsEngine::feed`] can be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// In the middle.
    MidStep,
    /// Only between feeds.
    BetweenSteps,
}

/// What an engine can do. Constant for the life of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineCaps {
    /// Width of a row of logits; may exceed the tokenizer's vocabulary.
    pub n_vocab: u32,
    /// Sequences that can live at once.
    pub max_seqs: u32,
    /// Positions of all sequences together.
    pub ctx_total: u32,
    /// Positions of one sequence.
    pub ctx_per_seq: u32,
    /// Positions of one feed, over all spans.
    pub max_feed: u32,
    /// Rows of logits of one feed; 0 for an engine that only embeds and is never fed.
    pub max_rows: u32,
    /// How spans of one feed may differ.
    pub batching: Batching,
    /// How far a sequence can be cut back.
    pub truncate: Truncate,
    /// Whether a sequence can be forked.
    pub fork: Fork,
    /// What can be kept outside.
    pub snapshot: SnapshotKind,
    /// Rows other than the last can be had.
    pub all_rows: bool,
    /// When a feed can be stopped.
    pub interrupt: Interrupt,
    /// Width of embedding input, if the engine takes any.
    pub n_embd_input: Option<u32>,
    /// Width of the embeddings it gives, if any.
    pub n_embd_output: Option<u32>,
}

/// State of a sequence kept outside its slot; opaque to the loop.
#[derive(Debug)]
pub struct Snapshot {
    /// Length of the sequence when it was taken.
    pub len: u32,
    /// Bytes it holds, for the budget.
    pub n_bytes: usize,
    /// The engine's own data.
    pub state: Box<dyn std::any::Any>,
}

/// An engine that turns tokens into logits, driven by one thread. It never samples, templates,
/// detokenises or stops.
///
/// After an error [`LogitsEngine::len`] tells the truth and the loop feeds again from there.
/// Errors are of kind [`Engine`](weighbridge_core::ErrorKind::Engine) unless a method says
/// otherwise.
pub trait LogitsEngine {
    /// What it can do.
    fn caps(&self) -> &EngineCaps;

    /// Appends spans and hands out the wanted rows, those of a span in the order of their positions.
    ///
    /// # Errors
    /// If `pos` is not the sequence's length, a token is not below `n_vocab`, a limit of
    /// [`EngineCaps`] is exceeded, or the computation fails.
    fn feed(&mut self, spans: &[Span<'_>], rows: &mut dyn RowSink) -> Result<()>;

    /// Length of a sequence; 0 for one that was never fed.
    fn len(&self, seq: SeqId) -> u32;

    /// Cuts a sequence back to `len`; returns the length really kept, at most `len`.
    ///
    /// # Errors
    /// If the engine fails. Cutting to a longer length changes nothing.
    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<u32>;

    /// Makes `to` a copy of the first `len` positions of `from`; returns the length really copied.
    /// What `to` held is gone.
    ///
    /// # Errors
    /// [`Unsupported`](weighbridge_core::ErrorKind::Unsupported) for [`Fork::No`].
    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<u32>;

    /// Keeps a sequence's state.
    ///
    /// # Errors
    /// [`Unsupported`](weighbridge_core::ErrorKind::Unsupported) for [`SnapshotKind::No`].
    fn snapshot(&mut self, seq: SeqId) -> Result<Snapshot> {
        let _ = seq;
        Err(weighbridge_core::Error::unsupported("snapshot", "this engine keeps no state"))
    }

    /// Puts a kept state into a sequence.
    ///
    /// # Errors
    /// [`Unsupported`](weighbridge_core::ErrorKind::Unsupported) for [`SnapshotKind::No`].
    fn restore(&mut self, seq: SeqId, snapshot: &Snapshot) -> Result<()> {
        let _ = (seq, snapshot);
        Err(weighbridge_core::Error::unsupported("restore", "this engine keeps no state"))
    }

    /// Empties a sequence and frees its memory.
    fn release(&mut self, seq: SeqId);

    /// The pooled embedding of a text, shape `(n_embd_output,)`, for engines that give any.
    ///
    /// # Errors
    /// [`Unsupported`](weighbridge_core::ErrorKind::Unsupported) without
    /// [`EngineCaps::n_embd_output`].
    fn embed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let _ = tokens;
        Err(weighbridge_core::Error::unsupported("embed", "this engine gives no embeddings"))
    }
}
