//! Model files: bounded readers that look before an engine loads.
