//! Chat templates: the Jinja of Hugging Face models, rendered as Python's `transformers` does.
//!
//! The environment is that of `transformers`: `trim_blocks`, `lstrip_blocks`, loop controls, `tojson`
//! without HTML escapes, `raise_exception`, `strftime_now`, values printed in Python's way, Python's
//! methods on strings, lists and dictionaries. `{% generation %}` tags are stripped. Differences:
//!
//! - `strftime_now` is there only if a date was injected ([`TemplateOptions::today`]); templates that
//!   ask `strftime_now is defined` then use their own fixed date. The library never asks the clock.
//! - Work, recursion and output are capped.
//! - Lists and dictionaries cannot be changed in place (`append`, `update`), which is an error.

mod date;
mod python;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Serde};
use minijinja::{AutoEscape, Environment};
use sha2::{Digest, Sha256};
use weighbridge_core::{Error, ErrorKind, Result};

pub use date::Date;

const NAME: &str = "chat_template";

/// Limits and injected facts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TemplateOptions {
    /// What `strftime_now` prints; `None`: templates find no such function.
    pub today: Option<Date>,
    /// Steps of the interpreter for one rendering.
    pub fuel: u64,
    /// Nested macros, blocks and includes.
    pub max_recursion: usize,
    /// Bytes of one rendering.
    pub max_output_bytes: usize,
    /// Bytes of the template's source.
    pub max_source_bytes: usize,
}

impl Default for TemplateOptions {
    /// No date, 20 million steps, recursion 100, 64 MiB of output, 1 MiB of source.
    fn default() -> Self {
        Self {
            today: None,
            fuel: 20_000_000,
            max_recursion: 100,
            max_output_bytes: 64 << 20,
            max_source_bytes: 1 << 20,
        }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    sha256: String,
    max_output_bytes: usize,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template's source.
    ///
    /// # Errors
    /// [`ErrorKind::Template`] with `template_sha256` and `line`.
    pub fn new(source: &str, options: &TemplateOptions) -> Result<Self> {
        let sha256 = hex::encode(Sha256::digest(source.as_bytes()));
        if source.len() > options.max_source_bytes {
            return Err(Error::new(ErrorKind::Template, "the chat template is too large")
                .with("n_bytes", source.len())
                .with("limit", options.max_source_bytes)
                .with("template_sha256", sha256));
        }
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| template_error(&error, &sha256))?);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_unknown_method_callback(python::method);
        env.set_formatter(python::print);
        env.set_fuel(Some(options.fuel));
        env.set_recursion_limit(options.max_recursion);
        env.add_filter("tojson", python::tojson);
        env.add_filter("wordcount", |text: &str| text.split_whitespace().count());
        env.add_function("raise_exception", |args: Rest<minijinja::Value>| {
            let message = args.first().map(ToString::to_string).unwrap_or_default();
            Err::<minijinja::Value, _>(
                minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, "refused")
                    .with_source(Refused(message)),
            )
        });
        if let Some(today) = options.today {
            env.add_function("strftime_now", move |format: &str| {
                today.strftime(format).map_err(|message| {
                    minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message)
                })
            });
        }
        env.add_template_owned(NAME, strip_generation_tags(source))
            .map_err(|error| template_error(&error, &sha256))?;
        Ok(Self { env, sha256, max_output_bytes: options.max_output_bytes })
    }

    /// Lower-case hex SHA-256 of the source as it was given.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Renders with these variables (`messages`, `tools`, `add_generation_prompt`, `bos_token`, …).
    ///
    /// # Errors
    /// [`ErrorKind::Template`] with `template_sha256` and `line`: the template refused the messages
    /// (`raise_exception`), failed, or went over a limit.
    pub fn render(&self, variables: &serde_json::Map<String, serde_json::Value>) -> Result<String> {
        let template =
            self.env.get_template(NAME).map_err(|error| template_error(&error, &self.sha256))?;
        let mut out = Capped { bytes: Vec::new(), n_left: self.max_output_bytes };
        // A template is foreign code, and minijinja 3.0.5 panics on some of it (`''[::-1]`).
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            template.render_captured_to(Serde(variables), &mut out).map(|_| ())
        }));
        rendered
            .map_err(|_| {
                Error::new(ErrorKind::Template, "the chat template made minijinja panic")
                    .with("template_sha256", &self.sha256)
            })?
            .map_err(|error| template_error(&error, &self.sha256))?;
        String::from_utf8(out.bytes).map_err(|error| {
            Error::new(ErrorKind::Template, "the chat template wrote invalid UTF-8")
                .with("template_sha256", &self.sha256)
                .with_source(error)
        })
    }
}

/// A refusal by `raise_exception`.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn template_error(error: &minijinja::Error, sha256: &str) -> Error {
    let mut sources = std::iter::successors(std::error::Error::source(error), |e| e.source());
    let refused = sources.find_map(|source| source.downcast_ref::<Refused>());
    let detail = error.detail().unwrap_or_default();
    let message = match error.kind() {
        _ if refused.is_some() => {
            format!("the chat template refuses these messages: {}", refused.map_or("", |r| &r.0))
        }
        minijinja::ErrorKind::OutOfFuel => "the chat template does not come to an end".to_owned(),
        minijinja::ErrorKind::UnknownFunction if detail.contains("strftime_now") => {
            "the chat template needs today's date; give one as `today` when opening the model"
                .to_owned()
        }
        minijinja::ErrorKind::SyntaxError => {
            format!("the chat template has a syntax error: {detail}")
        }
        kind => match detail {
            "" => format!("the chat template failed: {kind}"),
            _ => format!("the chat template failed: {kind}: {detail}"),
        },
    };
    let mut typed = Error::new(ErrorKind::Template, message).with("template_sha256", sha256);
    if let Some(line) = error.line() {
        typed = typed.with("line", line);
    }
    typed
}

/// Output that ends at a limit.
struct Capped {
    bytes: Vec<u8>,
    n_left: usize,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.n_left = self
            .n_left
            .checked_sub(bytes.len())
            .ok_or_else(|| io::Error::other("the rendering is longer than the limit"))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Replaces `{% generation %}` and `{% endgeneration %}` (which only mark training data) by empty
/// `with` blocks: white space around them is trimmed as before, and variables set inside stay inside.
fn strip_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(n_tag) = rest[start..].find("%}").map(|n| n + 2) else { break };
        let tag = &rest[start..start + n_tag];
        let inner = &tag[2..tag.len() - 2];
        let name = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        out.push_str(&rest[..start]);
        match name {
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => {
                // Not the whole tag: a string in it may hold `{%` of its own.
                out.push_str("{%");
                rest = &rest[start + 2..];
                continue;
            }
        }
        rest = &rest[start + n_tag..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value, json};

    #[track_caller]
    fn render_with(source: &str, variables: Value, options: &TemplateOptions) -> Result<String> {
        let variables: Map<String, Value> = variables.as_object().unwrap().clone();
        ChatTemplate::new(source, options)?.render(&variables)
    }

    #[track_caller]
    fn render(source: &str, variables: Value) -> String {
        render_with(source, variables, &TemplateOptions::default()).unwrap()
    }

    #[test]
    fn values_are_printed_in_python_s_way() {
        let shown = render(
            "{{ t }} {{ n }} {{ f }} {{ d }} {{ l }} {{ missing }}|",
            json!({"t": true, "n": null, "f": 1.0, "d": {"a": [1, "x'y"], "b": "é\n"}, "l": [null, false]}),
        );
        assert_eq!(shown, "True None 1.0 {'a': [1, \"x'y\"], 'b': 'é\\n'} [None, False] |");
    }

    #[test]
    fn tojson_has_the_options_of_transformers() {
        let v = json!({"v": {"b": "<é & 'x'>", "a": [1, 2.5, true, null, {}], "c": []}});
        assert_eq!(
            render("{{ v | tojson }}", v.clone()),
            "{\"b\": \"<é & 'x'>\", \"a\": [1, 2.5, true, null, {}], \"c\": []}"
        );
        assert_eq!(
            render(
                "{{ v | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
                v.clone()
            ),
            "{\"a\":[1,2.5,true,null,{}],\"b\":\"<\\u00e9 & 'x'>\",\"c\":[]}"
        );
        assert_eq!(
            render("{{ v | tojson(indent=2) }}", v),
            "{\n  \"b\": \"<é & 'x'>\",\n  \"a\": [\n    1,\n    2.5,\n    true,\n    null,\n    {}\n  ],\n  \"c\": []\n}"
        );
    }

    #[test]
    fn a_refusal_and_a_failure_name_hash_and_line() {
        let error = render_with(
            "a\n{{ raise_exception('roles must alternate') }}",
            json!({}),
            &TemplateOptions::default(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Template);
        assert!(
            error.message().ends_with("refuses these messages: roles must alternate"),
            "{error}"
        );
        assert_eq!(error.context("line"), Some("2"));
        assert_eq!(error.context("template_sha256").unwrap().len(), 64);
        let error = render_with("{{ x", json!({}), &TemplateOptions::default()).unwrap_err();
        assert!(error.message().contains("syntax error"), "{error}");
        let error =
            render_with("\n\n{{ 'a'.frobnicate() }}", json!({}), &TemplateOptions::default())
                .unwrap_err();
        assert!(error.message().contains("frobnicate"), "{error}");
        assert_eq!(error.context("line"), Some("3"));
    }

    #[test]
    fn today_is_injected_or_absent() {
        let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}fixed{% endif %}";
        assert_eq!(render(source, json!({})), "fixed");
        let options =
            TemplateOptions { today: Date::new(2024, 7, 26), ..TemplateOptions::default() };
        assert_eq!(render_with(source, json!({}), &options).unwrap(), "26 Jul 2024");
        let error = render_with("{{ strftime_now('%Y') }}", json!({}), &TemplateOptions::default())
            .unwrap_err();
        assert!(error.message().contains("needs today's date"), "{error}");
    }

    #[test]
    fn endless_work_and_output_are_stopped() {
        let options = TemplateOptions { fuel: 10_000, ..TemplateOptions::default() };
        let loops = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
        let error = render_with(loops, json!({}), &options).unwrap_err();
        assert!(error.message().contains("does not come to an end"), "{error}");
        let options = TemplateOptions { max_output_bytes: 10, ..TemplateOptions::default() };
        assert!(render_with("{{ 'x' * 11 }}", json!({}), &options).is_err());
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(render_with(recursive, json!({}), &TemplateOptions::default()).is_err());
    }

    #[test]
    fn a_panic_inside_minijinja_is_an_error() {
        // Once minijinja handles this, take the case out; `catch_unwind` stays for the next one.
        let error =
            render_with("{{ ''[::-1] }}", json!({}), &TemplateOptions::default()).unwrap_err();
        assert!(error.message().contains("minijinja panic"), "{error}");
    }

    #[test]
    fn generation_tags_are_stripped_with_their_white_space_rules() {
        let shown = render("a\n  {% generation %}\nb\n  {%- endgeneration %}\nc", json!({}));
        assert_eq!(shown, "a\nbc");
        assert_eq!(strip_generation_tags("{{ '{% generation %}' "), "{{ '{% with %}' ");
    }
}
