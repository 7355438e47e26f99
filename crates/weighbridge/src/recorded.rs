//! The `recorded` provider: answers that already exist, in a column of a file.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use weighbridge_core::{
    Backend, Capabilities, Completion, Error, ErrorKind, Event, EventSink, ModelCard, ModelListing,
    ModelRef, OpenContext, Placement, Probe, Prompt, Provider, ProviderInfo, Request,
    RequestOption, Result, StopReason, Weights, async_trait, check_options,
};

use crate::data::{Table, as_text, column, read_table};

/// The key of [`Request::extra`] under which the runner passes the sample's id.
pub const EXTRA_KEY: &str = "recorded";

/// Opens files of recorded answers: `recorded:FILE#column`.
///
/// The file is joined to the workload by its id column (option `id`, default `id`); answers that
/// are not there are an error for that sample, never an empty answer.
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
                "id": {"type": "string", "description": "column that joins answers to samples"},
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
        let Some(answer_column) = &model.variant else {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("`{model}` names no column; write `recorded:{}#column`", model.location),
            ));
        };
        let id_column = context.options.get("id").and_then(|v| v.as_str());
        let path = context.resolve(&model.location);
        let table: Table = read_table(&path)?;
        let mut answers = HashMap::with_capacity(table.rows.len());
        for (i, (line, fields)) in table.rows.iter().enumerate() {
            let id = match id_column {
                Some(name) => as_text(column(fields, name, &path, *line)?),
                None => fields.get("id").map_or_else(|| (i + 1).to_string(), as_text),
            };
            let value = column(fields, answer_column, &path, *line)?;
            let answer = (!value.is_null()).then(|| as_text(value));
            if answers.insert(id.clone(), answer).is_some() {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("{}:{line}: the id `{id}` occurs twice", path.display()),
                ));
            }
        }
        let mut card = ModelCard::new(
            answer_column.clone(),
            "recorded",
            Weights::Unknown,
            Placement::Recorded,
        );
        card.weights_sha256 = None;
        card.engine = None;
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
            answers,
            file: path.display().to_string(),
        }))
    }
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
