//! GGUF files: whole ones are read, others are refused with a message that names the place.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accepted;
mod noise;
mod refused_files;
mod refused_models;
mod shards;
mod writer;
