//! What the tests of other crates need: a scripted backend, a server that misbehaves by script,
//! recorded streams with what is to be read from them, and the laws of engines.

pub mod batch_vendor;
#[cfg(feature = "engine")]
pub mod engine;
pub mod golden;
pub mod player;
mod scripted;

pub use scripted::{Scripted, ScriptedProvider, Step};
