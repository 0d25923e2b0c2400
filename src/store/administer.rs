//! Calls of the functions that administrate the schema: watched tables, cascades, messages.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};

use super::schema::counted;
use super::{Store, write_transaction};
use crate::error::Error;

/// What is passed to such a function.
#[derive(Default)]
pub(crate) struct Parameters(Vec<(Box<dyn ToSql + Sync + Send>, Type)>);

impl Parameters {
    pub(crate) fn text(&mut self, value: impl Into<Option<String>>) -> &mut Self {
        self.push(value.into(), Type::TEXT)
    }

    pub(crate) fn texts(&mut self, values: Option<Vec<String>>) -> &mut Self {
        self.push(values, Type::TEXT_ARRAY)
    }

    pub(crate) fn int(&mut self, value: i32) -> &mut Self {
        self.push(value, Type::INT4)
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.push(value, Type::BOOL)
    }

    fn push(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> &mut Self {
        self.0.push((Box::new(value), kind));
        self
    }
}

impl Store {
    /// Runs a statement of which every column is a text, in a transaction of its own that waits for locks no
    /// longer than `within`.
    pub(crate) async fn administer(
        self: &Arc<Self>,
        statement: &str,
        within: Duration,
        parameters: Parameters,
    ) -> Result<Vec<Vec<String>>, Error> {
        let statement = self.sql.in_schema(statement);
        self.run(within, move |_, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let patience = within.as_millis().clamp(1, i32::MAX as u128);
            transaction
                .batch_execute(&format!("SET LOCAL lock_timeout = {patience}"))
                .await?;
            let parameters: Vec<(&(dyn ToSql + Sync), Type)> = parameters
                .0
                .iter()
                .map(|(value, kind)| (value.as_ref() as &(dyn ToSql + Sync), kind.clone()))
                .collect();
            let rows = transaction.query_typed(&statement, &parameters).await?;
            transaction.commit().await?;
            rows.iter()
                .map(|row| {
                    (0..row.len())
                        .map(|at| Ok(row.try_get::<_, Option<String>>(at)?.unwrap_or_default()))
                        .collect()
                })
                .collect()
        })
        .await
    }
}

/// What is set up in the database.
#[derive(Debug)]
pub(crate) struct Installed {
    /// Whether the tables are LOGGED.
    pub(crate) durable: bool,
    /// Into how many tables the entries are split, if they are.
    pub(crate) partitions: Option<u32>,
    /// Whether `pg_fraiseql_cache` is followed.
    pub(crate) adopted: bool,
    pub(crate) watched: Vec<WatchedTable>,
}

#[derive(Debug)]
pub(crate) struct WatchedTable {
    pub(crate) table: String,
    pub(crate) has_tenant: bool,
    /// In words; `enabled` if all is well.
    pub(crate) triggers: String,
    /// Partitions and children without triggers.
    pub(crate) unwatched: Vec<String>,
    /// Columns that are not what they were.
    pub(crate) broken: Vec<String>,
}

impl Store {
    pub(crate) async fn installed(self: &Arc<Self>, within: Duration) -> Result<Installed, Error> {
        self.run(within, |store, mut connection| async move {
            let rows = connection
                .client()
                .query_typed(&store.sql.capabilities, &[])
                .await?;
            let mut installed = Installed {
                durable: false,
                partitions: None,
                adopted: false,
                watched: Vec::new(),
            };
            for row in &rows {
                installed.durable = row.try_get("durable")?;
                installed.partitions = counted(row.try_get("partitions")?);
                installed.adopted = row.try_get("adopted")?;
                if let Some(table) = row.try_get("watched")? {
                    installed.watched.push(WatchedTable {
                        table,
                        has_tenant: row.try_get("has_tenant")?,
                        triggers: row.try_get("triggers")?,
                        unwatched: row.try_get("unwatched")?,
                        broken: row.try_get("broken")?,
                    });
                }
            }
            Ok(installed)
        })
        .await
    }
}
