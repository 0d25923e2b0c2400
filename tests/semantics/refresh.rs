//! `stale-while-revalidate`: the stale answer at once, and one fill behind its back.

use std::time::Duration;

use axum::body::Body;
use http::Request;
use test_support::http::send;
use tower_pgcache::PgCacheLayer;

use super::stage::{HOUR, MINUTE, Stage, says, shared_cache, with_ttl};

fn refreshing(layer: PgCacheLayer) -> PgCacheLayer {
    with_ttl(layer).stale_while_revalidate(HOUR)
}

#[derive(Clone, Debug, PartialEq)]
struct Witness(u32);

#[tokio::test]
async fn the_stale_answer_comes_at_once_and_one_fill_replaces_it() {
    let stage = Stage::new(refreshing, &[], "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage.origin.now_says(|_| says(200, &[], "two"));
    let mut held = stage.origin.hold();
    for n in 0..5 {
        let request = Request::get("/a")
            .header("if-none-match", "\"x\"")
            .header("range", "bytes=0-1")
            .extension(Witness(n))
            .body(Body::empty())
            .unwrap();
        let answer = send(&stage.app, request).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (206, "on"));
        assert!(answer.cache_status().starts_with("hit; ttl=-"));
    }
    held.arrival().await;
    assert_eq!(stage.origin.calls(), 2);
    let asked = stage.origin.last();
    assert_eq!(asked.extensions.get(), Some(&Witness(0)));
    assert!(!asked.headers.contains_key("if-none-match"));
    assert!(!asked.headers.contains_key("range"));
    held.release();
    stage.cache.settled().await;
    let answer = stage.get(&[]).await;
    assert_eq!((answer.text(), answer.is_hit()), ("two", true));
    assert!(answer.cache_status().starts_with("hit; ttl=5"));
    assert_eq!(stage.origin.calls(), 2);
}

/// Where the handler sees preconditions on a miss, it does not see them in the background.
#[tokio::test]
async fn the_answer_itself_may_ask_for_it() {
    let fields = &[("cache-control", "max-age=60, stale-while-revalidate=60")];
    let stage = Stage::new(shared_cache, fields, "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage
        .origin
        .now_says(|_| says(200, &[("cache-control", "max-age=60")], "two"));
    let answer = stage
        .get(&[("range", "bytes=0-0"), ("if-modified-since", "x")])
        .await;
    assert_eq!(answer.text(), "o");
    assert_eq!(stage.origin.was_asked("range"), None);
    assert_eq!(stage.origin.was_asked("if-modified-since"), None);
    assert_eq!(stage.get(&[]).await.text(), "two");
}

#[tokio::test]
async fn a_304_refreshes_as_well() {
    let stage = Stage::new(refreshing, &[("etag", "\"1\"")], "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage
        .origin
        .now_says(|_| says(304, &[("etag", "\"1\"")], ""));
    assert!(stage.get(&[]).await.cache_status().contains("ttl=-"));
    assert_eq!(stage.origin.was_asked("if-none-match").unwrap(), "\"1\"");
    assert!(!stage.get(&[]).await.cache_status().contains("ttl=-"));
    assert_eq!(stage.origin.calls(), 2);
}

#[tokio::test]
async fn a_refresh_that_fails_keeps_what_there_is_and_is_tried_again() {
    let stage = Stage::new(refreshing, &[], "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    for (calls, status) in [(2, 503), (3, 500), (4, 404)] {
        stage.origin.now_says(move |_| says(status, &[], "down"));
        assert_eq!(stage.get(&[]).await.text(), "one");
        assert_eq!(stage.origin.calls(), calls);
    }
    stage.origin.now_says(|_| panic!("a handler that panics"));
    assert_eq!(stage.get(&[]).await.text(), "one");
    stage.origin.now_says(|_| says(200, &[], "two"));
    assert_eq!(stage.get(&[]).await.text(), "one");
    assert_eq!(stage.get(&[]).await.text(), "two");
}

#[tokio::test]
async fn answers_may_forbid_it_and_the_window_ends() {
    for forbids in [
        "must-revalidate",
        "proxy-revalidate",
        "stale-while-revalidate=0",
    ] {
        let stage = Stage::saying(refreshing, move |_| {
            says(200, &[("cache-control", forbids)], "one")
        })
        .await;
        stage.get(&[]).await;
        stage.expire().await;
        let answer = stage.get(&[]).await;
        assert!(!answer.is_hit(), "{forbids}");
    }
    let window = Duration::from_nanos(1);
    let stage = Stage::new(
        |l| l.ttl(MINUTE).stale_while_revalidate(window),
        &[("etag", "\"1\"")],
        "one",
    )
    .await;
    stage.get(&[]).await;
    stage.expire().await;
    assert!(!stage.get(&[]).await.is_hit());
}
