//! Secrets: values that are used and never shown.

use std::fmt;

/// A key or token. `Debug` and `Display` are redacted and it cannot be serialized.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret value; surrounding white space (a trailing newline from a file) is cut.
    pub fn new(value: impl AsRef<str>) -> Self {
        Self(value.as_ref().trim().to_owned())
    }

    /// The value, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Replaces every occurrence of the value in `text` by `[redacted]`.
    pub fn redact(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "[redacted]") }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([redacted])")
    }
}

/// Where keys come from. Libraries never read the environment: the program passes a source.
pub trait Secrets: fmt::Debug + Send + Sync {
    /// The secret of that name, for instance `OPENAI_API_KEY`.
    fn secret(&self, name: &str) -> Option<Secret>;

    /// Where that secret was looked for in vain, and why it was not found there, fit to follow
    /// "no key for …: ". Never holds a value.
    fn why_missing(&self, name: &str) -> String {
        format!("the secret `{name}` is not set")
    }
}

/// A source without any secret.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn secret(&self, _name: &str) -> Option<Secret> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_value() {
        let secret = Secret::new("sk-canary-1\n");
        assert_eq!(format!("{secret:?}"), "Secret([redacted])");
        assert_eq!(secret.expose(), "sk-canary-1");
        assert_eq!(secret.redact("bad key sk-canary-1!"), "bad key [redacted]!");
    }
}
