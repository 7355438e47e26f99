//! Prompts from a suite's templates.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior};
use sha2::{Digest, Sha256};
use weighbridge_core::{Error, ErrorKind, Message, Prompt, Result, Sample};

use crate::suite::PromptTemplate;

/// Instructions a template may execute; more is a loop.
const FUEL: u64 = 1_000_000;

/// A compiled prompt template.
#[derive(Debug)]
pub struct Prompter {
    env: Environment<'static>,
    has_system: bool,
    /// Lower-case hex SHA-256 over the templates' text.
    pub sha256: String,
}

impl Prompter {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with the line.
    pub fn new(template: &PromptTemplate) -> Result<Self> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder()
            .keep_trailing_newline(true)
            .build()
            .expect("the default delimiters do not clash");
        env.set_syntax(syntax);
        env.set_fuel(Some(FUEL));
        let mut hash = Sha256::new();
        let parts = [("system", template.system.as_ref()), ("user", Some(&template.user))];
        for (name, source) in parts {
            let Some(source) = source else { continue };
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(source.as_bytes());
            hash.update([0]);
            env.add_template_owned(name, source.clone()).map_err(|e| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "prompt.{name} is not a valid template, line {}: {}",
                        e.line().unwrap_or(1),
                        e.detail().unwrap_or("syntax error")
                    ),
                )
            })?;
        }
        let sha256 = hex::encode(hash.finalize());
        Ok(Self { env, has_system: template.system.is_some(), sha256 })
    }

    /// The prompt of one sample.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names the sample, and the column that it does not have.
    pub fn render(&self, sample: &Sample) -> Result<Prompt> {
        let mut messages = Vec::new();
        if self.has_system {
            messages.push(Message::system(self.part("system", sample)?));
        }
        messages.push(Message::user(self.part("user", sample)?));
        Ok(Prompt::Chat(messages))
    }

    fn part(&self, name: &str, sample: &Sample) -> Result<String> {
        let template = self.env.get_template(name).expect("compiled in `new`");
        template.render(minijinja::value::Serde(&sample.fields)).map_err(|e| {
            let columns: Vec<_> = sample.fields.keys().map(|k| format!("`{k}`")).collect();
            let missing = template
                .undeclared_variables(false)
                .into_iter()
                .find(|v| !sample.fields.contains_key(v));
            let why = match missing {
                Some(variable) => format!(
                    "it uses `{variable}`, which is no column of the data; there are {}",
                    columns.join(", ")
                ),
                None => {
                    format!("line {}: {}", e.line().unwrap_or(1), e.detail().unwrap_or("failed"))
                }
            };
            Error::new(
                ErrorKind::InvalidInput,
                format!("prompt.{name} cannot be filled for sample `{}`: {why}", sample.id),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Sample {
        Sample::new("7", json!({"email": "Hello <b> {{ x }}", "n": 3}).as_object().unwrap().clone())
    }

    fn template(user: &str) -> PromptTemplate {
        PromptTemplate { system: None, user: user.to_owned() }
    }

    #[test]
    fn data_is_inserted_verbatim_and_never_executed() {
        let prompter = Prompter::new(&template("Q: {{ email }}\n")).unwrap();
        let Prompt::Chat(messages) = prompter.render(&sample()).unwrap() else { panic!() };
        assert_eq!(messages[0].text(), "Q: Hello <b> {{ x }}\n");
    }

    #[test]
    fn a_missing_column_is_named_with_those_there_are() {
        let prompter = Prompter::new(&template("{{ body }}")).unwrap();
        let error = prompter.render(&sample()).unwrap_err().to_string();
        assert!(error.contains("sample `7`: it uses `body`"), "{error}");
        assert!(error.contains("`email`, `n`"), "{error}");
        let error = Prompter::new(&template("a\n{% if %}")).unwrap_err().to_string();
        assert!(error.contains("prompt.user is not a valid template, line 2"), "{error}");
    }
}
