//! Anthropic's Messages protocol.

mod answer;
mod body;
mod usage;

use serde_json::{Map, Value};
use weighbridge_core::{
    Capabilities, ConstraintKind, Dropped, Prompt, Request, RequestOption, Result, TemperatureRange,
};

use crate::options::Options;
use crate::wire::{Decode, Listed, Page, Route, Wire, in_query};

/// The provider's id: key of [`Request::extra`] and owner of the opaque data.
const PROVIDER: &str = "anthropic";
/// Field of the opaque data: the blocks of a turn as they came.
const CONTENT: &str = "content";
/// `max_tokens` of a request that sets none: the protocol needs one. Every model of Claude 4 and
/// later takes it.
const DEFAULT_MAX_TOKENS: u32 = 16_384;

/// The Messages protocol.
#[derive(Debug)]
pub(crate) struct Messages {
    streams: bool,
}

impl Messages {
    pub(crate) fn new(options: &Options) -> Self {
        Self { streams: options.streams }
    }
}

impl Wire for Messages {
    fn route(&self, _model: &str) -> Route {
        Route::new("/messages")
    }

    fn models_route(&self, next: Option<&str>) -> Route {
        let after = next.map(|id| format!("&after_id={}", in_query(id))).unwrap_or_default();
        Route::new("/models").with_query(format!("limit=1000{after}"))
    }

    fn models(&self, document: &Value) -> Option<Page> {
        let models = document["data"].as_array()?.iter().filter_map(|model| {
            let n_ctx = model["max_input_tokens"].as_u64().and_then(|n| u32::try_from(n).ok());
            Some(Listed { n_ctx, ..Listed::new(model["id"].as_str()?) })
        });
        let next = document["last_id"].as_str().filter(|_| document["has_more"] == true);
        Some(Page { models: models.collect(), next: next.map(str::to_owned) })
    }

    fn capabilities(&self, model: &str) -> Capabilities {
        let mut capabilities = Capabilities::none().with_options([
            RequestOption::ChatPrompt,
            RequestOption::ImageInput,
            RequestOption::Stop,
            RequestOption::MaxTokens,
            RequestOption::Constraint,
            RequestOption::Tools,
            RequestOption::ToolChoice,
            RequestOption::ParallelToolCalls,
            RequestOption::Reasoning,
        ]);
        if is_before(model, (4, 7)).unwrap_or(true) {
            capabilities.options.extend([
                RequestOption::Temperature,
                RequestOption::TopP,
                RequestOption::TopK,
            ]);
            capabilities.temperature_range =
                Some(TemperatureRange { min_milli: 0, max_milli: 1000 });
        }
        capabilities.constraints.push(ConstraintKind::JsonSchema);
        capabilities.count_tokens = true;
        capabilities
    }

    fn body(
        &self,
        model: &str,
        request: &Request,
        dropped: &[Dropped],
    ) -> Result<Map<String, Value>> {
        body::write(self, model, request, dropped)
    }

    fn decoder(&self, _request: &Request) -> Box<dyn Decode> {
        Box::new(answer::MessagesAnswer::default())
    }

    fn count_call(
        &self,
        model: &str,
        prompt: &Prompt,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        Some(body::count(model, prompt).map(|body| (Route::new("/messages/count_tokens"), body)))
    }

    fn counted(&self, answer: &Value) -> Option<u64> {
        answer["input_tokens"].as_u64()
    }
}

/// Whether a Claude model is older than a version; `None` where its name tells none.
///
/// Names are `claude-FAMILY-MAJOR-MINOR-DATE`, the oldest with the family behind the version; minor
/// version and date may be missing.
fn is_before(model: &str, version: (u32, u32)) -> Option<bool> {
    let parts: Vec<&str> = model.strip_prefix("claude-")?.split('-').collect();
    let number = |part: &&str| part.parse().ok().filter(|_| part.len() <= 3);
    let at = parts.iter().position(|part| number(part).is_some())?;
    let major = number(&parts[at])?;
    let minor = parts.get(at + 1).and_then(number).unwrap_or(0);
    Some((major, minor) < version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_read_off_the_names() {
        for (model, is_older) in [
            ("claude-3-5-sonnet-20241022", Some(true)),
            ("claude-opus-4-20250514", Some(true)),
            ("claude-sonnet-4-5-20250929", Some(true)),
            ("claude-haiku-4-5", Some(true)),
            ("claude-opus-4-6", Some(true)),
            ("claude-opus-4-7", Some(false)),
            ("claude-opus-4-8-20260528", Some(false)),
            ("claude-sonnet-5", Some(false)),
            ("claude-fable-5-2", Some(false)),
            ("claude-mythos-preview", None),
            ("my-proxy-model-3", None),
        ] {
            assert_eq!(is_before(model, (4, 7)), is_older, "{model}");
        }
    }

    #[test]
    fn newer_models_take_no_sampling_and_a_wish_for_it_is_dropped() {
        let wire = Messages { streams: true };
        let mut request = Request::user("Hi");
        request.sampling.top_k = Some(3);
        request.sampling.top_p = Some(0.5);
        assert!(wire.capabilities("claude-haiku-4-5").check(&request).unwrap().is_empty());
        let error = wire.capabilities("claude-opus-5").check(&request).unwrap_err();
        assert_eq!(error.context("option"), Some("temperature,top_k,top_p"));
        request.wishes = vec![RequestOption::Temperature, RequestOption::TopK, RequestOption::TopP];
        assert_eq!(wire.capabilities("claude-opus-5").check(&request).unwrap().len(), 3);

        let mut request = Request::user("Hi");
        request.sampling.temperature = Some(1.5);
        request.sampling.seed = Some(1);
        request.logprobs = Some(1);
        let error = wire.capabilities("claude-haiku-4-5").check(&request).unwrap_err();
        assert_eq!(error.context("option"), Some("seed,logprobs,temperature"));
    }

    #[test]
    fn models_are_listed_page_by_page() {
        let wire = Messages { streams: true };
        let page = wire
            .models(&json!({
                "data": [
                    {"type": "model", "id": "claude-a", "max_input_tokens": 200_000},
                    {"type": "model", "id": "claude-b", "max_input_tokens": null},
                ],
                "has_more": true, "first_id": "claude-a", "last_id": "claude-b",
            }))
            .unwrap();
        let listed = |id: &str, n_ctx| Listed { n_ctx, ..Listed::new(id) };
        assert_eq!(page.models, [listed("claude-a", Some(200_000)), listed("claude-b", None)]);
        assert_eq!(page.next.as_deref(), Some("claude-b"));
        let next = wire.models_route(Some("a&b"));
        assert_eq!(next.query.as_deref(), Some("limit=1000&after_id=a%26b"));
        let last = json!({"data": [], "has_more": false, "last_id": "claude-b"});
        assert_eq!(wire.models(&last).unwrap().next, None);
        assert_eq!(wire.models(&json!({"models": []})), None);
    }

    #[test]
    fn tokens_are_counted_without_generation_fields() {
        let wire = Messages { streams: true };
        let (route, body) = wire.count_call("m", &Prompt::user("Hi")).unwrap().unwrap();
        assert_eq!(route, Route::new("/messages/count_tokens"));
        let content = json!([{"type": "text", "text": "Hi"}]);
        let expected = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
        assert_eq!(Value::Object(body), expected);
        assert_eq!(wire.counted(&json!({"input_tokens": 9})), Some(9));
        assert!(wire.count_call("m", &Prompt::Text("x".into())).unwrap().is_err());
    }
}
