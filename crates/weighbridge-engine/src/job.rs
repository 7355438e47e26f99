//! What travels between callers and the engine's thread, and a call's life on that thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_channel::mpsc;
use weighbridge_core::{Error, ErrorKind, Event, Result, StopReason, Timings, Usage};

use crate::generation::Generation;
use crate::scoring::{Scored, Scoring};
use crate::tokens::TokenTable;

/// Events that may wait for a caller before its sequence pauses.
pub(crate) const EVENT_BUFFER: usize = 64;

/// Work handed to the engine's thread.
#[derive(Debug)]
pub(crate) struct Job {
    /// What to do.
    pub(crate) task: Task,
    /// Alone on the engine, with fixed chunks, without prefix reuse.
    pub(crate) is_deterministic: bool,
    /// Somebody follows its events.
    pub(crate) is_watched: bool,
    /// Asks for an orderly end.
    pub(crate) stop: Arc<AtomicBool>,
    /// Where events go; a caller that is gone is the hard cancel.
    pub(crate) events: mpsc::Sender<JobEvent>,
}

/// What a job is.
#[derive(Debug)]
pub(crate) enum Task {
    /// Continues a prompt.
    Generate {
        /// What happens with the rows.
        generation: Box<Generation>,
        /// The prompt.
        sequence: Sequence,
        /// Positions that it may come to fill.
        n_positions: usize,
    },
    /// Scores continuations.
    Score(Box<Scoring>),
    /// Embeds texts.
    Embed(Embedding),
}

/// Texts to be embedded, one by one.
#[derive(Debug)]
pub(crate) struct Embedding {
    /// The tokens of each.
    pub(crate) texts: Vec<Vec<u32>>,
    /// The vectors of the first of them.
    pub(crate) vectors: Vec<Vec<f32>>,
}

/// What comes back; all but the first end the job.
#[derive(Debug)]
pub(crate) enum JobEvent {
    /// Something to be shown.
    Event(Event<'static>),
    /// A generation ended.
    Generated(Box<Finished>),
    /// All continuations are scored.
    Scored(Vec<Scored>),
    /// All texts are embedded.
    Embedded(Vec<Vec<f32>>),
    /// It failed.
    Failed(Error),
}

/// The end of a generation, without what the caller has seen already.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stop_reason: StopReason,
    pub(crate) raw_stop_reason: Option<String>,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
    pub(crate) warnings: Vec<String>,
}

/// The tokens a slot has to hold and how far that has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequence {
    /// All tokens, those generated so far included.
    pub(crate) tokens: Vec<u32>,
    /// How many of them belong to the prompt.
    pub(crate) n_prompt: usize,
    /// How many of them the slot holds.
    pub(crate) n_fed: usize,
    /// The row after this token and every later one is wanted.
    pub(crate) first_row: usize,
}

impl Sequence {
    /// Nothing fed; the first `n_prompt` tokens are the prompt, and the rows from the one after token
    /// `first_row` are wanted.
    pub(crate) fn new(tokens: Vec<u32>, n_prompt: usize, first_row: usize) -> Self {
        Self { tokens, n_prompt, n_fed: 0, first_row }
    }

    /// Tokens still to be fed.
    pub(crate) fn n_left(&self) -> usize {
        self.tokens.len() - self.n_fed
    }

    /// The prompt is fed.
    pub(crate) fn is_decoding(&self) -> bool {
        self.n_fed >= self.n_prompt
    }
}

/// Whether a call's caller takes its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// All are delivered.
    Clear,
    /// The caller is behind: the call waits.
    Behind,
    /// The caller is gone.
    Gone,
}

/// A call on the engine's thread.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) task: CallTask,
    pub(crate) is_deterministic: bool,
    pub(crate) is_watched: bool,
    stop: Arc<AtomicBool>,
    events: mpsc::Sender<JobEvent>,
    outbox: VecDeque<JobEvent>,
    /// Since when the caller is behind.
    pub(crate) behind_since: Option<Instant>,
    /// Its end is in the outbox.
    pub(crate) is_done: bool,
}

/// What a call does with what its sequences give.
#[derive(Debug)]
pub(crate) enum CallTask {
    Generate(Box<Generation>),
    Score(Box<Scoring>),
    Embed(Embedding),
}

impl Call {
    pub(crate) fn new(
        task: CallTask,
        is_deterministic: bool,
        is_watched: bool,
        stop: Arc<AtomicBool>,
        events: mpsc::Sender<JobEvent>,
    ) -> Self {
        Self {
            task,
            is_deterministic,
            is_watched,
            stop,
            events,
            outbox: VecDeque::new(),
            behind_since: None,
            is_done: false,
        }
    }

    /// Hands over what the caller takes. Registers `cx` where the caller is behind.
    pub(crate) fn deliver(&mut self, cx: &mut Context<'_>, now: Instant) -> Delivery {
        if self.events.is_closed() {
            return Delivery::Gone;
        }
        while !self.outbox.is_empty() {
            match self.events.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Delivery::Gone,
                Poll::Pending => {
                    self.behind_since.get_or_insert(now);
                    return Delivery::Behind;
                }
            }
            if let Some(event) = self.outbox.pop_front()
                && self.events.start_send(event).is_err()
            {
                return Delivery::Gone;
            }
        }
        self.behind_since = None;
        Delivery::Clear
    }

    /// Whether its sequences may be fed: the caller is not behind.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_done && self.outbox.is_empty()
    }

    /// Ends in an orderly way if the caller asked for it.
    pub(crate) fn obey_stop(&mut self) {
        if self.is_done || !self.stop.load(Ordering::Relaxed) {
            return;
        }
        match &mut self.task {
            CallTask::Generate(generation) => {
                generation.end(StopReason::Cancelled, None, &mut self.outbox);
                self.is_done = true;
            }
            CallTask::Score(_) | CallTask::Embed(_) => {
                self.fail(Error::new(ErrorKind::Cancelled, "cancelled"));
            }
        }
    }

    /// Draws from a row of a generation.
    pub(crate) fn take_row(
        &mut self,
        position: u32,
        logits: &[f32],
        table: &TokenTable,
        sequence: &mut Sequence,
    ) -> Result<()> {
        if let Some((generation, outbox)) = self.generation() {
            self.is_done = generation.take_row(position, logits, table, sequence, outbox)?;
        }
        Ok(())
    }

    /// The generation and where its events go, if it is one that goes on.
    pub(crate) fn generation(&mut self) -> Option<(&mut Generation, &mut VecDeque<JobEvent>)> {
        match &mut self.task {
            CallTask::Generate(generation) if !self.is_done => Some((generation, &mut self.outbox)),
            _ => None,
        }
    }

    /// The scoring, if it is one that goes on.
    pub(crate) fn scoring(&mut self) -> Option<&mut Scoring> {
        match &mut self.task {
            CallTask::Score(scoring) if !self.is_done => Some(scoring),
            _ => None,
        }
    }

    /// Ends with a result.
    pub(crate) fn end(&mut self, event: JobEvent) {
        self.outbox.push_back(event);
        self.is_done = true;
    }

    /// Ends with an error, unless it ended before.
    pub(crate) fn fail(&mut self, error: Error) {
        if !self.is_done {
            self.end(JobEvent::Failed(error));
        }
    }
}
