//! Removing what is no longer needed, in small steps.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::{Store, write_transaction};
use crate::error::Error;

/// How many pages of the table one statement looks at: 8 MiB, some ten thousand entries at most.
const PAGES_PER_STEP: i64 = 1024;

/// How long the unfolded tail of the log gets before somebody folds it.
const TAIL_TO_FOLD: i64 = 64;

/// What a round of housekeeping removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    pub(crate) entries: u64,
    pub(crate) log_rows: u64,
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
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
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

    /// Prunes the log and walks through the table of entries; each step has the deadline and a transaction to
    /// itself.
    pub(crate) async fn sweep(
        self: &Arc<Self>,
        max_log_rows: i64,
        within: Duration,
    ) -> Result<Swept, Error> {
        let log_rows = self.prune(max_log_rows, within).await?;
        let pages = self.entry_pages(within).await?;
        let mut entries = 0;
        let mut from = 0;
        while from < pages {
            entries += self
                .delete_expired(from, from + PAGES_PER_STEP, within)
                .await?;
            from += PAGES_PER_STEP;
        }
        Ok(Swept { entries, log_rows })
    }

    async fn prune(self: &Arc<Self>, max_rows: i64, within: Duration) -> Result<u64, Error> {
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

    async fn entry_pages(self: &Arc<Self>, within: Duration) -> Result<i64, Error> {
        self.run(within, |store, mut connection| async move {
            Ok(connection
                .client()
                .query_typed_one(&store.sql.entry_pages, &[])
                .await?
                .try_get(0)?)
        })
        .await
    }

    async fn delete_expired(
        self: &Arc<Self>,
        from: i64,
        to: i64,
        within: Duration,
    ) -> Result<u64, Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
                [(&from, Type::INT8), (&to, Type::INT8)];
            let deleted = transaction
                .execute_typed(&store.sql.delete_expired, &parameters)
                .await?;
            transaction.commit().await?;
            Ok(deleted)
        })
        .await
    }
}
