//! A record of every call, for whoever has to judge what clients did.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What happened to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JournalEvent {
    /// It reached the backend.
    Started,
    /// Its answer was generated whole.
    Completed,
    /// It ended in an error.
    Failed,
    /// Its client left first.
    Cancelled,
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JournalEntry {
    /// Number of the call, from 1, in the order of starts.
    pub call: u64,
    /// The name under which the model is served.
    pub model: String,
    /// Lower-case hex SHA-256 of the request body.
    pub request_sha256: String,
    /// What happened.
    pub event: JournalEvent,
}

/// Where entries go. Called in the task of the connection: quick, and never panics.
pub(crate) type Journal = Arc<dyn Fn(&JournalEntry) + Send + Sync>;

/// A journal of JSON lines at the end of a file.
pub(crate) fn to_file(path: &Path) -> std::io::Result<Journal> {
    let file = Mutex::new(OpenOptions::new().create(true).append(true).open(path)?);
    Ok(Arc::new(move |entry| {
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        append(&mut file, entry);
    }))
}

fn append(file: &mut File, entry: &JournalEntry) {
    if let Ok(mut line) = serde_json::to_string(entry) {
        line.push('\n');
        // One write per line: a killed server leaves whole lines. A full disk must not stop calls.
        let _ = file.write_all(line.as_bytes());
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
