//! Storing answers and recording invalidations.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderName;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{GenericClient, Row};

use super::checksum::{Checksum, checksum};
use super::lease::give_back_with_answers;
use super::schema::Sql;
use super::{Origin, Store, StoredBody, write_transaction};
use crate::domain::Scope;
use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// Longer lifetimes count as this: ten years.
const MAX_TTL: f64 = 10.0 * 365.25 * 86_400.0;

/// An answer on its way into the store.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) key: Key,
    pub(crate) origin: Origin,
    pub(crate) scopes: Vec<Scope>,
    /// What its validity is judged by: ascending.
    pub(crate) probes: Vec<i64>,
    /// How old the answer was when the fill began, how long it may be served from then on, and how long it is of
    /// any use: the handler's time counts as age (RFC 9111 §4.2.3).
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
    /// How long it has been stale already.
    pub(crate) overdue: Duration,
    pub(crate) keep: Duration,
    pub(crate) revalidatable: bool,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) route: Option<String>,
    /// How long its handler took.
    pub(crate) cost: Duration,
    pub(crate) tenant: Option<String>,
    pub(crate) head: Vec<u8>,
    pub(crate) body: StoredBody,
    /// Whether the body is to be compressed first.
    pub(crate) packs: bool,
    /// The checksum of the stored entry that this one has the body of.
    pub(crate) freshens: Option<Checksum>,
    /// For an answer that varies.
    pub(crate) marker: Option<Marker>,
    /// The lease under which it was filled.
    pub(crate) lease: Option<(Key, i64)>,
}

/// Leads from the key of a URI to its variants.
#[derive(Debug)]
pub(crate) struct Marker {
    pub(crate) key: Key,
    pub(crate) fields: Vec<HeaderName>,
}

/// By how much the store grows, and how much was replaced in it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Volume {
    pub(crate) entries: i64,
    pub(crate) bytes: i64,
    pub(crate) replaced_bytes: i64,
}

impl Volume {
    /// What a statement that stores returned.
    fn add(&mut self, row: &Row) -> Result<(), Error> {
        let weight: i64 = row.try_get("weight")?;
        let replaced: Option<i64> = row.try_get("replaced")?;
        self.entries += i64::from(replaced.is_none());
        self.bytes += weight - replaced.unwrap_or_default();
        self.replaced_bytes += replaced.unwrap_or_default();
        Ok(())
    }
}

/// One row to be written.
enum Storing<'a> {
    Entry(&'a Record),
    Marker(&'a Marker, &'a Record),
}

impl Storing<'_> {
    fn key(&self) -> Key {
        match self {
            Self::Entry(record) => record.key,
            Self::Marker(marker, _) => marker.key,
        }
    }
}

impl Store {
    /// Stores answers in one transaction, in the order of their keys: two batches in different orders would
    /// deadlock. Returns how many were accepted: a fill from before an epoch, or before the horizon, is not.
    pub(crate) async fn put(
        self: &Arc<Self>,
        records: Vec<Record>,
        within: Duration,
    ) -> Result<(u64, Volume), Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let entries = records.iter().map(Storing::Entry);
            let markers = records
                .iter()
                .filter_map(|r| Some(Storing::Marker(r.marker.as_ref()?, r)));
            let mut rows: Vec<Storing<'_>> = entries.chain(markers).collect();
            rows.sort_by_key(Storing::key);
            // leases come first in every transaction that has both
            let mut leases: Vec<(Key, i64)> = records.iter().filter_map(|r| r.lease).collect();
            leases.sort_unstable();
            tokio::try_join!(
                without_jit(&transaction),
                give_back_with_answers(&transaction, &store.sql, &leases)
            )?;
            let mut accepted = 0;
            let mut volume = Volume::default();
            let mut given_way: Vec<Vec<u8>> = Vec::new();
            for row in rows {
                match row {
                    Storing::Entry(record) => {
                        if let Some(row) = put_entry(&transaction, &store.sql, record).await? {
                            accepted += 1;
                            volume.add(&row)?;
                        }
                    }
                    Storing::Marker(marker, record) => {
                        if let Some(row) =
                            put_marker(&transaction, &store.sql, marker, record).await?
                        {
                            volume.add(&row)?;
                            given_way.extend(
                                row.try_get::<_, Option<Vec<Vec<u8>>>>(0)?
                                    .unwrap_or_default(),
                            );
                        }
                    }
                }
            }
            if !given_way.is_empty() {
                let delete = if store.is_partitioned.load(Ordering::Relaxed) {
                    &store.sql.delete_keys_of_partitions
                } else {
                    &store.sql.delete_keys
                };
                transaction
                    .execute_typed(delete, &[(&given_way, Type::BYTEA_ARRAY)])
                    .await?;
            }
            transaction.commit().await?;
            Ok((accepted, volume))
        })
        .await
    }

    /// Records invalidations in a transaction of their own, and returns its id.
    pub(crate) async fn invalidate(
        self: &Arc<Self>,
        scopes: Vec<Scope>,
        within: Duration,
    ) -> Result<u64, Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            let xid = invalidate(&transaction, &store.sql.invalidate, &scopes).await?;
            transaction.commit().await?;
            Ok(xid)
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
        invalidate(client, &self.sql.invalidate, scopes)
            .await
            .map(drop)
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

/// Where a plan needs what is disabled (with `enable_nestloop = off`, say), it counts as so expensive that the server
/// compiles it, which takes seconds, each time.
async fn without_jit(client: &impl GenericClient) -> Result<(), Error> {
    Ok(client.batch_execute("SET LOCAL jit = off").await?)
}

/// Nothing, if it was not accepted.
async fn put_entry(
    client: &impl GenericClient,
    sql: &Sql,
    record: &Record,
) -> Result<Option<Row>, Error> {
    let Record {
        key,
        origin,
        scopes,
        probes,
        age,
        ttl,
        overdue,
        keep,
        revalidatable,
        authority,
        path,
        route,
        cost,
        tenant,
        head,
        body: StoredBody {
            bytes: body,
            unpacked,
        },
        packs: _,
        freshens,
        marker: _,
        lease: _,
    } = record;
    let readable: Vec<String> = scopes.iter().map(Scope::to_string).collect();
    let checksum = checksum(*key, &origin.snapshot, probes, head, body, *unpacked);
    let snapshot = origin.snapshot.to_string();
    let (age, ttl, keep) = (
        seconds(*age),
        seconds(*ttl) - seconds(*overdue),
        seconds(*keep),
    );
    let cost = cost.as_secs_f64();
    let (key, body, checksum) = (key.as_bytes(), body.as_ref(), checksum.as_slice());
    let (epoch, incarnation) = (&*origin.epoch, &*origin.incarnation);
    let freshens = freshens.as_ref().map(Checksum::as_slice);
    let (statement, last): (_, &(dyn ToSql + Sync)) = match &freshens {
        None => (&sql.store, &body),
        Some(checksum_before) => (&sql.freshen, checksum_before),
    };
    let parameters: [(&(dyn ToSql + Sync), Type); 20] = [
        (&key, Type::BYTEA),
        (&epoch, Type::TEXT),
        (&incarnation, Type::TEXT),
        (&snapshot, Type::TEXT),
        (probes, Type::INT8_ARRAY),
        (&origin.at, Type::FLOAT8),
        (&age, Type::FLOAT8),
        (&ttl, Type::FLOAT8),
        (&keep, Type::FLOAT8),
        (revalidatable, Type::BOOL),
        (authority, Type::TEXT),
        (path, Type::TEXT),
        (tenant, Type::TEXT),
        (&readable, Type::TEXT_ARRAY),
        (&checksum, Type::BYTEA),
        (head, Type::BYTEA),
        (last, Type::BYTEA),
        (route, Type::TEXT),
        (&cost, Type::FLOAT8),
        (unpacked, Type::INT4),
    ];
    Ok(client.query_typed_opt(statement, &parameters).await?)
}

/// Returns the keys of variants that give way to this one; nothing, if it was not accepted.
async fn put_marker(
    client: &impl GenericClient,
    sql: &Sql,
    marker: &Marker,
    record: &Record,
) -> Result<Option<Row>, Error> {
    let (key, variant) = (marker.key.as_bytes(), record.key.as_bytes());
    let fields: Vec<&str> = marker.fields.iter().map(HeaderName::as_str).collect();
    let (epoch, incarnation) = (&*record.origin.epoch, &*record.origin.incarnation);
    let (snapshot, keep) = (record.origin.snapshot.to_string(), seconds(record.keep));
    let parameters: [(&(dyn ToSql + Sync), Type); 10] = [
        (&key, Type::BYTEA),
        (&epoch, Type::TEXT),
        (&incarnation, Type::TEXT),
        (&snapshot, Type::TEXT),
        (&fields, Type::TEXT_ARRAY),
        (&variant, Type::BYTEA),
        (&record.origin.at, Type::FLOAT8),
        (&keep, Type::FLOAT8),
        (&record.authority, Type::TEXT),
        (&record.path, Type::TEXT),
    ];
    Ok(client
        .query_typed_opt(&sql.store_marker, &parameters)
        .await?)
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64().min(MAX_TTL)
}

async fn invalidate(
    client: &impl GenericClient,
    statement: &str,
    scopes: &[Scope],
) -> Result<u64, Error> {
    let kinds: Vec<&str> = scopes.iter().map(|s| s.kind().as_str()).collect();
    let names: Vec<&str> = scopes.iter().map(Scope::name).collect();
    let tenants: Vec<Option<&str>> = scopes.iter().map(Scope::tenant_name).collect();
    let entities: Vec<Option<&str>> = scopes.iter().map(Scope::entity_name).collect();
    let row = client
        .query_typed_one(
            statement,
            &[
                (&kinds, Type::TEXT_ARRAY),
                (&names, Type::TEXT_ARRAY),
                (&tenants, Type::TEXT_ARRAY),
                (&entities, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    let xid: &str = row.try_get("xid")?;
    xid.parse().map_err(|_| {
        Error::new(
            ErrorKind::Database,
            format!("{xid:?} is not the id of a transaction"),
        )
    })
}
