//! The statements that ask for entries, and what they answer.

use std::error::Error as StdError;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::HeaderName;
use smallvec::SmallVec;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type, accepts};
use tokio_postgres::{GenericClient, Row, RowStream};

use super::checksum::{Checksum, checksum};
use super::kept::{Life, Session, Which};
use super::meta::Meta;
use super::{Origin, Snapshot, Store, StoredBody, read_transaction};
use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// What a lookup found.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// What there is, perhaps nothing. Whoever fills or replaces something begins at the origin.
    Rows { origin: Arc<Origin>, stored: Keyed },
    /// The epoch is missing or another database's, or this server is no primary.
    NoEpoch,
}

/// What stands under the keys of one lookup.
pub(crate) type Keyed = SmallVec<[(Key, Stored); 1]>;

/// What one lookup asks for: a URI, a variant of it, a part of it.
pub(crate) type Keys = SmallVec<[Key; 2]>;

/// What a lookup found, as it came.
#[derive(Debug)]
pub(super) enum Brought {
    Rows { origin: Arc<Origin>, rows: Fetched },
    NoEpoch,
}

/// The rows of one lookup.
pub(super) type Fetched = SmallVec<[(Key, Line); 1]>;

impl Brought {
    /// By whoever asked: the lane that has brought it has others to ask for.
    pub(super) fn read(self) -> Result<Lookup, Error> {
        let Self::Rows { origin, rows } = self else {
            return Ok(Lookup::NoEpoch);
        };
        let mut stored = Keyed::new();
        for (key, line) in rows {
            stored.extend(line.read(key, origin.at)?.map(|stored| (key, stored)));
        }
        Ok(Lookup::Rows { origin, stored })
    }
}

/// A row, before it is read.
#[derive(Debug)]
pub(super) enum Line {
    /// Of one lookup.
    Own(Row),
    /// Of several.
    Shared(Arc<Shared>),
}

impl Line {
    fn read(self, key: Key, at: f64) -> Result<Option<Stored>, Error> {
        match self {
            Self::Own(row) => read(&row, key, at),
            Self::Shared(shared) => shared.read(key, at),
        }
    }
}

/// A row, and what stands in it once the first of those who asked has read it.
#[derive(Debug)]
pub(super) struct Shared {
    row: Row,
    stored: OnceLock<Result<Option<Stored>, Error>>,
}

impl Shared {
    pub(super) fn new(row: Row) -> Arc<Self> {
        Arc::new(Self {
            row,
            stored: OnceLock::new(),
        })
    }

    fn read(&self, key: Key, at: f64) -> Result<Option<Stored>, Error> {
        let stored = || read(&self.row, key, at);
        self.stored.get_or_init(stored).clone()
    }
}

/// What stands under a key.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    Answer(Box<Found>),
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
    pub(crate) snapshot: Snapshot,
}

/// The places of the columns of `pgcache.lookup`: to find them by name, for every row, costs as much as to read them.
mod column {
    pub(super) const ORIGIN: usize = 0;
    pub(super) const KEY: usize = 1;
    pub(super) const VALID: usize = 2;
    pub(super) const VARY: usize = 3;
    pub(super) const HEAD: usize = 4;
    pub(super) const BODY: usize = 5;
    pub(super) const META: usize = 6;
    // not of the statement that does not search
    pub(super) const REVALIDATABLE: usize = 7;
    pub(super) const SNAPSHOT: usize = 8;
    pub(super) const PROBES: usize = 9;
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
pub(super) type Rows<'a> = &'a mut (dyn FnMut(Row) -> Result<(), Error> + Send);

impl Store {
    /// As a statement of its own where the default is READ COMMITTED, and perhaps a second one: by what the session keeps, else
    /// plainly. Elsewhere in an explicit transaction.
    pub(super) async fn ask(
        &self,
        session: &mut Session,
        asking: &Asking,
        rows: Rows<'_>,
    ) -> Result<(), Error> {
        if !self.is_read_committed() {
            let transaction = read_transaction(session.client()).await?;
            let stream = asking.send(&transaction, &self.sql.lookup).await?;
            self.read_plain(stream, rows).await?;
            return Ok(transaction.commit().await?);
        }
        let rest = self.ask_unsearched(session, asking, rows).await?;
        let asking = rest.as_ref().unwrap_or(asking);
        if asking.keys.is_empty() || self.ask_kept(session, Which::Lookup, asking, rows).await? {
            return Ok(());
        }
        let stream = asking.send(&*session.client(), &self.sql.lookup).await?;
        session.keeps.life = self.read_plain(stream, rows).await?;
        Ok(())
    }

    /// What a plain statement answers. Returns in which life.
    async fn read_plain(&self, stream: RowStream, rows: Rows<'_>) -> Result<Option<Life>, Error> {
        let mut life = None;
        read_to_end(stream, &mut |row| {
            if life.is_none() {
                self.note_isolation(&row)?;
                life = Some(words(&row)?.life());
            }
            rows(row)
        })
        .await?;
        Ok(life)
    }

    /// By a statement that the session keeps, and that searches for no changes: what was stored before the last one, of anything,
    /// it cannot judge. Returns what has to be asked for in another way; `None`: everything.
    async fn ask_unsearched(
        &self,
        session: &mut Session,
        asking: &Asking,
        rows: Rows<'_>,
    ) -> Result<Option<Asking>, Error> {
        if self.lull.has_ended() {
            return Ok(None);
        }
        let mut rest = Vec::new();
        let mut judged = |row: Row| {
            if row.try_get::<_, Option<bool>>(column::VALID)? == Some(false) {
                rest.extend(key(&row)?);
                return Ok(());
            }
            rows(row)
        };
        if !self
            .ask_kept(session, Which::Unsearched, asking, &mut judged)
            .await?
        {
            return Ok(None);
        }
        if !rest.is_empty() {
            self.lull.end();
        }
        Ok(Some(Asking {
            keys: rest,
            invalid_too: asking.invalid_too,
        }))
    }

    /// By a statement that the session keeps. Returns false if there is no answer: it keeps none, or this life of the database
    /// is over, or it was planned anew. Of partitions none is kept: it would look into all of them.
    async fn ask_kept(
        &self,
        session: &mut Session,
        which: Which,
        asking: &Asking,
        rows: Rows<'_>,
    ) -> Result<bool, Error> {
        if self.is_partitioned.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(life) = session.keeps.life.clone() else {
            return Ok(false);
        };
        let Some(statement) = session.kept(which, &self.sql, &life) else {
            return Ok(false);
        };
        let keys = asking.keys();
        let parameters: [&(dyn ToSql + Sync); 2] = [&keys, &asking.invalid_too];
        let mut answered = None;
        let read = match session.client().query_raw(&statement, parameters).await {
            Ok(stream) => {
                let mut of_life = |row: Row| {
                    if answered.is_none() {
                        let is_it =
                            |words: Words<'_>| life.is(Some(words.epoch), Some(words.incarnation));
                        answered = Some(words(&row).is_ok_and(is_it));
                        if answered == Some(true) {
                            self.note_isolation(&row)?;
                        }
                    }
                    if answered == Some(true) {
                        rows(row)?;
                    }
                    Ok(())
                };
                read_to_end(stream, &mut of_life).await
            }
            Err(error) => Err(error.into()),
        };
        let has_answered = answered == Some(true);
        match read {
            Ok(()) if has_answered => session.is_good(which),
            Ok(()) if answered.is_none() => session.is_over(which),
            Ok(()) => session.is_strange(which, &self.sql),
            Err(error) if has_answered => return Err(error),
            Err(error) => session.is_refused(which, &self.sql, error)?,
        }
        Ok(has_answered)
    }

    fn note_isolation(&self, row: &Row) -> Result<(), Error> {
        if let Some(is) = words(row)?.is_read_committed {
            self.read_committed.store(is, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// To the end even if something is wrong with a row: the connection is for others after this.
async fn read_to_end(stream: RowStream, rows: Rows<'_>) -> Result<(), Error> {
    let mut stream = pin!(stream);
    let mut outcome = Ok(());
    while let Some(row) = stream.try_next().await? {
        if outcome.is_ok() {
            outcome = rows(row);
        }
    }
    outcome
}

/// A time in which what is asked for was stored after the last change of anything, as far as statements tell that do not search
/// for changes.
#[derive(Debug)]
pub(super) struct Lull {
    /// How many statements are still to search after one that did not do.
    to_search: AtomicU32,
    began: Instant,
    /// When the next one is to search in any case, in milliseconds since it began: those tell which isolation is the default.
    telling: AtomicU64,
}

impl Lull {
    /// After how many statements one that does not search is tried again.
    const PAUSE: u32 = 16;

    const TELLING: Duration = Duration::from_secs(1);

    pub(super) fn new() -> Self {
        Self {
            to_search: AtomicU32::new(0),
            began: Instant::now(),
            telling: AtomicU64::new(0),
        }
    }

    /// To be asked once for each statement.
    fn has_ended(&self) -> bool {
        let passed = |left: u32| left.checked_sub(1);
        let (set, fetched) = (Ordering::Relaxed, Ordering::Relaxed);
        self.is_to_tell() || self.to_search.fetch_update(set, fetched, passed).is_ok()
    }

    fn is_to_tell(&self) -> bool {
        let now = self.began.elapsed();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let is_due = millis(now) >= self.telling.load(Ordering::Relaxed);
        if is_due {
            self.telling
                .store(millis(now + Self::TELLING), Ordering::Relaxed);
        }
        is_due
    }

    fn end(&self) {
        self.to_search.store(Self::PAUSE, Ordering::Relaxed);
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
    let words = words(row)?;
    let at: u64 = words.at.parse().map_err(|_| unreadable())?;
    Ok(Origin {
        epoch: words.epoch.into(),
        incarnation: words.incarnation.into(),
        at: at as f64 / 1e6,
        snapshot: words.snapshot.parse().map_err(|()| unreadable())?,
    })
}

/// Of `pgcache.origin`.
struct Words<'a> {
    epoch: &'a str,
    incarnation: &'a str,
    snapshot: &'a str,
    at: &'a str,
    /// Whether statements are READ COMMITTED by default; `None`: the statement does not say.
    is_read_committed: Option<bool>,
}

impl Words<'_> {
    fn life(&self) -> Life {
        Life {
            epoch: self.epoch.into(),
            incarnation: self.incarnation.into(),
        }
    }
}

fn words(row: &Row) -> Result<Words<'_>, Error> {
    let mut words = row.try_get::<_, &str>(column::ORIGIN)?.split(' ');
    let mut word = || words.next().ok_or_else(unreadable);
    Ok(Words {
        epoch: word()?,
        incarnation: word()?,
        snapshot: word()?,
        at: word()?,
        is_read_committed: words.next().map(|word| word == "t"),
    })
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Database, "what a lookup brings cannot be read")
}

/// `None`: the row says only that there is nothing.
pub(super) fn key(row: &Row) -> Result<Option<Key>, Error> {
    let key = row.try_get::<_, Option<&[u8]>>(column::KEY)?;
    Ok(key.and_then(Key::from_bytes))
}

/// Whether only those get a row who want invalid entries too.
pub(super) fn is_only_as_invalid(row: &Row) -> Result<bool, Error> {
    let is = |column| row.try_get::<_, bool>(column);
    Ok(!is(column::VALID)? && !is(column::REVALIDATABLE)?)
}

/// What stands under a key, as of `at`, in seconds. `None` for an entry that is damaged, and for a marker that a `clear` has made
/// old: both are stored anew.
fn read(row: &Row, key: Key, at: f64) -> Result<Option<Stored>, Error> {
    let valid: bool = row.try_get(column::VALID)?;
    if let Some(vary) = row.try_get::<_, Option<Vec<&str>>>(column::VARY)? {
        let fields: Result<_, _> = vary.into_iter().map(HeaderName::try_from).collect();
        return Ok(fields.ok().filter(|_| valid).map(Stored::Varies));
    }
    let (head, body): (&[u8], &[u8]) = (row.try_get(column::HEAD)?, row.try_get(column::BODY)?);
    let meta = Meta::read(row.try_get(column::META)?);
    let expected = |m: &Meta<'_>| checksum(key, &m.snapshot, &m.probes, head, body, m.unpacked);
    let checked = meta
        .map(|meta| (expected(&meta), meta))
        .filter(|(expected, meta)| meta.checksum == expected && is_judged_by(row, meta));
    let Some((checksum, meta)) = checked else {
        tracing::warn!(?key, "a stored answer is damaged and will be replaced");
        return Ok(None);
    };
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Ok(Some(Stored::Answer(Box::new(Found {
        head: Bytes::copy_from_slice(head),
        body: StoredBody {
            bytes: Bytes::copy_from_slice(body),
            unpacked: meta.unpacked,
        },
        probes: meta.probes,
        valid,
        age: seconds(at - meta.born_at),
        fresh_for: seconds(meta.expires_at - at),
        stale_for: seconds(at - meta.expires_at),
        checksum,
        cost: seconds(meta.cost),
        snapshot: meta.snapshot,
    }))))
}

/// Whether the statement has judged by what the checksum covers: without a search by that itself, else by columns, which it sends.
fn is_judged_by(row: &Row, meta: &Meta<'_>) -> bool {
    if row.len() == column::REVALIDATABLE {
        return true;
    }
    let columns = [column::SNAPSHOT, column::PROBES].map(|column| row.try_get(column));
    let [Ok(Sent(snapshot)), Ok(Sent(probes))] = columns else {
        return false;
    };
    meta.judged_by.strip_prefix(snapshot) == Some(probes)
}

/// A value as it is sent.
struct Sent<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Sent<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(raw))
    }

    accepts!(PG_SNAPSHOT, INT8_ARRAY);
}
