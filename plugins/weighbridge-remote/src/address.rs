//! Where a server is, and whether that is this machine.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use url::Url;
use weighbridge_core::{Egress, Error, ErrorKind, Result};

use crate::wire::Route;

/// The base URL of an API: scheme, host, port and path, never a user, a query or a fragment.
#[derive(Clone)]
pub(crate) struct Address {
    base: Url,
    host: String,
    authority: String,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.authority).finish()
    }
}

/// What a host name stands for, when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Every address is a loopback address.
    pub(crate) is_loopback: bool,
}

impl Address {
    /// Reads a base URL.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`]. The text is not repeated, for it may hold a key.
    pub(crate) fn parse(location: &str) -> Result<Self> {
        let bad = |why: &str| {
            Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "cannot use the server's URL: {why}; write for instance \
                     `openai-compatible:http://127.0.0.1:8080/v1#MODEL`"
                ),
            ))
        };
        let Ok(mut base) = Url::parse(location) else { return bad("it is not a URL") };
        if !matches!(base.scheme(), "http" | "https") {
            return bad("it must begin with http:// or https://");
        }
        if !base.username().is_empty() || base.password().is_some() {
            return bad("it must not hold a user or password (name a key by `api_key_env`)");
        }
        if base.query().is_some() {
            return bad("it must not hold a query (name a key by `api_key_env`)");
        }
        base.set_fragment(None);
        let path = base.path().trim_end_matches('/').to_owned();
        if path.ends_with("/chat/completions") {
            return bad("it must be the base of the API, without `/chat/completions`");
        }
        base.set_path(&path);
        let Some(host) = base.host_str() else { return bad("it names no host") };
        let authority = base.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { base, host, authority })
    }

    /// The host, with the port if it is not the scheme's own.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// The host and the port, always both.
    pub(crate) fn host_and_port(&self) -> String {
        match self.base.port() {
            Some(_) => self.authority.clone(),
            None => format!("{}:{}", self.authority, self.port()),
        }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Scheme, host and port.
    pub(crate) fn origin(&self) -> Url {
        let mut origin = self.base.clone();
        origin.set_path("");
        origin
    }

    pub(crate) fn is_https(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// The URL of a route below the base, such as `/models`.
    pub(crate) fn join(&self, route: &Route) -> Url {
        let mut url = self.base.clone();
        let base = self.base.path().trim_end_matches('/');
        let beside = base.strip_suffix("/v1").filter(|_| route.is_beside);
        let path = format!("{}{}", beside.unwrap_or(base), route.path);
        url.set_path(&path);
        url.set_query(route.query.as_deref());
        url
    }

    /// Asks what the host stands for and whether `egress` reaches there. Runs on the runtime.
    pub(crate) async fn locate(&self, egress: &Egress, timeout: Duration) -> Result<Place> {
        let is_loopback = match self.host.parse::<IpAddr>() {
            Ok(ip) => is_loopback(ip),
            Err(_) => self.resolve(timeout).await?,
        };
        egress.permit(&self.authority, is_loopback)?;
        Ok(Place { is_loopback })
    }

    async fn resolve(&self, timeout: Duration) -> Result<bool> {
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port()));
        let found = tokio::time::timeout(timeout, lookup).await.map_err(|_| {
            Error::new(
                ErrorKind::Timeout,
                format!("the name `{}` was not resolved within {timeout:?}", self.host),
            )
            .with("phase", "dns")
        })?;
        let mut addresses =
            found.map_err(|error| unknown_host(&self.host).with_source(error))?.peekable();
        if addresses.peek().is_none() {
            return Err(unknown_host(&self.host));
        }
        Ok(addresses.all(|address| is_loopback(address.ip())))
    }

    fn port(&self) -> u16 {
        self.base.port_or_known_default().unwrap_or(80)
    }
}

/// The error for a name that the resolver does not know.
pub(crate) fn unknown_host(host: &str) -> Error {
    Error::new(
        ErrorKind::Transport,
        format!("the host name `{host}` cannot be resolved; correct the URL or the network's DNS"),
    )
    .with("phase", "dns")
}

/// Whether an address is one of this machine's loopback addresses, IPv4 in IPv6 included.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_read_with_its_path() {
        for (text, authority, host_and_port, chat) in [
            (
                "http://127.0.0.1:8080/v1",
                "127.0.0.1:8080",
                "127.0.0.1:8080",
                "http://127.0.0.1:8080/v1/chat",
            ),
            (
                "http://127.0.0.1:8080/v1/",
                "127.0.0.1:8080",
                "127.0.0.1:8080",
                "http://127.0.0.1:8080/v1/chat",
            ),
            ("http://h", "h", "h:80", "http://h/chat"),
            (
                "https://api.openai.com/v1",
                "api.openai.com",
                "api.openai.com:443",
                "https://api.openai.com/v1/chat",
            ),
            ("http://[::1]:9/a/b", "[::1]:9", "[::1]:9", "http://[::1]:9/a/b/chat"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.authority(), authority);
            assert_eq!(address.host_and_port(), host_and_port);
            assert_eq!(address.join(&Route::new("/chat")).as_str(), chat);
        }
        for (base, url) in [
            ("http://h/v1", "http://h/api/tags"),
            ("http://h/a/v1/", "http://h/a/api/tags"),
            ("http://h", "http://h/api/tags"),
        ] {
            let route = Route::beside("/api/tags");
            assert_eq!(Address::parse(base).unwrap().join(&route).as_str(), url);
        }
        // What a browser would read as 127.0.0.1 is judged as that.
        assert_eq!(Address::parse("http://2130706433:1/v1").unwrap().host(), "127.0.0.1");
    }

    #[test]
    fn a_bad_url_is_refused_and_not_repeated() {
        for text in [
            "127.0.0.1:8080",
            "ftp://sk-canary",
            "http://sk-canary@h/v1",
            "http://u:sk-canary@h/v1",
            "http://h/v1?key=sk-canary",
            "http://h/v1/chat/completions",
            "http://",
            "models/sk-canary",
        ] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.message().contains("openai-compatible:http://127.0.0.1:8080/v1"));
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn loopback_is_judged_on_addresses() {
        for (ip, expected) in [
            ("127.0.0.1", true),
            ("127.8.9.10", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
