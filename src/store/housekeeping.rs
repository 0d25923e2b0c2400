//! Removing what is no longer needed, in small steps.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};

use super::{Store, Volume, write_transaction};
use crate::error::Error;
use crate::key::Key;

/// How long the unfolded tail of the log gets before somebody folds it.
const TAIL_TO_FOLD: i64 = 64;

/// How long VACUUM of a table may take. It holds nobody up, and its connection is the only thing that it costs.
const LONGEST_VACUUM: Duration = Duration::from_secs(600);

/// How much may be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) entries: i64,
    pub(crate) bytes: i64,
}

/// What there is, as far as is known, and what is to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stock {
    pub(crate) entries: i64,
    pub(crate) bytes: i64,
    /// Nothing more is to be stored for now.
    pub(crate) holds: bool,
    pub(crate) evict: bool,
    pub(crate) vacuum: bool,
}

/// What one step of the janitor came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// The first of a round.
    pub(crate) began: bool,
    /// The last of a round.
    pub(crate) walked: bool,
    pub(crate) too_full: bool,
    pub(crate) removed: u64,
    pub(crate) evicted: u64,
}

impl Store {
    /// Whether this instance is the one to do the task now; for the others it is due again after `every`.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        task: &'static str,
        every: Duration,
        within: Duration,
    ) -> Result<bool, Error> {
        let seconds = every.as_secs_f64();
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                [(&task, Type::TEXT), (&seconds, Type::FLOAT8)];
            let claimed = transaction
                .execute_typed(&store.sql.claim_housekeeping, &parameters)
                .await?;
            transaction.commit().await?;
            Ok(claimed == 1)
        })
        .await
    }

    /// Folds the tail of the log if it has grown.
    pub(crate) async fn fold_if_due(self: &Arc<Self>, within: Duration) -> Result<(), Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            transaction
                .query_typed(&store.sql.fold_if_due, &[(&TAIL_TO_FOLD, Type::INT8)])
                .await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    pub(crate) async fn prune(
        self: &Arc<Self>,
        max_rows: i64,
        within: Duration,
    ) -> Result<u64, Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let removed: i64 = transaction
                .query_typed_one(&store.sql.prune, &[(&max_rows, Type::INT8)])
                .await?
                .try_get(0)?;
            transaction.commit().await?;
            Ok(removed.unsigned_abs())
        })
        .await
    }

    /// `None`: another instance is at a step.
    pub(crate) async fn clean_step(
        self: &Arc<Self>,
        most: Bounds,
        within: Duration,
    ) -> Result<Option<Step>, Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                [(&most.entries, Type::INT8), (&most.bytes, Type::INT8)];
            let row = transaction
                .query_typed_one(&store.sql.clean_step, &parameters)
                .await?;
            transaction.commit().await?;
            let Some(walked) = row.try_get("walked")? else {
                return Ok(None);
            };
            Ok(Some(Step {
                began: row.try_get("began")?,
                walked,
                too_full: row.try_get("too_full")?,
                removed: row.try_get::<_, i64>("removed")?.unsigned_abs(),
                evicted: row.try_get::<_, i64>("evicted")?.unsigned_abs(),
            }))
        })
        .await
    }

    /// Says what was stored since the last time.
    pub(crate) async fn report(
        self: &Arc<Self>,
        stored: Volume,
        most: Bounds,
        within: Duration,
    ) -> Result<Stock, Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
                (&stored.entries, Type::INT8),
                (&stored.bytes, Type::INT8),
                (&stored.replaced_bytes, Type::INT8),
                (&most.entries, Type::INT8),
                (&most.bytes, Type::INT8),
            ];
            let row = transaction
                .query_typed_one(&store.sql.report, &parameters)
                .await?;
            transaction.commit().await?;
            Ok(Stock {
                entries: row.try_get("entries")?,
                bytes: row.try_get("bytes")?,
                holds: row.try_get("holds")?,
                evict: row.try_get("evict")?,
                vacuum: row.try_get("vacuum")?,
            })
        })
        .await
    }

    /// `uses`: in the order of the keys, each of which occurs once.
    pub(crate) async fn add_uses(
        self: &Arc<Self>,
        uses: Vec<(Key, f64)>,
        within: Duration,
    ) -> Result<(), Error> {
        self.run(within, move |store, mut connection| async move {
            let keys: Vec<&[u8]> = uses.iter().map(|(key, _)| key.as_bytes()).collect();
            let counts: Vec<f64> = uses.iter().map(|(_, count)| *count).collect();
            let transaction = write_transaction(connection.client()).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                [(&keys, Type::BYTEA_ARRAY), (&counts, Type::FLOAT8_ARRAY)];
            transaction
                .query_typed(&store.sql.add_uses, &parameters)
                .await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// Whether this instance is the one to vacuum now; `at_once`: though it has not helped lately.
    pub(crate) async fn claim_vacuum(
        self: &Arc<Self>,
        most: Bounds,
        at_once: bool,
        within: Duration,
    ) -> Result<Option<bool>, Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                [(&most.bytes, Type::INT8), (&at_once, Type::BOOL)];
            let claimed = transaction
                .query_typed_one(&store.sql.claim_vacuum, &parameters)
                .await?
                .try_get(0)?;
            transaction.commit().await?;
            Ok(claimed)
        })
        .await
    }

    /// Makes the room of what was deleted and replaced usable again, in one table after the other.
    pub(crate) async fn vacuum(
        self: &Arc<Self>,
        and_shrink: bool,
        within: Duration,
    ) -> Result<(), Error> {
        let truncate = if and_shrink { "" } else { ", TRUNCATE false" };
        for table in self.tables_to_vacuum(within).await? {
            let statement = format!("VACUUM (SKIP_LOCKED{truncate}) {table}");
            self.run(LONGEST_VACUUM, |_, mut connection| async move {
                Ok(connection.client().batch_execute(&statement).await?)
            })
            .await?;
        }
        Ok(())
    }

    async fn tables_to_vacuum(self: &Arc<Self>, within: Duration) -> Result<Vec<String>, Error> {
        self.run(within, |store, mut connection| async move {
            let rows = connection
                .client()
                .query_typed(&store.sql.tables_to_vacuum, &[])
                .await?;
            Ok(rows
                .iter()
                .map(|row| row.try_get(0))
                .collect::<Result<_, _>>()?)
        })
        .await
    }
}
