//! Which sequences the engine is fed next: admission, chunks, batches, preemption, cancellation.
//!
//! A call brings one sequence (a generation) or several (the continuations of a scoring). A sequence
//! waits until it gets a slot, which is one of the engine's sequences; then its prompt is fed in chunks
//! (*prefill*), then what is drawn (*decode*). Between any two feeds the loop looks at the world: new
//! calls, callers that are gone, callers that are behind.
//!
//! - **Batches.** With [`Batching::Ragged`](crate::logits::Batching) one feed has the next token of
//!   every decoding sequence and a chunk of prompts; with `EqualLength` either all decoding sequences or
//!   one prompt; with `One` sequences take turns. How many run together is measured
//!   ([`width`]).
//! - **Chunks** of prompts begin small and grow or shrink so that a feed stays below the promised cancel
//!   latency, and below a shorter one while sequences decode whose events somebody follows. Where none
//!   decodes, prompts that take several are cut into chunks of about one size, large ones of whole tiles of 64.
//! - **Prefix cache.** Slots keep their tokens after their sequence has ended, and a radix tree
//!   ([`prefix`]) knows all of them. A new sequence begins with the longest beginning of it that any slot
//!   has: by a fork, or by taking an idle slot over. A sequence whose beginning is being fed for another
//!   one waits for it, so a prefix is computed once for all that share it.
//! - **Idle slots** of an engine whose sequences share one pool make every token dearer, so what they
//!   hold alone is copied out when something else begins ([`parked`]), and comes back when it is needed.
//! - **Admission** prefers the longest cached prefix, then the longest sequence, then the first that
//!   came; whoever was passed over often goes first.
//! - **Context.** Idle slots give way, the longest unused first; when running sequences outgrow the
//!   engine's memory, the youngest is preempted and fed again later. It generates the same tokens.
//! - **Slow callers.** Events wait in a bounded channel. While it is full the sequence pauses and all
//!   others go on. If others wait for its slot, it loses it after a quarter of a second.
//! - **Deterministic calls** have the engine for themselves: nothing else runs, nothing is cached, chunks
//!   have a fixed size. So the same call does the same arithmetic each time.
//! - **Failures.** A feed that fails with several sequences is repeated one by one; a sequence that
//!   fails alone fails its call, and only that.

mod admit;
mod chunk;
mod feed;
mod parked;
mod prefix;
mod width;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_channel::mpsc;

use crate::job::{Call, CallTask, Delivery, Job, JobEvent, Sequence, Task};
use crate::logits::{EngineCaps, Fork, LogitsEngine, SeqId, SnapshotKind, Truncate};
use crate::scoring::ItemId;
use crate::tokens::TokenTable;
use chunk::ChunkSize;
use parked::{Park, Parked};
use prefix::{PrefixTree, n_shared};
use width::Width;

/// How long a caller may be behind before others may have its slot.
const PATIENCE: Duration = Duration::from_millis(250);

/// Waiting sequences that are looked at for one slot.
const LOOK_AHEAD: usize = 256;
/// Positions for which it is worth taking a sequence out and putting it back.
const MIN_PARKED: usize = 64;

/// What the scheduler is told by the backend's options.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub(crate) max_concurrency: u32,
    /// How long a feed may take while others decode that somebody follows.
    pub(crate) decode_latency: Duration,
    pub(crate) reuses_prefixes: bool,
    pub(crate) deterministic_chunk: usize,
    pub(crate) cancel_latency: Duration,
}

/// The loop over one engine.
pub(crate) struct Scheduler {
    jobs: mpsc::Receiver<Job>,
    is_closed: bool,
    /// By the order in which they came.
    calls: BTreeMap<u64, Call>,
    n_calls: u64,
    /// By the order of their calls.
    waiting: VecDeque<Unit>,
    slots: Vec<Slot>,
    cache: PrefixTree,
    park: Park,
    table: Arc<TokenTable>,
    caps: EngineCaps,
    tuning: Tuning,
    chunk: ChunkSize,
    width: Width,
    /// The slot whose turn it is.
    turn: usize,
    /// Admissions so far, the clock of slots.
    n_admitted: u64,
}

/// One of the engine's sequences.
#[derive(Debug, Default)]
struct Slot {
    unit: Option<Unit>,
    last_used: u64,
}

/// A sequence of a call.
#[derive(Debug)]
struct Unit {
    call: u64,
    role: Role,
    sequence: Sequence,
    /// Positions that it may come to fill.
    n_positions: usize,
    /// Admissions of sequences whose calls came later.
    n_passed_over: u32,
    /// A copy of the slot is to be kept when it holds this many tokens, because others begin with
    /// them and the engine cannot cut back.
    checkpoint: Option<usize>,
    /// It is fed alone: it was part of a feed that failed.
    is_suspect: bool,
}

/// What a sequence is for its call.
#[derive(Clone, Copy, Debug)]
enum Role {
    Generation,
    Item(ItemId),
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
        let n_slots = caps.max_seqs.max(1) as usize;
        let chunk = ChunkSize::new(caps.max_feed.max(1) as usize);
        // Checkpoints of an engine that cannot cut back need a slot of their own.
        let n_checkpoints =
            usize::from(caps.truncate != Truncate::Any && caps.fork != Fork::No && n_slots > 1);
        let width = Width::new((n_slots - n_checkpoints).min(tuning.max_concurrency as usize));
        Self {
            jobs,
            is_closed: false,
            calls: BTreeMap::new(),
            n_calls: 0,
            waiting: VecDeque::new(),
            slots: (0..n_slots).map(|_| Slot::default()).collect(),
            cache: PrefixTree::new(n_slots),
            park: Park::default(),
            table,
            caps,
            tuning,
            chunk,
            width,
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
            if self.is_closed && self.calls.is_empty() {
                break;
            }
            self.admit(engine, now);
            let has_embedded = self.embed(engine);
            if !self.step(engine) && !has_embedded && !self.has_news() {
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

    /// A call ended without a feed: its end is still to be delivered.
    fn has_news(&self) -> bool {
        self.calls.values().any(|call| call.is_done && call.behind_since.is_none())
    }

    /// Takes all new jobs. Each caller has at most one in the channel.
    fn receive(&mut self, cx: &mut Context<'_>) {
        use futures_core::Stream;
        while !self.is_closed {
            match Pin::new(&mut self.jobs).poll_next(cx) {
                Poll::Ready(Some(job)) => self.begin(job),
                Poll::Ready(None) => self.is_closed = true,
                Poll::Pending => return,
            }
        }
    }

    fn begin(&mut self, job: Job) {
        let id = self.n_calls;
        self.n_calls += 1;
        let task = match job.task {
            Task::Generate { generation, sequence, n_positions } => {
                self.enqueue(Unit::new(id, Role::Generation, sequence, n_positions));
                CallTask::Generate(generation)
            }
            Task::Score(mut scoring) => {
                let units = scoring.start();
                units.into_iter().for_each(|unit| self.enqueue(Unit::item(id, unit)));
                CallTask::Score(scoring)
            }
            Task::Embed(embedding) => CallTask::Embed(embedding),
        };
        self.calls.insert(
            id,
            Call::new(task, job.is_deterministic, job.is_watched, job.stop, job.events),
        );
    }

    /// Delivers events, forgets calls whose caller is gone, ends those that were asked to stop.
    fn deliver(&mut self, cx: &mut Context<'_>, now: Instant) {
        let n_before = self.calls.len();
        let mut n_done = 0;
        self.calls.retain(|_, call| {
            call.obey_stop();
            let delivery = call.deliver(cx, now);
            n_done += usize::from(call.is_done);
            delivery != Delivery::Gone && !(call.is_done && delivery == Delivery::Clear)
        });
        if self.calls.len() == n_before && n_done == 0 {
            return;
        }
        let goes_on = |unit: &Unit| self.calls.get(&unit.call).is_some_and(|call| !call.is_done);
        self.waiting.retain(goes_on);
        for slot in &mut self.slots {
            slot.unit = slot.unit.take().filter(goes_on);
        }
    }

    /// Embeds one text of one call, so that others are not kept waiting.
    fn embed(&mut self, engine: &mut dyn LogitsEngine) -> bool {
        for call in self.calls.values_mut().filter(|call| call.is_ready()) {
            let CallTask::Embed(embedding) = &mut call.task else { continue };
            let Some(text) = embedding.texts.get(embedding.vectors.len()) else {
                let vectors = std::mem::take(&mut embedding.vectors);
                call.end(JobEvent::Embedded(vectors));
                return true;
            };
            match engine.embed(text) {
                Ok(vector) => embedding.vectors.push(vector),
                Err(error) => call.fail(error),
            }
            return true;
        }
        false
    }

    /// Lets a sequence wait, in the order in which calls came.
    fn enqueue(&mut self, unit: Unit) {
        let place = self.waiting.partition_point(|other| other.call <= unit.call);
        self.waiting.insert(place, unit);
    }

    /// Whether a waiting sequence could be fed if it had a slot.
    fn is_ready(&self, unit: &Unit) -> bool {
        self.calls.get(&unit.call).is_some_and(Call::is_ready)
    }

    /// Sequences that run.
    fn active(&self) -> impl Iterator<Item = (usize, &Unit)> {
        self.slots.iter().enumerate().filter_map(|(idx, slot)| Some((idx, slot.unit.as_ref()?)))
    }

    /// Positions in use, by all slots or by those that run.
    fn n_positions(&self, only_active: bool) -> usize {
        let is_counted = |seq: SeqId| !only_active || self.slots[seq.0 as usize].unit.is_some();
        if self.caps.fork == Fork::Shared {
            return self.cache.n_positions(is_counted);
        }
        let all = (0..self.slots.len()).map(seq);
        all.filter(|seq| is_counted(*seq)).map(|seq| self.cache.len(seq)).sum()
    }

    /// Empties the idle slot that was unused for longest, other than `kept`.
    fn evict(&mut self, engine: &mut dyn LogitsEngine, kept: Option<SeqId>) -> bool {
        let is_idle = |idx: &usize| {
            self.slots[*idx].unit.is_none()
                && self.cache.len(seq(*idx)) > 0
                && Some(seq(*idx)) != kept
        };
        let oldest = (0..self.slots.len()).filter(is_idle).min_by_key(|i| self.slots[*i].last_used);
        let Some(slot_idx) = oldest else { return false };
        self.clear(engine, seq(slot_idx));
        true
    }

    /// Takes idle slots out of a shared pool, the longest unused first, until all that is left in it
    /// belongs to what runs.
    fn park_idle(&mut self, engine: &mut dyn LogitsEngine) {
        if self.caps.fork != Fork::Shared {
            return;
        }
        while self.n_positions(false) > self.n_positions(true) {
            let idle = (0..self.slots.len()).filter(|idx| {
                self.slots[*idx].unit.is_none()
                    && self.n_idle(seq(*idx)) > 0
                    && !self.is_awaited(seq(*idx))
            });
            let Some(oldest) = idle.min_by_key(|idx| self.slots[*idx].last_used) else { return };
            let id = seq(oldest);
            if self.n_idle(id) >= MIN_PARKED
                && self.caps.snapshot != SnapshotKind::No
                && let Ok(snapshot) = engine.snapshot(id)
            {
                self.park.keep(Parked { tokens: self.cache.tokens(id), snapshot });
            }
            self.clear(engine, id);
        }
    }

    /// Positions of an idle slot that no running sequence has.
    fn n_idle(&self, seq: SeqId) -> usize {
        self.cache.n_beyond(seq, |seq| self.slots[seq.0 as usize].unit.is_some())
    }

    /// Whether a waiting sequence begins with something that only idle slots have.
    fn is_awaited(&self, seq: SeqId) -> bool {
        let held = self.cache.tokens(seq);
        let n_others = held.len() - self.n_idle(seq);
        let mut waiting = self.waiting.iter().take(LOOK_AHEAD);
        waiting.any(|unit| n_shared(unit.reusable(), &held) > n_others)
    }

    fn clear(&mut self, engine: &mut dyn LogitsEngine, seq: SeqId) {
        engine.release(seq);
        self.cache.truncate(seq, 0);
    }
}

impl Unit {
    fn new(call: u64, role: Role, sequence: Sequence, n_positions: usize) -> Self {
        Self {
            call,
            role,
            sequence,
            n_positions,
            n_passed_over: 0,
            checkpoint: None,
            is_suspect: false,
        }
    }

    fn item(call: u64, (id, sequence): (ItemId, Sequence)) -> Self {
        let n_positions = sequence.tokens.len();
        Self::new(call, Role::Item(id), sequence, n_positions)
    }

    /// What of it may come from the cache: the token whose row is wanted first must be fed.
    fn reusable(&self) -> &[u32] {
        &self.sequence.tokens[..self.sequence.first_row.min(self.sequence.tokens.len())]
    }
}

fn seq(slot_idx: usize) -> SeqId {
    SeqId(slot_idx as u32)
}
