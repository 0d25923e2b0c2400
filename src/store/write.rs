//! Storing answers and recording invalidations.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::GenericClient;
use tokio_postgres::types::{ToSql, Type};

use super::lookup::checksum;
use super::schema::Sql;
use super::{Origin, Store, write_transaction};
use crate::domain::Scope;
use crate::error::Error;
use crate::key::Key;

/// Longer lifetimes count as this: ten years.
const MAX_TTL: f64 = 10.0 * 365.25 * 86_400.0;

/// An answer on its way into the store.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) key: Key,
    pub(crate) origin: Origin,
    pub(crate) scopes: Vec<Scope>,
    /// How old the answer was when the fill began, and how long it may be served from then on: the handler's
    /// time counts as age (RFC 9111 §4.2.3).
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) tenant: Option<String>,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Bytes,
}

impl Store {
    /// Stores answers in one transaction, in the order of their keys: two batches in different orders would
    /// deadlock. Returns how many were accepted: a fill from before an epoch, or before the horizon, is not.
    pub(crate) async fn put(
        self: &Arc<Self>,
        mut records: Vec<Record>,
        within: Duration,
    ) -> Result<u64, Error> {
        records.sort_by_key(|r| r.key);
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let mut accepted = 0;
            for record in &records {
                accepted += put_one(&transaction, &store.sql, record).await?;
            }
            transaction.commit().await?;
            Ok(accepted)
        })
        .await
    }

    /// Records invalidations in a transaction of their own.
    pub(crate) async fn invalidate(
        self: &Arc<Self>,
        scopes: Vec<Scope>,
        within: Duration,
    ) -> Result<(), Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            invalidate(&transaction, &store.sql.invalidate, &scopes).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// Records invalidations in the caller's own transaction, with its role's rights: the SQL function does the
    /// rest.
    pub(crate) async fn invalidate_in(
        &self,
        client: &impl GenericClient,
        scopes: &[Scope],
    ) -> Result<(), Error> {
        invalidate(client, &self.sql.invalidate, scopes).await
    }

    /// Makes every entry invalid.
    pub(crate) async fn clear(self: &Arc<Self>, within: Duration) -> Result<(), Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            transaction.query_typed(&store.sql.clear, &[]).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }
}

async fn put_one(client: &impl GenericClient, sql: &Sql, record: &Record) -> Result<u64, Error> {
    let Record {
        key,
        origin,
        scopes,
        age,
        ttl,
        authority,
        path,
        tenant,
        head,
        body,
    } = record;
    let mut probes: Vec<i64> = scopes.iter().flat_map(Scope::probes).collect();
    probes.sort_unstable();
    probes.dedup();
    let readable: Vec<String> = scopes.iter().map(Scope::to_string).collect();
    let snapshot = origin.snapshot.to_string();
    let checksum = checksum(*key, &snapshot, &probes, head, body);
    let (age, ttl) = (
        age.as_secs_f64().min(MAX_TTL),
        ttl.as_secs_f64().min(MAX_TTL),
    );
    let (key, body, checksum) = (key.as_bytes(), body.as_ref(), checksum.as_slice());
    let parameters: [(&(dyn ToSql + Sync), Type); 15] = [
        (&key, Type::BYTEA),
        (&origin.epoch, Type::TEXT),
        (&origin.incarnation, Type::TEXT),
        (&snapshot, Type::TEXT),
        (&probes, Type::INT8_ARRAY),
        (&origin.at, Type::FLOAT8),
        (&age, Type::FLOAT8),
        (&ttl, Type::FLOAT8),
        (authority, Type::TEXT),
        (path, Type::TEXT),
        (tenant, Type::TEXT),
        (&readable, Type::TEXT_ARRAY),
        (&checksum, Type::BYTEA),
        (head, Type::BYTEA),
        (&body, Type::BYTEA),
    ];
    Ok(client.execute_typed(&sql.store, &parameters).await?)
}

async fn invalidate(
    client: &impl GenericClient,
    statement: &str,
    scopes: &[Scope],
) -> Result<(), Error> {
    let kinds: Vec<&str> = scopes.iter().map(|s| s.kind().as_str()).collect();
    let names: Vec<&str> = scopes.iter().map(Scope::name).collect();
    let tenants: Vec<Option<&str>> = scopes.iter().map(Scope::tenant_name).collect();
    let entities: Vec<Option<&str>> = scopes.iter().map(Scope::entity_name).collect();
    client
        .query_typed(
            statement,
            &[
                (&kinds, Type::TEXT_ARRAY),
                (&names, Type::TEXT_ARRAY),
                (&tenants, Type::TEXT_ARRAY),
                (&entities, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    Ok(())
}
