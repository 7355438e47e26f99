//! Which waiting sequence gets which slot, and what of it is there already.

use std::cmp::Reverse;
use std::time::Instant;

use weighbridge_core::{Error, ErrorKind, Result};

use super::prefix::{Match, n_shared};
use super::{LOOK_AHEAD, PATIENCE, Role, Scheduler, Unit, seq};
use crate::logits::{Fork, LogitsEngine, SeqId, Truncate};

/// A sequence that was passed over this often is next.
const MAX_PASSED_OVER: u32 = 64;
/// Tokens in common for which it is worth waiting until another sequence has fed them.
const MIN_SHARED: usize = 16;
/// Positions that are kept free for each running sequence to grow into.
const GROWTH: usize = 64;

/// A waiting sequence and where its beginning is.
struct Choice {
    waiting_idx: usize,
    source: Option<Match>,
    /// A parked sequence that has more of it than the source, and how much.
    parked: Option<(usize, usize)>,
}

impl Scheduler {
    /// Gives slots to waiting sequences.
    pub(super) fn admit(&mut self, engine: &mut dyn LogitsEngine, now: Instant) {
        while !self.waiting.is_empty() {
            let n_active = self.active().count();
            let has_place = n_active < self.width.now();
            let choice = if has_place { self.choose(n_active) } else { None };
            let Some(Choice { waiting_idx, source, parked }) = choice else {
                if self.give_way(now) {
                    continue;
                }
                return;
            };
            let Some(mut unit) = self.waiting.remove(waiting_idx) else { return };
            for earlier in self.waiting.iter_mut().take_while(|other| other.call < unit.call) {
                earlier.n_passed_over += 1;
            }
            self.n_admitted += 1;
            let is_deterministic = self.is_deterministic(&unit);
            if is_deterministic {
                (0..self.slots.len()).for_each(|idx| self.clear(engine, seq(idx)));
            }
            unit.checkpoint = self.checkpoint(&unit);
            let source = parked.and_then(|parked| self.unpark(engine, &unit, parked)).or(source);
            let (slot, placed) = match self.place(engine, &unit, source) {
                Some((slot, placed)) => (slot, placed),
                None => {
                    self.enqueue(unit);
                    return;
                }
            };
            match placed {
                Ok(n_kept) => {
                    self.start(unit, slot, n_kept, now);
                    self.park_idle(engine);
                }
                Err(error) => {
                    if let Some(call) = self.calls.get_mut(&unit.call) {
                        call.fail(error);
                    }
                    self.clear(engine, slot);
                }
            }
        }
    }

    fn is_deterministic(&self, unit: &Unit) -> bool {
        self.calls.get(&unit.call).is_some_and(|call| call.is_deterministic)
    }

    /// The next sequence, if one fits. A deterministic one waits until nothing else runs, and what
    /// came after it waits for it.
    fn choose(&self, n_active: usize) -> Option<Choice> {
        if self.active().any(|(_, unit)| self.is_deterministic(unit)) {
            return None;
        }
        let n_used = self.n_positions(true);
        let to_come = |(_, unit): (usize, &Unit)| unit.sequence.n_left() + growth(unit);
        let n_growth: usize = self.active().map(to_come).sum();
        let mut best = None;
        let waiting = self.waiting.iter().enumerate().filter(|(_, unit)| self.is_ready(unit));
        for (waiting_idx, unit) in waiting.take(LOOK_AHEAD) {
            if self.is_deterministic(unit) {
                if best.is_none() && n_active == 0 {
                    return Some(Choice { waiting_idx, source: None, parked: None });
                }
                break;
            }
            let source = self.source(unit);
            let n_there = source.map_or(0, |source| source.n_shared);
            let parked = self.parked(unit).filter(|(_, n)| *n >= n_there + MIN_SHARED);
            let n_cached = parked.map_or(n_there, |(_, n_shared)| n_shared);
            if self.is_coming(unit, n_cached) {
                continue;
            }
            // What only idle slots hold is not counted as used.
            let n_saved = match (self.caps.fork, parked) {
                (Fork::Shared, None) => self.n_held_by_active(unit),
                _ => 0,
            };
            let n_needed = unit.sequence.tokens.len() - n_saved + growth(unit);
            if n_active > 0 && n_used + n_growth + n_needed > self.caps.ctx_total as usize {
                // Nothing that came later may take the room that this one waits for.
                if unit.n_passed_over >= MAX_PASSED_OVER {
                    break;
                }
                continue;
            }
            let key = (
                unit.n_passed_over >= MAX_PASSED_OVER,
                n_cached,
                unit.n_positions,
                Reverse(waiting_idx),
            );
            if best.as_ref().is_none_or(|(best_key, _)| key > *best_key) {
                best = Some((key, Choice { waiting_idx, source, parked }));
            }
        }
        best.map(|(_, choice)| choice)
    }

    /// The slot from which most of a sequence can be had.
    fn source(&self, unit: &Unit) -> Option<Match> {
        if !self.tuning.reuses_prefixes {
            return None;
        }
        let max_tail = self.max_tail();
        self.cache.longest(unit.reusable(), |found| {
            let is_idle = self.slots[found.seq.0 as usize].unit.is_none();
            let is_usable = is_idle || self.caps.fork != Fork::No;
            (is_usable && found.n_held - found.n_shared <= max_tail).then_some(is_idle)
        })
    }

    /// How much of a sequence the running ones hold.
    fn n_held_by_active(&self, unit: &Unit) -> usize {
        let max_tail = self.max_tail();
        let held = self.cache.longest(unit.reusable(), |found| {
            let is_active = self.slots[found.seq.0 as usize].unit.is_some();
            (is_active && found.n_held - found.n_shared <= max_tail).then_some(())
        });
        held.map_or(0, |found| found.n_shared)
    }

    /// How far a sequence can be cut back.
    fn max_tail(&self) -> usize {
        match self.caps.truncate {
            Truncate::Any => usize::MAX,
            Truncate::Last(n) => n as usize,
            Truncate::No => 0,
        }
    }

    /// The parked sequence from which most of a sequence can be had.
    fn parked(&self, unit: &Unit) -> Option<(usize, usize)> {
        match self.tuning.reuses_prefixes {
            true => self.park.longest(unit.reusable(), self.max_tail()),
            false => None,
        }
    }

    /// Puts a parked sequence back into an idle slot, which is a source then.
    fn unpark(
        &mut self,
        engine: &mut dyn LogitsEngine,
        unit: &Unit,
        (parked_idx, n_shared): (usize, usize),
    ) -> Option<Match> {
        let idle = (0..self.slots.len()).filter(|idx| self.slots[*idx].unit.is_none());
        let slot = idle
            .min_by_key(|idx| (self.cache.len(seq(*idx)) > 0, self.slots[*idx].last_used))
            .map(seq)?;
        self.clear(engine, slot);
        let parked = self.park.take(parked_idx);
        let n_held = parked.tokens.len();
        let n_needed = n_held + unit.sequence.tokens.len() - n_shared;
        while self.n_positions(false) + n_needed > self.caps.ctx_total as usize {
            if !self.evict(engine, None) {
                return None;
            }
        }
        let is_back = engine.restore(slot, &parked.snapshot).is_ok();
        if !is_back || engine.len(slot) as usize != n_held {
            self.clear(engine, slot);
            return None;
        }
        self.cache.append(slot, &parked.tokens);
        self.slots[slot.0 as usize].last_used = self.n_admitted;
        Some(Match { seq: slot, n_shared, n_held })
    }

    /// Whether a running sequence is about to feed more of the beginning than there is now, so that it
    /// can be forked soon.
    fn is_coming(&self, unit: &Unit, n_cached: usize) -> bool {
        if self.caps.fork == Fork::No || !self.tuning.reuses_prefixes {
            return false;
        }
        self.active().any(|(_, running)| {
            let fed = &running.sequence;
            let prompt = &fed.tokens[..fed.n_prompt];
            let n_shared = n_shared(prompt, unit.reusable());
            let n_shared = match (self.caps.truncate, running.checkpoint) {
                (Truncate::Any, _) => n_shared,
                (_, Some(checkpoint)) if checkpoint <= n_shared => checkpoint,
                _ => 0,
            };
            n_shared >= n_cached + MIN_SHARED && fed.n_fed < n_shared
        })
    }

    /// Where a copy has to be kept for the sequences that wait, if the engine cannot cut back.
    fn checkpoint(&self, unit: &Unit) -> Option<usize> {
        if self.caps.truncate == Truncate::Any
            || self.caps.fork == Fork::No
            || !self.tuning.reuses_prefixes
            || self.is_deterministic(unit)
        {
            return None;
        }
        let prompt = &unit.sequence.tokens[..unit.sequence.n_prompt];
        let others = self.waiting.iter().filter(|unit| self.is_ready(unit)).take(LOOK_AHEAD);
        let mut lengths: Vec<usize> = others.map(|o| n_shared(prompt, o.reusable())).collect();
        lengths.sort_unstable_by_key(|len| Reverse(*len));
        // Where it saves most: its length for each of those that can use it.
        let saved = lengths.iter().enumerate().map(|(n, len)| ((n + 1) * len, *len));
        let n_shared = saved.max().map_or(0, |(_, len)| len);
        // The continuations of a scoring begin with the whole context.
        let is_score = matches!(unit.role, Role::Item(_));
        let n_shared = if is_score { n_shared.max(unit.sequence.n_prompt) } else { n_shared };
        (n_shared >= MIN_SHARED).then_some(n_shared)
    }

    /// Finds a slot and puts into it what is there already; says how many tokens that are. `None` if
    /// every slot is taken.
    fn place(
        &mut self,
        engine: &mut dyn LogitsEngine,
        unit: &Unit,
        source: Option<Match>,
    ) -> Option<(SeqId, Result<usize>)> {
        self.make_room(engine, unit, source);
        let source = source.filter(|source| self.cache.len(source.seq) == source.n_held);
        if let Some(source) = source {
            self.slots[source.seq.0 as usize].last_used = self.n_admitted;
        }
        let idle = (0..self.slots.len()).filter(|idx| self.slots[*idx].unit.is_none());
        let is_source = |idx: usize| source.is_some_and(|source| source.seq == seq(idx));
        // An empty slot rather than the one unused for longest.
        let target = idle
            .filter(|idx| !is_source(*idx))
            .min_by_key(|idx| (self.cache.len(seq(*idx)) > 0, self.slots[*idx].last_used))
            .map(seq);
        let Some(source) = source else {
            let target = target?;
            self.clear(engine, target);
            return Some((target, Ok(0)));
        };
        let is_idle = self.slots[source.seq.0 as usize].unit.is_none();
        // Worth keeping: more of it than what is shared, or an engine that cannot come back to it.
        let is_worth_keeping =
            2 * source.n_shared < source.n_held || self.caps.truncate != Truncate::Any;
        let n_copied = if self.caps.fork == Fork::Shared { 0 } else { source.n_shared };
        let n_new = unit.sequence.tokens.len() - source.n_shared;
        let has_room = self.n_positions(false) + n_copied + n_new <= self.caps.ctx_total as usize;
        let takes_over = is_idle
            && (self.caps.fork == Fork::No || target.is_none() || !is_worth_keeping || !has_room);
        if takes_over {
            let kept = engine.truncate(source.seq, source.n_shared as u32);
            return Some((
                source.seq,
                self.booked(engine, source.seq, source.n_shared, kept, None),
            ));
        }
        let target = target?;
        self.clear(engine, target);
        if self.caps.fork == Fork::No {
            return Some((target, Ok(0)));
        }
        let kept = engine.fork(source.seq, target, source.n_shared as u32);
        let is_less = kept.as_ref().is_ok_and(|kept| (*kept as usize) < source.n_shared);
        let booked = self.booked(engine, target, source.n_shared, kept, Some(source.seq));
        if is_less && is_idle {
            // It cannot be shared after all, and must not be chosen again.
            self.clear(engine, source.seq);
        }
        Some((target, booked))
    }

    /// Books what a cut or a fork has kept.
    fn booked(
        &mut self,
        engine: &dyn LogitsEngine,
        slot: SeqId,
        n_asked: usize,
        kept: Result<u32>,
        from: Option<SeqId>,
    ) -> Result<usize> {
        let n_kept = kept? as usize;
        if n_kept > n_asked || engine.len(slot) as usize != n_kept {
            return Err(Error::new(
                ErrorKind::Plugin,
                "the engine cut a sequence to another length",
            )
            .with("n_asked", n_asked)
            .with("n_kept", n_kept));
        }
        match from {
            Some(from) => self.cache.fork(from, slot, n_kept),
            None => self.cache.truncate(slot, n_kept),
        }
        Ok(n_kept)
    }

    /// Empties idle slots until the sequence fits beside all others.
    fn make_room(&mut self, engine: &mut dyn LogitsEngine, unit: &Unit, source: Option<Match>) {
        // A slot that is taken over needs no copy either.
        let needs_no_copy = |source: &Match| {
            self.caps.fork == Fork::Shared || self.slots[source.seq.0 as usize].unit.is_none()
        };
        let n_saved = source.filter(needs_no_copy).map_or(0, |source| source.n_shared);
        let n_needed = unit.sequence.tokens.len() - n_saved;
        let kept = source.map(|source| source.seq);
        while self.n_positions(false) + n_needed > self.caps.ctx_total as usize {
            // At last the source itself, if nothing runs in it.
            if !self.evict(engine, kept) && !self.evict(engine, None) {
                break;
            }
        }
    }

    fn start(&mut self, mut unit: Unit, slot: SeqId, n_kept: usize, now: Instant) {
        unit.sequence.n_fed = n_kept;
        unit.n_passed_over = 0;
        if let Some(call) = self.calls.get_mut(&unit.call) {
            match unit.role {
                Role::Generation => {
                    if let Some((generation, _)) = call.generation() {
                        generation.admitted(n_kept, now);
                    }
                }
                Role::Item(id) => {
                    if let Some(scoring) = call.scoring() {
                        scoring.admitted(id, n_kept);
                    }
                }
            }
        }
        let slot = &mut self.slots[slot.0 as usize];
        slot.last_used = self.n_admitted;
        slot.unit = Some(unit);
    }

    /// Takes the slot of the caller that has been behind longest, if long enough.
    fn give_way(&mut self, now: Instant) -> bool {
        if !self.waiting.iter().any(|unit| self.is_ready(unit)) {
            return false;
        }
        let behind_since = |unit: &Unit| self.calls.get(&unit.call)?.behind_since;
        let behind = self.active().filter_map(|(idx, unit)| Some((idx, behind_since(unit)?)));
        let Some((slot_idx, since)) = behind.min_by_key(|(_, since)| *since) else { return false };
        if now.duration_since(since) < PATIENCE {
            return false;
        }
        if let Some(mut unit) = self.slots[slot_idx].unit.take() {
            unit.sequence.n_fed = 0;
            self.enqueue(unit);
        }
        true
    }
}

/// Positions that a sequence is expected to need soon beyond those of its tokens.
fn growth(unit: &Unit) -> usize {
    unit.n_positions.saturating_sub(unit.sequence.tokens.len()).min(GROWTH)
}
