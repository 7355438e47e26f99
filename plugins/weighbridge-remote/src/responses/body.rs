//! The body of a Responses request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use weighbridge_core::{
    Constraint, Dropped, Error, ErrorKind, Message, Part, Prompt, Reasoning, Request,
    RequestOption, Result, Role, ToolChoice,
};

use super::{Responses, echo};

/// Writes the body; the fields of [`Request::extra`] come last and win.
pub(super) fn write(
    wire: &Responses,
    model: &str,
    request: &Request,
    dropped: &[Dropped],
) -> Result<Map<String, Value>> {
    let keeps = |option| dropped.iter().all(|d| d.option != option);
    let mut body = Map::from_iter([("model".to_owned(), model.into())]);
    write_prompt(wire, &request.prompt, keeps(RequestOption::ImageInput), &mut body)?;
    let mut include = Vec::new();
    let mut set = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    if let Some(temperature) = request.sampling.temperature
        && keeps(RequestOption::Temperature)
    {
        set("temperature", temperature.into());
    }
    if let Some(top_p) = request.sampling.top_p
        && keeps(RequestOption::TopP)
    {
        set("top_p", top_p.into());
    }
    if let Some(max_tokens) = request.max_tokens
        && keeps(RequestOption::MaxTokens)
    {
        set("max_output_tokens", max_tokens.into());
    }
    if let Some(top) = request.logprobs
        && keeps(RequestOption::Logprobs)
    {
        include.push("message.output_text.logprobs");
        set("top_logprobs", top.into());
    }
    if !request.tools.is_empty() && keeps(RequestOption::Tools) {
        let tools = request.tools.iter().map(|tool| {
            // The protocol's own default is strict, which rewrites the schema.
            json!({"type": "function", "name": tool.name, "description": tool.description,
                "parameters": tool.parameters, "strict": false})
        });
        set("tools", tools.collect());
        if keeps(RequestOption::ToolChoice)
            && let Some(choice) = tool_choice(&request.tool_choice)?
        {
            set("tool_choice", choice);
        }
        if let Some(parallel) = request.parallel_tool_calls
            && keeps(RequestOption::ParallelToolCalls)
        {
            set("parallel_tool_calls", parallel.into());
        }
    } else if matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "`tool_choice` demands a tool and the request has none",
        ));
    }
    if let Some(constraint) = &request.constraint
        && keeps(RequestOption::Constraint)
    {
        let Constraint::JsonSchema(schema) = constraint else {
            return Err(Error::unsupported("constraint", "this protocol takes JSON Schema only"));
        };
        let format =
            json!({"type": "json_schema", "name": "answer", "strict": true, "schema": schema});
        set("text", json!({"format": format}));
    }
    let mut is_thinking = echo::is_in(&request.prompt, wire.provider);
    if let Some(reasoning) = request.reasoning
        && keeps(RequestOption::Reasoning)
    {
        is_thinking |= reasoning != Reasoning::Off;
        set("reasoning", json!({"effort": effort(reasoning)?}));
    }
    if is_thinking {
        // Nothing is stored, so reasoning can be continued only from its encrypted whole. Models
        // that do not reason may refuse the field, so it is sent only where reasoning is in play.
        include.push("reasoning.encrypted_content");
    }
    if !include.is_empty() {
        set("include", include.into());
    }
    set("store", false.into());
    if wire.streams {
        set("stream", true.into());
    }
    for (name, value) in request.extra.get(wire.provider).into_iter().flatten() {
        set(name, value.clone());
    }
    Ok(body)
}

fn effort(reasoning: Reasoning) -> Result<&'static str> {
    match reasoning {
        Reasoning::Off => Ok("none"),
        Reasoning::Low => Ok("low"),
        Reasoning::Medium => Ok("medium"),
        Reasoning::High => Ok("high"),
        other => Err(Error::unsupported(
            "reasoning",
            format!("{other:?} has no word here: effort is none, low, medium or high"),
        )),
    }
}

fn tool_choice(choice: &ToolChoice) -> Result<Option<Value>> {
    Ok(Some(match choice {
        ToolChoice::Auto => return Ok(None),
        ToolChoice::None => "none".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(name) => json!({"type": "function", "name": name}),
        other => {
            return Err(Error::unsupported("tool_choice", format!("{other:?} is unknown here")));
        }
    }))
}

/// Writes `instructions` and `input`. The system message that opens the conversation becomes the
/// instructions, any other one a message of the developer.
pub(super) fn write_prompt(
    wire: &Responses,
    prompt: &Prompt,
    keeps_images: bool,
    body: &mut Map<String, Value>,
) -> Result<()> {
    let Prompt::Chat(messages) = prompt else {
        return Err(Error::unsupported("prompt", "this protocol takes chat messages only"));
    };
    let mut messages = messages.as_slice();
    if let [first, rest @ ..] = messages
        && first.role == Role::System
        && let Some(text) = only_text(first)
        && !rest.is_empty()
    {
        body.insert("instructions".to_owned(), text.into());
        messages = rest;
    }
    if messages.is_empty() {
        return Err(Error::new(ErrorKind::InvalidRequest, "the prompt has no messages"));
    }
    let mut input = Vec::with_capacity(messages.len());
    for message in messages {
        match echo::items(message, wire.provider)? {
            Some(items) => input.extend(items),
            None => write_message(message, wire.provider, keeps_images, &mut input)?,
        }
    }
    body.insert("input".to_owned(), input.into());
    Ok(())
}

fn only_text(message: &Message) -> Option<String> {
    let is_text = message.parts.iter().all(|part| matches!(part, Part::Text(_)));
    is_text.then(|| message.text())
}

/// Text and images are one item; each tool call and each tool result is an item of its own.
fn write_message(
    message: &Message,
    provider: &str,
    keeps_images: bool,
    input: &mut Vec<Value>,
) -> Result<()> {
    let role = match message.role {
        Role::System => "developer",
        Role::User | Role::Assistant => message.role.as_str(),
        Role::Tool => "",
        other => return Err(Error::unsupported("prompt", format!("no word for {other:?}"))),
    };
    let mut content = Vec::new();
    let mut items = Vec::new();
    for part in &message.parts {
        match part {
            Part::Text(text) => content.push(json!({"type": "input_text", "text": text})),
            Part::Image { .. } if !keeps_images => {}
            Part::Image { media_type, data } if message.role == Role::User => {
                let url = format!("data:{media_type};base64,{}", STANDARD.encode(data));
                content.push(json!({"type": "input_image", "detail": "auto", "image_url": url}));
            }
            Part::Image { .. } => {
                return Err(Error::unsupported(
                    "prompt.image",
                    format!("a message of role {} takes no image", message.role.as_str()),
                ));
            }
            Part::ToolCall(call) => items.push(json!({"type": "function_call",
                "call_id": call.id, "name": call.name, "arguments": call.arguments})),
            // The protocol has no mark for a failed tool; the text says it.
            Part::ToolResult { call_id, content, .. } => items.push(json!({
                "type": "function_call_output", "call_id": call_id, "output": content})),
            // Reasoning is taken back only as the items that it came in.
            Part::Reasoning(_) => {}
            Part::Opaque { provider: owner, .. } if owner != provider => {}
            other => return Err(Error::unsupported("prompt", format!("no word for {other:?}"))),
        }
    }
    if message.role == Role::Tool && !content.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "a message of role tool holds tool results and nothing else",
        ));
    }
    if !content.is_empty() || items.is_empty() {
        let has_image = content.iter().any(|part| part["type"] == "input_image");
        let content = if has_image { content.into() } else { Value::from(message.text()) };
        input.push(json!({"role": role, "content": content}));
    }
    input.extend(items);
    Ok(())
}
