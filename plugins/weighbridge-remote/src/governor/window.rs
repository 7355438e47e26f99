//! How many calls a service bears at once: more with every answer, half with every push-back.

/// The window of additive increase and multiplicative decrease.
#[derive(Clone, Debug)]
pub(super) struct Window {
    size: f64,
    max: f64,
    /// Calls with a smaller number were admitted before the last decrease.
    decreased_at: u64,
}

impl Window {
    /// As wide as it may become: what a service bears is found out by push-back.
    pub(super) fn new(max: u32) -> Self {
        Self { size: f64::from(max), max: f64::from(max), decreased_at: 0 }
    }

    /// Whether one more may run beside `n_running`.
    pub(super) fn has_room(&self, n_running: u32) -> bool {
        f64::from(n_running) < self.size.floor()
    }

    /// Lets it become as wide as `max`.
    pub(super) fn widen(&mut self, max: u32) {
        let max = f64::from(max);
        if max > self.max {
            if self.size >= self.max {
                self.size = max;
            }
            self.max = max;
        }
    }

    /// A call was answered.
    pub(super) fn answered(&mut self) {
        self.size = (self.size + 1.0 / self.size).min(self.max);
    }

    /// The service refused call `number` for want of capacity, while `n_running` ran and
    /// `n_admitted` had been admitted. Refusals of calls that were on their way together count
    /// once.
    pub(super) fn pushed_back(&mut self, number: u64, n_running: u32, n_admitted: u64) {
        if number >= self.decreased_at {
            self.size = (self.size.min(f64::from(n_running)) / 2.0).max(1.0);
            self.decreased_at = n_admitted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(window: &Window) -> u32 {
        (0..5000).find(|n| !window.has_room(*n)).unwrap()
    }

    #[test]
    fn push_back_halves_once_per_flight_and_never_below_one() {
        let mut window = Window::new(64);
        assert_eq!(width(&window), 64);
        for number in 0..64 {
            window.pushed_back(number, 64, 64);
        }
        assert_eq!(width(&window), 32);
        window.pushed_back(64, 32, 96);
        assert_eq!(width(&window), 16);
        for flight in 0..20_u64 {
            window.pushed_back(96 + flight, 1, 97 + flight);
        }
        assert_eq!(width(&window), 1);
    }

    #[test]
    fn a_flight_of_answers_adds_one() {
        let mut window = Window::new(8);
        window.pushed_back(0, 8, 8);
        for expected in [5, 6, 7, 8, 8] {
            (0..expected).for_each(|_| window.answered());
            assert_eq!(width(&window), expected);
        }
    }

    #[test]
    fn what_was_not_in_use_is_not_what_was_too_much() {
        let mut window = Window::new(4096);
        window.pushed_back(3, 4, 4);
        assert_eq!(width(&window), 2);
    }

    #[test]
    fn the_widest_of_its_users_is_its_limit() {
        let mut window = Window::new(2);
        window.widen(8);
        assert_eq!(width(&window), 8);
        window.widen(4);
        assert_eq!(width(&window), 8);
        window.pushed_back(0, 8, 8);
        window.widen(16);
        assert_eq!(width(&window), 4);
    }
}
