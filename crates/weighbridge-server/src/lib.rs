#![doc = include_str!("../README.md")]

mod answer;
mod chunks;
mod failure;
mod guard;
mod io;
mod journal;
mod json;
mod limits;
mod messages;
mod request;
mod routes;
mod server;
mod stats;

pub use journal::{JournalEntry, JournalEvent};
pub use limits::Limits;
pub use server::{Bound, Running, Server};
pub use stats::{ModelStats, Stats};
