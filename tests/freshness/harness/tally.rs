use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// So many messages of a kind are kept.
const KEPT: usize = 20;

/// What is counted during a run.
#[derive(Debug, Default)]
pub(super) struct Tally {
    reads: AtomicU64,
    hits: AtomicU64,
    writes: AtomicU64,
    gave_up: AtomicU64,
    refused: AtomicU64,
    disturbances: AtomicU64,
    stale: Messages,
    failed: Messages,
    microseconds: Mutex<Vec<u32>>,
}

#[derive(Debug, Default)]
struct Messages {
    count: AtomicU64,
    first: Mutex<Vec<String>>,
}

impl Messages {
    fn add(&self, message: String) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.len() < KEPT {
            first.push(message);
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn first(&self) -> Vec<String> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.clone()
    }
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    /// Returns how many came before.
    pub(super) fn checked(&self, is_hit: bool) -> u64 {
        self.hits.fetch_add(is_hit.into(), Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(super) fn took(&self, time: Duration) {
        let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let mut times = self
            .microseconds
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        times.push(time);
    }

    pub(super) fn wrote(&self) {
        one_more(&self.writes);
    }

    /// A transaction that was not to be, for example because of a deadlock.
    pub(super) fn gave_up(&self) {
        one_more(&self.gave_up);
    }

    /// While the server was down.
    pub(super) fn refused(&self) {
        one_more(&self.refused);
    }

    pub(super) fn disturbed(&self) {
        one_more(&self.disturbances);
    }

    pub(super) fn stale(&self, message: String) {
        self.stale.add(message);
    }

    pub(super) fn failed(&self, message: String) {
        self.failed.add(message);
    }

    pub(super) fn report(&self) -> Report {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut times = self
            .microseconds
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        times.sort_unstable();
        let quantile = |percent: usize| {
            let at = times.len() * percent / 100;
            Duration::from_micros(times.get(at).copied().unwrap_or(0).into())
        };
        let mut messages = self.stale.first();
        messages.extend(self.failed.first());
        Report {
            reads: load(&self.reads),
            hits: load(&self.hits),
            writes: load(&self.writes),
            gave_up: load(&self.gave_up),
            refused: load(&self.refused),
            disturbances: load(&self.disturbances),
            stale: self.stale.count(),
            failed: self.failed.count(),
            p50: quantile(50),
            p99: quantile(99),
            messages,
        }
    }
}

/// How a run went.
#[derive(Debug)]
pub(crate) struct Report {
    /// Answers that were checked.
    pub(crate) reads: u64,
    /// Those out of a cache.
    pub(crate) hits: u64,
    /// Transactions.
    pub(crate) writes: u64,
    /// Transactions that failed, mostly because of deadlocks.
    pub(crate) gave_up: u64,
    /// Requests and transactions that failed while the server was down.
    pub(crate) refused: u64,
    pub(crate) disturbances: u64,
    /// Wrong answers.
    pub(crate) stale: u64,
    /// Requests that failed for no good reason.
    pub(crate) failed: u64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// The first of what went wrong.
    pub(crate) messages: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            reads,
            hits,
            writes,
            gave_up,
            refused,
            disturbances,
            stale,
            failed,
            p50,
            p99,
            messages,
        } = self;
        write!(
            f,
            "{reads} reads ({hits} hits), p50 {:.2} ms, p99 {:.2} ms; {writes} transactions ({gave_up} given up), \
             {disturbances} disturbances, {refused} refused while the server was down; {failed} failed, {stale} stale",
            p50.as_secs_f64() * 1e3,
            p99.as_secs_f64() * 1e3
        )?;
        for message in messages {
            write!(f, "\n  {message}")?;
        }
        Ok(())
    }
}
