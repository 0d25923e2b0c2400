//! What a commit has invalidated: it may be revalidated, and comes back only with the handler's word for it.

use axum::response::Response;
use http::request::Parts;
use tower_pgcache::{DependsOn, Domain, domain};

use super::stage::{HOUR, LONG_AGO, Stage, says, with_ttl};

/// 304 where it is asked about `"1"`.
fn knows_its_tag(request: &Parts) -> Response {
    match request.headers.get("if-none-match") {
        Some(tag) if tag == "\"1\"" => says(304, &[("etag", "\"1\"")], ""),
        _ => says(200, &[("etag", "\"1\"")], "one"),
    }
}

#[tokio::test]
async fn a_304_makes_it_a_hit_until_the_next_commit() {
    let stage = Stage::saying(with_ttl, knows_its_tag).await;
    stage.get(&[]).await;
    for _ in 0..2 {
        assert!(stage.get(&[]).await.is_hit());
        stage.commit().await;
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "one"));
        assert_eq!(
            answer.cache_status(),
            "fwd=stale; fwd-status=304; stored",
            "the handler was asked"
        );
        assert_eq!(stage.origin.was_asked("if-none-match").unwrap(), "\"1\"");
    }
    assert!(stage.get(&[]).await.is_hit());
}

#[tokio::test]
async fn a_commit_between_lookup_and_304_leaves_it_invalid() {
    let stage = Stage::saying(with_ttl, knows_its_tag).await;
    stage.get(&[]).await;
    stage.expire().await;
    let mut held = stage.origin.hold();
    let (answer, ()) = tokio::join!(stage.get(&[]), async {
        held.arrival().await;
        stage.commit().await;
        held.release();
    });
    assert_eq!(answer.text(), "one", "it arrived before the commit");
    let calls = stage.origin.calls();
    assert!(!stage.get(&[]).await.is_hit());
    assert_eq!(stage.origin.calls(), calls + 1);
    assert!(stage.get(&[]).await.is_hit());
}

/// The second that `Last-Modified` names may have had a change before and one after the stored answer.
#[tokio::test]
async fn a_date_alone_does_not_confirm_it() {
    let stage = Stage::new(with_ttl, &[("last-modified", LONG_AGO)], "one").await;
    stage.get(&[]).await;
    stage
        .origin
        .now_says(|request| match request.headers.get("if-modified-since") {
            Some(_) => says(304, &[("last-modified", LONG_AGO)], ""),
            None => says(200, &[("last-modified", LONG_AGO)], "two"),
        });
    stage.commit().await;
    assert_eq!(stage.get(&[]).await.text(), "two");
    // what has merely expired may be asked about by its date
    stage.expire().await;
    let answer = stage.get(&[]).await;
    assert_eq!(answer.text(), "two");
    assert_eq!(answer.cache_status(), "fwd=stale; fwd-status=304; stored");
}

/// A handler that answers 304 early has not read what the stored body was made from.
#[tokio::test]
async fn a_304_keeps_the_dependencies_of_the_body() {
    const READ_AT_RUN_TIME: Domain = domain!("read-at-run-time");
    let stage = Stage::saying(with_ttl, |request| {
        let mut answer = knows_its_tag(request);
        if answer.status() == 200 {
            DependsOn(READ_AT_RUN_TIME).apply(answer.extensions_mut());
        }
        answer
    })
    .await;
    stage.get(&[]).await;
    stage.expire().await;
    stage.get(&[]).await;
    assert!(stage.get(&[]).await.is_hit());
    stage.cache.invalidate([READ_AT_RUN_TIME]).await.unwrap();
    assert!(!stage.get(&[]).await.is_hit());
    assert!(stage.get(&[]).await.is_hit());
}

#[tokio::test]
async fn it_is_served_neither_as_stale_nor_for_an_error() {
    let stage = Stage::new(
        |l| {
            with_ttl(l)
                .stale_while_revalidate(HOUR)
                .stale_if_error(HOUR)
                .request_directives(true)
        },
        &[],
        "one",
    )
    .await;
    stage.get(&[]).await;
    stage.commit().await;
    stage.origin.now_says(|_| says(503, &[], "down"));
    for fields in [&[][..], &[("cache-control", "max-stale")]] {
        assert_eq!(stage.get(fields).await.status, 503);
    }
    stage.expire().await;
    assert_eq!(stage.get(&[]).await.status, 503);
}

#[tokio::test]
async fn a_route_may_ask_for_it_while_it_is_refreshed() {
    let stage = Stage::new(
        |l| with_ttl(l).serve_invalidated_while_refreshing(HOUR),
        &[],
        "one",
    )
    .await;
    stage.get(&[]).await;
    stage.commit().await;
    stage.origin.now_says(|_| says(200, &[], "two"));
    let mut held = stage.origin.hold();
    let (answers, ()) = tokio::join!(
        async { (stage.get(&[]).await, stage.get(&[]).await) },
        async {
            held.arrival().await;
            held.release();
        }
    );
    assert_eq!(answers.0.text(), "one");
    stage.cache.settled().await;
    let answer = stage.get(&[]).await;
    assert_eq!((answer.text(), answer.is_hit()), ("two", true));
    assert_eq!(stage.origin.calls(), 2);
}

/// The route asked for invalidated answers, not for expired ones, nor for those that forbid it.
#[tokio::test]
async fn such_a_route_does_not_serve_what_has_expired_besides() {
    let stage = Stage::new(
        |l| with_ttl(l).serve_invalidated_while_refreshing(HOUR),
        &[("etag", "\"1\"")],
        "one",
    )
    .await;
    stage.get(&[]).await;
    stage.commit().await;
    stage.expire().await;
    stage.origin.now_says(|_| says(200, &[], "two"));
    assert_eq!(stage.get(&[]).await.text(), "two");
}

/// What replaces nothing does not begin the window anew.
#[tokio::test]
async fn such_a_route_has_a_window_that_an_answer_that_is_not_stored_does_not_renew() {
    let window = std::time::Duration::from_nanos(1);
    let stage = Stage::new(
        |l| with_ttl(l).serve_invalidated_while_refreshing(window),
        &[],
        "one",
    )
    .await;
    stage.get(&[]).await;
    stage.commit().await;
    stage
        .origin
        .now_says(|_| says(404, &[("cache-control", "no-store")], "gone"));
    assert_eq!(stage.get(&[]).await.text(), "one", "just noticed");
    for _ in 0..2 {
        assert_eq!(stage.get(&[]).await.status, 404);
    }
}
