//! What this instance is refreshing in the background: each entry once at a time; and since when it has known of
//! entries that a commit has invalidated.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::gauge::Token;
use crate::key::Key;
use crate::store::Checksum;

/// How many entries are refreshed at once; the others are served as they are, and refreshed later.
const MAX_REFRESHES: usize = 256;

/// How many invalidated entries are remembered, and for how long if there are more.
const MAX_INVALID: usize = 10_000;
const REMEMBERED: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Default)]
pub(crate) struct Refreshes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    running: HashSet<Key>,
    invalid: HashMap<Key, Invalid>,
}

#[derive(Debug)]
struct Invalid {
    /// The checksum: an entry that replaces it is another one.
    entry: Checksum,
    known_since: Instant,
}

/// Held by the background fill.
#[derive(Debug)]
pub(crate) struct Refreshing {
    refreshes: Refreshes,
    key: Key,
    _pending: Token,
}

impl Refreshes {
    pub(super) fn begin(&self, key: Key, pending: Token) -> Option<Refreshing> {
        let mut state = self.lock();
        let begins = state.running.len() < MAX_REFRESHES && state.running.insert(key);
        begins.then(|| Refreshing {
            refreshes: self.clone(),
            key,
            _pending: pending,
        })
    }

    /// How long this has been known of an entry; from now on if it has not. `None` if it cannot be remembered.
    pub(super) fn known_invalid_for(&self, key: Key, entry: Checksum) -> Option<Duration> {
        let invalid = &mut self.lock().invalid;
        if let Some(known) = invalid.get(&key).filter(|known| known.entry == entry) {
            return Some(known.known_since.elapsed());
        }
        if invalid.len() >= MAX_INVALID {
            invalid.retain(|_, known| known.known_since.elapsed() < REMEMBERED);
        }
        if invalid.len() >= MAX_INVALID && !invalid.contains_key(&key) {
            return None;
        }
        let known = Invalid {
            entry,
            known_since: Instant::now(),
        };
        invalid.insert(key, known);
        Some(Duration::ZERO)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.refreshes.lock().running.remove(&self.key);
    }
}

#[cfg(all(test, not(shuttle)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_so_many_invalid_entries_is_known_since_when_and_of_no_more() {
        let refreshes = Refreshes::default();
        let known = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            refreshes.known_invalid_for(Key::from_bytes(&bytes).unwrap(), [0; 16])
        };
        assert!((0..MAX_INVALID).all(|n| known(n).is_some()));
        assert_eq!(known(MAX_INVALID), None);
        assert!(known(0).is_some_and(|known| known > Duration::ZERO));
    }
}
