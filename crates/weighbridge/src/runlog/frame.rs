//! Framing of one record: 68-byte header, payload, 32-byte hash. Pure functions over bytes.

use crc::{CRC_32_ISCSI, Crc};

use super::digest::Digest;
use super::merkle::leaf_hash;

/// First four bytes of every record, in every version of the format.
pub const MAGIC: [u8; 4] = *b"WBR1";
/// Version of the framing and of the payload schema family written here.
pub const FORMAT_VERSION: u8 = 1;
/// Length of a record header in bytes.
pub const HEADER_LEN: usize = 68;
/// Length of the hash that ends a record in bytes.
pub const HASH_LEN: usize = 32;
/// Largest header plus payload in bytes, the entry limit of C2SP tiles.
pub const MAX_RECORD_BYTES: usize = 65_535;
/// Flag bit 0: a reader that does not know the record type may skip the record (it stays in the chain).
pub const FLAG_OPTIONAL: u16 = 1;

pub(super) const CRC32C: Crc<u32, crc::Table<16>> = Crc::<u32, crc::Table<16>>::new(&CRC_32_ISCSI);

/// What a record is. Numbers above those listed are free; 7 is reserved for checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RecordType {
    /// 1: the run, always and only record 0.
    Run,
    /// 2: a call is about to be made.
    Intent,
    /// 3: a call ended.
    Outcome,
    /// 4: something a reader of the run should know.
    Note,
    /// 5: how many records are synced; written when the queue is idle.
    Mark,
    /// 6: the log was closed in good order.
    Seal,
    /// 7: reserved for signed checkpoints. Nothing writes it yet.
    Checkpoint,
    /// 8: a vendor took a batch job.
    Job,
    /// Any other number.
    Unknown(u8),
}

impl RecordType {
    /// The number in the header.
    pub fn number(self) -> u8 {
        match self {
            Self::Run => 1,
            Self::Intent => 2,
            Self::Outcome => 3,
            Self::Note => 4,
            Self::Mark => 5,
            Self::Seal => 6,
            Self::Checkpoint => 7,
            Self::Job => 8,
            Self::Unknown(number) => number,
        }
    }

    /// The type with this number.
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Run,
            2 => Self::Intent,
            3 => Self::Outcome,
            4 => Self::Note,
            5 => Self::Mark,
            6 => Self::Seal,
            7 => Self::Checkpoint,
            8 => Self::Job,
            other => Self::Unknown(other),
        }
    }

    /// Whether this program knows what the payload means.
    pub fn is_known(self) -> bool {
        !matches!(self, Self::Checkpoint | Self::Unknown(_))
    }
}

/// One verified record, borrowed from the bytes of its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) record_type: RecordType,
    pub(super) seq: u64,
    pub(super) durable: u64,
    pub(super) prev: Digest,
    pub(super) payload: &'a [u8],
    pub(super) hash: Digest,
}

impl Frame<'_> {
    /// Length on disk: header, payload and hash.
    pub(super) fn disk_len(&self) -> usize {
        HEADER_LEN + self.payload.len() + HASH_LEN
    }
}

/// Why the bytes at a position are not a record of this version. In the order in which they are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameFault {
    Short,
    Magic,
    HeaderCrc,
    /// The header is intact and says another version.
    Version(u8),
    Length(u32),
    Pad,
    Hash,
    /// The record is intact and needs a newer program.
    Unsupported {
        record_type: u8,
        flags: u16,
    },
}

/// Everything in a header that the writer chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHead {
    pub(super) record_type: RecordType,
    pub(super) flags: u16,
    pub(super) seq: u64,
    pub(super) durable: u64,
    pub(super) prev: Digest,
}

/// Appends one record to `out` and returns its hash.
///
/// The caller has checked that header plus payload fit [`MAX_RECORD_BYTES`].
pub(super) fn encode(head: &FrameHead, payload: &[u8], out: &mut Vec<u8>) -> Digest {
    let mut header = [0; HEADER_LEN];
    header[0..4].copy_from_slice(&MAGIC);
    header[4] = FORMAT_VERSION;
    header[5] = head.record_type.number();
    header[6..8].copy_from_slice(&head.flags.to_le_bytes());
    header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[16..24].copy_from_slice(&head.seq.to_le_bytes());
    header[24..32].copy_from_slice(&head.durable.to_le_bytes());
    header[32..64].copy_from_slice(&head.prev.0);
    let crc = CRC32C.checksum(&header[..64]);
    header[64..68].copy_from_slice(&crc.to_le_bytes());
    let hash = leaf_hash(&[&header, payload]);
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    out.extend_from_slice(&hash.0);
    hash
}

/// Decodes the record at the start of `bytes`: magic, CRC, version, length, pad and own hash.
///
/// `seq`, `durable` and `prev` are for the caller to compare with what it expects.
pub(super) fn decode(bytes: &[u8]) -> Result<Frame<'_>, FrameFault> {
    if bytes.len() < HEADER_LEN {
        return Err(FrameFault::Short);
    }
    if bytes[..4] != MAGIC {
        return Err(FrameFault::Magic);
    }
    if CRC32C.checksum(&bytes[..64]) != u32_at(bytes, 64) {
        return Err(FrameFault::HeaderCrc);
    }
    if bytes[4] != FORMAT_VERSION {
        return Err(FrameFault::Version(bytes[4]));
    }
    let len = u32_at(bytes, 8);
    let end = match usize::try_from(len) {
        Ok(n_payload) if n_payload <= MAX_RECORD_BYTES - HEADER_LEN => HEADER_LEN + n_payload,
        _ => return Err(FrameFault::Length(len)),
    };
    if u32_at(bytes, 12) != 0 {
        return Err(FrameFault::Pad);
    }
    if bytes.len() < end + HASH_LEN {
        return Err(FrameFault::Short);
    }
    let hash = leaf_hash(&[&bytes[..end]]);
    if hash.0 != bytes[end..end + HASH_LEN] {
        return Err(FrameFault::Hash);
    }
    let record_type = RecordType::from_number(bytes[5]);
    let flags = u16::from_le_bytes([bytes[6], bytes[7]]);
    let skippable = flags & FLAG_OPTIONAL != 0;
    if flags & !FLAG_OPTIONAL != 0 || !(record_type.is_known() || skippable) {
        return Err(FrameFault::Unsupported { record_type: bytes[5], flags });
    }
    let mut prev = [0; 32];
    prev.copy_from_slice(&bytes[32..64]);
    Ok(Frame {
        record_type,
        seq: u64_at(bytes, 16),
        durable: u64_at(bytes, 24),
        prev: Digest(prev),
        payload: &bytes[HEADER_LEN..end],
        hash,
    })
}

/// Position of the next [`MAGIC`] in `bytes` at or after `from`.
pub(super) fn find_magic(bytes: &[u8], magic: [u8; 4], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = bytes.get(at..)?.iter().position(|&byte| byte == magic[0]) {
        at += found;
        if bytes[at..].starts_with(&magic) {
            return Some(at);
        }
        at += 1;
    }
    None
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
