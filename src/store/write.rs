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

/// What one statement stores.
enum Step<'a> {
    Entries(Vec<&'a Record>),
    Marker(&'a Marker, &'a Record),
}

/// Of heads and bodies in one statement, beyond which it does not take another entry. Below it, Postgres sorts them in memory
/// (`work_mem`, 4 MB); what it costs to plan a statement is nothing beside them.
const MOST_BYTES: usize = 1 << 20;

/// Entries and markers in the order of their keys, as many entries to a statement as follow each other, are new and small.
fn steps(records: &[Record]) -> Vec<Step<'_>> {
    let entries = records.iter().map(|r| (r.key, Step::Entries(vec![r])));
    let markers = records.iter().filter_map(|r| {
        let marker = r.marker.as_ref()?;
        Some((marker.key, Step::Marker(marker, r)))
    });
    let mut rows: Vec<_> = entries.chain(markers).collect();
    rows.sort_by_key(|(key, _)| *key);
    let is_new = |entries: &[&Record]| entries.iter().all(|r| r.freshens.is_none());
    let bytes = |entries: &[&Record]| -> usize {
        entries
            .iter()
            .map(|r| r.head.len() + r.body.bytes.len())
            .sum()
    };
    let mut steps: Vec<Step<'_>> = Vec::new();
    for (_, row) in rows {
        match (steps.last_mut(), row) {
            (Some(Step::Entries(before)), Step::Entries(next))
                if is_new(before)
                    && is_new(&next)
                    && bytes(before) + bytes(&next) <= MOST_BYTES =>
            {
                before.extend(next);
            }
            (_, row) => steps.push(row),
        }
    }
    steps
}

impl Store {
    /// Stores answers in one transaction, in the order of their keys: two that stored the same ones in different orders would
    /// deadlock. Returns how many were accepted: a fill from before an epoch, or before the horizon, is not.
    pub(crate) async fn put(
        self: &Arc<Self>,
        records: Vec<Record>,
        within: Duration,
    ) -> Result<(u64, Volume), Error> {
        self.run(within, move |store, mut connection| async move {
            let transaction = write_transaction(connection.client()).await?;
            // leases come first in every transaction that has both
            let leases: Vec<(Key, i64)> = records.iter().filter_map(|r| r.lease).collect();
            tokio::try_join!(
                without_jit(&transaction),
                give_back_with_answers(&transaction, &store.sql, &leases)
            )?;
            let mut accepted = 0;
            let mut volume = Volume::default();
            let mut given_way: Vec<Vec<u8>> = Vec::new();
            for step in steps(&records) {
                match step {
                    Step::Entries(records) => {
                        for row in put_entries(&transaction, &store.sql, &records).await? {
                            accepted += 1;
                            volume.add(&row)?;
                        }
                    }
                    Step::Marker(marker, record) => {
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

/// Stores them by one statement, or gives one that is there already what it was confirmed with. A row for each that was accepted.
async fn put_entries(
    client: &impl GenericClient,
    sql: &Sql,
    records: &[&Record],
) -> Result<Vec<Row>, Error> {
    let freshens: Option<Vec<&[u8]>> =
        column(records, |r| r.freshens.as_ref().map(Checksum::as_slice))
            .into_iter()
            .collect();
    let statement = if freshens.is_some() {
        &sql.freshen
    } else {
        &sql.store
    };
    let was_or_body = freshens.unwrap_or_else(|| column(records, |r| r.body.bytes.as_ref()));
    let checksums = column(records, |r| {
        let (body, unpacked) = (&r.body.bytes, r.body.unpacked);
        checksum(
            r.key,
            &r.origin.snapshot,
            &r.probes,
            &r.head,
            body,
            unpacked,
        )
    });
    let checksums: Vec<&[u8]> = checksums.iter().map(Checksum::as_slice).collect();
    let ttl = |r: &Record| seconds(r.ttl) - seconds(r.overdue);
    let probes = column(records, |r| &*r.probes);
    let scopes = column(records, |r| r.scopes.iter().map(Scope::to_string).collect());
    let (first_probe, last_probe) = places(&probes);
    let (first_scope, last_scope) = places(&scopes.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let parameters: [(&(dyn ToSql + Sync), Type); 24] = [
        (&column(records, |r| r.key.as_bytes()), Type::BYTEA_ARRAY),
        (&column(records, |r| &*r.origin.epoch), Type::TEXT_ARRAY),
        (
            &column(records, |r| &*r.origin.incarnation),
            Type::TEXT_ARRAY,
        ),
        (
            &column(records, |r| &r.origin.snapshot),
            Type::PG_SNAPSHOT_ARRAY,
        ),
        (&column(records, |r| r.origin.at), Type::FLOAT8_ARRAY),
        (&column(records, |r| seconds(r.age)), Type::FLOAT8_ARRAY),
        (&column(records, ttl), Type::FLOAT8_ARRAY),
        (&column(records, |r| seconds(r.keep)), Type::FLOAT8_ARRAY),
        (&column(records, |r| r.revalidatable), Type::BOOL_ARRAY),
        (&column(records, |r| &*r.authority), Type::TEXT_ARRAY),
        (&column(records, |r| &*r.path), Type::TEXT_ARRAY),
        (&column(records, |r| r.route.as_deref()), Type::TEXT_ARRAY),
        (&column(records, |r| r.tenant.as_deref()), Type::TEXT_ARRAY),
        (&checksums, Type::BYTEA_ARRAY),
        (
            &column(records, |r| r.cost.as_secs_f64()),
            Type::FLOAT8_ARRAY,
        ),
        (&column(records, |r| r.body.unpacked), Type::INT4_ARRAY),
        (&column(records, |r| &*r.head), Type::BYTEA_ARRAY),
        (&was_or_body, Type::BYTEA_ARRAY),
        (&first_probe, Type::INT4_ARRAY),
        (&last_probe, Type::INT4_ARRAY),
        (&first_scope, Type::INT4_ARRAY),
        (&last_scope, Type::INT4_ARRAY),
        (&probes.concat(), Type::INT8_ARRAY),
        (&scopes.concat(), Type::TEXT_ARRAY),
    ];
    Ok(client.query_typed(statement, &parameters).await?)
}

fn column<'a, T>(records: &[&'a Record], of: impl Fn(&'a Record) -> T) -> Vec<T> {
    records.iter().map(|record| of(record)).collect()
}

/// Where each list begins and ends in all of them together, counted from one.
fn places<T>(lists: &[&[T]]) -> (Vec<i32>, Vec<i32>) {
    let mut end = 0;
    let place = |list: &&[T]| {
        let first = end + 1;
        end += list.len() as i32;
        (first, end)
    };
    lists.iter().map(place).unzip()
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
