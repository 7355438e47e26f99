//! The body of a `generateContent` request.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use weighbridge_core::{
    Constraint, Dropped, Error, ErrorKind, Message, Part, Prompt, Reasoning, Request,
    RequestOption, Result, Role, ToolCall, ToolChoice,
};

use super::{MADE_UP_ID, PARTS, PROVIDER, major_version, resource};
use crate::prompt;
use crate::wire::add_verbatim;

/// Writes the body; the fields of [`Request::extra`] come last and win.
pub(super) fn write(
    model: &str,
    request: &Request,
    dropped: &[Dropped],
) -> Result<Map<String, Value>> {
    let keeps = |option| dropped.iter().all(|d| d.option != option);
    let mut body = conversation(&request.prompt, keeps(RequestOption::ImageInput))?;
    prompt::check_tool_choice(request)?;
    if !request.tools.is_empty() && keeps(RequestOption::Tools) {
        let declarations = request.tools.iter().map(|tool| {
            let mut fields = json!({"name": tool.name, "parametersJsonSchema": tool.parameters});
            if !tool.description.is_empty() {
                fields["description"] = tool.description.clone().into();
            }
            fields
        });
        let declarations: Vec<_> = declarations.collect();
        body.insert("tools".to_owned(), json!([{"functionDeclarations": declarations}]));
        if keeps(RequestOption::ToolChoice)
            && let Some(choice) = tool_choice(&request.tool_choice)?
        {
            body.insert("toolConfig".to_owned(), json!({"functionCallingConfig": choice}));
        }
    }
    let config = generation_config(model, request, keeps)?;
    if !config.is_empty() {
        body.insert("generationConfig".to_owned(), config.into());
    }
    if let Some(fields) = request.extra.get(PROVIDER) {
        add_verbatim(&mut body, fields);
    }
    Ok(body)
}

/// The body of a call that counts the tokens of a prompt.
pub(super) fn count(model: &str, prompt: &Prompt) -> Result<Map<String, Value>> {
    let mut request = conversation(prompt, true)?;
    request.insert("model".to_owned(), resource(model).into());
    Ok(Map::from_iter([("generateContentRequest".to_owned(), request.into())]))
}

fn generation_config(
    model: &str,
    request: &Request,
    keeps: impl Fn(RequestOption) -> bool,
) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    let mut set = |name: &str, value: Value| {
        config.insert(name.to_owned(), value);
    };
    let sampling = &request.sampling;
    let numbers = [
        ("temperature", sampling.temperature, RequestOption::Temperature),
        ("topP", sampling.top_p, RequestOption::TopP),
        ("frequencyPenalty", sampling.frequency_penalty, RequestOption::FrequencyPenalty),
        ("presencePenalty", sampling.presence_penalty, RequestOption::PresencePenalty),
    ];
    for (name, value, option) in numbers {
        if let Some(value) = value.filter(|_| keeps(option)) {
            set(name, value.into());
        }
    }
    if let Some(top_k) = sampling.top_k.filter(|_| keeps(RequestOption::TopK)) {
        set("topK", top_k.into());
    }
    if let Some(seed) = sampling.seed.filter(|_| keeps(RequestOption::Seed)) {
        let seed = i32::try_from(seed).map_err(|_| {
            Error::new(ErrorKind::InvalidRequest, "`seed` must be below 2^31 on this protocol")
                .with("seed", seed)
        })?;
        set("seed", seed.into());
    }
    if !request.stop.is_empty() && keeps(RequestOption::Stop) {
        set("stopSequences", request.stop.clone().into());
    }
    if let Some(max_tokens) = request.max_tokens.filter(|_| keeps(RequestOption::MaxTokens)) {
        set("maxOutputTokens", max_tokens.into());
    }
    if let Some(top) = request.logprobs.filter(|_| keeps(RequestOption::Logprobs)) {
        set("responseLogprobs", true.into());
        set("logprobs", top.into());
    }
    if let Some(constraint) =
        request.constraint.as_ref().filter(|_| keeps(RequestOption::Constraint))
    {
        let Constraint::JsonSchema(schema) = constraint else {
            return Err(Error::unsupported("constraint", "this protocol takes JSON Schema only"));
        };
        set("responseMimeType", "application/json".into());
        set("responseJsonSchema", schema.clone());
    }
    if let Some(reasoning) = request.reasoning.filter(|_| keeps(RequestOption::Reasoning)) {
        set("thinkingConfig", thinking(model, reasoning)?);
    }
    Ok(config)
}

/// Models before Gemini 3 know token budgets only, later ones cannot be kept from thinking; what a
/// model without a version in its name knows, the server says.
fn thinking(model: &str, reasoning: Reasoning) -> Result<Value> {
    let version = major_version(model);
    let unsupported = |why: &str| Err(Error::unsupported("reasoning", why).with("model", model));
    let level = match reasoning {
        Reasoning::Off if version >= Some(3) => {
            return unsupported("this model cannot be kept from reasoning; ask for low");
        }
        Reasoning::Off => return Ok(json!({"thinkingBudget": 0})),
        Reasoning::Budget(n) => {
            return Ok(json!({"includeThoughts": true, "thinkingBudget": n}));
        }
        Reasoning::Low => "LOW",
        Reasoning::Medium => "MEDIUM",
        Reasoning::High => "HIGH",
        other => return unsupported(&format!("{other:?} is unknown here")),
    };
    if version.is_some_and(|version| version < 3) {
        return unsupported("this model takes a token budget for its reasoning and no level");
    }
    Ok(json!({"includeThoughts": true, "thinkingLevel": level}))
}

fn tool_choice(choice: &ToolChoice) -> Result<Option<Value>> {
    Ok(Some(match choice {
        ToolChoice::Auto => return Ok(None),
        ToolChoice::None => json!({"mode": "NONE"}),
        ToolChoice::Required => json!({"mode": "ANY"}),
        ToolChoice::Named(name) => json!({"mode": "ANY", "allowedFunctionNames": [name]}),
        other => {
            return Err(Error::unsupported("tool_choice", format!("{other:?} is unknown here")));
        }
    }))
}

/// The fields `systemInstruction` and `contents`.
fn conversation(prompt: &Prompt, keeps_images: bool) -> Result<Map<String, Value>> {
    let (system, rest) = prompt::split_system(prompt::messages(prompt)?)?;
    let mut fields = Map::new();
    if !system.is_empty() {
        let parts: Vec<_> = system.into_iter().map(|text| json!({"text": text})).collect();
        fields.insert("systemInstruction".to_owned(), json!({"parts": parts}));
    }
    let mut contents: Vec<Value> = Vec::with_capacity(rest.len());
    // Results are matched by the name of the tool, which only the call tells.
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut is_after_results = false;
    for message in rest {
        for part in &message.parts {
            if let Part::ToolCall(call) = part {
                names.insert(&call.id, &call.name);
            }
        }
        let role = match message.role {
            Role::System => {
                return Err(Error::unsupported(
                    "prompt.system",
                    "this protocol takes system messages at the begin of a conversation only",
                ));
            }
            Role::Assistant => "model",
            // Results of tools are spoken by the user.
            _ => "user",
        };
        let parts = match prompt::echo(message, PROVIDER, PARTS, said)? {
            Some(parts) => parts,
            None => parts(message, keeps_images, &names)?,
        };
        // The results of one turn's calls have to come in one piece.
        let is_results = message.role == Role::Tool;
        let before = contents.last_mut().and_then(|content| content["parts"].as_array_mut());
        match before.filter(|_| is_results && is_after_results) {
            Some(before) => before.extend(parts),
            None => contents.push(json!({"role": role, "parts": parts})),
        }
        is_after_results = is_results;
    }
    fields.insert("contents".to_owned(), contents.into());
    Ok(fields)
}

fn parts(
    message: &Message,
    keeps_images: bool,
    names: &BTreeMap<&str, &str>,
) -> Result<Vec<Value>> {
    let mut parts = Vec::new();
    for part in &message.parts {
        if message.role == Role::Tool && !matches!(part, Part::ToolResult { .. }) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "a message of role tool holds tool results and nothing else",
            ));
        }
        match part {
            Part::Text(text) => parts.push(json!({"text": text})),
            Part::Image { .. } if !keeps_images => {}
            Part::Image { media_type, data } if message.role == Role::User => {
                let data = STANDARD.encode(data);
                parts.push(json!({"inlineData": {"mimeType": media_type, "data": data}}));
            }
            Part::Image { .. } => {
                let why = format!("a message of role {} takes no image", message.role.as_str());
                return Err(Error::unsupported("prompt.image", why));
            }
            Part::ToolCall(call) => parts.push(function_call(call)?),
            Part::ToolResult { call_id, content, is_error } => {
                let name = names.get(call_id.as_str()).ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidRequest,
                        "a tool result answers a call that no message before it makes; this \
                         protocol needs the tool's name from there",
                    )
                    .with("call_id", call_id)
                })?;
                let key = if *is_error { "error" } else { "output" };
                let mut response = json!({"name": name, "response": {key: content}});
                if !call_id.starts_with(MADE_UP_ID) {
                    response["id"] = call_id.clone().into();
                }
                parts.push(json!({ "functionResponse": response }));
            }
            // The vendor takes reasoning back with its signature only, and that is opaque data;
            // the opaque data of another provider is not for it.
            Part::Reasoning(_) | Part::Opaque { .. } => {}
            other => {
                return Err(Error::unsupported("prompt", format!("no word for {other:?}")));
            }
        }
    }
    Ok(parts)
}

fn function_call(call: &ToolCall) -> Result<Value> {
    let mut fields = json!({"name": call.name, "args": prompt::arguments(call)?});
    if !call.id.starts_with(MADE_UP_ID) {
        fields["id"] = call.id.clone().into();
    }
    Ok(json!({ "functionCall": fields }))
}

/// The text of a turn's parts, and its calls with their arguments.
fn said(parts: &[Value]) -> (String, Vec<(String, Value)>) {
    let answer = parts.iter().filter(|part| part["thought"] != true);
    let text = answer.filter_map(|part| part["text"].as_str()).collect();
    let calls = parts.iter().map(|part| &part["functionCall"]).filter(|call| call.is_object());
    let calls = calls.map(|call| {
        let args = Some(call["args"].clone()).filter(|args| !args.is_null());
        (call["name"].as_str().unwrap_or_default().to_owned(), args.unwrap_or_else(|| json!({})))
    });
    (text, calls.collect())
}

#[cfg(test)]
mod tests;
