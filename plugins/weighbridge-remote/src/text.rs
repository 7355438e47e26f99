//! Text that may be shown: keys taken out, control characters made visible, length limited.

use serde_json::Value;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use weighbridge_core::{Error, Secret};

/// Longest excerpt of a foreign text in an error, in bytes.
pub(crate) const MAX_EXCERPT_BYTES: usize = 4 << 10;

/// Takes a key out of texts, by its value and not by a pattern.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    needles: Vec<String>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("n_needles", &self.needles.len()).finish()
    }
}

impl Redactor {
    /// Knows the key as it is, and as base64, hexadecimal, percent and JSON encodings show it.
    pub(crate) fn new(secret: &Secret) -> Self {
        let key = secret.expose();
        if key.is_empty() {
            return Self::default();
        }
        let json = serde_json::Value::from(key).to_string();
        let hex = |upper: bool| -> String {
            key.bytes()
                .map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") })
                .collect()
        };
        let percent: String = key
            .bytes()
            .map(|b| match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    char::from(b).to_string()
                }
                _ => format!("%{b:02X}"),
            })
            .collect();
        let mut needles = vec![
            key.to_owned(),
            json.trim_matches('"').to_owned(),
            percent,
            STANDARD.encode(key),
            STANDARD_NO_PAD.encode(key),
            URL_SAFE_NO_PAD.encode(key),
            hex(false),
            hex(true),
        ];
        needles.retain(|needle| !needle.is_empty());
        // The longest first, so that no form leaves the rest of a longer one behind.
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
        needles.dedup();
        Self { needles }
    }

    /// The text without the key.
    pub(crate) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for needle in &self.needles {
            if text.contains(needle.as_str()) {
                text = text.replace(needle.as_str(), "[redacted]");
            }
        }
        text
    }

    /// JSON without the key, in names and texts at any depth.
    pub(crate) fn redact_json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.redact(&text)),
            Value::Array(items) => items.into_iter().map(|item| self.redact_json(item)).collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(name, value)| (self.redact(&name), self.redact_json(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other,
        }
    }

    /// An excerpt for an error: redacted before it is cut, so that no half of a key is left.
    pub(crate) fn excerpt(&self, text: &str, max_bytes: usize) -> String {
        let text = escape(&self.redact(text));
        if text.len() <= max_bytes {
            return text;
        }
        let mut end = max_bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}…", &text[..end])
    }

    /// The same error without the key in its message, its context or its causes.
    pub(crate) fn clean(&self, error: Error) -> Error {
        let mut clean = Error::new(error.kind(), self.redact(error.message()));
        for (name, value) in error.contexts() {
            clean = clean.with(name.to_owned(), self.redact(value));
        }
        if let Some(source) = std::error::Error::source(&error) {
            clean = clean.with_source(self.cause(source));
        }
        clean.with_retry(error.retry())
    }

    /// A chain of causes as one text: foreign error types may print what we keep out of errors.
    pub(crate) fn cause(&self, error: &(dyn std::error::Error + 'static)) -> Cause {
        let mut text = String::new();
        let mut next = Some(error);
        while let Some(error) = next {
            let part = error.to_string();
            if !text.contains(&part) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&part);
            }
            next = error.source();
        }
        Cause(self.excerpt(&text, MAX_EXCERPT_BYTES))
    }
}

/// What lies behind an error, as text.
#[derive(Debug)]
pub(crate) struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

/// Makes control and direction-changing characters visible.
pub(crate) fn escape(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let is_unsafe = c.is_control()
            || matches!(c, '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}');
        if is_unsafe {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighbridge_core::{ErrorKind, Retry};

    #[test]
    fn json_is_redacted_at_any_depth() {
        let redactor = Redactor::new(&Secret::new("sk-canary-1"));
        let value = serde_json::json!({"a": [{"sk-canary-1": "Bearer sk-canary-1"}], "n": 1});
        let shown = redactor.redact_json(value).to_string();
        assert!(!shown.contains("canary") && shown.contains("[redacted]"), "{shown}");
    }

    #[test]
    fn a_key_is_taken_out_in_every_form_before_the_cut() {
        let redactor = Redactor::new(&Secret::new("sk-ca/na+ry\"1"));
        for form in [
            "sk-ca/na+ry\"1",
            "sk-ca/na+ry\\\"1",
            "sk-ca%2Fna%2Bry%221",
            "736b2d63612f6e612b72792231",
            &STANDARD.encode("sk-ca/na+ry\"1"),
        ] {
            let shown = redactor.excerpt(&format!("bad key {form}!"), 100);
            assert_eq!(shown, "bad key [redacted]!", "{form}");
        }
        assert_eq!(redactor.excerpt("12345 sk-ca/na+ry\"1", 10), "12345 [red…");
        assert!(!format!("{redactor:?}").contains("sk-"));
    }

    #[test]
    fn a_clean_error_keeps_kind_context_and_advice() {
        let redactor = Redactor::new(&Secret::new("canary"));
        let error = Error::new(ErrorKind::Auth, "no canary")
            .with("body", "canary!")
            .with_source(std::io::Error::other("canary?"))
            .with_retry(Retry::Safe { after: None });
        let clean = redactor.clean(error);
        assert_eq!(clean.report(), "no [redacted] (body=[redacted]!): [redacted]?");
        assert_eq!(clean.kind(), ErrorKind::Auth);
        assert_eq!(clean.retry(), Retry::Safe { after: None });
        assert!(!format!("{clean:?}").contains("canary"));
    }

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(escape("a\u{1b}[31m\n\u{202e}b"), "a\\u{1b}[31m\\n\\u{202e}b");
    }
}
