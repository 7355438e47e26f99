//! Where keys come from: the environment, a file that only its owner can read, a keyring.
//!
//! A library reads none of them by itself; a program that wants them says so:
//!
//! ```
//! use std::sync::Arc;
//! use weighbridge::keys::{EnvironmentKeys, KeyFile, Keys};
//! use weighbridge::{Environment, Registry};
//!
//! let mut keys = Keys::new().with(EnvironmentKeys);
//! if let Some(path) = KeyFile::usual_path() {
//!     keys = keys.with(KeyFile::new(path));
//! }
//! let environment = Environment::new(Registry::new([])?).with_secrets(Arc::new(keys));
//! # Ok::<(), weighbridge::Error>(())
//! ```

mod file;
#[cfg(feature = "keyring")]
mod keyring;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use weighbridge_core::{Error, ErrorKind, Result, Secret, Secrets};

pub use file::KeyFile;
#[cfg(feature = "keyring")]
pub use keyring::Keyring;

/// One place that may hold keys.
pub trait KeySource: fmt::Debug + Send + Sync {
    /// What it is called in messages: "the environment".
    fn name(&self) -> String;

    /// The key of that name; `None` if this place has none.
    ///
    /// # Errors
    /// Where the place cannot be read or must not be trusted. Never holds a value.
    fn get(&self, name: &str) -> Result<Option<Secret>>;

    /// What is unsafe about this place although it is used.
    fn warning(&self) -> Option<String> {
        None
    }
}

/// Environment variables.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnvironmentKeys;

impl KeySource for EnvironmentKeys {
    fn name(&self) -> String {
        "the environment".to_owned()
    }

    fn get(&self, name: &str) -> Result<Option<Secret>> {
        match std::env::var(name) {
            Ok(value) => Ok(Some(Secret::new(value)).filter(|secret| !secret.expose().is_empty())),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("the environment variable `{name}` is not UTF-8"),
            )),
        }
    }
}

/// What came of looking for one key. Holds no value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Looked {
    /// The key's name.
    pub name: String,
    /// Where it was found.
    pub source: Option<String>,
    /// What is wrong with the places that were asked, one line each.
    pub notes: Vec<String>,
}

/// Places that are asked in order; the first that has a key wins, and is named.
#[derive(Debug, Default)]
pub struct Keys {
    sources: Vec<Box<dyn KeySource>>,
    /// A place is asked once for each name, so that all of a run uses one value.
    found: Mutex<BTreeMap<String, (Option<Secret>, Looked)>>,
}

impl Keys {
    /// No place.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a place that is asked after those before it.
    #[must_use]
    pub fn with(mut self, source: impl KeySource + 'static) -> Self {
        self.sources.push(Box::new(source));
        self
    }

    /// What came of every key that was looked for so far, by name.
    pub fn looked(&self) -> Vec<Looked> {
        self.lock().values().map(|(_, looked)| looked.clone()).collect()
    }

    /// Looks for a key, or tells what an earlier search found.
    pub fn look(&self, name: &str) -> (Option<Secret>, Looked) {
        let mut found = self.lock();
        if let Some(known) = found.get(name) {
            return known.clone();
        }
        let result = self.search(name);
        found.insert(name.to_owned(), result.clone());
        result
    }

    fn search(&self, name: &str) -> (Option<Secret>, Looked) {
        let mut looked = Looked { name: name.to_owned(), source: None, notes: Vec::new() };
        for source in &self.sources {
            match source.get(name) {
                Ok(Some(secret)) => {
                    looked.notes.extend(source.warning());
                    looked.source = Some(source.name());
                    return (Some(secret), looked);
                }
                Ok(None) => {}
                Err(error) => looked.notes.push(error.report()),
            }
        }
        (None, looked)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (Option<Secret>, Looked)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Secrets for Keys {
    fn secret(&self, name: &str) -> Option<Secret> {
        self.look(name).0
    }

    fn why_missing(&self, name: &str) -> String {
        let places: Vec<_> = self.sources.iter().map(|source| source.name()).collect();
        let notes = self.look(name).1.notes;
        let notes =
            if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
        format!("`{name}` is not in {}{notes}", places.join(", not in "))
    }
}

/// A name that every place can hold.
///
/// # Errors
/// [`ErrorKind::InvalidInput`]. The text is not repeated: it may be a key, given by mistake.
pub fn check_name(name: &str) -> Result<()> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins_well && name.chars().all(is_word) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        "this is no name of a key; a name has letters, digits and `_` and does not begin with a \
         digit, as OPENAI_API_KEY",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Place(&'static str, Option<Secret>, Option<&'static str>);

    impl KeySource for Place {
        fn name(&self) -> String {
            self.0.to_owned()
        }
        fn get(&self, _: &str) -> Result<Option<Secret>> {
            match self.2 {
                Some(why) => Err(Error::new(ErrorKind::Io, why)),
                None => Ok(self.1.clone()),
            }
        }
        fn warning(&self) -> Option<String> {
            Some(format!("{} is in a shop window", self.0))
        }
    }

    #[test]
    fn the_first_place_that_has_a_key_wins_and_is_named() {
        let keys = Keys::new()
            .with(Place("a", None, None))
            .with(Place("b", None, Some("b is locked")))
            .with(Place("c", Some(Secret::new("sk-canary-c")), None))
            .with(Place("d", Some(Secret::new("sk-canary-d")), None));
        assert_eq!(keys.secret("K").unwrap().expose(), "sk-canary-c");
        let looked = &keys.looked()[0];
        assert_eq!((looked.name.as_str(), looked.source.as_deref()), ("K", Some("c")));
        assert_eq!(looked.notes, ["b is locked", "c is in a shop window"]);
        assert!(!format!("{keys:?} {keys:#?}").contains("canary"));
    }

    #[test]
    fn a_missing_key_says_where_it_was_looked_for() {
        let keys = Keys::new().with(Place("a", None, None)).with(Place("b", None, Some("b hangs")));
        assert!(keys.secret("K").is_none());
        assert_eq!(keys.why_missing("K"), "`K` is not in a, not in b (b hangs)");
        assert_eq!(
            Keys::new().with(EnvironmentKeys).why_missing("WEIGHBRIDGE_NO_SUCH_KEY"),
            "`WEIGHBRIDGE_NO_SUCH_KEY` is not in the environment"
        );
    }

    #[test]
    fn a_key_given_as_a_name_is_not_repeated() {
        assert!(check_name("OPENAI_API_KEY").is_ok());
        for bad in ["", "sk-canary-1", "1A", "A B", "A\n"] {
            let error = check_name(bad).unwrap_err();
            assert!(!format!("{error:?}").contains("canary"));
        }
    }
}
