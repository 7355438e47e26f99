//! Reading a model's files without holding up an executor.

use std::thread;

use futures_channel::oneshot;
use weighbridge_core::{Error, ErrorKind, Result};

/// Runs what reads files on a thread of its own: an executor's thread must not wait for a disk.
/// `plugin` names the thread. The work goes on to its end where the future is dropped.
///
/// # Errors
/// What `work` returns; [`ErrorKind::ModelLoad`] if no thread can be started, [`ErrorKind::Plugin`]
/// if `work` panics.
///
/// # Examples
/// ```
/// use weighbridge_core::block_on;
/// use weighbridge_engine::files::off_thread;
///
/// let n_bytes = block_on(off_thread("toy", || Ok(b"GGUF".len())))?;
/// assert_eq!(n_bytes, 4);
/// # Ok::<(), weighbridge_core::Error>(())
/// ```
pub async fn off_thread<T: Send + 'static>(
    plugin: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name(format!("{plugin}-files"))
        // The caller may be gone; then nobody wants the result.
        .spawn(move || drop(done.send(work())))
        .map_err(|error| {
            Error::new(ErrorKind::ModelLoad, "no thread could be started to read the model's files")
                .with_source(error)
        })?;
    result.await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Plugin, "reading the model's files panicked; report the files"))
    })
}

#[cfg(test)]
mod tests {
    use weighbridge_core::block_on;

    use super::*;

    #[test]
    fn the_work_has_a_thread_of_its_own_and_its_panic_is_an_error() {
        let name = block_on(off_thread("toy", || Ok(thread::current().name().map(str::to_owned))));
        assert_eq!(name.expect("a name").as_deref(), Some("toy-files"));
        let refused = || Err::<(), _>(Error::new(ErrorKind::InvalidInput, "no such file"));
        let error = block_on(off_thread("toy", refused)).expect_err("the error of the work");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let panics = || -> Result<()> { panic!("a damaged file") };
        let error = block_on(off_thread("toy", panics)).expect_err("the panic");
        assert_eq!(error.kind(), ErrorKind::Plugin);
    }
}
