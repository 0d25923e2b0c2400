//! Leases: one fill for a key at a time, over all instances.
//!
//! 1. The pilot of a flight claims a lease in the database before it calls the handler. Whoever does not get it looks
//!    again until the answer is there, the lease is free, or the patience has run out; then it fills as well.
//! 2. A lease is given back in the transaction that stores the answer. Whoever claims it afterwards and has not seen that
//!    answer yet is told to look again.
//! 3. The lease of an instance that has died expires on the database's clock. One that lives tries to give it back
//!    until then, and gives back what was granted too late.
//! 4. The database has so many places for leases, and two keys may have the same. Whoever finds the other key's lease there,
//!    and held, fills without one: that costs a second fill at worst.
//! 5. There is no session state. A claim that fails, for whatever reason, costs a second fill and nothing else.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::limit::Limit;
use crate::key::Key;
use crate::store::{Claimed, Snapshot};
use crate::sync::{Handle, Instant, sleep, spawn};

/// How long after a failure a lease is given back again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
                engine.give_back(key, holder).await;
                drop((place, pending));
            });
        }
    }
}

impl Engine {
    /// Tries until the lease has expired: as long as it is there, requests wait for nobody.
    async fn give_back(&self, key: Key, holder: i64) {
        let expired = Instant::now() + self.settings.lease_life;
        let within = self.settings.store_deadline;
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.store.give_back(key, holder, within).await {
            if self.is_closed() || Instant::now() + pause > expired {
                tracing::debug!(%error, "a lease was not given back and has to expire");
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

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
                    if error.sql_state().is_none() {
                        // the connection broke, perhaps after it was granted
                        drop(Lease {
                            engine,
                            key,
                            holder,
                            is_over: false,
                        });
                    }
                    Claim::Failed
                }
            }
        });
        claiming.await.unwrap_or(Claim::Failed)
    }
}
