//! The evaluators that come with Weighbridge.

mod json_fields;
mod text;

use serde_json::{Map, Value};
use weighbridge_core::{Error, ErrorKind, Plugin, Result, Sample};

use crate::data::as_text;

pub use json_fields::JsonFieldsFactory;
pub use text::{ContainsFactory, ExactMatchFactory, RegexFactory};

/// The plugin that brings the built-in evaluators and the `recorded` provider.
pub fn plugin() -> Plugin {
    Plugin::new("weighbridge", env!("CARGO_PKG_VERSION"))
        .provider(crate::recorded::RecordedProvider)
        .evaluator(ExactMatchFactory)
        .evaluator(ContainsFactory)
        .evaluator(RegexFactory)
        .evaluator(JsonFieldsFactory)
}
weighbridge_core::register_plugin!(plugin);

fn string(kind: &str, options: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match options.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(bad_option(kind, name, "a text", other)),
    }
}

fn flag(kind: &str, options: &Map<String, Value>, name: &str) -> Result<bool> {
    match options.get(name) {
        None => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(other) => Err(bad_option(kind, name, "true or false", other)),
    }
}

fn required(kind: &str, options: &Map<String, Value>, name: &str, what: &str) -> Result<String> {
    string(kind, options, name)?.ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, format!("evaluator `{kind}` needs `{name}`: {what}"))
    })
}

fn bad_option(kind: &str, name: &str, takes: &str, got: &Value) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("evaluator `{kind}`: `{name}` takes {takes}, not {got}"),
    )
}

fn target_text(sample: &Sample, column: &str) -> Option<String> {
    sample.fields.get(column).map(as_text)
}

/// At most 120 characters of a text, for a note.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(120).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weighbridge_core::{
        Completion, Evaluator, Observation, Registry, Sample, Step, StopReason,
    };

    /// The one place that knows how an evaluator is built and asked.
    #[track_caller]
    pub(super) fn judge(
        kind: &str,
        options: serde_json::Value,
        fields: serde_json::Value,
        answer: &str,
    ) -> String {
        let registry = Registry::new([super::plugin()]).unwrap();
        let options = options.as_object().unwrap().clone();
        let evaluator: Box<dyn Evaluator> = match registry.evaluator(kind).and_then(|f| {
            weighbridge_core::check_options(kind, &f.option_schema(), &options)
                .and_then(|()| f.build(&options))
        }) {
            Ok(evaluator) => evaluator,
            Err(error) => return error.to_string(),
        };
        let sample = Sample::new("1", fields.as_object().unwrap().clone());
        let observation = Observation::of(&Ok(Completion::new(answer, StopReason::Stop)));
        match evaluator.step(&sample, &observation, &[]) {
            Step::Score(score) => {
                let parts: Vec<_> = score.parts.iter().map(|(n, v)| format!(" {n}={v}")).collect();
                format!("{}{} {}", score.value, parts.concat(), score.note.unwrap_or_default())
                    .trim()
                    .to_owned()
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn exact_match_normalises_only_what_it_is_told_to() {
        let fields = json!({"t": "Yes"});
        let run = |o, a| judge("exact_match", o, fields.clone(), a);
        assert_eq!(run(json!({"target": "t"}), " Yes\n"), "1");
        assert_eq!(run(json!({"target": "t"}), "yes"), "0 expected \"Yes\", got \"yes\"");
        assert_eq!(run(json!({"target": "t", "ignore_case": true}), "YES"), "1");
        assert_eq!(run(json!({"target": "t", "ignore_punctuation": true}), "Yes."), "1");
        assert!(run(json!({"target": "u"}), "x").contains("no column `u`"));
        assert_eq!(run(json!({}), "x"), "provider `exact_match` needs the option `target`");
    }

    #[test]
    fn contains_and_regex_find() {
        let fields = json!({"t": "42"});
        assert_eq!(judge("contains", json!({"target": "t"}), fields.clone(), "It is 42."), "1");
        assert_eq!(
            judge("contains", json!({"text": "43"}), fields.clone(), "It is 42."),
            "0 \"43\" is not in \"It is 42.\""
        );
        let options = json!({"pattern": "answer: (\\d+)", "target": "t"});
        assert_eq!(judge("regex", options.clone(), fields.clone(), "answer: 42"), "1");
        assert_eq!(
            judge("regex", options, fields.clone(), "answer: 41"),
            "0 expected \"42\", got \"41\""
        );
        assert!(judge("regex", json!({"pattern": "("}), fields, "").contains("`pattern`"));
    }

    #[test]
    fn json_fields_compares_each_field_and_finds_json_in_a_fence() {
        let fields = json!({"target": "{\"queue\":\"billing\",\"order\":null,\"n\":2}"});
        let options = json!({"target": "target", "fields": ["queue", "order", "n"]});
        let run = |a| judge("json_fields", options.clone(), fields.clone(), a);
        assert_eq!(
            run("Sure!\n```json\n{\"n\": 2.0, \"queue\": \"billing\", \"order\": null}\n```"),
            "1 queue=1 order=1 n=1"
        );
        assert_eq!(
            run("{\"queue\":\"sales\",\"n\":2}"),
            "0 queue=0 order=0 n=1 queue: expected \"billing\", got \"sales\"; order: expected null, it is missing"
        );
        assert_eq!(run("I cannot"), "0 queue=0 order=0 n=0 the answer is not a JSON object");
    }
}
