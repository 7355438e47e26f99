//! What an engine promises the decode loop: however tokens are cut into feeds, cut back, copied or
//! batched, a position has the same logits.

use std::ops::Range;

use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};

use super::{all_rows, difference, feed, text};

/// An engine, and how exactly it keeps the laws. Takes six sequences of 100 positions.
///
/// # Panics
/// Each law panics where it is broken.
pub struct Subject<'a> {
    /// The engine; what its sequences hold is lost.
    pub engine: &'a mut dyn LogitsEngine,
    /// Named where a law is broken.
    pub name: &'a str,
    /// Largest difference of a logit; 0 where positions are equal bit for bit.
    pub tolerance: f32,
    /// Token ids that texts are made of.
    pub ids: Range<u32>,
}

impl Subject<'_> {
    #[track_caller]
    fn assert_close(&self, got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
        let worst = difference(got, expected);
        assert!(worst <= self.tolerance, "{}, {what}: {worst}", self.name);
    }

    fn text(&self, seed: u32, n: usize) -> Vec<u32> {
        text(&self.ids, seed, n)
    }

    #[track_caller]
    fn truncate(&mut self, seq: u32, len: u32) -> u32 {
        let cut = self.engine.truncate(SeqId(seq), len);
        cut.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    #[track_caller]
    fn fork(&mut self, from: u32, to: u32, len: u32) -> u32 {
        let forked = self.engine.fork(SeqId(from), SeqId(to), len);
        forked.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// However a prompt is cut into feeds.
    pub fn chunks_of_a_prompt_do_not_change_it(&mut self) {
        let tokens = self.text(1, 100);
        let whole = all_rows(self.engine, &tokens, 100);
        for chunk in [1, 2, 3, 7, 64] {
            let rows = all_rows(self.engine, &tokens, chunk);
            self.assert_close(&rows, &whole, &format!("chunks of {chunk}"));
        }
        self.engine.release(SeqId(0));
        assert!(feed(self.engine, 0, &tokens[..60], Want::None).is_empty());
        let last = feed(self.engine, 0, &tokens[60..], Want::Last);
        self.assert_close(&last, &whole[99..], "the last row alone");
    }

    /// For engines that cut back to any length.
    pub fn a_cut_sequence_continues_as_one_that_was_never_longer(&mut self) {
        let (tokens, other) = (self.text(2, 60), self.text(3, 30));
        feed(self.engine, 0, &tokens, Want::None);
        for len in [59, 31, 8, 1] {
            assert_eq!(self.truncate(0, len), len);
            let continued = feed(self.engine, 0, &other, Want::All);
            let scratch = [&tokens[..len as usize], &other].concat();
            self.engine.release(SeqId(1));
            let expected = feed(self.engine, 1, &scratch, Want::From(len as usize));
            self.assert_close(&continued, &expected, &format!("cut to {len}"));
            assert_eq!(self.truncate(0, len), len);
            feed(self.engine, 0, &tokens[len as usize..], Want::None);
        }
        assert_eq!(self.truncate(0, 1000), 60);
        assert_eq!(self.truncate(0, 0), 0);
        assert_eq!(self.engine.len(SeqId(0)), 0);
    }

    /// For engines that fork at any length.
    pub fn a_fork_lives_its_own_life(&mut self) {
        let (tokens, a, b) = (self.text(4, 50), self.text(5, 20), self.text(6, 20));
        feed(self.engine, 0, &tokens, Want::None);
        feed(self.engine, 3, &b, Want::None);
        assert_eq!(self.fork(0, 3, 40), 40);
        assert_eq!(self.engine.len(SeqId(3)), 40);
        let in_fork = feed(self.engine, 3, &a, Want::All);
        let in_source = feed(self.engine, 0, &b, Want::All);
        let expected = feed(self.engine, 1, &[&tokens[..40], &a].concat(), Want::From(40));
        self.assert_close(&in_fork, &expected, "the fork");
        let expected = feed(self.engine, 2, &[&tokens[..], &b].concat(), Want::From(50));
        self.assert_close(&in_source, &expected, "its source");
        assert_eq!(self.fork(0, 3, 1000), 70);
        assert_eq!(self.fork(0, 0, 10), 10);
        assert_eq!(self.fork(5, 3, 10), 0, "{}: of an empty sequence", self.name);
        assert_eq!(self.engine.len(SeqId(3)), 0);
    }

    /// Sequences of different lengths at once, in different chunks and with different wants.
    pub fn ragged_batches_equal_single_sequences(&mut self) {
        const LENGTHS: [usize; 6] = [1, 40, 3, 25, 16, 70];
        const CHUNKS: [usize; 6] = [1, 9, 1, 4, 16, 40];
        let texts: Vec<Vec<u32>> = (20..).zip(LENGTHS).map(|(i, n)| self.text(i, n)).collect();
        let singles: Vec<Vec<Vec<f32>>> =
            texts.iter().map(|tokens| all_rows(self.engine, tokens, 256)).collect();
        self.engine.release(SeqId(0));
        let mut n_compared = 0;
        for round in 0.. {
            let mut spans = Vec::new();
            let mut of_text = Vec::new();
            for (i, tokens) in texts.iter().enumerate() {
                let seq = SeqId(i as u32 + 1);
                let pos = self.engine.len(seq);
                let rest = &tokens[pos as usize..];
                let part = &rest[..rest.len().min(CHUNKS[i])];
                let want = [Want::All, Want::Last, Want::None, Want::From(2)][(round + i) % 4];
                if !part.is_empty() {
                    spans.push(Span { seq, pos, tokens: Input::Tokens(part), want });
                    of_text.push(i);
                }
            }
            if spans.is_empty() {
                break;
            }
            let mut rows = Vec::new();
            let fed = self.engine.feed(&spans, &mut |span_idx: usize, pos: u32, row: &[f32]| {
                rows.push(((span_idx, pos), row.to_vec()));
            });
            fed.unwrap_or_else(|error| panic!("{}, round {round}: {error}", self.name));
            let expected = spans.iter().enumerate().flat_map(|(i, span)| {
                let wanted = span.want.first(span.len())..span.len();
                wanted.map(move |k| (i, span.pos + k as u32))
            });
            // Positions of a span come in order, spans in any.
            rows.sort_by_key(|((span_idx, _), _)| *span_idx);
            assert!(rows.iter().map(|(place, _)| *place).eq(expected), "{}: the rows", self.name);
            for ((i, pos), row) in rows {
                n_compared += 1;
                let single = &singles[of_text[i]][pos as usize];
                let what = format!("position {pos} of text {}", of_text[i]);
                self.assert_close(&[row], std::slice::from_ref(single), &what);
            }
        }
        assert!(n_compared > 40, "{n_compared}");
    }
}
