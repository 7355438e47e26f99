//! What of an answer has to be sent back with its turn, and the turn written from it.
//!
//! Nothing is stored at the vendor, so a turn is continued from its items as they came: encrypted
//! reasoning is bound to the items around it, by id and order. They travel as
//! `{"output": [item, …]}` in an opaque part, which stands for the whole turn.

use serde_json::{Value, json};
use weighbridge_core::{Error, ErrorKind, Message, Part, Prompt, Result};

/// The opaque data of an answer; `None` where its text and tool calls say all of it.
pub(super) fn of_answer(items: &[Value]) -> Option<Value> {
    let says_all = |item: &Value| match item["type"].as_str() {
        Some("message") => item["phase"].is_null(),
        Some("function_call") => item["namespace"].is_null() && item["caller"].is_null(),
        // Without its encrypted whole, reasoning cannot be sent back.
        Some("reasoning") => item["encrypted_content"].is_null(),
        _ => false,
    };
    (!items.iter().all(says_all)).then(|| json!({"output": items}))
}

/// Whether a conversation holds items of this provider.
pub(super) fn is_in(prompt: &Prompt, provider: &str) -> bool {
    let Prompt::Chat(messages) = prompt else { return false };
    messages.iter().any(|message| output(message, provider).is_some())
}

/// The items of a turn that this provider made; `None` if it made none.
///
/// # Errors
/// `InvalidRequest` if text or calls of the turn are not those of its items.
pub(super) fn items(message: &Message, provider: &str) -> Result<Option<Vec<Value>>> {
    let Some(output) = output(message, provider) else { return Ok(None) };
    let text: String = output.iter().filter(|item| !is_commentary(item)).map(text_of).collect();
    let is_call = |item: &&Value| item["type"] == "function_call";
    let calls = output.iter().filter(is_call).filter_map(|item| item["call_id"].as_str());
    let told = message.parts.iter().filter_map(|part| match part {
        Part::ToolCall(call) => Some(call.id.as_str()),
        _ => None,
    });
    if text != message.text() || !calls.eq(told) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "an assistant message was changed after `{provider}` made it; take its opaque part \
                 out too, or leave the message as it came"
            ),
        ));
    }
    let is_encrypted = |item: &Value| item["encrypted_content"].is_string();
    if output.iter().any(is_encrypted) {
        let keeps = |item: &&Value| item["type"] != "reasoning" || is_encrypted(item);
        return Ok(Some(output.iter().filter(keeps).cloned().collect()));
    }
    // Ids of items that were not stored and have no encrypted reasoning lead nowhere.
    let items = output.iter().filter(|item| item["type"] != "reasoning").map(|item| {
        let mut item = item.clone();
        if item["type"] == "message" {
            let mut message = json!({"role": "assistant", "content": text_of(&item)});
            if !item["phase"].is_null() {
                message["phase"] = item["phase"].take();
            }
            return message;
        }
        if let Some(fields) = item.as_object_mut() {
            fields.remove("id");
        }
        item
    });
    Ok(Some(items.collect()))
}

/// Text and refusals of a message item.
pub(super) fn text_of(item: &Value) -> String {
    let parts = item["content"].as_array().into_iter().flatten();
    if item["type"] != "message" {
        return String::new();
    }
    parts.filter_map(|part| part["text"].as_str().or_else(|| part["refusal"].as_str())).collect()
}

/// Whether a message is the model's commentary on its way to the answer.
pub(super) fn is_commentary(item: &Value) -> bool {
    item["phase"] == "commentary"
}

fn output<'a>(message: &'a Message, provider: &str) -> Option<&'a Vec<Value>> {
    message.parts.iter().find_map(|part| match part {
        Part::Opaque { provider: owner, data } if owner == provider => data["output"].as_array(),
        _ => None,
    })
}
