//! How many prompt tokens one feed may have, so that a cancel or a decoding sequence is never kept
//! waiting for long.

use std::time::Duration;

/// Tokens of the first feed.
const FIRST: usize = 32;
/// Share of the latency that is aimed at: attention makes later tokens dearer than earlier ones.
const AIM: f64 = 0.7;
/// Engines compute whole tiles of rows: a feed of 350 tokens costs llama.cpp up to 7 % more per token
/// than one of 256 or 512, and attention over fewer than 64 tokens goes row by row there.
const TILE: usize = 64;
/// What a tile that was too slow is thought to cost after each smaller feed: so that it is tried again.
const DOUBT: f64 = 0.995;

/// Adapts to the engine: begins small, at most doubles, and shrinks at once when a feed was slow.
#[derive(Clone, Debug)]
pub(crate) struct ChunkSize {
    max: usize,
    /// Prompt tokens of the largest feed so far.
    n_largest: usize,
    /// Seconds per token of feeds with a tile of prompt tokens or more, and with less.
    whole: Option<f64>,
    part: Option<f64>,
    /// Smaller feeds since the last with a tile.
    n_parts: i32,
}

impl ChunkSize {
    /// Feeds shall have at most `max` tokens.
    pub(crate) fn new(max: usize) -> Self {
        Self { max: max.max(1), n_largest: FIRST / 2, whole: None, part: None, n_parts: 0 }
    }

    /// Tokens of the next feed, which shall take at most `latency`; at least 1.
    fn size(&self, latency: Duration) -> usize {
        let fitting = |seconds: f64| (AIM * latency.as_secs_f64() / seconds.max(1e-9)) as usize;
        let fitting = match (self.whole, self.part) {
            (Some(whole), Some(part)) => match fitting(whole) {
                n_tokens if tiled(n_tokens) > 0 => n_tokens,
                _ if tiled(fitting(self.doubted(whole))) > 0 => TILE,
                _ => fitting(part).min(TILE - 1),
            },
            (Some(seconds), None) | (None, Some(seconds)) => fitting(seconds),
            (None, None) => FIRST,
        };
        fitting.min(2 * self.n_largest).clamp(1, self.max)
    }

    fn doubted(&self, whole: f64) -> f64 {
        whole * DOUBT.powi(self.n_parts)
    }

    /// Prompt tokens of the next feed if other sequences decode in it. Each feed costs them a step, so
    /// it is as full as it may be.
    pub(crate) fn beside(&self, latency: Duration) -> usize {
        let most = self.size(latency);
        match tiled(most) {
            0 => most,
            n_tokens => n_tokens.min(self.max),
        }
    }

    /// Tokens of the next feed if `n_tokens` are to be fed, in feeds that take at most `latency`: all
    /// that are left, or feeds of about one size and of whole tiles.
    pub(crate) fn share(&self, n_tokens: usize, latency: Duration) -> usize {
        let most = self.size(latency);
        let share = |most: usize| n_tokens.div_ceil(n_tokens.div_ceil(most));
        let tiled = tiled(most).min(self.max);
        match n_tokens {
            _ if n_tokens <= most => n_tokens,
            // To leave a part of a tile would cost more than it saves.
            _ if tiled < 4 * TILE => share(most),
            _ => share(tiled).next_multiple_of(TILE).min(tiled),
        }
    }

    /// A feed of `n_tokens`, of which `n_prompt` were a prompt's, took this long.
    pub(crate) fn measured(&mut self, n_prompt: usize, n_tokens: usize, took: Duration) {
        let seconds = took.as_secs_f64() / n_tokens.max(1) as f64;
        let is_whole = n_prompt >= TILE;
        // Reading the weights is most of a small feed, so it says little about a large one.
        let is_telling = match is_whole {
            true => 8 * n_prompt >= self.n_largest,
            false => 4 * n_prompt >= self.n_largest.min(TILE),
        };
        if is_whole && is_telling {
            self.whole = self.whole.map(|whole| self.doubted(whole));
        }
        self.n_parts = if is_whole { 0 } else { self.n_parts.saturating_add(1) };
        let known = if is_whole { &mut self.whole } else { &mut self.part };
        *known = match *known {
            Some(known) if seconds > known && is_telling => Some(seconds),
            Some(known) if seconds < known => Some(0.5 * known + 0.5 * seconds),
            Some(known) => Some(known),
            None => Some(seconds),
        };
        self.n_largest = self.n_largest.max(n_prompt);
    }
}

/// The nearest number of whole tiles, if as many are expected to take less than all of the latency of
/// which `n_tokens` are aimed to take a part.
fn tiled(n_tokens: usize) -> usize {
    let nearest = (n_tokens + TILE / 2) / TILE * TILE;
    if AIM * nearest as f64 <= n_tokens as f64 { nearest } else { n_tokens / TILE * TILE }
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
                    chunk.measured(n, n, time(n));
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
            let n_tokens = chunk.size(latency);
            chunk.measured(n_tokens, n_tokens, latency.mul_f64(n_tokens as f64 / 499.0));
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
            let n_tokens = chunk.size(latency);
            chunk.measured(n_tokens, n_tokens, Duration::from_millis(n_tokens as u64));
        }
        let settled = chunk.size(latency);
        chunk.measured(9, 9, Duration::from_millis(60));
        assert_eq!(chunk.size(latency), settled);
        chunk.measured(settled, settled, Duration::from_millis(3 * settled as u64));
        assert!(chunk.size(latency) <= settled / 2);
    }

    #[test]
    fn beside_decoding_sequences_a_feed_has_whole_tiles_if_they_fit() {
        let latency = Duration::from_millis(250);
        for (n_aimed, n_expected) in
            [(1, 1), (44, 44), (45, 64), (64, 64), (95, 64), (96, 128), (500, 512)]
        {
            let mut chunk = ChunkSize::new(512);
            chunk.measured(512, 512, Duration::ZERO);
            chunk.whole = Some(0.7 * 0.25 / (n_aimed as f64 + 0.5));
            assert_eq!(chunk.beside(latency), n_expected, "{n_aimed}");
        }
    }

    /// Rows that are computed one by one cost twice as much.
    fn cost(n_prompt: usize, n_decoding: usize, slowness: f64) -> Duration {
        let n_prompt = n_prompt as f64 * if n_prompt < TILE { 4.0 } else { 2.0 };
        Duration::from_secs_f64(1e-3 * slowness * (n_prompt + 5.0 * n_decoding as f64))
    }

    #[test]
    fn parts_of_tiles_do_not_make_whole_ones_look_dear() {
        let latency = Duration::from_millis(250);
        let mut chunk = ChunkSize::new(512);
        let feed = |chunk: &mut ChunkSize, n_prompt: Option<usize>, slowness: f64| {
            let n_prompt = n_prompt.unwrap_or_else(|| chunk.beside(latency));
            chunk.measured(n_prompt, n_prompt + 16, cost(n_prompt, 16, slowness));
        };
        (5..10).for_each(|log2| feed(&mut chunk, Some(1 << log2), 1.0));
        (0..99).for_each(|_| feed(&mut chunk, Some(40), 1.0));
        assert_eq!(chunk.beside(latency), 64);
        // The machine was slow for a while. Then it takes some feeds until a tile is tried again.
        (0..9).for_each(|_| feed(&mut chunk, None, 3.0));
        assert!(chunk.beside(latency) < 30, "{}", chunk.beside(latency));
        let mut n_feeds = 0;
        while chunk.beside(latency) < TILE {
            feed(&mut chunk, None, 1.0);
            n_feeds += 1;
        }
        assert!((30..300).contains(&n_feeds), "{n_feeds}");
        (0..9).for_each(|_| feed(&mut chunk, None, 1.0));
        assert_eq!(chunk.beside(latency), 64);
    }
}
