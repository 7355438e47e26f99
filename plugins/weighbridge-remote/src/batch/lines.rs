//! A body as JSON lines, never held whole.

use serde_json::Value;
use weighbridge_core::{Error, ErrorKind, Result};

use crate::exchange::Exchange;
use crate::http::MAX_BODY_BYTES;

/// Reads a body line by line. A line is one answer, and as long as an answer may be.
pub(super) struct Lines {
    exchange: Exchange,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are known to hold no line feed.
    n_searched: usize,
    is_ended: bool,
}

impl Lines {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self { exchange, buffer: Vec::new(), n_searched: 0, is_ended: false }
    }

    /// The next line that is not blank, as JSON or as the text that is none; `None` at the end.
    ///
    /// # Errors
    /// If the body breaks off, or a line is too long.
    pub(super) async fn next(&mut self) -> Result<Option<Result<Value, String>>> {
        while let Some(line) = self.line().await? {
            let line = line.trim_ascii();
            if !line.is_empty() {
                let value = serde_json::from_slice(line);
                return Ok(Some(value.map_err(|_| String::from_utf8_lossy(line).into_owned())));
            }
        }
        Ok(None)
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let found = self.buffer[self.n_searched..].iter().position(|&b| b == b'\n');
            if let Some(at) = found {
                let line = self.buffer.drain(..=self.n_searched + at).collect();
                self.n_searched = 0;
                return Ok(Some(line));
            }
            self.n_searched = self.buffer.len();
            if self.buffer.len() as u64 > MAX_BODY_BYTES {
                let mib = MAX_BODY_BYTES >> 20;
                let message = format!("a line of the job's answers exceeds {mib} MiB");
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            if self.is_ended {
                self.n_searched = 0;
                let rest = std::mem::take(&mut self.buffer);
                return Ok((!rest.is_empty()).then_some(rest));
            }
            match self.exchange.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => self.is_ended = true,
            }
        }
    }
}
