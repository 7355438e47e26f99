//! Names of hosts, resolved under the terms of an [`Egress`] token.

use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::vec;

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;
use weighbridge_core::Egress;

use crate::address::is_loopback;
use crate::connection::ConnectError;

/// Asks for the addresses of a name.
pub(crate) type Lookup = fn(String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>>;

pub(crate) fn system_lookup(host: String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> {
    Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
}

/// Resolves names and lets only permitted addresses through, so that the check holds for the
/// connection that is made and not only for the name. IP addresses never come here: they were
/// judged when the client was built.
#[derive(Clone, Debug)]
pub(crate) struct GuardedResolver {
    pub(crate) egress: Egress,
    /// The host was on this machine when the model was opened, and its card says so.
    pub(crate) only_loopback: bool,
    pub(crate) lookup: Lookup,
}

impl GuardedResolver {
    async fn permitted(self, host: String) -> Result<vec::IntoIter<SocketAddr>, ConnectError> {
        let found = (self.lookup)(host.clone()).await.map_err(|_| NameFailure)?;
        if found.is_empty() {
            return Err(NameFailure.into());
        }
        let permitted: Vec<_> = found
            .into_iter()
            .filter(|address| {
                let is_loopback = is_loopback(address.ip());
                (is_loopback || !self.only_loopback)
                    && self.egress.permit(&host, is_loopback).is_ok()
            })
            .collect();
        if permitted.is_empty() {
            return Err(DeniedAddress(format!(
                "`{host}` now stands for an address outside this machine, which may not be reached"
            ))
            .into());
        }
        Ok(permitted.into_iter())
    }
}

impl Service<Name> for GuardedResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().permitted(name.as_str().to_owned()))
    }
}

/// The name is not known.
#[derive(Debug)]
pub(crate) struct NameFailure;

impl fmt::Display for NameFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name cannot be resolved")
    }
}

impl StdError for NameFailure {}

/// The name is known and none of its addresses may be reached; the reason.
#[derive(Debug)]
pub(crate) struct DeniedAddress(pub(crate) String);

impl fmt::Display for DeniedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for DeniedAddress {}
