//! Invalidations that a request has caused.
//!
//! 1. Once the inner service was called, its effects may be there, whether it answers, fails, panics or is
//!    dropped. So a [`ChangeGuard`] is armed before the call; only an answer that says that nothing changed
//!    (4xx) disarms it.
//! 2. The answer waits for the invalidation's commit, at most the deadline. What could not be written by then
//!    is *overdue*: a task goes on trying, and until it succeeds this instance serves nothing that it concerns.
//! 3. While the database is known to be out of reach, further changes do not wait: they are overdue at once.
//!    As soon as something overdue got through they write for themselves again; or the task, with ever more
//!    to do, would never come to its end.
//! 4. What becomes overdue while the task writes is written once more, even if it is the same scope: a fill may
//!    have begun in between.
//! 5. No more than so many write at a time: what comes beyond that is overdue at once, too. The set of overdue scopes is bounded: beyond that everything is overdue.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::gauge::Token;
use super::limit::Limit;
use super::{Engine, in_time};
use crate::domain::Scope;
use crate::error::Error;
use crate::runtime::{CacheScope, Remarks};
use crate::sync::{Handle, Instant, JoinHandle, Mutex, MutexGuard, sleep};

const MAX_OVERDUE: usize = 4096;

/// How many requests may be writing at once; the changes of those that come then are overdue.
const MAX_WRITING: usize = 4096;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Changes {
    any_overdue: AtomicBool,
    out_of_reach: AtomicBool,
    writing: Limit<MAX_WRITING>,
    overdue: Mutex<Overdue>,
}

#[derive(Debug, Default)]
struct Overdue {
    /// With the round of the task in which each was added.
    scopes: HashMap<Scope, u64>,
    /// The keys of `scopes`, for lookups.
    keys: HashSet<i64>,
    /// Too many to name, since this round.
    everything: Option<u64>,
    round: u64,
    working: bool,
}

impl Changes {
    /// Whether an entry with these probes is concerned by something overdue.
    pub(crate) fn concern(&self, probes: &[i64]) -> bool {
        if !self.any_overdue.load(Ordering::Acquire) {
            return false;
        }
        let overdue = self.lock();
        overdue.everything.is_some() || probes.iter().any(|p| overdue.keys.contains(p))
    }

    fn add_overdue(&self, engine: &Arc<Engine>, scopes: Vec<Scope>) {
        let mut overdue = self.lock();
        overdue
            .keys
            .extend(scopes.iter().flat_map(Scope::invalidation_keys));
        let round = overdue.round;
        overdue
            .scopes
            .extend(scopes.into_iter().map(|scope| (scope, round)));
        if overdue.scopes.len() > MAX_OVERDUE {
            overdue.everything = Some(round);
            overdue.scopes.clear();
            overdue.keys.clear();
        }
        self.any_overdue.store(true, Ordering::Release);
        drop(overdue);
        self.keep_trying(engine);
    }

    /// Starts the task unless it runs. Outside a runtime there can be none: a later request starts it.
    pub(crate) fn keep_trying(&self, engine: &Arc<Engine>) {
        if !self.any_overdue.load(Ordering::Acquire) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut overdue = self.lock();
        if overdue.is_empty() || std::mem::replace(&mut overdue.working, true) {
            return;
        }
        // a runtime that is shutting down drops the task here, and that takes the lock
        drop(overdue);
        runtime.spawn(catch_up(
            Working(Some(engine.clone())),
            engine.pending.enter(),
        ));
    }

    fn lock(&self) -> MutexGuard<'_, Overdue> {
        self.overdue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Overdue {
    fn is_empty(&self) -> bool {
        self.scopes.is_empty() && self.everything.is_none()
    }
}

/// Held by the task. If it is dropped with its runtime, a later request starts another one; what is overdue
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
                engine.readiness.doubt(&error);
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Writes what is overdue now; true if nothing is any more.
async fn write_overdue(engine: &Arc<Engine>) -> Result<bool, Error> {
    let (everything, scopes, round) = {
        let mut overdue = engine.changes.lock();
        overdue.round += 1;
        (
            overdue.everything.is_some(),
            overdue.scopes.keys().cloned().collect::<Vec<_>>(),
            overdue.round,
        )
    };
    engine.readiness.ensure(engine).await?;
    let within = engine.settings.store_deadline;
    if everything {
        engine.invalidate_all(within).await?;
    }
    engine.write_down(scopes, within).await?;
    engine.changes.out_of_reach.store(false, Ordering::Release);
    engine.writes.is_well();

    let mut overdue = engine.changes.lock();
    overdue.everything = overdue.everything.filter(|&added| added >= round);
    overdue.scopes.retain(|_, added| *added >= round);
    overdue.keys = overdue
        .scopes
        .keys()
        .flat_map(Scope::invalidation_keys)
        .collect();
    let done = overdue.is_empty();
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

    /// Adds scopes that only the answer names, writes, and returns when that is committed or overdue: the id of
    /// the transaction that did it.
    pub(crate) async fn commit(mut self, more: impl IntoIterator<Item = Scope>) -> Option<u64> {
        self.scopes.extend(more);
        // in a task: if the request is dropped while it waits, the work goes on
        self.spawn()?.await.ok().flatten()
    }

    fn spawn(&mut self) -> Option<JoinHandle<Option<u64>>> {
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
                tracing::warn!(
                    "a request that changes something ended outside the Tokio runtime: \
                     its invalidation has to wait for another request"
                );
                self.engine.changes.add_overdue(&self.engine, scopes);
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

/// Returns the id of the transaction that did it; none if it is overdue.
async fn write(engine: Arc<Engine>, scopes: Vec<Scope>, _pending: Token) -> Option<u64> {
    let deadline = Instant::now() + engine.settings.change_deadline;
    let mut pause = FIRST_PAUSE;
    let place = engine.changes.writing.take();
    while place.is_some() && !engine.changes.out_of_reach.load(Ordering::Acquire) {
        let left = deadline.saturating_duration_since(Instant::now());
        match attempt(&engine, &scopes, left).await {
            Ok(xid) => return Some(xid),
            Err(error) if Instant::now() + pause < deadline => {
                tracing::debug!(%error, "an invalidation could not be written; trying again");
                sleep(pause).await;
                pause *= 2;
            }
            Err(error) => {
                engine.stats.count(|s| &s.errors);
                engine.writes.is_ill(&error);
                engine.changes.out_of_reach.store(true, Ordering::Release);
                break;
            }
        }
    }
    engine.changes.add_overdue(&engine, scopes);
    None
}

async fn attempt(engine: &Arc<Engine>, scopes: &[Scope], within: Duration) -> Result<u64, Error> {
    let written = in_time(within, async {
        engine.readiness.ensure(engine).await?;
        engine.write_down(scopes.to_vec(), within).await
    });
    let xid = written.await.inspect_err(|error| {
        engine.readiness.doubt(error);
    })?;
    engine.writes.is_well();
    Ok(xid)
}
