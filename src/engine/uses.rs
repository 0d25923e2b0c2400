//! How often entries are used, counted on the way to the store.
//!
//! A hit costs a few nanoseconds on average, and no lock: of many, a random one in 2ⁿ is counted, as 2ⁿ. The number
//! follows from how many there are, so that about a thousand are looked at in a second; where there are fewer, each
//! counts. What cannot be counted is lost, and so is what was not written down when an instance ends: an entry that is worth
//! keeping is used again.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::key::Key;

/// How many keys are written down at once.
const MOST_KEYS: usize = 1000;

/// How many uses are looked at between two times of writing them down, before fewer of them are.
const ENOUGH: u32 = 1000;

/// One in a million.
const LARGEST_SHIFT: u32 = 20;

#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Nothing will have to go soon: then nobody needs to know.
    unwanted: AtomicBool,
    /// One in 2 to the power of this is counted.
    shift: AtomicU32,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    uses: HashMap<Key, u64>,
    samples: u32,
}

impl Uses {
    pub(super) fn want(&self, on: bool) {
        self.unwanted.store(!on, Ordering::Relaxed);
    }

    pub(super) fn count(&self, key: Key) {
        if self.unwanted.load(Ordering::Relaxed) {
            return;
        }
        let shift = self.shift.load(Ordering::Relaxed);
        if shift > 0 && random() >> (64 - shift) != 0 {
            return;
        }
        // who finds it taken loses a count; nobody waits
        let Ok(mut counted) = self.counted.try_lock() else {
            return;
        };
        counted.samples += 1;
        if counted.samples >= ENOUGH {
            counted.samples = 0;
            self.shift
                .store((shift + 1).min(LARGEST_SHIFT), Ordering::Relaxed);
        }
        if counted.uses.len() < MOST_KEYS || counted.uses.contains_key(&key) {
            *counted.uses.entry(key).or_default() += 1 << shift;
        }
    }

    /// What was counted since the last time, in the order of the keys.
    pub(super) fn take(&self) -> Vec<(Key, f64)> {
        let Ok(mut counted) = self.counted.lock() else {
            return Vec::new();
        };
        let shift = self.shift.load(Ordering::Relaxed);
        if shift > 0 && counted.samples < ENOUGH / 4 {
            self.shift.store(shift - 1, Ordering::Relaxed);
        }
        counted.samples = 0;
        let uses = std::mem::take(&mut counted.uses);
        drop(counted);
        let mut uses: Vec<(Key, f64)> = uses.into_iter().map(|(k, n)| (k, n as f64)).collect();
        uses.sort_unstable_by_key(|(key, _)| *key);
        uses
    }
}

/// Xorshift: good enough for choosing samples.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(bytes: [u8; 32]) -> Key {
        Key::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn few_uses_are_counted_each() {
        let uses = Uses::default();
        for n in 0..100 {
            uses.count(key([n % 2; 32]));
        }
        let taken = uses.take();
        assert_eq!(taken.len(), 2);
        assert!(taken[0].0 < taken[1].0);
        assert!(taken.iter().all(|(_, n)| *n == 50.0), "{taken:?}");
        assert!(uses.take().is_empty());
    }

    #[test]
    fn many_uses_are_sampled_and_many_keys_take_little_room() {
        let uses = Uses::default();
        const MANY: u32 = 1_000_000;
        for n in 0..MANY {
            uses.count(key([0; 32]));
            let mut other = [1; 32];
            other[..4].copy_from_slice(&n.to_be_bytes());
            uses.count(key(other));
        }
        let samples = 1 << uses.shift.load(Ordering::Relaxed);
        assert!(samples >= 256, "1 in {samples}");
        let taken = uses.take();
        assert!(taken.len() <= MOST_KEYS);
        let often = taken.iter().find(|(k, _)| *k == key([0; 32]));
        let counted = often.map_or(0.0, |(_, n)| *n) / f64::from(MANY);
        assert!((0.5..2.0).contains(&counted), "{counted}");
    }

    #[test]
    fn nothing_is_counted_that_nobody_wants() {
        let uses = Uses::default();
        uses.want(false);
        uses.count(key([0; 32]));
        assert!(uses.take().is_empty());
    }
}
