//! The built program, used as its users would.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod batch;
mod canary;
mod canary_scan;
mod canary_server;
mod engines;
mod gate_and_hints;
mod kill_and_resume;
mod library;
mod mistakes;
mod support;
