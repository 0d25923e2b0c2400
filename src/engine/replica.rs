//! Answers that handlers make from what a replica has, which may be less than the server of the cache has.
//!
//! 1. The snapshot of such an answer is taken on the replica, right before the handler runs and after the lookup that
//!    found nothing: what that server shows from then on is that, or more. If the replica cannot say in time, the handler
//!    answers and nothing is stored.
//! 2. The answer is good for whoever arrived with its request only if nothing that it depends on was committed between
//!    that snapshot and the one of the lookup. Memory and those who wait for the fill rely on that, since all that they
//!    look at is what came after the lookup. So the server of the cache is asked, when the answer is complete; a replica
//!    that lags costs hits.
//! 3. By then the replica has to be in the same life (a restart may take it back by some transactions), and to have the
//!    history of the server of the cache: one that was promoted goes another way, and its transactions are others.
//! 4. The client that asked gets what the handler said.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Engine;
use super::breaker::Breaker;
use crate::store::{Origin, Sight, Snapshot, Source, look};
use crate::sync::Instant;

/// How many look at a replica at the same time, those included that hang: its connections are the handlers'.
const LOOKS: usize = 4;

/// A server that handlers read from.
pub(crate) struct Replica {
    source: Arc<dyn Source>,
    looks: Arc<Semaphore>,
    health: Breaker,
}

/// Where an answer comes from that is being made.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    replica: Arc<Replica>,
    sight: Sight,
}

impl Replica {
    pub(crate) fn new(source: impl Source + 'static) -> Self {
        Self {
            source: Arc::new(source),
            looks: Arc::new(Semaphore::new(LOOKS)),
            health: Breaker::new("looking at the replica that handlers read from"),
        }
    }

    /// `None`: there is no telling.
    async fn look(&self, engine: &Engine) -> Option<Sight> {
        let attempt = self.health.admit(Instant::now())?;
        let within = engine.settings.lookup_deadline;
        let error = match look(&self.source, &self.looks, within).await {
            Ok(sight) => {
                attempt.succeeded();
                return Some(sight);
            }
            Err(error) => error,
        };
        engine.stats.count(|s| &s.errors);
        self.health.is_ill(&error);
        attempt.failed(&error);
        None
    }
}

impl Engine {
    /// What a replica has now.
    pub(super) async fn see(&self, replica: &Arc<Replica>, origin: &Origin) -> Option<Seen> {
        let sight = replica.look(self).await?;
        sight.may_follow(origin).then(|| Seen {
            replica: replica.clone(),
            sight,
        })
    }

    /// Whether an answer that was made from there since then is good as of `arrival`; if so, its snapshot.
    pub(super) async fn vouches_for(
        self: &Arc<Self>,
        seen: &Seen,
        probes: Vec<i64>,
        arrival: Snapshot,
    ) -> Option<Snapshot> {
        let now = seen.replica.look(self).await?;
        let sight = seen.sight.clone().still(now)?;
        let within = self.settings.lookup_deadline;
        let snapshot = sight.snapshot.clone();
        match self.store.vouches_for(sight, probes, arrival, within).await {
            Ok(is_good) => is_good.then_some(snapshot),
            Err(error) => {
                self.note_read_failure(&error);
                None
            }
        }
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replica")
    }
}
