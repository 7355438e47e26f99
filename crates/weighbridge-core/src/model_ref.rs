//! How a model is named: `PROVIDER:LOCATION[@revision][#variant]`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// A model's name. The scheme is always the provider; nothing is guessed from the location.
///
/// The variant is what follows the first `#`; the revision what follows the last `@` behind the
/// last `/`. So URLs with user names and Windows paths stay whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ModelRef {
    /// The provider's id.
    pub provider: String,
    /// A path, a URL, or the vendor's model id.
    pub location: String,
    /// A revision, such as a commit.
    pub revision: Option<String>,
    /// A part of the location: a model behind a URL, a column of a file.
    pub variant: Option<String>,
}

impl ModelRef {
    /// A name without revision and variant.
    pub fn new(provider: impl Into<String>, location: impl Into<String>) -> Self {
        Self { provider: provider.into(), location: location.into(), revision: None, variant: None }
    }
}

impl FromStr for ModelRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "cannot read the model name `{text}`: {why}; write PROVIDER:LOCATION, for instance `candle:models/my-model`"
                ),
            )
        };
        let (provider, rest) = text.split_once(':').ok_or_else(|| bad("no provider"))?;
        if provider.is_empty()
            || !provider.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(bad("a provider is lower-case letters, digits and `-`"));
        }
        let (rest, variant) = match rest.split_once('#') {
            Some((rest, variant)) => (rest, Some(variant.to_owned())),
            None => (rest, None),
        };
        let tail = rest.rfind(['/', '\\']).map_or(0, |i| i + 1);
        let (location, revision) = match rest[tail..].rfind('@') {
            Some(i) if i > 0 => (&rest[..tail + i], Some(rest[tail + i + 1..].to_owned())),
            _ => (rest, None),
        };
        if location.is_empty() {
            return Err(bad("the location is empty"));
        }
        if variant.as_deref() == Some("") || revision.as_deref() == Some("") {
            return Err(bad("nothing follows `#` or `@`"));
        }
        Ok(Self { provider: provider.to_owned(), location: location.to_owned(), revision, variant })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.provider, self.location)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(variant) = &self.variant {
            write!(f, "#{variant}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        for (text, provider, location, revision, variant) in [
            ("candle:fixtures/triage-open", "candle", "fixtures/triage-open", None, None),
            (
                "openai-compatible:http://127.0.0.1:8080/v1#m",
                "openai-compatible",
                "http://127.0.0.1:8080/v1",
                None,
                Some("m"),
            ),
            ("openai-compatible:http://u@h/v1", "openai-compatible", "http://u@h/v1", None, None),
            ("candle:org/repo@abc", "candle", "org/repo", Some("abc"), None),
            ("recorded:log.csv#answer", "recorded", "log.csv", None, Some("answer")),
        ] {
            let name: ModelRef = text.parse().unwrap();
            assert_eq!(name.provider, provider);
            assert_eq!(name.location, location);
            assert_eq!(name.revision.as_deref(), revision);
            assert_eq!(name.variant.as_deref(), variant);
            assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for text in ["gpt-4", ":x", "candle:", "Candle:x", "candle:x#", "candle:a@"] {
            let error = text.parse::<ModelRef>().unwrap_err();
            assert!(error.to_string().contains("PROVIDER:LOCATION"), "{error}");
        }
    }
}
