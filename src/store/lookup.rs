//! Asking for an entry.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, IsolationLevel, Row};

use super::{Origin, Store};
use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// What a lookup found.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// What there is, perhaps nothing. Whoever fills or replaces something begins at the origin.
    Rows {
        origin: Origin,
        stored: Vec<(Key, Stored)>,
    },
    /// The epoch is missing or another database's, or this server is no primary.
    NoEpoch,
}

/// What stands under a key.
#[derive(Debug)]
pub(crate) enum Stored {
    Answer(Found),
    /// The answers for this URI vary with these fields, and each has a key of its own.
    Varies(Vec<HeaderName>),
}

/// An answer as it was stored, checked against its checksum.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) head: Bytes,
    pub(crate) body: Bytes,
    pub(crate) probes: Vec<i64>,
    /// Whether nothing that it depends on has changed.
    pub(crate) valid: bool,
    /// How old it is, and how long it is still fresh or how long it has been stale, as of the moment of the
    /// lookup, by the database's clock.
    pub(crate) age: Duration,
    pub(crate) fresh_for: Duration,
    pub(crate) stale_for: Duration,
    /// Tells this entry from one that replaces it.
    pub(crate) checksum: Vec<u8>,
}

impl Store {
    /// `invalid_too`: also entries that are invalid and have no validator.
    pub(crate) async fn lookup(
        self: &Arc<Self>,
        keys: Vec<Key>,
        invalid_too: bool,
        within: Duration,
    ) -> Result<Lookup, Error> {
        self.run(within, move |store, mut connection| async move {
            let rows = store
                .query_in_read_committed(connection.client(), &keys, invalid_too)
                .await?;
            let Some(row) = rows.first() else {
                return Ok(Lookup::NoEpoch);
            };
            store
                .read_committed
                .store(row.try_get("read_committed")?, Ordering::Relaxed);
            let mut stored = Vec::new();
            for row in &rows {
                stored.extend(read(row)?);
            }
            Ok(Lookup::Rows {
                origin: origin(row)?,
                stored,
            })
        })
        .await
    }

    /// As a statement of its own where the default is READ COMMITTED; elsewhere in an explicit transaction: a
    /// SERIALIZABLE reader could make writers fail.
    async fn query_in_read_committed(
        &self,
        client: &mut Client,
        keys: &[Key],
        invalid_too: bool,
    ) -> Result<Vec<Row>, Error> {
        let keys: Vec<&[u8]> = keys.iter().map(Key::as_bytes).collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&keys, Type::BYTEA_ARRAY), (&invalid_too, Type::BOOL)];
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

/// `None` also for an entry that is damaged, and for a marker that a `clear` has made old: both are stored anew.
fn read(row: &Row) -> Result<Option<(Key, Stored)>, Error> {
    let Some(key) = row
        .try_get::<_, Option<&[u8]>>("key")?
        .and_then(Key::from_bytes)
    else {
        return Ok(None);
    };
    let valid: bool = row.try_get("valid")?;
    if let Some(vary) = row.try_get::<_, Option<Vec<&str>>>("vary")? {
        let fields: Result<_, _> = vary.into_iter().map(HeaderName::try_from).collect();
        return Ok(fields
            .ok()
            .filter(|_| valid)
            .map(|fields| (key, Stored::Varies(fields))));
    }
    let (head, body): (&[u8], &[u8]) = (row.try_get("head")?, row.try_get("body")?);
    let probes: Vec<i64> = row.try_get("probes")?;
    let expected = checksum(key, row.try_get("filled_at")?, &probes, head, body);
    if row.try_get::<_, &[u8]>("checksum")? != expected {
        tracing::warn!(?key, "a stored answer is damaged and will be replaced");
        return Ok(None);
    }
    let ttl: f64 = row.try_get("ttl")?;
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let found = Found {
        head: Bytes::copy_from_slice(head),
        body: Bytes::copy_from_slice(body),
        probes,
        valid,
        age: seconds(row.try_get("age")?),
        fresh_for: seconds(ttl),
        stale_for: seconds(-ttl),
        checksum: expected.to_vec(),
    };
    Ok(Some((key, Stored::Answer(found))))
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
