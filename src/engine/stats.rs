//! What the engine has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the engine was built, of this instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests answered from the cache.
    pub hits: u64,
    /// Answers given from memory while the store could not be asked
    /// ([`stale_if_store_down`](crate::PgCacheLayer::stale_if_store_down)).
    pub unconfirmed: u64,
    /// Requests that the cache could have answered, had it had an entry.
    pub misses: u64,
    /// Requests that were neither looked up nor stored.
    pub bypasses: u64,
    /// Requests that are waiting, now, for an answer that another request is having computed.
    pub waiting: u64,
    /// Answers written to the store.
    pub stored: u64,
    /// Answers that should have been stored and were not: queue full, database unreachable or as full as it
    /// may be, fill overtaken by a crash or by pruning, or made from what a replica lacked.
    pub dropped: u64,
    /// Entries that this instance removed from the store because there was more than there may be.
    pub evicted: u64,
    /// Invalidations written, one per transaction.
    pub invalidations: u64,
    /// Accesses to the store that failed or were too slow.
    pub errors: u64,
    /// Layers, by the place in the source where they were made, that no request has met.
    pub unused_layers: Vec<String>,
    /// Rows of tables of routes that no request has matched.
    pub unmatched_routes: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) unconfirmed: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) bypasses: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) stored: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) invalidations: AtomicU64,
    pub(crate) errors: AtomicU64,
}

impl Counters {
    /// Until it is dropped, somebody is waiting.
    pub(super) fn begin_to_wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    pub(crate) fn count(&self, counter: impl FnOnce(&Self) -> &AtomicU64) {
        self.add(1, counter);
    }

    pub(crate) fn add(&self, n: u64, counter: impl FnOnce(&Self) -> &AtomicU64) {
        counter(self).fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Stats {
        let Self {
            hits,
            unconfirmed,
            misses,
            bypasses,
            waiting,
            stored,
            dropped,
            evicted,
            invalidations,
            errors,
        } = self;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            hits: read(hits),
            unconfirmed: read(unconfirmed),
            misses: read(misses),
            bypasses: read(bypasses),
            waiting: read(waiting),
            stored: read(stored),
            dropped: read(dropped),
            evicted: read(evicted),
            invalidations: read(invalidations),
            errors: read(errors),
            unused_layers: Vec::new(),
            unmatched_routes: Vec::new(),
        }
    }
}

/// A request that waits for somebody else's fill.
pub(super) struct Waiting<'a>(&'a Counters);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
