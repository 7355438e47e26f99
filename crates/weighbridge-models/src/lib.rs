#![doc = include_str!("../README.md")]

pub mod checkpoint;
pub mod decoder;
pub mod folder;
pub mod gguf;
pub mod gguf_config;
pub mod hf_config;
pub mod safetensors;

mod files;
mod weight_file;
