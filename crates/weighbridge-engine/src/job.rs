//! What travels between callers and the engine's thread, and a job's life on that thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_channel::mpsc;
use weighbridge_core::{Error, Event, StopReason, Timings, Usage};

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
    /// What is fed first.
    pub(crate) sequence: Sequence,
    /// Positions the job may come to fill.
    pub(crate) n_positions: u32,
    /// Alone in its feeds, with fixed chunks, without prefix reuse.
    pub(crate) is_deterministic: bool,
    /// Asks for an orderly end.
    pub(crate) stop: Arc<AtomicBool>,
    /// Where events go; a caller that is gone is the hard cancel.
    pub(crate) events: mpsc::Sender<JobEvent>,
}

/// What a job does with the rows it gets.
#[derive(Debug)]
pub(crate) enum Task {
    /// Continues a prompt.
    Generate(Box<Generation>),
    /// Scores continuations.
    Score(Box<Scoring>),
}

/// What comes back; the last three end the job.
#[derive(Debug)]
pub(crate) enum JobEvent {
    /// Something to be shown.
    Event(Event<'static>),
    /// A generation ended.
    Generated(Box<Finished>),
    /// All continuations are scored.
    Scored(Vec<Scored>),
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
    /// The tokens were replaced: the slot has to be cut back to what they share.
    pub(crate) is_new: bool,
}

impl Sequence {
    /// Nothing fed; the rows from the one after token `first_row` are wanted.
    pub(crate) fn new(tokens: Vec<u32>, first_row: usize) -> Self {
        Self { n_prompt: tokens.len(), tokens, n_fed: 0, first_row, is_new: true }
    }

    /// Tokens still to be fed.
    pub(crate) fn n_left(&self) -> usize {
        self.tokens.len() - self.n_fed
    }

    /// Only the token that was drawn last is to be fed.
    pub(crate) fn is_decoding(&self) -> bool {
        self.n_left() == 1 && self.n_fed >= self.n_prompt
    }
}

/// Whether a job's caller takes its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// All are delivered.
    Clear,
    /// The caller is behind: the sequence waits.
    Behind,
    /// The caller is gone.
    Gone,
}

/// A job on the engine's thread: waiting, in a slot, or delivering its end.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) job: Job,
    pub(crate) outbox: VecDeque<JobEvent>,
    /// Since when the caller is behind.
    pub(crate) behind_since: Option<Instant>,
    /// The next feed is this job's alone: it was part of a feed that failed.
    pub(crate) is_suspect: bool,
    /// Its end is in the outbox.
    pub(crate) is_done: bool,
}

impl Running {
    pub(crate) fn new(job: Job) -> Self {
        Self { job, outbox: VecDeque::new(), behind_since: None, is_suspect: false, is_done: false }
    }

    /// Hands over what the caller takes. Registers `cx` where the caller is behind.
    pub(crate) fn deliver(&mut self, cx: &mut Context<'_>, now: Instant) -> Delivery {
        if self.job.events.is_closed() {
            return Delivery::Gone;
        }
        while !self.outbox.is_empty() {
            match self.job.events.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Delivery::Gone,
                Poll::Pending => {
                    self.behind_since.get_or_insert(now);
                    return Delivery::Behind;
                }
            }
            if let Some(event) = self.outbox.pop_front()
                && self.job.events.start_send(event).is_err()
            {
                return Delivery::Gone;
            }
        }
        self.behind_since = None;
        Delivery::Clear
    }

    /// Whether it can be fed now.
    pub(crate) fn is_runnable(&self) -> bool {
        !self.is_done && self.outbox.is_empty() && self.job.sequence.n_left() > 0
    }

    /// Whether no other sequence may be in its feeds.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_suspect || self.job.is_deterministic
    }

    /// Ends in an orderly way if the caller asked for it.
    pub(crate) fn obey_stop(&mut self) {
        if !self.is_done && self.job.stop.load(Ordering::Relaxed) {
            match &mut self.job.task {
                Task::Generate(generation) => {
                    generation.end(StopReason::Cancelled, None, &mut self.outbox);
                    self.is_done = true;
                }
                Task::Score(_) => {
                    self.fail(Error::new(weighbridge_core::ErrorKind::Cancelled, "cancelled"));
                }
            }
        }
    }

    /// Takes a row of logits, the one after the token at `position`.
    pub(crate) fn take_row(&mut self, position: u32, logits: &[f32], table: &TokenTable) {
        if self.is_done || (position as usize) < self.job.sequence.first_row {
            return;
        }
        let result = match &mut self.job.task {
            Task::Generate(generation) => generation.take_row(
                position,
                logits,
                table,
                &mut self.job.sequence,
                &mut self.outbox,
            ),
            Task::Score(scoring) => scoring.take_row(position, logits, table).map(|()| false),
        };
        match result {
            Ok(is_done) => self.is_done = is_done,
            Err(error) => self.fail(error),
        }
    }

    /// Goes on after a feed that succeeded.
    pub(crate) fn after_feed(&mut self) {
        if self.is_done {
            return;
        }
        match &mut self.job.task {
            Task::Generate(generation) => {
                generation.after_feed(&self.job.sequence, &mut self.outbox);
            }
            Task::Score(scoring) => {
                if self.job.sequence.n_left() == 0 {
                    match scoring.next(&mut self.job.sequence) {
                        Ok(None) => {}
                        Ok(Some(scored)) => {
                            self.outbox.push_back(JobEvent::Scored(scored));
                            self.is_done = true;
                        }
                        Err(error) => self.fail(error),
                    }
                }
            }
        }
    }

    /// Ends with an error.
    pub(crate) fn fail(&mut self, error: Error) {
        self.outbox.push_back(JobEvent::Failed(error));
        self.is_done = true;
    }
}
