//! Reading a log, whole or damaged, without writing to it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::blobs::{self, BlobIndex};
use super::digest::Digest;
use super::disk::{Disk, RealDisk};
use super::error::{Result, RunLogError, RunLogErrorKind};
use super::frame;
use super::payload::Record;
use super::replay::RunState;
use super::scan::{self, Damage, RecordPosition, segment_path};

/// One record as stored.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredRecord {
    /// Where it lies.
    pub position: RecordPosition,
    /// Sequence number.
    pub seq: u64,
    /// How many records were known to be synced when it was written.
    pub durable: u64,
    /// Hash of the record before.
    pub prev: Digest,
    /// Hash of this record.
    pub hash: Digest,
    /// What it says; the reason if the payload is not what its type promises.
    pub record: std::result::Result<Record, String>,
}

/// A log in a few figures.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogSummary {
    /// Number of intact records from the first on.
    pub n_records: u64,
    /// Number of segment files.
    pub n_segments: usize,
    /// Records that the log itself says are synced.
    pub durable_claim: u64,
    /// RFC 6962 root over the hashes of the intact records.
    pub root: Digest,
    /// Whether the log was closed in good order and nothing followed.
    pub sealed: bool,
}

/// Reads a run log. Opening verifies every record; nothing is ever written, no lock is taken.
///
/// A log that is being written can be read: what is half written shows as a torn tail.
#[derive(Debug)]
pub struct RunLogReader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    positions: Vec<RecordPosition>,
    state: RunState,
    summary: LogSummary,
    damage: Option<Damage>,
    blobs: OnceLock<BlobIndex>,
}

impl RunLogReader {
    /// Verifies the log in `dir`. Damage is not an error: see [`damage`](Self::damage).
    ///
    /// # Errors
    /// [`RunLogErrorKind::NotFound`] if there is no segment, [`RunLogErrorKind::UnsupportedVersion`],
    /// [`RunLogErrorKind::UnsupportedRecord`], [`RunLogErrorKind::Io`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_on(Arc::new(RealDisk), dir)
    }

    /// [`open`](Self::open) on another [`Disk`].
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self> {
        let mut positions = Vec::new();
        let mut state = RunState::default();
        let scan = scan::scan(&*disk, dir, &mut |position, frame| {
            positions.push(position);
            match Record::decode(frame.record_type, frame.payload) {
                Ok(record) => state.apply(frame.seq, &record),
                Err(why) => state.unreadable(frame.seq, &why),
            }
            Ok(())
        })?;
        if scan.segments.is_empty() {
            let message = "there is no run log here; check the folder";
            return Err(RunLogError::new(RunLogErrorKind::NotFound, message).at(dir));
        }
        let summary = LogSummary {
            n_records: scan.n_records,
            n_segments: scan.segments.len(),
            durable_claim: scan.durable_claim,
            root: scan.tree.root(),
            sealed: state.seal().is_some()
                && scan.damage.as_ref().is_none_or(|damage| damage.torn_tail),
        };
        let damage = scan.damage;
        Ok(Self {
            disk,
            dir: dir.to_path_buf(),
            positions,
            state,
            summary,
            damage,
            blobs: OnceLock::new(),
        })
    }

    /// The fold of all intact records.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// The log in a few figures.
    pub fn summary(&self) -> &LogSummary {
        &self.summary
    }

    /// Where the log stops verifying, if it does before its end.
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// Every intact record from the first on, in order. Reads one segment at a time.
    pub fn records(&self) -> impl Iterator<Item = Result<StoredRecord>> {
        self.read_at(&self.positions)
    }

    /// Readable records behind the damage. Their chain is broken: each is intact, their completeness is not proven.
    pub fn salvaged(&self) -> impl Iterator<Item = Result<StoredRecord>> {
        self.read_at(self.damage.as_ref().map_or(&[][..], |damage| &damage.later))
    }

    /// One body, checked against its digest.
    ///
    /// # Errors
    /// [`RunLogErrorKind::BlobMissing`], [`RunLogErrorKind::BlobDamaged`], [`RunLogErrorKind::BlobErased`],
    /// [`RunLogErrorKind::Io`].
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let index = self.blob_index()?;
        blobs::read(&*self.disk, &self.dir, index, self.state.is_erased(digest), digest)
    }

    /// Checks every body that a record names; returns the problems. An erased body is none.
    ///
    /// # Errors
    /// [`RunLogErrorKind::Io`].
    pub fn verify_blobs(&self) -> Result<Vec<RunLogError>> {
        let index = self.blob_index()?;
        let mut problems = Vec::new();
        for digest in self.state.body_digests().filter(|digest| !self.state.is_erased(digest)) {
            let places = index.get(&digest).map_or(&[][..], Vec::as_slice);
            if places.iter().any(|place| place.intact) {
                continue;
            }
            problems.push(match places.first() {
                Some(place) => blobs::damaged(&self.dir, &digest, place),
                None => blobs::missing(&self.dir, &digest),
            });
        }
        Ok(problems)
    }

    fn blob_index(&self) -> Result<&BlobIndex> {
        if let Some(index) = self.blobs.get() {
            return Ok(index);
        }
        let index = blobs::index(&*self.disk, &self.dir)?;
        Ok(self.blobs.get_or_init(|| index))
    }

    fn read_at<'a>(
        &'a self,
        positions: &'a [RecordPosition],
    ) -> impl Iterator<Item = Result<StoredRecord>> + 'a {
        let mut loaded: Option<(u32, Vec<u8>)> = None;
        positions.iter().map(move |position| {
            let path = segment_path(&self.dir, position.segment);
            let bytes = match &mut loaded {
                Some((segment, bytes)) if *segment == position.segment => bytes,
                stale => {
                    let bytes = self
                        .disk
                        .read(&path, 0, usize::MAX)
                        .map_err(|error| RunLogError::io("read the segment", &path, error))?;
                    &mut stale.insert((position.segment, bytes)).1
                }
            };
            let start = usize::try_from(position.offset).unwrap_or(usize::MAX);
            let frame = frame::decode(bytes.get(start..).unwrap_or_default()).map_err(|_| {
                RunLogError::new(
                    RunLogErrorKind::Io,
                    "the segment changed while it was read; open the log again",
                )
                .at(&path)
                .offset_at(position.offset)
            })?;
            Ok(StoredRecord {
                position: *position,
                seq: frame.seq,
                durable: frame.durable,
                prev: frame.prev,
                hash: frame.hash,
                record: Record::decode(frame.record_type, frame.payload),
            })
        })
    }
}
