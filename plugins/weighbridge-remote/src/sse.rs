//! Server-sent events, framed in bytes.
//!
//! UTF-8 is decoded per complete event, never per network chunk: a chunk may end in the middle of
//! a character, a line end or the byte order mark.

use weighbridge_core::{Error, ErrorKind, Result};

/// Largest event, in bytes of its lines.
pub(crate) const MAX_EVENT_BYTES: usize = 1 << 20;

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The value of its last `event:` line; empty if there was none.
    pub(crate) event: String,
    /// Its `data:` lines joined by line feeds.
    pub(crate) data: String,
    /// Where in the stream its first line began, in bytes.
    pub(crate) offset: u64,
}

/// Takes bytes apart into [`Frame`]s by the WHATWG rules, whatever the chunks were.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    event: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    n_bytes: u64,
    frame_offset: Option<u64>,
    is_after_cr: bool,
    is_past_first_line: bool,
}

impl SseParser {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off `input` until an event is complete; `None` when the input is used up.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] for an event above [`MAX_EVENT_BYTES`] or with invalid UTF-8.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>> {
        loop {
            if self.is_after_cr && !input.is_empty() {
                self.is_after_cr = false;
                if input[0] == b'\n' {
                    self.consume(input, 1);
                }
            }
            let end = memchr::memchr2(b'\n', b'\r', input);
            let n_line = end.unwrap_or(input.len());
            if self.line.len() + self.event.len() + self.data.len() + n_line > MAX_EVENT_BYTES {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!("an event of the stream exceeds {MAX_EVENT_BYTES} bytes"),
                )
                .with("offset", self.frame_offset.unwrap_or(self.n_bytes)));
            }
            if n_line > 0 {
                self.frame_offset.get_or_insert(self.n_bytes);
            }
            let piece = &input[..n_line];
            let Some(end) = end else {
                self.line.extend_from_slice(piece);
                self.consume(input, n_line);
                return Ok(None);
            };
            self.is_after_cr = input[end] == b'\r';
            self.consume(input, end + 1);
            let frame = if self.line.is_empty() {
                self.end_line(piece)?
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(piece);
                let frame = self.end_line(&line)?;
                line.clear();
                self.line = line;
                frame
            };
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// Whether bytes are left that no blank line closed. They never complete a stream.
    pub(crate) fn has_unfinished_event(&self) -> bool {
        self.has_data || !self.line.is_empty()
    }

    fn consume(&mut self, input: &mut &[u8], n: usize) {
        self.n_bytes += n as u64;
        *input = &input[n..];
    }

    fn end_line(&mut self, mut text: &[u8]) -> Result<Option<Frame>> {
        if !self.is_past_first_line {
            self.is_past_first_line = true;
            text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        }
        if text.is_empty() {
            return self.dispatch();
        }
        self.field(text);
        Ok(None)
    }

    fn field(&mut self, line: &[u8]) {
        let (name, value) = match line.iter().position(|&b| b == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.event.clear();
                self.event.extend_from_slice(value);
            }
            // Comments, `id:`, `retry:` and what may come: nothing to us, for we never reconnect.
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Result<Option<Frame>> {
        let offset = self.frame_offset.take().unwrap_or(self.n_bytes);
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        if !std::mem::take(&mut self.has_data) {
            return Ok(None);
        }
        let text = |bytes| {
            String::from_utf8(bytes).map_err(|_| {
                Error::new(ErrorKind::Protocol, "an event of the stream is not valid UTF-8")
                    .with("offset", offset)
            })
        };
        Ok(Some(Frame { event: text(event)?, data: text(data)?, offset }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Result<Vec<(String, String)>> {
        let mut parser = SseParser::new();
        let mut frames = Vec::new();
        for chunk in chunks {
            let mut input = *chunk;
            while let Some(frame) = parser.next(&mut input)? {
                frames.push((frame.event, frame.data));
            }
            assert!(input.is_empty());
        }
        Ok(frames)
    }

    fn pair(event: &str, data: &str) -> (String, String) {
        (event.to_owned(), data.to_owned())
    }

    #[test]
    fn the_rules_of_whatwg_hold() {
        for (bytes, frames) in [
            (&b"data: a\n\n"[..], vec![pair("", "a")]),
            (b"data:a\r\rdata:  b\r\r", vec![pair("", "a"), pair("", " b")]),
            (b"data: a\r\n\r\ndata: b\n\r\n", vec![pair("", "a"), pair("", "b")]),
            (b"\xEF\xBB\xBFdata: a\n\n", vec![pair("", "a")]),
            (b": ping\n\n: OPENROUTER PROCESSING\n\ndata: a\n\n", vec![pair("", "a")]),
            (b"event: e\nid: 1\nretry: 5\ndata: a\ndata: b\n\n", vec![pair("e", "a\nb")]),
            (b"event: e\n\ndata: a\n\n", vec![pair("", "a")]),
            (b"data\n\n", vec![pair("", "")]),
            (b"data:\ndata:\n\n", vec![pair("", "\n")]),
            (b"\n\n\n", vec![]),
            (b"data: unfinished\n", vec![]),
            ("data: Grüße \u{1F600}\r\n\r\n".as_bytes(), vec![pair("", "Grüße \u{1F600}")]),
        ] {
            assert_eq!(parse(&[bytes]).unwrap(), frames, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn every_split_gives_the_same_frames() {
        let stream = "\u{FEFF}: hi\r\ndata: {\"a\":\"Grüße \u{1F600}\"}\r\n\r\nevent: x\rdata: 1\r\
                      data: 2\r\rdata:[DONE]\n\n"
            .as_bytes();
        let whole = parse(&[stream]).unwrap();
        assert_eq!(whole.len(), 3);
        for i in 0..=stream.len() {
            for j in i..=stream.len() {
                assert_eq!(parse(&[&stream[..i], &stream[i..j], &stream[j..]]).unwrap(), whole);
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(parse(&bytes).unwrap(), whole);
    }

    #[test]
    fn an_unfinished_event_is_seen_and_not_given() {
        let mut parser = SseParser::new();
        let mut input = &b"data: a\n\ndata: b\n"[..];
        assert!(parser.next(&mut input).unwrap().is_some());
        assert!(!parser.has_unfinished_event());
        assert!(parser.next(&mut input).unwrap().is_none());
        assert!(parser.has_unfinished_event());
    }

    #[test]
    fn invalid_utf8_and_endless_events_are_damaged_framing() {
        let error = parse(&[b"data: ok\n\ndata: \xFF\n\n"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert_eq!(error.context("offset"), Some("10"));

        let mut parser = SseParser::new();
        let chunk = vec![b'x'; 64 << 10];
        let n_taken = (0..100_000).find(|_| parser.next(&mut &chunk[..]).is_err()).unwrap();
        assert_eq!(n_taken, MAX_EVENT_BYTES / chunk.len());

        let mut parser = SseParser::new();
        let line = [b"data: ".to_vec(), vec![b'x'; 1000], b"\n".to_vec()].concat();
        assert!((0..2000).any(|_| parser.next(&mut &line[..]).is_err()));
    }
}
