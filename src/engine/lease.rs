//! Leases: one fill for a key at a time, over all instances.
//!
//! 1. The pilot of a flight claims a lease in the database before it calls the handler. Whoever does not get it looks
//!    again until the answer is there, the lease is free, or the patience has run out; then it fills as well.
//! 2. A lease is given back in the transaction that stores the answer. Whoever claims it afterwards and has not seen that
//!    answer yet is told to look again.
//! 3. The lease of an instance that has died expires on the database's clock, and so does one that cannot be given back.
//! 4. The database has so many places for leases, and two keys may have the same. Whoever finds the other key's lease there,
//!    and held, fills without one: that costs a second fill at worst.
//! 5. There is no session state. A claim that fails, for whatever reason, costs a second fill and nothing else.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::Engine;
use super::limit::Limit;
use crate::key::Key;
use crate::store::{Claimed, Snapshot};
use crate::sync::{Handle, spawn};

/// How many leases are given back at the same time; the others have to expire.
const MAX_GIVING_BACK: usize = 1024;

/// Those that are being given back.
pub(super) type GivingBack = Limit<MAX_GIVING_BACK>;

/// What a claim came to.
#[derive(Debug)]
pub(crate) enum Claim {
    Granted(Lease),
    /// Somebody else fills.
    Held,
    /// Somebody else has filled, after this instance looked.
    LookAgain,
    /// There is no telling.
    Failed,
}

/// Given back when dropped, unless the store has done it.
#[derive(Debug)]
pub(crate) struct Lease {
    engine: Arc<Engine>,
    key: Key,
    holder: i64,
    is_over: bool,
}

impl Lease {
    pub(crate) const fn key(&self) -> Key {
        self.key
    }

    pub(crate) const fn holder(&self) -> i64 {
        self.holder
    }

    /// It was given back with the answer.
    pub(super) fn is_over(&mut self) {
        self.is_over = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let Some(place) = self.engine.giving_back.take() else {
            return;
        };
        // outside a runtime it expires
        if let Ok(runtime) = Handle::try_current() {
            let (engine, key, holder) = (self.engine.clone(), self.key, self.holder);
            let pending = engine.pending.enter();
            runtime.spawn(async move {
                let within = engine.settings.store_deadline;
                if let Err(error) = engine.store.give_back(key, holder, within).await {
                    tracing::debug!(%error, "a lease was not given back and has to expire");
                }
                drop((place, pending));
            });
        }
    }
}

impl Engine {
    /// `seen`: the snapshot of the lookup that found nothing.
    pub(super) async fn claim(self: &Arc<Self>, key: Key, seen: &Snapshot) -> Claim {
        // no two claims have the same
        let holder = i64::from_ne_bytes(RandomState::new().hash_one(key).to_ne_bytes());
        let life = self.settings.lease_life;
        let within = self.settings.lookup_deadline;
        // whatever becomes of the request that asked: what is granted is given back
        let engine = self.clone();
        let seen = seen.clone();
        let claiming = spawn(async move {
            match engine
                .store
                .claim_lease(key, holder, life, seen, within)
                .await
            {
                Ok(Claimed::Granted) => {
                    engine.claims.is_well();
                    Claim::Granted(Lease {
                        engine,
                        key,
                        holder,
                        is_over: false,
                    })
                }
                Ok(Claimed::Held) => Claim::Held,
                Ok(Claimed::LookAgain) => Claim::LookAgain,
                Err(error) => {
                    engine.claims.is_ill(&error);
                    Claim::Failed
                }
            }
        });
        claiming.await.unwrap_or(Claim::Failed)
    }
}
