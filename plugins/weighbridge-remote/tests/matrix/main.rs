//! The fault matrix: what servers and networks do wrong, by row, on four protocols. Beside it the
//! golden streams over sockets, deadlines, memory, load, and servers that others wrote.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // Tests; and their counts are to be read.

mod bench;
mod content;
mod deadlines;
mod goldens;
mod http;
mod judges;
mod load;
mod memory;
mod retries;
mod secure;
mod streams;
mod table;
