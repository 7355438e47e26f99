//! Folders that lack something or do not fit, each with a message that says what to do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use weighbridge_core::{Error, ErrorKind};
use weighbridge_models::checkpoint::Checkpoint;
use weighbridge_models::decoder::Naming;
use weighbridge_models::folder::{ModelFolder, is_model_folder};
use weighbridge_models::hf_config;

const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":12,
    "num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"rms_norm_eps":1e-5,
    "vocab_size":10,"max_position_embeddings":32,"tie_word_embeddings":true}"#;

fn safetensors(tensors: &[(String, Vec<u64>)]) -> Vec<u8> {
    let mut at = 0u64;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, shape)| {
            let end = at + 2 * shape.iter().product::<u64>();
            let entry = format!(
                r#""{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
            );
            at = end;
            entry
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..at).map(|i| i as u8));
    bytes
}

fn tensors() -> Vec<(String, Vec<u64>)> {
    hf_config::parse(CONFIG.as_bytes(), Path::new("config.json"))
        .unwrap()
        .tensors(Naming::HuggingFace)
}

/// A folder that opens.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    fs::write(folder.path().join("model.safetensors"), safetensors(&tensors())).unwrap();
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    folder
}

#[track_caller]
fn refused(folder: &Path, kind: ErrorKind, expected: &str) -> Error {
    let error = ModelFolder::open(folder).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(expected), "{error}");
    error
}

#[test]
fn a_whole_folder_opens_and_gives_its_tensors() {
    let folder = folder();
    fs::write(folder.path().join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    assert!(is_model_folder(folder.path()));
    let mut model = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(model.license.as_deref(), Some("mit"));
    assert_eq!(model.weights.dtype().as_str(), "F16");
    assert_eq!(
        model.weights.n_params(),
        tensors().iter().map(|(_, s)| s.iter().product::<u64>()).sum::<u64>()
    );
    let mut bytes = Vec::new();
    model.weights.read("model.norm.weight", &mut bytes).unwrap();
    assert_eq!(bytes.len(), 16);
    assert!(
        model
            .weights
            .read("nope", &mut bytes)
            .unwrap_err()
            .to_string()
            .contains("no tensor `nope`")
    );
    let mut n_seen = 0;
    let digest = model.weights.sha256(&mut |n| {
        n_seen = n;
        Ok(())
    });
    assert_eq!(digest.unwrap().len(), 64);
    assert_eq!(n_seen, model.weights.n_bytes());
    let stop = Error::new(ErrorKind::Cancelled, "stopped");
    let mut stop = Some(stop);
    let stopped = model.weights.sha256(&mut |_| Err(stop.take().unwrap()));
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn what_is_missing_is_named_with_the_remedy() {
    refused(
        Path::new("/nowhere/at/all"),
        ErrorKind::NotFound,
        "no model folder at `/nowhere/at/all`",
    );
    for (file, expected) in [
        (
            "tokenizer.json",
            "has no `tokenizer.json`: put the tokenizer's file of the same model there",
        ),
        ("config.json", "has no `config.json`: put the model's configuration there"),
        (
            "model.safetensors",
            "has no `model.safetensors`: put the model's safetensors files there",
        ),
    ] {
        let folder = folder();
        fs::remove_file(folder.path().join(file)).unwrap();
        refused(folder.path(), ErrorKind::ModelLoad, expected);
    }
    let folder = folder();
    refused(&folder.path().join("config.json"), ErrorKind::ModelLoad, "is not a folder");
}

#[test]
fn pickles_are_refused_by_content() {
    let folder = folder();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let weights = folder.path().join("pytorch_model.bin");
    fs::write(&weights, b"PK\x03\x04 and more of a zip").unwrap();
    refused(folder.path(), ErrorKind::ModelLoad, "a zip of a Python pickle, which can run code");
    fs::write(&weights, b"\x80\x02}q\x00(X\x05\x00").unwrap();
    refused(folder.path(), ErrorKind::ModelLoad, "save_pretrained");
    // The right name does not help a pickle.
    fs::rename(&weights, folder.path().join("model.safetensors")).unwrap();
    refused(folder.path(), ErrorKind::ModelLoad, "is a Python pickle");
}

#[test]
fn tensors_must_be_what_the_configuration_implies() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let mut wrong = tensors();
    let q = wrong.iter().position(|(name, _)| name.ends_with("q_proj.weight")).unwrap();
    wrong[q].1 = vec![8, 4];
    fs::write(&path, safetensors(&wrong)).unwrap();
    refused(
        folder.path(),
        ErrorKind::ModelLoad,
        "tensor model.layers.0.self_attn.q_proj.weight has shape [8, 4], config.json implies [8, 8]",
    );
    let mut fewer = tensors();
    fewer.remove(q);
    fs::write(&path, safetensors(&fewer)).unwrap();
    refused(
        folder.path(),
        ErrorKind::ModelLoad,
        "has no tensor model.layers.0.self_attn.q_proj.weight",
    );
    let mut more = tensors();
    more.push(("model.layers.0.self_attn.q_proj.bias".to_owned(), vec![8]));
    fs::write(&path, safetensors(&more)).unwrap();
    refused(
        folder.path(),
        ErrorKind::ModelLoad,
        "`model.layers.0.self_attn.q_proj.bias` that LlamaForCausalLM",
    );
    let mut harmless = tensors();
    harmless.push(("lm_head.weight".to_owned(), vec![10, 8]));
    harmless.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![2]));
    fs::write(&path, safetensors(&harmless)).unwrap();
    ModelFolder::open(folder.path()).unwrap();
    let whole = safetensors(&tensors());
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    refused(folder.path(), ErrorKind::ModelLoad, "is truncated");
}

#[test]
fn shards_are_one_model() {
    let folder = folder();
    let all = tensors();
    let whole = Checkpoint::open(folder.path()).unwrap();
    let (n_params, n_tensors) = (whole.n_params(), whole.tensors().len());
    let single = folder.path().join("model.safetensors");
    let mut expected = Vec::new();
    Checkpoint::open(folder.path()).unwrap().read("model.norm.weight", &mut expected).unwrap();
    fs::remove_file(single).unwrap();

    let (first, second) = all.split_at(4);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for (name, part) in names.iter().zip([first, second]) {
        fs::write(folder.path().join(name), safetensors(part)).unwrap();
    }
    let index = |place: &dyn Fn(usize) -> String| {
        let map: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(i, (name, _))| format!(r#""{name}":"{}""#, place(i)))
            .collect();
        let text = format!(r#"{{"metadata":{{}},"weight_map":{{{}}}}}"#, map.join(","));
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&|i| names[usize::from(i >= 4)].to_owned());
    let mut model = ModelFolder::open(folder.path()).unwrap();
    assert_eq!((model.weights.n_params(), model.weights.tensors().len()), (n_params, n_tensors));
    assert_eq!(model.weights.files().len(), 2);
    let mut bytes = Vec::new();
    model.weights.read("model.norm.weight", &mut bytes).unwrap();
    assert_eq!(bytes.len(), expected.len());

    for bad in [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "C:\\\\x.safetensors",
        "..",
        ".safetensors",
        "x.bin",
    ] {
        index(&|_| bad.to_owned());
        refused(
            folder.path(),
            ErrorKind::ModelLoad,
            "not the name of a safetensors file in the same folder",
        );
    }
    index(&|_| "absent.safetensors".to_owned());
    refused(folder.path(), ErrorKind::ModelLoad, "has no `absent.safetensors`");
    index(&|_| names[0].to_owned());
    refused(folder.path(), ErrorKind::ModelLoad, "which does not have it");
    fs::write(folder.path().join("model.safetensors.index.json"), "[]").unwrap();
    refused(folder.path(), ErrorKind::ModelLoad, "no `weight_map`");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_not_waited_for() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    refused(folder.path(), ErrorKind::ModelLoad, "is not a regular file");
}
