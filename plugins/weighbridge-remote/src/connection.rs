//! Connections to one origin, kept open between calls.
//!
//! A connection is driven by whoever uses it: its bytes are written and read by the task that
//! polls the call, so that a call costs no task, no channel and no change of threads. Only sockets
//! and timers are watched by the private [`runtime`](crate::runtime).

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper::client::conn::http1;
use hyper::http::Extensions;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector, HttpInfo};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tower_service::Service as _;

use crate::address::is_loopback;
use crate::resolver::GuardedResolver;
use crate::runtime;

/// Below the five seconds after which common servers close an idle connection themselves.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Reads in turn that find bytes, after which a connection gives way.
const MAX_READS: u32 = 64;

type Driver = http1::Connection<Socket<MaybeHttpsStream<TokioIo<TcpStream>>>, Full<Bytes>>;

/// Why there is no connection.
pub(crate) type ConnectError = Box<dyn StdError + Send + Sync>;

/// An open connection. Dropping it closes it.
pub(crate) struct Connection {
    pub(crate) sender: http1::SendRequest<Full<Bytes>>,
    /// Moves bytes when it is polled; `None` once the connection is closed.
    driver: Option<Pin<Box<Driver>>>,
    /// Whether the other end is this machine, where the socket tells.
    pub(crate) is_loopback: Option<bool>,
    /// A timer of the call before, for the next one.
    pub(crate) timer: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Moves bytes in both directions as far as they go. What fails is told to the call.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether another call can be sent, as far as is known without waiting.
    fn is_ready(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.drive(&mut cx);
        self.driver.is_some() && matches!(self.sender.poll_ready(&mut cx), Poll::Ready(Ok(())))
    }
}

/// A socket that pauses now and then, so that the call's deadlines are seen to, however fast its
/// server sends. Hyper reads on while it can, and only tasks of tokio are interrupted by the socket.
struct Socket<T> {
    inner: T,
    /// Since the last one that found nothing.
    n_reads: u32,
}

impl<T: Read + Unpin> Read for Socket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.n_reads == MAX_READS {
            self.n_reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.n_reads = if read.is_ready() { self.n_reads + 1 } else { 0 };
        read
    }
}

impl<T: Write + Unpin> Write for Socket<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }
}

/// Connections that nobody uses, the last used at the back, and since when.
#[derive(Default)]
struct Idle {
    connections: VecDeque<(Connection, Instant)>,
    /// [`close_old`] runs.
    is_watched: bool,
}

impl Idle {
    fn drop_old(&mut self) {
        let connections = &mut self.connections;
        while connections.front().is_some_and(|(_, since)| since.elapsed() > POOL_IDLE) {
            connections.pop_front();
        }
    }
}

/// Closes connections that were idle for long, until there is none.
async fn close_old(idle: Weak<Mutex<Idle>>) {
    loop {
        sleep(POOL_IDLE).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = lock(&idle);
        idle.drop_old();
        if idle.connections.is_empty() {
            idle.is_watched = false;
            return;
        }
    }
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects to one origin and keeps connections that are idle, the last used on top.
pub(crate) struct Pool {
    connector: HttpsConnector<HttpConnector<GuardedResolver>>,
    origin: Uri,
    idle: Arc<Mutex<Idle>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("n_idle", &lock(&self.idle).connections.len())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Connections to the host and port of `origin`, over TLS if its scheme is https. Nothing is
    /// connected yet.
    pub(crate) fn new(origin: Uri, resolver: GuardedResolver) -> Result<Self, ConnectError> {
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        // A server that only speaks another version ends the handshake by this.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = HttpsConnector::from((tcp, tls));
        Ok(Self { connector, origin, idle: Arc::default() })
    }

    /// A connection that is open and idle, if there is one.
    pub(crate) fn idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.pop()?;
            // Its server may have closed it meanwhile.
            if connection.is_ready() {
                return Some(connection);
            }
        }
    }

    fn pop(&self) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        idle.drop_old();
        idle.connections.pop_back().map(|(connection, _)| connection)
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn keep(&self, mut connection: Connection) {
        if !connection.is_ready() {
            return;
        }
        let mut idle = lock(&self.idle);
        idle.connections.push_back((connection, Instant::now()));
        if !idle.is_watched
            && let Ok(runtime) = runtime::handle()
        {
            idle.is_watched = true;
            runtime.spawn(close_old(Arc::downgrade(&self.idle)));
        }
    }

    /// A new connection. Runs on the runtime.
    pub(crate) async fn connect(&self) -> Result<Connection, ConnectError> {
        let socket = self.connector.clone().call(self.origin.clone()).await?;
        let mut extras = Extensions::new();
        socket.connected().get_extras(&mut extras);
        let peer = extras.get::<HttpInfo>().map(HttpInfo::remote_addr);
        let (sender, driver) = http1::handshake(Socket { inner: socket, n_reads: 0 }).await?;
        Ok(Connection {
            sender,
            driver: Some(Box::pin(driver)),
            is_loopback: peer.map(|peer: SocketAddr| is_loopback(peer.ip())),
            timer: None,
        })
    }
}
