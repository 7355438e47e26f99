#![doc = include_str!("../README.md")]

mod address;
mod backend;
mod batch;
mod catalog;
mod chat;
mod classify;
mod connection;
mod embed;
mod emitter;
mod exchange;
mod failure;
mod gemini;
mod google_rpc;
mod governor;
mod http;
mod logprobs;
mod messages;
mod options;
mod prompt;
mod provider;
#[cfg(test)]
mod request_tests;
mod resolver;
mod responses;
mod retry_after;
mod runtime;
mod sse;
#[cfg(test)]
mod testing;
mod text;
mod usage;
mod vendor;
mod verify;
mod wire;

pub use provider::Remote;
pub use vendor::Vendor;

use weighbridge_core::Plugin;

/// This plugin. Starts nothing and asks nothing.
pub fn plugin() -> Plugin {
    let plugin = Plugin::new("remote", env!("CARGO_PKG_VERSION"));
    Vendor::ALL.into_iter().fold(plugin, |plugin, vendor| plugin.provider(Remote::new(vendor)))
}

weighbridge_core::register_plugin!(plugin);

#[cfg(test)]
mod golden_tests;
