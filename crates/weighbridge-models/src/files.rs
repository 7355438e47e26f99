//! Bounded reading of regular files, and errors that name the file and the remedy.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use weighbridge_core::{Error, ErrorKind, Result};

/// The remedy for a file that is damaged.
pub(crate) const FETCH_AGAIN: &str = "download or copy it again";

/// `FILE: WHAT; REMEDY` as an error of kind `ModelLoad`.
pub(crate) fn fault(path: &Path, what: impl fmt::Display, remedy: &str) -> Error {
    let message = if remedy.is_empty() {
        format!("`{}` {what}", path.display())
    } else {
        format!("`{}` {what}; {remedy}", path.display())
    };
    Error::new(ErrorKind::ModelLoad, message).with("file", path.display())
}

/// A name from a file, short enough and without control characters, for messages.
pub(crate) fn shown(name: &str) -> String {
    const MAX_CHARS: usize = 120;
    let mut text: String = name.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX_CHARS).is_some() {
        text.push('…');
    }
    text
}

/// Opens a regular file; links are followed, because caches of model files consist of them.
///
/// Devices and pipes are refused before they are opened: opening a pipe would wait for its writer.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let cannot = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::ModelLoad,
        };
        Error::new(kind, format!("cannot read `{}`", path.display()))
            .with("file", path.display())
            .with_source(error)
    };
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(fault(path, "is not a regular file", "give the path of the file itself"));
    }
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(fault(path, "is not a regular file", "give the path of the file itself"));
    }
    Ok((file, metadata.len()))
}

/// The whole of a small file, at most `max_bytes`.
pub(crate) fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let (file, len) = open_regular(path)?;
    let too_long = || {
        fault(
            path,
            format_args!("is longer than the {max_bytes} bytes allowed"),
            "is it the right file?",
        )
        .with("n_bytes", len)
    };
    if len > max_bytes {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    // It may have grown since.
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| fault(path, "cannot be read", "").with_source(error))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_long());
    }
    Ok(bytes)
}

/// A small JSON file.
pub(crate) fn read_json(path: &Path, max_bytes: u64) -> Result<Value> {
    let bytes = read_small(path, max_bytes)?;
    parse_json(&bytes, path)
}

/// JSON text of a file.
pub(crate) fn parse_json(bytes: &[u8], path: &Path) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|error| fault(path, "is not valid JSON", FETCH_AGAIN).with_source(error))
}
