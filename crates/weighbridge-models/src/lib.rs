#![doc = include_str!("../README.md")]

pub mod checkpoint;
pub mod folder;
pub mod gguf;
pub mod hf_config;
pub mod safetensors;

mod files;
mod weight_file;
