//! The statement that asks for entries, and what it answers.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use http::HeaderName;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{GenericClient, Row, RowStream};

use super::kept::{Life, Session, Which};
use super::{Origin, Snapshot, Store, StoredBody, read_transaction};
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
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    Answer(Found),
    /// The answers for this URI vary with these fields, and each has a key of its own.
    Varies(Vec<HeaderName>),
}

/// An answer as it was stored, checked against its checksum.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) head: Bytes,
    pub(crate) body: StoredBody,
    pub(crate) probes: Vec<i64>,
    /// Whether nothing that it depends on has changed.
    pub(crate) valid: bool,
    /// How old it is, and how long it is still fresh or how long it has been stale, as of the moment of the
    /// lookup, by the database's clock.
    pub(crate) age: Duration,
    pub(crate) fresh_for: Duration,
    pub(crate) stale_for: Duration,
    /// Tells this entry from one that replaces it.
    pub(crate) checksum: Checksum,
    /// How long its handler took.
    pub(crate) cost: Duration,
    /// Taken before its handler was called.
    pub(crate) snapshot: Option<Snapshot>,
}

/// The places of the columns of `pgcache.lookup`: to find them by name, for every row, costs as much as to read them.
mod column {
    pub(super) const EPOCH: usize = 0;
    pub(super) const INCARNATION: usize = 1;
    pub(super) const SNAPSHOT: usize = 2;
    pub(super) const AT: usize = 3;
    pub(super) const READ_COMMITTED: usize = 4;
    pub(super) const KEY: usize = 5;
    pub(super) const VALID: usize = 6;
    pub(super) const REVALIDATABLE: usize = 7;
    pub(super) const VARY: usize = 8;
    pub(super) const CHECKSUM: usize = 9;
    pub(super) const HEAD: usize = 10;
    pub(super) const BODY: usize = 11;
    pub(super) const PROBES: usize = 12;
    pub(super) const FILLED_AT: usize = 13;
    pub(super) const AGE: usize = 14;
    pub(super) const TTL: usize = 15;
    pub(super) const COST: usize = 16;
    pub(super) const UNPACKED: usize = 17;
}

/// What one statement asks for.
pub(super) struct Asking {
    pub(super) keys: Vec<Key>,
    /// Also entries that are invalid and have no validator.
    pub(super) invalid_too: bool,
}

impl Asking {
    fn keys(&self) -> Vec<&[u8]> {
        self.keys.iter().map(Key::as_bytes).collect()
    }

    async fn send(
        &self,
        client: &impl GenericClient,
        statement: &str,
    ) -> Result<RowStream, tokio_postgres::Error> {
        let keys = self.keys();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&keys, Type::BYTEA_ARRAY), (&self.invalid_too, Type::BOOL)];
        client.query_typed_raw(statement, parameters).await
    }
}

/// Gets the rows as they come.
pub(super) type Rows<'a> = &'a mut (dyn FnMut(&Row) -> Result<(), Error> + Send);

impl Store {
    /// As a statement of its own where the default is READ COMMITTED; elsewhere in an explicit transaction.
    pub(super) async fn ask(
        &self,
        session: &mut Session,
        asking: &Asking,
        rows: Rows<'_>,
    ) -> Result<(), Error> {
        if !self.is_read_committed() {
            let transaction = read_transaction(session.client()).await?;
            let stream = asking.send(&transaction, &self.sql.lookup).await?;
            self.read_to_end(stream, rows).await?;
            return Ok(transaction.commit().await?);
        }
        if self.ask_kept_lookup(session, asking, rows).await? {
            return Ok(());
        }
        let stream = asking.send(&*session.client(), &self.sql.lookup).await?;
        let mut life = None;
        self.read_to_end(stream, &mut |row| {
            if life.is_none() {
                life = Some(Life::of(&origin(row)?));
            }
            rows(row)
        })
        .await?;
        session.keeps.life = life;
        Ok(())
    }

    /// By a statement that the session keeps. Returns false if there is no answer: it keeps none, or this life of the database
    /// is over, or it was planned anew. Of partitions none is kept: it would look into all of them.
    async fn ask_kept_lookup(
        &self,
        session: &mut Session,
        asking: &Asking,
        rows: Rows<'_>,
    ) -> Result<bool, Error> {
        let Some(life) = session.keeps.life.clone() else {
            return Ok(false);
        };
        if self.is_partitioned.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let which: Which = |keeps| &mut keeps.lookup;
        let kept = &self.sql.lookup_kept;
        let no_keys: [&[u8]; 0] = [];
        let trial = &[&&no_keys[..] as &(dyn ToSql + Sync), &false];
        let Some(statement) = session.kept(which, kept, &life, trial).await else {
            return Ok(false);
        };
        let keys = asking.keys();
        let parameters: [&(dyn ToSql + Sync); 2] = [&keys, &asking.invalid_too];
        let sent = session.client().query_raw(&statement, parameters).await;
        let mut has_answered = false;
        let read = match sent {
            Ok(stream) => {
                let mut noted = |row: &Row| {
                    has_answered = true;
                    rows(row)
                };
                self.read_to_end(stream, &mut noted).await
            }
            Err(error) => Err(error.into()),
        };
        match read {
            Ok(()) if has_answered => session.is_good(which),
            Ok(()) => session.is_over(which, kept),
            Err(error) if has_answered => return Err(error),
            Err(error) => session.is_refused(which, kept, error)?,
        }
        Ok(has_answered)
    }

    /// To the end even if something is wrong with a row: the connection is for others after this.
    async fn read_to_end(&self, stream: RowStream, rows: Rows<'_>) -> Result<(), Error> {
        let mut stream = pin!(stream);
        let mut outcome = Ok(());
        while let Some(row) = stream.try_next().await? {
            if outcome.is_ok() {
                outcome = self.note_isolation(&row).and_then(|()| rows(&row));
            }
        }
        outcome
    }

    pub(super) fn note_isolation(&self, row: &Row) -> Result<(), Error> {
        let read_committed = row.try_get(column::READ_COMMITTED)?;
        self.read_committed.store(read_committed, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether Postgres may have refused a batch because of one lookup in it (a damaged row), or because it was too
/// much at once (memory, `statement_timeout`).
pub(super) fn may_be_about_one(error: &Error) -> bool {
    let classes = ["XX", "53", "54", "57014"];
    let state = error.sql_state().map(SqlState::code);
    state.is_some_and(|state| classes.iter().any(|class| state.starts_with(class)))
}

pub(super) fn origin(row: &Row) -> Result<Origin, Error> {
    let snapshot: &str = row.try_get(column::SNAPSHOT)?;
    Ok(Origin {
        epoch: row.try_get::<_, &str>(column::EPOCH)?.into(),
        incarnation: row.try_get::<_, &str>(column::INCARNATION)?.into(),
        at: row.try_get(column::AT)?,
        snapshot: snapshot.parse().map_err(|()| {
            Error::new(
                ErrorKind::Database,
                format!("{snapshot:?} is not a snapshot"),
            )
        })?,
    })
}

/// The key of a row, whether only those get it who want invalid entries too, and what stands there. `None`: the
/// row says only that there is nothing.
pub(super) fn read(row: &Row) -> Result<Option<(Key, bool, Option<Stored>)>, Error> {
    let Some(key) = row
        .try_get::<_, Option<&[u8]>>(column::KEY)?
        .and_then(Key::from_bytes)
    else {
        return Ok(None);
    };
    let valid: bool = row.try_get(column::VALID)?;
    let only_as_invalid = !valid && !row.try_get::<_, bool>(column::REVALIDATABLE)?;
    Ok(Some((key, only_as_invalid, stored(row, key, valid)?)))
}

/// `None` for an entry that is damaged, and for a marker that a `clear` has made old: both are stored anew.
fn stored(row: &Row, key: Key, valid: bool) -> Result<Option<Stored>, Error> {
    if let Some(vary) = row.try_get::<_, Option<Vec<&str>>>(column::VARY)? {
        let fields: Result<_, _> = vary.into_iter().map(HeaderName::try_from).collect();
        return Ok(fields.ok().filter(|_| valid).map(Stored::Varies));
    }
    let (head, body): (&[u8], &[u8]) = (row.try_get(column::HEAD)?, row.try_get(column::BODY)?);
    let probes: Vec<i64> = row.try_get(column::PROBES)?;
    let filled_at: &str = row.try_get(column::FILLED_AT)?;
    let unpacked: Option<i32> = row.try_get(column::UNPACKED)?;
    let expected = checksum(key, filled_at, &probes, head, body, unpacked);
    if row.try_get::<_, &[u8]>(column::CHECKSUM)? != expected {
        tracing::warn!(?key, "a stored answer is damaged and will be replaced");
        return Ok(None);
    }
    let ttl: f64 = row.try_get(column::TTL)?;
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    // one allocation for both
    let mut head_and_body = BytesMut::with_capacity(head.len() + body.len());
    head_and_body.extend_from_slice(head);
    head_and_body.extend_from_slice(body);
    let head = head_and_body.split_to(head.len()).freeze();
    Ok(Some(Stored::Answer(Found {
        head,
        body: StoredBody {
            bytes: head_and_body.freeze(),
            unpacked,
        },
        probes,
        valid,
        age: seconds(row.try_get(column::AGE)?),
        fresh_for: seconds(ttl),
        stale_for: seconds(-ttl),
        checksum: expected,
        cost: seconds(row.try_get(column::COST)?),
        snapshot: filled_at.parse().ok(),
    })))
}

/// Half a hash is enough against accidents.
pub(crate) type Checksum = [u8; 16];

/// What is read back is checked before it is served: the answer, and what its validity is judged by.
pub(super) fn checksum(
    key: Key,
    snapshot: &str,
    probes: &[i64],
    head: &[u8],
    body: &[u8],
    unpacked: Option<i32>,
) -> Checksum {
    let mut hash = blake3::Hasher::new();
    hash_part(&mut hash, key.as_bytes());
    hash_part(&mut hash, snapshot.as_bytes());
    hash.update(&(8 * probes.len() as u64).to_le_bytes());
    for probe in probes {
        hash.update(&probe.to_le_bytes());
    }
    hash_part(&mut hash, head);
    hash_part(&mut hash, body);
    // nothing follows the body of one that is stored as it is
    if let Some(length) = unpacked {
        hash.update(&length.to_le_bytes());
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    half
}

/// With its length, so that no two ways to divide the same bytes have one hash.
fn hash_part(hash: &mut blake3::Hasher, part: &[u8]) {
    hash.update(&(part.len() as u64).to_le_bytes()).update(part);
}
