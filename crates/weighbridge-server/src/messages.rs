//! Chat messages of clients.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use weighbridge_core::{Message, Part, Role, ToolCall};

use crate::failure::Failure;

/// Fields of a message that are read, or that clients echo and that carry nothing.
const KNOWN: [&str; 8] = [
    "role",
    "content",
    "tool_calls",
    "tool_call_id",
    "refusal",
    "reasoning_content",
    "annotations",
    "audio",
];

/// Reads the `messages` of a request.
///
/// # Errors
/// A 400 that names the message by its position.
pub(crate) fn read(list: Value) -> Result<Vec<Message>, Failure> {
    let Value::Array(list) = list else { return Err(bad("messages", "takes a list")) };
    if list.is_empty() {
        return Err(bad("messages", "is empty"));
    }
    list.into_iter()
        .enumerate()
        .map(|(i, message)| {
            let at = format!("messages[{i}]");
            match message {
                Value::Object(fields) => one(&at, &fields),
                _ => Err(bad(&at, "takes an object")),
            }
        })
        .collect()
}

fn one(at: &str, fields: &Map<String, Value>) -> Result<Message, Failure> {
    let left =
        fields.iter().find(|(name, value)| !value.is_null() && !KNOWN.contains(&name.as_str()));
    if let Some((name, _)) = left {
        let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(bad(&format!("{at}.{name}"), "is not understood, and could change the answer"));
    }
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => return Err(bad(&format!("{at}.role"), "takes system, user, assistant or tool")),
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    let content = content(&format!("{at}.content"), role, fields.get("content"))?;
    if role == Role::Tool {
        let call_id =
            text("tool_call_id").ok_or_else(|| bad(&format!("{at}.tool_call_id"), "is missing"))?;
        let result = Part::ToolResult {
            call_id: call_id.to_owned(),
            content: Message::new(role, content).text(),
            is_error: false,
        };
        return Ok(Message::new(role, vec![result]));
    }
    let mut parts = Vec::new();
    if let Some(reasoning) = text("reasoning_content") {
        parts.push(Part::Reasoning(reasoning.to_owned()));
    }
    parts.extend(content);
    if let Some(refusal) = text("refusal") {
        parts.push(Part::Text(refusal.to_owned()));
    }
    if let Some(calls) = fields.get("tool_calls").filter(|calls| !calls.is_null()) {
        let at = format!("{at}.tool_calls");
        let calls = calls
            .as_array()
            .filter(|_| role == Role::Assistant)
            .ok_or_else(|| bad(&at, "takes a list, in a message of the assistant"))?;
        for call in calls {
            let function = &call["function"];
            let (Some(id), Some(name), Some(arguments)) =
                (call["id"].as_str(), function["name"].as_str(), function["arguments"].as_str())
            else {
                return Err(bad(&at, "takes calls with id, function name and arguments"));
            };
            parts.push(Part::ToolCall(ToolCall::new(id, name, arguments)));
        }
    }
    if parts.is_empty() && role == Role::Assistant && !fields.contains_key("content") {
        return Err(bad(&format!("{at}.content"), "is missing"));
    }
    Ok(Message::new(role, parts))
}

fn content(at: &str, role: Role, content: Option<&Value>) -> Result<Vec<Part>, Failure> {
    match content {
        Some(Value::String(text)) => Ok(vec![Part::Text(text.clone())]),
        Some(Value::Array(parts)) => parts.iter().map(|p| part(at, role, p)).collect(),
        Some(Value::Null) | None if role == Role::Assistant => Ok(Vec::new()),
        _ => Err(bad(at, "takes a text or a list of parts")),
    }
}

fn part(at: &str, role: Role, part: &Value) -> Result<Part, Failure> {
    match part["type"].as_str() {
        Some("text") => match part["text"].as_str() {
            Some(text) => Ok(Part::Text(text.to_owned())),
            None => Err(bad(at, "takes a text in a part of type text")),
        },
        Some("refusal") if role == Role::Assistant => {
            Ok(Part::Text(part["refusal"].as_str().unwrap_or_default().to_owned()))
        }
        Some("image_url") if role == Role::User => image(at, &part["image_url"]),
        _ => Err(bad(at, "takes parts of type text, and of type image_url from the user")),
    }
}

fn image(at: &str, image: &Value) -> Result<Part, Failure> {
    // A URL of a request is never fetched: it would let any client reach through this server.
    let data = image["url"].as_str().and_then(|url| {
        let (media_type, data) = url.strip_prefix("data:")?.split_once(";base64,")?;
        let data = STANDARD.decode(data).ok()?;
        media_type
            .starts_with("image/")
            .then(|| Part::Image { media_type: media_type.to_owned(), data: data.into() })
    });
    match image["detail"].as_str() {
        None | Some("auto") => {
            data.ok_or_else(|| bad(at, "takes images as data:image/…;base64 URLs only"))
        }
        Some(_) => Err(bad(at, "takes images with `detail` auto only")),
    }
}

fn bad(at: &str, why: &str) -> Failure {
    Failure::field(at, format!("`{at}` {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_conversation_with_tools_and_images_is_read() {
        let messages = read(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AQID"}}]},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [],
                "tool_calls": [{"id": "c", "type": "function",
                    "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "rain"},
        ]))
        .unwrap();
        assert_eq!(messages[0], Message::system("Be brief."));
        assert!(matches!(&messages[1].parts[1], Part::Image { data, .. } if **data == [1, 2, 3]));
        assert_eq!(messages[2].parts, [Part::ToolCall(ToolCall::new("c", "f", "{}"))]);
        assert!(
            matches!(&messages[3].parts[0], Part::ToolResult { content, .. } if content == "rain")
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_position() {
        for (message, param) in [
            (json!(5), "messages[0]"),
            (json!({"content": "x"}), "messages[0].role"),
            (json!({"role": "root", "content": "x"}), "messages[0].role"),
            (json!({"role": "user"}), "messages[0].content"),
            (json!({"role": "user", "content": 5}), "messages[0].content"),
            (json!({"role": "user", "content": "x", "name": "n"}), "messages[0].name"),
            (json!({"role": "tool", "content": "x"}), "messages[0].tool_call_id"),
            (json!({"role": "assistant"}), "messages[0].content"),
            (json!({"role": "user", "content": "x", "tool_calls": []}), "messages[0].tool_calls"),
            (json!({"role": "assistant", "tool_calls": [{}]}), "messages[0].tool_calls"),
            (json!({"role": "user", "content": [{"type": "file"}]}), "messages[0].content"),
            (
                json!({"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}),
                "messages[0].content",
            ),
        ] {
            let failure = read(json!([message])).unwrap_err();
            assert_eq!(failure.body()["error"]["param"], param, "{message}");
        }
        assert!(read(json!([])).is_err());
        assert!(read(json!({})).is_err());
    }
}
