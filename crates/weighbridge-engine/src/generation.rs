//! One generation on the engine's thread: rows in, events out.

use std::collections::VecDeque;
use std::time::Instant;

use weighbridge_core::{Event, Phase, PromptTokens, Result, StopReason, Timings, Usage};

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
    pub(crate) fn new(
        sampler: Sampler,
        stops: &[String],
        n_prompt: usize,
        max_tokens: u32,
        n_top: Option<u8>,
        submitted: Instant,
    ) -> Self {
        Self {
            sampler,
            stops: StopScanner::new(stops),
            text: Detokenizer::new(),
            n_prompt,
            max_tokens,
            n_top: n_top.map(usize::from),
            n_generated: 0,
            n_cached: None,
            clock: Clock {
                submitted,
                admitted: None,
                first_row: None,
                first_text: None,
                last_row: None,
                n_preemptions: 0,
            },
        }
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

    /// Draws the next token; `true` if it was the last.
    pub(crate) fn take_row(
        &mut self,
        position: u32,
        logits: &[f32],
        table: &TokenTable,
        sequence: &mut Sequence,
        outbox: &mut VecDeque<JobEvent>,
    ) -> Result<bool> {
        let id = self.sampler.sample(logits, position, table, None)?;
        let now = Instant::now();
        self.clock.first_row.get_or_insert(now);
        self.clock.last_row = Some(now);
        self.n_generated += 1;
        sequence.tokens.push(id);
        sequence.first_row = sequence.tokens.len() - 1;
        if let Some(n_top) = self.n_top {
            let entry = Distribution::new(logits, position)?.describe(id, n_top, table);
            outbox.push_back(JobEvent::Event(Event::Tokens(vec![entry].into())));
        }
        if table.is_end(id) {
            self.end(StopReason::Stop, Some("end_token"), outbox);
            return Ok(true);
        }
        if table.kind(id) == TokenKind::Text && !table.bytes_of(id).is_empty() {
            self.clock.first_text.get_or_insert(now);
            let scanned = self.stops.push(table.bytes_of(id));
            let text = self.text.push(&scanned.bytes);
            show(text, outbox);
            if scanned.matched.is_some() {
                self.end(StopReason::Stop, Some("stop_text"), outbox);
                return Ok(true);
            }
        }
        if self.n_generated >= self.max_tokens {
            self.end(StopReason::Length, Some("max_tokens"), outbox);
            return Ok(true);
        }
        Ok(false)
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
