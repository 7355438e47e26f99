//! How many repetitions a service is worth.

use std::time::{Duration, Instant};

/// Repetitions in hand at the start, and the most that can be saved up.
const RESERVE: f64 = 10.0;
/// Repetitions earned per call.
const PER_CALL: f64 = 0.1;
/// Repetitions earned per second of a service that answers.
const PER_SECOND: f64 = 1.0;
/// Calls whose earnings are what the reserve stands for.
const CALLS_OF_RESERVE: u32 = 100;

/// Repetitions that all calls of one model share: a tenth of its calls and one per second, with at
/// most ten saved up.
///
/// What is earned is credited when the service answers. While it does not, only the reserve can
/// be spent, and a tenth of the calls beyond the hundred that the reserve stands for. A full outage
/// of `n` calls is thus worth at most `max(10, n / 10)` repetitions, however long it lasts.
#[derive(Clone, Debug)]
pub(super) struct RetryBudget {
    tokens: f64,
    n_unanswered: u32,
    answered: Option<Instant>,
}

impl RetryBudget {
    pub(super) fn new() -> Self {
        Self { tokens: RESERVE, n_unanswered: 0, answered: None }
    }

    /// A call was made for the first time.
    pub(super) fn call(&mut self) {
        self.n_unanswered = self.n_unanswered.saturating_add(1);
        if self.n_unanswered > CALLS_OF_RESERVE {
            self.earn(PER_CALL);
        }
    }

    /// The service answered.
    pub(super) fn answer(&mut self, now: Instant) {
        self.earn(PER_CALL * f64::from(self.n_unanswered.min(CALLS_OF_RESERVE)));
        self.n_unanswered = 0;
        let since =
            self.answered.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.earn(PER_SECOND * since.as_secs_f64());
        self.answered = Some(now);
    }

    /// Takes `cost` repetitions, or nothing if there are fewer.
    pub(super) fn spend(&mut self, cost: f64) -> bool {
        // Tenths do not sum up exactly.
        let is_covered = self.tokens + 1e-9 >= cost;
        if is_covered {
            self.tokens = (self.tokens - cost).max(0.0);
        }
        is_covered
    }

    fn earn(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(RESERVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(budget: &mut RetryBudget) -> u32 {
        (0..).take_while(|_| budget.spend(1.0)).count() as u32
    }

    #[test]
    fn an_outage_is_worth_a_tenth_of_its_calls_and_at_least_the_reserve() {
        for n_calls in [1, 99, 100, 101, 150, 1000, 10_000] {
            let mut budget = RetryBudget::new();
            let n_spent: u32 = (0..n_calls)
                .map(|_| {
                    budget.call();
                    spend_all(&mut budget)
                })
                .sum();
            assert_eq!(n_spent, 10.max(n_calls / 10), "{n_calls}");
        }
    }

    #[test]
    fn good_times_save_up_no_more_than_the_reserve() {
        let start = Instant::now();
        let mut budget = RetryBudget::new();
        for i in 0..100_000 {
            budget.call();
            budget.answer(start + Duration::from_secs(i));
        }
        assert_eq!(spend_all(&mut budget), 10);
    }

    #[test]
    fn answers_earn_a_tenth_each_and_one_per_second_between_them() {
        let start = Instant::now();
        let mut budget = RetryBudget::new();
        spend_all(&mut budget);
        for _ in 0..30 {
            budget.call();
            budget.answer(start);
        }
        assert_eq!(spend_all(&mut budget), 3);
        budget.answer(start + Duration::from_secs(4));
        assert_eq!(spend_all(&mut budget), 4);
    }

    #[test]
    fn what_is_not_covered_costs_nothing() {
        let mut budget = RetryBudget::new();
        assert!(budget.spend(9.0) && !budget.spend(2.0) && budget.spend(1.0));
        assert!(!budget.spend(1.0));
    }
}
