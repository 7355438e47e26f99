//! One feed: what goes into it, what comes out, what is booked.

use std::cmp::Reverse;
use std::time::Instant;

use weighbridge_core::{Error, ErrorKind, Result};

use super::{Role, Scheduler, Unit, seq};
use crate::job::{Call, JobEvent};
use crate::logits::{Batching, Fork, Input, LogitsEngine, Span, Want};
use crate::tokens::TokenTable;

/// Part of a feed.
#[derive(Clone, Debug)]
struct Part {
    slot_idx: usize,
    tokens: Vec<u32>,
    want: Want,
}

impl Part {
    fn n_rows(&self) -> usize {
        self.tokens.len() - self.want.first(self.tokens.len())
    }
}

impl Scheduler {
    /// One feed; `false` if there was nothing to do.
    pub(super) fn step(&mut self, engine: &mut dyn LogitsEngine) -> bool {
        let (mut first_idx, mut plan) = self.plan();
        while !self.has_room(engine, &plan) {
            self.preempt();
            (first_idx, plan) = self.plan();
        }
        if plan.is_empty() {
            return false;
        }
        self.turn = (first_idx + 1) % self.slots.len();

        let spans: Vec<Span<'_>> = plan
            .iter()
            .map(|part| Span {
                seq: seq(part.slot_idx),
                pos: self.cache.len(seq(part.slot_idx)) as u32,
                tokens: Input::Tokens(&part.tokens),
                want: part.want,
            })
            .collect();
        let started = Instant::now();
        let (slots, calls, table) = (&mut self.slots, &mut self.calls, &self.table);
        let mut n_rows = vec![0; plan.len()];
        let is_of_prompt = |part: &&Part| {
            let unit = slots[part.slot_idx].unit.as_ref();
            part.tokens.len() > 1 || unit.is_some_and(|unit| !unit.sequence.is_decoding())
        };
        let n_prompt: usize = plan.iter().filter(is_of_prompt).map(|part| part.tokens.len()).sum();
        let result = engine.feed(&spans, &mut |span_idx: usize, pos: u32, logits: &[f32]| {
            let unit = plan.get(span_idx).and_then(|p| slots.get_mut(p.slot_idx)?.unit.as_mut());
            let Some(unit) = unit else { return };
            n_rows[span_idx] += 1;
            if let Some(call) = calls.get_mut(&unit.call) {
                take_row(call, unit, pos, logits, table);
            }
        });
        let took = started.elapsed();
        let n_tokens: usize = plan.iter().map(|part| part.tokens.len()).sum();
        if result.is_err() {
            // Says nothing about speed.
        } else if n_prompt > 0 {
            self.chunk.measured(n_prompt, n_tokens, took);
        } else if self.caps.batching != Batching::One {
            self.width.measured(plan.len(), took);
        }
        for (part, n_rows) in plan.iter().zip(n_rows) {
            self.settle(engine, part, n_rows, &result, plan.len() == 1);
        }
        true
    }

    /// The slot whose turn it is, and what is fed.
    fn plan(&self) -> (usize, Vec<Part>) {
        let n_slots = self.slots.len();
        let turns = (0..n_slots).map(|i| (self.turn + i) % n_slots);
        let is_ready = |unit: &Unit| {
            unit.sequence.n_left() > 0 && self.calls.get(&unit.call).is_some_and(Call::is_ready)
        };
        let runnable: Vec<(usize, &Unit)> = turns
            .filter_map(|idx| Some((idx, self.slots[idx].unit.as_ref()?)))
            .filter(|(_, unit)| is_ready(unit))
            .collect();
        let Some(&(first_idx, first)) = runnable.first() else { return (self.turn, Vec::new()) };
        let mut feed = Feed {
            n_positions: self.caps.max_feed.max(1) as usize,
            n_rows: self.caps.max_rows.max(1) as usize,
            parts: Vec::new(),
        };
        let is_followed = |(_, unit): &(usize, &Unit)| {
            unit.sequence.is_decoding() && self.calls.get(&unit.call).is_some_and(|c| c.is_watched)
        };
        let latency = match runnable.iter().any(is_followed) {
            true => self.tuning.decode_latency.min(self.tuning.cancel_latency),
            false => self.tuning.cancel_latency,
        };
        let alone = self.chunk.share(first.sequence.n_left(), latency);
        if first.is_suspect || self.caps.batching == Batching::One {
            self.add(&mut feed, first_idx, first, alone);
            return (first_idx, feed.parts);
        }
        let together: Vec<_> = runnable.into_iter().filter(|(_, unit)| !unit.is_suspect).collect();
        if self.caps.batching == Batching::EqualLength {
            self.add(&mut feed, first_idx, first, alone);
            let n_first = first.sequence.n_left();
            let is_like = |unit: &Unit| unit.sequence.is_decoding() && unit.sequence.n_left() == 1;
            if n_first == 1 && is_like(first) {
                for (idx, unit) in &together[1..] {
                    if is_like(unit) {
                        self.add(&mut feed, *idx, unit, 1);
                    }
                }
            }
            return (first_idx, feed.parts);
        }
        // The first in turn always gets a place, or a full feed of others could starve it; of prompts
        // it is the one that came first. All share one chunk, beside a token of every decoding one.
        let n_tokens: usize = together.iter().map(|(_, unit)| unit.sequence.n_left()).sum();
        let (decoding, mut prompts): (Vec<_>, Vec<_>) =
            together.into_iter().partition(|(_, unit)| unit.sequence.is_decoding());
        prompts.sort_by_key(|(_, unit)| unit.call);
        let mut n_left = match decoding.is_empty() {
            true => self.chunk.share(n_tokens, latency),
            false => self.chunk.beside(decoding.len(), latency),
        };
        let mut prompts = prompts.into_iter();
        if !first.sequence.is_decoding()
            && let Some((idx, unit)) = prompts.next()
        {
            n_left = n_left.saturating_sub(self.add(&mut feed, idx, unit, n_left));
        }
        for (idx, unit) in decoding {
            n_left = (1 + n_left).saturating_sub(self.add(&mut feed, idx, unit, 1 + n_left).max(1));
        }
        for (idx, unit) in prompts {
            n_left = n_left.saturating_sub(self.add(&mut feed, idx, unit, n_left));
        }
        (first_idx, feed.parts)
    }

    /// Adds the next chunk of a sequence, of at most `n_most` tokens; says how many they are. Chunks
    /// of deterministic calls do not depend on speed, so those may have more.
    fn add(&self, feed: &mut Feed, slot_idx: usize, unit: &Unit, n_most: usize) -> usize {
        let sequence = &unit.sequence;
        let is_deterministic = self.calls.get(&unit.call).is_some_and(|c| c.is_deterministic);
        let n_chunk = match (is_deterministic, unit.role) {
            (false, _) => n_most,
            (true, _) if !sequence.is_decoding() => {
                self.tuning.deterministic_chunk.min(sequence.n_prompt - sequence.n_fed)
            }
            (true, Role::Item(_)) => self.tuning.deterministic_chunk,
            // Always one by one, also when a slot was lost and all is fed again.
            (true, Role::Generation) => 1,
        };
        let mut n_tokens = sequence.n_left().min(n_chunk).min(feed.n_positions);
        if let Some(checkpoint) = unit.checkpoint.filter(|at| *at > sequence.n_fed) {
            n_tokens = n_tokens.min(checkpoint - sequence.n_fed);
        }
        // Index in the span of the first token whose row is wanted.
        let first = sequence.first_row.saturating_sub(sequence.n_fed);
        let mut want = Want::None;
        if first < n_tokens {
            if feed.n_rows == 0 {
                n_tokens = first;
            } else if self.caps.all_rows {
                n_tokens = n_tokens.min(first + feed.n_rows);
                want = if first + 1 == n_tokens { Want::Last } else { Want::From(first) };
            } else {
                n_tokens = first + 1;
                want = Want::Last;
            }
        }
        if n_tokens == 0 {
            return 0;
        }
        let tokens = sequence.tokens[sequence.n_fed..sequence.n_fed + n_tokens].to_vec();
        let part = Part { slot_idx, tokens, want };
        feed.n_positions -= n_tokens;
        feed.n_rows -= part.n_rows();
        feed.parts.push(part);
        n_tokens
    }

    /// Whether the engine has the positions for a feed, after idle slots gave way.
    fn has_room(&mut self, engine: &mut dyn LogitsEngine, plan: &[Part]) -> bool {
        let n_new: usize = plan.iter().map(|part| part.tokens.len()).sum();
        loop {
            if self.n_positions(false) + n_new <= self.caps.ctx_total as usize {
                return true;
            }
            if !self.evict(engine, None) {
                // A sequence that runs alone fits, or it had not been taken.
                return self.active().count() < 2;
            }
        }
    }

    /// Takes the slot of the youngest sequence, which waits and is fed again later.
    fn preempt(&mut self) {
        let youngest = self.active().max_by_key(|(_, unit)| (unit.call, unit.sequence.n_left()));
        let Some(slot_idx) = youngest.map(|(idx, _)| idx) else { return };
        let Some(mut unit) = self.slots[slot_idx].unit.take() else { return };
        unit.sequence.n_fed = 0;
        if let Some((generation, _)) = self.calls.get_mut(&unit.call).and_then(Call::generation) {
            generation.preempted();
        }
        self.enqueue(unit);
    }

    /// Books what a feed has done for one of its parts.
    fn settle(
        &mut self,
        engine: &mut dyn LogitsEngine,
        part: &Part,
        n_rows: usize,
        result: &Result<()>,
        is_single: bool,
    ) {
        let id = seq(part.slot_idx);
        let Some(unit) = self.slots[part.slot_idx].unit.as_mut() else { return };
        let Some(call) = self.calls.get_mut(&unit.call) else { return };
        let n_before = self.cache.len(id);
        let n_expected = n_before + part.tokens.len();
        let n_after = engine.len(id) as usize;
        if let Err(error) = result {
            // The row of a generation that came has moved `first_row` on. One that did not come is had
            // by feeding its token again, as are all of a scoring.
            let n_wanted = n_after.min(unit.sequence.first_row);
            let is_known = n_before <= n_after && n_after <= n_expected;
            let n_kept = match is_known {
                true if n_wanted == n_after => Ok(n_after as u32),
                true => engine.truncate(id, n_wanted as u32),
                false => Ok(u32::MAX),
            };
            match n_kept.map(|n_kept| n_kept as usize) {
                Ok(n_kept) if n_kept <= n_wanted && engine.len(id) as usize == n_kept => {
                    self.cache.append(id, &part.tokens[..n_after - n_before]);
                    self.cache.truncate(id, n_kept);
                    unit.sequence.n_fed = n_kept;
                }
                // What is left of the sequence is unknown: begin again.
                _ => {
                    engine.release(id);
                    self.cache.truncate(id, 0);
                    unit.sequence.n_fed = 0;
                }
            }
            unit.is_suspect = true;
            if is_single {
                call.fail(copy(error));
            }
            return;
        }
        self.cache.append(id, &part.tokens);
        let broken = |what: &'static str, n_expected: usize, n: usize| {
            Error::new(ErrorKind::Plugin, what).with("n_expected", n_expected).with("n", n)
        };
        if n_after != n_expected {
            engine.release(id);
            self.cache.truncate(id, 0);
            return call.fail(broken(
                "the engine's sequence has a length nobody fed",
                n_expected,
                n_after,
            ));
        }
        if n_rows != part.n_rows() {
            let what = "the engine gave another number of rows than was asked for";
            return call.fail(broken(what, part.n_rows(), n_rows));
        }
        unit.is_suspect = false;
        unit.sequence.n_fed = n_after;
        let is_checkpoint = unit.checkpoint == Some(n_after);
        if is_checkpoint {
            self.keep_checkpoint(engine, part.slot_idx);
        }
        self.go_on(part.slot_idx);
    }

    /// After a feed: reports progress, begins what can follow, ends what is complete.
    fn go_on(&mut self, slot_idx: usize) {
        let Some(unit) = self.slots[slot_idx].unit.as_ref() else { return };
        let Some(call) = self.calls.get_mut(&unit.call) else { return };
        match unit.role {
            Role::Generation => {
                if let Some((generation, outbox)) = call.generation() {
                    generation.after_feed(&unit.sequence, outbox);
                }
            }
            Role::Item(id) => {
                let (call_id, is_fed) = (unit.call, unit.sequence.n_left() == 0);
                let Some(scoring) = call.scoring() else { return };
                // Without forks the others continue in this slot, one after the other.
                let n_next = match self.caps.fork {
                    Fork::No => usize::from(is_fed),
                    Fork::Copy | Fork::Shared => usize::MAX,
                };
                let group = scoring.group_of(id).filter(|_| n_next > 0);
                let followers = group.map_or_else(Vec::new, |g| scoring.follow(g, n_next));
                if is_fed {
                    match scoring.close() {
                        Ok(None) => {}
                        Ok(Some(scored)) => call.end(JobEvent::Scored(scored)),
                        Err(error) => call.fail(error),
                    }
                    self.slots[slot_idx].unit = None;
                }
                for follower in followers {
                    self.enqueue(Unit::item(call_id, follower));
                }
            }
        }
    }

    /// Keeps a copy of a slot from which others can go on.
    fn keep_checkpoint(&mut self, engine: &mut dyn LogitsEngine, slot_idx: usize) {
        let idle = (0..self.slots.len()).filter(|idx| self.slots[*idx].unit.is_none());
        let target = idle.min_by_key(|idx| {
            (self.cache.len(seq(*idx)) > 0, self.slots[*idx].last_used, Reverse(*idx))
        });
        let Some(target) = target.map(seq) else { return };
        self.clear(engine, target);
        let (from, len) = (seq(slot_idx), self.cache.len(seq(slot_idx)));
        // Without the copy the others are fed from the beginning.
        if engine.fork(from, target, len as u32).is_ok_and(|n_kept| n_kept as usize == len) {
            self.cache.fork(from, target, len);
            self.slots[target.0 as usize].last_used = self.n_admitted;
        } else {
            self.clear(engine, target);
        }
    }
}

/// A feed that is put together.
struct Feed {
    n_positions: usize,
    n_rows: usize,
    parts: Vec<Part>,
}

/// Hands a row to the call it belongs to.
fn take_row(call: &mut Call, unit: &mut Unit, position: u32, logits: &[f32], table: &TokenTable) {
    if (position as usize) < unit.sequence.first_row {
        return;
    }
    let result = match unit.role {
        Role::Generation => call.take_row(position, logits, table, &mut unit.sequence),
        Role::Item(id) => match call.scoring() {
            Some(scoring) => scoring.take_row(id, position, logits, table),
            None => return,
        },
    };
    if let Err(error) = result {
        call.fail(error);
    }
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
