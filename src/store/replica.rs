//! What a server has that handlers read from, and that is not the one of the cache.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use super::{Connection, Deadline, Origin, Snapshot, Source};
use crate::error::{Error, ErrorKind};

/// What a look at a replica has shown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sight {
    /// Not more than it has.
    pub(crate) snapshot: Snapshot,
    in_recovery: bool,
    started_at: String,
    pub(super) system_identifier: i64,
    pub(super) timeline: i32,
}

impl Sight {
    /// Whether it can be a replica of the server of `origin`, or is that one. Another primary, such as a replica that was
    /// promoted, has a history of its own.
    pub(crate) fn may_follow(&self, origin: &Origin) -> bool {
        let is_the_primary = origin
            .incarnation
            .rsplit_once('/')
            .is_some_and(|(_, started_at)| started_at == self.started_at);
        self.in_recovery || is_the_primary
    }

    /// What it had then, if the server was running all the time: after a restart, a replica may show less than it did
    /// before.
    pub(crate) fn still(self, now: Self) -> Option<Self> {
        let is_the_same = self.in_recovery == now.in_recovery
            && self.started_at == now.started_at
            && self.system_identifier == now.system_identifier;
        is_the_same.then_some(Self {
            snapshot: self.snapshot,
            ..now
        })
    }
}

/// Looks at a replica. The work runs in a task of its own, as that of [`Store::run`](super::Store::run); the permit is given back with the
/// connection, though nobody waits any more.
pub(crate) async fn look(
    source: &Arc<dyn Source>,
    permits: &Arc<Semaphore>,
    within: Duration,
) -> Result<Sight, Error> {
    let deadline = Deadline::after(within);
    let permit = timeout_at(deadline.at, permits.clone().acquire_owned()).await;
    let permit = permit.map_err(|_| deadline.no_answer())?;
    let source = source.clone();
    let looking = tokio::spawn(async move {
        let got = timeout_at(deadline.at, source.get()).await;
        let mut connection = got.unwrap_or_else(|_| Err(deadline.no_connection()))?;
        let sight = sight(&mut connection).await;
        drop((connection, permit));
        sight
    });
    match timeout_at(deadline.at, looking).await {
        Ok(Ok(sight)) => sight,
        Ok(Err(stopped)) => {
            Err(Error::new(ErrorKind::Closed, "the runtime is shutting down").with_source(stopped))
        }
        Err(_) => Err(deadline.no_answer()),
    }
}

async fn sight(connection: &mut Connection) -> Result<Sight, Error> {
    let statement = include_str!("sql/replica.sql");
    let row = connection.client().query_typed_one(statement, &[]).await?;
    let (in_recovery, text): (bool, &str) = (row.try_get(0)?, row.try_get(1)?);
    let snapshot = if in_recovery {
        Snapshot::in_recovery(text)
    } else {
        text.parse()
    };
    Ok(Sight {
        snapshot: snapshot
            .map_err(|()| Error::new(ErrorKind::Database, format!("{text:?} is not a snapshot")))?,
        in_recovery,
        started_at: row.try_get(2)?,
        system_identifier: row.try_get(3)?,
        timeline: row.try_get(4)?,
    })
}
