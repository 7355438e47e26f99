//! A server over a scripted backend, and a client that sends bytes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weighbridge_core::Backend;
use weighbridge_server::{Limits, Running, Server};
pub(crate) use weighbridge_testkit::{Scripted, Step};

pub(crate) fn server(model: &Arc<Scripted>) -> Running {
    server_with(model, Limits::default())
}

pub(crate) fn server_with(model: &Arc<Scripted>, limits: Limits) -> Running {
    let backend: Arc<dyn Backend> = model.clone();
    Server::new([("m".to_owned(), backend)]).with_limits(limits).spawn(free()).unwrap()
}

pub(crate) fn free() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(crate) fn chat(fields: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// An answer to hand-written bytes.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The data of the stream's events.
    pub(crate) fn events(&self) -> Vec<String> {
        let data = |event: &str| event.strip_prefix("data: ").unwrap().to_owned();
        self.body.split_terminator("\n\n").map(data).collect()
    }
}

pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends bytes and reads until the server closes.
pub(crate) fn raw(addr: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    let mut stream = connect(addr);
    // A server that refuses early may close before all is written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    reply(&answer)
}

pub(crate) fn reply(answer: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
        .collect();
    let is_chunked = headers.get("transfer-encoding").is_some_and(|e| e == "chunked");
    let body = if is_chunked { unchunk(body) } else { body.to_owned() };
    Some(Reply { status, headers, body })
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        text.push_str(chunk);
        body = &rest[size + 2..];
    }
    text
}

pub(crate) fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub(crate) fn get(addr: SocketAddr, path: &str) -> Reply {
    raw(addr, &request(addr, "GET", path, "", "")).unwrap()
}

pub(crate) fn post(addr: SocketAddr, path: &str, body: &Value) -> Reply {
    let headers = "content-type: application/json\r\n";
    raw(addr, &request(addr, "POST", path, headers, &body.to_string())).unwrap()
}

pub(crate) fn post_chat(addr: SocketAddr, fields: Value) -> Reply {
    post(addr, "/v1/chat/completions", &chat(fields))
}

/// Waits until something holds, at most a second.
#[track_caller]
pub(crate) fn within_a_second(what: &str, holds: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(1), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
