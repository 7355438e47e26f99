//! What a player saw: the witness of how often, when and in which order a client asked.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How the answer to a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The script is still being played.
    Open,
    /// The script was played to its end.
    Played,
    /// The client closed the connection before that.
    ClientClosed(Instant),
}

/// One request, and what became of its answer.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// Request line and headers; for a raw connection its first bytes.
    pub head: String,
    /// The body.
    pub body: String,
    /// When it was read whole.
    pub received: Instant,
    /// Bytes of the answer that the system took for sending.
    pub n_bytes_sent: u64,
    /// How the answer went.
    pub end: End,
}

impl Record {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, value) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The path of the request line, with its query.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    records: Mutex<Vec<Record>>,
    changed: Condvar,
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a request; its number.
    pub(super) fn enter(&self, record: Record) -> usize {
        let mut records = self.lock();
        records.push(record);
        records.len() - 1
    }

    pub(super) fn end(&self, n: usize, n_bytes_sent: u64, end: End) {
        let mut records = self.lock();
        records[n].n_bytes_sent = n_bytes_sent;
        records[n].end = end;
        drop(records);
        self.changed.notify_all();
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.lock().clone()
    }

    pub(super) fn closed_at(&self, wait: Duration) -> Option<Instant> {
        let first = |records: &[Record]| {
            records.iter().find_map(|record| match record.end {
                End::ClientClosed(at) => Some(at),
                _ => None,
            })
        };
        let waited =
            self.changed.wait_timeout_while(self.lock(), wait, |records| first(records).is_none());
        first(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}
