//! A server that does exactly what its script says, byte by byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// One act of the script.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes one by one, with a pause after each, while the client listens.
    Drip(Vec<u8>, Duration),
    /// Sends these bytes again and again, while the client listens, at most this often.
    Repeat(Vec<u8>, usize),
    /// Waits.
    Wait(Duration),
    /// Waits until the client closes, and reports when.
    AwaitClose,
    /// Closes with a reset.
    Reset,
}

/// What the server saw of one request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, v) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
        })
    }
}

pub(crate) struct Player {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    n_connections: Arc<Mutex<usize>>,
    closed: Mutex<Receiver<Instant>>,
}

impl Player {
    /// Answers the `i`-th request by the `i`-th script, and later ones by the last.
    pub(crate) fn start(scripts: Vec<Vec<Act>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let n_connections = Arc::<Mutex<usize>>::default();
        let (closed_tx, closed) = channel();
        let (log, connections) = (Arc::clone(&seen), Arc::clone(&n_connections));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                *connections.lock().unwrap() += 1;
                let (log, scripts, closed) = (Arc::clone(&log), scripts.clone(), closed_tx.clone());
                thread::spawn(move || serve(stream, &scripts, &log, &closed));
            }
        });
        Self { addr, seen, n_connections, closed: Mutex::new(closed) }
    }

    pub(crate) fn one(script: Vec<Act>) -> Self {
        Self::start(vec![script])
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn n_connections(&self) -> usize {
        *self.n_connections.lock().unwrap()
    }

    /// When the client closed a connection that was in [`Act::AwaitClose`].
    pub(crate) fn closed_at(&self, wait: Duration) -> Option<Instant> {
        self.closed.lock().unwrap().recv_timeout(wait).ok()
    }
}

fn serve(
    mut stream: TcpStream,
    scripts: &[Vec<Act>],
    log: &Mutex<Vec<Seen>>,
    closed: &Sender<Instant>,
) {
    stream.set_nodelay(true).unwrap();
    // A connection serves requests until a script ends without a length or with a close.
    while let Some(seen) = read_request(&mut stream) {
        let n = {
            let mut log = log.lock().unwrap();
            log.push(seen);
            log.len() - 1
        };
        let script = &scripts[n.min(scripts.len() - 1)];
        let mut stays_open = false;
        for act in script {
            match act {
                Act::Send(bytes) => {
                    stays_open |= is_delimited(bytes);
                    if stream.write_all(bytes).is_err() {
                        return;
                    }
                }
                Act::Drip(bytes, pause) => {
                    for byte in bytes {
                        if stream.write_all(&[*byte]).is_err() {
                            return;
                        }
                        thread::sleep(*pause);
                    }
                }
                Act::Repeat(bytes, n) => {
                    for _ in 0..*n {
                        if stream.write_all(bytes).is_err() {
                            return;
                        }
                    }
                }
                Act::Wait(time) => thread::sleep(*time),
                Act::AwaitClose => {
                    let mut buffer = [0; 1024];
                    while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
                    let _ = closed.send(Instant::now());
                    return;
                }
                Act::Reset => {
                    let linger = Some(Duration::ZERO);
                    socket2::SockRef::from(&stream).set_linger(linger).unwrap();
                    return;
                }
            }
        }
        if !stays_open {
            return;
        }
    }
}

/// Whether the client can tell the end of this answer without a close.
fn is_delimited(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
    let n_body = bytes.len() - head.len() - 4;
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length == Some(n_body) || bytes.ends_with(b"\r\n0\r\n\r\n")
}

fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut seen = Seen { head, body: String::new() };
    let n_body: usize = seen.header("content-length").map_or(0, |n| n.parse().unwrap());
    while bytes.len() < end + n_body {
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
    seen.body = String::from_utf8(bytes[end..end + n_body].to_vec()).unwrap();
    Some(seen)
}

/// A whole answer with a length.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Act {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    Act::Send([head.as_bytes(), body.as_bytes()].concat())
}

pub(crate) fn json(status: &str, body: &str) -> Act {
    answer(status, "content-type: application/json\r\n", body)
}

/// The head of a stream that ends when the connection closes.
pub(crate) fn sse_head() -> Act {
    Act::Send(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_vec(),
    )
}

pub(crate) fn send(text: impl AsRef<[u8]>) -> Act {
    Act::Send(text.as_ref().to_vec())
}

/// A stream of these bytes, ended by a clean close.
pub(crate) fn stream(body: impl AsRef<[u8]>) -> Vec<Act> {
    vec![sse_head(), send(body)]
}

/// A stream in chunked encoding, after which the connection stays open.
pub(crate) fn chunked(body: &str) -> Vec<Act> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    vec![send(head), send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()))]
}
