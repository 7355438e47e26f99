//! Verification of all segments in order, and what is said when they do not verify.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::disk::Disk;
use super::error::{Result, RunLogError, RunLogErrorKind};
use super::frame::{self, FORMAT_VERSION, Frame, FrameFault, HASH_LEN, HEADER_LEN, RecordType};
use super::merkle::RootHasher;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordPosition {
    /// Number of the segment.
    pub segment: u32,
    /// Byte offset of the header in the segment.
    pub offset: u64,
    /// Length on disk in bytes: header, payload and hash.
    pub n_bytes: u32,
    /// Sequence number.
    pub seq: u64,
    /// Type.
    pub record_type: RecordType,
}

/// Why a log stops verifying at some byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakReason {
    /// The segment ends in the middle of a record.
    Short,
    /// No record begins here.
    Magic,
    /// The header does not match its CRC.
    HeaderCrc,
    /// The length is beyond the limit.
    Length,
    /// The pad bytes are not zero.
    Pad,
    /// The record does not match its hash.
    Hash,
    /// The record is intact and has another sequence number.
    Sequence,
    /// The record is intact and does not continue the chain.
    Chain,
    /// The record claims more synced records than can be, or fewer than an earlier one.
    DurableClaim,
    /// The file of this segment is missing.
    MissingSegment,
}

/// The first byte at which a log does not verify, and what lies behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The segment file.
    pub path: PathBuf,
    /// Its number.
    pub segment: u32,
    /// First byte that does not verify.
    pub offset: u64,
    /// End of the unreadable range: the next readable record of this segment, or the segment's length.
    pub end: u64,
    /// Sequence number of the record expected at `offset`; all before it are intact.
    pub expected_seq: u64,
    /// What is wrong at `offset`.
    pub reason: BreakReason,
    /// True: nothing proves that the bytes from `offset` were ever synced, so they are the torn tail of a crash and a
    /// resume sets them aside. False: acknowledged data is damaged, and nothing is cut.
    pub torn_tail: bool,
    /// The most synced records that any readable record claims.
    pub durable_claim: u64,
    /// Records behind the break whose CRC and own hash hold.
    pub later: Vec<RecordPosition>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            BreakReason::Short => "the record is cut short",
            BreakReason::Magic => "no record begins here",
            BreakReason::HeaderCrc => "the record header does not match its CRC",
            BreakReason::Length => "the record length is beyond the limit",
            BreakReason::Pad => "the pad bytes are not zero",
            BreakReason::Hash => "the record does not match its hash",
            BreakReason::Sequence => "the record has another sequence number",
            BreakReason::Chain => "the record does not continue the chain",
            BreakReason::DurableClaim => "the record makes an impossible claim of synced records",
            BreakReason::MissingSegment => "the segment file is missing",
        };
        let (name, remedy) = if self.torn_tail {
            ("torn tail", "resume the run to set it aside")
        } else {
            (
                "damaged log",
                "restore this file from a copy, or read what is left with the read-only reader",
            )
        };
        write!(
            f,
            "{name}: {what} at segment {:06}, offset {}, where record {} was expected; bytes {}..{} are unreadable, {} \
             later records are readable, records 0..{} are intact, {} are known to be synced; {remedy}; file `{}`",
            self.segment,
            self.offset,
            self.expected_seq,
            self.offset,
            self.end,
            self.later.len(),
            self.expected_seq,
            self.durable_claim,
            self.path.display(),
        )
    }
}

/// One segment file as found.
#[derive(Clone, Debug)]
pub(super) struct SegmentFile {
    pub(super) segment: u32,
    pub(super) path: PathBuf,
    pub(super) n_bytes: u64,
}

/// Everything a scan finds out.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    pub(super) segments: Vec<SegmentFile>,
    pub(super) n_records: u64,
    pub(super) prev: Digest,
    pub(super) tree: RootHasher,
    /// The most synced records that an intact record of the chain claims.
    pub(super) durable_claim: u64,
    /// Where the first record begins that no record claims to be synced.
    pub(super) unclaimed: Option<(u32, u64)>,
    pub(super) damage: Option<Damage>,
}

impl Scan {
    /// Number of verified bytes of a segment.
    pub(super) fn valid_len(&self, file: &SegmentFile) -> u64 {
        match &self.damage {
            Some(damage) if damage.segment == file.segment => damage.offset,
            Some(damage) if damage.segment < file.segment => 0,
            _ => file.n_bytes,
        }
    }
}

/// Name of a segment file.
pub(super) fn segment_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:06}.wbr"))
}

/// Numbers in names such as `000000.wbr`, ascending. Other names are not ours.
pub(super) fn numbered(names: &[String], prefix: &str, suffix: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| {
            let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            let number = digits.parse().ok()?;
            (format!("{number:06}") == digits).then_some(number)
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Verifies every record in order and shows each intact one of the chain to `visit`.
///
/// # Errors
/// Unreadable files, an unsupported version or record, whatever `visit` returns. Damage is not an error here.
pub(super) fn scan(
    disk: &dyn Disk,
    dir: &Path,
    visit: &mut dyn FnMut(RecordPosition, &Frame<'_>) -> Result<()>,
) -> Result<Scan> {
    let names = disk.list(dir).map_err(|error| RunLogError::io("list the run log", dir, error))?;
    let numbers = numbered(&names, "", ".wbr");
    let mut scan = Scan {
        segments: Vec::with_capacity(numbers.len()),
        n_records: 0,
        prev: Digest::ZERO,
        tree: RootHasher::new(),
        durable_claim: 0,
        unclaimed: None,
        damage: None,
    };
    let mut unclaimed: VecDeque<(u64, u32, u64)> = VecDeque::new();
    let mut expected_segment = 0;
    for &segment in &numbers {
        let path = segment_path(dir, segment);
        let bytes = disk
            .read(&path, 0, usize::MAX)
            .map_err(|error| RunLogError::io("read the segment", &path, error))?;
        if let Some(damage) = &mut scan.damage {
            search(&bytes, 0, segment, &path, damage)?;
        } else if segment != expected_segment {
            let missing = segment_path(dir, expected_segment);
            let mut damage =
                begin_damage(&scan, &missing, expected_segment, 0, 0, BreakReason::MissingSegment);
            search(&bytes, 0, segment, &path, &mut damage)?;
            scan.damage = Some(damage);
        } else {
            let broken = chain(&bytes, segment, &path, &mut scan, &mut unclaimed, visit)?;
            if let Some((offset, reason)) = broken {
                let mut damage =
                    begin_damage(&scan, &path, segment, offset, bytes.len() as u64, reason);
                search(&bytes, offset, segment, &path, &mut damage)?;
                scan.damage = Some(damage);
            }
        }
        scan.segments.push(SegmentFile { segment, path, n_bytes: bytes.len() as u64 });
        expected_segment = segment + 1;
    }
    if let Some(damage) = &mut scan.damage {
        // A new segment is begun only after the one before it was synced, so only the last can have an unsynced tail.
        let in_last = numbers.last() == Some(&damage.segment);
        damage.torn_tail = in_last && damage.durable_claim <= damage.expected_seq;
    }
    scan.unclaimed = unclaimed.front().map(|&(_, segment, offset)| (segment, offset));
    Ok(scan)
}

/// Verifies the records of one segment as a continuation of the chain; returns the first break.
pub(super) fn chain(
    bytes: &[u8],
    segment: u32,
    path: &Path,
    scan: &mut Scan,
    unclaimed: &mut VecDeque<(u64, u32, u64)>,
    visit: &mut dyn FnMut(RecordPosition, &Frame<'_>) -> Result<()>,
) -> Result<Option<(u64, BreakReason)>> {
    let mut at = 0;
    while at < bytes.len() {
        let offset = at as u64;
        let frame = match frame::decode(&bytes[at..]) {
            Ok(frame) => frame,
            Err(fault) => return Ok(Some((offset, break_reason(fault, path, offset)?))),
        };
        let reason = if frame.seq != scan.n_records {
            Some(BreakReason::Sequence)
        } else if frame.prev != scan.prev {
            Some(BreakReason::Chain)
        } else if frame.durable > frame.seq || frame.durable < scan.durable_claim {
            Some(BreakReason::DurableClaim)
        } else {
            None
        };
        if let Some(reason) = reason {
            return Ok(Some((offset, reason)));
        }
        visit(position(&frame, segment, offset), &frame)?;
        scan.n_records += 1;
        scan.prev = frame.hash;
        scan.tree.push(frame.hash);
        scan.durable_claim = frame.durable;
        unclaimed.push_back((frame.seq, segment, offset));
        while unclaimed.front().is_some_and(|&(seq, ..)| seq < frame.durable) {
            unclaimed.pop_front();
        }
        at += frame.disk_len();
    }
    Ok(None)
}

fn begin_damage(
    scan: &Scan,
    path: &Path,
    segment: u32,
    offset: u64,
    end: u64,
    reason: BreakReason,
) -> Damage {
    Damage {
        path: path.to_path_buf(),
        segment,
        offset,
        end,
        expected_seq: scan.n_records,
        reason,
        torn_tail: false,
        durable_claim: scan.durable_claim,
        later: Vec::new(),
    }
}

/// Looks for readable records behind a break. JSON without NUL bytes cannot imitate a header: each has zero pad bytes.
fn search(bytes: &[u8], from: u64, segment: u32, path: &Path, damage: &mut Damage) -> Result<()> {
    let mut at = usize::try_from(from).expect("an offset into a slice");
    while let Some(found) = frame::find_magic(bytes, frame::MAGIC, at) {
        match frame::decode(&bytes[found..]) {
            Ok(frame) => {
                if segment == damage.segment && damage.later.is_empty() {
                    damage.end = found as u64;
                }
                // A record cannot vouch for itself or for what follows it.
                if frame.durable <= frame.seq {
                    damage.durable_claim = damage.durable_claim.max(frame.durable);
                }
                damage.later.push(position(&frame, segment, found as u64));
                at = found + frame.disk_len();
            }
            Err(fault) => {
                break_reason(fault, path, found as u64)?;
                at = found + 1;
            }
        }
    }
    Ok(())
}

fn position(frame: &Frame<'_>, segment: u32, offset: u64) -> RecordPosition {
    let n_bytes = (HEADER_LEN + frame.payload.len() + HASH_LEN) as u32;
    RecordPosition { segment, offset, n_bytes, seq: frame.seq, record_type: frame.record_type }
}

/// A fault as a break, or as the error that refuses the whole log: an intact header of another version must never be
/// taken for a torn tail and cut.
fn break_reason(fault: FrameFault, path: &Path, offset: u64) -> Result<BreakReason> {
    match fault {
        FrameFault::Short => Ok(BreakReason::Short),
        FrameFault::Magic => Ok(BreakReason::Magic),
        FrameFault::HeaderCrc => Ok(BreakReason::HeaderCrc),
        FrameFault::Length(_) => Ok(BreakReason::Length),
        FrameFault::Pad => Ok(BreakReason::Pad),
        FrameFault::Hash => Ok(BreakReason::Hash),
        FrameFault::Version(version) => Err(RunLogError::new(
            RunLogErrorKind::UnsupportedVersion { version },
            format!(
                "the run log is in format version {version}, this program reads version {FORMAT_VERSION}; use the \
                 program that wrote it, or a newer one"
            ),
        )
        .at(path)
        .offset_at(offset)),
        FrameFault::Unsupported { record_type, flags } => Err(RunLogError::new(
            RunLogErrorKind::UnsupportedRecord { record_type, flags },
            format!("a record of type {record_type} with flags {flags:#06x} needs a newer program; use that one"),
        )
        .at(path)
        .offset_at(offset)),
    }
}
