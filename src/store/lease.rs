//! Leases, and what it takes to judge an answer as of an earlier moment.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient, Row};

use super::schema::Sql;
use super::{Origin, Snapshot, Store, read_transaction, write_transaction};
use crate::error::Error;
use crate::key::Key;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    Granted,
    /// By somebody else.
    Held,
    /// Somebody has stored an answer that the claimant has not seen.
    LookAgain,
}

impl Store {
    /// What is granted only after `within` is given back: nobody knows of it.
    pub(crate) async fn claim_lease(
        self: &Arc<Self>,
        key: Key,
        holder: i64,
        life: Duration,
        seen: Snapshot,
        within: Duration,
    ) -> Result<Claimed, Error> {
        let (waited_for, _waiting) = oneshot::channel::<()>();
        self.run(within, move |store, mut connection| async move {
            let (key, seen) = (key.as_bytes(), seen.to_string());
            let life = life.as_secs_f64();
            let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
                (&key, Type::BYTEA),
                (&holder, Type::INT8),
                (&life, Type::FLOAT8),
                (&seen, Type::TEXT),
            ];
            let statement = &store.sql.claim_lease;
            // one round trip, unless the defaults of the server forbid it
            let plain = if store.is_read_committed() {
                let client = connection.client();
                unless_read_only(client.query_typed_one(statement, &parameters).await)?
            } else {
                None
            };
            let row = match plain {
                Some(row) => row,
                None => {
                    let transaction = write_transaction(connection.client()).await?;
                    let row = transaction.query_typed_one(statement, &parameters).await?;
                    transaction.commit().await?;
                    row
                }
            };
            Ok(match row.try_get::<_, &str>(0)? {
                "granted" => {
                    if waited_for.is_closed() {
                        give_back(connection.client(), &store.sql, key, holder).await?;
                    }
                    Claimed::Granted
                }
                "look again" => Claimed::LookAgain,
                _ => Claimed::Held,
            })
        })
        .await
    }

    /// Frees a lease without an answer.
    pub(crate) async fn give_back(
        self: &Arc<Self>,
        key: Key,
        holder: i64,
        within: Duration,
    ) -> Result<(), Error> {
        self.run(within, move |store, mut connection| async move {
            give_back(connection.client(), &store.sql, key.as_bytes(), holder).await
        })
        .await
    }

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
            let transaction = read_transaction(connection.client()).await?;
            let row = transaction
                .query_typed_one(
                    &store.sql.unchanged_between,
                    &[
                        (&probes, Type::INT8_ARRAY),
                        (&since, Type::TEXT),
                        (&until, Type::TEXT),
                    ],
                )
                .await?;
            transaction.commit().await?;
            Ok(row.try_get(0)?)
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
            let transaction = read_transaction(connection.client()).await?;
            let row = transaction
                .query_typed(
                    &store.sql.unchanged_but_by,
                    &[
                        (&probes, Type::INT8_ARRAY),
                        (&snapshot, Type::TEXT),
                        (&own, Type::TEXT),
                        (&&*since.epoch, Type::TEXT),
                        (&&*since.incarnation, Type::TEXT),
                    ],
                )
                .await?;
            transaction.commit().await?;
            let snapshot = row.first().map(|row| row.try_get::<_, &str>(0));
            let snapshot: Option<Snapshot> = snapshot.transpose()?.and_then(|s| s.parse().ok());
            // one with too much in progress is carried along as one that sees less
            Ok(snapshot.filter(|snapshot| snapshot.sees(xid)))
        })
        .await
    }
}

async fn give_back(client: &mut Client, sql: &Sql, key: &[u8], holder: i64) -> Result<(), Error> {
    let transaction = write_transaction(client).await?;
    transaction
        .execute_typed(
            &sql.give_back,
            &[(&key, Type::BYTEA), (&holder, Type::INT8)],
        )
        .await?;
    Ok(transaction.commit().await?)
}

/// `None`: the server's default is that transactions do not write.
fn unless_read_only(result: Result<Row, tokio_postgres::Error>) -> Result<Option<Row>, Error> {
    match result {
        Ok(row) => Ok(Some(row)),
        Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// In the transaction that stores the answers.
pub(super) async fn give_back_with_answers(
    client: &impl GenericClient,
    sql: &Sql,
    leases: &[(Key, i64)],
) -> Result<(), Error> {
    let (keys, holders): (Vec<&[u8]>, Vec<i64>) = leases
        .iter()
        .map(|(key, holder)| (key.as_bytes(), *holder))
        .unzip();
    if !keys.is_empty() {
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&keys, Type::BYTEA_ARRAY), (&holders, Type::INT8_ARRAY)];
        client
            .execute_typed(&sql.give_back_with_answers, &parameters)
            .await?;
    }
    Ok(())
}
