//! Flights: one fill for a key at a time, on this instance.
//!
//! 1. Whoever has to fill a key first is its *pilot*; those who come while it fills are followers, and wait.
//! 2. When the answer is complete it lands: each follower judges it as of its own arrival.
//! 3. A pilot that goes away before the handler has answered (its client left, it panicked) leaves the others to find
//!    a new one among them. One whose answer is not stored sends them on, all at once, and for a while
//!    nobody waits for that key.
//! 4. A flight ends before its outcome is known: who comes then begins a new one, and finds what was stored.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::clock::Moment;
use super::entry::{Answer, Entry};
use super::memory::Standing;
use crate::http::reuse::Condition;
use crate::key::Key;
use crate::store::Position;
use crate::sync::{Mutex, MutexGuard};

/// For how long nobody waits for a key whose answer was not stored, and how many such keys are known.
const UNSTORABLE_FOR: Duration = Duration::from_secs(10);
const UNSTORABLE_KEYS: usize = 10_000;

/// How many flights there may be. Those who fill another key then do so alone.
const MAX_FLIGHTS: usize = 10_000;

#[derive(Debug, Clone)]
pub(crate) struct Flights(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    flying: Mutex<HashMap<Key, watch::Receiver<Outcome>>>,
    unstorable: quick_cache::sync::Cache<Key, Moment>,
}

/// How a flight ends for those who wait.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// It goes on.
    Flying,
    Landed(Arc<Landed>),
    /// There is an answer, which is not for others.
    NotStored,
    /// There is no answer, and no pilot any more.
    Abandoned,
}

/// An answer that was filled.
#[derive(Debug)]
pub(crate) struct Landed {
    pub(crate) answer: Arc<Answer>,
    /// As of `standing.asked_at`.
    pub(super) condition: Condition,
    pub(super) standing: Standing,
    /// Before the handler was called.
    pub(super) position: Position,
}

impl Landed {
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            answer: self.answer.clone(),
            condition: self.condition.later(self.standing.asked_at.elapsed()),
            checksum: None,
            snapshot: None,
            packed: None,
        }
    }
}

pub(crate) enum Boarded {
    Pilot(Pilot),
    Follower(watch::Receiver<Outcome>),
    /// The answers for this key are not for others.
    Alone,
}

impl Default for Flights {
    fn default() -> Self {
        Self(Arc::new(Inner {
            flying: Mutex::default(),
            unstorable: quick_cache::sync::Cache::new(UNSTORABLE_KEYS),
        }))
    }
}

impl Flights {
    pub(crate) fn board(&self, key: Key) -> Boarded {
        let mut flying = self.0.lock();
        let is_full = flying.len() >= MAX_FLIGHTS;
        match flying.entry(key) {
            Slot::Occupied(flight) => Boarded::Follower(flight.get().clone()),
            Slot::Vacant(_) if is_full => Boarded::Alone,
            // after the lock: a flight says so before it ends
            Slot::Vacant(_) if self.0.is_unstorable(&key) => Boarded::Alone,
            Slot::Vacant(free) => {
                let (outcome, waiting) = watch::channel(Outcome::Flying);
                free.insert(waiting);
                Boarded::Pilot(Pilot {
                    flights: self.clone(),
                    key,
                    outcome,
                    end: Outcome::Abandoned,
                })
            }
        }
    }
}

impl Inner {
    fn is_unstorable(&self, key: &Key) -> bool {
        let Some(since) = self.unstorable.get(key) else {
            return false;
        };
        let lasts = since.elapsed() < UNSTORABLE_FOR;
        if !lasts {
            self.unstorable.remove(key);
        }
        lasts
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Outcome>>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the one who fills. When it is dropped, the flight is over.
#[derive(Debug)]
pub(crate) struct Pilot {
    flights: Flights,
    key: Key,
    outcome: watch::Sender<Outcome>,
    end: Outcome,
}

impl Pilot {
    /// The handler has answered: if nothing lands from now on, the answer is not for others.
    pub(crate) fn has_answer(&mut self) {
        self.end = Outcome::NotStored;
    }

    pub(crate) fn land(mut self, landed: Landed) {
        self.end = Outcome::Landed(Arc::new(landed));
    }

    /// Those who wait find what they need in the store.
    pub(crate) fn abandon(mut self) {
        self.end = Outcome::Abandoned;
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        let end = std::mem::replace(&mut self.end, Outcome::Abandoned);
        if matches!(end, Outcome::NotStored) {
            self.flights.0.unstorable.insert(self.key, Moment::now());
        }
        self.flights.0.lock().remove(&self.key);
        self.outcome.send_replace(end);
    }
}

/// How a flight ended.
pub(crate) async fn outcome(mut flight: watch::Receiver<Outcome>) -> Outcome {
    let ended = flight
        .wait_for(|outcome| !matches!(outcome, Outcome::Flying))
        .await;
    // the pilot always sends; but if not, it is gone
    ended.map_or(Outcome::Abandoned, |outcome| outcome.clone())
}

#[cfg(all(test, not(shuttle)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Key::from_bytes(&bytes).unwrap()
    }

    fn pilot(flights: &Flights, n: usize) -> Option<Pilot> {
        match flights.board(key(n)) {
            Boarded::Pilot(pilot) => Some(pilot),
            _ => None,
        }
    }

    #[test]
    fn beyond_so_many_flights_everybody_fills_alone() {
        let flights = Flights::default();
        let mut pilots: Vec<_> = (0..MAX_FLIGHTS).map(|n| pilot(&flights, n)).collect();
        assert!(pilots.iter().all(Option::is_some));
        assert!(matches!(flights.board(key(MAX_FLIGHTS)), Boarded::Alone));
        assert!(matches!(flights.board(key(0)), Boarded::Follower(_)));
        drop(pilots.pop());
        assert!(pilot(&flights, MAX_FLIGHTS).is_some());
    }

    #[test]
    fn no_more_keys_are_remembered_than_that() {
        let flights = Flights::default();
        for n in 0..3 * UNSTORABLE_KEYS {
            let mut pilot = pilot(&flights, n).unwrap();
            pilot.has_answer();
        }
        let remembered = flights.0.unstorable.len();
        assert!(
            (UNSTORABLE_KEYS / 2..=UNSTORABLE_KEYS).contains(&remembered),
            "{remembered}"
        );
        assert!(flights.0.lock().is_empty());
    }
}
