//! The server over real sockets: by hand-written bytes, and by our own client.

#![allow(clippy::unwrap_used)]

mod bounds;
mod protocol;
mod roundtrip;
mod sdk;
mod support;
