//! Directives in requests, where a route obeys them, and what `Cache-Status` says of each outcome.

use tower_pgcache::PgCacheLayer;

use super::stage::{Fields, Stage, is_in_memory, says, with_ttl};

fn obeying(layer: PgCacheLayer) -> PgCacheLayer {
    with_ttl(layer).request_directives(true)
}

const NO_CACHE: Fields<'static> = &[("cache-control", "no-cache")];
const ONLY_IF_CACHED: Fields<'static> = &[("cache-control", "only-if-cached")];

#[tokio::test]
async fn they_are_ignored_unless_the_route_says_otherwise() {
    let stage = Stage::new(with_ttl, &[], "one").await;
    assert_eq!(stage.get(ONLY_IF_CACHED).await.status, 200);
    for directive in ["no-cache", "no-store", "max-age=0", "min-fresh=99"] {
        let answer = stage.get(&[("cache-control", directive)]).await;
        assert!(answer.is_hit(), "{directive}");
    }
    assert!(stage.get(&[("pragma", "no-cache")]).await.is_hit());
    assert_eq!(stage.origin.calls(), 1);
}

#[tokio::test]
async fn a_request_may_want_another_answer_than_the_stored_one() {
    if is_in_memory() {
        return; // it changes the table, or counts on it alone
    }
    let stage = Stage::new(obeying, &[], "one").await;
    stage.get(&[]).await;
    let aged = "UPDATE pgcache.entry SET born_at = born_at - interval '10 s'";
    for (fields, hit) in [
        (&[("cache-control", "max-age=11")][..], true),
        (&[("cache-control", "max-age=9")], false),
        (&[("cache-control", "min-fresh=30")], true),
        (&[("cache-control", "min-fresh=61")], false),
        (NO_CACHE, false),
        (&[("pragma", "no-cache")], false),
        (&[("pragma", "no-cache"), ("cache-control", "x")], true),
        (&[("cache-control", "no-store")], true),
    ] {
        stage.sql().await.batch_execute(aged).await.unwrap();
        let answer = stage.get(fields).await;
        assert_eq!(answer.is_hit(), hit, "{fields:?}");
        if !hit {
            assert_eq!(answer.cache_status(), "fwd=request; fwd-status=200; stored");
        }
    }
}

#[tokio::test]
async fn a_request_may_take_a_stale_answer() {
    if is_in_memory() {
        return; // it changes the table, or counts on it alone
    }
    let stage = Stage::new(obeying, &[("etag", "\"1\"")], "one").await;
    stage.get(&[]).await;
    let stale = "UPDATE pgcache.entry SET expires_at = clock_timestamp() - interval '100 s'";
    stage.sql().await.batch_execute(stale).await.unwrap();
    let answer = stage.get(&[("cache-control", "max-stale=1000")]).await;
    assert!(answer.cache_status().starts_with("hit; ttl=-1"));
    assert!(stage.get(&[("cache-control", "max-stale")]).await.is_hit());
    assert!(
        !stage
            .get(&[("cache-control", "max-stale=9")])
            .await
            .is_hit()
    );
}

#[tokio::test]
async fn a_request_may_keep_its_answer_from_being_stored() {
    let stage = Stage::new(obeying, &[], "one").await;
    for _ in 0..2 {
        let answer = stage.get(&[("cache-control", "no-store")]).await;
        assert_eq!(
            answer.cache_status(),
            "fwd=uri-miss; fwd-status=200; detail=request-no-store"
        );
    }
}

#[tokio::test]
async fn a_request_may_want_a_stored_answer_or_none() {
    let stage = Stage::new(obeying, &[], "one").await;
    let answer = stage.get(ONLY_IF_CACHED).await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.cache_status(), "detail=only-if-cached");
    stage.get(&[]).await;
    assert!(stage.get(ONLY_IF_CACHED).await.is_hit());
    stage.expire().await;
    assert_eq!(stage.get(ONLY_IF_CACHED).await.status, 504);
    stage.get(&[]).await;
    stage.commit().await;
    assert_eq!(stage.get(ONLY_IF_CACHED).await.status, 504);
    assert_eq!(stage.origin.calls(), 2);
}

#[tokio::test]
async fn every_outcome_is_explained() {
    let stage = Stage::new(with_ttl, &[("etag", "\"1\"")], "one").await;
    let expect = async |method, fields, status: &str| {
        let answer = stage.ask(method, "/a", fields).await;
        assert_eq!(answer.cache_status(), status);
    };
    expect("HEAD", &[], "fwd=uri-miss; fwd-status=200; detail=head").await;
    expect("GET", &[], "fwd=uri-miss; fwd-status=200; stored").await;
    assert!(stage.get(&[]).await.cache_status().starts_with("hit; ttl="));
    expect("POST", &[], "fwd=method; fwd-status=200").await;
    expect("GET", &[], "fwd=stale; fwd-status=200; stored").await;
    expect(
        "GET",
        &[("authorization", "x")],
        "fwd=bypass; fwd-status=200; detail=credentials",
    )
    .await;
    stage.expire().await;
    stage.origin.now_says(|_| says(404, &[], "none"));
    expect("GET", &[], "fwd=stale; fwd-status=404; detail=no-freshness").await;
    // further caches on the way are listed before this one
    stage
        .origin
        .now_says(|_| says(200, &[("cache-status", "inner; hit")], "x"));
    let answer = stage.ask("GET", "/b", &[]).await;
    let lines: Vec<_> = answer.headers.get_all("cache-status").iter().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], "inner; hit");
}
