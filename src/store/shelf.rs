//! What connections [keep](super::kept) while they are in the pool, which hands out others than it was given.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::identity::Identity;
use super::kept::{Keeps, RESPITE};

/// Of how many connections it is remembered what they keep: those of a large pool.
const MOST_REMEMBERED: usize = 128;

/// What those connections keep that are in the pool.
#[derive(Default)]
pub(super) struct Shelf(Mutex<Shelved>);

#[derive(Default)]
struct Shelved {
    /// Of the one last that came back last.
    keeps: Vec<(Identity, Keeps)>,
    /// When a statement was gone that was here.
    robbed: Option<Instant>,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Shelved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, identity: Identity) -> Option<Keeps> {
        let keeps = &mut self.lock().keeps;
        let at = keeps.iter().position(|(id, _)| *id == identity)?;
        Some(keeps.remove(at).1.remembered())
    }

    pub(super) fn put(&self, identity: Identity, keeps: Keeps) {
        let mut shelved = self.lock();
        let is_recent = |since: Instant| since.elapsed() < RESPITE;
        if shelved.robbed.is_some_and(is_recent) {
            return;
        }
        let is_full = shelved.keeps.len() >= MOST_REMEMBERED;
        let oldest = is_full.then(|| shelved.keeps.remove(0));
        shelved.keeps.push((identity, keeps));
        drop(shelved);
        // its session is told that it is not needed any more
        drop(oldest);
    }

    /// Somebody makes sessions forget what they keep.
    pub(super) fn is_robbed(&self) {
        let mut shelved = self.lock();
        shelved.robbed = Some(Instant::now());
        let lost = std::mem::take(&mut shelved.keeps);
        drop(shelved);
        drop(lost);
    }
}
