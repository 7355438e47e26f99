//! What a call's failures on the way are called, and what to do about them.

use std::error::Error as StdError;
use std::time::Instant;

use rustls::AlertDescription;
use weighbridge_core::{Error, ErrorKind, Retry};

use super::{Deadline, Http};
use crate::address::unknown_host;
use crate::resolver::{DeniedAddress, NameFailure};

impl Http {
    /// An answer in an encoding that was not asked for.
    pub(crate) fn compressed(&self, encoding: &str) -> Error {
        Error::new(
            ErrorKind::Transport,
            format!(
                "{} sent a compressed body although none was asked for",
                self.address.authority()
            ),
        )
        .with("content_encoding", self.redactor.excerpt(encoding, 64))
    }

    /// An answer above the limit.
    pub(crate) fn too_long(&self, max_bytes: u64) -> Error {
        let place = self.address.authority();
        let mib = max_bytes >> 20;
        Error::new(ErrorKind::Protocol, format!("the answer of {place} exceeds {mib} MiB"))
    }

    /// A call that passed a deadline.
    pub(crate) fn timed_out(&self, deadline: Deadline, start: Instant) -> Error {
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

    /// A server that cannot be connected to.
    pub(super) fn connect_error(&self, error: &(dyn StdError + 'static)) -> Error {
        if let Some(denied) = find::<DeniedAddress>(error) {
            return Error::new(ErrorKind::EgressDenied, denied.0.clone())
                .with("host", self.address.authority());
        }
        let place = self.address.host_and_port();
        let transport =
            |phase, message: String| Error::new(ErrorKind::Transport, message).with("phase", phase);
        let error = match find::<std::io::Error>(error).map(std::io::Error::kind) {
            _ if find::<NameFailure>(error).is_some() => unknown_host(self.address.host()),
            Some(std::io::ErrorKind::TimedOut) => self.connect_timed_out(),
            Some(std::io::ErrorKind::ConnectionRefused) => transport(
                "connect",
                format!("nothing listens at {place}; start the server or correct the URL"),
            ),
            _ if matches!(
                find::<rustls::Error>(error),
                Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol))
            ) =>
            {
                transport(
                    "tls",
                    format!(
                        "{place} does not speak HTTP/1.1, the only version that is spoken here; \
                         use an address that does"
                    ),
                )
            }
            _ if self.address.is_https() => transport(
                "tls",
                format!(
                    "no secure connection to {place} was possible; if the server speaks plain \
                     http, correct the URL"
                ),
            ),
            _ => transport(
                "connect",
                format!("{place} cannot be reached; check host, port and network"),
            ),
        }
        .with_source(self.redactor.cause(error));
        error.with_retry(Retry::Safe { after: None })
    }

    /// A server that does not accept connections.
    pub(super) fn connect_timed_out(&self) -> Error {
        Error::new(
            ErrorKind::Timeout,
            format!(
                "{} did not accept a connection within {} s; check host and port, or raise \
                 `connect_timeout_s`",
                self.address.host_and_port(),
                self.timers.connect.as_secs_f64()
            ),
        )
        .with("phase", "connect")
        .with_retry(Retry::Safe { after: None })
    }

    /// A call that got no status line.
    pub(crate) fn send_error(&self, error: &hyper::Error) -> Error {
        Error::new(
            ErrorKind::Transport,
            format!(
                "{} closed the connection or answered with something that is not HTTP/1.1; check \
                 that the URL's scheme and port are those of the API",
                self.address.host_and_port()
            ),
        )
        .with("phase", "response")
        .with("maybe_sent", true)
        .with_source(self.redactor.cause(error))
        .with_retry(Retry::Safe { after: None })
    }

    /// An answer whose body broke off or is damaged.
    pub(crate) fn body_error(&self, error: &hyper::Error) -> Error {
        use std::io::ErrorKind as Io;
        let io = find::<std::io::Error>(error).map(std::io::Error::kind);
        let is_cut = error.is_incomplete_message()
            || matches!(
                io,
                Some(
                    Io::UnexpectedEof
                        | Io::ConnectionReset
                        | Io::ConnectionAborted
                        | Io::BrokenPipe
                )
            );
        let place = self.address.host_and_port();
        let failure = if is_cut {
            Error::new(ErrorKind::Truncated, format!("{place} broke off its answer"))
        } else {
            Error::new(ErrorKind::Transport, format!("the answer of {place} is damaged HTTP"))
        };
        failure.with_source(self.redactor.cause(error)).with_retry(Retry::Safe { after: None })
    }
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
