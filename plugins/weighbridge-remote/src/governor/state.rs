//! Who may go and who waits, as a function of what happened and when.

use std::time::Duration;

use tokio::time::Instant;

use super::Limits;
use super::cap::PerMinute;
use super::told::{N_BUDGETS, Told, Unit};
use super::window::Window;

/// Everything that decides whether a call may go.
#[derive(Debug)]
pub(super) struct State {
    window: Window,
    /// Calls that found no room when they came.
    pub(super) n_waiting: u32,
    n_running: u32,
    n_admitted: u64,
    n_tokens_admitted: u64,
    /// A server asked to be left alone until then.
    held_until: Option<Instant>,
    budgets: [Option<Budget>; N_BUDGETS],
    requests: Option<PerMinute>,
    tokens: Option<PerMinute>,
}

/// What is left of a budget, as far as we know.
#[derive(Clone, Copy, Debug)]
struct Budget {
    unit: Unit,
    remaining: u64,
    resets_at: Instant,
}

/// A call that was let in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    number: u64,
    /// Tokens admitted up to and with this call.
    n_tokens_with: u64,
}

/// Why a call is not let in yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// As many run as may.
    Full,
    /// Not before then.
    Until(Instant, Why),
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The server asked to be left alone.
    Held,
    /// The server's budget is used up.
    Budget,
    /// The user's own limit is reached.
    Cap,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            window: Window::new(limits.max_concurrency),
            n_waiting: 0,
            n_running: 0,
            n_admitted: 0,
            n_tokens_admitted: 0,
            held_until: None,
            budgets: [None; N_BUDGETS],
            requests: limits.requests_per_minute.map(PerMinute::new),
            tokens: limits.tokens_per_minute.map(PerMinute::new),
        }
    }

    /// One more backend uses it: it may become as wide as the widest asks, and what is promised
    /// not to be exceeded is not.
    pub(super) fn join(&mut self, limits: Limits) {
        self.window.widen(limits.max_concurrency);
        for (own, asked) in [
            (&mut self.requests, limits.requests_per_minute),
            (&mut self.tokens, limits.tokens_per_minute),
        ] {
            match (own, asked) {
                (Some(own), Some(asked)) => own.tighten(asked),
                (own @ None, Some(asked)) => *own = Some(PerMinute::new(asked)),
                (_, None) => {}
            }
        }
    }

    /// Lets a call of some `n_tokens` in.
    pub(super) fn admit(&mut self, n_tokens: u64, now: Instant) -> Result<Ticket, Blocked> {
        if let Some((until, why)) = self.closed_until(n_tokens, now) {
            return Err(Blocked::Until(until, why));
        }
        if !self.window.has_room(self.n_running) {
            return Err(Blocked::Full);
        }
        let number = self.n_admitted;
        self.n_running += 1;
        self.n_admitted += 1;
        self.n_tokens_admitted += n_tokens;
        for budget in self.budgets.iter_mut().flatten() {
            let amount = if budget.unit == Unit::Requests { 1 } else { n_tokens };
            budget.remaining = budget.remaining.saturating_sub(amount);
        }
        if let Some(cap) = &mut self.requests {
            cap.take(number, 1, now);
        }
        if let Some(cap) = &mut self.tokens {
            cap.take(number, n_tokens, now);
        }
        Ok(Ticket { number, n_tokens_with: self.n_tokens_admitted })
    }

    /// The last of the moments that a call has to wait for.
    fn closed_until(&mut self, n_tokens: u64, now: Instant) -> Option<(Instant, Why)> {
        self.held_until.take_if(|until| *until <= now);
        for budget in &mut self.budgets {
            budget.take_if(|budget| budget.resets_at <= now);
        }
        let budgets = self.budgets.iter().flatten().filter(|budget| budget.remaining == 0);
        let budgets = budgets.map(|budget| (budget.resets_at, Why::Budget));
        let requests = self.requests.as_mut().and_then(|cap| cap.full_until(1, now));
        let tokens = self.tokens.as_mut().and_then(|cap| cap.full_until(n_tokens, now));
        let caps = requests.into_iter().chain(tokens).map(|until| (until, Why::Cap));
        let held = self.held_until.map(|until| (until, Why::Held));
        held.into_iter().chain(budgets).chain(caps).max_by_key(|(until, _)| *until)
    }

    /// The head of a call's answer told these budgets. What was admitted after the call is not in
    /// them yet.
    pub(super) fn told(&mut self, ticket: Ticket, told: [Option<Told>; N_BUDGETS], now: Instant) {
        for (budget, told) in self.budgets.iter_mut().zip(told) {
            let Some(told) = told else { continue };
            let since = match told.unit {
                Unit::Requests => self.n_admitted - ticket.number - 1,
                Unit::Tokens => self.n_tokens_admitted - ticket.n_tokens_with,
            };
            *budget = Some(Budget {
                unit: told.unit,
                remaining: told.remaining.saturating_sub(since),
                resets_at: now + told.resets_in,
            });
        }
    }

    /// The service answered a call.
    pub(super) fn answered(&mut self) {
        self.window.answered();
    }

    /// The service refused a call for want of capacity, and asked for this pause.
    pub(super) fn pushed_back(&mut self, ticket: Ticket, after: Option<Duration>, now: Instant) {
        self.window.pushed_back(ticket.number, self.n_running, self.n_admitted);
        self.held_until = self.held_until.max(after.map(|after| now + after));
    }

    /// So many tokens a call really used.
    pub(super) fn used(&mut self, ticket: Ticket, n_tokens: u64) {
        if let Some(cap) = &mut self.tokens {
            cap.correct(ticket.number, n_tokens);
        }
    }

    /// A call is over.
    pub(super) fn leave(&mut self) {
        self.n_running -= 1;
    }
}
