//! A cache whose entries are split into partitions does all that one with a single table does, within the same bounds; and
//! whoever asks for a key looks into its partition only.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod creation;
mod life;
mod pruning;
mod serving;

use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use http::HeaderMap;
use test_support::Database;
use test_support::http::{Answer, get as fetch};
use tokio_postgres::Client;
use tower_pgcache::bb8::Pool;
use tower_pgcache::bb8_postgres::PostgresConnectionManager;
use tower_pgcache::tokio_postgres::NoTls;
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, domain};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const ITEM: Domain = domain!("item");

/// With deadlines that a busy machine does not reach.
fn builder(pool: Pool<PostgresConnectionManager<NoTls>>) -> PgCacheBuilder<PgCache> {
    PgCache::builder(pool)
        .lookup_deadline(MINUTE)
        .store_deadline(MINUTE)
        .lease_wait(Duration::ZERO)
        .memory(0)
        .cleanup_interval(Duration::ZERO)
}

/// An instance whose handlers answer `/{id}/{size}` with that many bytes, and `/in/{id}` in the language that is asked for.
struct Instance {
    cache: PgCache,
    app: Router,
}

impl Instance {
    async fn new(
        database: &Database,
        configure: impl FnOnce(PgCacheBuilder<PgCache>) -> PgCacheBuilder<PgCache>,
    ) -> Self {
        let cache = configure(builder(database.pool(4))).build().unwrap();
        cache.ready().await.unwrap();
        Self::of(cache)
    }

    /// With four partitions.
    async fn split(database: &Database) -> Self {
        Self::new(database, |b| b.partitions(4)).await
    }

    fn of(cache: PgCache) -> Self {
        let body = |Path((_, size)): Path<(u64, usize)>| async move { "x".repeat(size) };
        let translated = |headers: HeaderMap| async move {
            let language = headers["accept-language"].to_str().unwrap().to_owned();
            ([("vary", "accept-language")], language)
        };
        let layer = cache.layer().ttl(HOUR).entity(ITEM, "id");
        let app = Router::new()
            .route("/{id}/{size}", get(body))
            .route("/in/{id}", get(translated))
            .layer(layer);
        Self { cache, app }
    }

    async fn get(&self, id: u64, size: usize) -> Answer {
        let answer = fetch(&self.app, &format!("/{id}/{size}")).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, size));
        answer
    }

    /// Returns how many of them were hits.
    async fn get_all(&self, ids: std::ops::Range<u64>, size: usize) -> usize {
        let mut hits = 0;
        for id in ids {
            hits += usize::from(self.get(id, size).await.is_hit());
        }
        self.cache.settled().await;
        hits
    }
}

async fn number(sql: &Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

async fn text(sql: &Client, query: &str) -> String {
    let row = sql.query_one(query, &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

async fn entries(sql: &Client) -> i64 {
    number(sql, "SELECT count(*) FROM pgcache.entry").await
}

/// Of each partition, with those that have none.
async fn entries_by_partition(sql: &Client) -> Vec<i64> {
    let query = "SELECT (SELECT count(*) FROM pgcache.entry e WHERE e.tableoid = i.inhrelid) FROM pg_inherits i
                  WHERE i.inhparent = 'pgcache.entry'::regclass ORDER BY i.inhrelid";
    let rows = sql.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
