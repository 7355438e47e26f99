//! `weighbridge plugins`.

use std::fmt::Write as _;

use serde_json::Value;
use weighbridge::Result;

pub(crate) fn run() -> Result<()> {
    let registry = crate::registry()?;
    let mut out = String::new();
    let _ = writeln!(out, "providers: a model is named PROVIDER:LOCATION");
    for provider in registry.providers() {
        let info = provider.describe();
        let _ = writeln!(out, "  {:<18} {}", provider.id(), info.summary);
        let _ = writeln!(out, "  {:<18} location: {}", "", info.location_help);
        let names = option_names(&info.option_schema);
        if !names.is_empty() {
            let _ = writeln!(out, "  {:<18} options: {}", "", names.join(", "));
        }
    }
    let _ = writeln!(out, "evaluators: the `kind` of an [[evaluator]] in a suite");
    for factory in registry.evaluators() {
        let _ = writeln!(out, "  {:<18} {}", factory.id(), factory.summary());
        let names = option_names(&factory.option_schema());
        if !names.is_empty() {
            let _ = writeln!(out, "  {:<18} settings: {}", "", names.join(", "));
        }
    }
    let _ = writeln!(out, "plugins: where these come from");
    for plugin in registry.plugins() {
        let _ = writeln!(out, "  {:<18} {}", plugin.id, plugin.version);
    }
    crate::print(&out)
}

/// Options that a person may set.
fn option_names(schema: &Value) -> Vec<String> {
    let options = schema.get("properties").and_then(Value::as_object);
    options
        .into_iter()
        .flatten()
        .filter(|(_, rule)| rule.get("x-set-by-suite").is_none())
        .map(|(name, _)| name.clone())
        .collect()
}
