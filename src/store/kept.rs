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
//!    [none in between](super::identity); and what answers says for which life it is. (Only where sessions are given away after
//!    each transaction. A pooler that does not is not told from one that does: there is nothing kept either.)
//! 4. Its plan is made with settings that hold while it is prepared only (`sql/plan.sql`). When Postgres makes another one, since
//!    a table was analyzed or the search path is another, it says so by not answering at all, and is prepared anew.
//! 5. To prepare one costs as much as a hundred lookups, and some round trips. So the first [`PLAINLY`] statements of a
//!    connection are sent as they are, an instance prepares each once in an [`INTERVAL`] at most, and nobody waits for that
//!    where the pool has another connection. What a connection keeps is remembered while it is in the pool.
//! 6. Where a statement is gone, somebody makes sessions forget what they keep (`DISCARD ALL`): that would happen again and
//!    again, with an error in the server's log each time. So if it happened in the pool, what connections keep is not
//!    remembered any more for a [`RESPITE`]; and after [`MOST_REFUSALS`] of whatever other kind that statement is not kept for as long.
//! 7. It is parsed with the session's search path, and prepared only where `pg_catalog` comes first in it. What takes any type
//!    is named in full in its text: what takes just the right ones would be preferred, wherever it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::identity::Identity;
use super::schema::Sql;
use super::shelf::Shelf;
use super::{Connection, Origin, read_transaction};
use crate::error::Error;

/// How many statements are sent before one is prepared.
const PLAINLY: u32 = 8;

/// How many plans Postgres makes for the parameters that it is given before it settles on one for all.
const PLANS_FOR_PARAMETERS: usize = 5;

/// How long an instance waits before it prepares the same statement again, in whatever session; and after it was refused.
const INTERVAL: Duration = Duration::from_millis(100);
const INTERVAL_AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// How many errors that plain statements do not have are put up with, within a [`RESPITE`].
const MOST_REFUSALS: u32 = 3;
pub(super) const RESPITE: Duration = Duration::from_secs(600);

/// The classes of errors that say that the statement is gone, or is not what it was: no such statement, another result type,
/// something that it names, other parameters.
const REFUSALS: [&str; 5] = ["26", "0A", "42", "22", "08P01"];

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

    /// Whether that is what a statement says.
    pub(super) fn is(&self, epoch: Option<&str>, incarnation: Option<&str>) -> bool {
        (epoch, incarnation) == (Some(&*self.epoch), Some(&*self.incarnation))
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
    /// Parameters for which it answers at once.
    pub(super) trial: [Box<dyn ToSql + Send + Sync>; 2],
    /// What has it planned well, in the transaction that prepares it: tells the number of the process, and whether it is to be
    /// kept there.
    pub(super) plan: String,
    pub(super) record: Record,
}

impl Keepable {
    /// `None`: this is another life, or not the server that the client connected to, or there is something else against it.
    async fn prepare(
        &self,
        client: &mut Client,
        identity: Identity,
        life: &Life,
    ) -> Result<Option<Statement>, Error> {
        let transaction = read_transaction(client).await?;
        let plan = life.in_text(&self.plan);
        let row = transaction.query_typed_one(&plan, &[]).await?;
        let (pid, is_for_it): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
        if !identity.is_of_process(pid) || !is_for_it {
            return Ok(None);
        }
        let text = life.in_text(&self.text);
        let statement = transaction.prepare_typed(&text, &self.types).await?;
        let [one, other] = &self.trial;
        let trial: [&(dyn ToSql + Sync); 2] = [&**one, &**other];
        let trials = (0..=PLANS_FOR_PARAMETERS).map(|_| transaction.query(&statement, &trial));
        try_join_all(trials).await?;
        transaction.commit().await?;
        // as it is asked from now on: by the plan that was made, or it never will be
        let answer = client.query(&statement, &trial).await?;
        Ok((!answer.is_empty()).then_some(statement))
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

    fn may_prepare(&self) -> bool {
        let remembered = self.lock();
        let interval = if remembered.refusals == 0 {
            INTERVAL
        } else {
            INTERVAL_AFTER_REFUSAL
        };
        let is_recent = |since: Instant| since.elapsed() < interval;
        remembered.refusals < MOST_REFUSALS && !remembered.prepared.is_some_and(is_recent)
    }

    fn is_being_prepared(&self) {
        self.lock().prepared = Some(Instant::now());
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
    feed: Keeping,
    lookup: Keeping,
    unsearched: Keeping,
    /// As the last plain lookup said.
    pub(super) life: Option<Life>,
}

/// One of the statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Feed,
    Lookup,
    Unsearched,
}

impl Keeps {
    /// The same when the connection is in use again.
    pub(super) fn remembered(mut self) -> Self {
        for which in Which::ALL {
            if let Some(kept) = &mut self.of(which).kept {
                kept.is_remembered = true;
            }
        }
        self
    }

    fn of(&mut self, which: Which) -> &mut Keeping {
        match which {
            Which::Feed => &mut self.feed,
            Which::Lookup => &mut self.lookup,
            Which::Unsearched => &mut self.unsearched,
        }
    }
}

impl Which {
    const ALL: [Self; 3] = [Self::Feed, Self::Lookup, Self::Unsearched];

    fn keepable(self, sql: &Sql) -> &Keepable {
        match self {
            Self::Feed => &sql.feed_kept,
            Self::Lookup => &sql.lookup_kept,
            Self::Unsearched => &sql.lookup_unsearched,
        }
    }
}

impl Session {
    pub(super) fn new(connection: Connection, shelf: &Arc<Shelf>) -> Self {
        let identity = Identity::of(connection.shared());
        let keeps = identity.and_then(|id| shelf.take(id)).unwrap_or_default();
        Self {
            connection,
            identity,
            keeps,
            shelf: shelf.clone(),
        }
    }

    /// For a transaction.
    pub(super) fn client(&mut self) -> &mut Client {
        self.connection.client()
    }

    pub(super) fn shared(&self) -> &Client {
        self.connection.shared()
    }

    pub(super) fn keeps_something(&self) -> bool {
        let Keeps {
            feed,
            lookup,
            unsearched,
            life: _,
        } = &self.keeps;
        [feed, lookup, unsearched]
            .iter()
            .any(|keeping| keeping.kept.is_some())
    }

    /// A statement, if the session keeps it for this life.
    pub(super) fn kept(&mut self, which: Which, sql: &Sql, life: &Life) -> Option<Statement> {
        if self.identity.is_none() || which.keepable(sql).record.are_too_many() {
            return None;
        }
        let keeping = self.keeps.of(which);
        match &keeping.kept {
            Some(kept) if kept.life == *life => return Some(kept.statement.clone()),
            Some(_) => *keeping = Keeping::default(),
            None => {}
        }
        keeping.plainly = keeping.plainly.saturating_add(1);
        if keeping.wanted.as_ref() != Some(life) {
            keeping.wanted = Some(life.clone());
        }
        None
    }

    /// What is to be prepared when nobody waits for the session.
    fn due<'a>(&mut self, sql: &'a Sql) -> Option<(Which, &'a Keepable, Life)> {
        Which::ALL.into_iter().find_map(|which| {
            let keeping = self.keeps.of(which);
            if keeping.plainly < PLAINLY {
                return None;
            }
            let life = keeping.wanted.clone().filter(Life::is_plain)?;
            if which != Which::Feed && self.keeps.life.as_ref() != Some(&life) {
                return None;
            }
            let keepable = which.keepable(sql);
            let may_prepare = keepable.record.may_prepare();
            may_prepare.then_some((which, keepable, life))
        })
    }

    pub(super) fn has_due(&mut self, sql: &Sql) -> bool {
        self.due(sql).is_some()
    }

    /// Returns whether there was something to prepare.
    pub(super) async fn prepare_due(&mut self, sql: &Sql) -> bool {
        let (Some((which, keepable, life)), Some(identity)) = (self.due(sql), self.identity) else {
            return false;
        };
        keepable.record.is_being_prepared();
        *self.keeps.of(which) = Keeping::default();
        let client = self.connection.client();
        match keepable.prepare(client, identity, &life).await {
            Ok(Some(statement)) => {
                self.keeps.of(which).kept = Some(Kept {
                    life,
                    statement,
                    is_remembered: false,
                });
            }
            // a connection that breaks says nothing about the statement
            Err(error) if error.sql_state().is_none() => {}
            Ok(None) | Err(_) => keepable.record.add_refusal(),
        }
        true
    }

    /// It has answered.
    pub(super) fn is_good(&mut self, which: Which) {
        if let Some(kept) = &mut self.keeps.of(which).kept {
            kept.is_remembered = false;
        }
    }

    /// It has not answered: the life is over, or there is another plan.
    pub(super) fn is_over(&mut self, which: Which) {
        self.keeps.of(which).forget();
    }

    /// It has answered for another life: it was another program's.
    pub(super) fn is_strange(&mut self, which: Which, sql: &Sql) {
        self.keeps.of(which).forget();
        which.keepable(sql).record.add_refusal();
    }

    /// It ended in this error before it answered. Returns it if a plain statement would end in it too.
    pub(super) fn is_refused(
        &mut self,
        which: Which,
        sql: &Sql,
        error: Error,
    ) -> Result<(), Error> {
        let kept = self.keeps.of(which).forget();
        let state = error.sql_state().map_or("", SqlState::code);
        if !REFUSALS.iter().any(|class| state.starts_with(class)) {
            return Err(error);
        }
        let is_gone = error.sql_state() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME);
        if is_gone && kept.is_some_and(|kept| kept.is_remembered) {
            // they are all gone
            self.keeps = Keeps::default();
            self.shelf.is_robbed();
        } else {
            which.keepable(sql).record.add_refusal();
        }
        Ok(())
    }
}

/// Back to the pool.
impl Drop for Session {
    fn drop(&mut self) {
        if let Some(identity) = self.identity.filter(|_| !self.shared().is_closed()) {
            self.shelf.put(identity, std::mem::take(&mut self.keeps));
        }
    }
}

/// What a session has of one statement.
#[derive(Default)]
struct Keeping {
    /// How many were sent without it.
    plainly: u32,
    /// For which life.
    wanted: Option<Life>,
    kept: Option<Kept>,
}

struct Kept {
    life: Life,
    statement: Statement,
    /// It was there when the connection was in use before, and has not answered since.
    is_remembered: bool,
}

impl Keeping {
    /// The next statements are plain ones.
    fn forget(&mut self) -> Option<Kept> {
        std::mem::take(self).kept
    }
}
