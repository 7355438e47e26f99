//! The `recorded` provider: answers that already exist, in a column of a file.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weighbridge_core::{
    Backend, Capabilities, Completion, Error, ErrorKind, Event, EventSink, ModelCard, ModelListing,
    ModelRef, OpenContext, Placement, Probe, Prompt, Provider, ProviderInfo, Request,
    RequestOption, Result, StopReason, Weights, async_trait, check_options,
};

use crate::data::{as_text, column, read_table};
use crate::suite::Data;

/// The key of [`Request::extra`] under which the runner passes the sample's id.
pub const EXTRA_KEY: &str = "recorded";

/// Opens files of recorded answers: `recorded:FILE#column`.
///
/// The file is joined to the workload by a column of ids, or row by row where the suite's samples
/// have no ids of their own; answers that are not there are an error for that sample, never an
/// empty answer.
#[derive(Clone, Copy, Debug)]
pub struct RecordedProvider;

#[derive(Debug)]
struct Recorded {
    card: ModelCard,
    capabilities: Capabilities,
    answers: HashMap<String, Option<String>>,
    file: String,
}

#[async_trait]
impl Provider for RecordedProvider {
    fn id(&self) -> &str {
        "recorded"
    }

    fn describe(&self) -> ProviderInfo {
        ProviderInfo::new(
            "answers that already exist, in a column of a .jsonl or .csv file",
            "FILE#column, relative to the suite",
        )
        .with_option_schema(serde_json::json!({
            "type": "object",
            "properties": {
                "id": {
                    "type": "string",
                    "description": "column that joins answers to samples; absent: the first of \
                        id_columns that the file has",
                },
                "join": {
                    "enum": ["column", "row"],
                    "x-set-by-suite": true,
                    "description": "by a column of ids (default), or by row number from 1; a \
                        suite sets it: by row if it has no data.id",
                },
                "id_columns": {
                    "type": "array",
                    "x-set-by-suite": true,
                    "description": "names an id column may have, default [\"id\"]; a suite sets \
                        it: data.id, the column that data.id is renamed from, id",
                },
            },
        }))
    }

    async fn probe(&self, model: &ModelRef, context: &OpenContext) -> Probe {
        let path = context.resolve(&model.location);
        if path.is_file() {
            Probe::Yes
        } else {
            Probe::No { reason: format!("there is no file {}", path.display()) }
        }
    }

    async fn list(&self, _context: &OpenContext) -> Result<Vec<ModelListing>> {
        Ok(Vec::new())
    }

    async fn open(&self, model: &ModelRef, context: &OpenContext) -> Result<Arc<dyn Backend>> {
        check_options("recorded", &self.describe().option_schema, &context.options)?;
        let file = read(model, context)?;
        let card = ModelCard::new(file.column, "recorded", Weights::Unknown, Placement::Recorded);
        Ok(Arc::new(Recorded {
            card,
            // Recorded answers are what they are: whatever was asked was asked when they were made.
            capabilities: Capabilities::none().with_options([
                RequestOption::ChatPrompt,
                RequestOption::TextPrompt,
                RequestOption::Temperature,
                RequestOption::MaxTokens,
                RequestOption::TopP,
                RequestOption::TopK,
                RequestOption::Seed,
                RequestOption::Stop,
            ]),
            answers: file.answers.into_iter().collect(),
            file: file.name,
        }))
    }
}

/// The answers of a file, in its order.
struct Answers {
    column: String,
    answers: Vec<(String, Option<String>)>,
    name: String,
    sha256: String,
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

fn read(model: &ModelRef, context: &OpenContext) -> Result<Answers> {
    let Some(answer_column) = &model.variant else {
        return Err(invalid(format!(
            "`{model}` names no column; write `recorded:{}#column`",
            model.location
        )));
    };
    let path = context.resolve(&model.location);
    let table = read_table(&path)?;
    let text = |name: &str| context.options.get(name).and_then(Value::as_str);
    let id_column = match text("join") {
        Some("row") => None,
        _ => Some(match text("id") {
            Some(name) => name.to_owned(),
            None => id_column(context, &table.rows[0].1).map_err(|names| {
                invalid(format!(
                    "{}: no column joins the answers to the samples, looked for {names}; name it \
                     with options = {{ id = \"column\" }}",
                    path.display()
                ))
            })?,
        }),
    };
    let mut seen = HashSet::new();
    let mut answers = Vec::with_capacity(table.rows.len());
    for (i, (line, fields)) in table.rows.iter().enumerate() {
        let id = match &id_column {
            Some(name) => as_text(column(fields, name, &path, *line)?),
            None => (i + 1).to_string(),
        };
        let value = column(fields, answer_column, &path, *line)?;
        let answer = (!value.is_null()).then(|| as_text(value));
        if !seen.insert(id.clone()) {
            return Err(invalid(format!("{}:{line}: the id `{id}` occurs twice", path.display())));
        }
        answers.push((id, answer));
    }
    Ok(Answers {
        column: answer_column.clone(),
        answers,
        name: path.display().to_string(),
        sha256: table.sha256,
    })
}

/// The first of the names an id column may have that the file has, or all those names.
fn id_column(
    context: &OpenContext,
    fields: &Map<String, Value>,
) -> std::result::Result<String, String> {
    let names = context.options.get("id_columns").and_then(Value::as_array);
    let names: Vec<&str> = match names {
        Some(names) => names.iter().filter_map(Value::as_str).collect(),
        None => vec!["id"],
    };
    match names.iter().find(|name| fields.contains_key(**name)) {
        Some(name) => Ok((*name).to_owned()),
        None => Err(names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// A candidate's options, with how its answers find the suite's samples.
pub(crate) fn join_options(
    data: &Data,
    options: &Map<String, Value>,
) -> Result<Map<String, Value>> {
    for name in ["join", "id_columns"] {
        if options.contains_key(name) {
            return Err(invalid(format!("the option `{name}` follows from data.id; leave it out")));
        }
    }
    let mut options = options.clone();
    match &data.id {
        None if options.contains_key("id") => {
            return Err(invalid(
                "the option `id` joins answers to samples by a column, but the samples have no \
                 ids: set data.id in [data] to their id column, or leave the option out to join \
                 by row number"
                    .to_owned(),
            ));
        }
        None => {
            options.insert("join".to_owned(), "row".into());
        }
        Some(id) => {
            let mut names = vec![id.as_str()];
            names.extend(data.columns.get(id).map(String::as_str));
            if !names.contains(&"id") {
                names.push("id");
            }
            options.insert("join".to_owned(), "column".into());
            options.insert("id_columns".to_owned(), json!(names));
        }
    }
    Ok(options)
}

/// Makes sure that any answer at all belongs to a sample, and returns the file's SHA-256.
pub(crate) fn check_join<'a>(
    model: &ModelRef,
    context: &OpenContext,
    sample_ids: impl Iterator<Item = &'a str>,
) -> Result<String> {
    let file = read(model, context)?;
    let recorded: HashSet<&str> = file.answers.iter().map(|(id, _)| id.as_str()).collect();
    let sample_ids: Vec<&str> = sample_ids.collect();
    if sample_ids.iter().any(|id| recorded.contains(id)) {
        return Ok(file.sha256);
    }
    let two = |ids: &mut dyn Iterator<Item = &str>| {
        ids.take(2).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ")
    };
    Err(invalid(format!(
        "{}: no recorded answer belongs to a sample: the file's ids begin with {}, the samples' \
         with {}; name the file's column of sample ids with options = {{ id = \"column\" }}",
        file.name,
        two(&mut file.answers.iter().map(|(id, _)| id.as_str())),
        two(&mut sample_ids.iter().copied()),
    )))
}

#[async_trait]
impl Backend for Recorded {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn generate(&self, request: &Request, sink: &mut dyn EventSink) -> Result<Completion> {
        self.capabilities.check(request)?;
        if let Prompt::Tokens(_) = request.prompt {
            return Err(Error::unsupported("prompt.tokens", "recorded answers have no vocabulary"));
        }
        let id = request
            .extra
            .get(EXTRA_KEY)
            .and_then(|extra| extra.get("sample_id"))
            .and_then(|id| id.as_str())
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidRequest,
                    "recorded answers are found by sample id; set extra.recorded.sample_id",
                )
            })?;
        let text = match self.answers.get(id) {
            Some(Some(text)) => text,
            Some(None) => {
                return Err(Error::new(ErrorKind::NotFound, "no answer was recorded")
                    .with("file", &self.file)
                    .with("id", id));
            }
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "the recorded file has no row with that id; every sample needs one",
                )
                .with("file", &self.file)
                .with("id", id));
            }
        };
        if sink.push(Event::Text(text.as_str().into())) == ControlFlow::Break(()) {
            return Ok(Completion::new(text.clone(), StopReason::Cancelled));
        }
        Ok(Completion::new(text.clone(), StopReason::Stop))
    }
}
