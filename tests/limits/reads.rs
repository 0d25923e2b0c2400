//! Questions to the database that has no answers.

use std::future::ready;

use axum::routing::get as getting;
use tower_pgcache::{CacheScope, DependsOn};

use super::*;

/// How many lookups may wait, and how many leave the queue with the first statement.
const MOST: usize = 8192;

#[tokio::test]
async fn beyond_so_many_lookups_that_wait_the_handler_is_asked() {
    let (server, database) = server().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .lookup_connections(1)
        .lease_wait(Duration::ZERO)
        .memory(0)
        .cleanup_interval(Duration::ZERO)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let app = app(getting(|| ready("x")), cache.layer().ttl(MINUTE));
    get(&app, "/first").await;
    settled(&cache).await;

    server.pause().unwrap();
    let surplus = 10;
    let paths = (0..MOST + 64 + surplus).map(|n| format!("/{n}"));
    let mut lookups = Waiting::begin(&app, "GET", paths);
    let mut answers = lookups.some(surplus).await;
    // the others wait still
    tokio::time::sleep(SHORT).await;
    answers.extend(lookups.more());
    assert!(answers.iter().all(|answer| answer.cache_status() == BYPASS));
    assert!((surplus..surplus + 65).contains(&answers.len()));

    server.resume().unwrap();
    let answers = lookups.end().await;
    assert!(answers.iter().all(|answer| answer.text() == "x"));
    settled(&cache).await;
    until(HANG, "hits", async || get(&app, "/first").await.is_hit()).await;
}

#[tokio::test]
async fn a_feed_that_hangs_holds_one_connection() {
    let database = test_support::database().await;
    let pool = database.pool(4);
    let cache = PgCache::builder(pool.clone())
        .cleanup_interval(Duration::ZERO)
        .build()
        .unwrap();
    let app = app(getting(|| ready("x")), cache.layer().ttl(MINUTE));
    until(HANG, "a hit", async || get(&app, "/").await.is_hit()).await;
    settled(&cache).await;
    let admin = database.connect().await;
    admin
        .batch_execute("BEGIN; LOCK TABLE pgcache.epoch IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    // fewer failures in a row than make the cache give up asking, again and again
    for _ in 0..4 {
        assert_eq!(get(&app, "/").await.cache_status(), BYPASS);
    }
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let waiting: i64 = admin.query_one(waiting, &[]).await.unwrap().get(0);
    assert_eq!(waiting, 1);
    admin.batch_execute("COMMIT").await.unwrap();
    until(HANG, "a hit", async || get(&app, "/").await.is_hit()).await;
}

#[tokio::test]
async fn an_answer_depends_on_64_things_at_most() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .build()
        .unwrap();
    let depends = async |scope: CacheScope, uri: http::Uri| {
        let n: u64 = uri.path()[1..].parse().unwrap();
        for entity in 0..n - 1 {
            scope.depends_on(THINGS.entity(entity));
            scope.depends_on(THINGS.entity(entity));
        }
        (DependsOn(OTHERS), "x")
    };
    let app = app(getting(depends), cache.layer().ttl(MINUTE));
    assert!(get(&app, "/64").await.is_stored());
    let many = get(&app, "/65").await;
    let expected = "fwd=uri-miss; fwd-status=200; detail=too-many-dependencies";
    assert_eq!(many.cache_status(), expected);
    settled(&cache).await;
    assert!(get(&app, "/64").await.is_hit());
}
