//! Asking for an entry.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, IsolationLevel, Row};

use super::{Origin, Store};
use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// What a lookup found.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// A fresh and valid entry.
    Found(Found),
    /// None: whoever fills it begins here.
    Missing(Origin),
    /// The epoch is missing or another database's, or this server is no primary.
    NoEpoch,
}

/// An entry as it was stored, checked against its checksum.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) head: Bytes,
    pub(crate) body: Bytes,
    pub(crate) probes: Vec<i64>,
    /// Where whoever replaces it begins.
    pub(crate) origin: Origin,
    /// Both as of the moment of the lookup, by the database's clock.
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
}

impl Store {
    pub(crate) async fn lookup(
        self: &Arc<Self>,
        key: Key,
        within: Duration,
    ) -> Result<Lookup, Error> {
        self.run(within, move |store, mut connection| async move {
            let rows = store
                .query_in_read_committed(connection.client(), key)
                .await?;
            let Some(row) = rows.first() else {
                return Ok(Lookup::NoEpoch);
            };
            store
                .read_committed
                .store(row.try_get("read_committed")?, Ordering::Relaxed);
            Ok(match found(row, key)? {
                Some(found) => Lookup::Found(found),
                None => Lookup::Missing(origin(row)?),
            })
        })
        .await
    }

    /// As a statement of its own where the default is READ COMMITTED; elsewhere in an explicit transaction: a
    /// SERIALIZABLE reader could make writers fail.
    async fn query_in_read_committed(
        &self,
        client: &mut Client,
        key: Key,
    ) -> Result<Vec<Row>, Error> {
        let keys = vec![key.as_bytes()];
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 1] =
            [(&keys, Type::BYTEA_ARRAY)];
        if self.is_read_committed() {
            return Ok(client.query_typed(&self.sql.lookup, &parameters).await?);
        }
        let transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::ReadCommitted)
            .read_only(true)
            .start()
            .await?;
        let rows = transaction
            .query_typed(&self.sql.lookup, &parameters)
            .await?;
        transaction.commit().await?;
        Ok(rows)
    }
}

fn origin(row: &Row) -> Result<Origin, Error> {
    let snapshot: &str = row.try_get("snapshot")?;
    Ok(Origin {
        epoch: row.try_get("epoch")?,
        incarnation: row.try_get("incarnation")?,
        at: row.try_get("at")?,
        snapshot: snapshot.parse().map_err(|()| {
            Error::new(
                ErrorKind::Database,
                format!("{snapshot:?} is not a snapshot"),
            )
        })?,
    })
}

/// `None` also for an entry that is damaged: it will be stored anew.
fn found(row: &Row, key: Key) -> Result<Option<Found>, Error> {
    let Some(head) = row.try_get::<_, Option<&[u8]>>("head")? else {
        return Ok(None);
    };
    let body: &[u8] = row.try_get("body")?;
    let probes: Vec<i64> = row.try_get("probes")?;
    let expected = checksum(key, row.try_get("filled_at")?, &probes, head, body);
    if row.try_get::<_, &[u8]>("checksum")? != expected {
        tracing::warn!(?key, "a stored answer is damaged and will be replaced");
        return Ok(None);
    }
    let seconds = |column| {
        Ok::<_, Error>(Duration::try_from_secs_f64(row.try_get(column)?).unwrap_or_default())
    };
    Ok(Some(Found {
        head: Bytes::copy_from_slice(head),
        body: Bytes::copy_from_slice(body),
        probes,
        origin: origin(row)?,
        age: seconds("age")?,
        ttl: seconds("ttl")?,
    }))
}

/// What is read back is checked before it is served: the answer, and what its validity is judged by. Half a
/// hash is enough against accidents.
pub(super) fn checksum(
    key: Key,
    snapshot: &str,
    probes: &[i64],
    head: &[u8],
    body: &[u8],
) -> [u8; 16] {
    let mut hash = blake3::Hasher::new();
    let probes: Vec<u8> = probes.iter().flat_map(|p| p.to_le_bytes()).collect();
    for part in [key.as_bytes(), snapshot.as_bytes(), &probes, head, body] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    half
}
