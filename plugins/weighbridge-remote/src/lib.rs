#![doc = include_str!("../README.md")]

mod address;
mod backend;
mod chat;
mod classify;
mod emitter;
mod exchange;
mod failure;
mod http;
mod options;
mod provider;
mod resolver;
mod retry_after;
mod runtime;
mod sse;
mod text;
mod wire;

pub use provider::OpenAiCompatible;

use weighbridge_core::Plugin;

/// This plugin. Starts nothing and asks nothing.
pub fn plugin() -> Plugin {
    Plugin::new("remote", env!("CARGO_PKG_VERSION")).provider(OpenAiCompatible::new())
}

weighbridge_core::register_plugin!(plugin);
