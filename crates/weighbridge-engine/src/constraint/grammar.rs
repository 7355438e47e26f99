//! From a [`Constraint`] to a grammar, and from llguidance's messages to typed errors.

use llguidance::api::{ParserLimits, TopLevelGrammar};
use serde_json::{Value, json};
use weighbridge_core::{Constraint, Error, ErrorKind, Result};

/// Deepest schema that is read; compiling recurses.
const MAX_SCHEMA_DEPTH: usize = 128;

/// Longest text of a regular expression or grammar, or of all choices together.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// White space of a JSON document, wherever it may stand. The bound keeps a weak model from writing
/// nothing else.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// What a grammar may cost. A mask ends after about 20 ms on the machines llguidance measured, and
/// the lexer's states stay below about 100 MB.
pub(super) fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}

/// The grammar of a constraint, checked as far as llguidance does not.
pub(super) fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar> {
    match constraint {
        Constraint::JsonSchema(schema) => {
            check_schema(schema)?;
            let mut schema = schema.clone();
            if schema == Value::Bool(true) {
                schema = json!({});
            }
            if let Some(map) = schema.as_object_mut() {
                map.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
            }
            Ok(TopLevelGrammar::from_json_schema(schema))
        }
        Constraint::Regex(pattern) => regex(pattern),
        Constraint::Lark(source) => {
            check_length("grammar", source.len())?;
            Ok(TopLevelGrammar::from_lark(source.clone()))
        }
        Constraint::Choice(choices) => choice(choices),
        _ => Err(Error::unsupported("constraint", "this build does not know its kind")),
    }
}

fn check_length(name: &str, n_bytes: usize) -> Result<()> {
    if n_bytes <= MAX_SOURCE_BYTES {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Constraint, format!("the {name} is too long"))
        .with("n_bytes", n_bytes)
        .with("limit", MAX_SOURCE_BYTES))
}

fn choice(choices: &[String]) -> Result<TopLevelGrammar> {
    if choices.is_empty() {
        return Err(Error::new(ErrorKind::InvalidRequest, "a choice needs at least one text"));
    }
    check_length("choice", choices.iter().map(String::len).sum())?;
    // Strings of Lark are strings of JSON. One terminal, so that a text may be the beginning of
    // another.
    let texts: Vec<String> =
        choices.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
    Ok(TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {}\n", texts.join(" | "))))
}

fn regex(pattern: &str) -> Result<TopLevelGrammar> {
    check_length("regular expression", pattern.len())?;
    // The whole text is matched, so anchors at both ends say nothing.
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let pattern = match pattern.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 0 => rest,
        _ => pattern,
    };
    let hir = regex_syntax::parse(pattern).map_err(|error| regex_error(&error))?;
    if !hir.properties().look_set().is_empty() {
        return Err(Error::unsupported(
            "regex",
            "anchors and word boundaries inside the expression; the whole text is matched anyway",
        )
        .with("regex", pattern));
    }
    if pattern.is_empty() {
        return Ok(TopLevelGrammar::from_lark("start: \"\"\n".to_owned()));
    }
    Ok(TopLevelGrammar::from_regex(pattern))
}

fn regex_error(error: &regex_syntax::Error) -> Error {
    use regex_syntax::ast::ErrorKind as Ast;
    let (message, span) = match error {
        regex_syntax::Error::Parse(error) => {
            if matches!(error.kind(), Ast::UnsupportedLookAround | Ast::UnsupportedBackreference) {
                return Error::unsupported("regex", error.kind())
                    .with("offset", error.span().start.offset);
            }
            (error.kind().to_string(), error.span())
        }
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), error.span()),
        error => return Error::new(ErrorKind::InvalidRequest, error.to_string()),
    };
    Error::new(ErrorKind::InvalidRequest, format!("the regular expression is invalid: {message}"))
        .with("offset", span.start.offset)
}

/// What llguidance would accept and not keep, and what would exhaust the stack.
fn check_schema(schema: &Value) -> Result<()> {
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "a JSON Schema is an object, `true` or `false`",
        ));
    }
    if schema.get("x-guidance").is_some() {
        return Err(Error::unsupported(
            "schema.x-guidance",
            "a schema may not loosen its own enforcement",
        ));
    }
    let mut rest = vec![(schema, 0)];
    while let Some((value, depth)) = rest.pop() {
        if depth > MAX_SCHEMA_DEPTH {
            return Err(Error::new(ErrorKind::Constraint, "the schema is nested too deeply")
                .with("limit", MAX_SCHEMA_DEPTH));
        }
        match value {
            Value::Object(map) => {
                check_min_properties(map)?;
                rest.extend(map.values().map(|value| (value, depth + 1)));
            }
            Value::Array(items) => rest.extend(items.iter().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// Names that the schema does not list could be repeated, and a repeated name is one property.
fn check_min_properties(schema: &serde_json::Map<String, Value>) -> Result<()> {
    let Some(n_min) = schema.get("minProperties").and_then(Value::as_u64) else { return Ok(()) };
    let n_required = schema.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    let is_closed = schema.get("additionalProperties") == Some(&Value::Bool(false))
        && !schema.contains_key("patternProperties");
    if is_closed || n_min <= n_required as u64 {
        return Ok(());
    }
    Err(Error::unsupported(
        "schema.minProperties",
        "only for objects with `additionalProperties: false`, or with as many `required` names",
    ))
}

/// llguidance's message about a grammar that it did not compile, as an error.
///
/// The messages are matched by their text, for there is nothing else; the tests name them.
pub(super) fn compile_error(constraint: &Constraint, message: &str) -> Error {
    let message = first_part(message);
    if let Constraint::JsonSchema(schema) = constraint
        && let Some(keyword) = unsupported_keyword(message, schema)
    {
        let why = "the decoder cannot keep it; leave it out, or check it after the call";
        return Error::unsupported(format!("schema.{keyword}"), why).with("detail", message);
    }
    let is_limit = [
        "too big (limit",
        "schema too large",
        "stack level exceeded",
        "too deeply nested",
        "fuel exhausted",
        "precomputation failed",
        "too many ",
        "panic: ",
    ]
    .iter()
    .any(|part| message.contains(part));
    if is_limit {
        let what = "the grammar needs more work than is allowed; make it smaller";
        return Error::new(ErrorKind::Constraint, what).with("detail", message);
    }
    let name = match constraint {
        Constraint::JsonSchema(_) => "JSON Schema",
        Constraint::Regex(_) => "regular expression",
        Constraint::Lark(_) => "grammar",
        _ => "constraint",
    };
    Error::new(ErrorKind::InvalidRequest, format!("the {name} is invalid: {message}"))
}

/// The keyword of a schema that a message is about, if it is one that cannot be kept.
fn unsupported_keyword(message: &str, schema: &Value) -> Option<String> {
    if let Some((_, list)) = message.split_once("Unimplemented keys: ") {
        let list = list.split_inclusive(']').next()?;
        let keywords: Vec<String> = serde_json::from_str(list).ok()?;
        return keywords.into_iter().next();
    }
    // The message names two keywords and means the one that the schema has.
    let has_max = schema.to_string().contains("\"maxProperties\"");
    let bound = if has_max { "maxProperties" } else { "minProperties" };
    let marks = [
        ("Unknown format", "format"),
        ("oneOf constraints are not supported", "oneOf"),
        ("min/maxProperties only supported", bound),
        ("patternProperty regexes", "patternProperties"),
        ("Only absolute $ref", "$ref"),
        ("circular references with sibling keys", "$ref"),
        ("look-around", "pattern"),
        ("backreference", "pattern"),
    ];
    marks.iter().find(|(mark, _)| message.contains(mark)).map(|(_, keyword)| (*keyword).to_owned())
}

/// Why a compiled grammar gives no mask or refuses a token.
pub(super) fn step_error(message: &str) -> Error {
    let message = first_part(message);
    let what = if message.contains("NoExtension") {
        "no token of the vocabulary goes on in the constraint's language"
    } else {
        "the constraint does not allow the token, or needs too much work for one"
    };
    Error::new(ErrorKind::Constraint, what).with("detail", message)
}

/// Without back traces and state dumps.
fn first_part(message: &str) -> &str {
    let end = ["\n<state>", "\n<backtrace>", "\n<non-verbose/>"]
        .iter()
        .filter_map(|mark| message.find(mark))
        .min();
    message[..end.unwrap_or(message.len())].trim()
}
