//! `weighbridge eval --data FILE`: what is on this machine, and the suite that follows from it.
//!
//! Demo models are never used here. Whatever is guessed is printed and can be said instead.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weighbridge::data::{as_text, peek};
use weighbridge::plan::Ledger;
use weighbridge::{
    Egress, EgressScope, Environment, Error, ErrorKind, ModelListing, ModelRef, OpenContext,
    Result, Suite, Weights, block_on, suite,
};

use crate::keys::VENDOR_KEYS;

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
/// Folders in which model folders are looked for.
const MODEL_DIRS: [&str; 2] = [".", "models"];

/// The suite and its text.
pub(crate) struct Proposal {
    pub(crate) suite: Suite,
    /// Its paths are absolute, so that it means the same wherever it is kept.
    pub(crate) text: String,
}

/// A suite for this file and the models there are; its text goes to standard error.
pub(crate) fn propose(wanted: &Wanted<'_>, environment: &Environment) -> Result<Proposal> {
    let columns = peek(wanted.data)?;
    let found = find_models(environment, wanted.offline);
    eprintln!("looked for models");
    for line in &found.lines {
        eprintln!("  {line}");
    }
    let models = choose(wanted, &found, environment)?;
    let text = suite_text(wanted, &columns, &models)?;
    eprintln!("proposed suite (save it as suite.toml to change it)\n");
    for line in text.lines() {
        eprintln!("  {line}");
    }
    eprintln!();
    let suite = suite::read_str(&text, Path::new(""), "the proposed suite")?;
    Ok(Proposal { suite, text })
}

/// The model in use today, then its challengers. A named candidate is always a challenger: the
/// burden of proof lies on change, so nothing becomes the model in use by where it was named.
fn choose(wanted: &Wanted<'_>, found: &Found, environment: &Environment) -> Result<Vec<String>> {
    let absolute = |model: &String| absolute(model, environment);
    let mut challengers: Vec<String> = wanted.candidates.iter().map(absolute).collect();
    let names: Vec<String> =
        found.models.iter().map(|m| absolute(&m.listing.model.to_string())).collect();
    let current = match wanted.current {
        Some(current) => absolute(&current.to_owned()),
        None => {
            let free = names.iter().position(|name| !challengers.contains(name));
            let Some(i) = free else { return Err(none_found("--current", &names)) };
            let why = match found.models[i].is_server {
                true => "a server that runs",
                false => "a model folder; no other server runs",
            };
            eprintln!(
                "current   {}\n  {why}: taken as the model in use today; say --current to change \
                 that",
                names[i]
            );
            names[i].clone()
        }
    };
    if challengers.is_empty() {
        let Some(challenger) = names.iter().find(|name| **name != current) else {
            return Err(none_found("--candidate", &names));
        };
        eprintln!(
            "candidate {challenger}\n  found here: taken as its challenger; say --candidate to \
             change that"
        );
        challengers.push(challenger.clone());
    }
    challengers.insert(0, current);
    Ok(challengers)
}

fn none_found(flag: &str, found: &[String]) -> Error {
    let (question, example) = match flag {
        "--current" => ("which model is in use today?", "--current openai:MODEL"),
        _ => (
            "which model is to be weighed against it?",
            "--candidate candle:models/my-model (a folder in Hugging Face form)",
        ),
    };
    let found = match found {
        [] => "no model was found on this machine".to_owned(),
        found => format!("of the models found on this machine ({}) none is left", found.join(", ")),
    };
    Error::new(
        ErrorKind::InvalidInput,
        format!("{question} {found}; name it: {flag} PROVIDER:LOCATION, for instance {example}"),
    )
}

/// The same name with an absolute path, where the location is a path of this machine.
fn absolute(model: &str, environment: &Environment) -> String {
    let unchanged = || model.to_owned();
    let Ok(mut name) = model.parse::<ModelRef>() else { return unchanged() };
    let Ok(provider) = environment.registry.provider(&name.provider) else { return unchanged() };
    if provider.describe().needs_egress || !Path::new(&name.location).exists() {
        return unchanged();
    }
    let Ok(path) = std::path::absolute(&name.location) else { return unchanged() };
    // Without `.` and the like, so that one folder has one name.
    let path: PathBuf = path.components().collect();
    let Some(path) = path.to_str() else { return unchanged() };
    name.location = path.to_owned();
    let text = name.to_string();
    // A folder with `#` or `@` in its name would be read as something else.
    match text.parse::<ModelRef>() {
        Ok(read) if read == name => text,
        _ => unchanged(),
    }
}

struct Found {
    /// Likeliest to be in use today first.
    models: Vec<FoundModel>,
    lines: Vec<String>,
}

struct FoundModel {
    listing: ModelListing,
    is_server: bool,
}

fn find_models(environment: &Environment, offline: bool) -> Found {
    let mut found = Found { models: Vec::new(), lines: Vec::new() };
    for (key, model) in VENDOR_KEYS {
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
                        found.models.push(FoundModel { listing, is_server: needs_egress });
                    }
                }
                // Its models are not on this machine.
                Err(error) if error.kind() == ErrorKind::EgressDenied => {}
                Err(error) => found.lines.push(format!("{}: {error}", provider.id())),
            }
        }
    }
    found.lines.push(
        "model servers were looked for on the usual ports of this machine, model folders in . and \
         models/"
            .to_owned(),
    );
    // Servers first, and among them those that are not open: one of them is more likely in use
    // today than a folder.
    found.models.sort_by_key(|m| (!m.is_server, m.listing.card.weights == Weights::Open));
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
    let file = std::path::absolute(wanted.data).unwrap_or_else(|_| wanted.data.to_owned());
    let file = file.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("the path of {} is not UTF-8; rename or move it", wanted.data.display()),
        )
    })?;
    let _ = writeln!(out, "[data]\nfile = {}", quoted(file));
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
