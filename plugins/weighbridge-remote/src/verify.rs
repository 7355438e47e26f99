//! What an answer has to be beyond whole: what was asked for is there, and is what was asked for.
//! The same for every protocol, since every vendor's word is checked on the output.

use jsonschema::Validator;
use serde_json::Value;
use weighbridge_core::{
    Constraint, Dropped, Error, ErrorKind, Request, RequestOption, Result, StopReason,
};

use crate::emitter::{Emitter, Ending};

/// Checks the answer to one request.
#[derive(Debug)]
pub(crate) struct Verifier {
    constraint: Option<Check>,
    logprobs: Option<Lack>,
}

#[derive(Debug)]
enum Check {
    Json(Box<Validator>),
    Regex(Box<regex::Regex>),
    Choice(Vec<String>),
}

/// What comes of log-probabilities that were asked for and are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Error,
    Warning,
}

impl Verifier {
    /// Options in `dropped` were not sent and are not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Constraint`] for a constraint that is none, before anything is sent.
    pub(crate) fn new(request: &Request, dropped: &[Dropped]) -> Result<Self> {
        let keeps = |option| dropped.iter().all(|d| d.option != option);
        let constraint = request.constraint.as_ref().filter(|_| keeps(RequestOption::Constraint));
        let is_wish = request.wishes.contains(&RequestOption::Logprobs);
        let lack = if is_wish { Lack::Warning } else { Lack::Error };
        Ok(Self {
            constraint: constraint.map(Check::new).transpose()?.flatten(),
            logprobs: request.logprobs.filter(|_| keeps(RequestOption::Logprobs)).map(|_| lack),
        })
    }

    /// The end of an answer, in the light of what was asked for. An answer that breaks its
    /// constraint is the model's own malformed output.
    ///
    /// # Errors
    /// `Unsupported` for log-probabilities that are not there.
    pub(crate) fn verify(&self, mut ending: Ending, out: &mut Emitter<'_>) -> Result<Ending> {
        self.verify_logprobs(out)?;
        let is_whole = matches!(ending.stop_reason, StopReason::Stop | StopReason::Other);
        if let Some(check) = &self.constraint
            && is_whole
            && !out.collected_text().trim().is_empty()
            && let Err(why) = check.holds(out.collected_text())
        {
            out.warning(format!("constraint_broken: {why}"));
            ending.stop_reason = StopReason::Malformed;
        }
        Ok(ending)
    }

    /// Tokens whose bytes are fewer than those of the text cannot be all of its tokens. Blanks do
    /// not count: some servers lose those at the edges of a token.
    fn verify_logprobs(&self, out: &mut Emitter<'_>) -> Result<()> {
        let Some(lack) = self.logprobs else { return Ok(()) };
        let n_solid = |bytes: &[u8]| bytes.iter().filter(|b| !b.is_ascii_whitespace()).count();
        // Half a character is one byte of a token, and this sign in the text.
        let n_bytes = |c: char| if c == char::REPLACEMENT_CHARACTER { 1 } else { c.len_utf8() };
        let solid = out.collected_text().chars().filter(|c| !c.is_whitespace());
        let n_text: usize = solid.map(n_bytes).sum();
        let n_tokens: usize = out.collected_logprobs().iter().map(|t| n_solid(&t.bytes)).sum();
        if n_tokens >= n_text {
            note_joined_tokens(out);
            return Ok(());
        }
        let why = match n_tokens {
            0 => "the server sent its answer without any",
            _ => "the server sent those of a part of its answer only",
        };
        match lack {
            Lack::Error => Err(Error::unsupported("logprobs", why)),
            Lack::Warning => {
                out.warning(format!("logprobs_missing: {why}"));
                Ok(())
            }
        }
    }
}

/// Some servers join tokens that end in the middle of a character with those after them, and lose
/// their log-probabilities. The count of tokens shows it, as far as all of them are text; one more
/// ends the turn.
fn note_joined_tokens(out: &mut Emitter<'_>) {
    let usage = out.collected_usage();
    let n_hidden = usage.n_reasoning_tokens.unwrap_or(0);
    let Some(n_generated) = usage.n_generated_tokens else { return };
    let n = out.collected_logprobs().len() as u64;
    let is_text = !out.has_reasoning() && !out.has_tool_calls();
    if n > 0 && is_text && n + 1 < n_generated.saturating_sub(n_hidden) {
        out.warning(format!("logprobs_partial: {n} for {n_generated} generated tokens"));
    }
}

impl Check {
    /// `None` for what only the server can judge.
    fn new(constraint: &Constraint) -> Result<Option<Self>> {
        let bad = |why: String| {
            Error::new(ErrorKind::Constraint, format!("the constraint cannot be used: {why}"))
        };
        Ok(match constraint {
            Constraint::JsonSchema(schema) => {
                let validator = jsonschema::validator_for(schema);
                Some(Self::Json(Box::new(validator.map_err(|error| bad(error.to_string()))?)))
            }
            Constraint::Regex(pattern) => {
                let whole = regex::Regex::new(&format!(r"\A(?:{pattern})\z"));
                Some(Self::Regex(Box::new(whole.map_err(|error| bad(error.to_string()))?)))
            }
            Constraint::Choice(texts) => Some(Self::Choice(texts.clone())),
            _ => None,
        })
    }

    fn holds(&self, text: &str) -> std::result::Result<(), String> {
        match self {
            Self::Json(validator) => {
                let value: Value = serde_json::from_str(text)
                    .map_err(|error| format!("the answer is not JSON: {error}"))?;
                validator.validate(&value).map_err(|error| {
                    // The value is the model's text; the place is enough.
                    format!("the answer breaks its JSON Schema at `{}`", error.schema_path())
                })
            }
            Self::Regex(pattern) if pattern.is_match(text) => Ok(()),
            Self::Regex(_) => Err("the answer does not match its regular expression".to_owned()),
            Self::Choice(texts) if texts.iter().any(|allowed| allowed == text) => Ok(()),
            Self::Choice(_) => Err("the answer is none of the texts to choose from".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Redactor;
    use serde_json::json;
    use std::time::Instant;
    use weighbridge_core::{StopSink, TokenLogprob};

    fn verified(request: &Request, text: &str, tokens: &[&[u8]]) -> Result<StopReason> {
        let redactor = Redactor::default();
        let mut sink = StopSink::never();
        let mut out = Emitter::new(&mut sink, &redactor, Instant::now());
        out.text(text);
        out.tokens(tokens.iter().map(|t| TokenLogprob::new(None, t.to_vec(), None)).collect());
        let ending = Ending { stop_reason: StopReason::Stop, raw: Some("stop".into()) };
        Ok(Verifier::new(request, &[])?.verify(ending, &mut out)?.stop_reason)
    }

    #[test]
    fn an_answer_that_breaks_its_constraint_is_malformed_output() {
        let schema = json!({"type": "object", "required": ["n"],
            "properties": {"n": {"type": "integer", "maximum": 9}}});
        let choice = Constraint::Choice(vec!["yes".into(), "no".into()]);
        for (constraint, text, expected) in [
            (Constraint::JsonSchema(schema.clone()), " {\"n\": 9}\n", StopReason::Stop),
            (Constraint::JsonSchema(schema.clone()), "{\"n\": 10}", StopReason::Malformed),
            (Constraint::JsonSchema(schema.clone()), "{\"n\": 9", StopReason::Malformed),
            // Nothing at all is empty, not malformed.
            (Constraint::JsonSchema(schema), " ", StopReason::Stop),
            (choice.clone(), "no", StopReason::Stop),
            (choice, "no!", StopReason::Malformed),
            (Constraint::Regex("a|b+".into()), "bbb", StopReason::Stop),
            (Constraint::Regex("a|b+".into()), "bbba", StopReason::Malformed),
        ] {
            let request = Request::user("Hi").with_constraint(constraint);
            assert_eq!(verified(&request, text, &[]).unwrap(), expected, "{text}");
        }
        let request =
            Request::user("Hi").with_constraint(Constraint::JsonSchema(json!({"type": "strange"})));
        assert_eq!(verified(&request, "1", &[]).unwrap_err().kind(), ErrorKind::Constraint);
    }

    #[test]
    fn joined_tokens_are_noted() {
        for (n_generated, n_reasoning, n_warnings) in [(4, 0, 1), (3, 0, 0), (9, 6, 0)] {
            let redactor = Redactor::default();
            let mut sink = StopSink::never();
            let mut out = Emitter::new(&mut sink, &redactor, Instant::now());
            out.text("ab");
            out.tokens(vec![TokenLogprob::new(None, b"a".to_vec(), Some(-1.0)); 2]);
            let mut usage = weighbridge_core::Usage::new(1, n_generated);
            usage.n_reasoning_tokens = Some(n_reasoning);
            out.usage(usage);
            let verifier = Verifier::new(&Request::user("Hi").with_logprobs(0), &[]).unwrap();
            let ending = Ending { stop_reason: StopReason::Stop, raw: None };
            let ending = verifier.verify(ending, &mut out).unwrap();
            let completion = out.completion(ending, std::time::Duration::ZERO, true, true);
            assert_eq!(completion.warnings.len(), n_warnings, "{:?}", completion.warnings);
        }
    }

    #[test]
    fn log_probabilities_are_of_all_tokens_or_an_error() {
        let mut request = Request::user("Hi").with_logprobs(0);
        assert!(verified(&request, "One two", &[b"One", b" two"]).is_ok());
        assert!(verified(&request, "One two", &[b"One", b"two"]).is_ok());
        assert!(verified(&request, "x\u{FFFD}\u{FFFD}", &[b"x", &[0x99], &[0x81]]).is_ok());
        assert!(verified(&request, "", &[]).is_ok());
        for tokens in [&[&b"One"[..]][..], &[]] {
            let error = verified(&request, "One two", tokens).unwrap_err();
            assert_eq!(error.context("option"), Some("logprobs"));
        }
        request.wishes.push(RequestOption::Logprobs);
        assert!(verified(&request, "One two", &[b"One"]).is_ok());
    }
}
