//! `json_fields`: compares fields of a JSON answer with those of the right answer.

use serde_json::{Map, Value, json};
use weighbridge_core::{
    Answer, Error, ErrorKind, Evaluator, EvaluatorFactory, Needs, Observation, Result, Sample,
    Score, Step, Unscored,
};

use super::{bad_option, gold, required, shorten, string};

/// Makes `json_fields` evaluators.
#[derive(Clone, Copy, Debug)]
pub struct JsonFieldsFactory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Right only if every field is.
    All,
    /// The share of right fields.
    Mean,
}

#[derive(Debug)]
struct JsonFields {
    target: String,
    /// Empty: the fields of the right answer.
    fields: Vec<String>,
    mode: Mode,
}

impl EvaluatorFactory for JsonFieldsFactory {
    fn id(&self) -> &str {
        "json_fields"
    }

    fn summary(&self) -> &str {
        "compares the fields of a JSON answer with those of a column that holds JSON"
    }

    fn option_schema(&self) -> Value {
        json!({
            "type": "object",
            "properties": {
                "target": {"type": "string"},
                "fields": {"type": "array"},
                "mode": {"enum": ["all", "mean"]},
            },
            "required": ["target"],
        })
    }

    fn build(&self, options: &Map<String, Value>) -> Result<Box<dyn Evaluator>, Error> {
        let fields = match options.get("fields") {
            None => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| {
                    item.as_str()
                        .map(str::to_owned)
                        .ok_or_else(|| bad_option(self.id(), "fields", "a list of names", item))
                })
                .collect::<Result<_>>()?,
            Some(other) => return Err(bad_option(self.id(), "fields", "a list of names", other)),
        };
        let mode = match string(self.id(), options, "mode")?.as_deref() {
            None | Some("all") => Mode::All,
            Some("mean") => Mode::Mean,
            Some(other) => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("evaluator `json_fields`: `mode` is `all` or `mean`, not `{other}`"),
                ));
            }
        };
        let target = required(self.id(), options, "target", "the column with the right JSON")?;
        Ok(Box::new(JsonFields { target, fields, mode }))
    }
}

impl Evaluator for JsonFields {
    fn id(&self) -> &str {
        "json_fields"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        needs.fields.push(self.target.clone());
        needs
    }

    fn step(&self, sample: &Sample, observation: &Observation, _: &[Answer]) -> Step {
        let unscored = |reason: String| Step::Unscored(Unscored::new(reason));
        let want = match gold(sample, &self.target) {
            Err(unscored) => return Step::Unscored(unscored),
            Ok(Value::Object(object)) => object.clone(),
            Ok(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Object(object)) => object,
                _ => return unscored(format!("column `{}` holds no JSON object", self.target)),
            },
            Ok(_) => return unscored(format!("column `{}` holds no JSON object", self.target)),
        };
        let names: Vec<&String> = match self.fields.is_empty() {
            true => want.keys().collect(),
            false => self.fields.iter().collect(),
        };
        if names.is_empty() {
            return unscored("the right answer has no fields".to_owned());
        }
        let found = find_object(&observation.text);
        let mut parts = Vec::new();
        let mut notes = Vec::new();
        for name in names {
            let Some(want) = want.get(name) else {
                return unscored(format!("the right answer has no field `{name}`"));
            };
            let got = found.as_ref().and_then(|object| object.get(name));
            let is_right = got.is_some_and(|got| is_same(want, got));
            parts.push((name.clone(), if is_right { 1.0 } else { 0.0 }));
            if !is_right && found.is_some() {
                let got = match got {
                    Some(got) => format!("got {}", shorten(&got.to_string())),
                    None => "it is missing".to_owned(),
                };
                notes.push(format!("{name}: expected {}, {got}", shorten(&want.to_string())));
            }
        }
        let share = parts.iter().map(|(_, v)| v).sum::<f64>() / parts.len() as f64;
        let mut score = match self.mode {
            Mode::All => Score::binary(parts.iter().all(|(_, v)| *v == 1.0)),
            Mode::Mean => Score::new(share),
        };
        if found.is_none() {
            score = score.with_note("the answer is not a JSON object");
        } else if !notes.is_empty() {
            score = score.with_note(notes.join("; "));
        }
        score.parts = parts;
        Step::Score(score)
    }
}

/// The first JSON object in an answer: the whole text, or the first that parses from a `{` on, so
/// that prose and code fences around it do not matter.
fn find_object(text: &str) -> Option<Map<String, Value>> {
    // More opening braces than this before the first object are not an honest answer.
    const MAX_STARTS: usize = 64;
    text.match_indices('{').take(MAX_STARTS).find_map(|(start, _)| {
        let mut stream = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        match stream.next() {
            Some(Ok(Value::Object(object))) => Some(object),
            _ => None,
        }
    })
}

/// Equal as values: 2 and 2.0 are the same number, text ignores surrounding white space.
fn is_same(want: &Value, got: &Value) -> bool {
    match (want, got) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::String(a), Value::String(b)) => a.trim() == b.trim(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| is_same(a, b)))
        }
        _ => want == got,
    }
}
