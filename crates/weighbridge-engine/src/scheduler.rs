//! Which sequences the engine is fed next: admission, chunks, batches, cancellation.
//!
//! A job is *waiting* until it gets a slot (one of the engine's sequences), then its prompt is fed in
//! chunks (*prefill*), then one token per feed (*decode*), then its end is *delivered* and the slot is
//! free. Between any two feeds the loop looks at the world: new jobs, callers that are gone, callers
//! that are behind.
//!
//! - **Batches.** With [`Batching::Ragged`] one feed has the next token of every decoding sequence and
//!   a chunk of prompts; with [`Batching::EqualLength`] either all decoding sequences or one prompt;
//!   with [`Batching::One`] sequences take turns.
//! - **Chunks** of prompts start at 8 tokens and grow or shrink so that a feed takes about half of the
//!   promised cancel latency, at most all of it. Deterministic jobs use a fixed size and feed alone.
//! - **Slow callers.** Events wait in a bounded channel. While it is full the sequence pauses and all
//!   others go on. If jobs wait for a slot and a caller has been behind for a quarter of a second, its
//!   sequence gives the slot up and is fed again later; what it generates is the same.
//! - **Prefix reuse.** A free slot keeps its tokens; a new job takes the slot that shares the longest
//!   beginning with its prompt and the slot is cut back to it. Not for deterministic jobs.
//! - **Context.** A job is admitted only if the positions it may come to fill fit beside those of all
//!   running jobs, so a sequence never runs out of context in the middle.
//! - **Failures.** A feed that fails with several sequences is repeated one by one; a sequence that
//!   fails alone fails its job, and only that.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_channel::mpsc;
use weighbridge_core::{Error, ErrorKind, Result};

use crate::chunk::ChunkSize;
use crate::job::{Delivery, Job, Running, Task};
use crate::logits::{Batching, EngineCaps, Input, LogitsEngine, SeqId, Span, Want};
use crate::tokens::TokenTable;

/// How long a caller may be behind before others may have its slot.
const PATIENCE: Duration = Duration::from_millis(250);

/// What the scheduler is told by the backend's options.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub(crate) max_concurrency: u32,
    pub(crate) reuses_prefixes: bool,
    pub(crate) deterministic_chunk: usize,
    pub(crate) cancel_latency: Duration,
}

/// The loop over one engine.
pub(crate) struct Scheduler {
    jobs: mpsc::Receiver<Job>,
    is_closed: bool,
    waiting: VecDeque<Running>,
    slots: Vec<Slot>,
    ending: Vec<Running>,
    table: Arc<TokenTable>,
    caps: EngineCaps,
    tuning: Tuning,
    chunk: ChunkSize,
    /// The slot whose turn it is.
    turn: usize,
    n_admitted: u64,
}

/// A sequence of the engine.
#[derive(Default)]
struct Slot {
    /// The tokens the engine holds in it.
    held: Vec<u32>,
    running: Option<Running>,
    last_admitted: u64,
}

/// Part of a feed.
struct Planned {
    slot_idx: usize,
    n_tokens: usize,
    want: Want,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Scheduler {
    pub(crate) fn new(
        jobs: mpsc::Receiver<Job>,
        table: Arc<TokenTable>,
        caps: EngineCaps,
        tuning: Tuning,
    ) -> Self {
        let n_slots = caps.max_seqs.min(tuning.max_concurrency).max(1);
        let chunk = ChunkSize::new(tuning.cancel_latency, caps.max_feed.max(1) as usize);
        Self {
            jobs,
            is_closed: false,
            waiting: VecDeque::new(),
            slots: (0..n_slots).map(|_| Slot::default()).collect(),
            ending: Vec::new(),
            table,
            caps,
            tuning,
            chunk,
            turn: 0,
            n_admitted: 0,
        }
    }

    /// Serves until no caller is left.
    pub(crate) fn run(&mut self, engine: &mut dyn LogitsEngine) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            self.receive(&mut cx);
            let now = Instant::now();
            self.deliver(&mut cx, now);
            if self.is_closed && self.is_idle() {
                break;
            }
            self.admit(engine, now);
            if !self.step(engine) {
                // A wake-up that came since the polls above makes this return at once.
                if self.waiting.is_empty() {
                    thread::park();
                } else {
                    thread::park_timeout(PATIENCE / 4);
                }
            }
        }
        for slot_idx in 0..self.slots.len() {
            engine.release(seq(slot_idx));
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.ending.is_empty()
            && self.slots.iter().all(|slot| slot.running.is_none())
    }

    /// Takes all new jobs. Each caller has at most one in the channel.
    fn receive(&mut self, cx: &mut Context<'_>) {
        use futures_core::Stream;
        while !self.is_closed {
            match Pin::new(&mut self.jobs).poll_next(cx) {
                Poll::Ready(Some(job)) => self.waiting.push_back(Running::new(job)),
                Poll::Ready(None) => self.is_closed = true,
                Poll::Pending => return,
            }
        }
    }

    /// Delivers events, forgets jobs whose caller is gone, ends those that were asked to stop.
    fn deliver(&mut self, cx: &mut Context<'_>, now: Instant) {
        let mut still_waiting = VecDeque::new();
        for mut running in self.waiting.drain(..) {
            running.obey_stop();
            match running.deliver(cx, now) {
                Delivery::Gone => {}
                _ if running.is_done => self.ending.push(running),
                _ => still_waiting.push_back(running),
            }
        }
        self.waiting = still_waiting;
        for slot in &mut self.slots {
            let Some(mut running) = slot.running.take() else { continue };
            running.obey_stop();
            match running.deliver(cx, now) {
                Delivery::Gone => {}
                _ if running.is_done => self.ending.push(running),
                _ => slot.running = Some(running),
            }
        }
        self.ending.retain_mut(|running| running.deliver(cx, now) == Delivery::Behind);
    }

    /// Gives free slots to waiting jobs, in order.
    fn admit(&mut self, engine: &mut dyn LogitsEngine, now: Instant) {
        loop {
            // A job that lost its slot to a slow caller stays out until the caller has caught up.
            let Some(next) = self.waiting.iter().position(|r| r.outbox.is_empty()) else { return };
            let reuses = self.tuning.reuses_prefixes && !self.waiting[next].job.is_deterministic;
            let tokens = &self.waiting[next].job.sequence.tokens;
            let n_positions = self.waiting[next].job.n_positions as usize;
            let best = self
                .slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.running.is_none())
                .max_by_key(|(_, slot)| {
                    let n_shared = if reuses { n_shared(&slot.held, tokens) } else { 0 };
                    (n_shared, std::cmp::Reverse(slot.last_admitted))
                })
                .map(|(slot_idx, _)| slot_idx);
            let Some(slot_idx) = best else {
                if self.give_way(now) {
                    continue;
                }
                return;
            };
            if !self.make_room(engine, slot_idx, n_positions) {
                if self.give_way(now) {
                    continue;
                }
                return;
            }
            let Some(mut running) = self.waiting.remove(next) else { return };
            running.job.sequence.is_new = true;
            if !reuses {
                engine.release(seq(slot_idx));
                self.slots[slot_idx].held.clear();
            }
            let slot = &mut self.slots[slot_idx];
            self.n_admitted += 1;
            slot.last_admitted = self.n_admitted;
            match align(engine, slot_idx, slot, &mut running) {
                Ok(n_kept) => {
                    if let Task::Generate(generation) = &mut running.job.task {
                        generation.admitted(n_kept, now);
                    }
                }
                Err(error) => running.fail(error),
            }
            slot.running = Some(running);
        }
    }

    /// Frees unused slots until `n_positions` fit beside the running jobs.
    fn make_room(
        &mut self,
        engine: &mut dyn LogitsEngine,
        chosen: usize,
        n_positions: usize,
    ) -> bool {
        let ctx_total = self.caps.ctx_total as usize;
        let reserved: usize = self
            .slots
            .iter()
            .filter_map(|slot| slot.running.as_ref())
            .map(|running| running.job.n_positions as usize)
            .sum();
        if reserved + n_positions > ctx_total {
            return false;
        }
        loop {
            let is_unused = |(idx, slot): &(usize, &Slot)| {
                *idx != chosen && slot.running.is_none() && !slot.held.is_empty()
            };
            let unused = self.slots.iter().enumerate().filter(is_unused);
            let n_unused: usize = unused.clone().map(|(_, slot)| slot.held.len()).sum();
            if reserved + n_positions + n_unused <= ctx_total {
                return true;
            }
            let Some((oldest, _)) = unused.min_by_key(|(_, slot)| slot.last_admitted) else {
                return true;
            };
            engine.release(seq(oldest));
            self.slots[oldest].held.clear();
        }
    }

    /// Takes the slot of the caller that has been behind longest, if long enough.
    fn give_way(&mut self, now: Instant) -> bool {
        let behind = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(idx, slot)| Some((idx, slot.running.as_ref()?.behind_since?)))
            .min_by_key(|(_, since)| *since);
        let Some((slot_idx, since)) = behind else { return false };
        if now.duration_since(since) < PATIENCE {
            return false;
        }
        if let Some(mut running) = self.slots[slot_idx].running.take() {
            running.job.sequence.n_fed = 0;
            self.waiting.push_back(running);
        }
        true
    }

    /// One feed; `false` if there was nothing to do.
    fn step(&mut self, engine: &mut dyn LogitsEngine) -> bool {
        self.realign(engine);
        let plan = self.plan();
        let Some(first) = plan.first() else {
            // A job that failed on admission still has its end to deliver.
            return self.slots.iter().any(|s| {
                s.running.as_ref().is_some_and(|r| r.is_done && r.behind_since.is_none())
            });
        };
        self.turn = (first.slot_idx + 1) % self.slots.len();

        // Rows are taken while the engine works, so the tokens it reads are copied.
        let parts: Vec<Vec<u32>> = plan
            .iter()
            .map(|part| {
                let running = self.slots[part.slot_idx].running.as_ref();
                running.map_or_else(Vec::new, |running| {
                    let sequence = &running.job.sequence;
                    sequence.tokens[sequence.n_fed..sequence.n_fed + part.n_tokens].to_vec()
                })
            })
            .collect();
        let spans: Vec<Span<'_>> = plan
            .iter()
            .zip(&parts)
            .map(|(part, tokens)| Span {
                seq: seq(part.slot_idx),
                pos: self.slots[part.slot_idx].held.len() as u32,
                tokens: Input::Tokens(tokens),
                want: part.want,
            })
            .collect();
        let is_prefill = plan.iter().any(|part| part.n_tokens > 1);
        let n_tokens: usize = plan.iter().map(|part| part.n_tokens).sum();

        let started = Instant::now();
        let (slots, table) = (&mut self.slots, &self.table);
        let result = engine.feed(&spans, &mut |span_idx: usize, pos: u32, logits: &[f32]| {
            let slot = plan.get(span_idx).and_then(|part| slots.get_mut(part.slot_idx));
            if let Some(running) = slot.and_then(|slot| slot.running.as_mut()) {
                running.take_row(pos, logits, table);
            }
        });
        if is_prefill {
            self.chunk.measured(n_tokens, started.elapsed());
        }
        self.settle(engine, &plan, &parts, result);
        true
    }

    /// Cuts slots back whose sequence was replaced.
    fn realign(&mut self, engine: &mut dyn LogitsEngine) {
        for (slot_idx, slot) in self.slots.iter_mut().enumerate() {
            let Some(mut running) = slot.running.take() else { continue };
            if running.job.sequence.is_new && !running.is_done {
                match align(engine, slot_idx, slot, &mut running) {
                    Ok(_) => {}
                    Err(error) => running.fail(error),
                }
            }
            slot.running = Some(running);
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let n_slots = self.slots.len();
        let runnable: Vec<(usize, &Running)> = (0..n_slots)
            .map(|i| (self.turn + i) % n_slots)
            .filter_map(|idx| Some((idx, self.slots[idx].running.as_ref()?)))
            .filter(|(_, running)| running.is_runnable())
            .collect();
        let Some(&(first_idx, first)) = runnable.first() else { return Vec::new() };
        let max_rows = self.caps.max_rows.max(1) as usize;
        let max_feed = self.caps.max_feed.max(1) as usize;
        if first.is_alone() || self.caps.batching == Batching::One {
            return vec![self.part(first_idx, first, max_feed, max_rows)];
        }
        let together = || runnable.iter().filter(|(_, running)| !running.is_alone());
        let mut plan = Vec::new();
        let (mut n_feed, mut n_rows) = (max_feed, max_rows);
        let mut add = |plan: &mut Vec<Planned>, idx: usize, running: &Running, most: usize| {
            if n_feed > 0 && n_rows > 0 && most > 0 {
                let part = self.part(idx, running, most.min(n_feed), n_rows);
                n_feed -= part.n_tokens;
                n_rows -= part.n_tokens - part.want.first(part.n_tokens);
                plan.push(part);
            }
        };
        if self.caps.batching == Batching::EqualLength {
            if first.job.sequence.is_decoding() {
                for (idx, running) in together().filter(|(_, r)| r.job.sequence.is_decoding()) {
                    add(&mut plan, *idx, running, 1);
                }
            } else {
                add(&mut plan, first_idx, first, max_feed);
            }
            return plan;
        }
        // The first in turn always gets a place, or a full feed of others could starve it.
        add(&mut plan, first_idx, first, max_feed);
        for (idx, running) in together().filter(|(idx, _)| *idx != first_idx) {
            if running.job.sequence.is_decoding() {
                add(&mut plan, *idx, running, 1);
            }
        }
        let n_prompt = |plan: &[Planned]| plan.iter().map(|p| p.n_tokens).filter(|&n| n > 1).sum();
        for (idx, running) in together().filter(|(idx, _)| *idx != first_idx) {
            if !running.job.sequence.is_decoding() {
                let n_prompt: usize = n_prompt(&plan);
                add(&mut plan, *idx, running, self.chunk.size().saturating_sub(n_prompt));
            }
        }
        plan
    }

    /// The next chunk of a sequence, of at most `n_feed` tokens and `n_rows` rows.
    fn part(&self, slot_idx: usize, running: &Running, n_feed: usize, n_rows: usize) -> Planned {
        let sequence = &running.job.sequence;
        let chunk = match running.job.is_deterministic {
            // After the prompt always one by one, also when a slot was lost and all is fed again.
            true if sequence.n_fed >= sequence.n_prompt => 1,
            true => self.tuning.deterministic_chunk.min(sequence.n_prompt - sequence.n_fed),
            false => self.chunk.size(),
        };
        let mut n_tokens = sequence.n_left().min(chunk.max(1)).min(n_feed);
        // Index in the span of the first token whose row is wanted.
        let first = sequence.first_row.saturating_sub(sequence.n_fed);
        let want = if first >= n_tokens {
            Want::None
        } else if self.caps.all_rows {
            n_tokens = n_tokens.min(first + n_rows);
            if first + 1 == n_tokens { Want::Last } else { Want::From(first) }
        } else {
            n_tokens = first + 1;
            Want::Last
        };
        Planned { slot_idx, n_tokens, want }
    }

    /// Books what a feed has done.
    fn settle(
        &mut self,
        engine: &dyn LogitsEngine,
        plan: &[Planned],
        parts: &[Vec<u32>],
        result: Result<()>,
    ) {
        let is_single = plan.len() == 1;
        for (part, tokens) in plan.iter().zip(parts) {
            let slot = &mut self.slots[part.slot_idx];
            let Some(running) = slot.running.as_mut() else { continue };
            let n_before = slot.held.len();
            let n_after = engine.len(seq(part.slot_idx)) as usize;
            slot.held.extend_from_slice(tokens);
            let n_expected = slot.held.len();
            match &result {
                Ok(()) if n_after != n_expected => running.fail(
                    Error::new(ErrorKind::Plugin, "the engine's sequence has a length nobody fed")
                        .with("n_expected", n_expected)
                        .with("n_held", n_after),
                ),
                Ok(()) => {
                    running.is_suspect = false;
                    running.job.sequence.n_fed = n_after;
                    running.after_feed();
                }
                Err(_) if n_after < n_before || n_after > n_expected => {
                    // What is left of the sequence is unknown: begin again.
                    slot.held.clear();
                    running.job.sequence.is_new = true;
                }
                Err(_) => {
                    slot.held.truncate(n_after);
                    running.job.sequence.n_fed = n_after;
                }
            }
            if let Err(error) = &result {
                running.is_suspect = true;
                if is_single && !running.is_done {
                    running.fail(copy(error));
                }
            }
        }
    }
}

fn seq(slot_idx: usize) -> SeqId {
    SeqId(slot_idx as u32)
}

fn n_shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Cuts a slot back to what it shares with the sequence; returns the number of tokens kept.
fn align(
    engine: &mut dyn LogitsEngine,
    slot_idx: usize,
    slot: &mut Slot,
    running: &mut Running,
) -> Result<usize> {
    let sequence = &mut running.job.sequence;
    // The token whose row is wanted first must be fed to get it.
    let n_want = n_shared(&slot.held, &sequence.tokens).min(sequence.first_row);
    let mut n_kept = n_want;
    if engine.len(seq(slot_idx)) as usize > n_want {
        n_kept = if n_want == 0 {
            engine.release(seq(slot_idx));
            0
        } else {
            engine.truncate(seq(slot_idx), n_want as u32)? as usize
        };
    }
    if n_kept > n_want || engine.len(seq(slot_idx)) as usize != n_kept {
        return Err(Error::new(ErrorKind::Plugin, "the engine cut a sequence to another length")
            .with("n_asked", n_want)
            .with("n_kept", n_kept));
    }
    slot.held.truncate(n_kept);
    sequence.n_fed = n_kept;
    sequence.is_new = false;
    if let Task::Score(scoring) = &mut running.job.task {
        scoring.aligned(n_kept);
    }
    Ok(n_kept)
}

/// The same error once more; a source cannot be copied and becomes context.
fn copy(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message().to_owned()).with_retry(error.retry());
    for (name, value) in error.contexts() {
        copy = copy.with(name.to_owned(), value);
    }
    if let Some(source) = std::error::Error::source(error) {
        copy = copy.with("cause", source);
    }
    copy
}
