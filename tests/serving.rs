//! What a client gets: hits, misses, and what is passed through untouched.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, StatusCode};
use test_support::http::{get as fetch, send};
use tower_pgcache::{PgCache, PgCacheLayer};

const MINUTE: Duration = Duration::from_secs(60);

/// A handler that says how often it was called.
fn counter() -> (
    Arc<AtomicU32>,
    impl Fn() -> std::future::Ready<String> + Clone,
) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let handler = move || {
        std::future::ready(format!(
            "call {}",
            counted.fetch_add(1, Ordering::SeqCst) + 1
        ))
    };
    (calls, handler)
}

#[tokio::test]
async fn the_second_request_is_answered_from_the_store() {
    let database = test_support::database().await;
    let builder = PgCacheLayer::builder(database.pool(4)).lookup_deadline(MINUTE);
    let layer = builder.build().unwrap().ttl(MINUTE);
    let cache = layer.cache().clone();
    cache.ready().await.unwrap(); // a first lookup that also creates the schema may be late
    let (calls, handler) = counter();
    let app = Router::new().route("/a", get(handler)).layer(layer);

    let first = fetch(&app, "/a").await;
    assert_eq!(first.text(), "call 1");
    assert_eq!(first.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
    cache.settled().await;

    let second = fetch(&app, "/a").await;
    assert_eq!(second.text(), "call 1");
    assert_eq!(second.status, StatusCode::OK);
    assert_eq!(
        second.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(second.header("age"), Some("0"));
    assert_eq!(second.header("content-length"), Some("6"));
    assert!(second.is_hit());
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    // another instance on the same database
    let (_, never) = counter();
    let other_cache = PgCache::builder(database.pool(2))
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    other_cache.ready().await.unwrap();
    let other = Router::new()
        .route("/a", get(never))
        .layer(other_cache.layer().ttl(MINUTE));
    assert_eq!(fetch(&other, "/a").await.text(), "call 1");
    let head = send(&other, Request::head("/a").body(Body::empty()).unwrap()).await;
    assert_eq!(
        (head.text(), head.header("content-length")),
        ("", Some("6"))
    );
    assert!(head.is_hit());
}

#[tokio::test]
async fn without_settings_only_what_says_so_itself_is_stored() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(2))
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let app = Router::new()
        .route(
            "/fresh",
            get(|| async { ([("cache-control", "max-age=60")], "a") }),
        )
        .route("/silent", get(|| async { "b" }))
        .layer(cache.layer());
    for (uri, stored) in [("/fresh", true), ("/silent", false)] {
        fetch(&app, uri).await;
        cache.settled().await;
        assert_eq!(fetch(&app, uri).await.is_hit(), stored, "{uri}");
    }
}

#[tokio::test]
async fn a_cache_with_a_pool_of_its_own_shares_the_entries() {
    let database = test_support::database().await;
    let own = PgCache::connect(&database.url()).await.unwrap();
    let (calls, handler) = counter();
    let app = |cache: &PgCache| {
        Router::new()
            .route("/", get(handler.clone()))
            .layer(cache.layer().ttl(MINUTE))
    };
    fetch(&app(&own), "/").await;
    own.settled().await;
    let shared = PgCache::builder(database.pool(2))
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    shared.ready().await.unwrap();
    assert!(fetch(&app(&shared), "/").await.is_hit());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(
        PgCache::connect("postgres://no connection string")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn cleaning_up_removes_what_has_expired_and_nothing_else() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(2))
        .lookup_deadline(MINUTE)
        .cleanup_interval(Duration::ZERO)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let (_, handler) = counter();
    let app = Router::new()
        .route("/{id}", get(handler))
        .layer(cache.layer().ttl(MINUTE));
    for id in 0..50 {
        fetch(&app, &format!("/{id}")).await;
    }
    cache.settled().await;
    let sql = database.connect().await;
    sql.batch_execute("UPDATE pgcache.entry SET keep_until = now() WHERE path < '/3'")
        .await
        .unwrap();
    let expired: i64 = sql
        .query_one("SELECT count(*) FROM pgcache.entry WHERE path < '/3'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(
        cache.cleanup().await.unwrap().entries,
        expired.unsigned_abs()
    );
    assert!(fetch(&app, "/40").await.is_hit());
    // after clear() nothing can become valid again
    cache.clear().await.unwrap();
    let left = 50 - expired.unsigned_abs();
    assert_eq!(cache.cleanup().await.unwrap().entries, left);
    assert_eq!(cache.cleanup().await.unwrap().entries, 0);
}
