//! Batch jobs of three vendors, against one that loses, doubles and mixes up answers.

#![allow(clippy::unwrap_used)]

mod answers;
mod jobs;
mod requests;
mod support;
