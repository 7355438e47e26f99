//! Scripts, and the answers that most of them are made of.

use std::time::Duration;

/// What is done about one request, in order. After the last act the connection is closed, unless
/// that act was [`Act::Whole`].
pub type Script = Vec<Act>;

/// One act of a script.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends the last bytes of an answer that the client can tell the end of: the connection then
    /// serves the next request.
    Whole(Vec<u8>),
    /// Sends these bytes one by one, with a pause after each, while the client listens.
    Drip(Vec<u8>, Duration),
    /// Sends these bytes this often, while the client listens. They are never held all at once.
    Repeat(Vec<u8>, usize),
    /// Waits.
    Wait(Duration),
    /// Waits until the client closes.
    AwaitClose,
    /// Closes with a reset.
    Reset,
}

/// A whole answer with a length. `headers` end with a line end each.
pub fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Act {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    Act::Whole([head.as_bytes(), body].concat())
}

/// A whole JSON answer.
pub fn json(status: &str, body: &str) -> Act {
    answer(status, "content-type: application/json\r\n", body)
}

/// The head of a stream that ends when the connection closes.
pub fn sse_head() -> Act {
    send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
}

/// [`Act::Send`].
pub fn send(bytes: impl AsRef<[u8]>) -> Act {
    Act::Send(bytes.as_ref().to_vec())
}

/// A stream of these bytes, ended by a clean close.
pub fn stream(body: impl AsRef<[u8]>) -> Script {
    vec![sse_head(), send(body)]
}

/// A stream in chunked encoding, after which the connection serves on.
pub fn chunked(body: impl AsRef<[u8]>) -> Script {
    chunked_pieces([body])
}

/// A stream with one chunk of the chunked encoding per piece, so that a client reads the pieces
/// apart; the connection serves on.
pub fn chunked_pieces(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Script {
    let mut bytes =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for piece in pieces {
        let piece = piece.as_ref();
        // A chunk of no bytes would be the last one.
        if !piece.is_empty() {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    vec![Act::Whole(bytes)]
}

/// An answer whose gzip body of a thousandth of the size becomes `n_mebibytes` of zeros.
///
/// The body is one member. Its stored blocks would not shrink, so it is made of dynamic deflate
/// blocks of one mebibyte, each closed at a byte and therefore the same bytes every time.
pub fn gzip_bomb(content_type: &str, n_mebibytes: usize) -> Script {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-encoding: gzip\r\n\
         connection: close\r\n\r\n"
    );
    let gzip_header = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
    let zeros = vec![0; 1 << 20];
    let mut block = || {
        let mut bytes = Vec::with_capacity(1 << 16);
        deflate
            .compress_vec(&zeros, &mut bytes, flate2::FlushCompress::Full)
            .expect("memory can be compressed");
        bytes
    };
    // From the second block on, all are alike.
    let first = block();
    vec![send(head), send(gzip_header), send(first), Act::Repeat(block(), n_mebibytes - 1)]
}
