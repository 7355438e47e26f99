//! What the tests of other crates need: a scripted backend, a server that misbehaves by script, and
//! recorded streams with what is to be read from them.

pub mod batch_vendor;
pub mod golden;
pub mod player;
mod scripted;

pub use scripted::{Scripted, ScriptedProvider, Step};
