//! One generation on the engine's thread: rows in, events out.

use std::collections::VecDeque;
use std::time::Instant;

use weighbridge_core::{Event, Phase, PromptTokens, Result, StopReason, Timings, Usage};

use crate::constraint::{ConstraintState, PendingMask};
use crate::detokenizer::Detokenizer;
use crate::job::{Finished, JobEvent, Sequence};
use crate::logprob::Distribution;
use crate::sampler::Sampler;
use crate::stop::StopScanner;
use crate::tokens::{TokenKind, TokenTable};

/// The state of a generation besides its tokens.
#[derive(Debug)]
pub(crate) struct Generation {
    sampler: Sampler,
    stops: StopScanner,
    text: Detokenizer,
    n_prompt: usize,
    max_tokens: u32,
    /// `Some(k)`: log-probabilities with `k` alternatives.
    n_top: Option<usize>,
    n_generated: u32,
    constraint: Option<PendingMask>,
    /// The last token of the sequence completes the constraint's language.
    is_complete: bool,
    n_cached: Option<usize>,
    clock: Clock,
}

#[derive(Debug)]
struct Clock {
    submitted: Instant,
    admitted: Option<Instant>,
    first_row: Option<Instant>,
    first_text: Option<Instant>,
    last_row: Option<Instant>,
    n_preemptions: u32,
}

impl Generation {
    /// A generation of at most `max_tokens` tokens after a prompt of `n_prompt`.
    ///
    /// # Errors
    /// Those of the constraint's first mask.
    pub(crate) fn new(
        sampler: Sampler,
        stops: &[String],
        n_prompt: usize,
        max_tokens: u32,
        n_top: Option<u8>,
        constraint: Option<ConstraintState>,
        submitted: Instant,
    ) -> Result<Self> {
        Ok(Self {
            sampler,
            stops: StopScanner::new(stops),
            text: Detokenizer::new(),
            n_prompt,
            max_tokens,
            n_top: n_top.map(usize::from),
            n_generated: 0,
            constraint: constraint.map(PendingMask::start).transpose()?,
            is_complete: false,
            n_cached: None,
            clock: Clock {
                submitted,
                admitted: None,
                first_row: None,
                first_text: None,
                last_row: None,
                n_preemptions: 0,
            },
        })
    }

    /// Got a slot that holds `n_cached` tokens of the prompt. Only the first time counts: a job that
    /// lost its slot and came back has used no cache.
    pub(crate) fn admitted(&mut self, n_cached: usize, now: Instant) {
        self.clock.admitted.get_or_insert(now);
        self.n_cached.get_or_insert(n_cached);
    }

    /// Lost its slot to older sequences.
    pub(crate) fn preempted(&mut self) {
        self.clock.n_preemptions += 1;
    }

    /// Takes the row after the token at `position`: draws the next token, or shows the one that a
    /// constraint has forced there. `true` if it was the last.
    ///
    /// Forced tokens join the sequence with the drawn token before them, to be fed as one span. Their
    /// log-probabilities need their rows, so with log-probabilities every row of the span is wanted
    /// and a forced token is shown when its row is there; otherwise only the row after the last one.
    pub(crate) fn take_row(
        &mut self,
        position: u32,
        logits: &[f32],
        table: &TokenTable,
        sequence: &mut Sequence,
        outbox: &mut VecDeque<JobEvent>,
    ) -> Result<bool> {
        let now = Instant::now();
        self.clock.first_row.get_or_insert(now);
        self.clock.last_row = Some(now);
        let mut next = position as usize + 1;
        let is_drawn = next == sequence.tokens.len();
        if is_drawn {
            sequence.tokens.push(self.draw(position, logits, table)?);
        }
        sequence.first_row = next;
        let id = sequence.tokens[next];
        if let Some(n_top) = self.n_top {
            let entry = Distribution::new(logits, position)?.describe(id, n_top, table);
            outbox.push_back(JobEvent::Event(Event::Tokens(vec![entry].into())));
        }
        if self.show_token(id, table, outbox) {
            return Ok(true);
        }
        if is_drawn {
            self.advance(id, position, table, sequence)?;
        }
        while self.n_top.is_none() && next + 1 < sequence.tokens.len() {
            next += 1;
            sequence.first_row = next;
            if self.show_token(sequence.tokens[next], table, outbox) {
                return Ok(true);
            }
        }
        let is_last = next + 1 == sequence.tokens.len();
        if is_last && self.is_complete {
            self.end(StopReason::Stop, Some("constraint"), outbox);
            return Ok(true);
        }
        if self.n_generated >= self.max_tokens {
            self.end(StopReason::Length, Some("max_tokens"), outbox);
            return Ok(true);
        }
        Ok(false)
    }

    fn draw(&mut self, position: u32, logits: &[f32], table: &TokenTable) -> Result<u32> {
        let Some(pending) = self.constraint.take() else {
            return self.sampler.sample(logits, position, table, None);
        };
        let mut state = pending.take().map_err(|error| error.with("position", position))?;
        let id = self.sampler.sample(logits, position, table, Some(state.mask()?))?;
        self.constraint = Some(PendingMask::here(state));
        Ok(id)
    }

    /// Tells the constraint which token was drawn, appends what is forced after it and has the next
    /// mask computed.
    fn advance(
        &mut self,
        id: u32,
        position: u32,
        table: &TokenTable,
        sequence: &mut Sequence,
    ) -> Result<()> {
        let Some(pending) = self.constraint.take() else { return Ok(()) };
        let at = |error: weighbridge_core::Error| error.with("position", position);
        let mut state = pending.take().map_err(at)?;
        state.commit(id).map_err(at)?;
        let mut forced = state.take_forced().map_err(at)?;
        let n_room = self.max_tokens.saturating_sub(self.n_generated) as usize;
        self.is_complete = state.is_complete() && forced.len() <= n_room;
        forced.truncate(n_room);
        for (index, id) in forced.iter().enumerate() {
            self.sampler.force(*id, position + 1 + index as u32, table)?;
        }
        sequence.tokens.extend_from_slice(&forced);
        if forced.len() < n_room {
            self.constraint = Some(PendingMask::start(state).map_err(at)?);
        }
        Ok(())
    }

    /// Counts a token of the completion and lets its text out; `true` if it ended the generation.
    fn show_token(&mut self, id: u32, table: &TokenTable, outbox: &mut VecDeque<JobEvent>) -> bool {
        self.n_generated += 1;
        if table.is_end(id) {
            self.end(StopReason::Stop, Some("end_token"), outbox);
            return true;
        }
        if table.kind(id) == TokenKind::Text && !table.bytes_of(id).is_empty() {
            self.clock.first_text.get_or_insert_with(Instant::now);
            let scanned = self.stops.push(table.bytes_of(id));
            let text = self.text.push(&scanned.bytes);
            show(text, outbox);
            if scanned.matched.is_some() {
                self.end(StopReason::Stop, Some("stop_text"), outbox);
                return true;
            }
        }
        false
    }

    /// Reports how far the prompt is.
    pub(crate) fn after_feed(&self, sequence: &Sequence, outbox: &mut VecDeque<JobEvent>) {
        if sequence.n_fed < self.n_prompt {
            let tokens = PromptTokens::new(sequence.n_fed as u64, self.n_prompt as u64);
            outbox.push_back(JobEvent::Event(Event::Progress { phase: Phase::Prefill, tokens }));
        }
    }

    /// Lets out what was held back and ends.
    pub(crate) fn end(
        &mut self,
        stop_reason: StopReason,
        raw_stop_reason: Option<&str>,
        outbox: &mut VecDeque<JobEvent>,
    ) {
        // After a stop text the scanner holds nothing: what came before it is out already.
        let held = self.stops.finish();
        let mut text = self.text.push(&held);
        text.push_str(&self.text.finish());
        show(text, outbox);

        let mut warnings = Vec::new();
        let n_replaced = self.text.n_replaced();
        if n_replaced > 0 {
            warnings.push(format!(
                "{n_replaced} incomplete or invalid UTF-8 sequence(s) of the output were replaced by U+FFFD"
            ));
        }
        for warning in &warnings {
            outbox.push_back(JobEvent::Event(Event::Warning(warning.clone().into())));
        }
        let mut usage = Usage::new(self.n_prompt as u64, u64::from(self.n_generated));
        usage.n_cached_tokens = self.n_cached.map(|n| n as u64);
        outbox.push_back(JobEvent::Event(Event::Usage(std::borrow::Cow::Owned(usage.clone()))));
        outbox.push_back(JobEvent::Generated(Box::new(Finished {
            stop_reason,
            raw_stop_reason: raw_stop_reason.map(str::to_owned),
            usage,
            timings: self.clock.timings(),
            warnings,
        })));
    }
}

impl Clock {
    fn timings(&self) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| Some(to?.duration_since(from?));
        let mut timings = Timings::total(self.submitted.elapsed());
        timings.queue = between(Some(self.submitted), self.admitted);
        timings.prefill = between(self.admitted, self.first_row);
        timings.ttft = between(Some(self.submitted), self.first_text);
        timings.decode = between(self.first_row, self.last_row);
        timings.n_preemptions = self.n_preemptions;
        timings
    }
}

fn show(text: String, outbox: &mut VecDeque<JobEvent>) {
    if !text.is_empty() {
        outbox.push_back(JobEvent::Event(Event::Text(text.into())));
    }
}
