//! The body of a Chat Completions request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use weighbridge_core::{
    Dropped, Error, ErrorKind, Message, Part, Prompt, Request, RequestOption, Result, Role,
    ToolChoice,
};

use super::Chat;
use super::dialect::Speaker;

/// More tokens than any context holds.
const ALL_TOKENS: u32 = 1 << 20;

/// Writes the body; the fields of [`Request::extra`] come last and win.
pub(super) fn write(
    wire: &Chat,
    model: &str,
    request: &Request,
    dropped: &[Dropped],
) -> Result<Map<String, Value>> {
    let keeps = |option| dropped.iter().all(|d| d.option != option);
    let mut body = Map::with_capacity(12);
    let mut set = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    set("model", model.into());
    let keeps_images = keeps(RequestOption::ImageInput);
    set("messages", messages(wire, &request.prompt, keeps_images)?.into());

    let sampling = &request.sampling;
    let repetition = wire.dialect.repetition_field();
    let numbers = [
        ("temperature", sampling.temperature, RequestOption::Temperature),
        ("top_p", sampling.top_p, RequestOption::TopP),
        ("min_p", sampling.min_p, RequestOption::MinP),
        (repetition, sampling.repetition_penalty, RequestOption::RepetitionPenalty),
        ("frequency_penalty", sampling.frequency_penalty, RequestOption::FrequencyPenalty),
        ("presence_penalty", sampling.presence_penalty, RequestOption::PresencePenalty),
    ];
    for (name, value, option) in numbers {
        if let Some(value) = value
            && keeps(option)
        {
            set(name, value.into());
        }
    }
    if sampling.repetition_penalty.is_some()
        && keeps(RequestOption::RepetitionPenalty)
        && wire.dialect.server == Speaker::LlamaServer
    {
        // Its own default looks back at 64 tokens only.
        set("repeat_last_n", ALL_TOKENS.into());
    }
    if let Some(top_k) = sampling.top_k
        && keeps(RequestOption::TopK)
    {
        set("top_k", top_k.into());
    }
    if let Some(seed) = sampling.seed
        && keeps(RequestOption::Seed)
    {
        let limit = wire.dialect.seed_limit();
        if seed >= limit {
            let why = format!("`seed` must be below {limit} on this server");
            return Err(Error::new(ErrorKind::InvalidRequest, why).with("seed", seed));
        }
        set("seed", seed.into());
    }
    if !sampling.logit_bias.is_empty() && keeps(RequestOption::LogitBias) {
        let biases: Map<_, _> = sampling
            .logit_bias
            .iter()
            .map(|(token, bias)| (token.0.to_string(), json!(bias)))
            .collect();
        set("logit_bias", biases.into());
    }
    if !request.stop.is_empty() && keeps(RequestOption::Stop) {
        set("stop", request.stop.clone().into());
    }
    if let Some(max_tokens) = request.max_tokens
        && keeps(RequestOption::MaxTokens)
    {
        set(wire.dialect.max_tokens_field.as_str(), max_tokens.into());
    }
    if let Some(top) = request.logprobs
        && keeps(RequestOption::Logprobs)
    {
        set("logprobs", true.into());
        // llama.cpp's server takes 0 for none at all.
        let is_llama = wire.dialect.server == Speaker::LlamaServer;
        set("top_logprobs", if is_llama { top.max(1) } else { top }.into());
    }
    if !request.tools.is_empty() && keeps(RequestOption::Tools) {
        let tools = request.tools.iter().map(|tool| {
            json!({"type": "function", "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            }})
        });
        set("tools", tools.collect());
        if keeps(RequestOption::ToolChoice)
            && let Some(choice) = tool_choice(&request.tool_choice, wire.dialect.names_a_tool())?
        {
            set("tool_choice", choice);
        }
        if let Some(parallel) = request.parallel_tool_calls
            && keeps(RequestOption::ParallelToolCalls)
        {
            set("parallel_tool_calls", parallel.into());
        }
    }
    if request.tools.is_empty()
        && matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_))
    {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "`tool_choice` demands a tool and the request has none",
        ));
    }
    if let Some(constraint) = &request.constraint
        && keeps(RequestOption::Constraint)
    {
        let (name, value) = wire.dialect.constraint(constraint)?;
        set(name, value);
    }
    if let Some(reasoning) = request.reasoning
        && keeps(RequestOption::Reasoning)
    {
        let (name, value) = wire.dialect.reasoning(reasoning)?;
        set(name, value);
    }
    if wire.dialect.server == Speaker::OpenRouter {
        // Without it, the request also goes to vendors that ignore some of its options.
        set("provider", json!({"require_parameters": true}));
    }
    if wire.dialect.streams {
        set("stream", true.into());
        set("stream_options", json!({"include_usage": true}));
    }
    for (name, value) in request.extra.get(wire.provider).into_iter().flatten() {
        set(name, value.clone());
    }
    Ok(body)
}

fn tool_choice(choice: &ToolChoice, names_a_tool: bool) -> Result<Option<Value>> {
    Ok(Some(match choice {
        ToolChoice::Auto => return Ok(None),
        ToolChoice::None => "none".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(_) if !names_a_tool => {
            return Err(Error::unsupported("tool_choice", "this server takes no tool's name"));
        }
        ToolChoice::Named(name) => json!({"type": "function", "function": {"name": name}}),
        other => {
            return Err(Error::unsupported("tool_choice", format!("{other:?} is unknown here")));
        }
    }))
}

pub(super) fn messages(wire: &Chat, prompt: &Prompt, keeps_images: bool) -> Result<Vec<Value>> {
    let Prompt::Chat(messages) = prompt else {
        return Err(Error::unsupported("prompt", "this protocol takes chat messages only"));
    };
    if messages.is_empty() {
        return Err(Error::new(ErrorKind::InvalidRequest, "the prompt has no messages"));
    }
    let mut written = Vec::with_capacity(messages.len());
    for message in messages {
        write_message(wire, message, keeps_images, &mut written)?;
    }
    Ok(written)
}

/// One of our messages is one of theirs, except that each tool result is a message of its own.
fn write_message(
    wire: &Chat,
    message: &Message,
    keeps_images: bool,
    written: &mut Vec<Value>,
) -> Result<()> {
    let is_image = |part: &Part| matches!(part, Part::Image { .. });
    let has_image = keeps_images && message.parts.iter().any(is_image);
    let mut content = Vec::new();
    let mut has_content = false;
    let mut calls = Vec::new();
    let mut echoed = Map::new();
    let mut n_results = 0;
    for part in &message.parts {
        match part {
            Part::Text(text) => {
                has_content = true;
                if has_image {
                    content.push(json!({"type": "text", "text": text}));
                }
            }
            Part::Image { .. } if !keeps_images => {}
            Part::Image { media_type, data } if message.role == Role::User => {
                let url = format!("data:{media_type};base64,{}", STANDARD.encode(data));
                has_content = true;
                content.push(json!({"type": "image_url", "image_url": {"url": url}}));
            }
            Part::Image { .. } => {
                return Err(Error::unsupported(
                    "prompt.image",
                    format!("a message of role {} takes no image", message.role.as_str()),
                ));
            }
            Part::ToolCall(call) => calls.push(json!({
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })),
            // The protocol has no mark for a failed tool; the text says it.
            Part::ToolResult { call_id, content, .. } => {
                n_results += 1;
                written.push(json!({"role": "tool", "tool_call_id": call_id, "content": content}));
            }
            // Servers take no reasoning back, except in fields of their own.
            Part::Reasoning(_) => {}
            Part::Opaque { provider, data } => {
                if provider == wire.provider
                    && let Some(fields) = data.as_object()
                {
                    echoed.extend(fields.clone());
                }
            }
            other => {
                return Err(Error::unsupported("prompt", format!("no word for {other:?}")));
            }
        }
    }
    if n_results > 0 && !has_content && calls.is_empty() {
        return Ok(());
    }
    if message.role == Role::Tool {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "a message of role tool holds tool results and nothing else",
        ));
    }
    let content = if has_image {
        content.into()
    } else if !has_content && !calls.is_empty() {
        Value::Null
    } else {
        message.text().into()
    };
    let mut fields = json!({"role": message.role.as_str(), "content": content});
    if let Some(fields) = fields.as_object_mut() {
        if !calls.is_empty() {
            fields.insert("tool_calls".to_owned(), calls.into());
        }
        fields.extend(echoed);
    }
    written.push(fields);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use crate::vendor::Vendor;
    use crate::wire::Wire;
    use std::collections::BTreeMap;
    use weighbridge_core::{Constraint, Sampling, TokenId, Tool, ToolCall};

    fn wire(options: Value) -> Chat {
        let options =
            Options::read(Vendor::OpenAiCompatible, options.as_object().unwrap()).unwrap();
        Chat::new("openai-compatible", Speaker::Compatible, &options)
    }

    fn body(options: Value, request: &Request) -> Result<String> {
        let wire = wire(options);
        let dropped = wire.capabilities("m").check(request)?;
        let body = wire.body("m", request, &dropped)?;
        Ok(serde_json::to_string_pretty(&body).unwrap())
    }

    #[test]
    fn a_plain_question() {
        insta::assert_snapshot!(body(json!({}), &Request::user("Hi").with_max_tokens(5)).unwrap(), @r#"
        {
          "model": "m",
          "messages": [
            {
              "role": "user",
              "content": "Hi"
            }
          ],
          "temperature": 0.0,
          "max_tokens": 5,
          "stream": true,
          "stream_options": {
            "include_usage": true
          }
        }
        "#);
    }

    #[test]
    fn every_option_has_its_field() {
        let mut sampling = Sampling::greedy();
        sampling.temperature = Some(0.5);
        sampling.top_p = Some(0.9);
        sampling.frequency_penalty = Some(0.25);
        sampling.presence_penalty = Some(-0.25);
        sampling.logit_bias = vec![(TokenId(7), -100.0)];
        sampling.seed = Some(3);
        let mut request = Request::user("Hi")
            .with_sampling(sampling)
            .with_max_tokens(5)
            .with_stop("\n")
            .with_logprobs(2)
            .with_constraint(Constraint::JsonSchema(json!({"type": "object"})));
        request.extra = BTreeMap::from([
            ("openai-compatible".to_owned(), Map::from_iter([("top_k".to_owned(), json!(40))])),
            ("anthropic".to_owned(), Map::from_iter([("x".to_owned(), json!(1))])),
        ]);
        let options = json!({"stream": false, "json_schema": true,
            "max_tokens_field": "max_completion_tokens"});
        insta::assert_snapshot!(body(options, &request).unwrap().replace("\n  ", " "), @r#"
        { "model": "m", "messages": [   {     "role": "user",     "content": "Hi"   } ], "temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.25, "presence_penalty": -0.25, "seed": 3, "logit_bias": {   "7": -100.0 }, "stop": [   "\n" ], "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 2, "response_format": {   "type": "json_schema",   "json_schema": {     "name": "answer",     "strict": true,     "schema": {       "type": "object"     }   } }, "top_k": 40
        }
        "#);
    }

    #[test]
    fn tools_and_their_results() {
        let call = ToolCall::new("c1", "weather", "{\"city\":\"Bonn\"}");
        let mut request = Request::new(Prompt::Chat(vec![
            Message::system("Be brief."),
            Message::user("Weather?"),
            Message::new(
                Role::Assistant,
                vec![
                    Part::Reasoning("hm".into()),
                    Part::Opaque {
                        provider: "openai-compatible".into(),
                        data: json!({"reasoning_content": "hm"}),
                    },
                    Part::Opaque { provider: "anthropic".into(), data: json!({"x": 1}) },
                    Part::ToolCall(call),
                ],
            ),
            Message::new(
                Role::Tool,
                vec![Part::ToolResult {
                    call_id: "c1".into(),
                    content: "rain".into(),
                    is_error: false,
                }],
            ),
        ]))
        .with_tools(vec![Tool::new("weather", "Tells it.", json!({"type": "object"}))]);
        request.tool_choice = ToolChoice::Named("weather".into());
        request.parallel_tool_calls = Some(false);
        let wire = wire(json!({}));
        let body = wire.body("m", &request, &[]).unwrap();
        insta::assert_snapshot!(
            format!("{}\n{}\n{}", body["messages"], body["tools"], body["tool_choice"]), @r#"
        [{"role":"system","content":"Be brief."},{"role":"user","content":"Weather?"},{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Bonn\"}"}}],"reasoning_content":"hm"},{"role":"tool","tool_call_id":"c1","content":"rain"}]
        [{"type":"function","function":{"name":"weather","description":"Tells it.","parameters":{"type":"object"}}}]
        {"type":"function","function":{"name":"weather"}}
        "#);
        assert_eq!(body["parallel_tool_calls"], false);
    }

    #[test]
    fn images_travel_as_data_urls() {
        let request = Request::new(Prompt::Chat(vec![Message::new(
            Role::User,
            vec![
                Part::Text("What?".into()),
                Part::Image { media_type: "image/png".into(), data: [1, 2, 3].into() },
            ],
        )]));
        let shown = body(json!({"image_input": true}), &request).unwrap();
        assert!(shown.contains("data:image/png;base64,AQID"), "{shown}");
        let error = body(json!({}), &request).unwrap_err();
        assert_eq!(error.context("option"), Some("prompt.image"));
    }

    #[test]
    fn what_the_protocol_has_no_words_for_is_refused_and_a_wish_is_left_out() {
        let mut request = Request::user("Hi");
        request.sampling.top_k = Some(5);
        request.prompt = Prompt::Text("x".into());
        let error = body(json!({}), &request).unwrap_err();
        assert_eq!(error.context("option"), Some("top_k,prompt.text"));

        let mut request = Request::user("Hi");
        request.constraint = Some(Constraint::JsonSchema(json!({})));
        request.wishes = vec![RequestOption::Constraint];
        assert!(!body(json!({}), &request).unwrap().contains("response_format"));

        let mut request = Request::user("Hi");
        request.sampling.seed = Some(u64::MAX);
        assert_eq!(body(json!({}), &request).unwrap_err().kind(), ErrorKind::InvalidRequest);
        let empty = Request::new(Prompt::Chat(Vec::new()));
        assert_eq!(body(json!({}), &empty).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
}
