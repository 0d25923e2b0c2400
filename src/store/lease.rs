//! Leases: who fills what, over all instances.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient, Row};

use super::schema::Sql;
use super::{Snapshot, Store, write_transaction};
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
