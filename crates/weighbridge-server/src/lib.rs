//! An OpenAI-compatible HTTP server over any Weighbridge backend.
