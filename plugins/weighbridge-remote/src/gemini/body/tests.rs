//! Bodies of generateContent, feature by feature.

use weighbridge_core::{Sampling, Tool};

use super::*;
use crate::gemini::Gemini;
use crate::testing;
use crate::wire::Wire;

const OLD: &str = "gemini-2.5-flash";
const NEW: &str = "gemini-3-flash";

fn wire() -> Gemini {
    Gemini { streams: true, dimensions: None }
}

fn asked() -> Request {
    Request::new(Prompt::user("Hi"))
}

fn body(request: &Request) -> Result<String> {
    testing::body(&wire(), OLD, request)
}

fn contents(messages: Vec<Message>) -> Result<Value> {
    let request = Request::new(Prompt::Chat(messages));
    wire().body(OLD, &request, &[]).map(|body| body["contents"].clone())
}

fn result(id: &str, content: &str, is_error: bool) -> Message {
    let part = Part::ToolResult { call_id: id.into(), content: content.into(), is_error };
    Message::new(Role::Tool, vec![part])
}

#[test]
fn a_plain_question_has_contents_only() {
    insta::assert_snapshot!(body(&asked()).unwrap(), @r#"
    contents: [{"role":"user","parts":[{"text":"Hi"}]}]
    "#);
}

#[test]
fn every_option_has_its_field() {
    let mut sampling = Sampling::greedy();
    sampling.temperature = Some(0.5);
    sampling.top_p = Some(0.9);
    sampling.top_k = Some(40);
    sampling.frequency_penalty = Some(0.25);
    sampling.presence_penalty = Some(-0.25);
    sampling.seed = Some(3);
    let mut request = asked()
        .with_sampling(sampling)
        .with_max_tokens(5)
        .with_stop("\n")
        .with_logprobs(2)
        .with_constraint(Constraint::JsonSchema(json!({"type": "object"})));
    request.extra = BTreeMap::from([
        (
            "gemini".to_owned(),
            Map::from_iter([
                ("cachedContent".to_owned(), json!("cachedContents/x")),
                ("generationConfig".to_owned(), json!({"topP": 1, "candidateCount": 1})),
            ]),
        ),
        ("openai".to_owned(), Map::from_iter([("x".to_owned(), json!(1))])),
    ]);
    let shown = body(&request).unwrap().replace(",\"", ",\n \"");
    insta::assert_snapshot!(shown, @r#"
    contents: [{"role":"user",
     "parts":[{"text":"Hi"}]}]
    generationConfig: {"temperature":0.5,
     "topP":1,
     "frequencyPenalty":0.25,
     "presencePenalty":-0.25,
     "topK":40,
     "seed":3,
     "stopSequences":["\n"],
     "maxOutputTokens":5,
     "responseLogprobs":true,
     "logprobs":2,
     "responseMimeType":"application/json",
     "responseJsonSchema":{"type":"object"},
     "candidateCount":1}
    cachedContent: "cachedContents/x"
    "#);
}

#[test]
fn a_tool_is_called_and_the_results_come_back_in_one_piece() {
    let request = Request::new(Prompt::Chat(vec![
        Message::system("Be brief."),
        Message::system("Be kind."),
        Message::user("Weather?"),
        Message::new(
            Role::Assistant,
            vec![
                Part::Reasoning("hm".into()),
                Part::Opaque { provider: "anthropic".into(), data: json!({"content": []}) },
                Part::ToolCall(ToolCall::new("c1", "weather", "{\"city\":\"Bonn\"}")),
                Part::ToolCall(ToolCall::new(format!("{MADE_UP_ID}1"), "now", "")),
            ],
        ),
        result("c1", "rain", false),
        result(&format!("{MADE_UP_ID}1"), "no clock", true),
        Message::user("And?"),
    ]))
    .with_tools(vec![
        Tool::new("weather", "Tells it.", json!({"type": "object"})),
        Tool::new("now", "", json!({"type": "object"})),
    ]);
    let shown = body(&request).unwrap().replace("},{\"role", "},\n {\"role");
    insta::assert_snapshot!(shown, @r#"
    systemInstruction: {"parts":[{"text":"Be brief."},{"text":"Be kind."}]}
    contents: [{"role":"user","parts":[{"text":"Weather?"}]},
     {"role":"model","parts":[{"functionCall":{"name":"weather","args":{"city":"Bonn"},"id":"c1"}},{"functionCall":{"name":"now","args":{}}}]},
     {"role":"user","parts":[{"functionResponse":{"name":"weather","response":{"output":"rain"},"id":"c1"}},{"functionResponse":{"name":"now","response":{"error":"no clock"}}}]},
     {"role":"user","parts":[{"text":"And?"}]}]
    tools: [{"functionDeclarations":[{"name":"weather","parametersJsonSchema":{"type":"object"},"description":"Tells it."},{"name":"now","parametersJsonSchema":{"type":"object"}}]}]
    "#);
}

#[test]
fn a_result_needs_the_call_that_it_answers() {
    let error = contents(vec![Message::user("q"), result("c9", "x", false)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(error.context("call_id"), Some("c9"));
}

#[test]
fn tool_choice_is_a_mode() {
    let choose = |choice| {
        let mut request = asked().with_tools(vec![Tool::new("f", "", json!({"type": "object"}))]);
        request.tool_choice = choice;
        let body = wire().body(OLD, &request, &[]).unwrap();
        body.get("toolConfig").map(|config| config["functionCallingConfig"].clone())
    };
    assert_eq!(choose(ToolChoice::Auto), None);
    assert_eq!(choose(ToolChoice::None), Some(json!({"mode": "NONE"})));
    assert_eq!(choose(ToolChoice::Required), Some(json!({"mode": "ANY"})));
    let named = json!({"mode": "ANY", "allowedFunctionNames": ["f"]});
    assert_eq!(choose(ToolChoice::Named("f".into())), Some(named));

    let mut request = asked();
    request.tool_choice = ToolChoice::Named("f".into());
    assert_eq!(body(&request).unwrap_err().kind(), ErrorKind::InvalidRequest);
}

#[test]
fn reasoning_is_a_level_or_a_budget_by_the_models_age() {
    let reason = |model, reasoning| {
        let mut request = asked();
        request.reasoning = Some(reasoning);
        let body = wire().body(model, &request, &[])?;
        Ok::<_, Error>(body["generationConfig"]["thinkingConfig"].clone())
    };
    let budget = json!({"includeThoughts": true, "thinkingBudget": 512});
    let level = |level: &str| json!({"includeThoughts": true, "thinkingLevel": level});
    for (model, reasoning, expected) in [
        (OLD, Reasoning::Off, json!({"thinkingBudget": 0})),
        (OLD, Reasoning::Budget(512), budget.clone()),
        (NEW, Reasoning::Budget(512), budget),
        (NEW, Reasoning::Low, level("LOW")),
        (NEW, Reasoning::Medium, level("MEDIUM")),
        ("gemini-flash-latest", Reasoning::High, level("HIGH")),
    ] {
        assert_eq!(reason(model, reasoning).unwrap(), expected, "{model} {reasoning:?}");
    }
    for (model, reasoning) in [(OLD, Reasoning::Low), (NEW, Reasoning::Off)] {
        let error = reason(model, reasoning).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.context("option"), Some("reasoning"));
    }
}

#[test]
fn images_are_inline_data() {
    let pictured = |role| {
        let image = Part::Image { media_type: "image/png".into(), data: [1, 2, 3].into() };
        contents(vec![Message::new(role, vec![Part::Text("?".into()), image])])
    };
    let parts = json!([{"text": "?"}, {"inlineData": {"mimeType": "image/png", "data": "AQID"}}]);
    assert_eq!(pictured(Role::User).unwrap(), json!([{"role": "user", "parts": parts}]));
    let error = pictured(Role::Assistant).unwrap_err();
    assert_eq!(error.context("option"), Some("prompt.image"));
}

#[test]
fn a_turn_with_signatures_goes_back_as_it_came() {
    let parts = json!([
        {"text": "t", "thought": true},
        {"text": "AB"},
        {"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "s=="},
    ]);
    let turn = |text: &str| {
        let id = format!("{MADE_UP_ID}0");
        Message::new(
            Role::Assistant,
            vec![
                Part::Reasoning("t".into()),
                Part::Opaque { provider: PROVIDER.into(), data: json!({ "parts": parts }) },
                Part::Text(text.into()),
                Part::ToolCall(ToolCall::new(id, "f", "{\"x\":1}")),
            ],
        )
    };
    let sent = contents(vec![Message::user("q"), turn("AB")]).unwrap();
    assert_eq!(sent[1], json!({"role": "model", "parts": parts}));
    let error = contents(vec![Message::user("q"), turn("AC")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[test]
fn what_the_protocol_has_no_words_for_is_refused() {
    let mut request = asked().with_logprobs(21);
    request.parallel_tool_calls = Some(false);
    request.sampling.min_p = Some(0.1);
    request.stop = vec!["s".into(); 6];
    request.sampling.temperature = Some(2.5);
    let error = body(&request).unwrap_err();
    assert_eq!(
        error.context("option"),
        Some("min_p,parallel_tool_calls,logprobs,stop,temperature")
    );

    let later = vec![Message::user("a"), Message::system("b")];
    assert_eq!(contents(later).unwrap_err().context("option"), Some("prompt.system"));

    let mut request = asked();
    request.sampling.seed = Some(1 << 31);
    assert_eq!(body(&request).unwrap_err().context("seed"), Some("2147483648"));
    let mut request = asked();
    request.constraint = Some(Constraint::Choice(vec!["a".into()]));
    request.wishes = vec![RequestOption::Constraint];
    assert!(!body(&request).unwrap().contains("response"));
}
