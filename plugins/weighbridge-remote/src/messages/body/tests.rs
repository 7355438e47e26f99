//! Bodies of Messages, feature by feature.

use std::collections::BTreeMap;

use weighbridge_core::{Sampling, Tool, ToolCall};

use super::*;
use crate::testing::{body, lines};
use crate::wire::Wire;

/// Takes sampling options.
const OLD: &str = "claude-haiku-4-5";
const NEW: &str = "claude-opus-5";

fn wire() -> Messages {
    Messages { streams: true }
}

fn asked() -> Request {
    Request::new(Prompt::user("Hi"))
}

fn field(model: &str, request: &Request, name: &str) -> Value {
    wire().body(model, request, &[]).map(|body| body[name].clone()).unwrap()
}

#[test]
fn a_plain_question_gets_the_default_limit() {
    insta::assert_snapshot!(body(&wire(), NEW, &asked()).unwrap(), @r#"
    model: "claude-opus-5"
    messages: [{"role":"user","content":[{"type":"text","text":"Hi"}]}]
    max_tokens: 16384
    stream: true
    "#);
    let document = Messages { streams: false };
    assert!(!body(&document, NEW, &asked()).unwrap().contains("stream"));
}

#[test]
fn every_option_has_its_field() {
    let mut sampling = Sampling::greedy();
    sampling.temperature = Some(0.5);
    sampling.top_p = Some(0.9);
    sampling.top_k = Some(40);
    let mut request = asked()
        .with_sampling(sampling)
        .with_max_tokens(5)
        .with_stop("\n")
        .with_constraint(Constraint::JsonSchema(json!({"type": "object"})));
    request.extra = BTreeMap::from([
        (
            "anthropic".to_owned(),
            Map::from_iter([
                ("cache_control".to_owned(), json!({"type": "ephemeral"})),
                ("output_config".to_owned(), json!({"effort": "max"})),
            ]),
        ),
        ("openai".to_owned(), Map::from_iter([("x".to_owned(), json!(1))])),
    ]);
    insta::assert_snapshot!(body(&wire(), OLD, &request).unwrap(), @r#"
    model: "claude-haiku-4-5"
    messages: [{"role":"user","content":[{"type":"text","text":"Hi"}]}]
    max_tokens: 5
    temperature: 0.5
    top_p: 0.9
    top_k: 40
    stop_sequences: ["\n"]
    output_config: {"format":{"type":"json_schema","schema":{"type":"object"}},"effort":"max"}
    stream: true
    cache_control: {"type":"ephemeral"}
    "#);
}

#[test]
fn a_tool_is_called_and_its_result_comes_back() {
    let results = |parts: &[(&str, &str, bool)]| {
        let part = |&(id, content, is_error): &(&str, &str, bool)| Part::ToolResult {
            call_id: id.into(),
            content: content.into(),
            is_error,
        };
        Message::new(Role::Tool, parts.iter().map(part).collect())
    };
    let request = Request::new(Prompt::Chat(vec![
        Message::system("Be brief."),
        Message::system("Be kind."),
        Message::user("Weather?"),
        Message::new(
            Role::Assistant,
            vec![
                Part::Reasoning("hm".into()),
                Part::Opaque { provider: "gemini".into(), data: json!({"parts": []}) },
                Part::Text("I look.".into()),
                Part::ToolCall(ToolCall::new("c1", "weather", "{\"city\":\"Bonn\"}")),
                Part::ToolCall(ToolCall::new("c2", "now", "")),
            ],
        ),
        results(&[("c1", "rain", false), ("c2", "no clock", true)]),
    ]))
    .with_tools(vec![
        Tool::new("weather", "Tells it.", json!({"type": "object"})),
        Tool::new("now", "", json!({"type": "object"})),
    ]);
    insta::assert_snapshot!(body(&wire(), NEW, &request).unwrap(), @r#"
    model: "claude-opus-5"
    system: [{"type":"text","text":"Be brief."},{"type":"text","text":"Be kind."}]
    messages: [{"role":"user","content":[{"type":"text","text":"Weather?"}]},{"role":"assistant","content":[{"type":"text","text":"I look."},{"type":"tool_use","id":"c1","name":"weather","input":{"city":"Bonn"}},{"type":"tool_use","id":"c2","name":"now","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"rain"},{"type":"tool_result","tool_use_id":"c2","content":"no clock","is_error":true}]}]
    max_tokens: 16384
    tools: [{"name":"weather","input_schema":{"type":"object"},"description":"Tells it."},{"name":"now","input_schema":{"type":"object"}}]
    stream: true
    "#);
}

#[test]
fn tool_choice_and_parallel_calls_share_a_field() {
    let choose = |choice, parallel| {
        let mut request = asked().with_tools(vec![Tool::new("f", "", json!({"type": "object"}))]);
        request.tool_choice = choice;
        request.parallel_tool_calls = parallel;
        let body = wire().body(NEW, &request, &[]).unwrap();
        body.get("tool_choice").cloned().unwrap_or_default()
    };
    let disabled = |mut choice: Value| {
        choice["disable_parallel_tool_use"] = true.into();
        choice
    };
    assert_eq!(choose(ToolChoice::Auto, None), Value::Null);
    assert_eq!(choose(ToolChoice::Auto, Some(false)), disabled(json!({"type": "auto"})));
    assert_eq!(
        choose(ToolChoice::Auto, Some(true)),
        json!({"type": "auto", "disable_parallel_tool_use": false})
    );
    assert_eq!(choose(ToolChoice::None, Some(false)), json!({"type": "none"}));
    assert_eq!(choose(ToolChoice::Required, None), json!({"type": "any"}));
    assert_eq!(choose(ToolChoice::Required, Some(false)), disabled(json!({"type": "any"})));
    let named = ToolChoice::Named("f".into());
    assert_eq!(choose(named, None), json!({"type": "tool", "name": "f"}));

    let mut request = asked();
    request.tool_choice = ToolChoice::Required;
    let error = body(&wire(), NEW, &request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[test]
fn reasoning_is_a_level_or_a_budget_by_the_models_age() {
    let reason = |model: &str, reasoning| {
        let mut request = asked();
        request.reasoning = Some(reasoning);
        wire().body(model, &request, &[]).map(|mut body| {
            body.retain(|name, _| {
                matches!(name.as_str(), "max_tokens" | "thinking" | "output_config")
            });
            lines(&body)
        })
    };
    insta::assert_snapshot!(reason(NEW, Reasoning::High).unwrap(), @r#"
    max_tokens: 16384
    thinking: {"type":"adaptive","display":"summarized"}
    output_config: {"effort":"high"}
    "#);
    insta::assert_snapshot!(reason("claude-opus-4-6", Reasoning::Low).unwrap(), @r#"
    max_tokens: 16384
    thinking: {"type":"adaptive"}
    output_config: {"effort":"low"}
    "#);
    insta::assert_snapshot!(reason("claude-mythos-preview", Reasoning::Medium).unwrap(), @r#"
    max_tokens: 16384
    thinking: {"type":"adaptive"}
    output_config: {"effort":"medium"}
    "#);
    insta::assert_snapshot!(reason(OLD, Reasoning::Budget(2048)).unwrap(), @r#"
    max_tokens: 18432
    thinking: {"type":"enabled","budget_tokens":2048}
    "#);
    insta::assert_snapshot!(reason(NEW, Reasoning::Off).unwrap(), @r#"
    max_tokens: 16384
    thinking: {"type":"disabled"}
    "#);
    for (model, reasoning) in [(OLD, Reasoning::High), (NEW, Reasoning::Budget(2048))] {
        let error = reason(model, reasoning).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.context("option"), Some("reasoning"));
        assert_eq!(error.context("model"), Some(model));
    }
}

#[test]
fn an_effort_and_a_schema_stand_side_by_side() {
    let mut request = asked().with_constraint(Constraint::JsonSchema(json!({"type": "object"})));
    request.reasoning = Some(Reasoning::Low);
    let expected =
        json!({"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}});
    assert_eq!(field(NEW, &request, "output_config"), expected);
    request.constraint = Some(Constraint::Regex("a".into()));
    let error = body(&wire(), NEW, &request).unwrap_err();
    assert_eq!(error.context("option"), Some("constraint"));
}

#[test]
fn images_are_base64_blocks_of_the_four_known_types() {
    let pictured = |role, media_type: &str| {
        let image = Part::Image { media_type: media_type.into(), data: [1, 2, 3].into() };
        Request::new(Prompt::Chat(vec![Message::new(role, vec![Part::Text("?".into()), image])]))
    };
    insta::assert_snapshot!(field(NEW, &pictured(Role::User, "image/png"), "messages"), @r#"
    [{"role":"user","content":[{"type":"text","text":"?"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AQID"}}]}]
    "#);
    for (role, media_type) in [(Role::User, "image/tiff"), (Role::Assistant, "image/png")] {
        let error = body(&wire(), NEW, &pictured(role, media_type)).unwrap_err();
        assert_eq!(error.context("option"), Some("prompt.image"));
    }
}

#[test]
fn a_later_system_message_stays_in_its_place_or_is_refused() {
    let request = Request::new(Prompt::Chat(vec![
        Message::user("a"),
        Message::system("From now on in French."),
    ]));
    insta::assert_snapshot!(field(NEW, &request, "messages"), @r#"
    [{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"system","content":[{"type":"text","text":"From now on in French."}]}]
    "#);
    let error = body(&wire(), OLD, &request).unwrap_err();
    assert_eq!(error.context("option"), Some("prompt.system"));
}

#[test]
fn a_turn_with_signatures_goes_back_as_it_came() {
    let blocks = json!([
        {"type": "thinking", "thinking": "t", "signature": "s=="},
        {"type": "text", "text": "A"},
        {"type": "redacted_thinking", "data": "d=="},
        {"type": "text", "text": "B"},
        {"type": "tool_use", "id": "c", "name": "f", "input": {"x": 1}},
    ]);
    let turn = |text: &str, provider: &str| {
        Message::new(
            Role::Assistant,
            vec![
                Part::Reasoning("t".into()),
                Part::Opaque { provider: provider.into(), data: json!({ "content": blocks }) },
                Part::Text(text.into()),
                Part::ToolCall(ToolCall::new("c", "f", "{\"x\":1}")),
            ],
        )
    };
    let request = |turn| Request::new(Prompt::Chat(vec![Message::user("q"), turn]));
    let messages = field(NEW, &request(turn("AB", PROVIDER)), "messages");
    assert_eq!(messages[1], json!({"role": "assistant", "content": blocks}));
    let error = body(&wire(), NEW, &request(turn("AC", PROVIDER))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    // Another vendor's data is not for this one.
    let messages = field(NEW, &request(turn("AC", "bedrock")), "messages");
    assert_eq!(messages[1]["content"][0], json!({"type": "text", "text": "AC"}));
}

#[test]
fn broken_arguments_are_refused_and_never_mended() {
    let call = Part::ToolCall(ToolCall::new("c", "f", "{\"x\":"));
    let turn = Message::new(Role::Assistant, vec![call]);
    let error = body(&wire(), NEW, &Request::new(Prompt::Chat(vec![Message::user("q"), turn])));
    assert_eq!(error.unwrap_err().context("call_id"), Some("c"));
}
