//! How much is stored, and whether more may be.
//!
//! 1. What this instance has stored is added to a row that all instances share, once in a while and as soon as it is
//!    about one percent of the bound. The answer says how much there is by that.
//! 2. Above the bound, whoever notices calls the janitor. Two percent above it, or when the table is too large on the
//!    disk, nothing is stored until it has made room: answers wait in the queue for a while and are dropped then.
//!    That costs hits, nothing else. One more percent may be unreported by then, and a last transaction bring another one
//!    and an answer: five percent are not reached.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Engine;
use crate::error::Error;
use crate::store::{Stock, Volume};

/// How long answers wait for room.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long it is until somebody looks again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct Room {
    unreported: Mutex<Volume>,
    /// There was none when somebody looked last.
    holds: AtomicBool,
    /// Answers have waited in vain: those that come do not.
    is_hopeless: AtomicBool,
}

impl Room {
    pub(super) fn add(&self, stored: Volume) {
        let Volume {
            entries,
            bytes,
            replaced_bytes,
        } = stored;
        let mut unreported = self
            .unreported
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unreported.entries += entries;
        unreported.bytes += bytes;
        unreported.replaced_bytes += replaced_bytes;
    }

    fn take(&self) -> Volume {
        let mut unreported = self
            .unreported
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut unreported)
    }

    fn unreported(&self) -> Volume {
        *self
            .unreported
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Says what was stored, and learns what there is.
    pub(super) async fn report(self: &Arc<Self>) -> Result<Stock, Error> {
        let volume = self.room.take();
        let reported =
            self.store
                .report(volume, self.settings.bounds, self.settings.store_deadline);
        let stock = match reported.await {
            Ok(stock) => stock,
            Err(error) => {
                self.room.add(volume);
                return Err(error);
            }
        };
        let bounds = self.settings.bounds;
        self.uses
            .want(stock.bytes > bounds.bytes / 2 || stock.entries > bounds.entries / 2);
        self.room.holds.store(stock.holds, Ordering::Relaxed);
        if !stock.holds {
            self.room.is_hopeless.store(false, Ordering::Relaxed);
        }
        Ok(stock)
    }

    /// Whether there is something to report.
    pub(super) fn has_stored(&self) -> bool {
        let Volume {
            entries,
            bytes,
            replaced_bytes,
        } = self.room.unreported();
        (entries, bytes, replaced_bytes) != (0, 0, 0) || self.room.holds.load(Ordering::Relaxed)
    }

    /// Whether more may be stored. Waits for the janitor, for a while.
    pub(super) async fn has_room(self: &Arc<Self>) -> bool {
        let Volume {
            entries,
            bytes,
            replaced_bytes,
        } = self.room.unreported();
        let bounds = self.settings.bounds;
        let is_little = entries < (bounds.entries / 100).max(1)
            && bytes.max(0) + replaced_bytes < bounds.bytes / 100;
        if is_little && !self.room.holds.load(Ordering::Relaxed) {
            return true;
        }
        // who cleans up in another way does so when it is time
        let patience = if self.settings.cleanup_interval.is_zero()
            || self.room.is_hopeless.load(Ordering::Relaxed)
        {
            Duration::ZERO
        } else {
            PATIENCE
        };
        let deadline = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.report().await {
                Ok(stock) => {
                    if stock.evict || stock.vacuum {
                        self.housekeeper.call();
                    }
                    if !stock.holds {
                        return true;
                    }
                }
                Err(error) => {
                    self.note_write_failure(&error);
                    return false;
                }
            }
            if Instant::now() + pause > deadline || self.is_closed() {
                self.room.is_hopeless.store(true, Ordering::Relaxed);
                return false;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
