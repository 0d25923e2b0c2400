//! Fills that nobody waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::routing::get as getting;
use tokio::sync::Semaphore;

use super::*;

const MOST: usize = 256;
const SURPLUS: usize = 20;

/// A handler that answers at once, until it does not.
#[derive(Clone)]
struct Slow {
    hangs: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    go_on: Arc<Semaphore>,
}

impl Slow {
    fn new() -> Self {
        Self {
            hangs: Arc::default(),
            calls: Arc::default(),
            go_on: Arc::new(Semaphore::new(0)),
        }
    }

    fn handler(&self, says: &'static str) -> MethodRouter {
        let Self {
            hangs,
            calls,
            go_on,
        } = self.clone();
        getting(move || {
            let (hangs, calls, go_on) = (hangs.clone(), calls.clone(), go_on.clone());
            async move {
                if hangs.load(Ordering::SeqCst) {
                    calls.fetch_add(1, Ordering::SeqCst);
                    let _permit = go_on.acquire().await.unwrap();
                    return ([("cache-control", "max-age=60")], "new");
                }
                ([("cache-control", says)], "old")
            }
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// All are stored, and have expired.
async fn expired(app: &Router, cache: &PgCache) {
    for n in 0..MOST + SURPLUS {
        assert!(get(app, &format!("/{n}")).await.is_stored());
    }
    settled(cache).await;
}

#[tokio::test]
async fn so_many_answers_are_refreshed_at_once_and_the_others_served_as_they_are() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(8))
        .lookup_deadline(HANG)
        .lease_life(HANG)
        .build()
        .unwrap();
    let slow = Slow::new();
    let says = "max-age=1, stale-while-revalidate=600";
    let app = app(slow.handler(says), cache.layer());
    expired(&app, &cache).await;
    slow.hangs.store(true, Ordering::SeqCst);
    let stale = async |n: usize| {
        let path = format!("/{n}");
        until(HANG, "a stale answer", async || {
            let answer = get(&app, &path).await;
            assert!(answer.is_hit() && answer.text() == "old");
            answer.cache_status().starts_with("hit; ttl=-")
        })
        .await;
    };
    for n in 0..MOST + SURPLUS {
        stale(n).await;
    }
    until(HANG, "the refreshes", async || slow.calls() == MOST).await;
    for n in 0..MOST + SURPLUS {
        stale(n).await;
    }
    assert_eq!(slow.calls(), MOST);
    slow.go_on.add_permits(Semaphore::MAX_PERMITS);
    settled(&cache).await;
    let (refreshed, last) = (get(&app, "/0").await, format!("/{}", MOST + SURPLUS - 1));
    assert_eq!(refreshed.text(), "new");
    // there is room for this one again
    until(HANG, "a refresh", async || {
        get(&app, &last).await.text() == "new"
    })
    .await;
}

#[tokio::test]
async fn of_the_fills_that_take_too_long_so_many_go_on() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(8))
        .lookup_deadline(HANG)
        .build()
        .unwrap();
    let slow = Slow::new();
    let layer = cache.layer().stale_if_error_after(Duration::from_millis(1));
    let app = app(slow.handler("max-age=1, stale-if-error=600"), layer);
    expired(&app, &cache).await;
    until(HANG, "its expiry", async || {
        let probe = get(&app, &format!("/{}", MOST + SURPLUS - 1)).await;
        !probe.is_hit()
    })
    .await;
    settled(&cache).await;
    slow.hangs.store(true, Ordering::SeqCst);
    let stand_in = "fwd=stale; detail=stand-in";
    for n in 0..MOST + SURPLUS - 1 {
        let answer = get(&app, &format!("/{n}")).await;
        assert_eq!((answer.text(), answer.cache_status()), ("old", stand_in));
    }
    let calls = slow.calls();
    assert_eq!(calls, MOST + SURPLUS - 1, "each was tried");
    slow.go_on.add_permits(Semaphore::MAX_PERMITS);
    settled(&cache).await;
    assert_eq!(cache.stats().stored as usize, MOST + SURPLUS + 1 + MOST);
}
