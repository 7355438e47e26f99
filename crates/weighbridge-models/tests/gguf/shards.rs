//! Models of several files.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use weighbridge_core::ErrorKind;
use weighbridge_models::gguf::Gguf;

use crate::accepted::data;
use crate::writer::Writer;

const FIRST: &str = "split-00001-of-00002.gguf";
const SECOND: &str = "split-00002-of-00002.gguf";

fn shards() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [FIRST, SECOND] {
        fs::copy(data(name), folder.path().join(name)).unwrap();
    }
    folder
}

#[track_caller]
fn refused(path: &Path, expected: &[&str]) {
    let error = Gguf::open(path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelLoad, "{error}");
    let message = error.to_string();
    for part in expected {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn any_shard_opens_the_model() {
    let whole = Gguf::open(&data("types.gguf")).unwrap();
    for given in [FIRST, SECOND] {
        let mut gguf = Gguf::open(&data(given)).unwrap();
        let names: Vec<_> =
            gguf.files().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, [FIRST, SECOND]);
        assert_eq!(gguf.name(), "Value Types", "metadata is that of the first");
        assert_eq!(gguf.n_params(), whole.n_params());
        let mut bytes = Vec::new();
        gguf.read("last", &mut bytes).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0]);
        // cat split-*.gguf | sha256sum
        assert_eq!(
            gguf.sha256(&mut |_| Ok(())).unwrap(),
            "61aece0258f2430ac00d65056ce8235835fd28dc38850d9db1451ca73c95f433"
        );
    }
}

#[test]
fn a_missing_shard_is_named() {
    let folder = shards();
    fs::remove_file(folder.path().join(SECOND)).unwrap();
    refused(&folder.path().join(FIRST), &[SECOND, "one of 2 files", "download all"]);
}

#[test]
fn shards_keep_their_names_and_places() {
    let folder = shards();
    let renamed = folder.path().join("first.gguf");
    fs::copy(data(FIRST), &renamed).unwrap();
    refused(&renamed, &["shard 0 (from 0) of 2", "name shards"]);
    fs::copy(data(FIRST), folder.path().join(SECOND)).unwrap();
    refused(&folder.path().join(FIRST), &[SECOND, "0 as `split.no`", "1 is expected"]);
}

#[test]
fn counts_of_shards_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u16| folder.path().join(format!("m-{:05}-of-00002.gguf", number + 1));
    let write = |number: u16, count: u16, n_tensors: i32, tensor: &str| {
        let mut writer = if number == 0 { Writer::llama() } else { Writer::new() };
        writer.set("split.no", number);
        writer.set("split.count", count);
        writer.set("split.tensors.count", n_tensors);
        writer.tensor(tensor, &[4]);
        fs::write(path(number), writer.bytes()).unwrap();
    };
    write(0, 2, 13, "here");
    write(1, 2, 13, "there");
    Gguf::open(&path(0)).unwrap();
    write(1, 3, 13, "there");
    refused(&path(0), &["00002-of-00002", "3 as `split.count`", "2 is expected"]);
    write(1, 2, 13, "here");
    refused(&path(0), &["00002-of-00002", "tensor `here`", "another shard"]);
    write(0, 2, 14, "here");
    write(1, 2, 14, "there");
    refused(&path(0), &["have 13 tensors", "says 14"]);
    write(1, 2, 14, "token_embd.weight");
    refused(&path(0), &["token_embd.weight"]);
    write(0, 2, 13, "here");
    fs::write(path(1), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(&path(0), &["00002-of-00002", "git-lfs"]);
}
