//! Models of several files, named `NAME-00001-of-00003.gguf`.

use std::collections::BTreeMap;
use std::path::Path;

use weighbridge_core::{Error, Result};

use super::header::Header;
use super::preflight::expect;
use super::value::{Kind, Value, ValueType};
use super::{TensorInfo, open_one};
use crate::files::{FETCH_AGAIN, fault, shown};
use crate::weight_file::WeightFile;

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";
/// As llama.cpp reads them.
const KINDS: [(&str, ValueType); 3] =
    [(NUMBER_KEY, ValueType::U16), (COUNT_KEY, ValueType::U16), (TENSORS_KEY, ValueType::I32)];

/// All files of a model, the metadata of the first, the tensors of all.
pub(super) struct Parts {
    pub(super) files: Vec<WeightFile>,
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// Opens a file, and the other shards if it is one of several.
pub(super) fn open(path: &Path) -> Result<Parts> {
    let (file, header) = open_one(path.to_owned())?;
    check_kinds(&header, path)?;
    let count = integer(&header, COUNT_KEY).unwrap_or(0);
    let mut parts = Parts { files: Vec::new(), values: BTreeMap::new(), tensors: BTreeMap::new() };
    if count <= 1 {
        parts.add(file, header)?;
        return Ok(parts);
    }
    let given = integer(&header, NUMBER_KEY);
    let number = given.filter(|number| *number < count).ok_or_else(|| {
        let number = given.map_or_else(|| "no number".to_owned(), |n| format!("number {n}"));
        fault(path, format_args!("is shard {number} of {count} by `{NUMBER_KEY}`"), FETCH_AGAIN)
    })?;
    let stem = stem_of(path, number, count).ok_or_else(|| {
        fault(
            path,
            format_args!("is shard {number} (from 0) of {count}, its name does not say so"),
            "name shards `NAME-00001-of-00003.gguf`, as they were downloaded",
        )
    })?;
    let mut opened = Some((file, header));
    for idx in 0..count {
        let (file, header) = match opened.take_if(|_| idx == number) {
            Some(opened) => opened,
            None => {
                open_shard(path, &path.with_file_name(shard_name(stem, idx, count)), idx, count)?
            }
        };
        parts.add(file, header)?;
    }
    let n_expected = parts.values.get(TENSORS_KEY).and_then(first_integer);
    if n_expected.is_some_and(|n| n != parts.tensors.len() as i128) {
        return Err(fault(
            path,
            format_args!(
                "and its other shards have {} tensors, `{TENSORS_KEY}` says {}",
                parts.tensors.len(),
                n_expected.unwrap_or_default()
            ),
            FETCH_AGAIN,
        ));
    }
    Ok(parts)
}

fn open_shard(given: &Path, path: &Path, idx: u64, count: u64) -> Result<(WeightFile, Header)> {
    if !path.exists() {
        return Err(fault(
            given,
            format_args!(
                "is one of {count} files of its model, `{}` is not there",
                path.file_name().unwrap_or_default().display()
            ),
            "download all of them into one folder",
        ));
    }
    let (file, header) = open_one(path.to_owned())?;
    check_kinds(&header, path)?;
    let bad = |key, value: Option<u64>, expected| -> Error {
        let value = value.map_or_else(|| "no value".to_owned(), |value| value.to_string());
        fault(
            path,
            format_args!("has {value} as `{key}`, {expected} is expected"),
            "download all files of the model again, from one place",
        )
        .with("key", key)
    };
    let number = integer(&header, NUMBER_KEY);
    if number != Some(idx) {
        return Err(bad(NUMBER_KEY, number, idx));
    }
    match integer(&header, COUNT_KEY) {
        Some(other) if other != count => Err(bad(COUNT_KEY, Some(other), count)),
        _ => Ok((file, header)),
    }
}

impl Parts {
    fn add(&mut self, file: WeightFile, header: Header) -> Result<()> {
        for tensor in header.tensors {
            let entry = (self.files.len(), tensor);
            if let Some((_, tensor)) = self.tensors.insert(entry.1.name.clone(), entry) {
                return Err(fault(
                    &file.path,
                    format_args!(
                        "has the tensor `{}`, which another shard has too",
                        shown(&tensor.name)
                    ),
                    FETCH_AGAIN,
                )
                .with("tensor", shown(&tensor.name)));
            }
        }
        if self.files.is_empty() {
            self.values = header.values;
        }
        self.files.push(file);
        Ok(())
    }
}

fn check_kinds(header: &Header, path: &Path) -> Result<()> {
    for (key, ty) in KINDS {
        if let Some(value) = header.values.get(key) {
            expect(path, key, value, &[Kind::One(ty)])?;
        }
    }
    Ok(())
}

fn integer(header: &Header, key: &str) -> Option<u64> {
    u64::try_from(first_integer(header.values.get(key)?)?).ok()
}

fn first_integer(value: &Value) -> Option<i128> {
    value.integers()?.next()
}

/// `NAME` if the path is that of shard `number` (from 0) of `count`.
fn stem_of(path: &Path, number: u64, count: u64) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(&shard_name("", number, count)).filter(|stem| !stem.is_empty())
}

fn shard_name(stem: &str, number: u64, count: u64) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", number + 1)
}

/// The name of a file without its ending and shard number.
pub(super) fn model_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut parts = stem.rsplitn(4, '-');
    let is_number = |text: Option<&str>| {
        text.is_some_and(|text| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_shard = is_number(parts.next()) && parts.next() == Some("of") && is_number(parts.next());
    match parts.next() {
        Some(name) if is_shard && !name.is_empty() => name.to_owned(),
        _ => stem.into_owned(),
    }
}
