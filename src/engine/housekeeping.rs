//! The background task of an instance: folds the log while there is traffic, writes down what was used, and is the
//! janitor now and then.
//!
//! 1. All instances have the same tasks. Which of them walks next through all that is stored, to remove what has expired or is
//!    invalid, is decided by whoever claims it first when it is due; its steps are decided in the database, so that two
//!    at once do no harm.
//! 2. When there is more than there may be, the instance that notices makes room at once.
//! 3. Each step has a deadline and a transaction of its own. What cannot be done now is done later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::Engine;
use crate::error::Error;
use crate::store::Step;

/// How often the tail of the log is looked at while there is traffic.
const FOLD_EVERY: Duration = Duration::from_secs(1);

/// How long it takes at most until an instance that stores nothing learns how much there is.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a run of the janitor lasts at most. The next one goes on from there.
const LONGEST_RUN: Duration = Duration::from_secs(60);

/// How many rounds it takes to get below the bounds: the first one counts, if nobody has counted lately.
const MOST_ROUNDS: u32 = 4;

/// While somebody else is at a step.
const PAUSE: Duration = Duration::from_millis(10);

/// What [`PgCache::cleanup`](crate::PgCache::cleanup) removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cleaned {
    /// Entries that had expired, that have been invalid for a while, or that could never be valid again.
    pub entries: u64,
    /// Entries of least use, because there was more than `max_bytes` or `max_entries`.
    pub evicted: u64,
    /// Rows of the invalidation log.
    pub log_rows: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Housekeeper {
    task: Mutex<Option<AbortHandle>>,
    running: AtomicBool,
    traffic: AtomicBool,
    called: Arc<Notify>,
    vacuuming: Arc<AtomicBool>,
}

impl Housekeeper {
    /// Starts the task unless it runs, or is not wanted.
    pub(crate) fn start(&self, engine: &Arc<Engine>) {
        if self.running.load(Ordering::Relaxed) || engine.settings.cleanup_interval.is_zero() {
            return;
        }
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // it may have ended with its runtime
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            let running = Running(Arc::downgrade(engine));
            self.running.store(true, Ordering::Relaxed);
            *task = Some(tokio::spawn(keep_house(running)).abort_handle());
        }
    }

    pub(crate) fn note_traffic(&self) {
        if !self.traffic.load(Ordering::Relaxed) {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    /// Makes room now.
    pub(super) fn call(&self) {
        self.called.notify_one();
    }

    pub(crate) fn stop(&self) {
        if let Some(task) = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The task does not keep the engine alive.
struct Running(Weak<Engine>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(engine) = self.0.upgrade() {
            engine.housekeeper.running.store(false, Ordering::Relaxed);
        }
    }
}

async fn keep_house(running: Running) {
    let Some((every, called)) = running.0.upgrade().map(|engine| {
        let called = engine.housekeeper.called.clone();
        (engine.settings.cleanup_interval, called)
    }) else {
        return;
    };
    let mut ticks = interval(FOLD_EVERY.min(every));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cleaned_up_at = Instant::now();
    let mut looked_at = None;
    loop {
        let is_called = tokio::select! {
            _ = ticks.tick() => false,
            () = called.notified() => true,
        };
        let Some(engine) = running.0.upgrade() else {
            return;
        };
        let within = engine.settings.store_deadline;
        let has_traffic = engine.housekeeper.traffic.swap(false, Ordering::Relaxed);
        if has_traffic {
            report(engine.store.fold_if_due(within).await.map(|()| None));
        }
        let looks = has_traffic && looked_at.is_none_or(|at: Instant| at.elapsed() > LOOK_EVERY);
        if is_called || looks || engine.has_stored() {
            looked_at = Some(Instant::now());
            report(make_room(&engine).await);
        } else if has_traffic {
            report(write_down_uses(&engine).await.map(|()| None));
        }
        if cleaned_up_at.elapsed() >= every {
            cleaned_up_at = Instant::now();
            report(clean_up_if_claimed(&engine, every).await);
        }
    }
}

async fn clean_up_if_claimed(
    engine: &Arc<Engine>,
    every: Duration,
) -> Result<Option<Cleaned>, Error> {
    // a little less than the interval, or the one who did it last would always come too early
    let claimed = engine
        .store
        .claim("sweep", every.mul_f64(0.9), engine.settings.store_deadline)
        .await?;
    if !claimed {
        return Ok(None);
    }
    let cleaned = remove(engine).await?;
    if engine.report().await?.vacuum {
        vacuum_in_the_background(engine);
    }
    Ok(Some(cleaned))
}

/// All that there is to do, now.
pub(super) async fn clean_up(engine: &Arc<Engine>) -> Result<Cleaned, Error> {
    engine.report().await?;
    let cleaned = remove(engine).await?;
    engine.report().await?;
    vacuum(engine, true).await?;
    engine.report().await?;
    Ok(cleaned)
}

async fn remove(engine: &Arc<Engine>) -> Result<Cleaned, Error> {
    let within = engine.settings.store_deadline;
    let log_rows = engine
        .store
        .prune(engine.settings.max_log_rows, within)
        .await?;
    write_down_uses(engine).await?;
    let walked = walk(engine, true).await?;
    Ok(Cleaned { log_rows, ..walked })
}

async fn make_room(engine: &Arc<Engine>) -> Result<Option<Cleaned>, Error> {
    let stock = engine.report().await?;
    write_down_uses(engine).await?;
    let cleaned = if stock.evict {
        Some(walk(engine, false).await?)
    } else {
        None
    };
    if stock.vacuum || (stock.evict && engine.report().await?.vacuum) {
        vacuum_in_the_background(engine);
    }
    Ok(cleaned)
}

async fn write_down_uses(engine: &Arc<Engine>) -> Result<(), Error> {
    let uses = engine.uses.take();
    if uses.is_empty() {
        return Ok(());
    }
    engine
        .store
        .add_uses(uses, engine.settings.store_deadline)
        .await
}

/// Goes through all that is stored, or for as long as there is too much.
async fn walk(engine: &Arc<Engine>, through_all: bool) -> Result<Cleaned, Error> {
    let within = engine.settings.store_deadline;
    let begun = Instant::now();
    let mut rounds = 0;
    let mut cleaned = Cleaned::default();
    while begun.elapsed() < LONGEST_RUN {
        let Some(step) = engine
            .store
            .clean_step(engine.settings.bounds, within)
            .await?
        else {
            sleep(PAUSE).await;
            continue;
        };
        let Step {
            began,
            walked,
            too_full,
            removed,
            evicted,
        } = step;
        cleaned.entries += removed;
        cleaned.evicted += evicted;
        engine.stats.add(evicted, |s| &s.evicted);
        rounds += u32::from(began);
        let has_seen_all = walked && rounds > 0;
        let has_done_enough = rounds >= MOST_ROUNDS && walked;
        if has_done_enough || (!too_full && (has_seen_all || !through_all)) {
            break;
        }
    }
    Ok(cleaned)
}

fn vacuum_in_the_background(engine: &Arc<Engine>) {
    let engine = engine.clone();
    tokio::spawn(async move { report(vacuum(&engine, false).await.map(|()| None)) });
}

/// Where the role may, and nobody else does.
async fn vacuum(engine: &Arc<Engine>, at_once: bool) -> Result<(), Error> {
    struct Vacuuming(Arc<AtomicBool>);

    impl Drop for Vacuuming {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }

    if engine.housekeeper.vacuuming.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let _vacuuming = Vacuuming(engine.housekeeper.vacuuming.clone());
    let (bounds, within) = (engine.settings.bounds, engine.settings.store_deadline);
    let claimed = engine.store.claim_vacuum(bounds, at_once, within).await?;
    if let Some(and_shrink) = claimed {
        engine.store.vacuum(and_shrink, within).await?;
        tracing::debug!("vacuumed what holds the entries");
    }
    Ok(())
}

/// Housekeeping that fails costs speed; those who read and write notice the fault by themselves.
fn report(outcome: Result<Option<Cleaned>, Error>) {
    match outcome {
        Ok(Some(cleaned)) => tracing::debug!(
            cleaned.entries,
            cleaned.evicted,
            cleaned.log_rows,
            "cleaned up"
        ),
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "housekeeping failed"),
    }
}
