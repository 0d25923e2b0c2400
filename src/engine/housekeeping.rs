//! The background task of an instance: folds the log while there is traffic, and cleans up now and then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Engine;
use crate::error::Error;

/// How often the tail of the log is looked at while there is traffic.
const FOLD_EVERY: Duration = Duration::from_secs(1);

/// What [`PgCache::cleanup`](crate::PgCache::cleanup) removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cleaned {
    /// Entries that had expired or could never be valid again.
    pub entries: u64,
    /// Rows of the invalidation log.
    pub log_rows: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Housekeeper {
    task: Mutex<Option<AbortHandle>>,
    running: AtomicBool,
    traffic: AtomicBool,
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
    let Some(every) = running
        .0
        .upgrade()
        .map(|engine| engine.settings.cleanup_interval)
    else {
        return;
    };
    let mut ticks = interval(FOLD_EVERY.min(every));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cleaned_up_at = Instant::now();
    loop {
        ticks.tick().await;
        let Some(engine) = running.0.upgrade() else {
            return;
        };
        let within = engine.settings.store_deadline;
        if engine.housekeeper.traffic.swap(false, Ordering::Relaxed) {
            report(engine.store.fold_if_due(within).await.map(|()| None));
        }
        if cleaned_up_at.elapsed() >= every {
            cleaned_up_at = Instant::now();
            report(sweep_if_claimed(&engine, every).await);
        }
    }
}

async fn sweep_if_claimed(engine: &Arc<Engine>, every: Duration) -> Result<Option<Cleaned>, Error> {
    // a little less than the interval, or the one who did it last would always come too early
    let claimed = engine
        .store
        .claim("sweep", every.mul_f64(0.9), engine.settings.store_deadline)
        .await?;
    if claimed {
        sweep(engine).await.map(Some)
    } else {
        Ok(None)
    }
}

pub(super) async fn sweep(engine: &Arc<Engine>) -> Result<Cleaned, Error> {
    let swept = engine
        .store
        .sweep(engine.settings.max_log_rows, engine.settings.store_deadline)
        .await?;
    Ok(Cleaned {
        entries: swept.entries,
        log_rows: swept.log_rows,
    })
}

/// Housekeeping that fails costs speed; those who read and write notice the fault by themselves.
fn report(outcome: Result<Option<Cleaned>, Error>) {
    match outcome {
        Ok(Some(cleaned)) => tracing::debug!(cleaned.entries, cleaned.log_rows, "cleaned up"),
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "housekeeping failed"),
    }
}
