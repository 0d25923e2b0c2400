//! Answers in memory: those that this instance has looked up or stored lately.
//!
//! 1. An answer enters with the number of the read of the [feed](super::feed) that was applied before its lookup was
//!    sent. It is served if it holds as of a read that began after the request arrived, or, where the route
//!    says so, not longer ago than `max_staleness`.
//!    (While the store cannot be asked, a route may have it otherwise: see [`unconfirmed`](super::unconfirmed).)
//! 2. Only what is fresh is served from here; whatever else there is to do with an answer begins in the store.
//! 3. Its age counts from when the lookup was sent, on this instance's own clock.
//! 4. Memory is bounded by bytes. Answers, their fields and their probes count, and a flat rate for the rest;
//!    `cargo bench --bench memory` tells whether that is the truth.
//! 5. What is kept has no room to grow, and shares nothing with what is larger but the names of its fields with other
//!    answers (`http/layout.rs`, which has a bound of its own).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::clock::Moment;
use super::entry::{Answer, Entry};
use super::feed::Feed;
use crate::http::reuse::Condition;
use crate::key::Key;
use crate::sync::AtomicU64;

/// What an answer takes besides its body, its fields and its probes.
const FLAT_RATE: usize =
    size_of::<Remembered>() + size_of::<Answer>() + 2 * ARC + 2 * SHARED + SLOT;

/// The counters of an `Arc`.
const ARC: usize = 16;

/// What `Bytes` allocate to be shared.
const SHARED: usize = 24;

/// An answer's place in the table of all, which has some to spare.
const SLOT: usize = 106;

/// For the estimate of how many answers there will be.
const TYPICAL: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Memory(Option<Cache<Key, Arc<Remembered>, Weight>>);

/// An answer, and what is known of it.
#[derive(Debug)]
pub(crate) struct Remembered {
    answer: Arc<Answer>,
    /// As of `asked_at`; it was valid then.
    condition: Condition,
    asked_at: Moment,
    /// The last read of the feed that it is known to hold as of.
    checked: AtomicU64,
}

/// Where what a lookup finds, or what is filled after it, stands in the feed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) applied: u64,
    pub(crate) asked_at: Moment,
}

impl Standing {
    /// Before a lookup is sent.
    pub(crate) fn now(feed: &Feed) -> Self {
        Self {
            applied: feed.applied(),
            asked_at: Moment::now(),
        }
    }
}

impl Memory {
    /// Zero: there is none.
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = bytes as u64;
        let items = usize::try_from(bytes / TYPICAL)
            .unwrap_or(usize::MAX)
            .max(16);
        Self((bytes > 0).then(|| Cache::with_weighter(items, bytes, Weight)))
    }

    pub(crate) const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn get(&self, key: Key) -> Option<Arc<Remembered>> {
        self.0.as_ref()?.get(&key)
    }

    /// `condition`: as of `standing`.
    pub(crate) fn insert(&self, answer: &Answer, condition: Condition, standing: Standing) {
        if let Some(cache) = &self.0 {
            let answer = Answer {
                head: answer.head.compact(),
                ..answer.clone()
            };
            let remembered = Remembered {
                condition,
                asked_at: standing.asked_at,
                checked: AtomicU64::new(standing.applied),
                answer: Arc::new(answer),
            };
            cache.insert(remembered.answer.key, Arc::new(remembered));
        }
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn clear(&self) {
        if let Some(cache) = &self.0 {
            cache.clear();
        }
    }

    pub(crate) fn remove(&self, key: Key) {
        if let Some(cache) = &self.0 {
            cache.remove(&key);
        }
    }

    /// Forgets it, unless there is another one by now.
    pub(crate) fn forget(&self, remembered: &Arc<Remembered>) {
        if let Some(cache) = &self.0 {
            cache.remove_if(&remembered.answer.key, |found| {
                Arc::ptr_eq(found, remembered)
            });
        }
    }
}

impl Remembered {
    /// As it is `now`, if nothing that it depends on has changed.
    pub(crate) fn entry(&self, now: Moment) -> Entry {
        Entry {
            answer: self.answer.clone(),
            condition: self.condition.later(now.since(self.asked_at)),
            checksum: None,
            snapshot: None,
            packed: None,
        }
    }

    pub(super) const fn asked_at(&self) -> Moment {
        self.asked_at
    }

    /// Whether it holds as of the last read of the feed.
    pub(crate) fn holds(&self, feed: &Feed) -> bool {
        let checked = self.checked.load(Ordering::Acquire);
        match feed.unchanged_since(checked, &self.answer.probes) {
            Some(now) if now == checked => true,
            Some(now) => {
                self.checked.fetch_max(now, Ordering::AcqRel);
                true
            }
            None => false,
        }
    }
}

/// The weight of an answer.
#[derive(Debug, Clone)]
struct Weight;

impl Weighter<Key, Arc<Remembered>> for Weight {
    fn weight(&self, _: &Key, remembered: &Arc<Remembered>) -> u64 {
        let Answer {
            key: _,
            head,
            body,
            probes,
            cost: _,
        } = &*remembered.answer;
        (body.len() + head.weight() + 8 * probes.len() + FLAT_RATE) as u64
    }
}
