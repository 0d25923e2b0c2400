//! This crate: with a memory tier that may lag, with one that may not, and without one.

use std::time::Duration;

use axum::Router;
use tower_pgcache::PgCache;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;

use crate::Error;
use crate::app::{App, ITEM};

/// Connections to Postgres; the Redis peer has one that it pipelines on, which is as many as it can use.
const CONNECTIONS: u32 = 8;
/// More than all answers of up to 32 KB.
const MEMORY: usize = 64 << 20;
const MAX_STALENESS: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// Memory, at most [`MAX_STALENESS`] behind.
    Bounded,
    /// Memory, never behind.
    Strict,
    /// No memory: every hit asks Postgres.
    Postgres,
}

impl Mode {
    /// Bytes of the memory tier; 0 turns it off.
    fn memory(self) -> usize {
        match self {
            Self::Bounded | Self::Strict => MEMORY,
            Self::Postgres => 0,
        }
    }

    fn max_staleness(self) -> Option<Duration> {
        match self {
            Self::Bounded => Some(MAX_STALENESS),
            Self::Strict | Self::Postgres => None,
        }
    }
}

/// Each mode has a schema of its own in the one database.
pub(crate) async fn pgcache(mode: Mode, app: &App, url: &str) -> Result<Router, Error> {
    let schema = format!("load_{mode:?}").to_lowercase();
    let builder = PgCache::builder(pool(url).await?).schema(schema);
    let builder = builder.memory(mode.memory());
    let builder = match mode.max_staleness() {
        Some(duration) => builder.max_staleness(duration),
        None => builder,
    };
    let cache = builder.build()?;
    cache.ready().await?;
    Ok(Router::new().route(ITEM, app.item()).layer(cache.layer()))
}

/// Connections are not tested whenever one is borrowed; the Redis peer's is not either.
async fn pool(url: &str) -> Result<Pool<PostgresConnectionManager<NoTls>>, Error> {
    let manager = PostgresConnectionManager::new_from_stringlike(url, NoTls)?;
    let pool = Pool::builder()
        .max_size(CONNECTIONS)
        .test_on_check_out(false);
    Ok(pool.build(manager).await?)
}
