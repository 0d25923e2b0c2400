//! What is answered while the store cannot be asked, on routes that prefer an old answer to the inner service.
//!
//! 1. An answer in memory that has not changed as far as this instance knows, and that was known to be valid not longer
//!    ago than the route allows: as of the last read of the feed, or of the lookup that found it. Changes of this
//!    instance's own count at once, written down or not.
//! 2. What the database itself has said since counts, too: that it has no epoch, or no schema. What was known before is
//!    worth nothing then. A new epoch, a new incarnation and a gap in the feed are seen by the first read that
//!    succeeds, and nothing of what is held survives them.
//! 3. The time is bounded by the setting, on this instance's own clock, which goes on while the machine sleeps.
//! 4. While such answers go out, the store is looked for in the background, more often than the breaker would have it and
//!    at nobody's expense; from its first answer on every request is judged by a read of its own again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderName;

use super::Engine;
use super::clock::Moment;
use super::entry::Entry;
use crate::key::Key;
use crate::sync::{AtomicU64, spawn};

/// How long it is from one look for the store to the next, at least.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The search for a store that went away: one look at a time.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    looking: AtomicBool,
    /// In nanoseconds of [`Moment`].
    looked_at: AtomicU64,
}

/// If it is dropped with its runtime, another one may begin.
struct Looking(Arc<Engine>);

impl Drop for Looking {
    fn drop(&mut self) {
        let lookout = &self.0.lookout;
        let now = Moment::now().as_nanos();
        lookout.looked_at.store(now, Ordering::Release);
        lookout.looking.store(false, Ordering::Release);
    }
}

impl Engine {
    /// An entry in memory that `is_of_use`, and that was known to be valid not longer than `at_most` ago. For when the store
    /// could not be asked.
    pub(crate) fn unconfirmed(
        self: &Arc<Self>,
        key: Key,
        variant: &(dyn Fn(&[HeaderName]) -> Key + Sync),
        at_most: Duration,
        is_of_use: impl Fn(&Entry) -> bool,
    ) -> Option<Entry> {
        // not when the request arrived: it may have waited for the store
        let now = Moment::now();
        let (remembered, entry) = self.remembered(key, variant, now, is_of_use)?;
        let is_young = self
            .feed
            .unknown_for(remembered.asked_at(), now)
            .is_some_and(|unknown_for| unknown_for < at_most);
        // in this order: what is overdue no longer has been noted in the feed
        if !is_young || self.changes.concern(&entry.probes) || !remembered.holds(&self.feed) {
            return None;
        }
        self.changes.keep_trying(self);
        self.look_for_the_store(now);
        Some(entry)
    }

    /// An answer went out that nobody has confirmed.
    pub(crate) fn count_unconfirmed(&self) {
        self.stats.count(|s| &s.unconfirmed);
    }

    /// By other means: whoever comes next asks for himself, where answers have gone out that nobody could confirm.
    pub(super) fn store_has_answered(&self) {
        if self.lookout.looked_at.load(Ordering::Acquire) > 0 {
            self.reads.hurry();
        }
    }

    fn look_for_the_store(self: &Arc<Self>, now: Moment) {
        let looked_at = Moment::from_nanos(self.lookout.looked_at.load(Ordering::Acquire));
        if now.since(looked_at) < LOOK_EVERY || self.lookout.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let looking = Looking(self.clone());
        spawn(async move {
            looking.0.reads.hurry();
            // if it is, the next lookup finds out
            if !looking.0.feed.is_held_up() {
                looking.0.catch_up().await;
            }
        });
    }
}
