//! Reading the change feed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout_at;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::{ToSql, Type};

use super::kept::Session;
use super::timer::{Late, Timer};
use super::{Deadline, Origin, Snapshot, Store, read_transaction};
use crate::error::{Error, ErrorKind};

/// How many changed keys a read returns at most, four for a row of the log. More is a gap.
const MAX_KEYS: i32 = 40_000;

/// Up to where the feed was read: a snapshot of a database in its present life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    epoch: Arc<str>,
    incarnation: Arc<str>,
    pub(super) snapshot: Snapshot,
}

impl Position {
    pub(crate) fn of(origin: &Origin) -> Self {
        Self {
            epoch: origin.epoch.clone(),
            incarnation: origin.incarnation.clone(),
            snapshot: origin.snapshot.clone(),
        }
    }

    /// Whether that is the same life of the same database.
    pub(crate) fn is_of(&self, origin: &Origin) -> bool {
        self.epoch == origin.epoch && self.incarnation == origin.incarnation
    }

    /// Whether `later` can come after this in one life of a database.
    pub(crate) fn leads_to(&self, later: &Self) -> bool {
        self.epoch == later.epoch
            && self.incarnation == later.incarnation
            && self.snapshot.xmax() <= later.snapshot.xmax()
    }
}

/// What a read brought.
#[derive(Debug)]
pub(crate) struct FeedRead {
    pub(crate) position: Position,
    /// The keys that have changed since the position before; `None`: that cannot be said.
    pub(crate) changes: Option<Vec<i64>>,
}

/// What a read leaves for the next one.
#[derive(Default)]
pub(crate) struct FeedLine {
    timer: Timer,
}

impl Store {
    /// Reads on from a position; `None`: there is no good epoch.
    pub(crate) async fn read_feed(
        self: &Arc<Self>,
        line: &mut FeedLine,
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
        match line.timer.timeout_at(deadline.at, &mut reading).await {
            Ok((Ok(read), session)) => {
                self.put_by(session);
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
        let past = position.map(|position| position.snapshot.to_string());
        if self.is_read_committed() && session.has(&self.sql.feed_kept, &self.keeping).await {
            // a snapshot is digits, colons and commas
            let past = past
                .as_ref()
                .map_or("NULL".to_owned(), |p| format!("'{p}'"));
            let statement = self.sql.feed_kept.execute(&format!("{past}, {MAX_KEYS}"));
            match session.client().simple_query(&statement).await {
                Ok(messages) => return self.read_kept(&messages),
                Err(error) => session.refused(error, &self.keeping)?,
            }
        }
        let client = session.client();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&past, Type::TEXT), (&MAX_KEYS, Type::INT4)];
        let rows = if self.is_read_committed() {
            client.query_typed(&self.sql.feed, &parameters).await?
        } else {
            let transaction = read_transaction(client).await?;
            let rows = transaction.query_typed(&self.sql.feed, &parameters).await?;
            transaction.commit().await?;
            rows
        };
        let row = rows
            .first()
            .map(|row| row.try_get::<_, Option<Vec<Option<&str>>>>(0));
        row.transpose()?
            .flatten()
            .map(|fields| self.read_fields(&fields))
            .transpose()
    }

    fn read_kept(&self, messages: &[SimpleQueryMessage]) -> Result<Option<FeedRead>, Error> {
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        row.map(|row| {
            let fields = (0..row.len()).map(|column| row.try_get(column));
            self.read_fields(&fields.collect::<Result<Vec<_>, _>>()?)
        })
        .transpose()
    }

    fn read_fields(&self, fields: &[Option<&str>]) -> Result<FeedRead, Error> {
        let [
            Some(epoch),
            Some(incarnation),
            Some(snapshot),
            Some(read_committed),
            changes,
        ] = *fields
        else {
            return Err(unreadable());
        };
        self.read_committed
            .store(read_committed == "true", Ordering::Relaxed);
        Ok(FeedRead {
            position: Position {
                epoch: epoch.into(),
                incarnation: incarnation.into(),
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
