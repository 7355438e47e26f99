//! The decode loop shared by every local engine.
