//! What can go wrong with a run log.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Digest;
use super::scan::Damage;

/// What went wrong, for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunLogErrorKind {
    /// Another writer holds the log.
    Locked,
    /// There is no log here, or none that ever got its first record.
    NotFound,
    /// There is a log here already.
    AlreadyExists,
    /// The log was written in another version of the format.
    UnsupportedVersion {
        /// The version in the record header.
        version: u8,
    },
    /// A record needs a newer program.
    UnsupportedRecord {
        /// Number of the record type.
        record_type: u8,
        /// Flags in the record header.
        flags: u16,
    },
    /// Acknowledged data is damaged; [`RunLogError::damage`] has the details.
    Damaged,
    /// A body that a record names is in no pack.
    BlobMissing,
    /// A body that a record names does not match its digest.
    BlobDamaged,
    /// The body was erased on purpose.
    BlobErased,
    /// The run was started with another configuration.
    ConfigurationMismatch {
        /// Hash in the `RUN` record.
        recorded: Digest,
        /// Hash the caller gave.
        given: Digest,
    },
    /// A sync failed; what the kernel still has is unknown, so nothing more is written.
    Poisoned {
        /// Sequence number of the last record known to be on stable storage.
        last_durable_seq: Option<u64>,
    },
    /// The disk or the quota is full; the log was cut to whole records and closed.
    DiskFull {
        /// Sequence number of the last record known to be on stable storage.
        last_durable_seq: Option<u64>,
    },
    /// A record or a body is larger than the format allows.
    TooLarge {
        /// Its size in bytes.
        n_bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The record would break an invariant of the run, e.g. a second final outcome of one call.
    Refused,
    /// A payload is not what its record type says.
    Payload,
    /// The folder lies on a network file system.
    NetworkFileSystem,
    /// The writer was closed or sealed.
    Closed,
    /// Any other failure of the operating system.
    Io,
}

/// An error of the run log: the kind for programs; path, offset and sequence number where known; a sentence for people.
#[derive(Clone, Debug)]
pub struct RunLogError {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    kind: RunLogErrorKind,
    message: String,
    path: Option<PathBuf>,
    offset: Option<u64>,
    seq: Option<u64>,
    damage: Option<Damage>,
    source: Option<Arc<io::Error>>,
}

/// Result of the run log.
pub(super) type Result<T> = std::result::Result<T, RunLogError>;

impl RunLogError {
    pub(super) fn new(kind: RunLogErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                message: message.into(),
                path: None,
                offset: None,
                seq: None,
                damage: None,
                source: None,
            }),
        }
    }

    pub(super) fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        Self::new(RunLogErrorKind::Io, format!("cannot {doing}")).at(path).because(source)
    }

    pub(super) fn at(mut self, path: &Path) -> Self {
        Arc::make_mut(&mut self.inner).path = Some(path.to_path_buf());
        self
    }

    pub(super) fn offset_at(mut self, offset: u64) -> Self {
        Arc::make_mut(&mut self.inner).offset = Some(offset);
        self
    }

    pub(super) fn record(mut self, seq: u64) -> Self {
        Arc::make_mut(&mut self.inner).seq = Some(seq);
        self
    }

    pub(super) fn damaged(damage: Damage) -> Self {
        let mut error = Self::new(RunLogErrorKind::Damaged, damage.to_string())
            .at(&damage.path)
            .offset_at(damage.offset)
            .record(damage.expected_seq);
        Arc::make_mut(&mut error.inner).damage = Some(damage);
        error
    }

    pub(super) fn because(mut self, source: io::Error) -> Self {
        Arc::make_mut(&mut self.inner).source = Some(Arc::new(source));
        self
    }

    /// What went wrong, for programs.
    pub fn kind(&self) -> &RunLogErrorKind {
        &self.inner.kind
    }

    /// The file or folder concerned.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// Byte offset in that file.
    pub fn offset(&self) -> Option<u64> {
        self.inner.offset
    }

    /// Sequence number of the record concerned.
    pub fn seq(&self) -> Option<u64> {
        self.inner.seq
    }

    /// Where the log is damaged, if the kind is [`RunLogErrorKind::Damaged`].
    pub fn damage(&self) -> Option<&Damage> {
        self.inner.damage.as_ref()
    }
}

impl fmt::Display for RunLogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        write!(f, "{}", inner.message)?;
        // A damage report names its own place.
        if inner.damage.is_none() {
            if let Some(path) = &inner.path {
                write!(f, "; file `{}`", path.display())?;
            }
            if let Some(offset) = inner.offset {
                write!(f, ", offset {offset}")?;
            }
            if let Some(seq) = inner.seq {
                write!(f, ", record {seq}")?;
            }
        }
        if let Some(source) = &inner.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl Error for RunLogError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}
