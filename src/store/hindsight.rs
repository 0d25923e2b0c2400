//! Whether an answer is good as of another moment than the one that it was made at.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::{Origin, Sight, Snapshot, Store, read};
use crate::error::Error;

impl Store {
    /// Whether nothing with these keys was committed after `since` and up to `until`. False also if that cannot be
    /// said any more.
    pub(crate) async fn unchanged_between(
        self: &Arc<Self>,
        probes: Vec<i64>,
        since: Snapshot,
        until: Snapshot,
        within: Duration,
    ) -> Result<bool, Error> {
        self.run(within, move |store, mut connection| async move {
            let (since, until) = (since.to_string(), until.to_string());
            let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
                (&probes, Type::INT8_ARRAY),
                (&since, Type::TEXT),
                (&until, Type::TEXT),
            ];
            let statement = &store.sql.unchanged_between;
            says_yes(connection.client(), statement, &parameters).await
        })
        .await
    }

    /// Whether an answer that was made from what a replica had is good as of `until`.
    pub(crate) async fn vouches_for(
        self: &Arc<Self>,
        sight: Sight,
        probes: Vec<i64>,
        until: Snapshot,
        within: Duration,
    ) -> Result<bool, Error> {
        self.run(within, move |store, mut connection| async move {
            let (since, until) = (sight.snapshot.to_string(), until.to_string());
            let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
                (&probes, Type::INT8_ARRAY),
                (&since, Type::TEXT),
                (&until, Type::TEXT),
                (&sight.system_identifier, Type::INT8),
                (&sight.timeline, Type::INT4),
            ];
            says_yes(connection.client(), &store.sql.vouch, &parameters).await
        })
        .await
    }

    /// A snapshot of now, if nothing with these keys has changed since then but by that transaction, which has committed.
    pub(crate) async fn unchanged_but_by(
        self: &Arc<Self>,
        probes: Vec<i64>,
        since: Origin,
        xid: u64,
        within: Duration,
    ) -> Result<Option<Snapshot>, Error> {
        self.run(within, move |store, mut connection| async move {
            let (snapshot, own) = (since.snapshot.to_string(), xid.to_string());
            let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
                (&probes, Type::INT8_ARRAY),
                (&snapshot, Type::TEXT),
                (&own, Type::TEXT),
                (&&*since.epoch, Type::TEXT),
                (&&*since.incarnation, Type::TEXT),
            ];
            let statement = &store.sql.unchanged_but_by;
            let rows = read(connection.client(), statement, &parameters).await?;
            let snapshot = rows.first().map(|row| row.try_get::<_, &str>(0));
            let snapshot: Option<Snapshot> = snapshot.transpose()?.and_then(|s| s.parse().ok());
            // one with too much in progress is carried along as one that sees less
            Ok(snapshot.filter(|snapshot| snapshot.sees(xid)))
        })
        .await
    }
}

async fn says_yes(
    client: &mut Client,
    statement: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<bool, Error> {
    let rows = read(client, statement, parameters).await?;
    let says = rows.first().map(|row| row.try_get(0)).transpose()?;
    Ok(says.unwrap_or(false))
}
