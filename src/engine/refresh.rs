//! Which entries this instance is refreshing in the background: each once at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::key::Key;

/// How many entries are refreshed at once; the others are served as they are, and refreshed later.
const MAX_REFRESHES: usize = 256;

#[derive(Debug, Clone, Default)]
pub(crate) struct Refreshes(Arc<Mutex<HashMap<Key, Refresh>>>);

#[derive(Debug)]
struct Refresh {
    known_since: Instant,
    is_running: bool,
}

/// Held by the background fill.
#[derive(Debug)]
pub(crate) struct Refreshing {
    refreshes: Refreshes,
    key: Key,
    succeeded: bool,
}

impl Refreshes {
    pub(crate) fn begin(&self, key: Key) -> Option<Refreshing> {
        let mut refreshes = self.lock();
        if refreshes.len() >= MAX_REFRESHES && !refreshes.contains_key(&key) {
            return None;
        }
        let refresh = refreshes.entry(key).or_insert_with(|| Refresh {
            known_since: Instant::now(),
            is_running: false,
        });
        let begins = !std::mem::replace(&mut refresh.is_running, true);
        begins.then(|| Refreshing {
            refreshes: self.clone(),
            key,
            succeeded: false,
        })
    }

    /// Since the first refresh that has not led to a new entry; zero if there was none.
    pub(crate) fn known_for(&self, key: Key) -> Duration {
        self.lock()
            .get(&key)
            .map_or(Duration::ZERO, |refresh| refresh.known_since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Refresh>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refreshing {
    /// There is a new entry.
    pub(crate) fn succeed(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        let mut refreshes = self.refreshes.lock();
        if self.succeeded {
            refreshes.remove(&self.key);
        } else if let Some(refresh) = refreshes.get_mut(&self.key) {
            // the next request tries again, and it stays known how long this has been going on
            refresh.is_running = false;
        }
    }
}
