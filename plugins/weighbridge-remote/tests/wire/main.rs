//! The provider against a server that misbehaves by script. Names quote rows of the project's
//! fault matrix as `row_N`.

#![allow(clippy::unwrap_used)]

mod connections;
mod faults;
mod keys;
mod limits;
mod llama_server;
mod opening;
mod presets;
mod streams;
mod support;
