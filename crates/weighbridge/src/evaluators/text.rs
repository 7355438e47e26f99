//! Evaluators of plain text: `exact_match`, `contains`, `regex`.

use regex::Regex;
use serde_json::{Map, Value, json};
use weighbridge_core::{
    Answer, Error, ErrorKind, Evaluator, EvaluatorFactory, Needs, Observation, Result, Sample,
    Score, Step,
};

use super::{flag, gold_text, required, shorten, string};

/// Longest compiled regular expression, in bytes.
const REGEX_SIZE_LIMIT: usize = 4 << 20;

fn expected(want: &str, got: &str) -> String {
    format!("expected {:?}, got {:?}", shorten(want), shorten(got))
}

/// How texts are made comparable. Leading and trailing white space never counts.
#[derive(Clone, Copy, Debug)]
struct Normalize {
    ignore_case: bool,
    ignore_punctuation: bool,
}

impl Normalize {
    fn from_options(kind: &str, options: &Map<String, Value>) -> Result<Self> {
        Ok(Self {
            ignore_case: flag(kind, options, "ignore_case")?,
            ignore_punctuation: flag(kind, options, "ignore_punctuation")?,
        })
    }

    /// The wanted text and another, made comparable. A wanted text of nothing but punctuation is
    /// compared with its punctuation: otherwise every text would match it.
    fn both(self, want: &str, got: &str) -> (String, String) {
        let normal = self.apply(want);
        if normal.is_empty() {
            let with_punctuation = Self { ignore_punctuation: false, ..self };
            return (with_punctuation.apply(want), with_punctuation.apply(got));
        }
        (normal, self.apply(got))
    }

    fn apply(self, text: &str) -> String {
        let mut text = text.trim().to_owned();
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text = text
                .chars()
                .filter(|c| c.is_alphanumeric() || c.is_whitespace())
                .collect::<String>();
            text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        text
    }

    fn schema() -> [(&'static str, Value); 2] {
        [
            ("ignore_case", json!({"type": "boolean"})),
            ("ignore_punctuation", json!({"type": "boolean"})),
        ]
    }
}

fn schema(required: &[&str], own: &[(&'static str, Value)], normalize: bool) -> Value {
    let mut properties: Map<String, Value> =
        own.iter().map(|(name, rule)| ((*name).to_owned(), rule.clone())).collect();
    if normalize {
        properties.extend(Normalize::schema().map(|(n, r)| (n.to_owned(), r)));
    }
    json!({"type": "object", "properties": properties, "required": required})
}

/// Makes `exact_match` evaluators.
#[derive(Clone, Copy, Debug)]
pub struct ExactMatchFactory;

#[derive(Debug)]
struct ExactMatch {
    target: String,
    normalize: Normalize,
}

impl EvaluatorFactory for ExactMatchFactory {
    fn id(&self) -> &str {
        "exact_match"
    }

    fn summary(&self) -> &str {
        "right if the answer equals a column of the data"
    }

    fn option_schema(&self) -> Value {
        schema(&["target"], &[("target", json!({"type": "string"}))], true)
    }

    fn build(&self, options: &Map<String, Value>) -> Result<Box<dyn Evaluator>, Error> {
        Ok(Box::new(ExactMatch {
            target: required(self.id(), options, "target", "the column with the right answer")?,
            normalize: Normalize::from_options(self.id(), options)?,
        }))
    }
}

impl Evaluator for ExactMatch {
    fn id(&self) -> &str {
        "exact_match"
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
        let want = match gold_text(sample, &self.target) {
            Ok(want) => want,
            Err(unscored) => return Step::Unscored(unscored),
        };
        let got = &observation.text;
        let (want_normal, got_normal) = self.normalize.both(&want, got);
        if want_normal == got_normal {
            return Step::Score(Score::binary(true));
        }
        Step::Score(Score::binary(false).with_note(expected(want.trim(), got.trim())))
    }
}

/// Makes `contains` evaluators.
#[derive(Clone, Copy, Debug)]
pub struct ContainsFactory;

#[derive(Debug)]
enum Wanted {
    Column(String),
    Text(String),
}

#[derive(Debug)]
struct Contains {
    wanted: Wanted,
    normalize: Normalize,
}

impl EvaluatorFactory for ContainsFactory {
    fn id(&self) -> &str {
        "contains"
    }

    fn summary(&self) -> &str {
        "right if the answer contains a column of the data, or a fixed text"
    }

    fn option_schema(&self) -> Value {
        let own = [("target", json!({"type": "string"})), ("text", json!({"type": "string"}))];
        schema(&[], &own, true)
    }

    fn build(&self, options: &Map<String, Value>) -> Result<Box<dyn Evaluator>, Error> {
        let target = string(self.id(), options, "target")?;
        let text = string(self.id(), options, "text")?;
        let wanted = match (target, text) {
            (Some(column), None) => Wanted::Column(column),
            (None, Some(text)) if !text.trim().is_empty() => Wanted::Text(text),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "evaluator `contains` needs either `target` (a column) or a non-empty `text`",
                ));
            }
        };
        Ok(Box::new(Contains { wanted, normalize: Normalize::from_options(self.id(), options)? }))
    }
}

impl Evaluator for Contains {
    fn id(&self) -> &str {
        "contains"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        if let Wanted::Column(column) = &self.wanted {
            needs.fields.push(column.clone());
        }
        needs
    }

    fn step(&self, sample: &Sample, observation: &Observation, _: &[Answer]) -> Step {
        let want = match &self.wanted {
            Wanted::Text(text) => text.clone(),
            Wanted::Column(column) => match gold_text(sample, column) {
                Ok(text) => text,
                Err(unscored) => return Step::Unscored(unscored),
            },
        };
        let (needle, text) = self.normalize.both(&want, &observation.text);
        if text.contains(&needle) {
            return Step::Score(Score::binary(true));
        }
        let note = format!("{:?} is not in {:?}", shorten(&want), shorten(&observation.text));
        Step::Score(Score::binary(false).with_note(note))
    }
}

/// Makes `regex` evaluators.
#[derive(Clone, Copy, Debug)]
pub struct RegexFactory;

#[derive(Debug)]
struct RegexMatch {
    pattern: Regex,
    target: Option<String>,
    normalize: Normalize,
}

impl EvaluatorFactory for RegexFactory {
    fn id(&self) -> &str {
        "regex"
    }

    fn summary(&self) -> &str {
        "right if a pattern matches, or if its first group equals a column of the data"
    }

    fn option_schema(&self) -> Value {
        let own = [("pattern", json!({"type": "string"})), ("target", json!({"type": "string"}))];
        schema(&["pattern"], &own, true)
    }

    fn build(&self, options: &Map<String, Value>) -> Result<Box<dyn Evaluator>, Error> {
        let pattern = required(self.id(), options, "pattern", "a regular expression")?;
        let pattern = regex::RegexBuilder::new(&pattern)
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|e| {
                Error::new(
                    ErrorKind::InvalidInput,
                    "evaluator `regex`: `pattern` is not a regular expression",
                )
                .with_source(e)
            })?;
        let target = string(self.id(), options, "target")?;
        if target.is_some() && pattern.captures_len() < 2 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "evaluator `regex`: with `target`, `pattern` needs a group, as in `answer: (\\d+)`",
            ));
        }
        let normalize = Normalize::from_options(self.id(), options)?;
        Ok(Box::new(RegexMatch { pattern, target, normalize }))
    }
}

impl Evaluator for RegexMatch {
    fn id(&self) -> &str {
        "regex"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        needs.fields.extend(self.target.clone());
        needs
    }

    fn step(&self, sample: &Sample, observation: &Observation, _: &[Answer]) -> Step {
        // Before the answer is looked at: where there is no right one, no answer is wrong.
        let want = match &self.target {
            None => None,
            Some(column) => match gold_text(sample, column) {
                Ok(want) => Some(want),
                Err(unscored) => return Step::Unscored(unscored),
            },
        };
        let Some(captures) = self.pattern.captures(&observation.text) else {
            let note = format!("the pattern does not match {:?}", shorten(&observation.text));
            return Step::Score(Score::binary(false).with_note(note));
        };
        let Some(want) = want else { return Step::Score(Score::binary(true)) };
        let got = captures.get(1).map_or("", |m| m.as_str());
        let (want_normal, got_normal) = self.normalize.both(&want, got);
        if want_normal == got_normal {
            return Step::Score(Score::binary(true));
        }
        Step::Score(Score::binary(false).with_note(expected(&want, got)))
    }
}
