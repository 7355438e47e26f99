//! How many prompt tokens one feed may have, so that a cancel or a decoding sequence is never kept
//! waiting for long.

use std::time::Duration;

/// Tokens of the first feed.
const FIRST: usize = 32;
/// Share of the latency that is aimed at: attention makes later tokens dearer than earlier ones.
const AIM: f64 = 0.7;
/// Engines multiply whole tiles of rows: a feed of 350 tokens costs llama.cpp up to 7 % more per
/// token than one of 256 or 512.
const TILE: usize = 64;

/// Adapts to the engine: begins small, at most doubles, and shrinks at once when a feed was slow.
#[derive(Clone, Debug)]
pub(crate) struct ChunkSize {
    max: usize,
    /// Tokens of the largest feed so far.
    n_largest: usize,
    seconds_per_token: Option<f64>,
}

impl ChunkSize {
    /// Feeds shall have at most `max` tokens.
    pub(crate) fn new(max: usize) -> Self {
        Self { max: max.max(1), n_largest: FIRST / 2, seconds_per_token: None }
    }

    /// Tokens of the next feed, which shall take at most `latency`; at least 1.
    pub(crate) fn size(&self, latency: Duration) -> usize {
        let fitting = match self.seconds_per_token {
            Some(seconds) => (AIM * latency.as_secs_f64() / seconds.max(1e-9)) as usize,
            None => FIRST,
        };
        fitting.min(2 * self.n_largest).clamp(1, self.max)
    }

    /// Tokens of the next feed if `n_tokens` are to be fed, in feeds that take at most `latency`: all
    /// that are left, or feeds of about one size and of whole tiles.
    pub(crate) fn share(&self, n_tokens: usize, latency: Duration) -> usize {
        let most = self.size(latency);
        let share = |most: usize| n_tokens.div_ceil(n_tokens.div_ceil(most));
        // To the nearest tile: up to a seventh more than was aimed at is still below the latency.
        let tiled = ((most + TILE / 2) / TILE * TILE).min(self.max);
        match n_tokens {
            _ if n_tokens <= most => n_tokens,
            // To leave a part of a tile would cost more than it saves.
            _ if tiled < 4 * TILE => share(most),
            _ => share(tiled).next_multiple_of(TILE).min(tiled),
        }
    }

    /// A feed of `n_tokens` took this long.
    pub(crate) fn measured(&mut self, n_tokens: usize, took: Duration) {
        let seconds = took.as_secs_f64() / n_tokens.max(1) as f64;
        // Reading the weights is most of a small feed, so it says little about a large one.
        let is_telling = 4 * n_tokens >= self.n_largest;
        self.n_largest = self.n_largest.max(n_tokens);
        self.seconds_per_token = match self.seconds_per_token {
            Some(known) if seconds > known && is_telling => Some(seconds),
            Some(known) if seconds < known => Some(0.5 * known + 0.5 * seconds),
            Some(known) => Some(known),
            None => Some(seconds),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_settles_where_a_feed_fits_into_the_latency() {
        for us_per_token in [10u64, 1_000, 20_000, 400_000] {
            for latency in [Duration::from_millis(250), Duration::from_secs(2)] {
                let mut chunk = ChunkSize::new(4096);
                let time = |n: usize| Duration::from_micros(us_per_token * n as u64);
                for _ in 0..30 {
                    let n = chunk.size(latency);
                    chunk.measured(n, time(n));
                }
                let n = chunk.size(latency);
                assert!(time(n) <= latency || n == 1, "{n}");
                assert!(time(2 * n) >= latency || n == 4096, "{n}");
                assert!(chunk.size(latency / 8) <= n.div_ceil(4) || n == 4096);
            }
        }
    }

    #[test]
    fn feeds_are_of_one_size_and_of_whole_tiles() {
        let latency = Duration::from_secs(1);
        let mut chunk = ChunkSize::new(4096);
        // A little more than two milliseconds per token.
        for _ in 0..9 {
            chunk
                .measured(chunk.size(latency), latency.mul_f64(chunk.size(latency) as f64 / 499.0));
        }
        assert_eq!(chunk.size(latency), 349);
        for (n_tokens, n_expected) in
            [(0, 0), (1, 1), (349, 349), (350, 192), (512, 256), (640, 320), (641, 256)]
        {
            assert_eq!(chunk.share(n_tokens, latency), n_expected, "{n_tokens}");
        }
        for n_tokens in 0..5_000 {
            let (mut n_left, mut n_feeds) = (n_tokens, 0);
            while n_left > 0 {
                n_left -= chunk.share(n_left, latency);
                n_feeds += 1;
            }
            assert!(n_feeds <= n_tokens.div_ceil(320), "{n_tokens} in {n_feeds}");
        }
        // A little less than a tile more.
        let shorter = latency.mul_f64(0.7);
        assert_eq!((chunk.size(shorter), chunk.share(512, shorter)), (244, 256));
        // Of little room all is used.
        let short = latency / 10;
        assert_eq!(
            (chunk.size(short), chunk.share(512, short), chunk.share(34, short)),
            (34, 32, 34)
        );
    }

    #[test]
    fn one_slow_feed_shrinks_the_next_and_small_ones_do_not() {
        let latency = Duration::from_millis(1_000);
        let mut chunk = ChunkSize::new(4096);
        for _ in 0..20 {
            chunk.measured(chunk.size(latency), Duration::from_millis(chunk.size(latency) as u64));
        }
        let settled = chunk.size(latency);
        chunk.measured(9, Duration::from_millis(60));
        assert_eq!(chunk.size(latency), settled);
        chunk.measured(settled, Duration::from_millis(3 * settled as u64));
        assert!(chunk.size(latency) <= settled / 2);
    }
}
