//! What is stored stays within its bounds, in entries, in bytes, and on the disk; and what goes is what is of least use.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod disk;
mod leases;
mod procedure;
mod useless;
mod uses;

use futures_util::future::join_all;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use test_support::Database;
use test_support::http::{Answer, get as fetch};
use tokio_postgres::Client;
use tower_pgcache::{Domain, PgCache, PgCacheBuilder, domain};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const ITEM: Domain = domain!("item");

/// An instance whose handler answers `/{id}/{size}` with that many bytes.
struct Instance {
    cache: PgCache,
    app: Router,
}

impl Instance {
    async fn new(
        database: &Database,
        configure: impl FnOnce(PgCacheBuilder<PgCache>) -> PgCacheBuilder<PgCache>,
    ) -> Self {
        let builder = PgCache::builder(database.pool(4))
            .lookup_deadline(MINUTE)
            .store_deadline(MINUTE)
            .lease_wait(Duration::ZERO)
            .memory(0)
            .cleanup_interval(Duration::ZERO);
        let cache = configure(builder).build().unwrap();
        cache.ready().await.unwrap();
        Self::with_cache(cache)
    }

    fn with_cache(cache: PgCache) -> Self {
        let body = |Path((_, size)): Path<(u64, usize)>| async move { "x".repeat(size) };
        let app = Router::new()
            .route("/{id}/{size}", get(body))
            .layer(cache.layer().ttl(HOUR).entity(ITEM, "id"));
        Self { cache, app }
    }

    async fn get(&self, id: u64, size: usize) -> Answer {
        let answer = fetch(&self.app, &format!("/{id}/{size}")).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, size));
        answer
    }

    async fn get_all(&self, ids: std::ops::Range<u64>, size: usize) {
        self.get_each(ids.map(|id| (id, size))).await;
    }

    /// 32 at a time, as far as there are that many.
    async fn get_each(&self, answers: impl IntoIterator<Item = (u64, usize)>) {
        let mut answers = answers.into_iter().peekable();
        while answers.peek().is_some() {
            let some = answers.by_ref().take(32);
            join_all(some.map(|(id, size)| self.get(id, size))).await;
        }
        self.cache.settled().await;
    }
}

async fn number(sql: &Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

async fn entries(sql: &Client) -> i64 {
    number(sql, "SELECT count(*) FROM pgcache.entry").await
}

/// As the janitor counts them.
async fn bytes(sql: &Client) -> i64 {
    number(
        sql,
        "SELECT coalesce(sum(pgcache.weight(head, body, path, meta, scopes, variants)), 0)::bigint FROM pgcache.entry",
    )
    .await
}

async fn is_stored(sql: &Client, id: u64) -> bool {
    let query = format!("SELECT count(*) FROM pgcache.entry WHERE path LIKE '/{id}/%'");
    number(sql, &query).await == 1
}
