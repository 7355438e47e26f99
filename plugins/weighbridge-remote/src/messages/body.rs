//! The body of a Messages request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use weighbridge_core::{
    Constraint, Dropped, Error, ErrorKind, Message, Part, Prompt, Reasoning, Request,
    RequestOption, Result, Role, ToolChoice,
};

use super::{CONTENT, DEFAULT_MAX_TOKENS, Messages, PROVIDER, is_before};
use crate::prompt;
use crate::wire::add_verbatim;

const IMAGE_TYPES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// Writes the body; the fields of [`Request::extra`] come last and win.
pub(super) fn write(
    wire: &Messages,
    model: &str,
    request: &Request,
    dropped: &[Dropped],
) -> Result<Map<String, Value>> {
    let keeps = |option| dropped.iter().all(|d| d.option != option);
    let reasoning = request.reasoning.filter(|_| keeps(RequestOption::Reasoning));
    let mut body = conversation(model, &request.prompt, keeps(RequestOption::ImageInput))?;
    let mut set = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    set("max_tokens", max_tokens(request, reasoning).into());

    let sampling = &request.sampling;
    let numbers = [
        ("temperature", sampling.temperature.map(Value::from), RequestOption::Temperature),
        ("top_p", sampling.top_p.map(Value::from), RequestOption::TopP),
        ("top_k", sampling.top_k.map(Value::from), RequestOption::TopK),
    ];
    for (name, value, option) in numbers {
        if let Some(value) = value.filter(|_| keeps(option)) {
            set(name, value);
        }
    }
    if !request.stop.is_empty() && keeps(RequestOption::Stop) {
        set("stop_sequences", request.stop.clone().into());
    }
    prompt::check_tool_choice(request)?;
    if !request.tools.is_empty() && keeps(RequestOption::Tools) {
        let tools = request.tools.iter().map(|tool| {
            let mut fields = json!({"name": tool.name, "input_schema": tool.parameters});
            if !tool.description.is_empty() {
                fields["description"] = tool.description.clone().into();
            }
            fields
        });
        set("tools", tools.collect());
        let parallel =
            request.parallel_tool_calls.filter(|_| keeps(RequestOption::ParallelToolCalls));
        if keeps(RequestOption::ToolChoice)
            && let Some(choice) = tool_choice(&request.tool_choice, parallel)?
        {
            set("tool_choice", choice);
        }
    }
    let mut output = Map::new();
    if let Some(reasoning) = reasoning {
        let (thinking, effort) = thinking(model, reasoning)?;
        set("thinking", thinking);
        if let Some(effort) = effort {
            output.insert("effort".to_owned(), effort.into());
        }
    }
    if let Some(constraint) = &request.constraint
        && keeps(RequestOption::Constraint)
    {
        let Constraint::JsonSchema(schema) = constraint else {
            return Err(Error::unsupported("constraint", "this protocol takes JSON Schema only"));
        };
        output.insert("format".to_owned(), json!({"type": "json_schema", "schema": schema}));
    }
    if !output.is_empty() {
        set("output_config", output.into());
    }
    if wire.streams {
        set("stream", true.into());
    }
    if let Some(fields) = request.extra.get(PROVIDER) {
        add_verbatim(&mut body, fields);
    }
    Ok(body)
}

/// The body of a call that counts the tokens of a prompt.
pub(super) fn count(model: &str, prompt: &Prompt) -> Result<Map<String, Value>> {
    conversation(model, prompt, true)
}

/// The request's limit, or the default one on top of what may be thought.
fn max_tokens(request: &Request, reasoning: Option<Reasoning>) -> u32 {
    request.max_tokens.unwrap_or(match reasoning {
        Some(Reasoning::Budget(n)) => n.saturating_add(DEFAULT_MAX_TOKENS),
        _ => DEFAULT_MAX_TOKENS,
    })
}

fn tool_choice(choice: &ToolChoice, parallel: Option<bool>) -> Result<Option<Value>> {
    let mut written = match choice {
        ToolChoice::Auto if parallel.is_none() => return Ok(None),
        ToolChoice::None => return Ok(Some(json!({"type": "none"}))),
        ToolChoice::Auto => json!({"type": "auto"}),
        ToolChoice::Required => json!({"type": "any"}),
        ToolChoice::Named(name) => json!({"type": "tool", "name": name}),
        other => {
            return Err(Error::unsupported("tool_choice", format!("{other:?} is unknown here")));
        }
    };
    if let Some(parallel) = parallel {
        written["disable_parallel_tool_use"] = (!parallel).into();
    }
    Ok(Some(written))
}

/// The fields `thinking` and `output_config.effort`. Models before 4.6 know budgets only, models
/// from 4.7 on know levels only; what a model without a version in its name knows, the server says.
fn thinking(model: &str, reasoning: Reasoning) -> Result<(Value, Option<&'static str>)> {
    let unsupported = |why: &str| Err(Error::unsupported("reasoning", why).with("model", model));
    let effort = match reasoning {
        Reasoning::Off => return Ok((json!({"type": "disabled"}), None)),
        Reasoning::Budget(n) => {
            if is_before(model, (4, 7)) == Some(false) {
                return unsupported(
                    "this model takes no token budget for its reasoning; ask for low, medium or \
                     high",
                );
            }
            return Ok((json!({"type": "enabled", "budget_tokens": n}), None));
        }
        Reasoning::Low => "low",
        Reasoning::Medium => "medium",
        Reasoning::High => "high",
        other => return unsupported(&format!("{other:?} is unknown here")),
    };
    if is_before(model, (4, 6)) == Some(true) {
        return unsupported("this model takes a token budget for its reasoning and no level");
    }
    let mut thinking = json!({"type": "adaptive"});
    // These models show nothing of their reasoning unless asked.
    if is_before(model, (4, 7)) == Some(false) {
        thinking["display"] = "summarized".into();
    }
    Ok((thinking, Some(effort)))
}

/// The fields `model`, `system` and `messages`.
fn conversation(model: &str, prompt: &Prompt, keeps_images: bool) -> Result<Map<String, Value>> {
    let (system, rest) = prompt::split_system(prompt::messages(prompt)?)?;
    let mut fields = Map::new();
    fields.insert("model".to_owned(), model.into());
    if !system.is_empty() {
        fields.insert("system".to_owned(), system.into_iter().map(text).collect());
    }
    let messages = rest.iter().map(|message| write_message(model, message, keeps_images));
    fields.insert("messages".to_owned(), messages.collect::<Result<Vec<_>>>()?.into());
    Ok(fields)
}

fn write_message(model: &str, message: &Message, keeps_images: bool) -> Result<Value> {
    let role = match message.role {
        Role::System => {
            if is_before(model, (4, 8)) == Some(true) {
                return Err(Error::unsupported(
                    "prompt.system",
                    "this model takes system messages at the begin of a conversation only",
                )
                .with("model", model));
            }
            "system"
        }
        Role::Assistant => "assistant",
        // Results of tools are spoken by the user.
        _ => "user",
    };
    let content = match prompt::echo(message, PROVIDER, CONTENT, said)? {
        Some(blocks) => blocks,
        None if message.role == Role::System => {
            prompt::system_texts(message)?.into_iter().map(text).collect()
        }
        None => blocks(message, keeps_images)?,
    };
    Ok(json!({"role": role, "content": content}))
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn blocks(message: &Message, keeps_images: bool) -> Result<Vec<Value>> {
    let mut blocks = Vec::new();
    for part in &message.parts {
        if message.role == Role::Tool && !matches!(part, Part::ToolResult { .. }) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "a message of role tool holds tool results and nothing else",
            ));
        }
        match part {
            Part::Text(said) => blocks.push(text(said)),
            Part::Image { .. } if !keeps_images => {}
            Part::Image { media_type, data } => {
                blocks.push(image(message.role, media_type, data)?);
            }
            Part::ToolCall(call) => blocks.push(json!({
                "type": "tool_use",
                "id": call.id,
                "name": call.name,
                "input": prompt::arguments(call)?,
            })),
            Part::ToolResult { call_id, content, is_error } => {
                let mut block =
                    json!({"type": "tool_result", "tool_use_id": call_id, "content": content});
                if *is_error {
                    block["is_error"] = true.into();
                }
                blocks.push(block);
            }
            // The vendor takes reasoning back with its signature only, and that is opaque data;
            // the opaque data of another provider is not for it.
            Part::Reasoning(_) | Part::Opaque { .. } => {}
            other => {
                return Err(Error::unsupported("prompt", format!("no word for {other:?}")));
            }
        }
    }
    Ok(blocks)
}

fn image(role: Role, media_type: &str, data: &[u8]) -> Result<Value> {
    if role != Role::User {
        let why = format!("a message of role {} takes no image", role.as_str());
        return Err(Error::unsupported("prompt.image", why));
    }
    if !IMAGE_TYPES.contains(&media_type) {
        let why = format!("`{media_type}` is none of {}", IMAGE_TYPES.join(", "));
        return Err(Error::unsupported("prompt.image", why));
    }
    let source = json!({"type": "base64", "media_type": media_type, "data": STANDARD.encode(data)});
    Ok(json!({"type": "image", "source": source}))
}

/// The text of a turn's blocks, and its calls with their arguments.
fn said(blocks: &[Value]) -> (String, Vec<(String, Value)>) {
    let of_type = |name: &'static str| blocks.iter().filter(move |block| block["type"] == name);
    let text = of_type("text").filter_map(|block| block["text"].as_str()).collect();
    let calls = of_type("tool_use").map(|block| {
        (block["name"].as_str().unwrap_or_default().to_owned(), block["input"].clone())
    });
    (text, calls.collect())
}

#[cfg(test)]
mod tests;
