//! Connections between two statements.
//!
//! 1. What reads comes in bursts of less than a millisecond, with pauses that are shorter still. A connection that went
//!    back to the pool in each of them would be another one every time, since pools give them out in turn: eight server
//!    processes that are woken one after the other have cold caches each, and a read costs twice as much.
//! 2. So a connection waits here for the next statement, for [`LINGER`] at most. While somebody waits for one of the pool it
//!    goes back at once: a handler may need the only one.
//! 3. Never with a statement under way: who gives up on a statement leaves the connection to it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::kept::Session;
use super::{Deadline, Store};
use crate::error::Error;

/// How long a connection is kept for the next statement: longer than a pause under load, and short enough for a handler that
/// comes to want it just then.
const LINGER: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(super) struct Idle(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// The one that was used last comes last.
    sessions: Vec<(Session, Instant)>,
    /// Whether the task runs that gives them back.
    swept: bool,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that keeps something, if there is one; of several the one that was used last.
    pub(super) fn take(&self) -> Option<Session> {
        loop {
            let mut waiting = self.lock();
            let sessions = &mut waiting.sessions;
            // one that was just prepared would else stay behind one that is in use all the time
            let keeps = sessions
                .iter()
                .rposition(|(session, _)| session.keeps_something());
            let at = keeps.or(sessions.len().checked_sub(1))?;
            let (session, _) = sessions.remove(at);
            drop(waiting);
            if !session.shared().is_closed() {
                return Some(session);
            }
        }
    }
}

impl Store {
    pub(super) async fn session(&self, deadline: Deadline) -> Result<Session, Error> {
        match self.idle.take() {
            Some(session) => Ok(session),
            None => {
                let connection = self.connection(deadline).await?;
                Ok(Session::new(connection, &self.shelf))
            }
        }
    }

    /// Whether there is something to prepare in a session, and nothing is being prepared: what keeps that from being done must not
    /// take one connection after the other.
    pub(super) fn has_due(&self, session: &mut Session) -> bool {
        !self.is_preparing.load(Ordering::Relaxed) && session.has_due(&self.sql)
    }

    /// As [`put_by`](Self::put_by), once what the session is to keep is prepared.
    pub(super) fn put_by_prepared(self: &Arc<Self>, mut session: Session) {
        let is_of_use = !session.shared().is_closed() && !self.source.is_wanted();
        if !is_of_use
            || !self.has_due(&mut session)
            || self.is_preparing.swap(true, Ordering::Relaxed)
        {
            return self.put_by(session);
        }
        let preparing = Preparing(self.clone());
        tokio::spawn(async move {
            let store = &preparing.0;
            while !store.source.is_wanted() && session.prepare_due(&store.sql).await {}
            store.put_by(session);
        });
    }

    /// For the next statement, unless somebody waits for a connection.
    pub(super) fn put_by(self: &Arc<Self>, session: Session) {
        if self.source.is_wanted() || session.shared().is_closed() {
            return;
        }
        let mut waiting = self.idle.lock();
        waiting.sessions.push((session, Instant::now()));
        if !std::mem::replace(&mut waiting.swept, true) {
            drop(waiting);
            tokio::spawn(sweep(Sweeper(Some(self.clone()))));
        }
    }
}

/// Held by the task that prepares a statement.
struct Preparing(Arc<Store>);

impl Drop for Preparing {
    fn drop(&mut self) {
        self.0.is_preparing.store(false, Ordering::Relaxed);
    }
}

/// Held by the task that gives connections back. If that is dropped with its runtime, it gives back all there are: nobody else
/// may come for long. But those that were in that runtime may be closed by then, and bb8 makes another one for each if it is to
/// keep some (`min_idle`), which it cannot do there, and would wait for ever after. Such are left to whoever comes next.
struct Sweeper(Option<Arc<Store>>);

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(store) = &self.0 {
            let mut waiting = store.idle.lock();
            waiting.swept = false;
            let all = std::mem::take(&mut waiting.sessions).into_iter();
            let replaces = store.source.replaces_closed();
            let (given_back, left): (Vec<_>, Vec<_>) =
                all.partition(|(session, _)| !replaces || !session.shared().is_closed());
            waiting.sessions = left;
            drop(waiting);
            drop(given_back);
        }
    }
}

/// Nor can bb8 make another one outside a runtime: it panics.
impl Drop for Store {
    fn drop(&mut self) {
        if Handle::try_current().is_err() && self.source.replaces_closed() {
            let left = std::mem::take(&mut self.idle.lock().sessions);
            std::mem::forget(left);
        }
    }
}

impl Sweeper {
    /// Gives back what has waited for too long; `None`: nothing is left, and the task has ended.
    fn sweep(&mut self) -> Option<()> {
        let store = self.0.take()?;
        let wanted = store.source.is_wanted();
        let now = Instant::now();
        let is_long_ago = |(_, since): &(Session, Instant)| wanted || *since + LINGER <= now;
        let mut waiting = store.idle.lock();
        let long_ago = waiting.sessions.partition_point(is_long_ago);
        let given_back: Vec<_> = waiting.sessions.drain(..long_ago).collect();
        let is_empty = waiting.sessions.is_empty();
        waiting.swept = !is_empty;
        drop(waiting);
        // to whoever gets them, without the lock
        drop(given_back);
        if is_empty {
            return None;
        }
        self.0 = Some(store);
        Some(())
    }
}

async fn sweep(mut sweeper: Sweeper) {
    loop {
        sleep(LINGER).await;
        if sweeper.sweep().is_none() {
            return;
        }
    }
}
