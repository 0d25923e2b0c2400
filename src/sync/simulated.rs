//! Locks, atomics and tasks of shuttle, and a clock that goes on when it is told to.
//!
//! An execution of shuttle runs on one thread, so the clock is one of the thread. It stands still while everybody works:
//! a deadline passes where [`pass`] lets it, and nobody is saved by one in an execution without that. Who sleeps wakes at
//! the next step that the scheduler gives it, and then it is as late as it wanted to be.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::ops::Add;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

pub(crate) use shuttle::future::{JoinHandle, spawn, yield_now};
pub(crate) use shuttle::sync::atomic::AtomicU64;
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock};

/// Zero is no moment for those who count from it.
const START: Duration = Duration::from_secs(1);

struct Clock {
    now: Duration,
    /// Who looks at the clock again, and when.
    timers: Vec<(Duration, Waker)>,
}

thread_local! {
    static CLOCK: RefCell<Clock> = const { RefCell::new(Clock { now: START, timers: Vec::new() }) };
}

/// For the next execution.
pub(crate) fn reset_clock() {
    CLOCK.with_borrow_mut(|clock| {
        clock.now = START;
        clock.timers.clear();
    });
}

pub(crate) fn now() -> Duration {
    CLOCK.with_borrow(|clock| clock.now)
}

pub(crate) fn pass(time: Duration) {
    pass_until(now() + time);
}

fn pass_until(moment: Duration) {
    let due: Vec<(Duration, Waker)> = CLOCK.with_borrow_mut(|clock| {
        clock.now = clock.now.max(moment);
        let (due, later) = std::mem::take(&mut clock.timers)
            .into_iter()
            .partition(|(at, _)| *at <= clock.now);
        clock.timers = later;
        due
    });
    due.into_iter().for_each(|(_, waker)| waker.wake());
}

/// As Tokio's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(now())
    }

    pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl std::ops::AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl std::ops::Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - duration)
    }
}

#[derive(Debug)]
pub(crate) struct Elapsed;

pub(crate) async fn timeout<F: Future>(within: Duration, work: F) -> Result<F::Output, Elapsed> {
    timeout_at(Instant::now() + within, work).await
}

pub(crate) async fn timeout_at<F: Future>(at: Instant, work: F) -> Result<F::Output, Elapsed> {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Ok(done));
        }
        if Instant::now() >= at {
            return Poll::Ready(Err(Elapsed));
        }
        let timer = (at.0, context.waker().clone());
        CLOCK.with_borrow_mut(|clock| clock.timers.push(timer));
        Poll::Pending
    })
    .await
}

pub(crate) async fn sleep(duration: Duration) {
    let until = now() + duration;
    yield_now().await;
    pass_until(until);
}

/// There is a runtime wherever there is an execution.
pub(crate) struct Handle;

pub(crate) struct NoRuntime;

impl Handle {
    pub(crate) fn try_current() -> Result<Self, NoRuntime> {
        Ok(Self)
    }

    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        spawn(future)
    }
}

/// There is one.
pub(crate) type Runtime = ();

pub(crate) fn runtime() -> Runtime {}
