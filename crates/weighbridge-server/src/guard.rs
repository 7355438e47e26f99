//! Who may ask: the checks before anything of a request is read but its head.

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use hyper::{StatusCode, Uri};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use weighbridge_core::Secret;

use crate::failure::Failure;

/// The checks of `Host`, `Origin` and token, in this order.
#[derive(Clone)]
pub(crate) struct Guard {
    hosts: Vec<String>,
    /// Digests are compared, so that not even the length of the token shows.
    token: Option<[u8; 32]>,
}

impl Guard {
    pub(crate) fn new(port: u16, token: Option<&Secret>) -> Self {
        let names = ["localhost", "127.0.0.1", "[::1]"];
        let mut hosts: Vec<String> = names.iter().map(|name| format!("{name}:{port}")).collect();
        if port == 80 {
            hosts.extend(names.map(str::to_owned));
        }
        Self { hosts, token: token.map(|token| Sha256::digest(token.expose()).into()) }
    }

    /// # Errors
    /// 403 for a foreign host or an origin, 401 for a token that is absent, wrong or repeated.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
        let forbidden = |message: &str| {
            Err(Failure::new(StatusCode::FORBIDDEN, "permission_error", message).closing())
        };
        let is_ours = |host: &str| self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host));
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        if hosts.next().is_some()
            || !host.is_some_and(is_ours)
            || uri.authority().is_some_and(|authority| !is_ours(authority.as_str()))
        {
            return forbidden(
                "the request's Host is not this server's: use localhost and its port",
            );
        }
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        if headers.contains_key(ORIGIN)
            || site.is_some_and(|site| site != b"none" && site != b"same-origin")
        {
            return forbidden("web pages may not use this server");
        }
        match &self.token {
            Some(token) => check_token(token, headers),
            None => Ok(()),
        }
    }
}

fn check_token(token: &[u8; 32], headers: &HeaderMap) -> Result<(), Failure> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let given = values.next().map(|value| value.as_bytes()).unwrap_or_default();
    let is_single = values.next().is_none();
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    let is_equal: bool = Sha256::digest(given).as_slice().ct_eq(token).into();
    if is_equal && is_single {
        return Ok(());
    }
    Err(Failure::new(
        StatusCode::UNAUTHORIZED,
        "authentication_error",
        "the token is missing or wrong",
    )
    .with_code("invalid_api_key")
    .closing())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn status(guard: &Guard, uri: &str, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        guard.check(&uri.parse().unwrap(), &map).map_or_else(|f| f.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_this_machines_names_with_our_port_are_a_host() {
        let guard = Guard::new(8080, None);
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LocalHost:8080"] {
            assert_eq!(status(&guard, "/", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "",
            "localhost",
            "127.0.0.1",
            "localhost:80",
            "localhost:08080",
            "localhost:8080 ",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example:8080",
            "127.0.0.2:8080",
            "127.1:8080",
            "0.0.0.0:8080",
            "[::]:8080",
            "::1:8080",
            "[0:0:0:0:0:0:0:1]:8080",
            "2130706433:8080",
            "0x7f.0.0.1:8080",
            "localhost.:8080",
            "user@localhost:8080",
            "localhost:8080@evil",
            "localhost:8080/",
            "localhost:8080,evil",
            "http://localhost:8080",
            "localhost:8080#",
            "localhost:8080?x",
            "%6cocalhost:8080",
            "localhost:+8080",
        ] {
            assert_eq!(status(&guard, "/", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(status(&guard, "/", &[]), 403);
        let ours = ("host", "localhost:8080");
        assert_eq!(status(&guard, "/", &[ours, ours]), 403);
        assert_eq!(status(&guard, "http://evil:8080/", &[ours]), 403);
        assert_eq!(status(&Guard::new(80, None), "/", &[("host", "localhost")]), 200);
    }

    #[test]
    fn pages_are_denied() {
        let guard = Guard::new(8080, None);
        let ours = ("host", "localhost:8080");
        for origin in ["null", "http://evil.example", "http://localhost:8080", ""] {
            assert_eq!(status(&guard, "/", &[ours, ("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(status(&guard, "/", &[ours, ("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(status(&guard, "/", &[ours, ("sec-fetch-site", "none")]), 200);
    }

    #[test]
    fn the_token_is_needed_once_and_exactly() {
        let guard = Guard::new(8080, Some(&Secret::new("t0ken")));
        let ours = ("host", "localhost:8080");
        let auth = |value: &str| status(&guard, "/", &[ours, ("authorization", value)]);
        assert_eq!(auth("Bearer t0ken"), 200);
        for bad in [
            "",
            "t0ken",
            "Bearer",
            "Bearer ",
            "Bearer t0ke",
            "Bearer t0ken ",
            "Bearer t0kenn",
            "bearer t0ken",
            "Basic t0ken",
            "Bearer  t0ken",
            "Bearer T0KEN",
        ] {
            assert_eq!(auth(bad), 401, "{bad}");
        }
        assert_eq!(auth(&format!("Bearer {}", "x".repeat(20_000))), 401);
        assert_eq!(status(&guard, "/", &[ours]), 401);
        assert_eq!(status(&guard, "/?token=t0ken", &[ours]), 401);
        let right = ("authorization", "Bearer t0ken");
        assert_eq!(status(&guard, "/", &[ours, right, right]), 401);
        // A foreign host is told nothing about the token.
        assert_eq!(status(&guard, "/", &[("host", "evil"), right]), 403);
    }
}
