//! The server's own count of calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Calls of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelStats {
    /// Calls that reached the backend.
    pub started: u64,
    /// Calls whose answer was generated whole.
    pub completed: u64,
    /// Calls that ended in an error.
    pub failed: u64,
    /// Calls whose client left first.
    pub cancelled: u64,
}

/// Calls of all models.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// By the name under which the model is served.
    pub models: BTreeMap<String, ModelStats>,
    /// Requests that were refused before they reached a backend.
    pub rejected: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) started: AtomicU64,
    pub(crate) completed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> ModelStats {
        // The end of a call is read before its start, so that no call seems to end unstarted.
        let completed = self.completed.load(Ordering::SeqCst);
        let failed = self.failed.load(Ordering::SeqCst);
        let cancelled = self.cancelled.load(Ordering::SeqCst);
        let started = self.started.load(Ordering::SeqCst);
        ModelStats { started, completed, failed, cancelled }
    }
}
