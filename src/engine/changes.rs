//! Invalidations that a request has caused.
//!
//! 1. Once the inner service was called, its effects may be there, whether it answers, fails, panics or is
//!    dropped. So a [`ChangeGuard`] is armed before the call; only an answer that says that nothing changed
//!    (4xx) disarms it.
//! 2. The answer waits for the invalidation's commit, at most the deadline. What could not be written by then
//!    is *overdue*: a task goes on trying, and until it succeeds this instance serves nothing that it concerns.
//! 3. While something is overdue, the database is known to be out of reach, and further changes do not wait.
//! 4. The set of overdue scopes is bounded: beyond that everything is overdue.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::Engine;
use super::gauge::Token;
use crate::domain::Scope;
use crate::error::Error;
use crate::runtime::{CacheScope, Remarks};

const MAX_OVERDUE: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Changes {
    any_overdue: AtomicBool,
    overdue: Mutex<Overdue>,
}

#[derive(Debug, Default)]
struct Overdue {
    scopes: HashSet<Scope>,
    /// The keys of `scopes`, for lookups.
    keys: HashSet<i64>,
    /// Too many to name.
    everything: bool,
    working: bool,
}

impl Changes {
    /// Whether an entry with these probes is concerned by something overdue.
    pub(crate) fn concern(&self, probes: &[i64]) -> bool {
        if !self.any_overdue.load(Ordering::Acquire) {
            return false;
        }
        let overdue = self.lock();
        overdue.everything || probes.iter().any(|p| overdue.keys.contains(p))
    }

    fn add_overdue(&self, engine: &Arc<Engine>, scopes: Vec<Scope>) {
        let mut overdue = self.lock();
        overdue
            .keys
            .extend(scopes.iter().flat_map(Scope::invalidation_keys));
        overdue.scopes.extend(scopes);
        if overdue.scopes.len() > MAX_OVERDUE {
            overdue.everything = true;
            overdue.scopes.clear();
            overdue.keys.clear();
        }
        self.any_overdue.store(true, Ordering::Release);
        if !std::mem::replace(&mut overdue.working, true) {
            tokio::spawn(catch_up(
                Working(Some(engine.clone())),
                engine.pending.enter(),
            ));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Overdue> {
        self.overdue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the task. If it is dropped with its runtime, the next change starts another one; what is overdue
/// stays so.
struct Working(Option<Arc<Engine>>);

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(engine) = &self.0 {
            engine.changes.lock().working = false;
        }
    }
}

async fn catch_up(mut working: Working, _pending: Token) {
    let mut pause = FIRST_PAUSE;
    while let Some(engine) = &working.0 {
        match write_overdue(engine).await {
            // a regular end: what becomes overdue from here on has a task of its own
            Ok(true) => working.0 = None,
            Ok(false) => pause = FIRST_PAUSE,
            Err(error) => {
                engine.writes.is_ill(&error);
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Writes what is overdue now; true if nothing is any more.
async fn write_overdue(engine: &Arc<Engine>) -> Result<bool, Error> {
    let (everything, scopes) = {
        let overdue = engine.changes.lock();
        (
            overdue.everything,
            overdue.scopes.iter().cloned().collect::<Vec<_>>(),
        )
    };
    let within = engine.settings.store_deadline;
    if everything {
        engine.store.clear(within).await?;
    }
    engine.store.invalidate(scopes.clone(), within).await?;
    engine.writes.is_well();
    engine.stats.count(|s| &s.invalidations);

    let mut overdue = engine.changes.lock();
    if everything {
        overdue.everything = false;
    }
    for scope in &scopes {
        overdue.scopes.remove(scope);
    }
    overdue.keys = overdue
        .scopes
        .iter()
        .flat_map(Scope::invalidation_keys)
        .collect();
    let done = overdue.scopes.is_empty() && !overdue.everything;
    if done {
        overdue.working = false;
        engine.changes.any_overdue.store(false, Ordering::Release);
    }
    Ok(done)
}

/// Sees to it that a change is written down, however the request ends.
#[derive(Debug)]
pub(crate) struct ChangeGuard {
    engine: Arc<Engine>,
    /// What the route says that such a request changes.
    scopes: Vec<Scope>,
    /// What the handler says.
    said: CacheScope,
    tenant: Option<String>,
    armed: bool,
}

impl ChangeGuard {
    /// `tenant`: of scopes that have none; `None` is every tenant.
    pub(crate) fn armed(
        engine: Arc<Engine>,
        scopes: Vec<Scope>,
        said: CacheScope,
        tenant: Option<String>,
    ) -> Self {
        Self {
            engine,
            scopes,
            said,
            tenant,
            armed: true,
        }
    }

    /// Somebody else sees to it.
    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }

    /// The answer says that nothing has changed, but what the handler says counts.
    pub(crate) fn only_what_is_said(&mut self) {
        self.scopes.clear();
    }

    /// Adds scopes that only the answer names, writes, and returns when that is committed or overdue.
    pub(crate) async fn commit(mut self, more: impl IntoIterator<Item = Scope>) {
        self.scopes.extend(more);
        // in a task: if the request is dropped while it waits, the work goes on
        let Some(task) = self.spawn() else { return };
        let _ = task.await;
    }

    fn spawn(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        if !std::mem::take(&mut self.armed) || !self.engine.settings.has_database {
            return None;
        }
        let scopes = std::mem::take(&mut self.scopes);
        let said = self.said.and(Remarks::default()).invalidates;
        let mut scopes: Vec<Scope> = scopes
            .into_iter()
            .chain(said)
            .map(|scope| scope.for_tenant(self.tenant.as_deref()))
            .collect();
        scopes.sort();
        scopes.dedup();
        if scopes.is_empty() {
            return None;
        }
        match Handle::try_current() {
            Ok(runtime) => Some(runtime.spawn(write(
                self.engine.clone(),
                scopes,
                self.engine.pending.enter(),
            ))),
            Err(_) => {
                tracing::error!(
                    "an invalidation is lost: the request ended outside the Tokio runtime"
                );
                None
            }
        }
    }
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        self.spawn();
    }
}

async fn write(engine: Arc<Engine>, scopes: Vec<Scope>, _pending: Token) {
    let deadline = Instant::now() + engine.settings.change_deadline;
    let mut pause = FIRST_PAUSE;
    while !engine.changes.any_overdue.load(Ordering::Acquire) {
        let left = deadline.saturating_duration_since(Instant::now());
        match attempt(&engine, &scopes, left).await {
            Ok(()) => return,
            Err(error) if Instant::now() + pause < deadline => {
                tracing::debug!(%error, "an invalidation could not be written; trying again");
                sleep(pause).await;
                pause *= 2;
            }
            Err(error) => {
                engine.stats.count(|s| &s.errors);
                engine.writes.is_ill(&error);
                break;
            }
        }
    }
    engine.changes.add_overdue(&engine, scopes);
}

async fn attempt(engine: &Arc<Engine>, scopes: &[Scope], within: Duration) -> Result<(), Error> {
    engine.readiness.ensure(engine).await?;
    engine.store.invalidate(scopes.to_vec(), within).await?;
    engine.writes.is_well();
    engine.stats.count(|s| &s.invalidations);
    Ok(())
}
