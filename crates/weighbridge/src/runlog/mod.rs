//! The durable run log: what a run asked, what came back and what it cost, kept through `kill -9` and power loss.
//!
//! The log is a folder of append-only segments (`000000.wbr`, …) with one hash chain over all records, and of content
//! packs (`blobs/pack-000000.wbp`, …) that hold the bodies the records name by digest. `docs/formats/run-log.md`
//! describes every byte.
//!
//! - [`RunLogWriter`] owns one writer thread. [`RunLogWriter::append`] returns an [`Ack`] that resolves when the
//!   promise of that record holds: a remote `INTENT`, an `OUTCOME` and a `NOTE` are on stable storage, an on-device
//!   `INTENT` is in the page cache.
//! - [`RunLogReader`] verifies and reads, and never writes, not even to a damaged log.
//! - [`RunState`] is the fold of all records; [`RunState::resume_plan`] says what is left to do.
//!
//! The log never asks the clock and never prints. It uses threads and `std::fs` only, no async runtime.
//!
//! # What is promised
//!
//! - **I1** An acknowledged durable record is there after any crash.
//! - **I2, I5** A call key gets at most one final outcome; the writer refuses a second one, and refuses a new attempt
//!   of a finished call.
//! - **I3** Every intent without an outcome is surfaced by [`RunState`], with its price cap counted as spent.
//! - **I4** The chain verifies from the first record, or the first byte that does not is named.
//! - **I6** [`RunLogWriter::resume`] refuses another configuration hash and names both.

mod ack;
mod blobs;
mod commit;
mod digest;
mod disk;
mod error;
mod frame;
mod merkle;
mod options;
mod payload;
mod reader;
mod replay;
mod scan;
mod writer;

#[cfg(test)]
mod tests;

pub use self::ack::{Ack, Receipt, Sealed};
pub use self::digest::{Digest, call_key};
pub use self::disk::{Disk, DiskFile, DiskLock, RealDisk};
pub use self::error::{RunLogError, RunLogErrorKind};
pub use self::frame::{
    FLAG_OPTIONAL, FORMAT_VERSION, HASH_LEN, HEADER_LEN, MAGIC, MAX_RECORD_BYTES, RecordType,
};
pub use self::merkle::{RootHasher, leaf_hash};
pub use self::options::WriterOptions;
pub use self::payload::{
    IntentRecord, JobRecord, MarkRecord, NoteRecord, OutcomeRecord, PAYLOAD_SCHEMA, Placement,
    Record, RunRecord, SealRecord,
};
pub use self::reader::{LogSummary, RunLogReader, StoredRecord};
pub use self::replay::{
    CallAttempt, CallState, Finished, OpenIntent, ResumePlan, ResumePolicy, Retry, RunState,
};
pub use self::scan::{BreakReason, Damage, RecordPosition};
pub use self::writer::RunLogWriter;
