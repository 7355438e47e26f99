//! A context that turns tokens into logits: sequences, limits, and what llama.cpp leaves to its
//! caller.
//!
//! Everything is checked before llama.cpp sees it, because it answers a broken rule with "invalid
//! batch" at best, and with `abort()` at worst. What every method relies on:
//!
//! - The cache is unified: sequences share its cells, and a fork is a note in each cell.
//! - `lens` is what the cache holds, read again from it after every failure.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::{DecodeError, LlamaStateSeqFlags, SeqState};
use weighbridge_core::{Error, ErrorKind, Result};
use weighbridge_engine::logits::{EngineCaps, Input, RowSink, SeqId, Snapshot, Span, Truncate};

use crate::native;

/// Lines of the engine's log in an error.
const N_LOG_LINES: usize = 8;
/// Rows of queries that llama.cpp's attention takes together on a CPU, if a batch has as many.
pub(crate) const TILE: usize = 64;

/// One context and its sequences.
pub(crate) struct Decoder<'m> {
    context: LlamaContext<'m>,
    /// Made once, filled for each feed.
    batch: LlamaBatch<'static>,
    /// Length of each sequence.
    lens: Vec<u32>,
    /// Wanted rows of the feed that runs: span, position, index in the batch.
    wanted: Vec<(usize, u32, i32)>,
    /// Sequences of the feed that runs.
    is_in_feed: Vec<bool>,
    truncate: Truncate,
    /// Single tokens and whole tiles of longer spans are computed apart ([`is_mixed`]).
    splits_feeds: bool,
    id: u64,
}

/// A sequence's state outside its slot, with the decoder it belongs to.
struct State {
    decoder_id: u64,
    state: SeqState,
}

impl<'m> Decoder<'m> {
    /// `id` is unlike that of any other decoder of the process.
    pub(crate) fn new(
        context: LlamaContext<'m>,
        caps: &EngineCaps,
        splits_feeds: bool,
        id: u64,
    ) -> Self {
        let n_seqs = caps.max_seqs as usize;
        Self {
            // One sequence id for each token is all that is ever written into it.
            batch: LlamaBatch::new(caps.max_feed as usize, 1),
            context,
            lens: vec![0; n_seqs],
            wanted: Vec::with_capacity(caps.max_rows as usize),
            is_in_feed: vec![false; n_seqs],
            truncate: caps.truncate,
            splits_feeds,
            id,
        }
    }

    /// Computes one token, so that a model that cannot be run fails when it is opened, and its
    /// pages are there when the first prompt comes.
    pub(crate) fn warm_up(&mut self, caps: &EngineCaps) -> Result<()> {
        let token = [0];
        let span = Span {
            seq: SeqId(0),
            pos: 0,
            tokens: Input::Tokens(&token),
            want: weighbridge_engine::logits::Want::Last,
        };
        let mut n_rows = 0;
        self.feed(&[span], caps, &mut |_: usize, _: u32, _: &[f32]| n_rows += 1)?;
        let n_held = self.context.kv_cache_seq_pos_max(0) + 1;
        self.release(SeqId(0));
        if n_rows != 1 || n_held != 1 {
            return Err(failure("the model computes, but keeps nothing to continue from"));
        }
        Ok(())
    }

    pub(crate) fn feed(
        &mut self,
        spans: &[Span<'_>],
        caps: &EngineCaps,
        rows: &mut dyn RowSink,
    ) -> Result<()> {
        self.is_in_feed.fill(false);
        self.check(spans, caps)?;
        if self.splits_feeds && is_mixed(spans) {
            self.compute(spans, |span| span.len() == 1, rows)?;
            return self.compute(spans, |span| span.len() != 1, rows);
        }
        self.compute(spans, |_| true, rows)
    }

    /// Computes some of the checked spans in one batch.
    fn compute(
        &mut self,
        spans: &[Span<'_>],
        is_chosen: impl Fn(&Span<'_>) -> bool,
        rows: &mut dyn RowSink,
    ) -> Result<()> {
        self.batch.clear();
        self.wanted.clear();
        let chosen = || spans.iter().enumerate().filter(|(_, span)| is_chosen(span));
        for (span_idx, span) in chosen() {
            self.add(span_idx, span)?;
        }
        if self.batch.n_tokens() == 0 {
            return Ok(());
        }
        if let Err(error) = self.context.decode(&mut self.batch) {
            let log = native::take_log();
            self.take_back(spans);
            return Err(decode_error(&error, &log)
                .with("n_tokens", self.batch.n_tokens())
                .with("n_ctx", self.context.n_ctx()));
        }
        for (_, span) in chosen() {
            self.lens[span.seq.0 as usize] += span.len() as u32;
        }
        if self.wanted.is_empty() {
            // Reading a row waits for a device; without one its work would only be queued.
            self.context.synchronize();
        }
        for (span_idx, pos, batch_idx) in &self.wanted {
            rows.row(*span_idx, *pos, self.context.get_logits_ith(*batch_idx));
        }
        Ok(())
    }

    fn check(&mut self, spans: &[Span<'_>], caps: &EngineCaps) -> Result<()> {
        let (mut n_positions, mut n_rows) = (0u64, 0u64);
        for span in spans {
            let Input::Tokens(tokens) = span.tokens else {
                return Err(Error::unsupported("embeddings", "llama-cpp takes tokens only"));
            };
            let Some(len) = self.lens.get(span.seq.0 as usize) else {
                return Err(out_of_range("sequence", span.seq.0, caps.max_seqs));
            };
            if std::mem::replace(&mut self.is_in_feed[span.seq.0 as usize], true) {
                return Err(failure("a sequence has two spans in one feed").with("seq", span.seq.0));
            }
            if span.pos != *len {
                return Err(failure("a span does not start where its sequence ends")
                    .with("seq", span.seq.0)
                    .with("pos", span.pos)
                    .with("len", len));
            }
            if u64::from(*len) + tokens.len() as u64 > u64::from(caps.ctx_per_seq) {
                return Err(failure(
                    "a sequence would exceed the context; open the model with a larger `n_ctx`",
                )
                .with("n_positions", *len as usize + tokens.len())
                .with("n_ctx", caps.ctx_per_seq));
            }
            if let Some(token) = tokens.iter().find(|token| **token >= caps.n_vocab) {
                return Err(out_of_range("token id", *token, caps.n_vocab));
            }
            n_positions += tokens.len() as u64;
            n_rows += (tokens.len() - span.want.first(tokens.len())) as u64;
        }
        for (what, n, most) in [
            ("positions in one feed", n_positions, caps.max_feed),
            ("rows in one feed", n_rows, caps.max_rows),
        ] {
            if n > u64::from(most) {
                return Err(failure(format!("too many {what}")).with("n", n).with("most", most));
            }
        }
        Ok(())
    }

    /// Puts a checked span into the batch.
    fn add(&mut self, span_idx: usize, span: &Span<'_>) -> Result<()> {
        let Input::Tokens(tokens) = span.tokens else { return Ok(()) };
        let first_wanted = span.want.first(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            let pos = span.pos + i as u32;
            let is_wanted = i >= first_wanted;
            if is_wanted {
                self.wanted.push((span_idx, pos, self.batch.n_tokens()));
            }
            // Ids, positions and sequences are below 2^31: they were checked against limits that
            // llama.cpp itself keeps in 32 bits.
            self.batch
                .add(LlamaToken(*token as i32), pos as i32, &[span.seq.0 as i32], is_wanted)
                .map_err(|error| failure("the batch is full").with_source(error))?;
        }
        Ok(())
    }

    /// After a feed that failed: parts of it may have been computed and stay in memory.
    fn take_back(&mut self, spans: &[Span<'_>]) {
        for span in spans {
            let seq = span.seq.0 as usize;
            let old = self.lens[seq];
            self.read_len(seq);
            if self.lens[seq] > old {
                self.cut(seq, old);
            }
        }
    }

    /// Reads a sequence's length from the cache.
    fn read_len(&mut self, seq: usize) {
        let last = self.context.kv_cache_seq_pos_max(seq as i32);
        self.lens[seq] = u32::try_from(last + 1).unwrap_or(0);
    }

    pub(crate) fn len(&self, seq: SeqId) -> u32 {
        self.lens.get(seq.0 as usize).copied().unwrap_or(0)
    }

    pub(crate) fn truncate(&mut self, seq: SeqId, len: u32) -> Result<u32> {
        let index = self.index(seq)?;
        if len < self.lens[index] {
            self.cut(index, len);
        }
        Ok(self.lens[index])
    }

    /// Cuts to `len` if that can be done exactly, else to nothing.
    fn cut(&mut self, seq: usize, len: u32) {
        let id = seq as u32;
        let is_cut = self.has_all(seq, len)
            && matches!(self.context.clear_kv_cache_seq(Some(id), Some(len), None), Ok(true));
        if is_cut {
            self.read_len(seq);
        }
        if !is_cut || self.lens[seq] != len {
            self.release(SeqId(id));
        }
    }

    /// Whether the cache has every position that the first `len` ones can attend to. Recurrent
    /// layers keep only the last; of a sliding window, positions that fell out may be overwritten.
    fn has_all(&self, seq: usize, len: u32) -> bool {
        len > 0
            && self.truncate == Truncate::Any
            && self.context.kv_cache_seq_pos_min(seq as i32) == 0
    }

    pub(crate) fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<u32> {
        let (source, target) = (self.index(from)?, self.index(to)?);
        let len = len.min(self.lens[source]);
        if source == target {
            return self.truncate(from, len);
        }
        self.release(to);
        let is_whole = len == self.lens[source];
        if len == 0 || !(is_whole || self.has_all(source, len)) {
            return Ok(0);
        }
        let end = (!is_whole).then_some(len);
        self.context
            .copy_kv_cache_seq(source as i32, target as i32, None, end)
            .map_err(|error| failure("a sequence could not be copied").with_source(error))?;
        self.read_len(target);
        if self.lens[target] != len {
            self.release(to);
        }
        Ok(self.lens[target])
    }

    pub(crate) fn snapshot(&mut self, seq: SeqId) -> Result<Snapshot> {
        let index = self.index(seq)?;
        let state = self
            .context
            .state_seq_get(index as i32, LlamaStateSeqFlags::empty())
            .map_err(|error| failure("a sequence's state could not be read").with_source(error))?;
        Ok(Snapshot {
            len: self.lens[index],
            n_bytes: state.byte_len(),
            state: Box::new(State { decoder_id: self.id, state }),
        })
    }

    pub(crate) fn restore(&mut self, seq: SeqId, snapshot: &Snapshot) -> Result<()> {
        let index = self.index(seq)?;
        let kept = snapshot.state.downcast_ref::<State>();
        let Some(kept) = kept.filter(|kept| kept.decoder_id == self.id) else {
            return Err(failure("the snapshot is not one of this engine"));
        };
        self.release(seq);
        if snapshot.len == 0 {
            return Ok(());
        }
        native::take_log();
        let restored = self.context.state_seq_set(&kept.state, index as i32);
        self.read_len(index);
        if restored.is_err() || self.lens[index] != snapshot.len {
            let log = native::take_log();
            self.release(seq);
            return Err(with_log(failure("a sequence's state could not be restored"), &log)
                .with("len", snapshot.len));
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, seq: SeqId) {
        if let Some(len) = self.lens.get_mut(seq.0 as usize) {
            *len = 0;
            // Removing a whole sequence that exists cannot fail.
            let _ = self.context.clear_kv_cache_seq(Some(seq.0), None, None);
        }
    }

    /// llama.cpp aborts on a sequence that it does not have.
    fn index(&self, seq: SeqId) -> Result<usize> {
        let index = seq.0 as usize;
        match index < self.lens.len() {
            true => Ok(index),
            false => Err(out_of_range("sequence", seq.0, self.lens.len() as u32)),
        }
    }
}

/// Whether single tokens go beside whole tiles of longer spans. On a CPU those are better computed
/// apart: a tile that has rows of a prompt and of other sequences attends to all that any of them
/// has, and most of it is masked. Short prompts are worth no second pass over the weights.
fn is_mixed(spans: &[Span<'_>]) -> bool {
    let n_long: usize = spans.iter().map(Span::len).filter(|len| *len > 1).sum();
    n_long >= TILE && spans.iter().any(|span| span.len() == 1)
}

fn failure(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Engine, message)
}

fn out_of_range(what: &str, id: u32, below: u32) -> Error {
    failure(format!("{what} {id} is out of range")).with("id", id).with("must_be_below", below)
}

fn decode_error(error: &DecodeError, log: &[String]) -> Error {
    let message = match error {
        DecodeError::NoKvCacheSlot => {
            "there is no room for these positions beside those of the other sequences; open the \
             model with a larger `n_ctx_total`"
                .to_owned()
        }
        // Whatever is wrong with a batch has this name there.
        DecodeError::NTokensZero => "llama.cpp refused the batch as invalid".to_owned(),
        DecodeError::Unknown(2) => "the computation was aborted".to_owned(),
        DecodeError::Unknown(-2) => "llama.cpp ran out of memory".to_owned(),
        DecodeError::Unknown(code) => format!("the computation failed (llama.cpp's code {code})"),
    };
    with_log(failure(message), log)
}

/// Adds the engine's last lines to an error.
pub(crate) fn with_log(error: Error, log: &[String]) -> Error {
    let last = &log[log.len().saturating_sub(N_LOG_LINES)..];
    if last.is_empty() { error } else { error.with("engine_log", last.join(" | ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_words_with_the_last_lines_of_the_log() {
        let log: Vec<String> = (0..20).map(|i| format!("line {i}")).collect();
        let cases = [
            (DecodeError::NoKvCacheSlot, "larger `n_ctx_total`"),
            (DecodeError::NTokensZero, "refused the batch as invalid"),
            (DecodeError::Unknown(2), "aborted"),
            (DecodeError::Unknown(-2), "out of memory"),
            (DecodeError::Unknown(-3), "code -3"),
        ];
        for (code, expected) in cases {
            let error = decode_error(&code, &log);
            assert_eq!(error.kind(), ErrorKind::Engine);
            assert!(error.message().contains(expected), "{error}");
            let lines = error.context("engine_log").unwrap();
            assert!(lines.starts_with("line 12 | ") && lines.ends_with(" | line 19"), "{lines}");
            assert_eq!(decode_error(&code, &[]).context("engine_log"), None);
        }
    }
}
