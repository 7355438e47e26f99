//! Binding, accepting, and ending in order.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weighbridge_core::{Backend, Error, ErrorKind, Result, Secret};

use crate::guard::Guard;
use crate::io::TimedStream;
use crate::journal::{self, Journal, JournalEntry};
use crate::limits::Limits;
use crate::routes::{Served, State, handle, id_prefix, now};
use crate::stats::{Counters, Stats};

/// Headers of one request.
const MAX_HEADERS: usize = 64;
const MIN_HEAD_BYTES: usize = 8 << 10;

/// A server that is not bound yet.
pub struct Server {
    models: Vec<(String, Arc<dyn Backend>)>,
    token: Option<Secret>,
    limits: Limits,
    journal: Option<Journal>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.models.iter().map(|(name, _)| name).collect();
        f.debug_struct("Server")
            .field("models", &names)
            .field("has_token", &self.token.is_some())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A server of these models under these names, without a token.
    pub fn new(models: impl IntoIterator<Item = (String, Arc<dyn Backend>)>) -> Self {
        Self {
            models: models.into_iter().collect(),
            token: None,
            limits: Limits::default(),
            journal: None,
        }
    }

    /// Demands `Authorization: Bearer TOKEN` of every request.
    #[must_use]
    pub fn with_token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// Sets the bounds of what clients may do.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Tells `journal` of the start and the end of every call. It must be quick and not panic.
    #[must_use]
    pub fn with_journal(mut self, journal: impl Fn(&JournalEntry) + Send + Sync + 'static) -> Self {
        self.journal = Some(Arc::new(journal));
        self
    }

    /// Appends the start and the end of every call to a file of JSON lines.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the file cannot be opened.
    pub fn with_journal_file(mut self, path: &Path) -> Result<Self> {
        let journal = journal::to_file(path).map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot write the journal {}", path.display()))
                .with_source(error)
        })?;
        self.journal = Some(journal);
        Ok(self)
    }

    /// Binds to a loopback address; port 0 takes a free one. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for another address, no model, or one name twice;
    /// [`ErrorKind::Io`] if the address is taken.
    pub async fn bind(self, addr: SocketAddr) -> Result<Bound> {
        self.check(addr)?;
        let failed = |error: std::io::Error| {
            let remedy = match error.kind() {
                std::io::ErrorKind::AddrInUse => "another program listens there; use another port",
                _ => "use another address or port",
            };
            Error::new(ErrorKind::Io, format!("cannot listen at {addr}: {remedy}"))
                .with_source(error)
        };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let served = |(name, backend)| Served { name, backend, counters: Counters::default() };
        let state = State {
            models: self.models.into_iter().map(served).collect(),
            guard: Guard::new(addr.port(), self.token.as_ref()),
            calls: Arc::new(Semaphore::new(self.limits.max_calls)),
            limits: self.limits,
            journal: self.journal,
            n_calls: AtomicU64::new(0),
            n_rejected: AtomicU64::new(0),
            started_at: now(),
            id_prefix: id_prefix(),
        };
        Ok(Bound { listener, addr, state: Arc::new(state) })
    }

    /// Serves on a thread of its own, for callers without a runtime, until the handle is dropped.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn spawn(self, addr: SocketAddr) -> Result<Running> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("weighbridge-server")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Io, "cannot start the server's threads").with_source(error)
            })?;
        let bound = runtime.block_on(self.bind(addr))?;
        let (addr, state) = (bound.addr, Arc::clone(&bound.state));
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("weighbridge-server".to_owned())
            .spawn(move || {
                runtime.block_on(bound.serve_until(async {
                    // A dropped handle stops the server as a told one does.
                    let _ = stopped.await;
                }))
            })
            .map_err(|error| {
                Error::new(ErrorKind::Io, "cannot start the server's thread").with_source(error)
            })?;
        Ok(Running { addr, state, stop: Some(stop), thread: Some(thread) })
    }

    fn check(&self, addr: SocketAddr) -> Result<()> {
        let bad = |why: String| Err(Error::new(ErrorKind::InvalidInput, why));
        if !addr.ip().to_canonical().is_loopback() {
            return bad(format!(
                "this server listens at loopback addresses only, not at {}; use 127.0.0.1",
                addr.ip()
            ));
        }
        if self.models.is_empty() {
            return bad("a server needs at least one model".to_owned());
        }
        for (i, (name, _)) in self.models.iter().enumerate() {
            if name.is_empty() || self.models[..i].iter().any(|(other, _)| other == name) {
                return bad(format!("the model name `{name}` is empty or occurs twice"));
            }
        }
        Ok(())
    }
}

/// A server that holds its address and does not answer yet.
pub struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
    state: Arc<State>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Bound {
    /// The address, with the port that was really taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown` is ready, then lets calls under way end, to the drain limit.
    ///
    /// # Errors
    /// None yet; a failing accept is survived.
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let Self { listener, state, .. } = self;
        let connections = Arc::new(Semaphore::new(state.limits.max_connections));
        let (closing_tx, closing) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
                // Ended connections are forgotten as they end.
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely: a pause lets connections end.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            };
            // Above the limit a connection is closed without a word.
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
            let (state, closing) = (Arc::clone(&state), closing.clone());
            tasks.spawn(async move {
                serve_connection(state, stream, closing).await;
                drop(permit);
            });
        }
        drop(listener);
        let _ = closing_tx.send(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if timeout(state.limits.drain_timeout, drained).await.is_err() {
            tasks.shutdown().await;
        }
        Ok(())
    }
}

async fn serve_connection(
    state: Arc<State>,
    stream: TcpStream,
    mut closing: watch::Receiver<bool>,
) {
    // Chunks are small and each is waited for.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(TimedStream::new(stream, state.limits.write_timeout));
    let limits = state.limits.clone();
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, std::convert::Infallible>(handle(state, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.max_head_bytes.max(MIN_HEAD_BYTES))
        .max_headers(MAX_HEADERS)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    // Whatever a connection ends in is its client's affair; calls count their own ends.
    let is_closing = tokio::select! {
        _ = connection.as_mut() => false,
        _ = closing.wait_for(|is_closing| *is_closing) => true,
    };
    if is_closing {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// A server on a thread of its own. Dropping it stops the server.
pub struct Running {
    addr: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Running {
    /// The address, with the port that was really taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The count of calls so far.
    pub fn stats(&self) -> Stats {
        self.state.stats()
    }

    /// Stops the server, and waits until calls under way ended.
    ///
    /// # Errors
    /// [`ErrorKind::EngineDied`] if the server's thread panicked.
    pub fn stop(mut self) -> Result<Stats> {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_| Error::new(ErrorKind::EngineDied, "the server's thread panicked"))??;
        }
        Ok(self.state.stats())
    }
}
