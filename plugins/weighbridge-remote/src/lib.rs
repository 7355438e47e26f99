//! Weighbridge plugin: models behind OpenAI-compatible servers.
