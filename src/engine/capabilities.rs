//! What is set up in the database, and what of it does not work as it should.

use std::sync::Arc;

use super::Engine;
use crate::error::Error;
use crate::store::WatchedTable;

/// What is active, as [`PgCache::capabilities`](crate::PgCache::capabilities) found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Whether there is a database at all; not for [`PgCache::disabled`](crate::PgCache::disabled).
    pub database: bool,
    /// Whether the tables survive a crash of the server.
    pub durable: bool,
    /// Into how many tables the entries are split, if they are
    /// ([`PgCacheBuilder::partitions`](crate::PgCacheBuilder::partitions)).
    pub partitions: Option<u32>,
    /// Whether commits are heard of at once ([`PgCacheBuilder::listen`](crate::PgCacheBuilder::listen)).
    pub listening: bool,
    /// How many bytes of answers this instance may keep in memory.
    pub memory: usize,
    /// How many tables are watched ([`PgCache::watch`](crate::PgCache::watch)).
    pub watched_tables: usize,
    /// Whether the extension `pg_fraiseql_cache` is followed
    /// ([`PgCache::adopt_fraiseql`](crate::PgCache::adopt_fraiseql)).
    pub adopted_fraiseql: bool,
    /// What is set up and does not work as it should, each with its mend.
    pub warnings: Vec<String>,
}

/// What is amiss with a watched table.
fn complaints(watched: &WatchedTable, has_tenants: bool) -> Vec<String> {
    let WatchedTable {
        table,
        has_tenant,
        triggers,
        unwatched,
        broken,
    } = watched;
    let mut complaints = Vec::new();
    if triggers != "enabled" {
        complaints.push(format!(
            "the triggers of the watched table {table} are not as they should be ({triggers}): watch it again"
        ));
    }
    if !unwatched.is_empty() {
        complaints.push(format!(
            "partitions or children of the watched table {table} are not watched ({}): watch {table} again",
            unwatched.join(", ")
        ));
    }
    if !broken.is_empty() {
        complaints.push(format!(
            "columns of the watched table {table} are gone or of another type ({}), so every change invalidates its \
             whole domain: watch it again, with the columns that it has",
            broken.join(", ")
        ));
    }
    if *has_tenant && !has_tenants {
        complaints.push(format!(
            "the watched table {table} has a tenant column, and no tenant is configured: if its rows belong to \
             tenants, so do the answers made from them; see PgCacheBuilder::tenant"
        ));
    }
    complaints
}

impl Engine {
    /// What is to be said where the schema was created with another number of partitions than is configured.
    pub(super) fn partitioned_otherwise(&self, found: Option<u32>) -> Option<String> {
        let wanted = self
            .settings
            .partitions
            .filter(|_| found != self.settings.partitions)?;
        let schema = self.store.schema();
        let found = found.map_or("one table".to_owned(), |count| {
            format!("{count} partitions")
        });
        Some(format!(
            "partitions({wanted}) counts when the schema is created, and \"{schema}\" was created with {found}, which it \
             keeps: configure what it has, or drop it (DROP SCHEMA \"{schema}\" CASCADE) to have it created anew, empty, \
             and watch tables again"
        ))
    }

    pub(crate) async fn capabilities(
        self: &Arc<Self>,
        has_tenants: bool,
    ) -> Result<Capabilities, Error> {
        if !self.usable().await? {
            return Ok(Capabilities::default());
        }
        let installed = self.store.installed(self.settings.store_deadline).await?;
        Ok(Capabilities {
            database: true,
            durable: installed.durable,
            partitions: installed.partitions,
            listening: self.listener.is_listening(),
            memory: self.settings.memory_bytes,
            watched_tables: installed.watched.len(),
            adopted_fraiseql: installed.adopted,
            warnings: installed
                .watched
                .iter()
                .flat_map(|watched| complaints(watched, has_tenants))
                .chain(self.partitioned_otherwise(installed.partitions))
                .collect(),
        })
    }
}
