//! Text that may be shown: keys taken out, control characters made visible, length limited.

use serde_json::Value;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use weighbridge_core::{Error, Secret};

/// Longest excerpt of a foreign text in an error, in bytes.
pub(crate) const MAX_EXCERPT_BYTES: usize = 4 << 10;

/// A key below this can be guessed, so it guards nothing.
const MIN_GUARDED_CHARS: usize = 16;
/// How long a character of a key is at most in any of its forms: four bytes in hexadecimal.
const MAX_FORM_BYTES: usize = 8;
/// What stands where a key stood.
const REDACTED: &str = "[redacted]";

/// Takes a key out of texts, by its value and not by a pattern.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    /// How each character of the key may be written.
    spellings: Vec<Vec<String>>,
    /// The first bytes of how the first one may be written.
    first_bytes: Vec<u8>,
    /// The key in base64, alone and within other bytes, and in hexadecimal; longest first, ASCII.
    encodings: Vec<String>,
}

/// What a text says about the key from some place on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The key, up to here.
    Whole(usize),
    /// Its beginning, and there the text ends.
    Open,
    Not,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("n_encodings", &self.encodings.len()).finish()
    }
}

impl Redactor {
    /// Knows the key as it is, percent-encoded, escaped for JSON or HTML, broken over lines, and in
    /// base64 and hexadecimal.
    pub(crate) fn new(secret: &Secret) -> Self {
        let key = secret.expose();
        if key.is_empty() {
            return Self::default();
        }
        let hex: String = key.bytes().map(|b| format!("{b:02x}")).collect();
        let mut encodings = vec![hex.to_uppercase(), hex, STANDARD.encode(key)];
        for n_before in 0..3 {
            for encoding in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let within = base64_within(&encoding, key, n_before);
                // Few characters are found in texts that have nothing to do with the key.
                encodings.extend((within.len() >= 8).then_some(within));
            }
        }
        // The longest first, so that no form leaves the rest of a longer one behind.
        encodings.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        encodings.dedup();
        let spellings: Vec<_> = key.chars().map(spellings).collect();
        let mut first_bytes: Vec<_> = spellings[0].iter().map(|text| text.as_bytes()[0]).collect();
        first_bytes.sort_unstable();
        first_bytes.dedup();
        Self { spellings, first_bytes, encodings }
    }

    /// Whether the key is also taken out of what a model says. A short one is no secret but a word
    /// that servers on this machine want to see, such as `EMPTY`, and may be part of an answer.
    pub(crate) fn guards_content(&self) -> bool {
        self.spellings.len() >= MIN_GUARDED_CHARS
    }

    /// The text without the key.
    pub(crate) fn redact(&self, text: &str) -> String {
        self.redacted(text).unwrap_or_else(|| text.to_owned())
    }

    /// The text without the key; `None` if it does not hold it.
    pub(crate) fn redacted(&self, text: &str) -> Option<String> {
        // No form is shorter than the key.
        if text.len() < self.spellings.len() {
            return None;
        }
        let mut clean: Option<String> = None;
        for encoding in &self.encodings {
            let text = clean.as_deref().unwrap_or(text);
            if text.len() >= encoding.len() && text.contains(encoding.as_str()) {
                clean = Some(text.replace(encoding.as_str(), REDACTED));
            }
        }
        self.without_spelled(clean.as_deref().unwrap_or(text)).or(clean)
    }

    /// The text without the key in characters; `None` if it does not hold it.
    fn without_spelled(&self, text: &str) -> Option<String> {
        let mut clean = String::new();
        let mut n_read = 0;
        for start in self.starts(text) {
            if start >= n_read
                && let Seen::Whole(end) = self.spelled(text, start, 0)
            {
                clean.push_str(&text[n_read..start]);
                clean.push_str(REDACTED);
                n_read = end;
            }
        }
        (n_read > 0).then(|| clean + &text[n_read..])
    }

    /// How many bytes at the end of a text may be the beginning of the key in one of its forms.
    pub(crate) fn n_open(&self, text: &str) -> usize {
        let bytes = text.as_bytes();
        let encoded = self.encodings.iter().filter_map(|encoding| {
            let from = bytes.len().saturating_sub(encoding.len() - 1);
            (from..bytes.len()).find(|&i| encoding.as_bytes().starts_with(&bytes[i..]))
        });
        let spelled = self.starts(text).find(|&i| self.spelled(text, i, 0) == Seen::Open);
        encoded.chain(spelled).min().map_or(0, |start| bytes.len() - start)
    }

    /// Where the key could begin.
    fn starts<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        (0..text.len()).filter(|&i| self.first_bytes.contains(&text.as_bytes()[i]))
    }

    /// Reads the key's characters from the `i`-th on, with line breaks between them.
    fn spelled(&self, text: &str, start: usize, i: usize) -> Seen {
        let Some(spellings) = self.spellings.get(i) else { return Seen::Whole(start) };
        let after_breaks =
            if i == 0 { start } else { text.len() - skip_breaks(&text[start..]).len() };
        let mut seen = Seen::Not;
        // An escaped line end may also be an escaped character.
        let starts = [start, after_breaks];
        for &start in &starts[..1 + usize::from(after_breaks > start)] {
            let rest = &text[start..];
            for spelling in spellings {
                let found = if rest.starts_with(spelling.as_str()) {
                    self.spelled(text, start + spelling.len(), i + 1)
                } else if spelling.starts_with(rest) {
                    Seen::Open
                } else {
                    Seen::Not
                };
                match found {
                    Seen::Whole(_) => return found,
                    Seen::Open => seen = Seen::Open,
                    Seen::Not => {}
                }
            }
        }
        seen
    }

    /// JSON without the key, in names and texts at any depth.
    pub(crate) fn redact_json(&self, value: Value) -> Value {
        if !self.is_in_json(&value) {
            return value;
        }
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

    fn is_in_json(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.redacted(text).is_some(),
            Value::Array(items) => items.iter().any(|item| self.is_in_json(item)),
            Value::Object(fields) => fields
                .iter()
                .any(|(name, value)| self.redacted(name).is_some() || self.is_in_json(value)),
            _ => false,
        }
    }

    /// An excerpt for an error: redacted before it is cut, so that no half of a key is left.
    pub(crate) fn excerpt(&self, text: &str, max_bytes: usize) -> String {
        // Texts may be long, and no form needs more bytes but for line breaks.
        let n_key = MAX_FORM_BYTES * self.spellings.len();
        let near = &text[..text.floor_char_boundary(max_bytes + n_key)];
        let mut shown = self.redact(near);
        if near.len() < text.len() {
            shown.truncate(shown.len() - self.n_open(&shown));
        }
        let shown = escape(&shown);
        if near.len() == text.len() && shown.len() <= max_bytes {
            return shown;
        }
        format!("{}…", &shown[..shown.floor_char_boundary(max_bytes)])
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

/// How encoders write a character.
fn spellings(c: char) -> Vec<String> {
    let mut all = vec![c.to_string()];
    if !c.is_ascii() {
        return all;
    }
    let code = u32::from(c);
    all.extend([format!("%{code:02X}"), format!("\\u{code:04x}"), format!("&#{code};")]);
    all.extend([format!("&#x{code:x};"), format!("&#x{code:X};")]);
    if c.is_ascii_punctuation() {
        all.extend([format!("%{code:02x}"), format!("\\u{code:04X}"), format!("\\{c}")]);
    }
    let name = match c {
        '&' => "&amp;",
        '<' => "&lt;",
        '>' => "&gt;",
        '"' => "&quot;",
        '\'' => "&apos;",
        _ => return all,
    };
    all.push(name.to_owned());
    all
}

/// The text after white space and escaped line ends.
fn skip_breaks(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        let escape = text.trim_start_matches('\\');
        match escape.strip_prefix(['n', 'r', 't']) {
            Some(rest) if escape.len() < text.len() => text = rest,
            _ => return text,
        }
    }
}

/// The characters of a base64 text that are the key's own where `n_before` bytes come before it.
fn base64_within(encoding: &GeneralPurpose, key: &str, n_before: usize) -> String {
    let text = encoding.encode([&[0; 2][..n_before], key.as_bytes()].concat());
    let n_bits = 8 * (n_before + key.len());
    // The first character after all that have bits of what comes before, and the last whole one.
    text[(8 * n_before).div_ceil(6)..n_bits / 6].to_owned()
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
            "sk-ca/na+ry&quot;1",
            "sk-ca/na+ry&#34;1",
            "sk-ca&#x2f;na+ry&quot;1",
            "sk-ca/na+ry\\u00221",
            "sk-ca/na+ry%221",
            "sk-ca/\\n na+ry\"1",
            "sk-ca/\\nna+ry\"1",
            "sk-ca/\n  na+ry\"\r\n1",
            &STANDARD.encode("sk-ca/na+ry\"1"),
        ] {
            let shown = redactor.excerpt(&format!("bad key {form}!"), 100);
            assert_eq!(shown, "bad key [redacted]!", "{form}");
        }
        assert_eq!(redactor.excerpt("12345 sk-ca/na+ry\"1", 10), "12345 [red…");
        assert!(!format!("{redactor:?}").contains("sk-"));
    }

    #[test]
    fn every_occurrence_is_taken_out() {
        let redactor = Redactor::new(&Secret::new("sk-canary"));
        let (n, hex) = (20_000, "736b2d63616e617279");
        let text = format!("ü sk-canary, sk-%63anary; {hex}sk-canary").repeat(n);
        let expected = "ü [redacted], [redacted]; [redacted][redacted]".repeat(n);
        assert_eq!(redactor.redact(&text), expected);
        assert_eq!(redactor.redacted(&"sk-canar ".repeat(n)), None);
    }

    #[test]
    fn an_excerpt_of_a_long_text_shows_no_beginning_of_a_key() {
        let key = "sk-ca/na+ry\"1";
        let redactor = Redactor::new(&Secret::new(key));
        let broken = key.replace("/", &format!("/{}", " \n".repeat(1000)));
        let hex: String = key.bytes().map(|b| format!("{b:02x}")).collect();
        for form in [key, &broken, &hex, &STANDARD.encode(key)] {
            // Before, at and beyond the cut.
            for n_before in 0..300 {
                let text = format!("{}{form}{}", "ä".repeat(n_before), "z".repeat(1000));
                let shown = redactor.excerpt(&text, 40);
                let all = format!("{}[redacted]{}", "ä".repeat(n_before), "z".repeat(1000));
                // Where the key may go on for long, nothing of it is shown at all.
                let whole = format!("{}…", &all[..all.floor_char_boundary(40)]);
                let before = format!("{}…", "ä".repeat(n_before));
                assert!(shown == whole || shown == before, "{n_before} {form}: {shown}");
            }
        }
    }

    #[test]
    fn base64_is_known_wherever_the_key_begins() {
        let key = "sk-ca/na+ry\"1";
        let redactor = Redactor::new(&Secret::new(key));
        for (before, after) in
            [("", ":x"), ("a", "b"), ("ab", ""), ("user:", "  "), ("{\"k\":\"", "\"}")]
        {
            for encoding in [STANDARD, URL_SAFE_NO_PAD] {
                let shown = redactor.redact(&encoding.encode(format!("{before}{key}{after}")));
                assert!(shown.contains(REDACTED), "{before} {after}: {shown}");
                // What is left may tell the last bits of a character, and no more.
                assert!(shown.len() <= 10 + 4 * (before.len() + after.len()) / 3 + 8, "{shown}");
            }
        }
    }

    #[test]
    fn the_beginning_of_a_key_is_seen_at_the_end_of_a_text() {
        let redactor = Redactor::new(&Secret::new("sk-canary"));
        for (text, n) in [
            ("", 0),
            ("risk", 2),
            ("bad key sk-", 3),
            ("sk-canar", 8),
            ("sk-canary", 0),
            ("c2stY2", 6),
            ("736b2", 5),
            ("sk-x", 0),
            ("\\u007", 5),
            ("sk-\n ", 5),
            ("sk-\\", 4),
            ("ssk-ca", 5),
            ("\u{1F600}s", 1),
        ] {
            assert_eq!(redactor.n_open(text), n, "{text}");
        }
        assert_eq!(Redactor::default().n_open("sk-"), 0);
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
