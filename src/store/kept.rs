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
//! 4. Its plan is made with settings that hold while it is prepared only (`sql/keep.sql`). When Postgres makes another one, since
//!    a table was analyzed or the search path is another, it says so by not answering at all, and is prepared anew.
//! 5. To prepare one costs as much as a hundred lookups. So the first [`PLAINLY`] statements of a borrowing are sent as they
//!    are, then the session may have one from an earlier borrowing, and an instance prepares each once in an [`INTERVAL`] at most.
//! 6. Where a statement is gone that was prepared in the same borrowing, something gives the session away between two
//!    transactions, as PgBouncer does. That would happen again and again, with an error in the server's log each time. So
//!    after [`MOST_REFUSALS`] of whatever kind it is not prepared any more for a [`RESPITE`].
//! 7. It is parsed with the session's search path: what takes any type is named in full in its text.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Connection, Origin};
use crate::error::Error;

/// How many statements are sent in a borrowing before one is prepared.
const PLAINLY: u32 = 8;

/// Prepares a statement.
const KEEP: &str = include_str!("sql/keep.sql");

/// How long an instance waits before it prepares the same statement again, in whatever session.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many errors that plain statements do not have are put up with, within a [`RESPITE`].
const MOST_REFUSALS: u32 = 3;
const RESPITE: Duration = Duration::from_secs(600);

/// The classes of errors that say that the statement is gone, or is not what it was: no such statement, another result type,
/// something that it names.
const REFUSALS: [&str; 3] = ["26", "0A", "42"];

/// One life of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(super) epoch: Arc<str>,
    /// An id, and after a slash when the server was started.
    pub(super) incarnation: Arc<str>,
}

impl Life {
    pub(super) fn of(origin: &Origin) -> Self {
        Self {
            epoch: origin.epoch.clone(),
            incarnation: origin.incarnation.clone(),
        }
    }

    /// Whether it can be written into a statement.
    fn is_plain(&self) -> bool {
        let is_plain = |b: u8| b.is_ascii_hexdigit() || b"-/.".contains(&b);
        self.epoch
            .bytes()
            .chain(self.incarnation.bytes())
            .all(is_plain)
    }
}

/// A statement that can be kept.
#[derive(Debug)]
pub(super) struct Keepable {
    /// Of one life: with its epoch and incarnation in place of the words for them.
    pub(super) text: String,
    /// Of its parameters.
    pub(super) types: &'static str,
    /// Parameters for which it answers at once.
    pub(super) trial: &'static str,
    pub(super) record: Record,
}

impl Keepable {
    /// Its name in this life, and what prepares it and says whether it is there; `None`: this life cannot be written into it.
    fn in_life(&self, is_this_life: &str, life: &Life) -> Option<(String, String)> {
        if !life.is_plain() {
            return None;
        }
        let prepare = KEEP
            .replace("/*types*/", self.types)
            .replace("/*trial*/", self.trial)
            .replace("/*condition*/", is_this_life)
            .replace("/*statement*/", &self.text)
            .replace("/*epoch*/", &life.epoch)
            .replace("/*incarnation*/", &life.incarnation);
        let hash = blake3::hash(prepare.as_bytes()).to_hex();
        let name = format!("pgcache_{}", &hash.as_str()[..32]);
        let prepare = prepare.replace("/*name*/", &name) + &is_prepared(&name);
        Some((name, prepare))
    }
}

/// What an instance remembers of a statement.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    prepared: Option<Instant>,
    /// When the first of them was.
    refused: Option<Instant>,
    /// How often the database had something against it since then.
    refusals: u32,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Instant| since.elapsed() > RESPITE;
        if remembered.refused.is_some_and(is_over) {
            (remembered.refused, remembered.refusals) = (None, 0);
        }
        remembered
    }

    fn add_refusal(&self) {
        let mut remembered = self.lock();
        remembered.refused.get_or_insert_with(Instant::now);
        remembered.refusals += 1;
        if remembered.refusals == MOST_REFUSALS {
            tracing::info!(
                "the database does not keep a statement, which is sent as a plain one for ten minutes"
            );
        }
    }

    fn are_too_many(&self) -> bool {
        self.lock().refusals >= MOST_REFUSALS
    }

    /// Whether it may be prepared now. Counts as if it were.
    fn may_prepare(&self) -> bool {
        let mut remembered = self.lock();
        let is_recent = |since: Instant| since.elapsed() < INTERVAL;
        if remembered.prepared.is_some_and(is_recent) {
            return false;
        }
        remembered.prepared = Some(Instant::now());
        true
    }
}

/// A connection that is in use for one statement after another.
pub(super) struct Session {
    connection: Connection,
    feed: Keeping,
    lookup: Keeping,
    /// As the last plain lookup said.
    pub(super) life: Option<Life>,
}

impl Session {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            feed: Keeping::default(),
            lookup: Keeping::default(),
            life: None,
        }
    }

    pub(super) fn client(&mut self) -> &mut Client {
        self.connection.client()
    }

    /// What it has of the statement that reads the feed, and the connection.
    pub(super) fn feed(&mut self) -> (&mut Keeping, &Client) {
        (&mut self.feed, self.connection.client())
    }

    /// What it has of the statement that looks entries up, the connection, and the life that it is in.
    pub(super) fn lookup(&mut self) -> (&mut Keeping, &Client, Option<&Life>) {
        (
            &mut self.lookup,
            self.connection.client(),
            self.life.as_ref(),
        )
    }
}

/// What a session has of one statement.
#[derive(Default)]
pub(super) struct Keeping {
    /// How many were sent without it.
    plainly: u32,
    kept: Option<Kept>,
    /// One was there that did not answer.
    is_outdated: bool,
}

struct Kept {
    life: Life,
    name: Arc<str>,
    /// It was prepared just now, and has not answered so far.
    is_untried: bool,
}

impl Keeping {
    /// Its name, if it is there for this life. Prepares it when that is worth it.
    pub(super) async fn name(
        &mut self,
        client: &Client,
        keepable: &Keepable,
        is_this_life: &str,
        life: &Life,
    ) -> Option<Arc<str>> {
        match &self.kept {
            Some(kept) if kept.life == *life => return Some(kept.name.clone()),
            Some(_) => self.forget(),
            None => {}
        }
        self.plainly += 1;
        if self.plainly < PLAINLY || keepable.record.are_too_many() {
            return None;
        }
        self.plainly = 0;
        let (name, prepare) = keepable.in_life(is_this_life, life)?;
        let is_there = !self.is_outdated && says_yes(client, &is_prepared(&name)).await?;
        if !is_there {
            if !keepable.record.may_prepare() {
                return None;
            }
            if says_yes(client, &prepare).await != Some(true) {
                keepable.record.add_refusal();
                return None;
            }
        }
        let name: Arc<str> = name.into();
        self.kept = Some(Kept {
            life: life.clone(),
            name: name.clone(),
            is_untried: !is_there,
        });
        Some(name)
    }

    /// It has answered.
    pub(super) fn is_good(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.is_untried = false;
        }
    }

    /// It has not answered: the life is over, or there is another plan.
    pub(super) fn is_over(&mut self, keepable: &Keepable) {
        if self.kept.as_ref().is_some_and(|kept| kept.is_untried) {
            keepable.record.add_refusal();
        }
        self.forget();
        self.is_outdated = true;
    }

    /// It ended in this error before it answered. Returns it if a plain statement would end in it too.
    pub(super) fn is_refused(&mut self, error: Error, keepable: &Keepable) -> Result<(), Error> {
        self.forget();
        let state = error.sql_state().map_or("", SqlState::code);
        if !REFUSALS.iter().any(|class| state.starts_with(class)) {
            return Err(error);
        }
        keepable.record.add_refusal();
        Ok(())
    }

    /// The next statements are plain ones.
    fn forget(&mut self) {
        *self = Self::default();
    }
}

fn is_prepared(name: &str) -> String {
    format!("SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '{name}')")
}

/// `None`: it says nothing at all.
async fn says_yes(client: &Client, question: &str) -> Option<bool> {
    let messages = client.simple_query(question).await.ok()?;
    let is_yes = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"));
    Some(messages.iter().any(is_yes))
}
