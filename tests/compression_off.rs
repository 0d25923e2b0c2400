//! A program without the feature `compression` beside others that have it.
#![cfg(not(feature = "compression"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use test_support::http::get as fetch;
use test_support::logs::{keep_logs, logged};
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
        let query = "SELECT key, snapshot::text, probes, head FROM pgcache.entry WHERE path = $1";
        let row = sql.query_one(query, &[&path]).await.unwrap();
        let checksum = checksum(row.get(0), row.get(1), row.get(2), row.get(3));
        let set =
            "UPDATE pgcache.entry SET body = $2, unpacked = 2000, checksum = $3 WHERE path = $1";
        let set = sql.execute(set, &[&path, &PACKED, &checksum]).await;
        assert_eq!(set.unwrap(), 1);

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

/// Of a row that was stored like this, as the store computes it.
fn checksum(key: &[u8], snapshot: &str, probes: Vec<i64>, head: &[u8]) -> Vec<u8> {
    let mut hash = blake3::Hasher::new();
    let mut part = |part: &[u8]| {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part);
    };
    part(key);
    part(snapshot.as_bytes());
    let probes: Vec<u8> = probes.into_iter().flat_map(i64::to_le_bytes).collect();
    part(&probes);
    part(head);
    part(PACKED);
    hash.update(&2000_i32.to_le_bytes());
    hash.finalize().as_bytes()[..16].to_vec()
}
