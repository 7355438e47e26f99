//! The server over real sockets: by hand-written bytes, and by our own client.

mod bounds;
mod protocol;
mod roundtrip;
mod support;
