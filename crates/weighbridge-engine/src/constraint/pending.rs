//! Masks computed while the engine works.

use std::num::NonZero;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use weighbridge_core::{Error, ErrorKind, Result};

use super::ConstraintState;

/// Below this number of ids a mask costs less than handing it to another thread. With 150,000 ids a
/// mask takes 20 µs at the median, and up to 20 ms where a token may go on in many ways.
const MIN_VOCABULARY: usize = 4096;

/// Threads of one model at most; it is idle most of the time.
const MAX_WORKERS: usize = 4;

/// Threads that compute masks for the generations of one model. They end with the last handle.
pub(super) struct MaskWorkers {
    jobs: Sender<Job>,
}

struct Job {
    state: ConstraintState,
    reply: SyncSender<Answer>,
}

type Answer = (ConstraintState, Result<()>);

impl MaskWorkers {
    /// The threads for a vocabulary of `n_ids`; none if it is small.
    pub(super) fn for_vocabulary(n_ids: usize) -> Result<Option<Arc<Self>>> {
        if n_ids < MIN_VOCABULARY {
            return Ok(None);
        }
        let n_workers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS);
        let (jobs, source) = mpsc::channel();
        let source = Arc::new(Mutex::new(source));
        for _ in 0..n_workers {
            let source = Arc::clone(&source);
            thread::Builder::new().name("masks".to_owned()).spawn(move || work(&source)).map_err(
                |error| {
                    Error::new(ErrorKind::Io, "cannot start a thread for masks").with_source(error)
                },
            )?;
        }
        Ok(Some(Arc::new(Self { jobs })))
    }
}

fn work(source: &Mutex<Receiver<Job>>) {
    loop {
        let job = source.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { mut state, reply }) = job else { return };
        let result = state.mask().map(|_| ());
        // A generation that was cancelled takes no answer; its state is freed here.
        let _ = reply.send((state, result));
    }
}

/// A state whose mask is there or being computed.
pub(crate) struct PendingMask(Progress);

enum Progress {
    Here(ConstraintState),
    Away(Receiver<Answer>),
}

impl std::fmt::Debug for PendingMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PendingMask").field(&matches!(self.0, Progress::Here(_))).finish()
    }
}

impl PendingMask {
    /// A state that is not computing.
    pub(crate) fn here(state: ConstraintState) -> Self {
        Self(Progress::Here(state))
    }

    /// Begins to compute the next mask: elsewhere, or at once where that is cheaper. Of a complete
    /// text there is no mask, and none is asked for.
    ///
    /// # Errors
    /// Those of [`ConstraintState::mask`], if it is computed at once.
    pub(crate) fn start(mut state: ConstraintState) -> Result<Self> {
        if state.has_mask || state.is_complete() {
            return Ok(Self::here(state));
        }
        if let Some(workers) = state.workers.clone() {
            let (reply, answer) = mpsc::sync_channel(1);
            return match workers.jobs.send(Job { state, reply }) {
                Ok(()) => Ok(Self(Progress::Away(answer))),
                Err(_) => Err(gone()),
            };
        }
        state.mask()?;
        Ok(Self::here(state))
    }

    /// The state with its mask; waits for it.
    ///
    /// # Errors
    /// Those of [`ConstraintState::mask`].
    pub(crate) fn take(self) -> Result<ConstraintState> {
        match self.0 {
            Progress::Here(state) => Ok(state),
            Progress::Away(answer) => {
                let (state, result) = answer.recv().map_err(|_| gone())?;
                result.map(|()| state)
            }
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Constraint, "the thread that computes masks is gone")
}
