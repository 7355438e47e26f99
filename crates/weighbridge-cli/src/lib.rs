//! The weighbridge program.
