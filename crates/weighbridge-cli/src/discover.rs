//! `weighbridge eval --data FILE`: what is on this machine, and the suite that follows from it.
//!
//! Demo models are never used here. Whatever is guessed is printed and can be said instead.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use weighbridge::data::{as_text, peek};
use weighbridge::plan::Ledger;
use weighbridge::{
    Egress, EgressScope, Environment, Error, ErrorKind, ModelListing, OpenContext, Result, Suite,
    Weights, block_on, suite,
};

/// What the user said.
pub(crate) struct Wanted<'a> {
    pub(crate) data: &'a Path,
    pub(crate) current: Option<&'a str>,
    pub(crate) candidates: &'a [String],
    pub(crate) prompt: Option<&'a str>,
    pub(crate) target: Option<&'a str>,
    pub(crate) offline: bool,
}

/// Columns that usually hold the input, in order of preference.
const INPUT_COLUMNS: [&str; 10] = [
    "prompt", "input", "question", "text", "email", "message", "body", "query", "content",
    "document",
];
/// Columns that usually hold the right answer.
const TARGET_COLUMNS: [&str; 7] =
    ["target", "answer", "expected", "label", "gold", "reference", "output"];
/// Keys that are looked for, and the model name that would use them.
const KEYS: [(&str, &str); 1] =
    [("OPENAI_API_KEY", "openai-compatible:https://api.openai.com/v1#MODEL")];
/// Folders in which model folders are looked for.
const MODEL_DIRS: [&str; 2] = [".", "models"];

/// A suite for this file and the models there are; its text goes to standard error.
pub(crate) fn propose(wanted: &Wanted<'_>, environment: &Environment) -> Result<Suite> {
    let columns = peek(wanted.data)?;
    let found = find_models(environment, wanted.offline);
    eprintln!("looked for models");
    for line in &found.lines {
        eprintln!("  {line}");
    }
    let mut models: Vec<String> = Vec::new();
    models.extend(wanted.current.map(str::to_owned));
    models.extend(wanted.candidates.iter().cloned());
    if models.len() < 2 {
        let more = found.models.iter().map(|m| m.model.to_string());
        let more: Vec<_> = more.filter(|m| !models.contains(m)).collect();
        models.extend(more);
        models.truncate(2);
    }
    if models.len() < 2 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "two models are needed and {} found; name them: --current PROVIDER:LOCATION \
                 --candidate PROVIDER:LOCATION, for instance --current \
                 openai-compatible:https://api.openai.com/v1#MODEL --candidate \
                 candle:models/my-model (a folder in Hugging Face form)",
                match models.len() {
                    0 => "none was",
                    _ => "one was",
                }
            ),
        ));
    }
    let text = suite_text(wanted, &columns, &models)?;
    eprintln!("proposed suite (save it as suite.toml to change it)\n");
    for line in text.lines() {
        eprintln!("  {line}");
    }
    eprintln!();
    suite::read_str(&text, Path::new(""), "the proposed suite")
}

struct Found {
    models: Vec<ModelListing>,
    lines: Vec<String>,
}

fn find_models(environment: &Environment, offline: bool) -> Found {
    let mut found = Found { models: Vec::new(), lines: Vec::new() };
    for (key, model) in KEYS {
        let state = match environment.secrets.secret(key) {
            Some(_) => format!("is set; use it with --current {model}"),
            None => "is not set".to_owned(),
        };
        found.lines.push(format!("key {key} {state}"));
    }
    for provider in environment.registry.providers() {
        let needs_egress = provider.describe().needs_egress;
        if needs_egress && offline {
            found.lines.push(format!("{}: not asked, the run is offline", provider.id()));
            continue;
        }
        let dirs: &[&str] = if needs_egress { &[""] } else { &MODEL_DIRS };
        for dir in dirs {
            let mut context = OpenContext::new().with_base_dir(dir);
            if needs_egress {
                // Looking for servers never leaves this machine.
                let ledger = Arc::new(Ledger::default());
                context = context.with_egress(Egress::grant(EgressScope::Loopback, ledger));
            }
            match block_on(provider.list(&context)) {
                Ok(models) => {
                    for mut listing in models {
                        if !needs_egress && !dir.is_empty() && *dir != "." {
                            listing.model.location = format!("{dir}/{}", listing.model.location);
                        }
                        found.lines.push(format!("found {}", listing.model));
                        found.models.push(listing);
                    }
                }
                Err(error) => found.lines.push(format!("{}: {error}", provider.id())),
            }
        }
    }
    found.lines.push(
        "model servers were looked for on the usual ports of this machine, model folders in . and \
         models/"
            .to_owned(),
    );
    // Those that are not open first: one of them is more likely in use today.
    found.models.sort_by_key(|m| m.card.weights == Weights::Open);
    found
}

fn suite_text(
    wanted: &Wanted<'_>,
    columns: &serde_json::Map<String, serde_json::Value>,
    models: &[String],
) -> Result<String> {
    let names: Vec<_> = columns.keys().map(String::as_str).collect();
    let prompt = match wanted.prompt {
        Some(prompt) => prompt.to_owned(),
        None => {
            let input = INPUT_COLUMNS.iter().find(|c| names.contains(c)).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "which column is the input? {} has {}; say it with --prompt \"{{{{ COLUMN \
                         }}}}\"",
                        wanted.data.display(),
                        names.join(", ")
                    ),
                )
            })?;
            format!("{{{{ {input} }}}}")
        }
    };
    let target = match wanted.target {
        Some(target) => Some(target),
        None => TARGET_COLUMNS.iter().copied().find(|c| names.contains(c)),
    };
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut out = String::new();
    let name = wanted.data.file_stem().map_or("data".into(), |s| s.to_string_lossy());
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let _ = writeln!(out, "version = 1\nname = {}\ncurrent = \"current\"", quoted(&name));
    let _ = writeln!(out, "[data]\nfile = {}", quoted(&wanted.data.display().to_string()));
    if names.contains(&"id") {
        out.push_str("id = \"id\"\n");
    }
    let _ = writeln!(out, "[prompt]\nuser = {}", quoted(&prompt));
    let mut n_candidates = 0;
    for (i, model) in models.iter().enumerate() {
        let name = match i {
            0 => "current".to_owned(),
            _ => {
                n_candidates += 1;
                format!("candidate-{n_candidates}")
            }
        };
        let _ = writeln!(out, "[[candidate]]\nname = \"{name}\"\nmodel = {}", quoted(model));
    }
    if let Some(target) = target {
        let is_json = columns.get(target).is_some_and(|value| {
            value.is_object()
                || serde_json::from_str::<serde_json::Map<_, _>>(&as_text(value)).is_ok()
        });
        let kind = if is_json { "json_fields" } else { "exact_match" };
        let _ = writeln!(out, "[[evaluator]]\nkind = \"{kind}\"\ntarget = {}", quoted(target));
    } else {
        out.push_str("# No column looks like a right answer: only agreement is shown.\n");
    }
    Ok(out)
}
