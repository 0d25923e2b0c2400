//! The invalidation log: what meets what, what folding and pruning may forget, what the horizon does, and
//! that nobody waits for anybody.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bound;
mod horizon;
mod keys;
mod oracle;
mod rights;
mod writers;

use test_support::Database;
use tower_pgcache::PgCache;

/// An empty database with the cache's schema.
async fn database_with_schema() -> Database {
    let database = test_support::database().await;
    create_schema(&database).await;
    database
}

async fn create_schema(database: &Database) {
    PgCache::new(database.pool(1)).ready().await.unwrap();
}
