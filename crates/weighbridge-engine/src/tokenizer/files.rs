//! The text files of a Hugging Face model folder.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use weighbridge_core::{Error, ErrorKind, Result, Sampling};

use super::{HfTokenizer, ModelText, in_range};
use crate::tokens::{TokenKind, TokenTable};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json`,
/// `generation_config.json`, `config.json`, `chat_template.jinja` and `chat_template.json`.
///
/// End ids are the `eos_token_id` of both configs and the `eos_token` of the tokenizer, together: a
/// model that may end with any of them must be stopped at each. BOS goes before raw text if
/// `add_bos_token` says so or, where that is absent, if the tokenizer itself puts it there.
///
/// # Errors
/// [`ErrorKind::ModelLoad`] that names the file: missing `tokenizer.json`, a file above 64 MiB,
/// broken JSON, ids that do not fit.
pub fn load_folder(folder: &Path) -> Result<ModelText> {
    let path = folder.join("tokenizer.json");
    let file = path.display().to_string();
    let Some(json) = read(&path)? else {
        return Err(Error::new(
            ErrorKind::ModelLoad,
            format!("`{file}` is missing; a model folder needs the tokenizer in this form"),
        ));
    };
    let config = read_json(&folder.join("tokenizer_config.json"))?;
    let special_map = read_json(&folder.join("special_tokens_map.json"))?;
    let generation = read_json(&folder.join("generation_config.json"))?;
    let model = read_json(&folder.join("config.json"))?;

    let special = |name: &str| {
        [&config, &special_map].into_iter().find_map(|source| token_text(&source[name]))
    };
    let names = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"];
    let variables =
        names.iter().filter_map(|name| Some(((*name).to_owned(), special(name)?))).collect();
    let encoder = HfTokenizer::from_json(&json, &file)?.with_template_variables(variables);
    let mut table = encoder.table(&json, &file)?;

    for (name, value) in [
        ("generation_config.json", &generation["eos_token_id"]),
        ("config.json", &model["eos_token_id"]),
        ("config.json", &model["text_config"]["eos_token_id"]),
    ] {
        for id in ids(value, name)? {
            add_end(&mut table, id, name)?;
        }
    }
    if let Some(id) = special("eos_token").and_then(|text| encoder.token_to_id(&text)) {
        add_end(&mut table, id, "tokenizer_config.json")?;
    }
    if let Some(id) = special("bos_token").and_then(|text| encoder.token_to_id(&text)) {
        let adds = config["add_bos_token"].as_bool().unwrap_or_else(|| encoder.puts_first(id));
        table.bos_id = adds.then_some(id);
    }
    Ok(ModelText {
        chat_template: chat_template(folder, &config)?,
        tokenizer_sha256: encoder.sha256().to_owned(),
        default_sampling: default_sampling(&generation),
        table: Arc::new(table),
        encoder: Arc::new(encoder),
    })
}

fn add_end(table: &mut TokenTable, id: u32, file: &str) -> Result<()> {
    let Some(kind) = table.kinds.get_mut(id as usize) else {
        return Err(Error::new(
            ErrorKind::ModelLoad,
            format!("`{file}` names an end token that the tokenizer does not have"),
        )
        .with("token_id", id));
    };
    // Its text never belongs to a completion, whatever the tokenizer calls it.
    *kind = TokenKind::Control;
    table.bytes[id as usize].clear();
    if !table.end_ids.contains(&id) {
        table.end_ids.push(id);
    }
    Ok(())
}

/// A token is given as its text, or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn ids(value: &Value, file: &str) -> Result<Vec<u32>> {
    let values = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    values
        .iter()
        .map(|value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                Error::new(
                    ErrorKind::ModelLoad,
                    format!(
                        "`eos_token_id` of `{file}` must be an id or a list of ids, not {value}"
                    ),
                )
            })
        })
        .collect()
}

fn chat_template(folder: &Path, config: &Value) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = read(&path)? {
        let source = String::from_utf8(bytes).map_err(|error| {
            Error::new(ErrorKind::ModelLoad, format!("`{}` is not UTF-8", path.display()))
                .with_source(error)
        })?;
        return Ok(Some(source));
    }
    let separate = read_json(&folder.join("chat_template.json"))?;
    let named = |value: &Value| match value {
        Value::String(source) => Some(source.clone()),
        Value::Array(templates) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            default.or(templates.first()).and_then(|t| t["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    };
    Ok(named(&config["chat_template"]).or_else(|| named(&separate["chat_template"])))
}

/// Greedy where the file says `do_sample: false`; its settings where it says true.
fn default_sampling(generation: &Value) -> Sampling {
    let mut sampling = Sampling::default();
    match generation["do_sample"].as_bool() {
        Some(false) => sampling.temperature = Some(0.0),
        Some(true) => {
            sampling.temperature = generation["temperature"].as_f64();
            sampling.top_p = generation["top_p"].as_f64();
            sampling.min_p = generation["min_p"].as_f64();
            sampling.top_k = generation["top_k"].as_u64().and_then(|k| u32::try_from(k).ok());
        }
        None => {}
    }
    sampling.repetition_penalty = generation["repetition_penalty"].as_f64();
    in_range(sampling)
}

/// `Value::Null` for a file that does not exist.
fn read_json(path: &Path) -> Result<Value> {
    let Some(bytes) = read(path)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(ErrorKind::ModelLoad, format!("`{}` is not valid JSON", path.display()))
            .with("line", error.line())
            .with_source(error)
    })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::ModelLoad, format!("`{}` cannot be read", path.display()))
            .with_source(error)
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    // The limit is on what is read, not on what the file system says: that may be a pipe.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::new(
            ErrorKind::ModelLoad,
            format!("`{}` is larger than 64 MiB", path.display()),
        ));
    }
    Ok(Some(bytes))
}
