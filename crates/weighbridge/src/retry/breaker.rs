//! Leaves a service alone that does not answer, and looks now and then whether it does again.

use std::time::{Duration, Instant};

/// After so many failures in a row the service counts as down.
const OPENS_AFTER: u32 = 5;
/// First pause before a probe; it doubles with every probe that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two probes.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A circuit breaker: closed it lets every call through, open none, half-open one.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    state: State,
    n_failed_in_row: u32,
    n_failed_probes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// One call is on its way to find out.
    HalfOpen,
}

/// Whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Yes,
    /// As the one call that finds out whether the service is back.
    Probe,
    /// Not before this has passed.
    After(Duration),
    /// Not before it is known what comes of the probe.
    AfterProbe,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: State::Closed, n_failed_in_row: 0, n_failed_probes: 0 }
    }

    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed => Admission::Yes,
            State::Open { until } if until > now => Admission::After(until - now),
            State::Open { .. } => {
                self.state = State::HalfOpen;
                Admission::Probe
            }
            State::HalfOpen => Admission::AfterProbe,
        }
    }

    /// An answer closes it, also one to a call from before it opened.
    pub(super) fn answered(&mut self) {
        *self = Self::new();
    }

    pub(super) fn failed(&mut self, is_probe: bool, now: Instant) {
        self.n_failed_in_row = self.n_failed_in_row.saturating_add(1);
        match self.state {
            State::Closed if self.n_failed_in_row >= OPENS_AFTER => self.open(now),
            State::HalfOpen if is_probe => {
                self.n_failed_probes += 1;
                self.open(now);
            }
            // Calls from before it opened tell nothing new.
            _ => {}
        }
    }

    /// A call ended without telling anything about the service. The next one may probe.
    pub(super) fn learned_nothing(&mut self, is_probe: bool, now: Instant) {
        if is_probe && self.state == State::HalfOpen {
            self.state = State::Open { until: now };
        }
    }

    /// Probes that failed since the service last answered.
    pub(super) fn n_failed_probes(&self) -> u32 {
        self.n_failed_probes
    }

    /// Failures since the service last answered.
    pub(super) fn n_failed_in_row(&self) -> u32 {
        self.n_failed_in_row
    }

    fn open(&mut self, now: Instant) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.n_failed_probes.min(10));
        self.state = State::Open { until: now + pause.min(LONGEST_PAUSE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for _ in 0..OPENS_AFTER {
            assert_eq!(breaker.admit(now), Admission::Yes);
            breaker.failed(false, now);
        }
        breaker
    }

    #[test]
    fn it_opens_on_failures_in_a_row_only() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..10 {
            for _ in 1..OPENS_AFTER {
                breaker.failed(false, now);
            }
            breaker.answered();
        }
        assert_eq!(breaker.admit(now), Admission::Yes);
        assert_eq!(opened(now).admit(now), Admission::After(FIRST_PAUSE));
    }

    #[test]
    fn one_call_probes_and_the_pause_doubles_up_to_its_limit() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [1, 2, 4, 8, 10, 10, 10] {
            let pause = Duration::from_secs(pause);
            assert_eq!(breaker.admit(now), Admission::After(pause));
            now += pause;
            assert_eq!(breaker.admit(now), Admission::Probe);
            assert_eq!(breaker.admit(now), Admission::AfterProbe);
            // Stragglers neither open it again nor end the probe.
            breaker.failed(false, now);
            breaker.learned_nothing(false, now);
            assert_eq!(breaker.admit(now), Admission::AfterProbe);
            breaker.failed(true, now);
        }
        assert_eq!(breaker.n_failed_probes(), 7);
        now += LONGEST_PAUSE;
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.answered();
        assert_eq!(breaker.admit(now), Admission::Yes);
        assert_eq!(breaker.n_failed_probes(), 0);
    }

    #[test]
    fn a_probe_that_is_given_up_makes_room_for_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + FIRST_PAUSE;
        assert_eq!(breaker.admit(later), Admission::Probe);
        breaker.learned_nothing(true, later);
        assert_eq!(breaker.admit(later), Admission::Probe);
    }

    #[test]
    fn a_late_answer_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.answered();
        assert_eq!(breaker.admit(now), Admission::Yes);
    }
}
