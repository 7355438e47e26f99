//! The thread that owns an engine: it loads, serves and frees on that thread.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use futures_channel::{mpsc, oneshot};
use weighbridge_core::{Error, ErrorKind, OpenContext, Result};

use crate::job::Job;
use crate::loader::{EngineLoader, TextModel};
use crate::logits::EngineCaps;
use crate::scheduler::{Scheduler, Tuning};

/// Why a thread serves no more. Set before the callers' channels close.
#[derive(Clone, Debug, Default)]
pub(crate) struct Death(Arc<Mutex<Option<String>>>);

impl Death {
    fn set(&self, reason: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// The error of a call that found the channel closed.
    pub(crate) fn error(&self, name: &str) -> Error {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Error::new(ErrorKind::EngineDied, reason.clone()).with("model", name),
            None => Error::new(ErrorKind::InvalidRequest, "the model was closed; open it again")
                .with("model", name),
        }
    }
}

/// What a thread says once its model is loaded.
pub(crate) struct Opened {
    pub(crate) text: TextModel,
    pub(crate) caps: EngineCaps,
}

/// A running thread.
pub(crate) struct Worker {
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) opened: oneshot::Receiver<Result<Opened>>,
    /// Completes when everything is freed.
    pub(crate) ended: oneshot::Receiver<()>,
    pub(crate) death: Death,
}

/// Starts the thread.
pub(crate) fn spawn(
    name: &str,
    loader: Box<dyn EngineLoader>,
    context: &OpenContext,
    tuning: Tuning,
) -> Result<Worker> {
    // Every caller's own sender adds one place; the channel needs none beyond them.
    let (jobs, job_source) = mpsc::channel(0);
    let (opened_tx, opened) = oneshot::channel();
    let (ended_tx, ended) = oneshot::channel();
    let death = Death::default();
    let (context, thread_death) = (context.clone(), death.clone());
    let model = name.to_owned();
    thread::Builder::new()
        .name(thread_name(name))
        .spawn(move || {
            serve(&model, loader, &context, tuning, job_source, opened_tx, &thread_death);
            // The receiver may be gone: nobody has to wait for the end.
            let _ = ended_tx.send(());
        })
        .map_err(|error| {
            Error::new(ErrorKind::ModelLoad, "no thread could be started for the model")
                .with("model", name)
                .with_source(error)
        })?;
    Ok(Worker { jobs, opened, ended, death })
}

fn serve(
    name: &str,
    loader: Box<dyn EngineLoader>,
    context: &OpenContext,
    tuning: Tuning,
    jobs: mpsc::Receiver<Job>,
    opened: oneshot::Sender<Result<Opened>>,
    death: &Death,
) {
    // All of this lives outside `run`, so that a panic finds the reason set before callers see
    // their channels close.
    let mut start = Some((jobs, tuning));
    let mut opened = Some(opened);
    let mut scheduler = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        loader.run(context, &mut |text, engine| {
            let caps = engine.caps().clone();
            let (Some((jobs, tuning)), Some(opened)) = (start.take(), opened.take()) else {
                return;
            };
            let table = Arc::clone(&text.table);
            if opened.send(Ok(Opened { text, caps: caps.clone() })).is_err() {
                return;
            }
            scheduler.insert(Scheduler::new(jobs, table, caps, tuning)).run(engine);
        })
    }));
    let failure = match result {
        Ok(Ok(())) => {
            Error::new(ErrorKind::Plugin, "the engine's loader returned without serving the model")
        }
        Ok(Err(error)) => error,
        Err(panic) => Error::new(
            ErrorKind::EngineDied,
            format!("the engine of `{name}` panicked: {}", panic_text(panic.as_ref())),
        ),
    };
    if let Some(opened) = opened {
        let _ = opened.send(Err(failure.with("model", name)));
    } else if failure.kind() == ErrorKind::EngineDied {
        death.set(failure.message().to_owned());
    }
    drop(scheduler);
    drop(start);
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// At most 15 bytes are shown by Linux; a NUL would panic.
fn thread_name(name: &str) -> String {
    format!("wb {name}").replace('\0', "")
}
