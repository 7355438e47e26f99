//! Requests of clients, as requests to a backend. What is not understood is refused by name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use weighbridge_core::{Constraint, Prompt, Reasoning, Request, TokenId, Tool, ToolChoice};

use crate::failure::Failure;
use crate::limits::Limits;
use crate::messages;

/// Fields that cannot change an answer.
const HARMLESS: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "stream_options",
];
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_BIASES: usize = 1024;
const MAX_TOOLS: usize = 128;
const MAX_TOP_LOGPROBS: u64 = 20;

/// Which of OpenAI's two forms is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// What a client asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) model: String,
    pub(crate) request: Request,
    pub(crate) streams: bool,
    pub(crate) includes_usage: bool,
}

impl Asked {
    /// Reads a body.
    ///
    /// # Errors
    /// A 400 that names the field.
    pub(crate) fn read(shape: Shape, body: Value, limits: &Limits) -> Result<Self, Failure> {
        let mut fields = Fields::new(body)?;
        let model = fields.text("model")?.ok_or_else(|| missing("model"))?;
        let prompt = match shape {
            Shape::Chat => {
                let list = fields.take("messages").ok_or_else(|| missing("messages"))?;
                Prompt::Chat(messages::read(list)?)
            }
            Shape::Text => text_prompt(fields.take("prompt").ok_or_else(|| missing("prompt"))?)?,
        };
        let mut request = Request::new(prompt);
        sampling(&mut fields, &mut request)?;
        request.stop = stops(fields.take("stop"))?;
        request.max_tokens = max_tokens(&mut fields, limits)?;
        fields.only_one("n")?;
        match shape {
            Shape::Chat => chat_only(&mut fields, &mut request)?,
            Shape::Text => text_only(&mut fields, &mut request)?,
        }
        let streams = fields.flag("stream")?.unwrap_or(false);
        let includes_usage = match fields.peek("stream_options") {
            Some(Value::Object(options)) => match options.get("include_usage") {
                Some(Value::Bool(includes)) => *includes,
                Some(Value::Null) | None => false,
                Some(_) => {
                    return Err(Failure::field(
                        "stream_options",
                        "`include_usage` takes a boolean",
                    ));
                }
            },
            Some(_) => {
                return Err(Failure::field("stream_options", "`stream_options` takes an object"));
            }
            None => false,
        };
        fields.nothing_left()?;
        Ok(Self { model, request, streams, includes_usage })
    }
}

fn sampling(fields: &mut Fields, request: &mut Request) -> Result<(), Failure> {
    let sampling = &mut request.sampling;
    sampling.temperature = fields.number("temperature", 0.0..=2.0)?;
    sampling.top_p = fields.number("top_p", f64::MIN_POSITIVE..=1.0)?;
    sampling.top_k = fields.integer("top_k", 1..=u64::from(u32::MAX))?.and_then(narrow);
    sampling.min_p = fields.number("min_p", 0.0..=1.0)?;
    sampling.repetition_penalty = fields.number("repetition_penalty", 0.01..=10.0)?;
    sampling.frequency_penalty = fields.number("frequency_penalty", -2.0..=2.0)?;
    sampling.presence_penalty = fields.number("presence_penalty", -2.0..=2.0)?;
    sampling.seed = fields.integer("seed", 0..=u64::MAX)?;
    // What clients send by default asks for nothing.
    sampling.frequency_penalty = sampling.frequency_penalty.filter(|&p| p != 0.0);
    sampling.presence_penalty = sampling.presence_penalty.filter(|&p| p != 0.0);
    sampling.top_p = sampling.top_p.filter(|&p| p != 1.0);
    let Some(biases) = fields.take("logit_bias") else { return Ok(()) };
    let bad = || {
        Failure::field(
            "logit_bias",
            format!(
                "`logit_bias` takes an object of at most {MAX_BIASES} token ids with biases from -100 to 100"
            ),
        )
    };
    let biases = biases.as_object().filter(|b| b.len() <= MAX_BIASES).ok_or_else(bad)?;
    for (token, bias) in biases {
        let token = token.parse().map(TokenId).map_err(|_| bad())?;
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b)).ok_or_else(bad)?;
        sampling.logit_bias.push((token, bias as f32));
    }
    Ok(())
}

fn chat_only(fields: &mut Fields, request: &mut Request) -> Result<(), Failure> {
    let asks = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    request.logprobs = match (asks, top) {
        (true, top) => Some(top.and_then(|top| u8::try_from(top).ok()).unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(Failure::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
    };
    tools(fields, request)?;
    request.constraint = constraint(fields.take("response_format"))?;
    request.reasoning = match fields.text("reasoning_effort")?.as_deref() {
        None => None,
        Some("none") => Some(Reasoning::Off),
        Some("low") => Some(Reasoning::Low),
        Some("medium") => Some(Reasoning::Medium),
        Some("high") => Some(Reasoning::High),
        Some(_) => {
            return Err(Failure::field(
                "reasoning_effort",
                "`reasoning_effort` takes none, low, medium or high",
            ));
        }
    };
    Ok(())
}

fn text_only(fields: &mut Fields, request: &mut Request) -> Result<(), Failure> {
    let top = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?;
    request.logprobs = top.and_then(|top| u8::try_from(top).ok());
    fields.only_one("best_of")?;
    if fields.flag("echo")? == Some(true) {
        return Err(Failure::field("echo", "`echo` is not offered"));
    }
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Failure::field("suffix", "`suffix` is not offered"));
    }
    Ok(())
}

fn text_prompt(prompt: Value) -> Result<Prompt, Failure> {
    let bad = || Failure::field("prompt", "`prompt` takes one text, or one list of token ids");
    match prompt {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(mut items) => match items.as_slice() {
            [Value::String(_) | Value::Array(_)] => text_prompt(items.remove(0)),
            [] => Err(bad()),
            ids => {
                let id = |id: &Value| id.as_u64().and_then(narrow).map(TokenId).ok_or_else(bad);
                Ok(Prompt::Tokens(ids.iter().map(id).collect::<Result<_, _>>()?))
            }
        },
        _ => Err(bad()),
    }
}

fn stops(stop: Option<Value>) -> Result<Vec<String>, Failure> {
    let list = match stop {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let bad = || {
        Failure::field(
            "stop",
            format!("`stop` takes at most {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} bytes"),
        )
    };
    if list.len() > MAX_STOPS {
        return Err(bad());
    }
    let text = |stop: Value| match stop {
        Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text),
        _ => Err(bad()),
    };
    list.into_iter().map(text).collect()
}

fn max_tokens(fields: &mut Fields, limits: &Limits) -> Result<Option<u32>, Failure> {
    let range = 1..=u64::from(limits.max_tokens);
    let old = fields.integer("max_tokens", range.clone())?;
    let new = fields.integer("max_completion_tokens", range)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(Failure::field(
            "max_tokens",
            "`max_tokens` and `max_completion_tokens` differ; send one",
        )),
        (old, new) => Ok(new.or(old).and_then(narrow)),
    }
}

fn tools(fields: &mut Fields, request: &mut Request) -> Result<(), Failure> {
    let bad = || {
        Failure::field(
            "tools",
            format!("`tools` takes at most {MAX_TOOLS} objects of type function with a name"),
        )
    };
    if let Some(tools) = fields.take("tools") {
        let tools = tools.as_array().filter(|tools| tools.len() <= MAX_TOOLS).ok_or_else(bad)?;
        for tool in tools {
            let function = &tool["function"];
            let name = function["name"].as_str().filter(|name| !name.is_empty());
            let (Some("function"), Some(name)) = (tool["type"].as_str(), name) else {
                return Err(bad());
            };
            if function["strict"] == true {
                return Err(Failure::field("tools", "`strict` tools are not offered"));
            }
            let parameters = match &function["parameters"] {
                Value::Null => Value::Object(Map::new()),
                parameters => parameters.clone(),
            };
            let description = function["description"].as_str().unwrap_or_default();
            request.tools.push(Tool::new(name, description, parameters));
        }
    }
    request.tool_choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(choice) => match (choice.as_str(), choice["function"]["name"].as_str()) {
            (Some("auto"), _) => ToolChoice::Auto,
            (Some("none"), _) => ToolChoice::None,
            (Some("required"), _) => ToolChoice::Required,
            (None, Some(name)) => ToolChoice::Named(name.to_owned()),
            _ => {
                return Err(Failure::field(
                    "tool_choice",
                    "`tool_choice` takes auto, none, required or a function",
                ));
            }
        },
    };
    if request.tools.is_empty() && request.tool_choice == ToolChoice::None {
        request.tool_choice = ToolChoice::Auto;
    }
    let parallel = fields.flag("parallel_tool_calls")?;
    request.parallel_tool_calls = parallel.filter(|_| !request.tools.is_empty());
    Ok(())
}

fn constraint(format: Option<Value>) -> Result<Option<Constraint>, Failure> {
    let Some(format) = format else { return Ok(None) };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_schema") if format["json_schema"]["schema"].is_object() => {
            Ok(Some(Constraint::JsonSchema(format["json_schema"]["schema"].clone())))
        }
        _ => Err(Failure::field(
            "response_format",
            "`response_format` takes text, or json_schema with a schema",
        )),
    }
}

fn narrow(number: u64) -> Option<u32> {
    u32::try_from(number).ok()
}

fn missing(name: &str) -> Failure {
    Failure::field(name, format!("`{name}` is missing"))
}

/// The fields of a body, taken out one by one. `null` is the same as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn new(body: Value) -> Result<Self, Failure> {
        match body {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(Failure::bad_request("the body must be a JSON object")),
        }
    }

    fn peek(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Failure::field(name, format!("`{name}` takes a text"))),
        }
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(Failure::field(name, format!("`{name}` takes a boolean"))),
        }
    }

    fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Failure> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(Failure::field(
                name,
                format!("`{name}` takes a number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    fn integer(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Failure> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(Failure::field(
                name,
                format!("`{name}` takes an integer from {} to {}", range.start(), range.end()),
            )),
        }
    }

    fn only_one(&mut self, name: &str) -> Result<(), Failure> {
        match self.take(name).map(|n| n.as_u64()) {
            None | Some(Some(1)) => Ok(()),
            Some(_) => {
                Err(Failure::field(name, format!("`{name}` must be 1: one answer per request")))
            }
        }
    }

    /// Refuses all fields that were not taken and could change the answer.
    fn nothing_left(self) -> Result<(), Failure> {
        let mut left: Vec<_> = self
            .0
            .iter()
            .filter(|(name, value)| !value.is_null() && !HARMLESS.contains(&name.as_str()))
            .map(|(name, _)| name.chars().filter(|c| !c.is_control()).take(64).collect::<String>())
            .take(16)
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        left.sort_unstable();
        let names: Vec<_> = left.iter().map(|name| format!("`{name}`")).collect();
        let message =
            format!("not understood, and it could change the answer: {}", names.join(", "));
        Err(Failure::field(left.join(","), message).with_code("unknown_parameter"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(fields: Value) -> Result<Asked, Failure> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Asked::read(Shape::Chat, body, &Limits::default())
    }

    #[track_caller]
    fn assert_refused(fields: Value, param: &str) {
        let failure = read(fields.clone()).expect_err(&fields.to_string());
        assert_eq!(failure.status, 400);
        assert_eq!(failure.body()["error"]["param"], param, "{fields}");
    }

    #[test]
    fn every_option_reaches_the_request() {
        let asked = read(json!({
            "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7, "stop": "\n",
            "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 2, "stream": true,
            "stream_options": {"include_usage": true}, "logit_bias": {"4": -100},
            "frequency_penalty": 0, "presence_penalty": 0.5, "n": 1, "user": "u", "metadata": {},
            "reasoning_effort": "low", "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "required", "parallel_tool_calls": false,
            "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
        }))
        .unwrap();
        let request = &asked.request;
        assert_eq!(request.sampling.temperature, Some(0.0));
        assert_eq!((request.sampling.top_k, request.sampling.seed), (Some(3), Some(7)));
        assert_eq!(request.sampling.frequency_penalty, None);
        assert_eq!(request.sampling.presence_penalty, Some(0.5));
        assert_eq!(request.sampling.logit_bias, [(TokenId(4), -100.0)]);
        assert_eq!((request.max_tokens, request.logprobs), (Some(5), Some(2)));
        assert_eq!(request.stop, ["\n"]);
        assert_eq!(request.tool_choice, ToolChoice::Required);
        assert_eq!(request.parallel_tool_calls, Some(false));
        assert_eq!(request.reasoning, Some(Reasoning::Low));
        assert_eq!(request.constraint, Some(Constraint::JsonSchema(json!({}))));
        assert!(asked.streams && asked.includes_usage);
    }

    #[test]
    fn what_could_change_the_answer_is_refused_by_name() {
        assert_refused(json!({"mirostat": 1, "user": "u", "typical_p": 0.5}), "mirostat,typical_p");
        assert_refused(json!({"functions": []}), "functions");
        assert_refused(json!({"cache_prompt": true}), "cache_prompt");
        assert!(read(json!({"mirostat": null})).is_ok());
        assert!(read(json!({"response_format": {"type": "text"}, "tool_choice": "none"})).is_ok());
    }

    #[test]
    fn every_number_and_list_is_bounded() {
        for (fields, param) in [
            (json!({"n": 1_000_000_000}), "n"),
            (json!({"n": 0}), "n"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": 1.5}), "max_tokens"),
            (json!({"max_tokens": 99_999_999}), "max_tokens"),
            (json!({"max_tokens": "5"}), "max_tokens"),
            (json!({"max_tokens": 5, "max_completion_tokens": 6}), "max_tokens"),
            (json!({"temperature": -0.1}), "temperature"),
            (json!({"temperature": 1e300}), "temperature"),
            (json!({"temperature": "NaN"}), "temperature"),
            (json!({"top_p": 0}), "top_p"),
            (json!({"top_p": 1.1}), "top_p"),
            (json!({"top_k": 0}), "top_k"),
            (json!({"top_k": 4_294_967_296_u64}), "top_k"),
            (json!({"seed": -1}), "seed"),
            (json!({"seed": 0.5}), "seed"),
            (json!({"frequency_penalty": 3}), "frequency_penalty"),
            (json!({"top_logprobs": 21, "logprobs": true}), "top_logprobs"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"logprobs": 2}), "logprobs"),
            (json!({"stop": vec!["x"; 17]}), "stop"),
            (json!({"stop": vec!["x"; 1_000_000]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"stop": [1]}), "stop"),
            (json!({"stop": "x".repeat(1025)}), "stop"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"logit_bias": []}), "logit_bias"),
            (json!({"stream": 1}), "stream"),
            (json!({"stream_options": 1}), "stream_options"),
            (json!({"tools": [{"type": "web"}]}), "tools"),
            (
                json!({"tools": vec![json!({"type": "function", "function": {"name": "f"}}); 129]}),
                "tools",
            ),
            (json!({"tool_choice": "maybe"}), "tool_choice"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"reasoning_effort": "extreme"}), "reasoning_effort"),
            (json!({"model": 5}), "model"),
            (json!({"model": null}), "model"),
            (json!({"messages": null}), "messages"),
        ] {
            assert_refused(fields, param);
        }
        assert_eq!(
            Asked::read(Shape::Chat, json!([]), &Limits::default()).unwrap_err().status,
            400
        );
    }

    #[test]
    fn raw_prompts_are_texts_or_tokens() {
        let read = |prompt: Value| {
            let body = json!({"model": "m", "prompt": prompt, "logprobs": 3, "echo": false});
            Asked::read(Shape::Text, body, &Limits::default()).map(|asked| asked.request.prompt)
        };
        assert_eq!(read(json!("a")).unwrap(), Prompt::Text("a".into()));
        assert_eq!(read(json!(["a"])).unwrap(), Prompt::Text("a".into()));
        assert_eq!(read(json!([1, 2])).unwrap(), Prompt::Tokens(vec![TokenId(1), TokenId(2)]));
        assert_eq!(read(json!([[1, 2]])).unwrap(), Prompt::Tokens(vec![TokenId(1), TokenId(2)]));
        for bad in [json!([]), json!(["a", "b"]), json!([1, "a"]), json!([-1]), json!({}), json!(5)]
        {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
        let body = json!({"model": "m", "prompt": "a", "echo": true});
        assert!(Asked::read(Shape::Text, body, &Limits::default()).is_err());
    }
}
