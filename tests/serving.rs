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
    let layer = PgCacheLayer::new(database.pool(4)).ttl(MINUTE);
    let cache = layer.cache().clone();
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
    let other = Router::new()
        .route("/a", get(never))
        .layer(PgCache::new(database.pool(2)).layer().ttl(MINUTE));
    assert_eq!(fetch(&other, "/a").await.text(), "call 1");
    let head = send(&other, Request::head("/a").body(Body::empty()).unwrap()).await;
    assert_eq!(
        (head.text(), head.header("content-length")),
        ("", Some("6"))
    );
    assert!(head.is_hit());
}
