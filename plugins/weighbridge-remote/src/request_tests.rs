//! What each vendor is asked, by feature. A vendor that cannot be asked shows why.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weighbridge_core::{
    Constraint, EmbedRequest, Message, Part, Prompt, Reasoning, Request, Role, Sampling, TokenId,
    Tool, ToolCall, ToolChoice,
};

use crate::options::Options;
use crate::vendor::Vendor;
use crate::wire::Wire;

const VENDORS: [(&str, Vendor, &str); 9] = [
    ("openai", Vendor::OpenAi, "responses"),
    ("openai chat", Vendor::OpenAi, "chat"),
    ("azure-openai", Vendor::AzureOpenAi, "responses"),
    ("openai-compatible", Vendor::OpenAiCompatible, ""),
    ("ollama", Vendor::Ollama, ""),
    ("lm-studio", Vendor::LmStudio, ""),
    ("vllm", Vendor::Vllm, ""),
    ("llama-server", Vendor::LlamaServer, ""),
    ("openrouter", Vendor::OpenRouter, ""),
];

fn wires() -> impl Iterator<Item = (&'static str, Box<dyn Wire>)> {
    VENDORS.into_iter().map(|(name, vendor, api)| {
        let options = match api {
            "" => Map::new(),
            api => Map::from_iter([("api".to_owned(), json!(api))]),
        };
        (name, vendor.wire(&Options::read(vendor, &options).unwrap()))
    })
}

fn asked(wire: &dyn Wire, request: &Request) -> Value {
    let capabilities = wire.capabilities("m");
    match capabilities.check(request).and_then(|dropped| wire.body("m", request, &dropped)) {
        Ok(body) => body.into(),
        Err(error) => error.to_string().into(),
    }
}

/// The same request to everybody.
fn to_all(request: &Request) -> BTreeMap<&'static str, Value> {
    wires().map(|(name, wire)| (name, asked(&*wire, request))).collect()
}

#[test]
fn a_plain_question() {
    let conversation = Prompt::Chat(vec![
        Message::system("Be brief."),
        Message::user("Hi"),
        Message::assistant("Hello."),
        Message::system("Be briefer."),
        Message::user("Hi again"),
    ]);
    let request = Request::new(conversation).with_sampling(Sampling::greedy()).with_max_tokens(5);
    insta::assert_json_snapshot!("plain", to_all(&request));
}

#[test]
fn every_sampling_option_by_itself() {
    type Set = fn(&mut Request);
    let mut table: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
    let set: [(&str, Set); 11] = [
        ("top_k", |r| r.sampling.top_k = Some(40)),
        ("top_p", |r| r.sampling.top_p = Some(0.5)),
        ("min_p", |r| r.sampling.min_p = Some(0.25)),
        ("repetition_penalty", |r| r.sampling.repetition_penalty = Some(1.5)),
        ("frequency_penalty", |r| r.sampling.frequency_penalty = Some(0.5)),
        ("presence_penalty", |r| r.sampling.presence_penalty = Some(0.5)),
        ("logit_bias", |r| r.sampling.logit_bias = vec![(TokenId(7), -100.0)]),
        ("seed", |r| r.sampling.seed = Some(3)),
        ("stop", |r| r.stop = vec!["\n".into()]),
        ("logprobs", |r| r.logprobs = Some(0)),
        ("parallel_tool_calls", |r| {
            r.tools = vec![Tool::new("f", "F.", json!({"type": "object"}))];
            r.parallel_tool_calls = Some(false);
        }),
    ];
    for (name, wire) in wires() {
        let plain = asked(&*wire, &Request::new(Prompt::user("Hi")));
        let plain = plain.as_object().unwrap();
        for (option, set) in set {
            let mut request = Request::new(Prompt::user("Hi"));
            set(&mut request);
            let mut body = asked(&*wire, &request);
            if let Some(fields) = body.as_object_mut() {
                fields.retain(|name, value| plain.get(name) != Some(value) && name != "tools");
            } else {
                body = "unsupported".into();
            }
            table.entry(name).or_default().insert(option, body);
        }
    }
    insta::assert_json_snapshot!("options", table);
}

#[test]
fn tools_and_their_results() {
    let calls = ["c1", "c2"].map(|id| ToolCall::new(id, "weather", "{\"city\":\"Bonn\"}"));
    let results = ["c1", "c2"].map(|id| Part::ToolResult {
        call_id: id.into(),
        content: "rain".into(),
        is_error: id == "c2",
    });
    let mut said = vec![Part::Reasoning("hm".into()), Part::Text("Looking.".into())];
    said.extend(calls.map(Part::ToolCall));
    let request = Request::new(Prompt::Chat(vec![
        Message::user("Weather?"),
        Message::new(Role::Assistant, said),
        Message::new(Role::Tool, results.to_vec()),
    ]))
    .with_tools(vec![Tool::new("weather", "Tells it.", json!({"type": "object"}))]);
    insta::assert_json_snapshot!("tools", to_all(&request));
    let chosen = |choice: ToolChoice| {
        let mut request = request.clone();
        request.tool_choice = choice;
        let choice = |body: Value| match &body["tool_choice"] {
            Value::Null => "unsupported".into(),
            choice => choice.clone(),
        };
        to_all(&request).into_iter().map(|(name, body)| (name, choice(body))).collect()
    };
    let choices: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::from([
        ("none", chosen(ToolChoice::None)),
        ("required", chosen(ToolChoice::Required)),
        ("named", chosen(ToolChoice::Named("weather".into()))),
    ]);
    insta::assert_json_snapshot!("tool_choice", choices);
}

#[test]
fn constraints() {
    let field = |constraint: Constraint| {
        let request = Request::new(Prompt::user("Hi")).with_constraint(constraint);
        let names = ["response_format", "text", "structured_outputs", "grammar"];
        let said = |body: Value| {
            let fields = names.map(|name| (name, body[name].clone()));
            let fields: BTreeMap<_, _> = fields.into_iter().filter(|(_, v)| !v.is_null()).collect();
            if fields.is_empty() { json!("unsupported") } else { json!(fields) }
        };
        to_all(&request).into_iter().map(|(name, body)| (name, said(body))).collect()
    };
    let table: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::from([
        ("json_schema", field(Constraint::JsonSchema(json!({"type": "object"})))),
        ("regex", field(Constraint::Regex("[ab]+".into()))),
        ("choice", field(Constraint::Choice(vec!["yes".into(), "a \"b\"\\\n".into()]))),
        ("lark", field(Constraint::Lark("start: \"a\"".into()))),
    ]);
    insta::assert_json_snapshot!("constraints", table);
}

#[test]
fn images() {
    let image = Part::Image { media_type: "image/png".into(), data: [1, 2, 3].into() };
    let prompt = vec![Message::new(Role::User, vec![Part::Text("What?".into()), image])];
    let request = Request::new(Prompt::Chat(prompt));
    insta::assert_json_snapshot!("images", to_all(&request));
}

#[test]
fn reasoning() {
    let mut table: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
    for (level, reasoning) in [
        ("off", Reasoning::Off),
        ("low", Reasoning::Low),
        ("high", Reasoning::High),
        ("budget", Reasoning::Budget(1000)),
    ] {
        for (name, wire) in wires() {
            let mut request = Request::new(Prompt::user("Hi"));
            let plain = asked(&*wire, &request);
            request.reasoning = Some(reasoning);
            let mut body = asked(&*wire, &request);
            match body.as_object_mut() {
                Some(fields) => fields.retain(|name, value| plain[name.as_str()] != *value),
                None => body = "unsupported".into(),
            }
            table.entry(name).or_default().insert(level, body);
        }
    }
    insta::assert_json_snapshot!("reasoning", table);
}

#[test]
fn a_turn_goes_back_to_responses_as_it_came() {
    let reasoning = json!({"id": "rs_0", "type": "reasoning", "summary": [],
        "encrypted_content": "gAAA"});
    let said = json!({"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "Looking.", "annotations": []}]});
    let call = json!({"id": "fc_2", "type": "function_call", "status": "completed",
        "call_id": "c1", "name": "f", "arguments": "{}"});
    let turn = |items: &[&Value], text: &str| {
        Message::new(
            Role::Assistant,
            vec![
                Part::Opaque { provider: "openai".into(), data: json!({ "output": items }) },
                Part::Text(text.into()),
                Part::ToolCall(ToolCall::new("c1", "f", "{}")),
            ],
        )
    };
    let write = |turn: Message| {
        let (_, wire) = wires().next().unwrap();
        let request = Request::new(Prompt::Chat(vec![Message::user("Hi"), turn]));
        wire.body("m", &request, &[])
    };
    let body = write(turn(&[&reasoning, &said, &call], "Looking.")).unwrap();
    assert_eq!(body["input"], json!([{"role": "user", "content": "Hi"}, reasoning, said, call]));
    assert_eq!(body["include"], json!(["reasoning.encrypted_content"]));

    // Ids lead nowhere without encrypted reasoning, since nothing was stored.
    let bare = json!({"id": "rs_0", "type": "reasoning", "summary": []});
    let mut phased = said.clone();
    phased["phase"] = "final_answer".into();
    let body = write(turn(&[&bare, &phased, &call], "Looking.")).unwrap();
    assert_eq!(
        body["input"].as_array().unwrap()[1..],
        [
            json!({"role": "assistant", "content": "Looking.", "phase": "final_answer"}),
            json!({"type": "function_call", "status": "completed", "call_id": "c1", "name": "f",
                "arguments": "{}"})
        ]
    );
    let error = write(turn(&[&reasoning, &said, &call], "Changed.")).unwrap_err();
    assert!(error.message().contains("was changed after `openai` made it"), "{error}");
}

#[test]
fn embeddings_and_token_counts() {
    let mut table: BTreeMap<&str, Value> = BTreeMap::new();
    let texts = EmbedRequest::new(vec!["a".into(), "b".into()]);
    for (name, wire) in wires() {
        let call = |call: Option<weighbridge_core::Result<(crate::wire::Route, _)>>| match call {
            Some(Ok((route, body))) => json!({"route": route.path, "body": body}),
            _ => "unsupported".into(),
        };
        let counted = call(wire.count_call("m", &Prompt::user("Hi")));
        assert_eq!(counted.is_object(), wire.capabilities("m").count_tokens, "{name}");
        let embedded = call(wire.embed_call("text-embedding-3-small", &texts));
        table.insert(name, json!({"embed": embedded, "count": counted}));
    }
    insta::assert_json_snapshot!("embed_and_count", table);
}
