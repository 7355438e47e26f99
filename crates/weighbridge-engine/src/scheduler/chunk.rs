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

    /// Prompt tokens of the next feed, which shall take at most `latency` with a token of each of
    /// `n_decoding` other sequences; whole tiles, or less than one.
    pub(crate) fn beside(&self, n_decoding: usize, latency: Duration) -> usize {
        let room = self.max.saturating_sub(n_decoding);
        whole_tiles(self.most(n_decoding, latency).min(room)).max(1)
    }

    /// Tokens of the next feed if `n_tokens` are to be fed and nothing decodes: all that are left, or
    /// feeds of about one size and of whole tiles, which take at most `latency`.
    pub(crate) fn share(&self, n_tokens: usize, latency: Duration) -> usize {
        let most = self.most(0, latency);
        let share = |most: usize| n_tokens.div_ceil(n_tokens.div_ceil(most));
        let tiled = whole_tiles(most);
        match n_tokens {
            _ if n_tokens <= most => n_tokens,
            // To leave a part of a tile would cost more than it saves.
            _ if tiled < 4 * TILE => share(most).max(TILE.min(most)),
            _ => share(tiled).next_multiple_of(TILE).min(tiled),
        }
    }

    fn most(&self, n_decoding: usize, latency: Duration) -> usize {
        let fit = Fit { n_decoding, seconds: latency.as_secs_f64() };
        let n_tokens = match (self.whole, self.part) {
            (Some(whole), Some(part)) => {
                let doubted = whole * DOUBT.powi(self.n_parts);
                // Parts that are as slow say that nothing has changed.
                let is_to_try = 4 * fit.n_aimed(part) >= TILE && fit.n_tiled(doubted) > 0;
                match fit.n_tiled(whole) {
                    0 if is_to_try => TILE,
                    0 => fit.n_aimed(part).min(TILE - 1),
                    n_tokens => n_tokens.max(fit.n_aimed(whole)),
                }
            }
            (Some(seconds), None) | (None, Some(seconds)) => {
                fit.n_tiled(seconds).max(fit.n_aimed(seconds))
            }
            (None, None) => FIRST,
        };
        n_tokens.min(2 * self.n_largest).clamp(1, self.max)
    }

    /// A feed of `n_tokens`, of which `n_prompt` were a prompt's, took this long.
    pub(crate) fn measured(&mut self, n_prompt: usize, n_tokens: usize, took: Duration) {
        let seconds = took.as_secs_f64() / n_tokens.max(1) as f64;
        let is_whole = n_prompt >= TILE;
        // Reading the weights is most of a small feed, so it says little about a large one.
        let is_telling = is_whole || 4 * n_prompt >= self.n_largest.min(TILE);
        if is_whole {
            self.whole = self.whole.map(|whole| whole * DOUBT.powi(self.n_parts));
            self.n_parts = 0;
        } else if is_telling {
            self.n_parts = self.n_parts.saturating_add(1);
        }
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

fn whole_tiles(n_tokens: usize) -> usize {
    if n_tokens < TILE { n_tokens } else { n_tokens / TILE * TILE }
}

/// What a feed has to fit into.
struct Fit {
    n_decoding: usize,
    seconds: f64,
}

impl Fit {
    /// Prompt tokens that shall take a part of the time, at these seconds per token.
    fn n_aimed(&self, seconds: f64) -> usize {
        self.n_all(seconds).saturating_sub(self.n_decoding).max(1)
    }

    /// The nearest number of whole tiles, if as many are expected to take less than all of the time;
    /// 0 if not one does.
    fn n_tiled(&self, seconds: f64) -> usize {
        let n_aimed = self.n_aimed(seconds);
        let nearest = (n_aimed + TILE / 2) / TILE * TILE;
        match AIM * (nearest + self.n_decoding) as f64 <= self.n_all(seconds) as f64 {
            true => nearest,
            false => n_aimed / TILE * TILE,
        }
    }

    fn n_all(&self, seconds: f64) -> usize {
        (AIM * self.seconds / seconds.max(1e-9)).min(1e9) as usize
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
                    let n = chunk.most(0, latency);
                    chunk.measured(n, n, time(n));
                }
                let n = chunk.most(0, latency);
                assert!(time(n) <= latency || n == 1, "{n}");
                assert!(time(2 * n) >= latency || n == 4096, "{n}");
                assert!(chunk.most(0, latency / 8) <= n.div_ceil(4) || n == 4096);
            }
        }
    }

    #[test]
    fn feeds_are_of_one_size_and_of_whole_tiles() {
        let latency = Duration::from_secs(1);
        let mut chunk = ChunkSize::new(4096);
        // A little more than two milliseconds per token.
        for _ in 0..9 {
            let n_tokens = chunk.most(0, latency);
            chunk.measured(n_tokens, n_tokens, latency.mul_f64(n_tokens as f64 / 499.0));
        }
        assert_eq!(chunk.most(0, latency), 349);
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
        assert_eq!((chunk.most(0, shorter), chunk.share(512, shorter)), (256, 256));
        // Of little room all is used.
        let short = latency / 10;
        assert_eq!(
            (chunk.most(0, short), chunk.share(512, short), chunk.share(34, short)),
            (34, 34, 34)
        );
    }

    #[test]
    fn one_slow_feed_shrinks_the_next_and_small_ones_do_not() {
        let latency = Duration::from_millis(1_000);
        let mut chunk = ChunkSize::new(4096);
        for _ in 0..20 {
            let n_tokens = chunk.most(0, latency);
            chunk.measured(n_tokens, n_tokens, Duration::from_millis(n_tokens as u64));
        }
        let settled = chunk.most(0, latency);
        chunk.measured(9, 9, Duration::from_millis(60));
        assert_eq!(chunk.most(0, latency), settled);
        chunk.measured(settled, settled, Duration::from_millis(3 * settled as u64));
        assert!(chunk.most(0, latency) <= settled / 2);
    }

    #[test]
    fn beside_decoding_sequences_a_feed_has_whole_tiles_if_they_fit() {
        let latency = Duration::from_millis(250);
        for (n_aimed, n_expected) in
            [(1, 1), (44, 44), (45, 64), (64, 64), (95, 64), (96, 128), (500, 512)]
        {
            let mut chunk = ChunkSize::new(1024);
            chunk.measured(1024, 1024, latency.mul_f64(0.7 * 1024.0 / (n_aimed as f64 + 0.5)));
            assert_eq!(chunk.beside(0, latency), n_expected, "{n_aimed}");
            let (n_beside, n_all) = (chunk.beside(9, latency), n_aimed as f64 / 0.7 + 0.8);
            assert!((n_beside + 9) as f64 <= n_all.max(10.0), "{n_beside} of {n_aimed}");
        }
        let mut chunk = ChunkSize::new(512);
        chunk.measured(512, 512, Duration::from_millis(1));
        assert_eq!(chunk.beside(1, latency), 448, "there is room for all that decode");
        assert_eq!(chunk.beside(512, latency), 1);
        assert_eq!(chunk.beside(1, Duration::MAX), 448);
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
            let n_prompt = n_prompt.unwrap_or_else(|| chunk.beside(16, latency));
            chunk.measured(n_prompt, n_prompt + 16, cost(n_prompt, 16, slowness));
        };
        (5..10).for_each(|log2| feed(&mut chunk, Some(1 << log2), 1.0));
        (0..99).for_each(|_| feed(&mut chunk, Some(40), 1.0));
        assert_eq!(chunk.beside(16, latency), 64);
        // The machine was slow for a while. Then it takes some feeds until a tile is tried again.
        (0..9).for_each(|_| feed(&mut chunk, None, 3.0));
        assert!(chunk.beside(16, latency) < 30, "{}", chunk.beside(16, latency));
        let mut n_feeds = 0;
        while chunk.beside(16, latency) < TILE {
            feed(&mut chunk, None, 1.0);
            n_feeds += 1;
        }
        assert!((30..300).contains(&n_feeds), "{n_feeds}");
        (0..9).for_each(|_| feed(&mut chunk, None, 1.0));
        assert_eq!(chunk.beside(16, latency), 64);
    }

    #[test]
    fn one_glitch_does_not_make_chunks_small_for_ever() {
        let latency = Duration::from_secs(2);
        for n_prompt in [320, 512, 650] {
            let mut chunk = ChunkSize::new(512);
            let mut n_fed = 0;
            for prompt in 0..500 {
                let (mut n_left, mut n_largest) = (n_prompt, 0);
                while n_left > 0 {
                    let n_tokens = chunk.share(n_left, latency);
                    let glitch = if n_fed == 99 { 10_000 } else { 0 };
                    let took = Duration::from_millis(20 + 4 * n_tokens as u64 + glitch);
                    chunk.measured(n_tokens, n_tokens, took);
                    n_left -= n_tokens;
                    n_largest = n_largest.max(n_tokens);
                    n_fed += 1;
                }
                assert!(prompt < 450 || n_largest >= 192, "{n_largest} of {n_prompt}");
            }
        }
    }

    #[test]
    fn a_tile_that_is_too_slow_is_not_tried_while_parts_are_slow_too() {
        let latency = Duration::from_millis(250);
        let mut chunk = ChunkSize::new(512);
        for _ in 0..5_000 {
            let n_tokens = chunk.beside(1, latency);
            let took = Duration::from_millis(16 * (1 + n_tokens as u64));
            chunk.measured(n_tokens, n_tokens + 1, took);
            assert!(took < 2 * latency || chunk.n_largest < TILE, "{n_tokens}");
        }
        assert!(chunk.beside(1, latency) < TILE);
    }
}
