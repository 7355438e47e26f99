//! Content packs: bodies named by their SHA-256, many to a file, so that a group commit pays one sync for all of them.
//!
//! A pack is written by one session and never touched by a later one, except to zero a body that is to be erased. So
//! there is no tail to recover: what does not verify is skipped, and what a record names is checked.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::Failure;
use super::digest::Digest;
use super::disk::{Disk, DiskFile};
use super::error::{Result, RunLogError, RunLogErrorKind};
use super::frame::{CRC32C, find_magic, u32_at};
use super::scan::numbered;

/// First four bytes of every pack entry.
pub(super) const PACK_MAGIC: [u8; 4] = *b"WBB1";
/// Length of the header of a pack entry in bytes.
pub(super) const PACK_HEADER_LEN: usize = 52;
/// Largest body in bytes.
pub(super) const MAX_BLOB_BYTES: usize = 64 << 20;
/// A group with more bytes than this is written in pieces.
const WRITE_THROUGH_BYTES: usize = 1 << 20;

/// Where a body lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlobPlace {
    pub(super) pack: u32,
    pub(super) offset: u64,
    pub(super) n_bytes: u32,
    /// Whether the body matched its digest when the packs were read.
    pub(super) intact: bool,
}

/// All entries of all packs. A digest may have several: a session does not rely on what an earlier one left unnamed.
pub(super) type BlobIndex = HashMap<Digest, Vec<BlobPlace>>;

pub(super) fn blobs_dir(dir: &Path) -> PathBuf {
    dir.join("blobs")
}

pub(super) fn pack_path(dir: &Path, pack: u32) -> PathBuf {
    blobs_dir(dir).join(format!("pack-{pack:06}.wbp"))
}

fn pack_numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u32>> {
    let blobs = blobs_dir(dir);
    let names =
        disk.list(&blobs).map_err(|error| RunLogError::io("list the packs", &blobs, error))?;
    Ok(numbered(&names, "pack-", ".wbp"))
}

/// Reads every pack and checks every body.
pub(super) fn index(disk: &dyn Disk, dir: &Path) -> Result<BlobIndex> {
    let mut index = BlobIndex::new();
    for pack in pack_numbers(disk, dir)? {
        let path = pack_path(dir, pack);
        let bytes = disk
            .read(&path, 0, usize::MAX)
            .map_err(|error| RunLogError::io("read the pack", &path, error))?;
        index_pack(&bytes, pack, &mut index);
    }
    Ok(index)
}

fn index_pack(bytes: &[u8], pack: u32, index: &mut BlobIndex) {
    let mut at = 0;
    // After a broken entry its body may hold text that imitates a header; then only an entry whose body matches its
    // digest is believed. Such an imitation is what its digest says, so believing it does no harm.
    let mut resync = false;
    while let Some(found) = find_magic(bytes, PACK_MAGIC, at) {
        resync |= found != at;
        let Some((digest, n_bytes)) = decode_header(&bytes[found..]) else {
            resync = true;
            at = found + 1;
            continue;
        };
        let start = found + PACK_HEADER_LEN;
        let body = bytes.get(start..start + n_bytes);
        let intact = body.is_some_and(|body| Digest::of(body) == digest);
        if body.is_none() || (resync && !intact) {
            resync = true;
            at = found + 1;
            continue;
        }
        let place = BlobPlace { pack, offset: start as u64, n_bytes: n_bytes as u32, intact };
        index.entry(digest).or_default().push(place);
        resync = false;
        at = start + n_bytes;
    }
}

fn decode_header(bytes: &[u8]) -> Option<(Digest, usize)> {
    let header = bytes.get(..PACK_HEADER_LEN)?;
    let n_bytes = u32_at(header, 8) as usize;
    let sound = CRC32C.checksum(&header[..48]) == u32_at(header, 48)
        && header[4] == 1
        && n_bytes <= MAX_BLOB_BYTES;
    let mut digest = [0; 32];
    digest.copy_from_slice(&header[16..48]);
    sound.then_some((Digest(digest), n_bytes))
}

fn encode_entry(digest: &Digest, body: &[u8], out: &mut Vec<u8>) {
    let mut header = [0; PACK_HEADER_LEN];
    header[..4].copy_from_slice(&PACK_MAGIC);
    header[4] = 1;
    header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[16..48].copy_from_slice(&digest.0);
    let crc = CRC32C.checksum(&header[..48]);
    header[48..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
}

/// Reads one body and checks it.
pub(super) fn read(
    disk: &dyn Disk,
    dir: &Path,
    index: &BlobIndex,
    erased: bool,
    digest: &Digest,
) -> Result<Vec<u8>> {
    let places = index.get(digest).map_or(&[][..], Vec::as_slice);
    for place in places {
        let body = read_place(disk, dir, place)?;
        if Digest::of(&body) == *digest {
            return Ok(body);
        }
    }
    if erased {
        return Err(RunLogError::new(
            RunLogErrorKind::BlobErased,
            format!("body {digest} was erased on purpose; the note in the run log says why"),
        ));
    }
    Err(places.first().map_or_else(|| missing(dir, digest), |place| damaged(dir, digest, place)))
}

fn read_place(disk: &dyn Disk, dir: &Path, place: &BlobPlace) -> Result<Vec<u8>> {
    let path = pack_path(dir, place.pack);
    disk.read(&path, place.offset, place.n_bytes as usize)
        .map_err(|error| RunLogError::io("read the body", &path, error))
}

/// Whether a body is overwritten already.
pub(super) fn is_zero(disk: &dyn Disk, dir: &Path, place: &BlobPlace) -> Result<bool> {
    Ok(read_place(disk, dir, place)?.iter().all(|&byte| byte == 0))
}

pub(super) fn missing(dir: &Path, digest: &Digest) -> RunLogError {
    RunLogError::new(
        RunLogErrorKind::BlobMissing,
        format!("body {digest} is in no pack; restore the packs of this run from a copy"),
    )
    .at(&blobs_dir(dir))
}

pub(super) fn damaged(dir: &Path, digest: &Digest, place: &BlobPlace) -> RunLogError {
    RunLogError::new(
        RunLogErrorKind::BlobDamaged,
        format!(
            "body {digest} ({} bytes) does not match its digest; restore this pack from a copy, or erase the body",
            place.n_bytes
        ),
    )
    .at(&pack_path(dir, place.pack))
    .offset_at(place.offset)
}

/// The packs as one writer session sees them.
#[derive(Debug)]
pub(super) struct BlobStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    pack_bytes: u64,
    /// Bodies that are on stable storage: written and synced in this session, or named by a record of an earlier one
    /// (which was written only after its body was synced). Other entries of earlier sessions are not relied on.
    synced: HashMap<Digest, BlobPlace>,
    staged: HashMap<Digest, BlobPlace>,
    erased: HashSet<Digest>,
    pack: Option<OpenPack>,
    next_pack: u32,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct OpenPack {
    number: u32,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Bytes written, without those still in the buffer.
    n_bytes: u64,
    /// The length the last sync covered.
    synced_bytes: u64,
    name_synced: bool,
}

impl BlobStore {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, pack_bytes: u64) -> Result<Self> {
        let next_pack = pack_numbers(&*disk, dir)?.last().map_or(0, |last| last + 1);
        Ok(Self {
            disk,
            dir: dir.to_path_buf(),
            pack_bytes,
            synced: HashMap::new(),
            staged: HashMap::new(),
            erased: HashSet::new(),
            pack: None,
            next_pack,
            buffer: Vec::new(),
        })
    }

    /// Takes over what the records of earlier sessions name.
    pub(super) fn adopt(&mut self, digest: Digest, place: BlobPlace) {
        self.synced.insert(digest, place);
    }

    /// Whether a record may name this body: it is stored, staged or erased.
    pub(super) fn knows(&self, digest: &Digest) -> bool {
        self.synced.contains_key(digest)
            || self.staged.contains_key(digest)
            || self.erased.contains(digest)
    }

    /// Puts a body into the group; one that is known already is not written again, one that was erased stays erased.
    pub(super) fn stage(&mut self, body: &[u8]) -> std::result::Result<(), Failure> {
        let digest = Digest::of(body);
        if self.knows(&digest) {
            return Ok(());
        }
        let entry_bytes = (PACK_HEADER_LEN + body.len()) as u64;
        let open = self.pack.as_ref().map(|pack| pack.n_bytes + self.buffer.len() as u64);
        if open.is_none_or(|n_bytes| n_bytes > 0 && n_bytes + entry_bytes > self.pack_bytes) {
            self.sync_pack()?;
            self.pack = None;
        }
        let pack = match &mut self.pack {
            Some(pack) => pack,
            none => {
                let path = pack_path(&self.dir, self.next_pack);
                let file = self
                    .disk
                    .create_new(&path)
                    .map_err(Failure::write("create the pack", &path))?;
                let number = self.next_pack;
                self.next_pack += 1;
                none.insert(OpenPack {
                    number,
                    path,
                    file,
                    n_bytes: 0,
                    synced_bytes: 0,
                    name_synced: false,
                })
            }
        };
        let offset = pack.n_bytes + self.buffer.len() as u64 + PACK_HEADER_LEN as u64;
        let place =
            BlobPlace { pack: pack.number, offset, n_bytes: body.len() as u32, intact: true };
        encode_entry(&digest, body, &mut self.buffer);
        self.staged.insert(digest, place);
        if self.buffer.len() > WRITE_THROUGH_BYTES { self.write_buffer() } else { Ok(()) }
    }

    /// Makes every staged body durable.
    pub(super) fn sync(&mut self) -> std::result::Result<(), Failure> {
        if self.staged.is_empty() {
            return Ok(());
        }
        self.sync_pack()?;
        self.synced.extend(self.staged.drain());
        Ok(())
    }

    fn write_buffer(&mut self) -> std::result::Result<(), Failure> {
        let Some(pack) = &mut self.pack else { return Ok(()) };
        pack.file
            .write_at(pack.n_bytes, &self.buffer)
            .map_err(Failure::write("write the pack", &pack.path))?;
        pack.n_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn sync_pack(&mut self) -> std::result::Result<(), Failure> {
        self.write_buffer()?;
        let Some(pack) = &mut self.pack else { return Ok(()) };
        if pack.synced_bytes < pack.n_bytes {
            pack.file.sync().map_err(Failure::sync("sync the pack", &pack.path))?;
            pack.synced_bytes = pack.n_bytes;
        }
        if !pack.name_synced {
            let blobs = blobs_dir(&self.dir);
            self.disk
                .sync_dir(&blobs)
                .map_err(Failure::sync("sync the folder of packs", &blobs))?;
            pack.name_synced = true;
        }
        Ok(())
    }

    /// Gives back the space of bodies that were not synced. Best effort: they are skipped by readers anyway.
    pub(super) fn cut_unsynced(&mut self) {
        self.buffer.clear();
        self.staged.clear();
        if let Some(pack) = &mut self.pack {
            let _ = pack.file.set_len(pack.synced_bytes);
            pack.n_bytes = pack.synced_bytes;
        }
    }

    /// Remembers that a body must not be stored (again).
    pub(super) fn forbid(&mut self, digest: Digest) {
        self.erased.insert(digest);
    }

    /// Overwrites a body with zeros and syncs. The `erased` note must be durable before.
    pub(super) fn zero(&mut self, place: &BlobPlace) -> std::result::Result<(), Failure> {
        let path = pack_path(&self.dir, place.pack);
        let zeros = vec![0; place.n_bytes as usize];
        let mut file =
            self.disk.open_write(&path).map_err(Failure::write("open the pack", &path))?;
        file.write_at(place.offset, &zeros).map_err(Failure::write("erase the body", &path))?;
        file.sync().map_err(Failure::sync("sync the pack", &path))
    }
}
