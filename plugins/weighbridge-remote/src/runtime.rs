//! The one private tokio runtime that watches sockets and timers, and connects.
//!
//! Callers may have no runtime, another executor, or a tokio of their own. Nothing here depends on
//! which: sockets and timers are made in this runtime, and can be polled from anywhere.

use std::future::Future;
use std::sync::OnceLock;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::task::AbortHandle;
use weighbridge_core::{Error, ErrorKind, Result};

/// Name resolution blocks a thread; few are needed, for names are asked once per connection.
const MAX_BLOCKING_THREADS: usize = 8;

static RUNTIME: OnceLock<std::io::Result<Handle>> = OnceLock::new();

/// The runtime, started by the first call. It lives as long as the process.
pub(crate) fn handle() -> Result<&'static Handle> {
    match RUNTIME.get_or_init(start) {
        Ok(handle) => Ok(handle),
        Err(error) => Err(Error::new(
            ErrorKind::Io,
            format!("cannot start the thread for network calls: {error}"),
        )),
    }
}

fn start() -> std::io::Result<Handle> {
    const NAME: &str = "weighbridge-remote";
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_name(NAME)
        .enable_io()
        .enable_time()
        .build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(std::future::pending::<()>());
    thread::Builder::new().name(NAME.to_owned()).spawn(run)?;
    Ok(handle)
}

/// Aborts a task when it goes away.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a future on the runtime and awaits it from anywhere; dropping the call aborts it.
pub(crate) async fn run<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let task = handle()?.spawn(future);
    let _abort = AbortOnDrop(task.abort_handle());
    task.await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Transport, "the network task ended unexpectedly")
            .with_source(error))
    })
}
