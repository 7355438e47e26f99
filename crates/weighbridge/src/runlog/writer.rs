//! The writer: one thread, group commit.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use futures_channel::oneshot;

use super::ack::{Ack, Receipt, Sealed};
use super::commit::{self, Job, LogCore};
use super::digest::Digest;
use super::disk::{Disk, RealDisk};
use super::error::{Result, RunLogError, RunLogErrorKind};
use super::options::WriterOptions;
use super::payload::{Record, RunRecord};
use super::replay::RunState;

/// What the writer thread tells everyone.
#[derive(Debug)]
pub(super) struct Shared {
    dir: PathBuf,
    /// Records known to be on stable storage.
    durable: AtomicU64,
    failure: Mutex<Option<RunLogError>>,
}

impl Shared {
    pub(super) fn why_closed(&self) -> RunLogError {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone().unwrap_or_else(|| commit::closed(&self.dir))
    }
}

#[derive(Debug)]
enum Command {
    Append(Job, oneshot::Sender<Result<Receipt>>),
    Erase(Digest, String, oneshot::Sender<Result<Receipt>>),
    Sync(oneshot::Sender<Result<u64>>),
    Seal(oneshot::Sender<Result<Sealed>>),
}

/// Appends to a run log. One per log, in one process; share it by reference or in an `Arc`.
///
/// Records are written in the order of the calls to [`append`](Self::append). The queue is not bounded: whoever appends
/// waits for the [`Ack`] before it acts, and so bounds it.
///
/// Dropping the writer lets its thread finish what is queued, without a `SEAL`, and release the lock; [`close`](Self::close)
/// waits for that.
#[derive(Debug)]
pub struct RunLogWriter {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl RunLogWriter {
    /// Begins a log in `dir`, which is created if it does not exist. When this returns, the `RUN` record is durable.
    ///
    /// `configuration` is the configuration as JSON, stored as a body; `run.configuration_digest` is its SHA-256.
    ///
    /// # Errors
    /// [`RunLogErrorKind::AlreadyExists`], [`RunLogErrorKind::Locked`], [`RunLogErrorKind::NetworkFileSystem`],
    /// [`RunLogErrorKind::DiskFull`], [`RunLogErrorKind::Io`].
    pub fn create(
        dir: &Path,
        run: RunRecord,
        configuration: Vec<u8>,
        options: WriterOptions,
    ) -> Result<Self> {
        Self::create_on(Arc::new(RealDisk), dir, run, configuration, options)
    }

    /// [`create`](Self::create) on another [`Disk`].
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        run: RunRecord,
        configuration: Vec<u8>,
        options: WriterOptions,
    ) -> Result<Self> {
        Self::start(LogCore::create(disk, dir, run, configuration, options.clone())?, dir, options)
    }

    /// Opens the log in `dir` for more records, and returns what its records say. A torn tail is set aside and noted.
    ///
    /// With a configuration hash, the run must have that configuration; nothing is written before that is known.
    ///
    /// # Errors
    /// [`RunLogErrorKind::Damaged`] if acknowledged records are damaged (nothing is cut; open the log with
    /// [`RunLogReader`](super::RunLogReader)), [`RunLogErrorKind::BlobMissing`] and [`RunLogErrorKind::BlobDamaged`],
    /// [`RunLogErrorKind::ConfigurationMismatch`], [`RunLogErrorKind::UnsupportedVersion`],
    /// [`RunLogErrorKind::UnsupportedRecord`], [`RunLogErrorKind::NotFound`], and those of [`create`](Self::create).
    pub fn resume(
        dir: &Path,
        configuration_hash: Option<&Digest>,
        options: WriterOptions,
    ) -> Result<(Self, RunState)> {
        Self::resume_on(Arc::new(RealDisk), dir, configuration_hash, options)
    }

    /// [`resume`](Self::resume) on another [`Disk`].
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub fn resume_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        configuration_hash: Option<&Digest>,
        options: WriterOptions,
    ) -> Result<(Self, RunState)> {
        let core = LogCore::resume(disk, dir, configuration_hash, options.clone())?;
        let state = core.state().clone();
        Ok((Self::start(core, dir, options)?, state))
    }

    /// Appends a record whose body, if it names one, is stored already.
    ///
    /// The ack resolves when the record is on stable storage; for an on-device `INTENT`, when it is written.
    /// It fails with [`RunLogErrorKind::Refused`], [`RunLogErrorKind::TooLarge`] or [`RunLogErrorKind::BlobMissing`]
    /// without harm to the log, and with [`RunLogErrorKind::Poisoned`], [`RunLogErrorKind::DiskFull`] or
    /// [`RunLogErrorKind::Io`] when the log is closed for good; then every later ack fails the same way.
    pub fn append(&self, record: impl Into<Record>) -> Ack {
        self.append_with(record, Vec::new())
    }

    /// Appends a record and stores bodies before it, each once, however often it is given.
    ///
    /// The ack is that of [`append`](Self::append); when it resolves, the bodies are on stable storage too.
    pub fn append_with(&self, record: impl Into<Record>, blobs: Vec<Vec<u8>>) -> Ack {
        let job = Job { record: record.into(), blobs };
        self.send(|answer| Command::Append(job, answer))
    }

    /// Erases a stored body: a note with the reason is made durable, then the bytes are overwritten. The chain still
    /// verifies, and a later body with this digest is not stored.
    pub fn erase(&self, digest: Digest, reason: impl Into<String>) -> Ack {
        let reason = reason.into();
        self.send(|answer| Command::Erase(digest, reason, answer))
    }

    /// Syncs everything appended before; resolves to the number of durable records.
    pub fn sync(&self) -> Ack<u64> {
        self.send(Command::Sync)
    }

    /// Writes the `SEAL` record. Later appends fail with [`RunLogErrorKind::Closed`].
    pub fn seal(&self) -> Ack<Sealed> {
        self.send(Command::Seal)
    }

    /// Number of records known to be on stable storage.
    pub fn n_durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Why the log is closed for good, if a disk failure closed it.
    pub fn failure(&self) -> Option<RunLogError> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until everything queued is written and the lock is released. Does not seal.
    ///
    /// # Errors
    /// The failure that closed the log, if one did.
    pub fn close(self) -> Result<()> {
        let Self { commands, shared, thread } = self;
        drop(commands);
        let ended = thread.join();
        if let Some(failure) = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
        {
            return Err(failure);
        }
        ended.map_err(|_| {
            RunLogError::new(
                RunLogErrorKind::Closed,
                "the writer thread of the run log panicked; resume the run",
            )
            .at(&shared.dir)
        })
    }

    fn start(core: LogCore, dir: &Path, options: WriterOptions) -> Result<Self> {
        let shared = Arc::new(Shared {
            dir: dir.to_path_buf(),
            durable: AtomicU64::new(core.durable()),
            failure: Mutex::new(None),
        });
        let (commands, queue) = mpsc::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            let body = move || Worker { core, queue, shared, options, last_group: 1 }.run();
            thread::Builder::new()
                .name("run-log".to_owned())
                .spawn(body)
                .map_err(|error| RunLogError::io("start the writer thread", dir, error))?
        };
        Ok(Self { commands, shared, thread })
    }

    fn send<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Ack<T> {
        let (answer, receiver) = oneshot::channel();
        match self.commands.send(command(answer)) {
            Ok(()) => Ack::later(receiver, Arc::clone(&self.shared)),
            Err(mpsc::SendError(_)) => {
                Ack::failed(self.shared.why_closed(), Arc::clone(&self.shared))
            }
        }
    }
}

struct Worker {
    core: LogCore,
    queue: Receiver<Command>,
    shared: Arc<Shared>,
    options: WriterOptions,
    /// Size of the last group: as many callers are likely to come again.
    last_group: usize,
}

impl Worker {
    /// Serves until every sender is gone. After a failure it goes on answering, with that failure.
    fn run(mut self) {
        loop {
            let first = match self.queue.recv_timeout(self.options.idle_after) {
                Ok(command) => command,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    // A failed mark closes the log like any failed write; the next append says so.
                    let _ = self.core.mark();
                    self.publish();
                    match self.queue.recv() {
                        Ok(command) => command,
                        Err(mpsc::RecvError) => break,
                    }
                }
            };
            self.serve(first);
        }
        let _ = self.core.mark();
        self.publish();
    }

    fn serve(&mut self, first: Command) {
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Append(job, answer) => next = self.serve_group(job, answer),
                Command::Erase(digest, reason, answer) => {
                    let erased = self.core.erase(&digest, &reason);
                    self.publish();
                    let _ = answer.send(erased);
                }
                Command::Sync(answer) => {
                    let synced = self.core.sync();
                    self.publish();
                    let _ = answer.send(synced);
                }
                Command::Seal(answer) => {
                    let sealed = self.core.seal();
                    self.publish();
                    let _ = answer.send(sealed);
                }
            }
        }
    }

    /// Gathers a group, commits it and answers; returns a command of another kind that ended the group.
    ///
    /// A group is closed when it is as large as the last one, so that a steady number of callers never waits in vain,
    /// or after `group_wait`; what is queued already always joins, up to `group_records`.
    fn serve_group(
        &mut self,
        job: Job,
        answer: oneshot::Sender<Result<Receipt>>,
    ) -> Option<Command> {
        let mut jobs = vec![job];
        let mut answers = vec![answer];
        let mut other = None;
        let deadline = Instant::now() + self.options.group_wait;
        while jobs.len() < self.options.group_records {
            let received = match self.queue.try_recv() {
                Ok(command) => Some(command),
                Err(_) if jobs.len() >= self.last_group => None,
                Err(_) => {
                    self.queue.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
                }
            };
            match received {
                Some(Command::Append(job, answer)) => {
                    jobs.push(job);
                    answers.push(answer);
                }
                command => {
                    other = command;
                    break;
                }
            }
        }
        self.last_group = jobs.len();
        let receipts = self.core.commit(&jobs);
        self.publish();
        for (answer, receipt) in answers.into_iter().zip(receipts) {
            // Whoever dropped the ack does not want to know.
            let _ = answer.send(receipt);
        }
        other
    }

    /// Tells everyone what is durable, and why the log is closed if it is, before anyone is answered.
    fn publish(&self) {
        self.shared.durable.store(self.core.durable(), Ordering::Release);
        if let Some(failure) = self.core.failure() {
            let mut shared = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
            shared.get_or_insert_with(|| failure.clone());
        }
    }
}
