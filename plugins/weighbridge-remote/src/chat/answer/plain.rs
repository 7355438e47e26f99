//! The commonest parts of an answer, read without a tree of values in between.
//!
//! Nearly all of a stream is pieces of text. A chunk or document that says more than text, an end
//! and counts is not plain, nor is one in an unusual form; it is read in full, as if this were not
//! here.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::ChatAnswer;
use crate::emitter::Emitter;
use crate::usage;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    object: Option<Text<'a>>,
    #[serde(rename = "created")]
    _created: Option<u64>,
    model: Option<Text<'a>>,
    system_fingerprint: Option<Text<'a>>,
    provider: Option<Text<'a>>,
    service_tier: Option<Text<'a>>,
    #[serde(rename = "obfuscation")]
    _obfuscation: Option<Text<'a>>,
    choices: Vec<Object<Choice<'a>>>,
    usage: Option<Value>,
    error: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice<'a> {
    index: Option<u64>,
    #[serde(borrow, alias = "message")]
    delta: Object<Message<'a>>,
    finish_reason: Option<Text<'a>>,
    logprobs: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'a> {
    #[serde(borrow, rename = "role")]
    _role: Option<Text<'a>>,
    content: Option<Text<'a>>,
    reasoning_content: Option<Text<'a>>,
    reasoning: Option<Text<'a>>,
    refusal: Option<IgnoredAny>,
    tool_calls: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
}

/// A thing with names. What serde derives would also take a list of its values.
#[derive(Debug)]
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// A text, which is copied only where it holds escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Plain<'_> {
    /// What a message's form does not tell.
    fn is_plain(&self) -> bool {
        let is_error = text(&self.object) == "error" || self.error.is_some();
        !is_error
            && self.choices.len() <= 1
            && self.choices.iter().all(|choice| choice.0.is_plain())
    }
}

impl Choice<'_> {
    fn is_plain(&self) -> bool {
        let Message { refusal, tool_calls, function_call, .. } = &self.delta.0;
        let parts = [&self.logprobs, refusal, tool_calls, function_call];
        parts.iter().all(|part| part.is_none())
            && self.index.unwrap_or(0) == 0
            && text(&self.finish_reason) != "error"
    }
}

impl ChatAnswer {
    /// Takes a chunk or document if it is a plain one; `false` if it is not, and was not taken.
    pub(super) fn take_plain(&mut self, json: &str, out: &mut Emitter<'_>) -> bool {
        let Some(plain) = read(json) else { return false };
        let has_ended = self.choices.values().any(Option::is_some);
        if has_ended && !plain.choices.is_empty() {
            return false;
        }
        self.take(plain, out);
        true
    }

    fn take(&mut self, plain: Plain<'_>, out: &mut Emitter<'_>) {
        self.has_choices_field = true;
        for (name, value) in [
            ("served_model", plain.model),
            ("system_fingerprint", plain.system_fingerprint),
            ("response_id", plain.id),
            ("upstream_provider", plain.provider),
            ("service_tier", plain.service_tier),
        ] {
            if let Some(Text(value)) = value
                && out.effective.values.get(name).and_then(Value::as_str) != Some(&*value)
            {
                out.told(name, value.into_owned().into());
            }
        }
        for Object(Choice { delta: Object(delta), finish_reason, .. }) in plain.choices {
            self.choices.entry(0).or_default();
            let reasoning = match text(&delta.reasoning_content) {
                "" => text(&delta.reasoning),
                reasoning => reasoning,
            };
            out.reasoning(reasoning);
            out.text(text(&delta.content));
            if let Some(Text(reason)) = finish_reason.filter(|reason| !reason.0.is_empty()) {
                self.choices.insert(0, Some(reason.into_owned()));
                self.end_calls(out);
            }
        }
        if let Some(usage) = plain.usage.filter(Value::is_object) {
            let usage = usage::read(usage, &usage::CHAT, out);
            out.usage(usage);
        }
    }
}

fn read(json: &str) -> Option<Plain<'_>> {
    let Object(plain) = serde_json::from_str::<Object<Plain<'_>>>(json).ok()?;
    plain.is_plain().then_some(plain)
}

fn text<'a>(text: &'a Option<Text<'_>>) -> &'a str {
    text.as_ref().map_or("", |text| &text.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::ControlFlow;
    use std::time::{Duration, Instant};
    use weighbridge_core::{Event, Request, Timings};

    use crate::text::Redactor;
    use crate::wire::Decode as _;

    /// Everything that reading these chunks shows, and how many of them were plain.
    fn seen(chunks: &[String], takes_plain: bool) -> (Vec<String>, usize) {
        let redactor = Redactor::default();
        let mut events = Vec::new();
        let mut sink = |event: Event<'_>| {
            events.push(format!("{event:?}"));
            ControlFlow::Continue(())
        };
        let mut out = Emitter::new(&mut sink, &redactor, Instant::now());
        let mut answer = ChatAnswer::new("p", &Request::user("Hi"));
        let mut n_plain = 0;
        let mut errors = Vec::new();
        for chunk in chunks {
            if takes_plain && answer.take_plain(chunk, &mut out) {
                n_plain += 1;
            } else if let Err(error) = answer.whole(&serde_json::from_str(chunk).unwrap(), &mut out)
            {
                errors.push(error.report());
                break;
            }
        }
        let ending = answer.close(&mut out);
        let state = format!("{errors:?} {ending:?}");
        if let Ok(ending) = ending {
            let mut completion = out.completion(ending, Duration::ZERO, false, false);
            completion.timings = Timings::default();
            events.push(format!("{completion:?}"));
        }
        events.push(state);
        (events, n_plain)
    }

    /// The values of a message and of a choice without their names.
    const LIST_MESSAGE: &str = r#"["assistant","x",null,null,null,null,null]"#;
    const LIST_CHOICE: &str = r#"[0,{"content":"x"},"stop",null]"#;

    fn field(name: &'static str, values: &[&'static str]) -> impl Strategy<Value = String> {
        let values: Vec<_> = values.iter().map(|value| format!("\"{name}\":{value},")).collect();
        prop_oneof![3 => Just(String::new()), 5 => proptest::sample::select(values)]
    }

    fn message() -> impl Strategy<Value = String> {
        let fields = (
            field("role", &["\"assistant\"", "null", "1"]),
            field("content", &["\"a\"", "\"\\n\u{fc}\\u00fc\"", "\"\"", "null", "[]", "7"]),
            field("reasoning_content", &["\"r\"", "\"\"", "null"]),
            field("reasoning", &["\"s\"", "null", "{}"]),
            field("refusal", &["null", "\"no\""]),
            field("tool_calls", &["null", "[]", "[{\"id\":\"c\",\"function\":{\"name\":\"f\"}}]"]),
            field("new", &["null", "1"]),
        );
        let object = fields.prop_map(|(a, b, c, d, e, f, g)| {
            format!("{{{}}}", [a, b, c, d, e, f, g].concat().trim_end_matches(','))
        });
        prop_oneof![9 => object, 1 => Just(LIST_MESSAGE.to_owned())]
    }

    fn choices() -> impl Strategy<Value = String> {
        let choice = (
            field("index", &["0", "0", "1", "null", "\"0\""]),
            proptest::sample::select(vec!["delta", "delta", "message", "text"]),
            message(),
            field(
                "finish_reason",
                &["null", "null", "\"stop\"", "\"\"", "\"error\"", "\"length\""],
            ),
            field("logprobs", &["null", "null", "{\"content\":[]}"]),
            field("new", &["null", "2"]),
        );
        let object = choice.prop_map(|(index, name, message, reason, logprobs, new)| {
            let rest = [index, reason, logprobs, new].concat();
            format!("{{{rest}\"{name}\":{message}}}")
        });
        let choice = prop_oneof![9 => object, 1 => Just(LIST_CHOICE.to_owned())];
        proptest::collection::vec(choice, 0..3).prop_map(|choices| choices.join(","))
    }

    fn chunk() -> impl Strategy<Value = String> {
        let fields = (
            field("id", &["\"i\"", "\"j\"", "null", "5"]),
            field("object", &["\"chat.completion.chunk\"", "\"chat.completion\"", "null"]),
            field("created", &["1", "null", "-1.5"]),
            field("model", &["\"m\"", "null"]),
            field("service_tier", &["\"t\"", "null", "{}"]),
            field("error", &["null", "null", "false"]),
            field(
                "usage",
                &["null", "{}", "{\"prompt_tokens\":3,\"completion_tokens\":0,\"x\":[1]}", "1"],
            ),
            field("new", &["null", "\"n\""]),
            choices(),
        );
        fields.prop_map(|(a, b, c, d, e, f, g, h, choices)| {
            format!("{{{}\"choices\":[{choices}]}}", [a, b, c, d, e, f, g, h].concat())
        })
    }

    proptest! {
        #[test]
        fn what_is_plain_is_read_as_in_full(chunks in proptest::collection::vec(chunk(), 1..6)) {
            prop_assert_eq!(seen(&chunks, true).0, seen(&chunks, false).0, "{:?}", chunks);
        }
    }

    #[test]
    fn text_an_end_and_counts_are_plain() {
        let chunks = [
            r#"{"id":"i","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"ok"},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#,
        ];
        let chunks = chunks.map(str::to_owned);
        assert_eq!(seen(&chunks, true).1, 3);
        assert_eq!(seen(&chunks, true).0, seen(&chunks, false).0);
        let late = [&chunks[..2], &chunks[..1]].concat();
        assert_eq!(seen(&late, true).1, 2, "text after the end is not plain");
    }

    #[test]
    fn errors_and_damage_are_not_plain() {
        for chunk in [
            r#"{"object":"error","choices":[]}"#,
            r#"{"error":{"message":"m"},"choices":[]}"#,
            r#"{"type":"error","choices":[]}"#,
            r#"{"choices":[],"choices":[]}"#,
            r#"{"choices":[]} {}"#,
            r#"{"choices":null}"#,
            r#"{"choices":["#,
            r#"[{"choices":[]}]"#,
            "[DONE]",
        ] {
            assert!(read(chunk).is_none(), "{chunk}");
        }
        for chunk in [
            format!(r#"{{"choices":[{LIST_CHOICE}]}}"#),
            format!(r#"{{"choices":[{{"delta":{LIST_MESSAGE},"finish_reason":"stop"}}]}}"#),
            r#"[null,null,null,null,null,null,null,null,[],null,null]"#.to_owned(),
        ] {
            assert!(read(&chunk).is_none(), "{chunk}");
            let chunk = [chunk];
            assert_eq!(seen(&chunk, true), seen(&chunk, false));
        }
        assert!(read(r#"{"choices":[]}"#).is_some());
    }
}
