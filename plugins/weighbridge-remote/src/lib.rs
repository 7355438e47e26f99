#![doc = include_str!("../README.md")]

mod address;
mod backend;
mod chat;
mod classify;
mod emitter;
mod exchange;
mod failure;
mod google_rpc;
mod governor;
mod http;
mod options;
mod provider;
mod resolver;
mod retry_after;
mod runtime;
mod sse;
mod text;
mod vendor;
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
