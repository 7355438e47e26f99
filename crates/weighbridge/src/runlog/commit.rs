//! The log without its thread: opening, recovery, group commit. Every write and every sync happens here, in an order
//! that a test can cut anywhere.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::ack::{Receipt, Sealed};
use super::blobs::{self, BlobStore, MAX_BLOB_BYTES};
use super::digest::Digest;
use super::disk::{Disk, DiskFile, DiskLock};
use super::error::{Result, RunLogError, RunLogErrorKind};
use super::frame::{self, FrameHead, HASH_LEN, HEADER_LEN, MAX_RECORD_BYTES, RecordType};
use super::merkle::RootHasher;
use super::options::WriterOptions;
use super::payload::{MarkRecord, NoteRecord, Record, RunRecord, SealRecord};
use super::replay::RunState;
use super::scan::{self, Damage, Scan, segment_path};

/// Note kinds that only the log itself writes.
const OWN_NOTES: [&str; 3] = ["recovery", "disk_full", "erased"];

/// A record and the bodies to store before it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) record: Record,
    pub(super) blobs: Vec<Vec<u8>>,
}

/// A write or a sync that failed. After a failed sync the state of the disk is unknown.
#[derive(Debug)]
pub(super) struct Failure {
    is_sync: bool,
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Failure {
    pub(super) fn write(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { is_sync: false, doing, path: path.to_path_buf(), source }
    }

    pub(super) fn sync(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { is_sync: true, doing, path: path.to_path_buf(), source }
    }

    fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

type Attempt<T> = std::result::Result<T, Failure>;

/// End of the chain.
#[derive(Clone, Debug, Default)]
struct Tip {
    n_records: u64,
    prev: Option<Digest>,
    tree: RootHasher,
}

impl Tip {
    fn prev(&self) -> Digest {
        self.prev.unwrap_or(Digest::ZERO)
    }

    fn advance(&mut self, hash: Digest) {
        self.n_records += 1;
        self.prev = Some(hash);
        self.tree.push(hash);
    }
}

#[derive(Debug)]
struct OpenSegment {
    number: u32,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Length in whole records; a failed write is cut back to it.
    n_bytes: u64,
}

/// A record that passed all checks.
#[derive(Debug)]
struct Prepared {
    record_type: RecordType,
    payload: Vec<u8>,
    needs_sync: bool,
}

/// An open log.
#[derive(Debug)]
pub(super) struct LogCore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WriterOptions,
    /// `None` until the first record of a new log.
    segment: Option<OpenSegment>,
    next_segment: u32,
    tip: Tip,
    /// Records known to be on stable storage.
    durable: u64,
    /// The newest such number that a record carries.
    claimed: u64,
    state: RunState,
    blobs: BlobStore,
    sealed: bool,
    failure: Option<RunLogError>,
    _lock: Box<dyn DiskLock>,
}

impl LogCore {
    /// Begins a log in a folder that has none.
    pub(super) fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        run: RunRecord,
        configuration: Vec<u8>,
        options: WriterOptions,
    ) -> Result<Self> {
        let io = |error| RunLogError::io("create the folder of the run log", dir, error);
        disk.create_dir(&blobs::blobs_dir(dir)).map_err(io)?;
        let lock = lock(&*disk, dir, &options)?;
        let mut scan = scan::scan(&*disk, dir, &mut |_, _| Ok(()))?;
        let nothing_there =
            scan.n_records == 0 && scan.damage.as_ref().is_none_or(|damage| damage.torn_tail);
        if !nothing_there {
            return Err(RunLogError::new(
                RunLogErrorKind::AlreadyExists,
                "there is a run log here already; resume it, or choose another folder",
            )
            .at(dir));
        }
        // A crash in the middle of an earlier creation left no record, so nothing was promised.
        let recovery = scan
            .damage
            .take()
            .map(|damage| set_tail_aside(&*disk, dir, &scan, &damage))
            .transpose()?;
        if recovery.is_none() {
            remove_empty_segment(&*disk, dir, &scan)?;
        }
        let blobs = BlobStore::new(Arc::clone(&disk), dir, options.pack_bytes)?;
        let mut core = Self {
            disk,
            dir: dir.to_path_buf(),
            options,
            segment: None,
            next_segment: 0,
            tip: Tip::default(),
            durable: 0,
            claimed: 0,
            state: RunState::default(),
            blobs,
            sealed: false,
            failure: None,
            _lock: lock,
        };
        core.make_reserve()?;
        core.commit(&[Job { record: Record::Run(run), blobs: vec![configuration] }]).remove(0)?;
        if let Some(note) = recovery {
            core.write_own(Record::Note(note))?;
        }
        Ok(core)
    }

    /// Opens a log for more records, after recovery. With a configuration hash, only that run.
    pub(super) fn resume(
        disk: Arc<dyn Disk>,
        dir: &Path,
        configuration_hash: Option<&Digest>,
        options: WriterOptions,
    ) -> Result<Self> {
        if disk
            .list(dir)
            .map_err(|error| RunLogError::io("list the run log", dir, error))?
            .is_empty()
        {
            return Err(no_run(dir));
        }
        let lock = lock(&*disk, dir, &options)?;
        let mut state = RunState::default();
        let mut scan = scan::scan(&*disk, dir, &mut |position, frame| {
            let record = Record::decode(frame.record_type, frame.payload).map_err(|why| {
                RunLogError::new(
                    RunLogErrorKind::Payload,
                    format!("the record is intact but not readable: {why}"),
                )
                .at(&segment_path(dir, position.segment))
                .offset_at(position.offset)
                .record(frame.seq)
            })?;
            state.apply(frame.seq, &record);
            Ok(())
        })?;
        if let Some(damage) = scan.damage.take_if(|damage| !damage.torn_tail) {
            return Err(RunLogError::damaged(damage));
        }
        let Some(run) = state.run() else { return Err(no_run(dir)) };
        if let Some(given) = configuration_hash.filter(|given| **given != run.configuration_hash) {
            return Err(mismatch(dir, run.configuration_hash, *given));
        }
        let blobs = open_blobs(&disk, dir, &state, options.pack_bytes)?;
        // Nothing was written so far.
        let recovery = scan
            .damage
            .clone()
            .map(|damage| set_tail_aside(&*disk, dir, &scan, &damage))
            .transpose()?;
        if recovery.is_none() {
            remove_empty_segment(&*disk, dir, &scan)?;
        }
        let last = scan
            .segments
            .iter()
            .rev()
            .find(|file| scan.valid_len(file) > 0)
            .ok_or_else(|| no_run(dir))?;
        let mut segment = OpenSegment {
            number: last.segment,
            path: last.path.clone(),
            file: disk.open_write(&last.path).map_err(|error| {
                RunLogError::io("open the segment for writing", &last.path, error)
            })?,
            n_bytes: scan.valid_len(last),
        };
        make_durable(&*disk, dir, &mut segment, &scan)?;
        let mut core = Self {
            disk,
            dir: dir.to_path_buf(),
            options,
            next_segment: segment.number + 1,
            segment: Some(segment),
            durable: scan.n_records,
            claimed: scan.durable_claim,
            tip: Tip { n_records: scan.n_records, prev: Some(scan.prev), tree: scan.tree },
            sealed: false,
            failure: None,
            state,
            blobs,
            _lock: lock,
        };
        core.make_reserve()?;
        core.write_missing_recovery_notes(recovery)?;
        core.finish_erasures()?;
        Ok(core)
    }

    pub(super) fn state(&self) -> &RunState {
        &self.state
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Why nothing more is written, if so.
    pub(super) fn failure(&self) -> Option<&RunLogError> {
        self.failure.as_ref()
    }

    /// Writes a group: bodies, sync, records, sync. One answer per job, in order; a refused record does not stop the
    /// others, a failed disk stops the log.
    pub(super) fn commit(&mut self, jobs: &[Job]) -> Vec<Result<Receipt>> {
        if let Err(closed) = self.usable() {
            return vec![Err(closed); jobs.len()];
        }
        match self.try_commit(jobs) {
            Ok(answers) => answers,
            Err(failure) => vec![Err(self.fail(failure)); jobs.len()],
        }
    }

    /// Writes what says how many records are synced, if no record says it yet. Not synced itself.
    pub(super) fn mark(&mut self) -> Result<()> {
        self.usable()?;
        if self.durable == self.claimed {
            return Ok(());
        }
        self.mark_now()
    }

    /// Syncs everything written so far; returns the number of durable records.
    pub(super) fn sync(&mut self) -> Result<u64> {
        self.usable()?;
        match self.sync_segment() {
            Ok(()) => Ok(self.durable),
            Err(failure) => Err(self.fail(failure)),
        }
    }

    /// Writes the last record. Later commits are refused.
    pub(super) fn seal(&mut self) -> Result<Sealed> {
        self.usable()?;
        let seal = SealRecord { outcomes: self.state.n_outcomes(), root: self.tip.tree.root() };
        let receipt = self.write_own(Record::Seal(seal))?;
        self.sealed = true;
        // Proves that the seal was synced, so that damage to it cannot pass for a torn tail.
        self.mark_now()?;
        Ok(Sealed { seq: receipt.seq, n_outcomes: seal.outcomes, root: seal.root })
    }

    /// Erases a body for good: first the note is made durable, then every copy is overwritten with zeros.
    pub(super) fn erase(&mut self, digest: &Digest, reason: &str) -> Result<Receipt> {
        self.usable()?;
        if !self.blobs.knows(digest) {
            return Err(blobs::missing(&self.dir, digest));
        }
        let receipt = self.write_own(Record::Note(NoteRecord::erased(digest, reason)))?;
        self.blobs.forbid(*digest);
        self.finish_erasures()?;
        Ok(receipt)
    }

    fn usable(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.sealed => Err(closed(&self.dir)),
            None => Ok(()),
        }
    }

    fn try_commit(&mut self, jobs: &[Job]) -> Attempt<Vec<Result<Receipt>>> {
        let mut prepared = Vec::with_capacity(jobs.len());
        let mut slots = Vec::with_capacity(jobs.len());
        for job in jobs {
            slots.push(match self.admit(job) {
                Ok(payload) => {
                    for body in &job.blobs {
                        self.blobs.stage(body)?;
                    }
                    Ok(self.accept(&job.record, payload, &mut prepared))
                }
                Err(refused) => Err(refused),
            });
        }
        let receipts = self.write_group(&prepared)?;
        Ok(slots.into_iter().map(|slot| slot.map(|index: usize| receipts[index])).collect())
    }

    /// Checks a job against the limits and the invariants; returns the payload.
    fn admit(&self, job: &Job) -> Result<Vec<u8>> {
        let refuse = |why: String| RunLogError::new(RunLogErrorKind::Refused, why);
        match &job.record {
            Record::Mark(_) | Record::Seal(_) | Record::Unknown { .. } => {
                let number = job.record.record_type().number();
                return Err(refuse(format!(
                    "records of type {number} are written by the log itself"
                )));
            }
            Record::Note(note) if OWN_NOTES.contains(&note.kind.as_str()) => {
                let kind = &note.kind;
                return Err(refuse(format!(
                    "notes of kind `{kind}` are written by the log itself; choose another kind"
                )));
            }
            _ => {}
        }
        self.state.check(&job.record).map_err(refuse)?;
        for body in &job.blobs {
            if body.len() > MAX_BLOB_BYTES {
                return Err(too_large("a body", body.len(), MAX_BLOB_BYTES));
            }
        }
        if let Some(digest) = job.record.body_digest() {
            let attached = || job.blobs.iter().any(|body| Digest::of(body) == digest);
            if !self.blobs.knows(&digest) && !attached() {
                return Err(RunLogError::new(
                    RunLogErrorKind::BlobMissing,
                    format!(
                        "the record names body {digest}, which is not stored; append the body with the record"
                    ),
                ));
            }
        }
        encode(&job.record)
    }

    fn accept(&mut self, record: &Record, payload: Vec<u8>, prepared: &mut Vec<Prepared>) -> usize {
        let index = prepared.len();
        self.state.apply(self.tip.n_records + index as u64, record);
        prepared.push(Prepared {
            record_type: record.record_type(),
            payload,
            needs_sync: record.needs_sync(),
        });
        index
    }

    /// Writes one record of the log's own.
    fn write_own(&mut self, record: Record) -> Result<Receipt> {
        let payload = encode(&record)?;
        let mut prepared = Vec::with_capacity(1);
        self.accept(&record, payload, &mut prepared);
        match self.write_group(&prepared) {
            Ok(receipts) => Ok(receipts[0]),
            Err(failure) => Err(self.fail(failure)),
        }
    }

    fn mark_now(&mut self) -> Result<()> {
        self.write_own(Record::Mark(MarkRecord {})).map(drop)
    }

    fn write_group(&mut self, prepared: &[Prepared]) -> Attempt<Vec<Receipt>> {
        // Bodies before the records that name them.
        self.blobs.sync()?;
        let receipts = self.write_records(prepared, self.options.segment_bytes)?;
        if prepared.iter().any(|record| record.needs_sync) {
            self.sync_segment()?;
        }
        let durable = self.durable;
        Ok(receipts
            .into_iter()
            .map(|receipt| Receipt { durable: receipt.seq < durable, ..receipt })
            .collect())
    }

    /// Writes records in one piece per segment, without a sync unless a segment is begun.
    fn write_records(
        &mut self,
        prepared: &[Prepared],
        segment_bytes: u64,
    ) -> Attempt<Vec<Receipt>> {
        let mut receipts = Vec::with_capacity(prepared.len());
        let mut buffer = Vec::new();
        let mut tip = self.tip.clone();
        for record in prepared {
            let n_bytes = (HEADER_LEN + record.payload.len() + HASH_LEN) as u64;
            let begin = match &self.segment {
                None => true,
                Some(open) => open.n_bytes + buffer.len() as u64 + n_bytes > segment_bytes,
            };
            if begin {
                self.write_buffer(&mut buffer, &tip)?;
                // Everything in the old segment is synced before a new one exists.
                self.sync_segment()?;
            }
            let head = FrameHead {
                record_type: record.record_type,
                flags: 0,
                seq: tip.n_records,
                durable: self.durable,
                prev: tip.prev(),
            };
            let hash = frame::encode(&head, &record.payload, &mut buffer);
            receipts.push(Receipt { seq: tip.n_records, hash, durable: false });
            tip.advance(hash);
            if begin {
                self.begin_segment(&buffer)?;
                buffer.clear();
                self.tip = tip.clone();
                self.claimed = self.durable;
                self.durable = self.tip.n_records;
            }
        }
        self.write_buffer(&mut buffer, &tip)?;
        Ok(receipts)
    }

    fn write_buffer(&mut self, buffer: &mut Vec<u8>, tip: &Tip) -> Attempt<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let open =
            self.segment.as_mut().expect("a log without a segment begins one for its first record");
        open.file
            .write_at(open.n_bytes, buffer)
            .map_err(Failure::write("write the segment", &open.path))?;
        open.n_bytes += buffer.len() as u64;
        buffer.clear();
        self.tip = tip.clone();
        self.claimed = self.durable;
        Ok(())
    }

    fn sync_segment(&mut self) -> Attempt<()> {
        if self.durable == self.tip.n_records {
            return Ok(());
        }
        if let Some(open) = &mut self.segment {
            open.file.sync().map_err(Failure::sync("sync the segment", &open.path))?;
        }
        self.durable = self.tip.n_records;
        Ok(())
    }

    /// Creates the next segment with its first record; it is in use only when its content and its name are durable.
    fn begin_segment(&mut self, first_record: &[u8]) -> Attempt<()> {
        let path = segment_path(&self.dir, self.next_segment);
        let mut file =
            self.disk.create_new(&path).map_err(Failure::write("create the segment", &path))?;
        if let Err(error) = file.write_at(0, first_record) {
            drop(file);
            // The rest of the record would be a torn tail; without it there is nothing to set aside.
            let _ = self.disk.remove(&path);
            return Err(Failure::write("write the first record of the segment", &path)(error));
        }
        file.sync().map_err(Failure::sync("sync the new segment", &path))?;
        self.disk
            .sync_dir(&self.dir)
            .map_err(Failure::sync("sync the folder of the run log", &self.dir))?;
        let number = self.next_segment;
        self.segment = Some(OpenSegment { number, path, file, n_bytes: first_record.len() as u64 });
        self.next_segment = number + 1;
        Ok(())
    }

    /// Ends the log after a failure and says why, with the last durable record.
    fn fail(&mut self, failure: Failure) -> RunLogError {
        let full = !failure.is_sync && failure.is_full();
        if !failure.is_sync {
            self.cut_partial();
        }
        let noted = if full { self.note_disk_full(&failure) } else { Ok(()) };
        let last_durable_seq = self.durable.checked_sub(1);
        let last = last_durable_seq.map_or_else(|| "none".to_owned(), |seq| seq.to_string());
        let failure = match noted {
            // The note's own sync failed: that is the graver news.
            Err(graver) if graver.is_sync => graver,
            _ => failure,
        };
        let doing = failure.doing;
        let (kind, message) = if failure.is_sync {
            let message = format!(
                "cannot {doing}; a failed sync is never retried, so the log is closed; last durable record: {last}; \
                 check the disk, then resume"
            );
            (RunLogErrorKind::Poisoned { last_durable_seq }, message)
        } else if full {
            let message = format!(
                "cannot {doing}: the disk or the quota is full; the log was closed in good order; last durable record: \
                 {last}; make room, then resume"
            );
            (RunLogErrorKind::DiskFull { last_durable_seq }, message)
        } else {
            let message = format!(
                "cannot {doing}; the log was cut to whole records and closed; last durable record: {last}; remove the \
                 cause, then resume"
            );
            (RunLogErrorKind::Io, message)
        };
        let mut error = RunLogError::new(kind, message).at(&failure.path).because(failure.source);
        if let Some(seq) = last_durable_seq {
            error = error.record(seq);
        }
        self.failure = Some(error.clone());
        error
    }

    /// Cuts what a failed write may have left. Best effort: recovery cuts a torn tail too.
    fn cut_partial(&mut self) {
        self.blobs.cut_unsynced();
        if let Some(open) = &mut self.segment {
            let _ = open.file.set_len(open.n_bytes);
        }
    }

    fn note_disk_full(&mut self, failure: &Failure) -> Attempt<()> {
        let reserve = reserve_path(&self.dir);
        self.disk.remove(&reserve).map_err(Failure::write("remove the reserve file", &reserve))?;
        let text = format!("the disk or the quota is full: cannot {}", failure.doing);
        let data = json!({ "error": failure.source.to_string() });
        let note = Record::Note(NoteRecord::new("disk_full", text, data));
        let Ok(payload) = encode(&note) else { return Ok(()) };
        let mut prepared = Vec::with_capacity(1);
        self.accept(&note, payload, &mut prepared);
        if self.segment.is_none() {
            return Ok(());
        }
        // Into the open segment, whatever its size: this is no time to begin another.
        let written = self.write_records(&prepared, u64::MAX).and_then(|_| self.sync_segment());
        if written.as_ref().is_err_and(|failure| !failure.is_sync) {
            self.cut_partial();
        }
        written
    }

    fn make_reserve(&self) -> Result<()> {
        let path = reserve_path(&self.dir);
        let make = || {
            let wanted = self.options.reserve_bytes;
            let mut file = match self.disk.file_len(&path) {
                Ok(n_bytes) if n_bytes == wanted => return Ok(()),
                Ok(_) => self.disk.open_write(&path)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.disk.create_new(&path)?
                }
                Err(error) => return Err(error),
            };
            file.write_at(0, &vec![0; usize::try_from(wanted).unwrap_or(usize::MAX)])?;
            file.set_len(wanted)?;
            file.sync()?;
            self.disk.sync_dir(&self.dir)
        };
        make().map_err(|error| {
            let failure = Failure::write("write the reserve file", &path)(error);
            let kind = if failure.is_full() {
                RunLogErrorKind::DiskFull { last_durable_seq: self.durable.checked_sub(1) }
            } else {
                RunLogErrorKind::Io
            };
            RunLogError::new(kind, "cannot write the reserve file; make room, then try again")
                .at(&path)
                .because(failure.source)
        })
    }

    /// Notes this recovery, and earlier ones that were interrupted before their note.
    fn write_missing_recovery_notes(&mut self, recovery: Option<NoteRecord>) -> Result<()> {
        if let Some(note) = recovery {
            self.write_own(Record::Note(note))?;
        }
        let noted: BTreeSet<String> = self
            .state
            .notes()
            .iter()
            .filter(|(_, note)| note.kind == "recovery")
            .filter_map(|(_, note)| Some(note.data.get("file")?.as_str()?.to_owned()))
            .collect();
        let names = self
            .disk
            .list(&self.dir)
            .map_err(|error| RunLogError::io("list the run log", &self.dir, error))?;
        for name in names {
            if name.starts_with("recovered-") && name.ends_with(".bin") && !noted.contains(&name) {
                let data = json!({ "file": name });
                let text = "bytes set aside by a recovery that was interrupted before its note";
                self.write_own(Record::Note(NoteRecord::new("recovery", text, data)))?;
            }
        }
        Ok(())
    }

    /// Zeroes every copy of every erased body that is not zero yet.
    fn finish_erasures(&mut self) -> Result<()> {
        if self.state.erased().next().is_none() {
            return Ok(());
        }
        let index = blobs::index(&*self.disk, &self.dir)?;
        let erased: Vec<Digest> = self.state.erased().copied().collect();
        for digest in erased {
            for place in index.get(&digest).into_iter().flatten() {
                if blobs::is_zero(&*self.disk, &self.dir, place)? {
                    continue;
                }
                if let Err(failure) = self.blobs.zero(place) {
                    return Err(self.fail(failure));
                }
            }
        }
        Ok(())
    }
}

fn encode(record: &Record) -> Result<Vec<u8>> {
    let payload = record.encode().map_err(|why| {
        RunLogError::new(
            RunLogErrorKind::Payload,
            format!("the record cannot be written as JSON: {why}"),
        )
    })?;
    if HEADER_LEN + payload.len() > MAX_RECORD_BYTES {
        return Err(too_large("a record", HEADER_LEN + payload.len(), MAX_RECORD_BYTES));
    }
    Ok(payload)
}

fn too_large(what: &str, n_bytes: usize, limit: usize) -> RunLogError {
    RunLogError::new(
        RunLogErrorKind::TooLarge { n_bytes: n_bytes as u64, limit: limit as u64 },
        format!(
            "{what} of {n_bytes} bytes is beyond the limit of {limit}; store large content as a body of its own"
        ),
    )
}

fn reserve_path(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

fn no_run(dir: &Path) -> RunLogError {
    RunLogError::new(
        RunLogErrorKind::NotFound,
        "there is no run log here whose first record is complete; check the folder, or begin a new run",
    )
    .at(dir)
}

pub(super) fn closed(dir: &Path) -> RunLogError {
    RunLogError::new(RunLogErrorKind::Closed, "the run log was closed; resume it to append").at(dir)
}

fn mismatch(dir: &Path, recorded: Digest, given: Digest) -> RunLogError {
    RunLogError::new(
        RunLogErrorKind::ConfigurationMismatch { recorded, given },
        format!(
            "the run was started with configuration {recorded}, this one is {given}; resume with the recorded \
             configuration, or begin a new run"
        ),
    )
    .at(dir)
}

fn lock(disk: &dyn Disk, dir: &Path, options: &WriterOptions) -> Result<Box<dyn DiskLock>> {
    if let Some(name) = disk.network_fs(dir).filter(|_| !options.allow_network_fs) {
        return Err(RunLogError::new(
            RunLogErrorKind::NetworkFileSystem,
            format!(
                "the run log would lie on `{name}`, a network file system, whose locks and syncs are not to be relied \
                 on; choose a local folder, or allow it explicitly"
            ),
        )
        .at(dir));
    }
    let path = dir.join("lock");
    match disk.try_lock(&path).map_err(|error| RunLogError::io("lock the run log", &path, error))? {
        Ok(lock) => Ok(lock),
        Err(holder) => Err(RunLogError::new(
            RunLogErrorKind::Locked,
            format!(
                "the run log is being written by {holder}; wait for it or stop it, or open the log read-only \
                 (removing the lock file does not help)"
            ),
        )
        .at(&path)),
    }
}

/// Loads the packs and checks that every body a record names is there and whole, unless it was erased.
fn open_blobs(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    state: &RunState,
    pack_bytes: u64,
) -> Result<BlobStore> {
    let mut store = BlobStore::new(Arc::clone(disk), dir, pack_bytes)?;
    let index = blobs::index(&**disk, dir)?;
    for digest in state.erased() {
        store.forbid(*digest);
    }
    for digest in state.body_digests().filter(|digest| !state.is_erased(digest)) {
        let places = index.get(&digest).map_or(&[][..], Vec::as_slice);
        match (places.iter().find(|place| place.intact), places.first()) {
            (Some(place), _) => store.adopt(digest, *place),
            (None, Some(place)) => return Err(blobs::damaged(dir, &digest, place)),
            (None, None) => return Err(blobs::missing(dir, &digest)),
        }
    }
    Ok(store)
}

/// Removes a last segment that was created and got no byte before a crash, so that its name is free again.
fn remove_empty_segment(disk: &dyn Disk, dir: &Path, scan: &Scan) -> Result<()> {
    let Some(last) = scan.segments.last().filter(|last| last.n_bytes == 0) else { return Ok(()) };
    disk.remove(&last.path)
        .and_then(|()| disk.sync_dir(dir))
        .map_err(|error| RunLogError::io("remove the empty segment", &last.path, error))
}

/// Copies a torn tail aside, then cuts it. Returns the note to write.
fn set_tail_aside(disk: &dyn Disk, dir: &Path, scan: &Scan, damage: &Damage) -> Result<NoteRecord> {
    debug_assert!(damage.torn_tail, "only a torn tail may be cut");
    let io = |doing: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |error| RunLogError::io(doing, &path, error)
    };
    let path = &damage.path;
    let tail =
        disk.read(path, damage.offset, usize::MAX).map_err(io("read the torn tail", path))?;
    let name = keep_bytes(disk, dir, damage.expected_seq, &tail)?;
    if damage.offset == 0 {
        // No record of this segment ever counted; the name is free for the next one.
        disk.remove(path).map_err(io("remove the torn segment", path))?;
    } else {
        let mut file = disk.open_write(path).map_err(io("open the segment for writing", path))?;
        file.set_len(damage.offset).map_err(io("cut the torn tail", path))?;
        file.sync().map_err(io("sync the segment", path))?;
    }
    disk.sync_dir(dir).map_err(io("sync the folder of the run log", dir))?;
    debug_assert_eq!(scan.segments.last().map(|file| file.segment), Some(damage.segment));
    let data = json!({
        "file": name,
        "segment": damage.segment,
        "offset": damage.offset,
        "n_bytes": tail.len(),
        "sha256": Digest::of(&tail).to_string(),
        "n_readable_records": damage.later.len(),
    });
    let text = "the log ended in bytes that were never acknowledged; they were set aside and cut";
    Ok(NoteRecord::new("recovery", text, data))
}

/// Writes bytes to `recovered-<seq>.bin`, or to a numbered sibling if that name holds other bytes; returns the name.
fn keep_bytes(disk: &dyn Disk, dir: &Path, seq: u64, bytes: &[u8]) -> Result<String> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| RunLogError::io("set the torn tail aside", &path, error)
    };
    let names = disk.list(dir).map_err(io(dir))?;
    let mut name = format!("recovered-{seq}.bin");
    let mut n_taken = 0;
    while names.contains(&name) {
        let path = dir.join(&name);
        if disk.read(&path, 0, usize::MAX).map_err(io(&path))? == bytes {
            break;
        }
        n_taken += 1;
        name = format!("recovered-{seq}-{n_taken}.bin");
    }
    let temporary = dir.join("recovered.tmp");
    if names.iter().any(|name| name == "recovered.tmp") {
        disk.remove(&temporary).map_err(io(&temporary))?;
    }
    let mut file = disk.create_new(&temporary).map_err(io(&temporary))?;
    file.write_at(0, bytes).map_err(io(&temporary))?;
    file.sync().map_err(io(&temporary))?;
    drop(file);
    disk.rename(&temporary, &dir.join(&name)).map_err(io(&temporary))?;
    disk.sync_dir(dir).map_err(io(dir))?;
    Ok(name)
}

/// Makes every record that was read durable before the log relies on it.
///
/// After a failed sync the page cache can hold bytes that the disk does not, marked clean; a plain sync would then
/// promise what is not so. Writing the bytes since the newest claim again makes the pages dirty.
fn make_durable(disk: &dyn Disk, dir: &Path, segment: &mut OpenSegment, scan: &Scan) -> Result<()> {
    let io = |doing: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |error| RunLogError::io(doing, &path, error)
    };
    let path = segment.path.clone();
    if let Some((number, offset)) = scan.unclaimed.filter(|&(number, _)| number == segment.number) {
        debug_assert_eq!(number, segment.number);
        let n_bytes = usize::try_from(segment.n_bytes - offset).unwrap_or(usize::MAX);
        let bytes = disk.read(&path, offset, n_bytes).map_err(io("read the segment", &path))?;
        segment
            .file
            .write_at(offset, &bytes)
            .map_err(io("rewrite the tail of the segment", &path))?;
    }
    segment.file.sync().map_err(io("sync the segment", &path))?;
    disk.sync_dir(dir).map_err(io("sync the folder of the run log", dir))
}
