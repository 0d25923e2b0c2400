//! A program without the feature `compression` beside others that have it.
#![cfg(not(feature = "compression"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use test_support::http::get as fetch;
use test_support::logs::{keep_logs, logged};
use test_support::seal;
use tower_pgcache::PgCache;

const MINUTE: Duration = Duration::from_secs(60);

/// What zstd makes of 2,000 times `a`.
const PACKED: &[u8] = b"\x28\xb5\x2f\xfd\x00\x48\x4d\x00\x00\x10\x61\x61\x01\x00\xcb\xff\x00\x0b";

#[tokio::test]
async fn what_it_cannot_read_is_a_miss_and_is_replaced() {
    keep_logs();
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .memory(0)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let handler = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready("a".repeat(2000))
    };
    let app = Router::new()
        .fallback(handler)
        .layer(cache.layer().ttl(MINUTE));
    let sql = database.connect().await;
    for path in ["/a", "/b"] {
        fetch(&app, path).await;
        cache.settled().await;
        let set = "UPDATE pgcache.entry SET body = $2, unpacked = 2000 WHERE path = $1";
        let set = sql.execute(set, &[&path, &PACKED]).await;
        assert_eq!(set.unwrap(), 1);
        seal(&sql, path).await;

        let before = calls.load(Ordering::SeqCst);
        let answer = fetch(&app, path).await;
        assert!(!answer.is_hit());
        assert_eq!(answer.text(), "a".repeat(2000));
        assert_eq!(calls.load(Ordering::SeqCst), before + 1);
        cache.settled().await;
        let again = fetch(&app, path).await;
        assert!(again.is_hit());
        assert_eq!(again.text(), "a".repeat(2000));
    }
    let log = logged();
    assert_eq!(
        log.matches("without the feature `compression`").count(),
        1,
        "{log}"
    );
    assert!(!log.contains("damaged"), "{log}");
}
