//! What the protocols that write conversations in blocks have in common.

use serde_json::{Map, Value};
use weighbridge_core::{
    Error, ErrorKind, Message, Part, Prompt, Request, Result, Role, ToolCall, ToolChoice,
};

/// The messages of a prompt.
///
/// # Errors
/// `Unsupported` for a prompt that is none, `InvalidRequest` for an empty one.
pub(crate) fn messages(prompt: &Prompt) -> Result<&[Message]> {
    match prompt {
        Prompt::Chat(messages) if messages.is_empty() => {
            Err(Error::new(ErrorKind::InvalidRequest, "the prompt has no messages"))
        }
        Prompt::Chat(messages) => Ok(messages),
        _ => Err(Error::unsupported("prompt", "this protocol takes chat messages only")),
    }
}

/// The texts of the system messages that a conversation begins with, and the messages after them.
///
/// # Errors
/// `InvalidRequest` where nothing follows, or a system message holds more than text.
pub(crate) fn split_system(messages: &[Message]) -> Result<(Vec<&str>, &[Message])> {
    let n_system = messages.iter().take_while(|m| m.role == Role::System).count();
    let (system, rest) = messages.split_at(n_system);
    if rest.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "the prompt has system messages only; this protocol needs one of the user",
        ));
    }
    let mut texts = Vec::new();
    for message in system {
        texts.extend(system_texts(message)?);
    }
    Ok((texts, rest))
}

/// The texts of one system message.
///
/// # Errors
/// `InvalidRequest` if it holds more than text.
pub(crate) fn system_texts(message: &Message) -> Result<Vec<&str>> {
    let texts = message.parts.iter().map(|part| match part {
        Part::Text(text) => Ok(text.as_str()),
        _ => Err(Error::new(ErrorKind::InvalidRequest, "a system message holds text only")),
    });
    texts.collect()
}

/// The arguments of a call as the object that they have to be.
///
/// # Errors
/// `InvalidRequest` naming the call.
pub(crate) fn arguments(call: &ToolCall) -> Result<Map<String, Value>> {
    if call.arguments.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(&call.arguments).map_err(|error| {
        Error::new(
            ErrorKind::InvalidRequest,
            "the arguments of a tool call are no JSON object, which is all this protocol can \
             carry back; leave the turn out of the conversation",
        )
        .with("call_id", &call.id)
        .with("tool", &call.name)
        .with_source(error)
    })
}

/// Refuses a choice that demands a tool where there is none.
pub(crate) fn check_tool_choice(request: &Request) -> Result<()> {
    let demands = matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
    if demands && request.tools.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "`tool_choice` demands a tool and the request has none",
        ));
    }
    Ok(())
}

/// The blocks of a turn exactly as the vendor sent them, from the field `name` of the opaque data
/// that the turn carries; `None` if it carries none of this provider.
///
/// # Errors
/// `InvalidRequest` where they do not say what the message says: a signature holds for the turn it
/// was made for and for no other. `read` takes text and calls out of the blocks.
pub(crate) fn echo(
    message: &Message,
    provider: &str,
    name: &str,
    read: impl Fn(&[Value]) -> (String, Vec<(String, Value)>),
) -> Result<Option<Vec<Value>>> {
    let mut blocks: Option<Vec<Value>> = None;
    let mut calls = Vec::new();
    for part in &message.parts {
        match part {
            Part::Opaque { provider: owner, data } if owner == provider => {
                let kept = data[name].as_array().ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidRequest,
                        format!("opaque data of `{provider}` has no list `{name}`"),
                    )
                })?;
                blocks.get_or_insert_default().extend(kept.iter().cloned());
            }
            Part::ToolCall(call) => calls.push(call),
            _ => {}
        }
    }
    let Some(blocks) = blocks else { return Ok(None) };
    let mut said = Vec::new();
    for call in calls {
        said.push((call.name.clone(), Value::Object(arguments(call)?)));
    }
    if read(&blocks) != (message.text(), said) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "a turn was changed after it was made: its text or calls are not those of its opaque \
             data; leave the turn as it was, or take the opaque part out of it",
        )
        .with("provider", provider));
    }
    Ok(Some(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn system_messages_are_taken_off_the_front_only() {
        let messages =
            [Message::system("a"), Message::system("b"), Message::user("c"), Message::system("d")];
        let (system, rest) = split_system(&messages).unwrap();
        assert_eq!((system, rest.len()), (vec!["a", "b"], 2));
        assert_eq!(split_system(&messages[..2]).unwrap_err().kind(), ErrorKind::InvalidRequest);
        let image = Part::Image { media_type: "image/png".into(), data: [1].into() };
        let pictured = Message::new(Role::System, vec![image]);
        assert!(split_system(&[pictured, Message::user("x")]).is_err());
    }

    #[test]
    fn arguments_are_an_object_or_an_error_that_names_the_call() {
        assert_eq!(arguments(&ToolCall::new("i", "f", " ")).unwrap(), Map::new());
        assert_eq!(arguments(&ToolCall::new("i", "f", "{\"a\":1}")).unwrap()["a"], 1);
        for bad in ["{\"a\":", "[1]", "3"] {
            let error = arguments(&ToolCall::new("i", "f", bad)).unwrap_err();
            assert_eq!(error.context("call_id"), Some("i"), "{bad}");
        }
    }

    #[test]
    fn an_echo_is_taken_from_its_own_provider_and_from_an_unchanged_turn() {
        let read = |blocks: &[Value]| {
            (blocks.iter().filter_map(|b| b["text"].as_str()).collect(), Vec::new())
        };
        let message = |provider: &str, text: &str| {
            let data = json!({"blocks": [{"text": "a", "sign": 1}]});
            let opaque = Part::Opaque { provider: provider.into(), data };
            Message::new(Role::Assistant, vec![opaque, Part::Text(text.into())])
        };
        let kept = echo(&message("p", "a"), "p", "blocks", read).unwrap().unwrap();
        assert_eq!(kept, [json!({"text": "a", "sign": 1})]);
        assert_eq!(echo(&message("q", "a"), "p", "blocks", read).unwrap(), None);
        for (message, name) in [(message("p", "changed"), "blocks"), (message("p", "a"), "other")] {
            let error = echo(&message, "p", name, read).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        }
    }
}
