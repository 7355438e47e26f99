//! The right to send bytes off the process, and the ledger of what was sent.

use std::fmt;
use std::sync::Arc;

use crate::{Error, ErrorKind, Result};

/// How far a token reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EgressScope {
    /// Addresses of this machine only.
    Loopback,
    /// Any host.
    Network,
}

/// One exchange that left the process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EgressEntry {
    /// Host, with port if not the scheme's own.
    pub host: String,
    /// Whether the peer's address was a loopback address.
    pub is_loopback: bool,
    /// Bytes of request bodies.
    pub n_bytes_sent: u64,
    /// Bytes of response bodies as read from the wire.
    pub n_bytes_received: u64,
}

impl EgressEntry {
    /// One exchange with a host.
    pub fn new(host: impl Into<String>, is_loopback: bool, sent: u64, received: u64) -> Self {
        Self { host: host.into(), is_loopback, n_bytes_sent: sent, n_bytes_received: received }
    }
}

/// Takes note of what left the process.
pub trait EgressLedger: fmt::Debug + Send + Sync {
    /// Records one exchange, also a failed one.
    fn record(&self, entry: EgressEntry);
}

/// The right to build an outward client.
///
/// An HTTP client is only built from one of these. A run that is offline, and any path taken by a
/// sensitive sample, never holds one. For third-party code in this process that is a promise kept
/// by convention; only a sandboxed child enforces it.
#[derive(Clone, Debug)]
pub struct Egress {
    scope: EgressScope,
    ledger: Arc<dyn EgressLedger>,
}

impl Egress {
    /// Grants the right. Only the orchestrator, or a program's own `main`, should call this.
    pub fn grant(scope: EgressScope, ledger: Arc<dyn EgressLedger>) -> Self {
        Self { scope, ledger }
    }

    /// How far it reaches.
    pub fn scope(&self) -> EgressScope {
        self.scope
    }

    /// Refuses a host that the scope does not cover. `is_loopback` is judged on the address that
    /// would be connected to.
    ///
    /// # Errors
    /// [`ErrorKind::EgressDenied`] naming the host.
    pub fn permit(&self, host: &str, is_loopback: bool) -> Result<()> {
        if self.scope == EgressScope::Network || is_loopback {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::EgressDenied,
            "this run may only reach addresses of this machine; allow the network in the suite \
             to use that host",
        )
        .with("host", host))
    }

    /// The ledger to record exchanges in.
    pub fn ledger(&self) -> &dyn EgressLedger {
        &*self.ledger
    }
}
