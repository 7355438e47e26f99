//! `weighbridge plugins`.

use weighbridge::Result;

pub(crate) fn run() -> Result<()> {
    let registry = crate::registry()?;
    println!("providers");
    for provider in registry.providers() {
        let info = provider.describe();
        println!("  {:<18} {}", provider.id(), info.summary);
        println!("  {:<18} {}:{}", "", provider.id(), info.location_help);
        let options = info.option_schema.get("properties").and_then(|p| p.as_object());
        let names: Vec<_> = options.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            println!("  {:<18} options: {}", "", names.join(", "));
        }
    }
    println!("evaluators");
    for factory in registry.evaluators() {
        println!("  {:<18} {}", factory.id(), factory.summary());
    }
    println!("plugins");
    for plugin in registry.plugins() {
        println!("  {:<18} {}", plugin.id, plugin.version);
    }
    Ok(())
}
