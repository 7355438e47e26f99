//! The one HTTP core: every byte to or from a server passes here.

mod errors;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap,
    HeaderName, HeaderValue, USER_AGENT,
};
use hyper::{Method, Request, Uri};
use tokio::time::timeout;
use url::Position;
use weighbridge_core::{Egress, EgressEntry, Error, ErrorKind, Result, Secret};

use crate::address::Address;
use crate::connection::{Connection, Pool};
use crate::exchange::{Exchange, Limits};
use crate::options::Timers;
use crate::resolver::{GuardedResolver, Lookup, system_lookup};
use crate::text::Redactor;
use crate::vendor::KeyHeader;
use crate::wire::Route;

const JSON: &str = "application/json";
const USER_AGENT_VALUE: &str = concat!("weighbridge/", env!("CARGO_PKG_VERSION"));
/// Largest body of an answer.
pub(crate) const MAX_BODY_BYTES: u64 = 64 << 20;

/// A client of one origin. Built only with an [`Egress`] token; its key goes nowhere else.
pub(crate) struct Http {
    pub(crate) pool: Pool,
    address: Address,
    last_target: Mutex<Option<(Route, Uri)>>,
    /// Of every call.
    headers: HeaderMap,
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
    pub(crate) body: Option<(Cow<'static, str>, Vec<u8>)>,
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
        Self { body: Some((JSON.into(), json)), ..Self::post_empty(route) }
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
        let headers = default_headers(&address, credentials)?;
        let resolver =
            GuardedResolver { egress: egress.clone(), only_loopback: is_at_loopback, lookup };
        let failed = |error: &(dyn StdError + 'static)| {
            Error::new(ErrorKind::Io, "cannot set up an HTTP client")
                .with_source(Redactor::default().cause(error))
        };
        let origin = address.origin().as_str().parse::<Uri>().map_err(|error| failed(&error))?;
        let pool = Pool::new(origin, resolver).map_err(|error| failed(&*error))?;
        Ok(Self {
            pool,
            address,
            last_target: Mutex::default(),
            headers,
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

    /// A call, which begins when its [`Exchange`] is asked for its head. Its deadlines run from now.
    pub(crate) fn start(self: &Arc<Self>, call: Call) -> Result<Exchange> {
        let target = self.target(&call.route)?;
        let limits = Limits {
            timers: self.timers.with_patience(call.patience),
            waited: call.waited,
            max_bytes: call.max_bytes,
        };
        let (content_type, body) = call.body.unzip();
        let body = Bytes::from(body.unwrap_or_default());
        let is_empty_post = call.method == Method::POST && body.is_empty();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = call.method;
        *request.uri_mut() = target;
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(ACCEPT, HeaderValue::from_static(call.accept));
        match content_type.as_deref() {
            Some(JSON) => {}
            Some(other) => {
                let value = HeaderValue::try_from(other).map_err(|_| {
                    Error::new(ErrorKind::InvalidInput, "the content type is not valid in HTTP")
                })?;
                headers.insert(CONTENT_TYPE, value);
            }
            None => {
                headers.remove(CONTENT_TYPE);
            }
        }
        if is_empty_post {
            // Hyper leaves it out, and some servers refuse a POST without it (411).
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Ok(Exchange::new(Arc::clone(self), request, limits))
    }

    /// What a request line names. Most calls go where the one before went.
    fn target(&self, route: &Route) -> Result<Uri> {
        let mut last = self.last_target.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, target)) = &*last
            && known == route
        {
            return Ok(target.clone());
        }
        let url = self.address.join(route);
        let target = url[Position::BeforePath..Position::AfterQuery].parse::<Uri>();
        let target = target.map_err(|_| {
            Error::new(ErrorKind::InvalidInput, "the path of the URL is not valid in HTTP")
        })?;
        *last = Some((route.clone(), target.clone()));
        Ok(target)
    }

    /// A new connection. Runs on the runtime.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        match timeout(self.timers.connect, self.pool.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.connect_error(&*error)),
            Err(_) => Err(self.connect_timed_out()),
        }
    }

    /// Enters an exchange into the ledger.
    pub(crate) fn enter(&self, is_loopback: Option<bool>, n_sent: u64, n_received: u64) {
        self.egress.ledger().record(EgressEntry::new(
            self.address.authority(),
            is_loopback.unwrap_or(self.is_loopback),
            n_sent,
            n_received,
        ));
    }
}

/// Headers of every call. The client follows no redirect, so they reach one origin only.
fn default_headers(address: &Address, credentials: Credentials<'_>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let host = HeaderValue::from_str(address.authority()).map_err(|_| {
        Error::new(ErrorKind::InvalidInput, "the host of the URL is not valid in HTTP")
    })?;
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    // Of most calls; others replace them.
    headers.insert(ACCEPT, HeaderValue::from_static(JSON));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
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

/// When a call is given up, and in which phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// Since it began to run.
    after: Duration,
    pub(crate) phase: &'static str,
}

impl Deadline {
    pub(crate) fn after(now: Instant, after: Duration, phase: &'static str) -> Self {
        Self { at: now + after, after, phase }
    }

    /// The earlier of two.
    pub(crate) fn min(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::BoxFuture;
    use std::net::SocketAddr;
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
