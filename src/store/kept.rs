//! Statements that a session keeps, so that Postgres does not parse and plan them each time: for the smallest ones that
//! costs more than to run them.
//!
//! 1. They are a matter of speed and nothing else. Whatever the database has against a kept statement, the plain one is sent
//!    instead, and what that says counts.
//! 2. A kept statement is for one *life* of a database, its epoch and incarnation, and is prepared only in a session of that
//!    database: where it exists, the plain statement's tests of who the database is need not be repeated. The server of a
//!    session cannot become another one.
//! 3. What `tokio-postgres` prepares has a name that no other statement of this program has. Behind a pooler a session may be
//!    anybody's, and under the same name there may be the statement of another program. So it is only done where there is
//!    [none in between](super::identity).
//! 4. Its plan is made with settings that hold while it is prepared only (`sql/plan.sql`). When Postgres makes another one, since
//!    a table was analyzed or the search path is another, it says so by not answering at all, and is prepared anew.
//! 5. To prepare one costs as much as a hundred lookups. So the first [`PLAINLY`] statements of a connection are sent as they
//!    are, and an instance prepares each once in an [`INTERVAL`] at most. What a connection keeps is remembered while it is
//!    in the pool.
//! 6. Where a statement is gone, somebody makes sessions forget what they keep (`DISCARD ALL`): that would happen again and
//!    again, with an error in the server's log each time. So if it happened in the pool, what connections keep is not
//!    remembered any more for a [`RESPITE`]; and after [`MOST_REFUSALS`] of whatever other kind nothing is kept for as long.
//! 7. It is parsed with the session's search path: what takes any type is named in full in its text.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::identity::Identity;
use super::{Connection, Origin, read_transaction};
use crate::error::Error;

/// How many statements are sent before one is prepared.
const PLAINLY: u32 = 8;

/// How many plans Postgres makes for the parameters that it is given before it settles on one for all.
const PLANS_FOR_PARAMETERS: usize = 5;

/// How long an instance waits before it prepares the same statement again, in whatever session.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many errors that plain statements do not have are put up with, within a [`RESPITE`].
const MOST_REFUSALS: u32 = 3;
const RESPITE: Duration = Duration::from_secs(600);

/// The classes of errors that say that the statement is gone, or is not what it was: no such statement, another result type,
/// something that it names.
const REFUSALS: [&str; 3] = ["26", "0A", "42"];

/// Of how many connections it is remembered what they keep: those of a large pool.
const MOST_REMEMBERED: usize = 128;

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

    /// A statement that is for this one.
    fn in_text(&self, text: &str) -> String {
        text.replace("/*epoch*/", &self.epoch)
            .replace("/*incarnation*/", &self.incarnation)
    }
}

/// A statement that can be kept.
#[derive(Debug)]
pub(super) struct Keepable {
    /// Of one life: with words in place of its epoch and incarnation.
    pub(super) text: String,
    /// Of its parameters.
    pub(super) types: [Type; 2],
    /// What has it planned well, in the transaction that prepares it: tells the number of the process, and whether this is
    /// the life.
    pub(super) plan: String,
    pub(super) record: Record,
}

impl Keepable {
    /// `trial`: parameters for which it answers at once. `None`: this is another life, or not the server that the client
    /// connected to.
    async fn prepare(
        &self,
        client: &mut Client,
        identity: Identity,
        life: &Life,
        trial: Parameters<'_>,
    ) -> Result<Option<Statement>, Error> {
        let transaction = read_transaction(client).await?;
        let row = transaction
            .query_typed_one(&life.in_text(&self.plan), &[])
            .await?;
        let (pid, is_this_life): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
        if !identity.is_of_process(pid) || !is_this_life {
            return Ok(None);
        }
        let text = life.in_text(&self.text);
        let statement = transaction.prepare_typed(&text, &self.types).await?;
        let trials = (0..=PLANS_FOR_PARAMETERS).map(|_| transaction.query(&statement, trial));
        try_join_all(trials).await?;
        transaction.commit().await?;
        Ok(Some(statement))
    }
}

pub(super) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

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
        if remembered.refusals >= MOST_REFUSALS || remembered.prepared.is_some_and(is_recent) {
            return false;
        }
        remembered.prepared = Some(Instant::now());
        true
    }
}

/// A connection that is in use for one statement after another.
pub(super) struct Session {
    connection: Connection,
    /// `None`: nothing is kept.
    identity: Option<Identity>,
    pub(super) keeps: Keeps,
    shelf: Arc<Shelf>,
}

/// What a connection keeps.
#[derive(Default)]
pub(super) struct Keeps {
    pub(super) feed: Keeping,
    pub(super) lookup: Keeping,
    pub(super) unsearched: Keeping,
    /// As the last plain lookup said.
    pub(super) life: Option<Life>,
}

impl Session {
    pub(super) fn new(mut connection: Connection, shelf: &Arc<Shelf>) -> Self {
        let identity = Identity::of(connection.client());
        Self {
            connection,
            identity,
            keeps: identity.and_then(|id| shelf.take(id)).unwrap_or_default(),
            shelf: shelf.clone(),
        }
    }

    pub(super) fn client(&mut self) -> &mut Client {
        self.connection.client()
    }
}

/// Back to the pool.
impl Drop for Session {
    fn drop(&mut self) {
        if let Some(identity) = self.identity.filter(|_| !self.client().is_closed()) {
            self.shelf.put(identity, std::mem::take(&mut self.keeps));
        }
    }
}

/// What those connections keep that are in the pool.
#[derive(Default)]
pub(super) struct Shelf(Mutex<Shelved>);

#[derive(Default)]
struct Shelved {
    /// Of the one last that came back last.
    keeps: Vec<(Identity, Keeps)>,
    /// When a statement was gone that was here.
    robbed: Option<Instant>,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Shelved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, identity: Identity) -> Option<Keeps> {
        let keeps = &mut self.lock().keeps;
        let at = keeps.iter().position(|(id, _)| *id == identity)?;
        let mut taken = keeps.remove(at).1;
        let Keeps {
            feed,
            lookup,
            unsearched,
            life: _,
        } = &mut taken;
        for keeping in [feed, lookup, unsearched] {
            if let Some(kept) = &mut keeping.kept {
                kept.standing = Standing::Remembered;
            }
        }
        Some(taken)
    }

    fn put(&self, identity: Identity, keeps: Keeps) {
        let mut shelved = self.lock();
        if shelved
            .robbed
            .is_some_and(|since| since.elapsed() < RESPITE)
        {
            return;
        }
        let is_full = shelved.keeps.len() >= MOST_REMEMBERED;
        let oldest = is_full.then(|| shelved.keeps.remove(0));
        shelved.keeps.push((identity, keeps));
        drop(shelved);
        // its session is told that it is not needed any more
        drop(oldest);
    }

    fn is_robbed(&self) {
        self.lock().robbed = Some(Instant::now());
    }
}

/// What a session has of one statement.
#[derive(Default)]
pub(super) struct Keeping {
    /// How many were sent without it.
    plainly: u32,
    kept: Option<Kept>,
}

struct Kept {
    life: Life,
    statement: Statement,
    standing: Standing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was prepared just now, and has not answered so far.
    Untried,
    Tried,
    /// It was there when the connection was in use before.
    Remembered,
}

/// One of what a connection keeps.
pub(super) type Which = fn(&mut Keeps) -> &mut Keeping;

impl Session {
    /// A statement, if the session keeps it for this life; prepares it when that is worth it. `which`: what it has of it.
    pub(super) async fn kept(
        &mut self,
        which: Which,
        keepable: &Keepable,
        life: &Life,
        trial: Parameters<'_>,
    ) -> Option<Statement> {
        let identity = self.identity?;
        if keepable.record.are_too_many() {
            return None;
        }
        let keeping = which(&mut self.keeps);
        match &keeping.kept {
            Some(kept) if kept.life == *life => return Some(kept.statement.clone()),
            Some(_) => drop(keeping.forget()),
            None => {}
        }
        keeping.plainly += 1;
        if keeping.plainly < PLAINLY || !life.is_plain() || !keepable.record.may_prepare() {
            return None;
        }
        keeping.plainly = 0;
        let client = self.connection.client();
        let prepared = keepable.prepare(client, identity, life, trial).await;
        let Ok(Some(statement)) = prepared else {
            keepable.record.add_refusal();
            return None;
        };
        which(&mut self.keeps).kept = Some(Kept {
            life: life.clone(),
            statement: statement.clone(),
            standing: Standing::Untried,
        });
        Some(statement)
    }
    /// It has answered.
    pub(super) fn is_good(&mut self, which: Which) {
        if let Some(kept) = &mut which(&mut self.keeps).kept {
            kept.standing = Standing::Tried;
        }
    }

    /// It has not answered: the life is over, or there is another plan.
    pub(super) fn is_over(&mut self, which: Which, keepable: &Keepable) {
        if which(&mut self.keeps).forget() == Some(Standing::Untried) {
            keepable.record.add_refusal();
        }
    }

    /// It ended in this error before it answered. Returns it if a plain statement would end in it too.
    pub(super) fn is_refused(
        &mut self,
        which: Which,
        keepable: &Keepable,
        error: Error,
    ) -> Result<(), Error> {
        let standing = which(&mut self.keeps).forget();
        let state = error.sql_state().map_or("", SqlState::code);
        if !REFUSALS.iter().any(|class| state.starts_with(class)) {
            return Err(error);
        }
        match standing {
            Some(Standing::Remembered) => self.shelf.is_robbed(),
            _ => keepable.record.add_refusal(),
        }
        Ok(())
    }
}

impl Keeping {
    /// The next statements are plain ones. Returns what is known of the one that was kept.
    fn forget(&mut self) -> Option<Standing> {
        std::mem::take(self).kept.map(|kept| kept.standing)
    }
}
