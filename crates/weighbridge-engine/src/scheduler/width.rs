//! How many sequences decode together: measured, not assumed.
//!
//! More sequences per feed are not always faster. On a CPU two to four may gain nothing over one,
//! sixteen a lot, and thirty-two less than sixteen. So the widest is tried first, then halves of it
//! for as long as they give more tokens per second; the best is kept. What was measured is forgotten
//! after a while, since longer sequences and other programs change it.

use std::time::Duration;

/// Feeds of a width that are measured before it is judged.
const N_SAMPLES: u32 = 12;
/// Tokens per second must be better by this factor for a narrower width to be preferred.
const MARGIN: f64 = 1.05;
/// Feeds at a chosen width after which it is measured anew.
const LIFETIME: u32 = 4096;

/// Finds the width with the most tokens per second.
#[derive(Clone, Debug)]
pub(crate) struct Width {
    max: usize,
    now: usize,
    /// The best width so far with its tokens per second.
    best: Option<(usize, f64)>,
    is_settled: bool,
    n_feeds: u32,
    seconds: f64,
}

impl Width {
    /// At most `max` sequences.
    pub(crate) fn new(max: usize) -> Self {
        let max = max.max(1);
        Self { max, now: max, best: None, is_settled: max == 1, n_feeds: 0, seconds: 0.0 }
    }

    /// Sequences that may run now.
    pub(crate) fn now(&self) -> usize {
        self.now
    }

    /// A feed of one token for each of `n_seqs` sequences took this long.
    pub(crate) fn measured(&mut self, n_seqs: usize, took: Duration) {
        if n_seqs != self.now || self.max == 1 {
            return;
        }
        self.n_feeds += 1;
        self.seconds += took.as_secs_f64();
        if self.is_settled {
            if self.n_feeds >= LIFETIME {
                *self = Self::new(self.max);
            }
            return;
        }
        if self.n_feeds < N_SAMPLES {
            return;
        }
        let rate = f64::from(self.n_feeds) * n_seqs as f64 / self.seconds.max(1e-9);
        (self.n_feeds, self.seconds) = (0, 0.0);
        match self.best {
            Some((width, best)) if rate < best * MARGIN => {
                (self.now, self.is_settled) = (width, true);
            }
            _ => {
                self.best = Some((n_seqs, rate));
                self.now = n_seqs.div_ceil(2);
                if n_seqs == 1 {
                    (self.now, self.is_settled) = (1, true);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(max: usize, tokens_per_second: impl Fn(usize) -> f64) -> usize {
        let mut width = Width::new(max);
        for _ in 0..2000 {
            let n = width.now();
            width.measured(n, Duration::from_secs_f64(n as f64 / tokens_per_second(n)));
        }
        width.now()
    }

    #[test]
    fn the_fastest_of_the_halves_is_kept() {
        // Tokens per second by width, as llama-batched-bench measured them on two cores.
        let measured = |n: usize| match n {
            1 => 63.0,
            2 => 53.0,
            3..=4 => 64.0,
            5..=8 => 124.0,
            9..=16 => 194.0,
            _ => 176.0,
        };
        assert_eq!(settle(32, measured), 16);
        assert_eq!(settle(16, measured), 16);
        assert_eq!(settle(8, measured), 8);
        assert_eq!(settle(1, measured), 1);
        assert_eq!(settle(24, |n| n as f64), 24, "an accelerator");
        assert_eq!(settle(6, |_| 10.0), 6, "no gain: callers rather wait together");
        assert_eq!(settle(8, |n| 100.0 / n as f64), 1);
    }

    #[test]
    fn only_full_feeds_are_judged_and_judgements_age() {
        let mut width = Width::new(16);
        for n in 1..16 {
            for _ in 0..50 {
                width.measured(n, Duration::from_millis(1));
            }
        }
        assert_eq!(width.now(), 16);
        for _ in 0..N_SAMPLES {
            width.measured(16, Duration::from_millis(16));
        }
        assert_eq!(width.now(), 8);
        for _ in 0..N_SAMPLES {
            width.measured(8, Duration::from_millis(16));
        }
        assert_eq!(width.now(), 16);
        for _ in 0..LIFETIME + N_SAMPLES {
            width.measured(16, Duration::from_millis(16));
        }
        assert_eq!(width.now(), 8, "measured anew");
    }
}
