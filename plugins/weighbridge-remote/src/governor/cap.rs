//! A user's own limit per minute.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// At most so much in any 60 seconds. A single larger piece passes when nothing else does.
#[derive(Clone, Debug)]
pub(super) struct PerMinute {
    limit: u64,
    /// Number of the call, when it was admitted, and what it took; oldest first.
    taken: VecDeque<(u64, Instant, u64)>,
    /// Wide, as a server may tell any count.
    sum: u128,
}

impl PerMinute {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, taken: VecDeque::new(), sum: 0 }
    }

    /// The stricter of two limits holds.
    pub(super) fn tighten(&mut self, limit: u64) {
        self.limit = self.limit.min(limit);
    }

    /// Until when there is no room for `amount`; `None` if there is.
    pub(super) fn full_until(&mut self, amount: u64, now: Instant) -> Option<Instant> {
        while let Some((_, at, n)) = self.taken.front()
            && *at + MINUTE <= now
        {
            self.sum -= u128::from(*n);
            self.taken.pop_front();
        }
        let too_many = (self.sum + u128::from(amount)).saturating_sub(self.limit.into());
        if too_many == 0 || self.sum == 0 {
            return None;
        }
        let mut n_freed = 0;
        let enough = self.taken.iter().find(|(_, _, n)| {
            n_freed += u128::from(*n);
            n_freed >= too_many
        });
        enough.or(self.taken.back()).map(|(_, at, _)| *at + MINUTE)
    }

    /// Call `number` takes `amount`.
    pub(super) fn take(&mut self, number: u64, amount: u64, now: Instant) {
        self.taken.push_back((number, now, amount));
        self.sum += u128::from(amount);
    }

    /// Call `number` really took `amount`.
    pub(super) fn correct(&mut self, number: u64, amount: u64) {
        if let Ok(idx) = self.taken.binary_search_by_key(&number, |taken| taken.0) {
            self.sum = self.sum - u128::from(self.taken[idx].2) + u128::from(amount);
            self.taken[idx].2 = amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_comes_when_enough_is_a_minute_old() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut cap = PerMinute::new(10);
        cap.take(0, 4, at(0));
        cap.take(1, 4, at(5));
        assert_eq!(cap.full_until(2, at(6)), None);
        assert_eq!(cap.full_until(3, at(6)), Some(at(60)));
        assert_eq!(cap.full_until(7, at(6)), Some(at(65)));
        assert_eq!(cap.full_until(50, at(6)), Some(at(65)));
        assert_eq!(cap.full_until(3, at(60)), None);
        assert_eq!(cap.full_until(50, at(65)), None);
    }

    #[test]
    fn what_was_really_used_counts() {
        let now = Instant::now();
        let mut cap = PerMinute::new(10);
        cap.take(7, 10, now);
        cap.correct(7, 3);
        cap.correct(8, 100);
        assert_eq!(cap.full_until(7, now), None);
        assert!(cap.full_until(8, now).is_some());
    }

    #[test]
    fn any_count_that_a_server_tells_is_counted() {
        let now = Instant::now();
        let mut cap = PerMinute::new(10);
        for number in 0..3 {
            cap.take(number, 1, now);
            cap.correct(number, u64::MAX);
        }
        for amount in [0, 1, u64::MAX] {
            assert_eq!(cap.full_until(amount, now), Some(now + MINUTE));
        }
        assert_eq!(cap.full_until(u64::MAX, now + MINUTE), None);
    }

    proptest! {
        #[test]
        fn no_minute_holds_more_than_the_limit(
            amounts in proptest::collection::vec((0_u64..8, 0_u64..9000), 1..200)
        ) {
            let mut now = Instant::now();
            let mut cap = PerMinute::new(10);
            let mut taken: Vec<(Instant, u64)> = Vec::new();
            for (number, (amount, pause)) in amounts.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                while let Some(until) = cap.full_until(amount, now) {
                    prop_assert!(until > now);
                    now = until;
                }
                cap.take(number as u64, amount, now);
                taken.push((now, amount));
                let recent = taken.iter().filter(|(at, _)| *at + MINUTE > now);
                prop_assert!(recent.map(|(_, amount)| amount).sum::<u64>() <= 10);
            }
        }
    }
}
