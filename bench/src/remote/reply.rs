//! The answer that the server always gives, and the request that asks for it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use clap::ValueEnum;
use weighbridge_bench::Result;

/// The text of every answer.
pub(crate) const TEXT: &str = "ok";
/// Below the server's root.
pub(crate) const ROUTE: &str = "/v1/chat/completions";

/// The form in which one generated token comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reply {
    /// One JSON document.
    Document,
    /// A stream of events.
    Stream,
}

impl Reply {
    pub(crate) const ALL: [Self; 2] = [Self::Document, Self::Stream];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Document => "document",
            Self::Stream => "stream",
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Document => "application/json",
            Self::Stream => "text/event-stream",
        }
    }

    pub(crate) fn body(self) -> &'static str {
        match self {
            Self::Document => concat!(
                r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","#,
                r#""choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"#,
                r#""logprobs":null,"finish_reason":"stop"}],"#,
                r#""usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#,
            ),
            Self::Stream => concat!(
                r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"#,
                r#""model":"m","choices":[{"index":0,"delta":{"role":"assistant","#,
                r#""content":"ok"},"logprobs":null,"finish_reason":null}]}"#,
                "\n\n",
                r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"#,
                r#""model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"#,
                r#""finish_reason":"stop"}]}"#,
                "\n\n",
                r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"#,
                r#""model":"m","choices":[],"#,
                r#""usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#,
                "\n\ndata: [DONE]\n\n",
            ),
        }
    }
}

/// A request as it was on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    /// Headers, without those that a client sets by itself.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// What a client sends to the server at the URL that it is given.
pub(crate) fn what_is_sent(client: impl FnOnce(&str) -> Result<()>, reply: Reply) -> Result<Sent> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = thread::spawn(move || -> std::io::Result<Sent> {
        let (mut stream, _) = listener.accept()?;
        let sent = read(&mut stream)?;
        let (media_type, body) = (reply.media_type(), reply.body());
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        Ok(sent)
    });
    client(&url)?;
    Ok(server.join().map_err(|_| "the server panicked")??)
}

fn read(stream: &mut TcpStream) -> std::io::Result<Sent> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        let (own, others): (Vec<_>, Vec<_>) =
            headers.partition(|(name, _)| matches!(name.as_str(), "host" | "content-length"));
        let length = own.iter().find(|(name, _)| name == "content-length");
        if length.is_some_and(|(_, length)| length.parse() == Ok(body.len())) {
            return Ok(Sent { headers: others, body: body.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bare::Bare;

    #[test]
    fn what_was_sent_can_be_sent_again() {
        let sent = Sent { headers: vec![("x-a".into(), "1: 2".into())], body: "{}".into() };
        let again = what_is_sent(
            |url| Bare::connect(url.trim_start_matches("http://").parse()?, &sent)?.raw(),
            Reply::Document,
        )
        .unwrap();
        assert_eq!((again.headers, again.body), (sent.headers, sent.body));
    }
}
