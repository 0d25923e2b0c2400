//! Everything that is asked of Postgres, and nothing of HTTP.
//!
//! 1. Every access has a deadline, and ends there for its caller. The work itself runs in a task of its own:
//!    a caller that gives up or goes away never leaves a connection behind in the middle of something.
//! 2. What reads is one statement in its own transaction, so that its snapshot is the statement's. What writes
//!    is an explicit READ COMMITTED transaction, whatever the server's defaults say.
//! 3. Nothing depends on session state: no temporary objects, no `SET`, no session locks (PgBouncer in transaction mode).
//!    What a session [keeps](kept) makes things faster, and may be gone at any time.

mod administer;
mod batch;
mod checksum;
mod connection;
mod feed;
mod hindsight;
mod housekeeping;
mod identity;
mod idle;
mod kept;
mod lanes;
mod lease;
mod lookup;
mod meta;
#[cfg(all(test, shuttle))]
pub(crate) mod model;
mod packing;
mod patience;
mod queue;
mod replica;
mod reply;
mod schema;
mod shelf;
mod snapshot;
mod timer;
mod write;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, IsolationLevel, Row, Transaction};

pub(crate) use administer::{Parameters, WatchedTable};
pub(crate) use checksum::Checksum;
pub(crate) use connection::{Connection, Lazy, Nowhere, Source};
pub(crate) use feed::{FeedRead, Position};
pub(crate) use housekeeping::{Bounds, Step, Stock};
pub(crate) use lease::Claimed;
pub(crate) use lookup::{Found, Keyed, Keys, Lookup, Stored};
#[cfg(all(test, shuttle))]
pub(crate) use model::Database;
pub(crate) use packing::{StoredBody, pack};
pub(crate) use patience::Expiring;
pub(crate) use replica::{Sight, look};
pub(crate) use schema::{Creation, SchemaName, check_name};
pub(crate) use snapshot::Snapshot;
pub(crate) use timer::Timer;
pub(crate) use write::{Marker, Record, Volume};

use crate::error::{Error, ErrorKind};
use idle::Idle;
use lanes::Lanes;
use lookup::Lull;
use schema::Sql;
use shelf::Shelf;

/// What the engine asks; in tests of interleavings a model is put in its place.
#[cfg(not(all(test, shuttle)))]
pub(crate) use Store as Database;

/// Where a fill began: what a lookup that missed saw of the database. The answer may be stored only while
/// epoch and incarnation last.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) epoch: Arc<str>,
    pub(crate) incarnation: Arc<str>,
    pub(crate) snapshot: Snapshot,
    /// When, by the database's clock, in seconds.
    pub(crate) at: f64,
}

/// A database that holds a cache.
pub(crate) struct Store {
    source: Box<dyn Source>,
    sql: Sql,
    lanes: Lanes,
    feed_permit: Arc<Semaphore>,
    idle: Idle,
    shelf: Arc<Shelf>,
    lull: Lull,
    /// Whether a statement is being prepared that a session is to keep.
    is_preparing: AtomicBool,
    /// Whether a statement of its own runs as READ COMMITTED here: found out by [`prepare`](Self::prepare),
    /// before the first lookup, and again by [one](Lull) lookup in a second at least.
    read_committed: AtomicBool,
    /// Whether the entries are partitioned: found out by [`prepare`](Self::prepare).
    is_partitioned: AtomicBool,
}

impl Store {
    /// `lookup_connections`: how many connections lookups use at most; `None` leaves it to the size of the pool.
    pub(crate) fn new(
        source: Box<dyn Source>,
        schema: &SchemaName,
        lookup_connections: Option<usize>,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            lanes: Lanes::new(lookup_connections),
            feed_permit: Arc::new(Semaphore::new(1)),
            idle: Idle::default(),
            shelf: Arc::default(),
            lull: Lull::new(),
            is_preparing: AtomicBool::new(false),
            sql: Sql::for_schema(schema),
            read_committed: AtomicBool::new(true),
            is_partitioned: AtomicBool::new(false),
        })
    }

    /// Runs `work` on a connection, in a task of its own, and waits for it until the deadline.
    async fn run<T, F>(
        self: &Arc<Self>,
        within: Duration,
        work: impl FnOnce(Arc<Self>, Connection) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let deadline = Deadline::after(within);
        let store = self.clone();
        let task = tokio::spawn(async move {
            let connection = store.connection(deadline).await?;
            work(store, connection).await
        });
        match timeout_at(deadline.at, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(stopped)) => Err(
                Error::new(ErrorKind::Closed, "the runtime is shutting down").with_source(stopped),
            ),
            Err(_) => Err(deadline.no_answer()),
        }
    }

    async fn connection(&self, deadline: Deadline) -> Result<Connection, Error> {
        timeout_at(deadline.at, self.source.get())
            .await
            .unwrap_or_else(|_| Err(deadline.no_connection()))
    }
}

/// By when an access has to come to an end.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    within: Duration,
}

impl Deadline {
    fn after(within: Duration) -> Self {
        let at = Instant::now() + within;
        Self { at, within }
    }

    fn no_answer(self) -> Error {
        let late = format!("no answer from the database within {:?}", self.within);
        Error::new(ErrorKind::Timeout, late)
    }

    fn no_connection(self) -> Error {
        let late = format!("no connection to the database within {:?}", self.within);
        Error::new(ErrorKind::Unavailable, late)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("schema", &self.sql.schema)
            .finish_non_exhaustive()
    }
}

/// A transaction for what writes: READ COMMITTED and READ WRITE, whatever the defaults say. Rolled back when
/// dropped.
async fn write_transaction(client: &mut Client) -> Result<Transaction<'_>, Error> {
    Ok(client
        .build_transaction()
        .isolation_level(IsolationLevel::ReadCommitted)
        .read_only(false)
        .start()
        .await?)
}

/// For what only reads, where READ COMMITTED is not the default: a SERIALIZABLE reader could make writers fail.
async fn read_transaction(client: &mut Client) -> Result<Transaction<'_>, Error> {
    Ok(client
        .build_transaction()
        .isolation_level(IsolationLevel::ReadCommitted)
        .read_only(true)
        .start()
        .await?)
}

/// What one statement says in a transaction of its own.
async fn read(
    client: &mut Client,
    statement: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<Row>, Error> {
    let transaction = read_transaction(client).await?;
    let rows = transaction.query_typed(statement, parameters).await?;
    transaction.commit().await?;
    Ok(rows)
}

impl Store {
    pub(crate) fn schema(&self) -> &str {
        &self.sql.schema
    }

    fn is_read_committed(&self) -> bool {
        self.read_committed.load(Ordering::Relaxed)
    }
}
