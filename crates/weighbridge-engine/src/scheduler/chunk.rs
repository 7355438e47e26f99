//! How many prompt tokens one feed may have, so that a cancel is never waited for long.

use std::time::Duration;

/// Adapts to the engine: begins small, at most doubles, and shrinks at once when a feed was slow.
#[derive(Clone, Debug)]
pub(crate) struct ChunkSize {
    size: usize,
    max: usize,
    latency: Duration,
}

impl ChunkSize {
    /// Feeds shall take at most `latency` and have at most `max` tokens.
    pub(crate) fn new(latency: Duration, max: usize) -> Self {
        Self { size: 8.min(max.max(1)), max: max.max(1), latency }
    }

    /// Tokens of the next feed; at least 1.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A feed of `n_tokens` took this long.
    pub(crate) fn measured(&mut self, n_tokens: usize, took: Duration) {
        let share = took.as_secs_f64() / self.latency.as_secs_f64().max(1e-6);
        if share > 0.8 {
            // Aim at 60 %: attention makes later tokens of a prompt dearer than earlier ones.
            let fitting = (n_tokens as f64 * 0.6 / share) as usize;
            self.size = fitting.clamp(1, self.size);
        } else if share < 0.4 && n_tokens >= self.size {
            self.size = (self.size * 2).min(self.max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_settles_where_a_feed_fits_into_the_latency() {
        for us_per_token in [10u64, 1_000, 20_000, 400_000] {
            let mut chunk = ChunkSize::new(Duration::from_millis(250), 4096);
            for _ in 0..30 {
                let n = chunk.size();
                chunk.measured(n, Duration::from_micros(us_per_token * n as u64));
            }
            let took = Duration::from_micros(us_per_token * chunk.size() as u64);
            assert!(took <= Duration::from_millis(250) || chunk.size() == 1, "{took:?}");
            assert!(took >= Duration::from_millis(40) || chunk.size() == 4096, "{took:?}");
        }
    }
}
