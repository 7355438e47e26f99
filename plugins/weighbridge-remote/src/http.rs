//! The one HTTP core: every byte to or from a server passes here.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use futures_util::SinkExt;
use reqwest::Method;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue,
};
use reqwest::redirect::Policy;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use weighbridge_core::{Egress, EgressEntry, Error, ErrorKind, Result, Retry, Secret};

use crate::address::{Address, is_loopback, unknown_host};
use crate::exchange::{Exchange, Head, Part};
use crate::options::Timers;
use crate::resolver::{DeniedAddress, GuardedResolver, Lookup, NameFailure, system_lookup};
use crate::runtime::{self, AbortOnDrop};
use crate::text::Redactor;
use crate::vendor::KeyHeader;
use crate::wire::Route;

const JSON: &str = "application/json";
/// Largest body of an answer.
pub(crate) const MAX_BODY_BYTES: u64 = 64 << 20;
/// Parts of an answer that wait for the caller before the connection is read no further.
const N_PARTS_AHEAD: usize = 8;
/// Below the five seconds after which common servers close an idle connection themselves.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// How long a finished answer may take to end its body, so that its connection can be used again.
const DRAIN: Duration = Duration::from_millis(250);

/// A client of one origin. Built only with an [`Egress`] token; its key goes nowhere else.
pub(crate) struct Http {
    client: reqwest::Client,
    address: Address,
    has_key: bool,
    redactor: Redactor,
    egress: Egress,
    is_loopback: bool,
    timers: Timers,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("address", &self.address)
            .field("has_key", &self.has_key)
            .field("is_loopback", &self.is_loopback)
            .finish_non_exhaustive()
    }
}

/// What is asked of a server.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) route: Route,
    /// Content type and bytes.
    pub(crate) body: Option<(String, Vec<u8>)>,
    pub(crate) accept: &'static str,
    /// Largest body of its answer.
    pub(crate) max_bytes: u64,
    /// Instead of the usual limits for the first byte and for the whole call, where it moves more
    /// than one answer.
    pub(crate) patience: Option<Duration>,
    /// Time of the whole call that passed before it was begun.
    pub(crate) waited: Duration,
}

impl Call {
    pub(crate) fn get(route: Route) -> Self {
        Self {
            method: Method::GET,
            route,
            body: None,
            accept: JSON,
            max_bytes: MAX_BODY_BYTES,
            patience: None,
            waited: Duration::ZERO,
        }
    }

    pub(crate) fn post(route: Route, json: Vec<u8>) -> Self {
        Self { body: Some((JSON.to_owned(), json)), ..Self::post_empty(route) }
    }

    pub(crate) fn post_empty(route: Route) -> Self {
        Self { method: Method::POST, ..Self::get(route) }
    }
}

/// What every call to an origin carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credentials<'a> {
    pub(crate) key: Option<&'a Secret>,
    pub(crate) key_header: KeyHeader,
    pub(crate) headers: &'static [(&'static str, &'static str)],
}

impl Http {
    /// A client of `address`, which was found to be (not) on this machine.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a key that no header can carry, or that would travel
    /// unencrypted over a network.
    pub(crate) fn new(
        address: Address,
        is_at_loopback: bool,
        credentials: Credentials<'_>,
        egress: Egress,
        timers: Timers,
    ) -> Result<Self> {
        Self::with_lookup(address, is_at_loopback, credentials, egress, timers, system_lookup)
    }

    fn with_lookup(
        address: Address,
        is_at_loopback: bool,
        credentials: Credentials<'_>,
        egress: Egress,
        timers: Timers,
        lookup: Lookup,
    ) -> Result<Self> {
        let key = credentials.key;
        if key.is_some() && !is_at_loopback && !address.is_https() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a key is never sent to {} over plain http; use https, or set `api_key_env` \
                     to an empty text",
                    address.authority()
                ),
            ));
        }
        let headers = default_headers(credentials)?;
        let resolver =
            GuardedResolver { egress: egress.clone(), only_loopback: is_at_loopback, lookup };
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .retry(reqwest::retry::never())
            .referer(false)
            .dns_resolver(Arc::new(resolver))
            .connect_timeout(timers.connect)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_nodelay(true)
            .default_headers(headers)
            .user_agent(concat!("weighbridge/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Io, "cannot set up an HTTP client")
                    .with_source(Redactor::default().cause(&error.without_url()))
            })?;
        Ok(Self {
            client,
            address,
            has_key: key.is_some(),
            redactor: key.map(Redactor::new).unwrap_or_default(),
            egress,
            is_loopback: is_at_loopback,
            timers,
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Begins a call. It runs on the private runtime and ends when the [`Exchange`] is dropped.
    pub(crate) fn start(self: &Arc<Self>, call: Call) -> Result<Exchange> {
        let (parts_tx, parts) = mpsc::channel(N_PARTS_AHEAD);
        let (end_tx, end) = oneshot::channel();
        let is_finished = Arc::new(Notify::new());
        let http = Arc::clone(self);
        let drain = Arc::clone(&is_finished);
        let task = runtime::handle()?.spawn(async move {
            let result = http.exchange(call, parts_tx, &drain).await;
            // Nobody listens once the caller is gone or satisfied.
            let _ = end_tx.send(result.map_err(|error| http.redactor.clean(error)));
        });
        let abort = AbortOnDrop::new(task.abort_handle());
        Ok(Exchange { parts, end: Some(end), abort, is_finished })
    }

    async fn exchange(
        &self,
        call: Call,
        mut parts: mpsc::Sender<Part>,
        is_finished: &Notify,
    ) -> Result<()> {
        let start = Instant::now();
        let timers = self.timers.with_patience(call.patience);
        let max_bytes = call.max_bytes;
        let waited = call.waited;
        let total = Deadline::within(timers.total.saturating_sub(waited), "total");
        let first_byte = Deadline::within(timers.first_byte, "first_byte");
        // The body counts as sent until it is known that nothing was connected.
        let n_sent = call.body.as_ref().map_or(0, |(_, body)| body.len()) as u64;
        let mut meter = Meter { http: self, n_sent, n_received: 0, is_loopback: None };

        let deadline = total.min(first_byte);
        let sent = timeout_at(deadline.at, self.request(call).send()).await;
        if matches!(&sent, Ok(Err(error)) if error.is_connect()) {
            meter.n_sent = 0;
        }
        let mut response = sent
            .map_err(|_| self.timed_out(deadline, start))?
            .map_err(|error| self.send_error(error))?;
        meter.is_loopback = response.remote_addr().map(|peer| is_loopback(peer.ip()));
        let head = Head {
            status: response.status().as_u16(),
            headers: std::mem::take(response.headers_mut()),
        };
        let encoding = head.header(CONTENT_ENCODING.as_str()).unwrap_or("identity").trim();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            return Err(Error::new(
                ErrorKind::Transport,
                format!(
                    "{} sent a compressed body although none was asked for",
                    self.address.authority()
                ),
            )
            .with("content_encoding", self.redactor.excerpt(encoding, 64)));
        }
        if self.forward(&mut parts, Part::Head(head), total, start).await?.is_none() {
            return Ok(());
        }

        let mut deadline = total.min(first_byte);
        let mut is_draining = false;
        loop {
            let chunk = tokio::select! {
                biased;
                () = is_finished.notified(), if !is_draining => {
                    is_draining = true;
                    deadline = deadline.min(Deadline::within(DRAIN, "drain"));
                    continue;
                }
                chunk = timeout_at(deadline.at, response.chunk()) => chunk,
            };
            let chunk = chunk
                .map_err(|_| self.timed_out(deadline, start))?
                .map_err(|error| self.body_error(error))?;
            let Some(chunk) = chunk else { return Ok(()) };
            meter.n_received += chunk.len() as u64;
            if meter.n_received > max_bytes {
                let place = self.address.authority();
                let mib = max_bytes >> 20;
                let message = format!("the answer of {place} exceeds {mib} MiB");
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            // Data after the end of an answer: the connection is dropped, not reused.
            if is_draining
                || self.forward(&mut parts, Part::Chunk(chunk), total, start).await?.is_none()
            {
                return Ok(());
            }
            deadline = total.min(Deadline::within(timers.idle, "idle"));
        }
    }

    fn request(&self, call: Call) -> reqwest::RequestBuilder {
        let url = self.address.join(&call.route);
        let mut request = self
            .client
            .request(call.method, url)
            .header(ACCEPT, HeaderValue::from_static(call.accept))
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some((content_type, body)) = call.body {
            request = request.header(CONTENT_TYPE, content_type).body(body);
        }
        request
    }

    /// Hands a part to the caller; `None` if it is gone. Waiting for it counts against the total.
    async fn forward(
        &self,
        parts: &mut mpsc::Sender<Part>,
        part: Part,
        total: Deadline,
        start: Instant,
    ) -> Result<Option<()>> {
        let sent = timeout_at(total.at, parts.send(part)).await;
        Ok(sent.map_err(|_| self.timed_out(total, start))?.ok())
    }

    fn timed_out(&self, deadline: Deadline, start: Instant) -> Error {
        let Deadline { phase, after, .. } = deadline;
        let what = match phase {
            "first_byte" => "did not begin to answer",
            "idle" => "stopped in the middle of its answer",
            _ => "did not finish its answer",
        };
        let option = if phase == "total" { "timeout_s" } else { phase };
        let suffix = if phase == "total" { "" } else { "_timeout_s" };
        Error::new(
            ErrorKind::Timeout,
            format!(
                "{} {what} within {} s; raise `{option}{suffix}` if that is too short",
                self.address.host_and_port(),
                after.as_secs_f64(),
            ),
        )
        .with("phase", phase)
        .with("elapsed_ms", start.elapsed().as_millis())
        .with_retry(Retry::Safe { after: None })
    }

    /// A call that got no status line.
    fn send_error(&self, error: reqwest::Error) -> Error {
        let error = error.without_url();
        if let Some(denied) = find::<DeniedAddress>(&error) {
            return Error::new(ErrorKind::EgressDenied, denied.0.clone())
                .with("host", self.address.authority());
        }
        let place = self.address.host_and_port();
        let transport =
            |phase, message: String| Error::new(ErrorKind::Transport, message).with("phase", phase);
        let io = find::<std::io::Error>(&error).map(std::io::Error::kind);
        let error = if error.is_dns() || find::<NameFailure>(&error).is_some() {
            unknown_host(self.address.host())
        } else if error.is_connect() && error.is_timeout() {
            Error::new(
                ErrorKind::Timeout,
                format!(
                    "{place} did not accept a connection within {} s; check host and port, or \
                     raise `connect_timeout_s`",
                    self.timers.connect.as_secs_f64()
                ),
            )
            .with("phase", "connect")
        } else if io == Some(std::io::ErrorKind::ConnectionRefused) {
            transport(
                "connect",
                format!("nothing listens at {place}; start the server or correct the URL"),
            )
        } else if error.is_connect() && self.address.is_https() {
            transport(
                "tls",
                format!(
                    "no secure connection to {place} was possible; if the server speaks plain \
                     http, correct the URL"
                ),
            )
        } else if error.is_connect() {
            transport("connect", format!("{place} cannot be reached; check host, port and network"))
        } else {
            transport(
                "response",
                format!(
                    "{place} closed the connection or answered with something that is not HTTP; \
                     check that the URL's scheme and port are those of the API"
                ),
            )
            .with("maybe_sent", true)
        }
        .with_source(self.redactor.cause(&error));
        error.with_retry(Retry::Safe { after: None })
    }

    /// An answer whose body broke off or is damaged.
    fn body_error(&self, error: reqwest::Error) -> Error {
        use std::io::ErrorKind as Io;
        let error = error.without_url();
        let io = find::<std::io::Error>(&error).map(std::io::Error::kind);
        let is_cut = matches!(
            io,
            Some(Io::UnexpectedEof | Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe)
        );
        let place = self.address.host_and_port();
        let error = if is_cut {
            Error::new(ErrorKind::Truncated, format!("{place} broke off its answer"))
        } else {
            Error::new(ErrorKind::Transport, format!("the answer of {place} is damaged HTTP"))
        }
        .with_source(self.redactor.cause(&error));
        error.with_retry(Retry::Safe { after: None })
    }
}

/// Headers of every call. The client follows no redirect, so they reach one origin only.
fn default_headers(credentials: Credentials<'_>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in credentials.headers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Some(key) = credentials.key {
        let (name, text) = match credentials.key_header {
            KeyHeader::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose())),
            KeyHeader::Named(name) => (HeaderName::from_static(name), key.expose().to_owned()),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            Error::new(
                ErrorKind::InvalidInput,
                "the key holds characters that no HTTP header can carry",
            )
        })?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The cause of that type, if it is among the causes. An `io::Error` hides the error it wraps from
/// `source`, so that one is opened too.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(wrapped) = wrapped
            && let Some(found) = find(wrapped)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    /// From the moment it began to run.
    after: Duration,
    phase: &'static str,
}

impl Deadline {
    fn within(after: Duration, phase: &'static str) -> Self {
        Self { at: Instant::now() + after, after, phase }
    }

    fn min(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }
}

/// Enters an exchange into the ledger when it is over, however it ended.
struct Meter<'a> {
    http: &'a Http,
    n_sent: u64,
    n_received: u64,
    is_loopback: Option<bool>,
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.http.egress.ledger().record(EgressEntry::new(
            self.http.address.authority(),
            self.is_loopback.unwrap_or(self.http.is_loopback),
            self.n_sent,
            self.n_received,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::BoxFuture;
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use weighbridge_core::{EgressLedger, EgressScope, block_on};

    const NO_KEY: Credentials<'static> =
        Credentials { key: None, key_header: KeyHeader::Bearer, headers: &[] };

    #[derive(Debug, Default)]
    struct Ledger(Mutex<Vec<EgressEntry>>);

    impl EgressLedger for Ledger {
        fn record(&self, entry: EgressEntry) {
            self.0.lock().unwrap().push(entry);
        }
    }

    fn ask(
        url: &str,
        is_at_loopback: bool,
        scope: EgressScope,
        lookup: Lookup,
    ) -> (Error, EgressEntry) {
        let ledger = Arc::<Ledger>::default();
        let wait = Duration::from_millis(400);
        let timers = Timers { connect: wait, first_byte: wait, idle: wait, total: wait };
        let egress = Egress::grant(scope, ledger.clone());
        let address = Address::parse(url).unwrap();
        let http =
            Http::with_lookup(address, is_at_loopback, NO_KEY, egress, timers, lookup).unwrap();
        let call = Call::post(Route::new("/x"), b"12345".to_vec());
        let mut exchange = Arc::new(http).start(call).unwrap();
        let error = block_on(exchange.head()).unwrap_err();
        (error, ledger.0.lock().unwrap()[0].clone())
    }

    fn far(_: String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> {
        Box::pin(async { Ok(vec![([192, 0, 2, 1], 0).into()]) })
    }

    #[test]
    fn a_name_that_moves_off_this_machine_is_not_followed() {
        // Loopback when it was opened: its card says local, whatever the scope.
        for (is_at_loopback, scope) in [
            (true, EgressScope::Loopback),
            (true, EgressScope::Network),
            (false, EgressScope::Loopback),
        ] {
            let (error, entry) = ask("http://somewhere.test:9/v1", is_at_loopback, scope, far);
            assert_eq!(error.kind(), ErrorKind::EgressDenied, "{error:?}");
            assert!(error.message().contains("`somewhere.test` now stands for"), "{error}");
            assert_eq!(entry.n_bytes_sent, 0);
        }
    }

    #[test]
    fn only_permitted_addresses_of_a_name_are_tried() {
        fn mixed(_: String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> {
            Box::pin(async { Ok(vec![([192, 0, 2, 1], 0).into(), ([127, 0, 0, 1], 0).into()]) })
        }
        let (error, _) = ask("http://somewhere.test:1/v1", true, EgressScope::Loopback, mixed);
        assert!(error.message().contains("nothing listens at somewhere.test:1"), "{error}");
    }

    #[test]
    fn names_that_fail_or_hang_are_told_apart() {
        fn fails(_: String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> {
            Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) })
        }
        fn hangs(_: String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> {
            Box::pin(std::future::pending())
        }
        let (error, _) = ask("http://somewhere.test/v1", false, EgressScope::Network, fails);
        assert!(error.message().contains("`somewhere.test` cannot be resolved"), "{error}");
        assert_eq!(error.context("phase"), Some("dns"));
        let (error, _) = ask("http://somewhere.test/v1", false, EgressScope::Network, hangs);
        assert_eq!(error.kind(), ErrorKind::Timeout);
    }
}
