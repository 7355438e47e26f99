//! The built program, used as its users would.

mod kill_and_resume;
mod library;
mod mistakes;
mod support;
