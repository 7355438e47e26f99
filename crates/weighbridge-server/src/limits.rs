//! How much a client may ask of the server.

use std::time::Duration;

/// Bounds of what clients may do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest request body, in bytes. 8 MiB.
    pub max_body_bytes: usize,
    /// Largest request head, in bytes; at least 8 KiB. 32 KiB.
    pub max_head_bytes: usize,
    /// Connections at once; more are closed at once. 1,024.
    pub max_connections: usize,
    /// Generations at once, waiting ones included; more are answered 503. 256.
    pub max_calls: usize,
    /// Largest `max_tokens` of a request. 1,000,000.
    pub max_tokens: u32,
    /// Time for a request's head, also while a kept connection idles. 30 s.
    pub head_timeout: Duration,
    /// Time for a request's body. 30 s.
    pub body_timeout: Duration,
    /// Time in which a client must take some of what is written to it. 30 s.
    pub write_timeout: Duration,
    /// Time that calls under way get to end after the shutdown began. 30 s.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let half_a_minute = Duration::from_secs(30);
        Self {
            max_body_bytes: 8 << 20,
            max_head_bytes: 32 << 10,
            max_connections: 1024,
            max_calls: 256,
            max_tokens: 1_000_000,
            head_timeout: half_a_minute,
            body_timeout: half_a_minute,
            write_timeout: half_a_minute,
            drain_timeout: half_a_minute,
        }
    }
}
