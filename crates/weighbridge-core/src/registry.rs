//! Plugins and what they bring.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Error, ErrorKind, EvaluatorFactory, Provider, Result};

/// What a plugin crate brings. Building one opens no file and loads no library.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plugin {
    /// Stable lower-case id.
    pub id: &'static str,
    /// The crate's version.
    pub version: &'static str,
    /// Sources of models.
    pub providers: Vec<Arc<dyn Provider>>,
    /// Kinds of evaluators.
    pub evaluators: Vec<Arc<dyn EvaluatorFactory>>,
}

impl Plugin {
    /// A plugin that brings nothing yet.
    pub fn new(id: &'static str, version: &'static str) -> Self {
        Self { id, version, providers: Vec::new(), evaluators: Vec::new() }
    }

    /// Adds a provider.
    #[must_use]
    pub fn provider(mut self, provider: impl Provider + 'static) -> Self {
        self.providers.push(Arc::new(provider));
        self
    }

    /// Adds a kind of evaluator.
    #[must_use]
    pub fn evaluator(mut self, factory: impl EvaluatorFactory + 'static) -> Self {
        self.evaluators.push(Arc::new(factory));
        self
    }
}

/// How a linked plugin makes itself known; submitted by [`register_plugin!`](crate::register_plugin).
#[derive(Clone, Copy, Debug)]
pub struct Registration(pub fn() -> Plugin);

inventory::collect!(Registration);

/// Registers a plugin crate's `plugin` function with every program that links the crate.
#[macro_export]
macro_rules! register_plugin {
    ($plugin:path) => {
        $crate::inventory::submit! { $crate::Registration($plugin) }
    };
}

/// A registry of the plugins named here, which this program links.
///
/// Naming a crate is what makes the linker keep it. A plugin that is linked and did not register
/// itself is an error that says which line is missing.
#[macro_export]
macro_rules! link_plugins {
    ($($krate:ident),* $(,)?) => {
        $crate::Registry::linked(&[
            $((stringify!($krate), $krate::plugin as fn() -> $crate::Plugin)),*
        ])
    };
}

/// A plugin crate by name, and its `plugin` function.
pub type LinkedPlugin<'a> = (&'a str, fn() -> Plugin);

/// The plugins a program knows. There is no global one: it is passed.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    plugins: Vec<Plugin>,
    providers: BTreeMap<String, Arc<dyn Provider>>,
    evaluators: BTreeMap<String, Arc<dyn EvaluatorFactory>>,
}

impl Registry {
    /// A registry of exactly these plugins.
    ///
    /// # Errors
    /// [`ErrorKind::Plugin`] if two bring the same id.
    pub fn new(plugins: impl IntoIterator<Item = Plugin>) -> Result<Self> {
        let mut registry = Self::default();
        for plugin in plugins {
            registry.add(plugin)?;
        }
        Ok(registry)
    }

    /// The registered plugins, after a check that the expected ones are among them; see
    /// [`link_plugins!`](crate::link_plugins).
    ///
    /// # Errors
    /// [`ErrorKind::Plugin`] if one did not register, or two bring the same id.
    pub fn linked(expected: &[LinkedPlugin<'_>]) -> Result<Self> {
        let mut found: Vec<Plugin> =
            inventory::iter::<Registration>.into_iter().map(|r| (r.0)()).collect();
        // inventory promises no order.
        found.sort_by_key(|plugin| plugin.id);
        for (krate, plugin) in expected {
            let plugin = plugin();
            if !found.iter().any(|f| f.id == plugin.id) {
                return Err(Error::new(
                    ErrorKind::Plugin,
                    format!(
                        "plugin crate `{krate}` is linked but did not register itself; add \
                         `weighbridge_core::register_plugin!(plugin);` to its lib.rs"
                    ),
                )
                .with("plugin", plugin.id));
            }
        }
        Self::new(found)
    }

    /// Adds a plugin.
    ///
    /// # Errors
    /// [`ErrorKind::Plugin`] if an id is taken; the registry is then unchanged.
    pub fn add(&mut self, plugin: Plugin) -> Result<()> {
        let taken = |kind: &str, id: &str| {
            Error::new(
                ErrorKind::Plugin,
                format!("{kind} `{id}` is brought by two plugins; link only one of them"),
            )
        };
        if self.plugins.iter().any(|p| p.id == plugin.id) {
            return Err(taken("plugin", plugin.id));
        }
        for provider in &plugin.providers {
            if self.providers.contains_key(provider.id()) {
                return Err(taken("provider", provider.id()));
            }
        }
        for factory in &plugin.evaluators {
            if self.evaluators.contains_key(factory.id()) {
                return Err(taken("evaluator", factory.id()));
            }
        }
        for provider in &plugin.providers {
            self.providers.insert(provider.id().to_owned(), Arc::clone(provider));
        }
        for factory in &plugin.evaluators {
            self.evaluators.insert(factory.id().to_owned(), Arc::clone(factory));
        }
        self.plugins.push(plugin);
        Ok(())
    }

    /// The provider with that id.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that lists the known ids and, for a crate of this project that
    /// is not linked, the two lines that link it.
    pub fn provider(&self, id: &str) -> Result<&Arc<dyn Provider>> {
        self.providers.get(id).ok_or_else(|| {
            let known: Vec<_> = self.providers.keys().map(|k| format!("`{k}`")).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "unknown provider `{id}`; known: {known}. To link a missing plugin crate, add \
                     `weighbridge-{id} = \"*\"` to Cargo.toml and `weighbridge_{}` to \
                     `link_plugins!(…)` in main.rs; the `weighbridge` program is built with \
                     `--features {id}`",
                    id.replace('-', "_")
                ),
            )
        })
    }

    /// The kind of evaluator with that id.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that lists the known ids.
    pub fn evaluator(&self, id: &str) -> Result<&Arc<dyn EvaluatorFactory>> {
        self.evaluators.get(id).ok_or_else(|| {
            let known: Vec<_> = self.evaluators.keys().map(|k| format!("`{k}`")).collect();
            Error::new(
                ErrorKind::InvalidInput,
                format!("unknown evaluator `{id}`; known: {}", known.join(", ")),
            )
        })
    }

    /// All plugins, in the order in which they were added.
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// All providers by id.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.providers.values()
    }

    /// All kinds of evaluators by id.
    pub fn evaluators(&self) -> impl Iterator<Item = &Arc<dyn EvaluatorFactory>> {
        self.evaluators.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Plugin {
        Plugin::new("silent", "0.1.0")
    }

    fn loud() -> Plugin {
        Plugin::new("loud", "0.1.0")
    }
    register_plugin!(loud);

    #[test]
    fn a_plugin_that_forgot_to_register_is_named_with_the_line_to_add() {
        let error = Registry::linked(&[("my_silent", silent)]).unwrap_err();
        assert!(error.to_string().contains("`my_silent` is linked but did not register"));
        assert!(error.to_string().contains("register_plugin!(plugin)"));
        let registry = Registry::linked(&[("loud", loud)]).unwrap();
        assert_eq!(registry.plugins().len(), 1);
    }

    #[test]
    fn the_same_id_twice_is_refused() {
        let error = Registry::new([loud(), loud()]).unwrap_err();
        assert!(error.to_string().contains("`loud` is brought by two plugins"));
    }

    #[test]
    fn an_unknown_provider_lists_the_known_ones_and_how_to_link_one() {
        let error = Registry::default().provider("llama-cpp").unwrap_err().to_string();
        assert!(error.contains("known: none"), "{error}");
        assert!(error.contains("`weighbridge_llama_cpp`"), "{error}");
    }
}
