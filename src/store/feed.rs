//! Reading the change feed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout_at;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::kept::{Life, Session, Which};
use super::timer::{Late, Timer};
use super::{Deadline, Origin, Snapshot, Store, read};
use crate::error::{Error, ErrorKind};

/// How many changed keys a read returns at most, four for a row of the log. More is a gap.
const MAX_KEYS: i32 = 40_000;

/// Up to where the feed was read: a snapshot of a database in its present life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    life: Life,
    pub(super) snapshot: Snapshot,
}

impl Position {
    pub(crate) fn of(origin: &Origin) -> Self {
        Self {
            life: Life::of(origin),
            snapshot: origin.snapshot.clone(),
        }
    }

    /// Whether that is the same life of the same database.
    pub(crate) fn is_of(&self, origin: &Origin) -> bool {
        self.life.is(Some(&origin.epoch), Some(&origin.incarnation))
    }

    pub(crate) fn is_of_the_life_of(&self, other: &Self) -> bool {
        self.life == other.life
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether `later` can come after this in one life of a database.
    pub(crate) fn leads_to(&self, later: &Self) -> bool {
        self.life == later.life && self.snapshot.xmax() <= later.snapshot.xmax()
    }
}

/// What a read brought.
#[derive(Debug)]
pub(crate) struct FeedRead {
    pub(crate) position: Position,
    /// The keys that have changed since the position before; `None`: that cannot be said.
    pub(crate) changes: Option<Vec<i64>>,
}

impl Store {
    /// Reads on from a position; `None`: there is no good epoch.
    pub(crate) async fn read_feed(
        self: &Arc<Self>,
        timer: &mut Timer,
        position: Option<&Position>,
        within: Duration,
    ) -> Result<Option<FeedRead>, Error> {
        let deadline = Deadline::after(within);
        // one at a time: reads that are given up while the database hangs would take one connection after the other
        let permit = timeout_at(deadline.at, self.feed_permit.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| deadline.no_answer())?;
        let mut session = self.session(deadline).await?;
        let store = self.clone();
        let position = position.cloned();
        let mut reading = Box::pin(async move {
            let read = store.ask_feed(&mut session, position.as_ref()).await;
            drop(permit);
            (read, session)
        });
        match timer.timeout_at(deadline.at, &mut reading).await {
            Ok((Ok(read), session)) => {
                self.put_by_prepared(session);
                Ok(read)
            }
            Ok((Err(error), _)) => Err(error),
            Err(Late) => {
                // a connection with a statement under way is never given back
                tokio::spawn(reading);
                Err(deadline.no_answer())
            }
        }
    }

    async fn ask_feed(
        &self,
        session: &mut Session,
        position: Option<&Position>,
    ) -> Result<Option<FeedRead>, Error> {
        if let Some(position) = position.filter(|_| self.is_read_committed()) {
            if let Some(read) = self.ask_kept_feed(session, position).await? {
                return Ok(Some(read));
            }
        }
        // boxed: seldom needed, and what is allocated for each read stays small
        Box::pin(self.ask_plain_feed(session, position)).await
    }

    async fn ask_plain_feed(
        &self,
        session: &mut Session,
        position: Option<&Position>,
    ) -> Result<Option<FeedRead>, Error> {
        let past = position.map(|position| position.snapshot.to_string());
        let client = session.client();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&past, Type::TEXT), (&MAX_KEYS, Type::INT4)];
        let rows = if self.is_read_committed() {
            client.query_typed(&self.sql.feed, &parameters).await?
        } else {
            read(client, &self.sql.feed, &parameters).await?
        };
        let row = rows
            .first()
            .map(|row| row.try_get::<_, Option<Vec<Option<&str>>>>(0));
        let Some(fields) = row.transpose()?.flatten() else {
            return Ok(None);
        };
        let [
            Some(epoch),
            Some(incarnation),
            Some(snapshot),
            Some(read_committed),
            changes,
        ] = fields[..]
        else {
            return Err(unreadable());
        };
        let life = Life {
            epoch: epoch.into(),
            incarnation: incarnation.into(),
        };
        self.read(life, snapshot, read_committed, changes).map(Some)
    }

    /// The same by a statement that the session keeps; `None`: it keeps none, or this life of the database is over.
    async fn ask_kept_feed(
        &self,
        session: &mut Session,
        position: &Position,
    ) -> Result<Option<FeedRead>, Error> {
        let Position { life, snapshot } = position;
        let (which, sql) = (Which::Feed, &self.sql);
        let Some(statement) = session.kept(which, sql, life) else {
            return Ok(None);
        };
        let read = session
            .client()
            .query(&statement, &[snapshot, &MAX_KEYS])
            .await;
        let rows = match read {
            Ok(rows) => rows,
            Err(error) => {
                session.is_refused(which, sql, error.into())?;
                return Ok(None);
            }
        };
        let is_of_life = |row: &Row| {
            let (epoch, incarnation) = (row.try_get(3), row.try_get(4));
            life.is(epoch.ok(), incarnation.ok())
        };
        let Some(row) = rows.first() else {
            session.is_over(which);
            return Ok(None);
        };
        if !is_of_life(row) {
            session.is_strange(which, sql);
            return Ok(None);
        }
        session.is_good(which);
        let (Some(snapshot), Some(read_committed)) = (row.try_get(0)?, row.try_get(1)?) else {
            return Err(unreadable());
        };
        self.read(life.clone(), snapshot, read_committed, row.try_get(2)?)
            .map(Some)
    }

    fn read(
        &self,
        life: Life,
        snapshot: &str,
        read_committed: &str,
        changes: Option<&str>,
    ) -> Result<FeedRead, Error> {
        self.read_committed
            .store(read_committed == "true", Ordering::Relaxed);
        Ok(FeedRead {
            position: Position {
                life,
                snapshot: snapshot.parse().map_err(|()| unreadable())?,
            },
            changes: changes.map(keys).transpose()?,
        })
    }
}

fn keys(text: &str) -> Result<Vec<i64>, Error> {
    let keys = text
        .split(',')
        .filter(|key| !key.is_empty())
        .map(str::parse);
    keys.collect::<Result<_, _>>().map_err(|_| unreadable())
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Database, "the feed of changes cannot be read")
}
