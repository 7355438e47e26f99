//! Sequences that were taken out of the engine's memory and can be put back.
//!
//! An engine that keeps all sequences in one pool looks at the whole pool for every token, so what
//! lies idle there costs time. Copied out it costs memory only, which has its own limit.

use super::prefix::n_shared;
use crate::logits::Snapshot;

/// Bytes of all parked sequences.
const MAX_BYTES: usize = 512 << 20;

/// A sequence outside the engine.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) tokens: Vec<u32>,
    pub(crate) snapshot: Snapshot,
}

/// Parked sequences, the one unused for longest first.
#[derive(Debug, Default)]
pub(crate) struct Park {
    sequences: Vec<Parked>,
}

impl Park {
    /// Keeps a sequence; those that it continues go, and the oldest where there is no room.
    pub(crate) fn keep(&mut self, parked: Parked) {
        self.sequences.retain(|other| !parked.tokens.starts_with(&other.tokens));
        self.sequences.push(parked);
        let n_bytes = |park: &Self| -> usize {
            park.sequences.iter().map(|parked| parked.snapshot.n_bytes).sum()
        };
        while n_bytes(self) > MAX_BYTES {
            self.sequences.remove(0);
        }
    }

    /// Index of the sequence that has most in common with the beginning of `tokens`, and how much,
    /// of those that are at most `max_tail` longer than that.
    pub(crate) fn longest(&self, tokens: &[u32], max_tail: usize) -> Option<(usize, usize)> {
        let shares = |(idx, parked): (usize, &Parked)| {
            let n_shared = n_shared(&parked.tokens, tokens);
            (parked.tokens.len() - n_shared <= max_tail).then_some((idx, n_shared))
        };
        self.sequences.iter().enumerate().filter_map(shares).max_by_key(|(_, n_shared)| *n_shared)
    }

    /// Takes a sequence out.
    pub(crate) fn take(&mut self, idx: usize) -> Parked {
        self.sequences.remove(idx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(tokens: &[u32], n_bytes: usize) -> Parked {
        let snapshot = Snapshot { len: tokens.len() as u32, n_bytes, state: Box::new(()) };
        Parked { tokens: tokens.to_vec(), snapshot }
    }

    #[test]
    fn the_longest_is_found_and_the_oldest_goes() {
        let mut park = Park::default();
        park.keep(parked(&[1, 2], 10));
        park.keep(parked(&[1, 2, 3, 4], 10));
        assert_eq!(park.sequences.len(), 1, "the longer one has all of the shorter");
        park.keep(parked(&[1, 9], MAX_BYTES - 15));
        assert_eq!(park.longest(&[1, 2, 3, 7], usize::MAX), Some((0, 3)));
        assert_eq!(park.longest(&[1, 2, 3, 7], 0), None);
        assert_eq!(park.longest(&[1, 9, 9], 0), Some((1, 2)));
        park.keep(parked(&[5], 10));
        assert_eq!(park.sequences.len(), 2);
        assert_eq!(park.longest(&[1, 2, 3, 7], usize::MAX), Some((0, 1)));
        assert_eq!(park.take(1).tokens, [5]);
        park.keep(parked(&[6], MAX_BYTES + 1));
        assert!(park.sequences.is_empty(), "what is larger than the limit is not kept");
    }
}
