//! `stale-if-error`: what a stale answer stands in for, and what it does not.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream;
use http::Request;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_pgcache::{PgCacheLayer, test};

use super::stage::{HOUR, MINUTE, Stage, engine, request, says, shared_cache, with_ttl};

fn tolerant(layer: PgCacheLayer) -> PgCacheLayer {
    with_ttl(layer).stale_if_error(HOUR)
}

async fn expired(
    configure: impl FnOnce(PgCacheLayer) -> PgCacheLayer,
    fields: &'static [(&'static str, &'static str)],
) -> Stage {
    let stage = Stage::new(configure, fields, "one").await;
    stage.get(&[]).await;
    stage.expire().await;
    stage
}

fn broken(first: &'static [&'static str]) -> Response {
    let chunks = first
        .iter()
        .map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())));
    let end = [Err(io::Error::other("gone"))];
    says(200, &[], Body::from_stream(stream::iter(chunks.chain(end))))
}

#[tokio::test]
async fn it_stands_in_for_the_errors_of_a_server() {
    let stage = expired(tolerant, &[]).await;
    for status in [500, 502, 503, 504] {
        stage.origin.now_says(move |_| says(status, &[], "down"));
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "one"));
        assert_eq!(
            answer.cache_status(),
            format!("fwd=stale; fwd-status={status}; detail=stand-in")
        );
    }
    for status in [400, 404, 501] {
        stage.origin.now_says(move |_| says(status, &[], "no"));
        assert_eq!(stage.get(&[]).await.status, status);
    }
    stage.origin.now_says(|_| says(200, &[], "two"));
    assert_eq!(stage.get(&[]).await.text(), "two");
    assert!(stage.get(&[]).await.is_hit());
}

#[tokio::test]
async fn a_slow_body_is_not_held_up_for_the_sake_of_a_stand_in() {
    let stage = expired(tolerant, &[]).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
    let receiver = std::sync::Mutex::new(Some(receiver));
    stage.origin.now_says(move |_| {
        let receiver = receiver.lock().unwrap().take();
        let chunks = stream::unfold(receiver, async |mut r| Some((r.as_mut()?.recv().await?, r)));
        says(200, &[], Body::from_stream(chunks))
    });
    sender.send(Ok(Bytes::from_static(b"tw"))).await.unwrap();
    // the head and the first bytes come, though the origin has not sent the rest
    let response = stage
        .app
        .clone()
        .oneshot(request("GET", "/a", &[]))
        .await
        .unwrap();
    let mut body = response.into_body().into_data_stream();
    assert_eq!(
        futures_util::StreamExt::next(&mut body)
            .await
            .unwrap()
            .unwrap(),
        "tw"
    );
    sender.send(Ok(Bytes::from_static(b"o"))).await.unwrap();
    drop(sender);
    assert_eq!(
        futures_util::StreamExt::next(&mut body)
            .await
            .unwrap()
            .unwrap(),
        "o"
    );
    assert!(futures_util::StreamExt::next(&mut body).await.is_none());
    stage.cache.settled().await;
    assert_eq!(stage.get(&[]).await.text(), "two");
}

#[tokio::test]
async fn it_stands_in_for_a_body_that_breaks_off() {
    let stage = expired(tolerant, &[]).await;
    for first in [&[][..], &["tw"]] {
        stage.origin.now_says(move |_| broken(first));
        assert_eq!(stage.get(&[("range", "bytes=1-")]).await.text(), "ne");
    }
}

#[tokio::test]
async fn it_stands_in_for_an_error_of_the_inner_service() {
    let database = test_support::database().await;
    let cache = engine(&database).await;
    let layer = tolerant(cache.layer());
    let good = ServiceBuilder::new()
        .layer(layer.clone())
        .service(service_fn(async |_: Request<Body>| {
            Ok::<_, Infallible>(says(200, &[], "one"))
        }));
    let bad = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(async |_: Request<Body>| {
            Err::<Response, _>(io::Error::other("refused"))
        }));
    let error = bad.clone().oneshot(request("GET", "/a", &[])).await;
    assert_eq!(error.unwrap_err().to_string(), "refused");
    good.oneshot(request("GET", "/a", &[])).await.unwrap();
    cache.settled().await;
    test::expire(&cache, &"/a".parse().unwrap()).await.unwrap();
    let answer = bad.oneshot(request("GET", "/a", &[])).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_handler_that_does_not_answer_in_time_is_not_waited_for() {
    let stage = expired(|l| tolerant(l).stale_if_error_after(Duration::ZERO), &[]).await;
    stage.origin.now_says(|_| says(200, &[], "two"));
    let mut held = stage.origin.hold();
    let answer = super::stage::ask(&stage.app, "GET", "/a", &[]).await;
    assert_eq!(answer.text(), "one");
    held.arrival().await;
    held.release();
    // what it answers later is stored
    stage.cache.settled().await;
    let answer = stage.get(&[]).await;
    assert_eq!((answer.text(), answer.is_hit()), ("two", true));
}

#[tokio::test]
async fn answers_may_forbid_it_or_ask_for_it() {
    for (directives, stands_in) in [
        ("max-age=60", true),
        ("max-age=60, must-revalidate", false),
        ("max-age=60, proxy-revalidate", false),
        ("s-maxage=60", false),
        ("s-maxage=60, stale-if-error=60", true),
        ("max-age=60, stale-if-error=0", false),
    ] {
        let stage = Stage::saying(tolerant, move |_| {
            says(
                200,
                &[("cache-control", directives), ("etag", "\"1\"")],
                "one",
            )
        })
        .await;
        stage.get(&[]).await;
        stage.expire().await;
        stage.origin.now_says(|_| says(503, &[], "down"));
        let status = stage.get(&[]).await.status.as_u16();
        assert_eq!(status, if stands_in { 200 } else { 503 }, "{directives}");
    }
    // nobody asked for it
    let stage = expired(|l| l.ttl(MINUTE), &[("etag", "\"1\"")]).await;
    stage.origin.now_says(|_| says(503, &[], "down"));
    assert_eq!(stage.get(&[]).await.status, 503);
    // the preset for reverse proxies does
    let stage = expired(shared_cache, &[("cache-control", "max-age=60")]).await;
    stage.origin.now_says(|_| says(503, &[], "down"));
    assert_eq!(stage.get(&[]).await.status, 200);
}

#[tokio::test]
async fn a_panic_of_the_handler_stays_one() {
    for patience in [None, Some(HOUR)] {
        let stage = expired(
            |l| match patience {
                Some(patience) => tolerant(l).stale_if_error_after(patience),
                None => tolerant(l),
            },
            &[],
        )
        .await;
        stage.origin.now_says(|_| panic!("a handler that panics"));
        let app = stage.app.clone();
        let request = tokio::spawn(async move { super::stage::ask(&app, "GET", "/a", &[]).await });
        assert!(request.await.unwrap_err().is_panic());
    }
}

/// It ages while the inner service is asked.
#[tokio::test]
async fn it_is_as_old_as_when_it_goes_out() {
    const TIME: Duration = Duration::from_millis(1500);
    let second = Duration::from_secs(1);
    let slow = |window: Duration| expired(move |layer| with_ttl(layer).stale_if_error(window), &[]);
    let (too_late, in_time) = tokio::join!(slow(second), slow(HOUR));
    for (stage, expected) in [(&too_late, 503), (&in_time, 200)] {
        stage.origin.now_says(|_| {
            // the handler takes its time
            std::thread::sleep(TIME);
            says(503, &[], "down")
        });
        let answer = stage.get(&[]).await;
        assert_eq!(answer.status, expected);
        if expected == 200 {
            let age = answer.header("age").unwrap().parse::<u64>().unwrap();
            assert!(age >= TIME.as_secs(), "{age}");
        }
    }
}
