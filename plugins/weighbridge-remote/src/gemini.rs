//! Google's `generateContent` protocol, as the Gemini API speaks it.

mod answer;
mod body;
mod tokens;

use serde_json::{Map, Value, json};
use weighbridge_core::{
    Capabilities, ConstraintKind, Dropped, EmbedRequest, Embedding, Error, ErrorKind, Prompt,
    Request, RequestOption, Result, TemperatureRange,
};

use crate::options::Options;
use crate::wire::{Decode, Listed, Page, Route, Wire, in_query};

/// The provider's id: key of [`Request::extra`] and owner of the opaque data.
const PROVIDER: &str = "gemini";
/// Field of the opaque data: the parts of a turn as they came.
const PARTS: &str = "parts";
/// Begins the ids that are made up for calls that came without one. They are not sent.
const MADE_UP_ID: &str = "weighbridge-call-";

/// The `generateContent` protocol.
#[derive(Debug)]
pub(crate) struct Gemini {
    streams: bool,
    /// Sent with embeddings, to models whose vectors can be shortened.
    dimensions: Option<u32>,
}

impl Gemini {
    pub(crate) fn new(options: &Options) -> Self {
        Self { streams: options.streams, dimensions: options.dimensions }
    }
}

impl Wire for Gemini {
    fn route(&self, model: &str) -> Route {
        let name = resource(model);
        if self.streams {
            Route::new(format!("/{name}:streamGenerateContent")).with_query("alt=sse")
        } else {
            Route::new(format!("/{name}:generateContent"))
        }
    }

    fn models_route(&self, next: Option<&str>) -> Route {
        let token = next.map(|token| format!("&pageToken={}", in_query(token))).unwrap_or_default();
        Route::new("/models").with_query(format!("pageSize=1000{token}"))
    }

    /// Only models that generate or embed are listed.
    fn models(&self, document: &Value) -> Option<Page> {
        let is_ours = |model: &&Value| match model["supportedGenerationMethods"].as_array() {
            Some(methods) => methods.iter().any(|m| m == "generateContent" || m == "embedContent"),
            None => true,
        };
        let models = document["models"].as_array()?.iter().filter(is_ours).filter_map(|model| {
            let name = model["name"].as_str()?;
            Some(Listed {
                id: name.strip_prefix("models/").unwrap_or(name).to_owned(),
                n_ctx: model["inputTokenLimit"].as_u64().and_then(|n| u32::try_from(n).ok()),
                ..Listed::default()
            })
        });
        let next = document["nextPageToken"].as_str().filter(|token| !token.is_empty());
        Some(Page { models: models.collect(), next: next.map(str::to_owned) })
    }

    fn capabilities(&self, _model: &str) -> Capabilities {
        let mut capabilities = Capabilities::none().with_options([
            RequestOption::ChatPrompt,
            RequestOption::ImageInput,
            RequestOption::Temperature,
            RequestOption::TopP,
            RequestOption::TopK,
            RequestOption::FrequencyPenalty,
            RequestOption::PresencePenalty,
            RequestOption::Seed,
            RequestOption::Stop,
            RequestOption::MaxTokens,
            RequestOption::Logprobs,
            RequestOption::Constraint,
            RequestOption::Tools,
            RequestOption::ToolChoice,
            RequestOption::Reasoning,
        ]);
        capabilities.constraints.push(ConstraintKind::JsonSchema);
        capabilities.max_top_logprobs = 20;
        capabilities.max_stops = Some(5);
        capabilities.temperature_range = Some(TemperatureRange { min_milli: 0, max_milli: 2000 });
        capabilities.count_tokens = true;
        capabilities
    }

    fn body(
        &self,
        model: &str,
        request: &Request,
        dropped: &[Dropped],
    ) -> Result<Map<String, Value>> {
        body::write(model, request, dropped)
    }

    fn decoder(&self, request: &Request) -> Box<dyn Decode> {
        Box::new(answer::GeminiAnswer::new(request))
    }

    fn count_call(
        &self,
        model: &str,
        prompt: &Prompt,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let route = Route::new(format!("/{}:countTokens", resource(model)));
        Some(body::count(model, prompt).map(|body| (route, body)))
    }

    fn counted(&self, answer: &Value) -> Option<u64> {
        answer["totalTokens"].as_u64()
    }

    fn embedding_size(&self, model: &str) -> Option<u32> {
        matches!(
            model,
            "gemini-embedding-001" | "gemini-embedding-2" | "gemini-embedding-2-preview"
        )
        .then_some(3072)
    }

    fn embed_call(
        &self,
        model: &str,
        request: &EmbedRequest,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let dimensions = self.dimensions.filter(|&n| Some(n) != self.embedding_size(model));
        let requests = request.texts.iter().map(|text| {
            let mut one = json!({"model": resource(model), "content": {"parts": [{"text": text}]}});
            if let Some(dimensions) = dimensions {
                one["outputDimensionality"] = dimensions.into();
            }
            one
        });
        let body = Map::from_iter([("requests".to_owned(), requests.collect())]);
        Some(Ok((Route::new(format!("/{}:batchEmbedContents", resource(model))), body)))
    }

    fn embedded(&self, answer: &Value) -> Result<Vec<Embedding>> {
        let bad = |why: &str| Error::new(ErrorKind::Protocol, format!("the answer {why}"));
        let list =
            answer["embeddings"].as_array().ok_or_else(|| bad("holds no list `embeddings`"))?;
        let mut embeddings = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            let numbers = entry["values"].as_array().into_iter().flatten();
            let vector: Option<Vec<f32>> = numbers.map(|x| Some(x.as_f64()? as f32)).collect();
            let vector = vector.filter(|vector| !vector.is_empty()).ok_or_else(|| {
                bad("holds an embedding whose `values` are no numbers").with("index", index)
            })?;
            let mut embedding = Embedding::new(vector);
            // The count is of all texts together.
            if list.len() == 1 {
                embedding.usage.n_prompt_tokens =
                    answer["usageMetadata"]["promptTokenCount"].as_u64().filter(|&n| n > 0);
            }
            embedding.usage.raw = Some(answer["usageMetadata"].clone()).filter(Value::is_object);
            embeddings.push(embedding);
        }
        Ok(embeddings)
    }
}

/// The name of a model's resource; tuned models are named by theirs.
fn resource(model: &str) -> String {
    if model.contains('/') { model.to_owned() } else { format!("models/{model}") }
}

/// The major version in a Gemini model's name; `None` where it tells none.
fn major_version(model: &str) -> Option<u32> {
    let name = model.strip_prefix("models/").unwrap_or(model);
    let version = name.strip_prefix("gemini-")?.split(['-', '.']).next()?;
    version.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(streams: bool) -> Gemini {
        Gemini { streams, dimensions: None }
    }

    #[test]
    fn routes_name_the_model_and_the_framing() {
        let route = wire(true).route("gemini-2.5-flash");
        assert_eq!(route.path, "/models/gemini-2.5-flash:streamGenerateContent");
        assert_eq!(route.query.as_deref(), Some("alt=sse"));
        let route = wire(false).route("tunedModels/mine");
        assert_eq!(route, Route::new("/tunedModels/mine:generateContent"));
    }

    #[test]
    fn versions_are_read_off_the_names() {
        for (model, version) in [
            ("gemini-2.5-flash-preview-05-20", Some(2)),
            ("gemini-3-pro-preview", Some(3)),
            ("models/gemini-3.1-flash", Some(3)),
            ("gemini-flash-latest", None),
            ("gemma-3-27b-it", None),
        ] {
            assert_eq!(major_version(model), version, "{model}");
        }
    }

    #[test]
    fn models_are_listed_page_by_page_without_those_that_only_paint() {
        let page = wire(true)
            .models(&json!({
                "models": [
                    {"name": "models/gemini-a", "inputTokenLimit": 1_048_576,
                     "supportedGenerationMethods": ["generateContent", "countTokens"]},
                    {"name": "models/embed", "supportedGenerationMethods": ["embedContent"]},
                    {"name": "models/imagen", "supportedGenerationMethods": ["predict"]},
                    {"name": "tunedModels/mine"},
                ],
                "nextPageToken": "a+b=",
            }))
            .unwrap();
        let listed = |id: &str, n_ctx| Listed { n_ctx, ..Listed::new(id) };
        assert_eq!(
            page.models,
            [
                listed("gemini-a", Some(1_048_576)),
                listed("embed", None),
                listed("tunedModels/mine", None)
            ]
        );
        let next = wire(true).models_route(page.next.as_deref());
        assert_eq!(next.query.as_deref(), Some("pageSize=1000&pageToken=a%2Bb%3D"));
        assert_eq!(wire(true).models(&json!({"models": []})).unwrap().next, None);
        assert_eq!(wire(true).models(&json!({"data": []})), None);
    }

    #[test]
    fn tokens_are_counted_with_the_system_prompt() {
        let prompt = Prompt::Chat(vec![
            weighbridge_core::Message::system("S"),
            weighbridge_core::Message::user("Hi"),
        ]);
        let (route, body) = wire(true).count_call("gemini-x", &prompt).unwrap().unwrap();
        assert_eq!(route, Route::new("/models/gemini-x:countTokens"));
        let expected = json!({"generateContentRequest": {
            "model": "models/gemini-x",
            "systemInstruction": {"parts": [{"text": "S"}]},
            "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        }});
        assert_eq!(Value::Object(body), expected);
        assert_eq!(wire(true).counted(&json!({"totalTokens": 9})), Some(9));
    }

    #[test]
    fn texts_are_embedded_in_one_call() {
        let request = EmbedRequest::new(vec!["a".into(), "b".into()]);
        let short = Gemini { streams: true, dimensions: Some(768) };
        let (route, body) = short.embed_call("gemini-embedding-001", &request).unwrap().unwrap();
        assert_eq!(route, Route::new("/models/gemini-embedding-001:batchEmbedContents"));
        let one = |text: &str| {
            json!({"model": "models/gemini-embedding-001", "outputDimensionality": 768,
                "content": {"parts": [{"text": text}]}})
        };
        assert_eq!(Value::Object(body), json!({"requests": [one("a"), one("b")]}));

        let embeddings =
            short.embedded(&json!({"embeddings": [{"values": [0.5, 2]}, {"values": [1, -1]}]}));
        let vectors: Vec<_> = embeddings.unwrap().into_iter().map(|e| e.vector).collect();
        assert_eq!(vectors, [[0.5, 2.0], [1.0, -1.0]]);
        for bad in
            [json!({}), json!({"embeddings": [{}]}), json!({"embeddings": [{"values": ["x"]}]})]
        {
            assert_eq!(short.embedded(&bad).unwrap_err().kind(), ErrorKind::Protocol);
        }
    }
}
