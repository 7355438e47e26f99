//! One connection: requests in, acts out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::journal::{End, Record};
use super::script::Act;
use super::{MAX_SILENCE, Speech, Stage};

/// Largest request that is read.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// Why the acts of a script ended.
enum Played {
    /// All of them, and the next request may come.
    ServesOn,
    /// All of them; the connection is to be closed.
    Closes,
    /// The client was gone before.
    ClientClosed,
}

pub(super) struct Connection<'a> {
    n: usize,
    stage: &'a Stage,
}

impl<'a> Connection<'a> {
    pub(super) fn new(n: usize, stage: &'a Stage) -> Self {
        Self { n, stage }
    }

    pub(super) fn serve(&self, socket: TcpStream) {
        // A socket that the peer has closed already takes no settings.
        let _ = socket.set_nodelay(true);
        let _ = socket.set_read_timeout(Some(MAX_SILENCE));
        let _ = socket.set_write_timeout(Some(MAX_SILENCE));
        let Ok(control) = socket.try_clone() else { return };
        match &self.stage.speech {
            Speech::Http => self.serve_requests(socket, &control),
            Speech::Raw => self.serve_raw(socket, &control),
            #[cfg(feature = "tls")]
            Speech::Tls(config) => {
                if let Some(stream) = super::tls::accept(socket, config) {
                    self.serve_requests(stream, &control);
                }
            }
            #[cfg(feature = "tls")]
            Speech::RawTls(config) => {
                if let Some(stream) = super::tls::accept(socket, config) {
                    self.serve_raw(stream, &control);
                }
            }
        }
    }

    fn serve_requests(&self, mut stream: impl Read + Write, control: &TcpStream) {
        let mut pending = Vec::new();
        while let Some(record) = self.read_request(&mut stream, &mut pending) {
            if !matches!(self.play(&mut stream, control, record), Played::ServesOn) {
                return;
            }
        }
    }

    fn serve_raw(&self, mut stream: impl Read + Write, control: &TcpStream) {
        let mut first = [0; 4096];
        if let Ok(n @ 1..) = stream.read(&mut first) {
            let head = String::from_utf8_lossy(&first[..n]).into_owned();
            self.play(&mut stream, control, self.record(head, String::new()));
        }
    }

    fn record(&self, head: String, body: String) -> Record {
        Record {
            connection: self.n,
            head,
            body,
            received: Instant::now(),
            n_bytes_sent: 0,
            end: End::Open,
        }
    }

    /// The next request; `pending` holds what was read beyond the one before.
    fn read_request(&self, stream: &mut impl Read, pending: &mut Vec<u8>) -> Option<Record> {
        let mut buffer = [0; 8192];
        let mut more = |bytes: &mut Vec<u8>| match stream.read(&mut buffer) {
            Ok(n @ 1..) if bytes.len() + n <= MAX_REQUEST_BYTES => {
                bytes.extend_from_slice(&buffer[..n]);
                Some(())
            }
            _ => None,
        };
        let n_head = loop {
            if let Some(end) = pending.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            more(pending)?;
        };
        let head = String::from_utf8_lossy(&pending[..n_head]).into_owned();
        let mut record = self.record(head, String::new());
        let n_body = record.header("content-length").map_or(Some(0), |n| n.parse().ok())?;
        while pending.len() < n_head + n_body {
            more(pending)?;
        }
        record.body = String::from_utf8_lossy(&pending[n_head..n_head + n_body]).into_owned();
        record.received = Instant::now();
        pending.drain(..n_head + n_body);
        Some(record)
    }

    fn play(
        &self,
        stream: &mut (impl Read + Write),
        control: &TcpStream,
        record: Record,
    ) -> Played {
        let n = self.stage.journal.enter(record.clone());
        let script = (self.stage.director)(&record, n);
        let mut n_sent = 0;
        let played = self.act_all(stream, control, &script, &mut n_sent);
        let end = match played {
            Played::ClientClosed => End::ClientClosed(Instant::now()),
            Played::ServesOn | Played::Closes => End::Played,
        };
        self.stage.journal.end(n, n_sent, end);
        played
    }

    fn act_all(
        &self,
        stream: &mut (impl Read + Write),
        control: &TcpStream,
        script: &[Act],
        n_sent: &mut u64,
    ) -> Played {
        for (i, act) in script.iter().enumerate() {
            let mut put = |bytes: &[u8]| {
                let is_sent = stream.write_all(bytes).and_then(|()| stream.flush()).is_ok();
                *n_sent += if is_sent { bytes.len() as u64 } else { 0 };
                is_sent
            };
            let goes_on = match act {
                Act::Send(bytes) | Act::Whole(bytes) => put(bytes),
                Act::Drip(bytes, pause) => {
                    bytes.iter().all(|&byte| put(&[byte]) && self.pause(*pause))
                }
                Act::Repeat(bytes, n) => (0..*n).all(|_| put(bytes)),
                Act::Wait(time) => self.pause(*time),
                Act::AwaitClose => {
                    let mut buffer = [0; 1024];
                    while matches!(stream.read(&mut buffer), Ok(1..)) {}
                    false
                }
                Act::Reset => {
                    let socket = socket2::SockRef::from(control);
                    let _ = socket.set_linger(Some(Duration::ZERO));
                    return Played::Closes;
                }
            };
            if !goes_on {
                return Played::ClientClosed;
            }
            if matches!(act, Act::Whole(_)) && i + 1 == script.len() {
                return Played::ServesOn;
            }
        }
        Played::Closes
    }

    fn pause(&self, time: Duration) -> bool {
        time.is_zero() || self.stage.pause(time)
    }
}
