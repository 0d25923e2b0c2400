//! Whether the store is asked at all.
//!
//! 1. *Closed*: every request asks. [`FAILURES`] failures in a row open the breaker; a success in between forgets
//!    them.
//! 2. *Open*: nobody asks, until a pause is over. The pauses double from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`], and
//!    each is cut by up to a half at random, so that the instances of a service do not come all at once.
//! 3. *Half open*: one request asks, the others still do not. If it has an answer the breaker closes, if it has
//!    none the next pause begins. If it goes away, or meets something that says nothing about the database, the
//!    same pause begins again.
//! 4. Only what says that the database is of no use counts as a failure: not a damaged row, and not a
//!    preparation that is known to have failed, which has its own retry (see `readiness`).
//! 5. Faults are logged when they begin and when they end, not each time.
//!
//! The decisions are made by [`State`], which is told the time.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::health::Health;
use crate::error::{Error, ErrorKind};
use crate::sync::Instant;

/// How many failures in a row open the breaker: more than one unlucky request has, and little enough to pay for.
const FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Breaker {
    /// Whether there is anything in `state` that a success would change.
    disturbed: AtomicBool,
    state: Mutex<State>,
    health: Health,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// `counted_at`: when the last failure was counted. What was asked before that and fails too is the same incident.
    Closed {
        failures: u32,
        counted_at: Option<Instant>,
    },
    Open {
        pause: Duration,
        until: Instant,
    },
    HalfOpen {
        pause: Duration,
    },
}

/// Permission to ask. Dropped without a verdict it says nothing about the store.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    breaker: &'a Breaker,
    asked_at: Instant,
    is_probe: bool,
    decided: bool,
}

impl State {
    const WELL: Self = Self::Closed {
        failures: 0,
        counted_at: None,
    };

    /// Whether this request may ask, and whether it is the only one.
    fn admit(&mut self, now: Instant) -> Option<bool> {
        match *self {
            Self::Closed { .. } => Some(false),
            Self::Open { pause, until } if until <= now => {
                *self = Self::HalfOpen { pause };
                Some(true)
            }
            Self::Open { .. } | Self::HalfOpen { .. } => None,
        }
    }

    /// `asked_at`: when the attempt began. `jitter`: from 0 to 1, how much of what may be cut is cut. True if this opened
    /// the breaker.
    fn fail(&mut self, is_probe: bool, asked_at: Instant, now: Instant, jitter: f64) -> bool {
        match *self {
            Self::Closed {
                counted_at: Some(counted_at),
                ..
            } if asked_at < counted_at => false,
            Self::Closed { failures, .. } if failures + 1 < FAILURES => {
                *self = Self::Closed {
                    failures: failures + 1,
                    counted_at: Some(now),
                };
                false
            }
            Self::Closed { .. } => {
                *self = Self::open(FIRST_PAUSE, now, jitter);
                true
            }
            Self::HalfOpen { pause } if is_probe => {
                *self = Self::open((pause * 2).min(LONGEST_PAUSE), now, jitter);
                false
            }
            // from before it opened
            Self::Open { .. } | Self::HalfOpen { .. } => false,
        }
    }

    /// A probe has no verdict.
    fn put_off(&mut self, now: Instant, jitter: f64) {
        if let Self::HalfOpen { pause } = *self {
            *self = Self::open(pause, now, jitter);
        }
    }

    /// The next request probes.
    fn hurry(&mut self, now: Instant) {
        if let Self::Open { until, .. } = self {
            *until = now.min(*until);
        }
    }

    fn open(pause: Duration, now: Instant, jitter: f64) -> Self {
        let until = now + pause.mul_f64(1.0 - jitter / 2.0);
        Self::Open { pause, until }
    }
}

impl Breaker {
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            disturbed: AtomicBool::new(false),
            state: Mutex::new(State::WELL),
            health: Health::new(what),
        }
    }

    /// `None`: the store is not to be asked.
    pub(super) fn admit(&self, now: Instant) -> Option<Attempt<'_>> {
        let is_probe = if self.disturbed.load(Ordering::Acquire) {
            self.lock().admit(now)?
        } else {
            false
        };
        Some(Attempt {
            breaker: self,
            asked_at: now,
            is_probe,
            decided: false,
        })
    }

    /// Whatever the reason.
    pub(super) fn is_ill(&self, error: &Error) {
        self.health.is_ill(error);
    }

    /// The database was found to be well by other means: the next request probes.
    pub(super) fn hurry(&self) {
        if self.disturbed.load(Ordering::Acquire) {
            self.lock().hurry(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    pub(super) fn succeeded(mut self) {
        self.decided = true;
        let breaker = self.breaker;
        if breaker.disturbed.load(Ordering::Acquire) {
            let mut state = breaker.lock();
            *state = State::WELL;
            breaker.disturbed.store(false, Ordering::Release);
        }
        breaker.health.is_well();
    }

    pub(super) fn failed(mut self, error: &Error) {
        if !is_about_the_store(error) {
            return;
        }
        self.decided = true;
        let breaker = self.breaker;
        let mut state = breaker.lock();
        if state.fail(self.is_probe, self.asked_at, Instant::now(), jitter()) {
            tracing::debug!("the store is not asked for a while");
        }
        breaker.disturbed.store(true, Ordering::Release);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_probe && !self.decided {
            self.breaker.lock().put_off(Instant::now(), jitter());
        }
    }
}

/// A damaged row says nothing about the others.
fn is_about_the_store(error: &Error) -> bool {
    let damaged = |state: &str| state.starts_with("XX");
    error.kind() != ErrorKind::Database
        || !error.sql_state().is_some_and(|state| damaged(state.code()))
}

/// A number from 0 to 1 that other processes do not have.
fn jitter() -> f64 {
    // a new one has keys that no other has
    let random = RandomState::new().hash_one(0);
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Duration = Duration::from_secs(3600);

    /// A breaker that has just opened, and when its pause ends.
    fn opened(now: Instant) -> State {
        let mut state = State::WELL;
        for n in 1..=FAILURES {
            assert_eq!(state.admit(now), Some(false));
            assert_eq!(state.fail(false, now, now, 0.0), n == FAILURES);
        }
        state
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_request_after_the_pause_probes() {
        let now = Instant::now();
        let mut state = opened(now);
        assert_eq!(state.admit(now + FIRST_PAUSE / 2), None);
        let later = now + FIRST_PAUSE;
        assert_eq!(state.admit(later), Some(true));
        assert_eq!(state.admit(later), None);
        assert_eq!(state.admit(later + FAR), None, "as long as the probe asks");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut now = Instant::now();
        let mut state = opened(now);
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            assert_eq!(state.admit(now + pause - Duration::from_millis(1)), None);
            now += pause;
            assert_eq!(state.admit(now), Some(true));
            state.fail(true, now, now, 0.0);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        assert_eq!(pause, LONGEST_PAUSE);
    }

    #[test]
    fn a_pause_is_cut_by_at_most_a_half() {
        let now = Instant::now();
        let mut state = State::open(LONGEST_PAUSE, now, 1.0);
        assert_eq!(state.admit(now + LONGEST_PAUSE.mul_f64(0.49)), None);
        assert_eq!(state.admit(now + LONGEST_PAUSE.mul_f64(0.51)), Some(true));
        for _ in 0..100 {
            assert!((0.0..=1.0).contains(&jitter()));
        }
    }

    #[test]
    fn what_was_asked_before_it_opened_does_not_prolong_it() {
        let now = Instant::now();
        let mut state = opened(now);
        let before = state;
        state.fail(false, now, now + FIRST_PAUSE / 2, 0.0);
        assert_eq!(state, before);
        assert_eq!(state.admit(now + FIRST_PAUSE), Some(true));
        let probed = state;
        state.fail(false, now, now + FIRST_PAUSE, 0.0);
        assert_eq!(state, probed);
    }

    #[test]
    fn many_that_fail_together_are_one_failure() {
        let asked_at = Instant::now();
        let later = asked_at + FIRST_PAUSE;
        let mut state = State::WELL;
        for _ in 0..100 {
            assert!(!state.fail(false, asked_at, later, 0.0));
        }
        for _ in 2..FAILURES {
            assert!(!state.fail(false, later, later, 0.0));
        }
        assert!(state.fail(false, later, later, 0.0));
    }

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "test")
    }

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            let attempt = breaker.admit(Instant::now()).expect("closed");
            attempt.failed(&error(ErrorKind::Timeout));
        }
    }

    #[test]
    fn a_success_in_between_forgets_the_failures() {
        let breaker = Breaker::new("test");
        for _ in 0..3 {
            fail(&breaker, FAILURES - 1);
            breaker.admit(Instant::now()).expect("closed").succeeded();
        }
        fail(&breaker, FAILURES);
        assert!(breaker.admit(Instant::now()).is_none());
    }

    #[test]
    fn a_probe_that_goes_away_lets_another_one_follow() {
        let breaker = Breaker::new("test");
        fail(&breaker, FAILURES);
        for _ in 0..3 {
            breaker.hurry();
            let probe = breaker.admit(Instant::now()).expect("half open");
            assert!(breaker.admit(Instant::now()).is_none());
            drop(probe);
            assert!(breaker.admit(Instant::now()).is_none(), "a pause first");
        }
        breaker.hurry();
        breaker
            .admit(Instant::now())
            .expect("half open")
            .succeeded();
        assert!(breaker.admit(Instant::now()).is_some() && breaker.admit(Instant::now()).is_some());
    }
}
