//! Weighbridge as a library.
