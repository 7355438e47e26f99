//! A server that says the key it was sent in every place of its answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::canary_scan::forms;

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers with the key in its text, and between two answers something that is none.
    Echoes,
    /// Answers a few times, then holds each answer back in the middle of the key.
    Hangs,
    /// Knows no key.
    Refuses,
}

/// It serves until the test ends.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    n_with_key: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(key: &'static str, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (manner, n_with_key) = (Arc::new(Mutex::new(manner)), Arc::<AtomicUsize>::default());
        let server = Self { address, manner: Arc::clone(&manner), n_with_key: n_with_key.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (manner, n_with_key) = (Arc::clone(&manner), Arc::clone(&n_with_key));
                thread::spawn(move || {
                    let mut stream = stream;
                    let Some(head) = read(&mut stream) else { return };
                    let told = head.lines().find_map(|l| l.strip_prefix("authorization: Bearer "));
                    if told != Some(key) {
                        return;
                    }
                    let n = n_with_key.fetch_add(1, Ordering::SeqCst);
                    let manner = *manner.lock().unwrap();
                    // The client may be gone.
                    let _ = answer(&mut stream, key, n, manner);
                });
            }
        });
        server
    }

    /// Requests that came with the key.
    pub(crate) fn n_with_key(&self) -> usize {
        self.n_with_key.load(Ordering::SeqCst)
    }

    pub(crate) fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub(crate) fn model(&self) -> String {
        format!("openai-compatible:http://{}/v1#m", self.address)
    }
}

/// Reads a request; its head, with the names of its headers in lower case as our client sends them.
fn read(stream: &mut TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if length.is_none_or(|length| body.len() >= length.parse().unwrap()) {
            return Some(head.to_owned());
        }
    }
}

fn answer(stream: &mut TcpStream, key: &str, n: usize, manner: Manner) -> std::io::Result<()> {
    // Every header that a client might look into.
    let telling = format!(
        "x-request-id: {key}\r\nset-cookie: k={key}\r\nlocation: http://{key}@127.0.0.1/{key}\r\n\
         retry-after: {key}\r\nwww-authenticate: Bearer realm={key}\r\nserver: {key}\r\n"
    );
    let whole = |status: &str, media_type: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\n{telling}content-type: {media_type}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let stream_head = format!(
        "HTTP/1.1 200 OK\r\n{telling}content-type: text/event-stream\r\nconnection: close\r\n\r\n"
    );
    let all_forms: Vec<String> = forms(key).into_iter().flat_map(|(_, texts)| texts).collect();
    let shouted = format!("{} {}\n{}", all_forms.join(" "), &key[..9], &key[9..]);
    let error = |code: &str| {
        json!({"error": {"message": shouted, "code": code, "type": key, "param": key}}).to_string()
    };
    match manner {
        Manner::Refuses => {
            let body = error("invalid_api_key");
            return stream
                .write_all(whole("401 Unauthorized", "application/json", &body).as_bytes());
        }
        Manner::Hangs if n >= 6 => {
            let (first, _) = key.split_at(12);
            stream.write_all(stream_head.as_bytes())?;
            stream.write_all(delta(&format!("your key is {first}")).as_bytes())?;
            // Until the client dies.
            let _ = stream.read(&mut [0; 16]);
            return Ok(());
        }
        Manner::Hangs | Manner::Echoes => {}
    }
    // Between failures an answer, or the run would stop after a few.
    if n.is_multiple_of(2) {
        let form = &all_forms[n / 2 % all_forms.len()];
        let (first, second) = form.split_at(form.len() / 2);
        let usage = json!({"prompt_tokens": 1, "completion_tokens": 1, "key": key});
        let rest = [
            delta(&format!("your key is {first}")),
            delta(second),
            format!("event: {key}\ndata: {}\n\n", json!({"unknown": key})),
            chunk(
                json!({"choices": [{"index": 0, "delta": {"secret": key}, "finish_reason": "stop"}],
                "usage": usage, "system_fingerprint": key, "id": key, key: key}),
            ),
            "data: [DONE]\n\n".to_owned(),
        ];
        return stream.write_all(format!("{stream_head}{}", rest.concat()).as_bytes());
    }
    let bytes = match n / 2 % 8 {
        0 => whole("500 Internal Server Error", "application/json", &error(key)),
        1 => whole("200 OK", "text/html", &format!("<html>{shouted}</html>")),
        2 => whole("200 OK", "application/json", &format!("{{\"broken\": \"{key}")),
        3 => format!("{stream_head}data: {{\"broken\": \"{key}\n\n"),
        4 => format!("{stream_head}{}", chunk(json!({"error": {"message": shouted}}))),
        5 => format!("{stream_head}{}data: {key}", delta(key)),
        6 => whole("302 Found", "text/plain", &shouted),
        _ => format!("HTTP/1.1 200 OK\r\n{telling}content-encoding: {key}\r\n\r\n{key}"),
    };
    stream.write_all(bytes.as_bytes())
}

fn delta(text: &str) -> String {
    chunk(json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}))
}

fn chunk(value: Value) -> String {
    format!("data: {value}\n\n")
}
