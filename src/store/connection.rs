//! Where connections come from: any bb8 pool of Postgres clients. Its type parameters end here.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;

use bb8::{ManageConnection, Pool, PooledConnection, RunError};
use tokio_postgres::Client;

use crate::error::{Error, ErrorKind};

/// A borrowed connection; goes back to its pool when dropped.
pub(crate) type Connection = Box<dyn Borrowed>;

pub(crate) trait Borrowed: Send + Sync {
    /// For a transaction, or whatever else is nobody else's business.
    fn client(&mut self) -> &mut Client;

    fn shared(&self) -> &Client;
}

impl<M: ManageConnection<Connection = Client>> Borrowed for PooledConnection<'static, M> {
    fn client(&mut self) -> &mut Client {
        self
    }

    fn shared(&self) -> &Client {
        self
    }
}

pub(crate) type Getting<'a> = Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>>;

pub(crate) trait Source: Send + Sync {
    fn get(&self) -> Getting<'_>;

    /// How many connections there can be.
    fn most_connections(&self) -> u32;

    /// Whether all connections are in use, and somebody waits for one.
    fn is_wanted(&self) -> bool;

    /// Whether it makes another connection when it gets one back that is closed: by a task, so that it needs a runtime that lasts.
    fn replaces_closed(&self) -> bool;
}

impl<M> Source for Pool<M>
where
    M: ManageConnection<Connection = Client>,
    M::Error: StdError + Send + Sync + 'static,
{
    fn get(&self) -> Getting<'_> {
        Box::pin(async {
            match self.get_owned().await {
                Ok(connection) => Ok(Box::new(connection) as Connection),
                Err(error) => Err(unavailable(error)),
            }
        })
    }

    fn most_connections(&self) -> u32 {
        self.config().max_size
    }

    fn is_wanted(&self) -> bool {
        let state = self.state();
        // bb8 counts those who gave up as if they waited still: hence only where there is none to be had
        state.idle_connections == 0
            && state.connections >= self.most_connections()
            && state.statistics.pending_gets() > 0
    }

    fn replaces_closed(&self) -> bool {
        self.config().min_idle.is_some_and(|least| least > 0)
    }
}

fn unavailable<E: StdError + Send + Sync + 'static>(error: RunError<E>) -> Error {
    match error {
        RunError::User(error) => Error::new(
            ErrorKind::Unavailable,
            format!("cannot connect to the database: {error}"),
        )
        .with_source(error),
        RunError::TimedOut => Error::new(
            ErrorKind::Unavailable,
            "no connection of the pool became free in time",
        ),
    }
}

/// A pool that is built when it is first used, since building one needs a runtime.
pub(crate) struct Lazy<M: ManageConnection> {
    pool: OnceLock<Pool<M>>,
    build: Box<dyn Fn() -> Pool<M> + Send + Sync>,
}

impl<M: ManageConnection> Lazy<M> {
    pub(crate) fn new(build: impl Fn() -> Pool<M> + Send + Sync + 'static) -> Self {
        Self {
            pool: OnceLock::new(),
            build: Box::new(build),
        }
    }
}

impl<M: ManageConnection> Lazy<M> {
    fn pool(&self) -> &Pool<M> {
        self.pool.get_or_init(&self.build)
    }
}

impl<M> Source for Lazy<M>
where
    M: ManageConnection<Connection = Client>,
    M::Error: StdError + Send + Sync + 'static,
{
    fn get(&self) -> Getting<'_> {
        Source::get(self.pool())
    }

    fn most_connections(&self) -> u32 {
        self.pool().most_connections()
    }

    fn is_wanted(&self) -> bool {
        self.pool().is_wanted()
    }

    fn replaces_closed(&self) -> bool {
        self.pool.get().is_some_and(Source::replaces_closed)
    }
}

/// There is no database.
pub(crate) struct Nowhere;

impl Source for Nowhere {
    fn get(&self) -> Getting<'_> {
        Box::pin(async {
            Err(Error::new(
                ErrorKind::Unavailable,
                "this cache has no database",
            ))
        })
    }

    fn most_connections(&self) -> u32 {
        0
    }

    fn is_wanted(&self) -> bool {
        false
    }

    fn replaces_closed(&self) -> bool {
        false
    }
}
