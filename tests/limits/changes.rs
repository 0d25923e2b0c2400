//! Invalidations that cannot be written.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::routing::get as getting;

use super::*;

/// As many as may be overdue by name, and as many as may write at once.
const MOST: usize = 4096;

#[tokio::test]
async fn beyond_so_many_overdue_changes_everything_is_overdue() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(HANG)
        .change_deadline(SHORT)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let handler = getting(|| ready("x")).post(|| ready("done"));
    let changed = app(handler.clone(), cache.layer().ttl(MINUTE).domain(THINGS));
    let other = app(handler, cache.layer().ttl(MINUTE).domain(OTHERS));
    get(&other, "/other").await;
    settled(&cache).await;

    let admin = database.connect().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
                      AS $$ BEGIN RAISE 'refused'; END $$;
                  CREATE TRIGGER refuse BEFORE INSERT ON pgcache.invalidation
                      FOR EACH STATEMENT EXECUTE FUNCTION refuse()";
    admin.batch_execute(refuse).await.unwrap();
    for n in 0..MOST {
        ask(&changed, "POST", &format!("/{n}")).await;
    }
    assert!(get(&other, "/other").await.is_hit(), "nobody changed it");
    ask(&changed, "POST", "/one-more").await;
    assert_eq!(get(&other, "/other").await.cache_status(), BYPASS);

    admin
        .batch_execute("DROP TRIGGER refuse ON pgcache.invalidation")
        .await
        .unwrap();
    settled(&cache).await;
    // everything was invalidated, and that is over
    assert!(!get(&other, "/other").await.is_hit());
    settled(&cache).await;
    assert!(get(&other, "/other").await.is_hit());
}

#[tokio::test]
async fn beyond_so_many_that_write_at_once_a_change_is_overdue() {
    let (server, database) = server().await;
    let cache = PgCache::builder(database.pool(4))
        .change_deadline(HANG)
        .store_deadline(HANG)
        .cleanup_interval(Duration::ZERO)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let value = Arc::new(AtomicU64::new(0));
    let (read, written) = (value.clone(), value);
    let handler = getting(move || ready(read.load(Ordering::SeqCst).to_string()));
    let handler = handler.post(move || {
        written.fetch_add(1, Ordering::SeqCst);
        ready("done")
    });
    let layer = cache.layer().ttl(MINUTE).domain(THINGS);
    let app = app(handler, layer.invalidates(THINGS));
    get(&app, "/").await;
    settled(&cache).await;

    server.pause().unwrap();
    let surplus = 10;
    let paths = (0..MOST + surplus).map(|n| format!("/{n}"));
    let mut changes = Waiting::begin(&app, "POST", paths);
    let answers = changes.some(surplus).await;
    assert_eq!(answers.len(), surplus, "those that do not wait");
    // the others wait still
    assert!(changes.more().is_empty());
    assert_eq!(get(&app, "/").await.cache_status(), BYPASS);

    server.resume().unwrap();
    let answers = changes.end().await;
    assert!(answers.iter().all(|answer| answer.text() == "done"));
    settled(&cache).await;
    assert_eq!(get(&app, "/").await.text(), (MOST + surplus).to_string());
}
