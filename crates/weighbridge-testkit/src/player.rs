//! A server that does exactly what its script says, byte by byte, and keeps a journal.
//!
//! It listens on loopback, takes at most [`MAX_CONNECTIONS`] connections at once, gives up on a
//! silent peer after [`MAX_SILENCE`], and ends with its [`Player`].

mod connection;
mod journal;
mod script;
#[cfg(feature = "tls")]
pub mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use journal::{End, Record};
pub use script::{
    Act, Script, answer, chunked, chunked_pieces, gzip_bomb, json, send, sse_head, stream,
};

use connection::Connection;
use journal::Journal;

/// Connections served at once; more are closed unanswered.
pub const MAX_CONNECTIONS: usize = 1024;
/// How long a peer may neither send nor take anything.
pub const MAX_SILENCE: Duration = Duration::from_secs(60);

/// From a request, and how many came before it, to what is done.
type Director = Box<dyn Fn(&Record, usize) -> Script + Send + Sync>;

/// What a connection speaks below the script.
enum Speech {
    /// HTTP/1.1 requests are read; each gets a script.
    Http,
    /// The first bytes get one script, whatever they are.
    Raw,
    /// As `Http`, inside TLS.
    #[cfg(feature = "tls")]
    Tls(Arc<rustls::ServerConfig>),
    /// As `Raw`, inside TLS.
    #[cfg(feature = "tls")]
    RawTls(Arc<rustls::ServerConfig>),
}

/// What the threads of a player share.
struct Stage {
    director: Director,
    speech: Speech,
    journal: Journal,
    n_connections: AtomicUsize,
    open: Mutex<BTreeMap<usize, TcpStream>>,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Stage {
    /// Waits, or less if the player ends. Whether it goes on.
    fn pause(&self, time: Duration) -> bool {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.over.wait_timeout_while(is_over, time, |is_over| !*is_over);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The server. It ends when this is dropped, with all its connections.
pub struct Player {
    address: SocketAddr,
    scheme: &'static str,
    stage: Arc<Stage>,
}

impl fmt::Debug for Player {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Player").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Player {
    /// Answers the `i`-th request by the `i`-th script, and later ones by the last.
    ///
    /// # Panics
    /// Without any script, or if no loopback port can be bound.
    pub fn start(scripts: Vec<Script>) -> Self {
        assert!(!scripts.is_empty(), "a player needs a script");
        Self::with(move |_, n| scripts[n.min(scripts.len() - 1)].clone())
    }

    /// Answers every request by the same script.
    pub fn one(script: Script) -> Self {
        Self::with(move |_, _| script.clone())
    }

    /// Answers each request by what `direct` makes of it and of the number of requests before it.
    pub fn with(direct: impl Fn(&Record, usize) -> Script + Send + Sync + 'static) -> Self {
        Self::launch(Speech::Http, "http", Box::new(direct))
    }

    /// Plays the script once per connection, after its first bytes, whatever they are.
    pub fn raw(script: Script) -> Self {
        Self::launch(Speech::Raw, "http", Box::new(move |_, _| script.clone()))
    }

    fn launch(speech: Speech, scheme: &'static str, director: Director) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port can be bound");
        let address = listener.local_addr().expect("a bound port has an address");
        let stage = Arc::new(Stage {
            director,
            speech,
            journal: Journal::default(),
            n_connections: AtomicUsize::new(0),
            open: Mutex::default(),
            is_over: Mutex::new(false),
            over: Condvar::new(),
        });
        let accepting = Arc::clone(&stage);
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, scheme, stage }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Scheme and address, without a path.
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The base URL of an API below `/v1`.
    pub fn url(&self) -> String {
        format!("{}/v1", self.origin())
    }

    /// Every request so far, in the order in which they were read whole.
    pub fn journal(&self) -> Vec<Record> {
        self.stage.journal.records()
    }

    /// Connections so far.
    pub fn n_connections(&self) -> usize {
        self.stage.n_connections.load(Ordering::SeqCst)
    }

    /// When a client first closed a connection before the script was through; waits for it.
    pub fn closed_at(&self, wait: Duration) -> Option<Instant> {
        self.stage.journal.closed_at(wait)
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        *self.stage.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stage.over.notify_all();
        for stream in self.stage.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, stage: &Arc<Stage>) {
    for stream in listener.incoming() {
        if !stage.pause(Duration::ZERO) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let n = stage.n_connections.fetch_add(1, Ordering::SeqCst);
        {
            let mut open = stage.open.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(handle) = stream.try_clone() else { continue };
            if open.len() >= MAX_CONNECTIONS {
                continue;
            }
            open.insert(n, handle);
        }
        let serving = Arc::clone(stage);
        let thread = thread::Builder::new().stack_size(256 << 10).spawn(move || {
            Connection::new(n, &serving).serve(stream);
            serving.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&n);
        });
        if thread.is_err() {
            stage.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&n);
        }
    }
}
