//! The one private tokio runtime that watches sockets and timers, and connects.
//!
//! Callers may have no runtime, another executor, or a tokio of their own. Nothing here depends on
//! which: sockets and timers are made in this runtime, and can be polled from anywhere.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;
use weighbridge_core::{Error, ErrorKind, Result};

/// Name resolution blocks a thread; few are needed, for names are asked once per connection.
const MAX_BLOCKING_THREADS: usize = 8;

static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();

/// The runtime, started by the first call. It lives as long as the process.
pub(crate) fn handle() -> Result<&'static Handle> {
    let start = || {
        Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .thread_name("weighbridge-remote")
            .enable_io()
            .enable_time()
            .build()
    };
    match RUNTIME.get_or_init(start) {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(Error::new(
            ErrorKind::Io,
            format!("cannot start the thread for network calls: {error}"),
        )),
    }
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
