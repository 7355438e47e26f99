//! Feeding an engine, what its rows say, and the laws that every engine keeps.

mod laws;

use std::ops::Range;

use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};

pub use laws::Subject;

/// Feeds one span at the end of its sequence; the rows that were wanted, each of `n_vocab` logits.
///
/// # Panics
/// If the engine refuses, or gives other rows than were wanted, or the sequence is not longer by the
/// tokens afterwards.
pub fn feed(engine: &mut dyn LogitsEngine, seq: u32, tokens: &[u32], want: Want) -> Vec<Vec<f32>> {
    let seq = SeqId(seq);
    let pos = engine.len(seq);
    let span = Span { seq, pos, tokens: Input::Tokens(tokens), want };
    let mut out = Vec::new();
    let mut next = pos + want.first(tokens.len()) as u32;
    let n_vocab = engine.caps().n_vocab as usize;
    let fed = engine.feed(&[span], &mut |span_idx: usize, at: u32, row: &[f32]| {
        assert_eq!((span_idx, at, row.len()), (0, next, n_vocab));
        next += 1;
        out.push(row.to_vec());
    });
    fed.unwrap_or_else(|error| panic!("{tokens:?} at {pos} of {seq:?}: {error}"));
    assert_eq!(engine.len(seq), pos + tokens.len() as u32);
    out
}

/// All rows of a text of any length, from scratch in sequence 0, in feeds of at most `chunk` tokens.
///
/// # Panics
/// As [`feed`].
pub fn all_rows(engine: &mut dyn LogitsEngine, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    engine.release(SeqId(0));
    tokens.chunks(chunk).flat_map(|chunk| feed(engine, 0, chunk, Want::All)).collect()
}

/// The first token with the largest logit.
pub fn argmax(row: &[f32]) -> u32 {
    let larger = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
    (1..row.len()).fold(0, larger) as u32
}

/// Natural logarithms of the tokens' probabilities, in `f64`.
pub fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    row.iter().map(|x| f64::from(*x) - max - sum.ln()).collect()
}

/// Largest difference of a number of two lists of rows.
///
/// # Panics
/// If the lists or their rows are not of the same length, or a number is not finite.
#[track_caller]
pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut worst = 0f32;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!(a.is_finite() && b.is_finite(), "{a} and {b}");
            worst = worst.max((a - b).abs());
        }
    }
    worst
}

/// A text of `n` of these token ids, the same in each run.
pub fn text(ids: &Range<u32>, seed: u32, n: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ids.start + (state >> 16) % (ids.end - ids.start)
    };
    std::iter::repeat_with(next).take(n).collect()
}
