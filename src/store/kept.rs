//! Statements that a session keeps, so that Postgres does not parse and plan them each time: for the smallest ones that
//! costs more than to run them.
//!
//! 1. They are a matter of speed and nothing else. Whatever the database has against a kept statement, the plain one is sent
//!    instead, and what that says counts.
//! 2. A kept statement is for one *life* of a database, its epoch and incarnation, and is prepared only in a session of that
//!    database: where it exists, the plain statement's tests of who the database is need not be repeated. The server of a
//!    session cannot become another one.
//! 3. Its name is a hash of its text, which says for which life it is. Under one name there is one statement, whoever prepared
//!    it: behind a pooler a session may be anybody's.
//! 4. A connection that is only borrowed for a moment is not worth it: the first [`PLAINLY`] statements are sent as they are.
//! 5. Where a statement is gone that was prepared in the same borrowing, something gives the session away between two
//!    transactions, as PgBouncer does. That would happen again and again, with an error in the server's log each time. So
//!    after [`MOST_REFUSALS`] of whatever kind nothing is prepared any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Connection, Store};
use crate::error::Error;

/// How many statements are sent in a borrowing before one is prepared.
const PLAINLY: u32 = 8;

/// How many errors that plain statements do not have are put up with.
const MOST_REFUSALS: u32 = 3;

/// One life of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(super) epoch: Arc<str>,
    /// An id, and after a slash when the server was started.
    pub(super) incarnation: Arc<str>,
}

impl Life {
    /// Both ids, as they can be written into a statement.
    fn ids(&self) -> Option<(&str, &str)> {
        let incarnation = self.incarnation.split('/').next()?;
        let is_plain = |id: &str| id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        (is_plain(&self.epoch) && is_plain(incarnation)).then_some((&self.epoch, incarnation))
    }
}

/// How often the database had something against a kept statement.
#[derive(Debug, Default)]
pub(super) struct Refusals(AtomicU32);

impl Refusals {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn are_too_many(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= MOST_REFUSALS
    }
}

/// A connection that is in use for one statement after another.
pub(super) struct Session {
    connection: Connection,
    /// How many were sent without one that is kept.
    plainly: u32,
    /// What is kept, and for which life.
    kept: Option<(Life, Arc<str>)>,
}

impl Session {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            plainly: 0,
            kept: None,
        }
    }

    pub(super) fn client(&mut self) -> &mut Client {
        self.connection.client()
    }

    /// The name of the kept statement that reads the feed, if there is one for this life.
    pub(super) async fn kept_feed(&mut self, store: &Store, life: &Life) -> Option<Arc<str>> {
        if let Some((of, name)) = &self.kept {
            if of == life {
                return Some(name.clone());
            }
            self.forget();
        }
        if store.refusals.are_too_many() {
            return None;
        }
        self.plainly += 1;
        if self.plainly < PLAINLY {
            return None;
        }
        self.plainly = 0;
        let name: Arc<str> = self.prepare_feed(store, life).await?.into();
        self.kept = Some((life.clone(), name.clone()));
        Some(name)
    }

    /// In one transaction, so that it is one session that is asked who it is and that keeps the statement.
    async fn prepare_feed(&mut self, store: &Store, life: &Life) -> Option<String> {
        let (epoch, incarnation) = life.ids()?;
        let in_this_life = |sql: &str| {
            sql.replace("/*epoch*/", epoch)
                .replace("/*incarnation*/", incarnation)
        };
        let text = in_this_life(&store.sql.feed_kept);
        let hash = blake3::hash(text.as_bytes()).to_hex();
        let name = format!("pgcache_{}", &hash.as_str()[..32]);
        let prepare = in_this_life(&store.sql.keep_feed)
            .replace("/*name*/", &name)
            .replace("/*statement*/", &text);
        let Ok(messages) = self.client().simple_query(&prepare).await else {
            store.refusals.add();
            return None;
        };
        let is_kept = messages.iter().any(
            |message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")),
        );
        is_kept.then_some(name)
    }

    /// The next statements are plain ones.
    pub(super) fn forget(&mut self) {
        self.kept = None;
        self.plainly = 0;
    }

    /// A kept statement ended in this error. Returns it if it is not the database's: the connection is broken.
    pub(super) fn refused(
        &mut self,
        error: tokio_postgres::Error,
        refusals: &Refusals,
    ) -> Result<(), Error> {
        if error.code().is_none() {
            return Err(error.into());
        }
        refusals.add();
        self.forget();
        Ok(())
    }
}
