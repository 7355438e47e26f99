//! Chat templates against renders made by Python (`tests/python/make_template_goldens.py`).

use std::sync::Arc;

use serde_json::{Map, Value};
use weighbridge_core::{ErrorKind, Message, Part, Prompt, Role, Tool, ToolCall};
use weighbridge_engine::prompt::PromptEncoder;
use weighbridge_engine::template::{ChatTemplate, Date, TemplateOptions};
use weighbridge_engine::toy::{ToyEncoder, table};

use crate::support::{fixture, golden};

fn today() -> TemplateOptions {
    let mut options = TemplateOptions::default();
    options.today = Date::new(2026, 11, 21);
    options
}

fn source(name: &str) -> String {
    let path = format!("{}/tests/templates/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn renders_equal_python_s() {
    let golden = golden("templates.json");
    let mut differences = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(&source(name), &today())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut variables = Map::new();
        let conversation = case["conversation"].as_str().unwrap();
        variables.insert("messages".into(), golden["conversations"][conversation].clone());
        let tools = if case["tools"] == true { golden["tools"].clone() } else { Value::Null };
        variables.insert("tools".into(), tools);
        variables.insert("documents".into(), Value::Null);
        variables.insert("add_generation_prompt".into(), case["add_generation_prompt"].clone());
        variables.insert("bos_token".into(), golden["bos_token"].clone());
        variables.insert("eos_token".into(), golden["eos_token"].clone());
        let rendered = template.render(&variables);
        let same = match (&rendered, case["text"].as_str(), case["refused"].as_str()) {
            (Ok(ours), Some(python), _) => ours == python,
            (Err(error), None, Some(python)) => {
                assert_eq!(error.kind(), ErrorKind::Template);
                error.message().contains(python)
            }
            // Python failed: so do we, in our own words.
            (Err(_), None, None) => true,
            _ => false,
        };
        if !same {
            let key = format!("{name} {conversation} tools={}", case["tools"]);
            let ours = rendered.unwrap_or_else(|error| error.report());
            differences.push(format!("{key}\n ours   {ours:?}\n python {:?}", case["text"]));
        }
    }
    assert!(
        differences.is_empty(),
        "{}\n{}",
        differences.len(),
        differences[..differences.len().min(1)].join("\n")
    );
}

#[test]
fn the_fixture_models_template_renders_as_transformers_does() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(fixture("reference/templates.json")).unwrap())
            .unwrap();
    let source = golden["chat_template"].as_str().unwrap();
    let template = ChatTemplate::new(source, &TemplateOptions::default()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let rendered = template.render(case.as_object().unwrap()).unwrap();
        assert_eq!(rendered, case["text"].as_str().unwrap());
    }
}

#[test]
fn our_messages_take_the_shape_that_templates_expect() {
    let template = ChatTemplate::new(&source("qwen3.jinja"), &today()).unwrap();
    let encoder = PromptEncoder::new(Arc::new(table(None)), Arc::new(ToyEncoder), Some(template));
    let call = ToolCall::new("call00001", "find_order", "{\"order\": \"é<12>\", \"limit\": 3}");
    let result = Part::ToolResult {
        call_id: "call00001".into(),
        content: "{\"found\": true}".into(),
        is_error: false,
    };
    let messages = [
        Message::user("where?"),
        Message::new(Role::Assistant, vec![Part::ToolCall(call)]),
        Message::new(Role::Tool, vec![result]),
        Message::assistant("There."),
        Message::user("thanks"),
    ];
    let golden = golden("templates.json");
    let tools: Vec<Tool> = golden["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            let f = &tool["function"];
            let text = |key: &str| f[key].as_str().unwrap().to_owned();
            Tool::new(text("name"), text("description"), f["parameters"].clone())
        })
        .collect();
    let python = golden["cases"].as_array().unwrap().iter().find(|case| {
        case["template"] == "qwen3.jinja"
            && case["conversation"] == "tool_call"
            && case["tools"] == true
            && case["add_generation_prompt"] == true
    });
    assert_eq!(
        encoder.render(&messages, &tools).unwrap(),
        python.unwrap()["text"].as_str().unwrap()
    );
    assert!(encoder.encode(&Prompt::Text("abc".into()), &[]).is_ok());
}
