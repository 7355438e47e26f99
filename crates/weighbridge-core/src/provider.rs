//! The contract of a source of models.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::{
    Backend, Egress, EngineInfo, Error, ErrorKind, ModelCard, ModelRef, NoSecrets, Result, Secret,
    Secrets,
};

/// What a provider is, without touching disk, GPU or network.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ProviderInfo {
    /// One sentence for a list.
    pub summary: String,
    /// The engine, where there is one in this build.
    pub engine: Option<EngineInfo>,
    /// What a location looks like, for messages and help.
    pub location_help: String,
    /// JSON Schema of the options object that [`Provider::open`] takes.
    pub option_schema: Value,
    /// Opening a model needs an [`Egress`] token.
    pub needs_egress: bool,
}

impl ProviderInfo {
    /// A provider without options.
    pub fn new(summary: impl Into<String>, location_help: impl Into<String>) -> Self {
        Self {
            summary: summary.into(),
            engine: None,
            location_help: location_help.into(),
            option_schema: serde_json::json!({
                "type": "object", "properties": {}, "additionalProperties": false
            }),
            needs_egress: false,
        }
    }

    /// Sets the JSON Schema of the options.
    #[must_use]
    pub fn with_option_schema(mut self, schema: Value) -> Self {
        self.option_schema = schema;
        self
    }
}

/// Whether a provider could open a model, judged from headers only.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Probe {
    /// It should open.
    Yes,
    /// It cannot, and why; names the provider that can, where known.
    No {
        /// The reason.
        reason: String,
    },
}

/// One model that can be opened now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelListing {
    /// The name to open it by.
    pub model: ModelRef,
    /// What is known without opening it.
    pub card: ModelCard,
}

impl ModelListing {
    /// A listed model.
    pub fn new(model: ModelRef, card: ModelCard) -> Self {
        Self { model, card }
    }
}

/// What a provider is given to open a model with.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenContext {
    /// The provider's options, checked against its schema.
    pub options: Map<String, Value>,
    /// Relative locations are relative to this folder.
    pub base_dir: PathBuf,
    /// The right to reach out, or none.
    pub egress: Option<Egress>,
    /// Where keys come from.
    pub secrets: Arc<dyn Secrets>,
    progress: Option<Arc<dyn Fn(f32) + Send + Sync>>,
    cancelled: Arc<AtomicBool>,
}

impl OpenContext {
    /// No options, no egress, no secrets; locations relative to the working directory.
    pub fn new() -> Self {
        Self {
            options: Map::new(),
            base_dir: PathBuf::new(),
            egress: None,
            secrets: Arc::new(NoSecrets),
            progress: None,
            cancelled: Arc::default(),
        }
    }

    /// Sets the provider's options.
    #[must_use]
    pub fn with_options(mut self, options: Map<String, Value>) -> Self {
        self.options = options;
        self
    }

    /// Sets the folder that relative locations start from.
    #[must_use]
    pub fn with_base_dir(mut self, base_dir: impl Into<PathBuf>) -> Self {
        self.base_dir = base_dir.into();
        self
    }

    /// Grants the right to reach out.
    #[must_use]
    pub fn with_egress(mut self, egress: Egress) -> Self {
        self.egress = Some(egress);
        self
    }

    /// Sets the source of keys.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Arc<dyn Secrets>) -> Self {
        self.secrets = secrets;
        self
    }

    /// Calls `progress` with a fraction in [0, 1] while the model loads.
    #[must_use]
    pub fn with_progress(mut self, progress: Arc<dyn Fn(f32) + Send + Sync>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// A handle that cancels the load when it is set.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Whether the load was cancelled; a provider asks between pieces of work.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Reports progress as a fraction in [0, 1].
    pub fn report_progress(&self, fraction: f32) {
        if let Some(progress) = &self.progress {
            progress(fraction);
        }
    }

    /// A location as a path, `~/` and `base_dir` resolved.
    pub fn resolve(&self, location: &str) -> PathBuf {
        let path = Path::new(location);
        if path.is_absolute() { path.to_owned() } else { self.base_dir.join(path) }
    }

    /// A secret by name.
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.secrets.secret(name)
    }
}

impl Default for OpenContext {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for OpenContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenContext")
            .field("options", &self.options)
            .field("base_dir", &self.base_dir)
            .field("egress", &self.egress.as_ref().map(Egress::scope))
            .finish_non_exhaustive()
    }
}

/// Finds and opens models of one kind. Registering it costs nothing: disk, GPU and network are
/// touched only in `probe`, `list` and `open`.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Stable lower-case id, the scheme of a [`ModelRef`]: `candle`, `openai-compatible`.
    fn id(&self) -> &str;

    /// What this provider is. No I/O.
    fn describe(&self) -> ProviderInfo;

    /// Judges from headers whether `open` could work.
    async fn probe(&self, model: &ModelRef, context: &OpenContext) -> Probe;

    /// What can be opened now. May read disks or ask a server.
    ///
    /// # Errors
    /// `EgressDenied` if a server would have to be asked and there is no token.
    async fn list(&self, context: &OpenContext) -> Result<Vec<ModelListing>>;

    /// Loads the model, or fails with the reason; never tries another one instead.
    ///
    /// # Errors
    /// `ModelLoad`, `NotFound`, `Auth`, `EgressDenied`, or `InvalidInput` for a bad option.
    async fn open(&self, model: &ModelRef, context: &OpenContext) -> Result<Arc<dyn Backend>>;
}

/// Checks an options object against the property names and types of a provider's schema.
///
/// Covers the subset of JSON Schema that option schemas use: `properties`, `required`, and `type`,
/// `enum`, `minimum`, `maximum` of each property.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] that names the option, what it takes and, for an unknown one, all
/// known names.
pub fn check_options(provider: &str, schema: &Value, options: &Map<String, Value>) -> Result<()> {
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    for (name, value) in options {
        let Some(rule) = properties.get(name) else {
            let known: BTreeMap<_, _> = properties.iter().collect();
            let known: Vec<_> = known.keys().map(|k| format!("`{k}`")).collect();
            let known =
                if known.is_empty() { "it takes none".to_owned() } else { known.join(", ") };
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("unknown option `{name}` of provider `{provider}`; known: {known}"),
            ));
        };
        check_option(provider, name, rule, value)?;
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if let Some(name) = name.as_str()
            && !options.contains_key(name)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("provider `{provider}` needs the option `{name}`"),
            ));
        }
    }
    Ok(())
}

fn check_option(provider: &str, name: &str, rule: &Value, value: &Value) -> Result<()> {
    let bad = |takes: String| {
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("option `{name}` of provider `{provider}` takes {takes}, not {value}"),
        ))
    };
    if let Some(allowed) = rule.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let allowed: Vec<_> = allowed.iter().map(Value::to_string).collect();
        return bad(format!("one of {}", allowed.join(", ")));
    }
    let fits = match rule.get("type").and_then(Value::as_str) {
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => true,
    };
    if !fits {
        return bad(format!("a value of type {}", rule["type"].as_str().unwrap_or("any")));
    }
    if let Some(number) = value.as_f64() {
        if let Some(min) = rule.get("minimum").and_then(Value::as_f64)
            && number < min
        {
            return bad(format!("at least {min}"));
        }
        if let Some(max) = rule.get("maximum").and_then(Value::as_f64)
            && number > max
        {
            return bad(format!("at most {max}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_are_checked_by_name_type_and_range() {
        let schema = json!({"properties": {
            "n_ctx": {"type": "integer", "minimum": 1},
            "device": {"enum": ["cpu", "cuda"]},
        }});
        let check = |options: Value| {
            check_options("toy", &schema, options.as_object().unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(check(json!({"n_ctx": 5, "device": "cpu"})), Ok(()));
        assert_eq!(
            check(json!({"ctx": 5})),
            Err("unknown option `ctx` of provider `toy`; known: `device`, `n_ctx`".to_owned())
        );
        assert_eq!(
            check(json!({"n_ctx": 0})),
            Err("option `n_ctx` of provider `toy` takes at least 1, not 0".to_owned())
        );
        assert_eq!(
            check(json!({"device": "tpu"})),
            Err("option `device` of provider `toy` takes one of \"cpu\", \"cuda\", not \"tpu\""
                .to_owned())
        );
    }
}
