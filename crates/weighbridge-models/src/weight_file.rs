//! Files of weights that stay open: parts of them are read, all of them are hashed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use weighbridge_core::Result;

use crate::files::{FETCH_AGAIN, fault, open_regular, shown};

const HASH_BUFFER_BYTES: usize = 1 << 20;

/// An open file and the length it had then.
#[derive(Debug)]
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) n_bytes: u64,
}

impl WeightFile {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let (file, n_bytes) = open_regular(&path)?;
        Ok(Self { path, file, n_bytes })
    }

    /// Reads a tensor's bytes into `out`, which is cleared first. `range` was checked against the
    /// file's length.
    pub(crate) fn read_tensor(
        &mut self,
        name: &str,
        range: &Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let n_bytes = range.end - range.start;
        let failed = |error: std::io::Error| {
            fault(
                &self.path,
                format_args!("cannot be read at tensor `{}`", shown(name)),
                FETCH_AGAIN,
            )
            .with_source(error)
        };
        self.file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        out.clear();
        out.reserve_exact(n_bytes as usize);
        let n_read = (&self.file).take(n_bytes).read_to_end(out).map_err(failed)?;
        if n_read as u64 != n_bytes {
            return Err(fault(
                &self.path,
                format_args!(
                    "has become shorter: {n_read} of {n_bytes} bytes of tensor `{}` are there",
                    shown(name)
                ),
                FETCH_AGAIN,
            ));
        }
        Ok(())
    }
}

/// SHA-256 over the bytes of all files in order, as lower-case hex. `step` is called with the bytes
/// read so far, after each mebibyte.
pub(crate) fn sha256(
    files: &mut [WeightFile],
    step: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; HASH_BUFFER_BYTES];
    let mut n_done = 0;
    for WeightFile { path, file, n_bytes } in files {
        let failed =
            |error: std::io::Error| fault(path, "cannot be read", FETCH_AGAIN).with_source(error);
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut n_file = 0;
        loop {
            let n_read = file.read(&mut buffer).map_err(failed)?;
            if n_read == 0 {
                break;
            }
            hash.update(&buffer[..n_read]);
            n_file += n_read as u64;
            step(n_done + n_file)?;
        }
        if n_file != *n_bytes {
            return Err(fault(
                path,
                format_args!("has changed: {n_file} bytes, {n_bytes} when it was opened"),
                "leave the file alone while it is loaded",
            ));
        }
        n_done += n_file;
    }
    Ok(hex::encode(hash.finalize()))
}
