//! The evaluators that come with Weighbridge.

mod json_fields;
mod text;

use serde_json::{Map, Value};
use weighbridge_core::{Error, ErrorKind, Plugin, Result, Sample, Unscored};

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

/// The right answer in this column. Without one nothing is right or wrong.
fn gold<'a>(sample: &'a Sample, column: &str) -> Result<&'a Value, Unscored> {
    let Some(value) = sample.fields.get(column) else {
        return Err(Unscored::new(format!("the sample has no column `{column}`")));
    };
    match value {
        Value::Null => Err(no_right_answer(column)),
        Value::String(text) if text.trim().is_empty() => Err(no_right_answer(column)),
        value => Ok(value),
    }
}

fn no_right_answer(column: &str) -> Unscored {
    Unscored::new(format!("no right answer in column `{column}`"))
}

fn gold_text(sample: &Sample, column: &str) -> Result<String, Unscored> {
    gold(sample, column).map(as_text)
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
        assert_eq!(run(json!({"target": "t", "ignore_punctuation": true}), "No."), NOT_YES);
        assert!(run(json!({"target": "u"}), "x").contains("no column `u`"));
        assert_eq!(run(json!({}), "x"), "provider `exact_match` needs the option `target`");
    }

    const NOT_YES: &str = "0 expected \"Yes\", got \"No.\"";

    #[test]
    fn without_a_right_answer_nothing_is_right_or_wrong() {
        let group = "a(.*)";
        for gold in [json!(null), json!(""), json!(" \t\n")] {
            let fields = json!({"t": gold});
            for (kind, options) in [
                ("exact_match", json!({"target": "t"})),
                ("exact_match", json!({"target": "t", "ignore_punctuation": true})),
                ("contains", json!({"target": "t"})),
                ("contains", json!({"target": "t", "ignore_punctuation": true})),
                ("regex", json!({"pattern": group, "target": "t"})),
                ("json_fields", json!({"target": "t"})),
                ("json_fields", json!({"target": "t", "fields": ["x"]})),
            ] {
                for answer in ["", "a", "abc", "null", "{}", "{\"x\":null}"] {
                    let said = judge(kind, options.clone(), fields.clone(), answer);
                    assert!(
                        said.contains("Unscored") && said.contains("no right answer in column `t`"),
                        "{kind} {options} of {fields} and {answer:?}: {said}"
                    );
                }
            }
        }
        // Zero and false are right answers.
        assert_eq!(judge("exact_match", json!({"target": "t"}), json!({"t": 0}), "0"), "1");
        assert_eq!(judge("contains", json!({"target": "t"}), json!({"t": false}), "false"), "1");
    }

    #[test]
    fn ignoring_punctuation_never_leaves_nothing_to_compare() {
        let options = json!({"target": "t", "ignore_punctuation": true});
        let fields = json!({"t": "?!"});
        assert_eq!(
            judge("exact_match", options.clone(), fields.clone(), "..."),
            "0 expected \"?!\", got \"...\""
        );
        assert_eq!(judge("exact_match", options.clone(), fields.clone(), " ?! "), "1");
        assert!(judge("exact_match", options.clone(), fields.clone(), "").starts_with("0 "));
        assert!(judge("contains", options.clone(), fields.clone(), "anything.").starts_with("0 "));
        assert_eq!(judge("contains", options, fields.clone(), "really?!"), "1");
        let options = json!({"pattern": "is (.*)", "target": "t", "ignore_punctuation": true});
        assert!(judge("regex", options.clone(), fields.clone(), "is ...").starts_with("0 "));
        assert_eq!(judge("regex", options, fields, "is ?!"), "1");
        let blank = judge("contains", json!({"text": " "}), json!({}), "x");
        assert!(blank.contains("non-empty `text`"), "{blank}");
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
