//! What the direct peers answered when it was measured, and what comes out here: one test for each probe, in the
//! order of the table.
//!
//! | probe | tower-http-cache 0.6.1 | http-cache-tower-server 0.2.6 | axum-response-cache 0.5 |
//! |---|---|---|---|
//! | `Router::layer` on axum 0.8 | does not compile | only behind `HandleErrorLayer` | ok |
//! | HEAD, then GET | GET gets an empty body | ok | ok |
//! | `max-age=1` honoured | no | yes | no |
//! | `Vary` | wrong variant | wrong with `public` only | wrong variant |
//! | two `Host`s | leaks | leaks with `public` only | leaks |
//! | `Authorization` A, then B | A's body to B | ok | A's body to B |
//! | `Set-Cookie` replayed | yes | no | yes |
//! | POST, two bodies | ok | first answer for both | first answer for both |
//! | 304, `Age`, `Range`, PUT invalidates | none | none | none |
//! | SSE with `no-store` | hangs | hangs | hangs |

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::HeaderMap;
use http_body_util::{BodyExt, StreamBody};
use test_support::Database;
use test_support::http::{Answer, send};
use tower_pgcache::{PgCache, PgCacheLayer};

struct Probe {
    app: Router,
    cache: PgCache,
    database: Database,
}

impl Probe {
    /// The default configuration with a lifetime: all that the peers need as well.
    async fn new<F, R>(handler: F) -> Self
    where
        F: Fn(HeaderMap, Bytes) -> R + Clone + Send + Sync + 'static,
        R: IntoResponse + 'static,
    {
        let database = test_support::database().await;
        let builder =
            PgCacheLayer::builder(database.pool(4)).lookup_deadline(Duration::from_secs(60));
        let layer = builder.build().unwrap().ttl(Duration::from_secs(60));
        let cache = layer.cache().clone();
        cache.ready().await.unwrap();
        let handler =
            move |headers, body| std::future::ready(handler(headers, body).into_response());
        let app = Router::new().route("/", any(handler)).layer(layer);
        Self {
            app,
            cache,
            database,
        }
    }

    async fn ask(&self, method: &str, fields: &[(&str, &str)], body: &'static str) -> Answer {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = send(&self.app, request.body(Body::from(body)).unwrap()).await;
        self.cache.settled().await;
        answer
    }

    async fn get(&self, fields: &[(&str, &str)]) -> Answer {
        self.ask("GET", fields, "").await
    }
}

/// What the request says in a field.
fn echo(field: &'static str) -> impl Fn(HeaderMap, Bytes) -> String + Clone {
    move |headers, _| {
        let value = headers.get(field).map(|v| v.to_str().unwrap().to_owned());
        value.unwrap_or_default()
    }
}

#[tokio::test]
async fn router_layer_on_axum_0_8() {
    let probe = Probe::new(|_, _| "x").await;
    assert!(!probe.get(&[]).await.is_hit());
    assert!(probe.get(&[]).await.is_hit());
}

#[tokio::test]
async fn head_then_get() {
    let probe = Probe::new(|_, _| "the body").await;
    assert_eq!(probe.ask("HEAD", &[], "").await.text(), "");
    assert_eq!(probe.get(&[]).await.text(), "the body");
    let head = probe.ask("HEAD", &[], "").await;
    assert!(head.is_hit());
    assert_eq!(
        (head.text(), head.header("content-length")),
        ("", Some("8"))
    );
}

/// Without a `ttl` of the route, which goes before what is said to browsers.
#[tokio::test]
async fn max_age_of_1_is_honoured() {
    let database = test_support::database().await;
    let layer = PgCacheLayer::new(database.pool(4));
    let cache = layer.cache().clone();
    cache.ready().await.unwrap();
    let handler = any(|| async { ([("cache-control", "max-age=1")], "x") });
    let app = Router::new().route("/", handler).layer(layer);
    let probe = Probe {
        app,
        cache,
        database,
    };
    assert!(probe.get(&[]).await.is_stored());
    let sql = "SELECT expires_at - born_at <= interval '1 s' FROM pgcache.entry";
    let row = probe.database.connect().await.query_one(sql, &[]).await;
    assert!(row.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn vary() {
    let echo = echo("accept-language");
    let probe = Probe::new(move |h, b| ([("vary", "accept-language")], echo(h, b))).await;
    for hit in [false, true] {
        for language in ["de", "en"] {
            let answer = probe.get(&[("accept-language", language)]).await;
            assert_eq!((answer.text(), answer.is_hit()), (language, hit));
        }
    }
}

#[tokio::test]
async fn two_hosts() {
    let probe = Probe::new(echo("host")).await;
    for host in ["one.test", "two.test"] {
        assert_eq!(probe.get(&[("host", host)]).await.text(), host);
    }
}

#[tokio::test]
async fn authorization_a_then_b() {
    let probe = Probe::new(echo("authorization")).await;
    for who in ["A", "B", ""] {
        let answer = probe.get(&[("authorization", who)]).await;
        assert_eq!(answer.text(), who);
    }
    assert_eq!(probe.get(&[]).await.text(), "");
}

#[tokio::test]
async fn set_cookie_is_not_replayed() {
    let probe = Probe::new(|_, _| ([("set-cookie", "session=1")], "x")).await;
    for _ in 0..2 {
        assert!(!probe.get(&[]).await.is_hit());
    }
}

#[tokio::test]
async fn post_two_bodies() {
    let probe = Probe::new(|_, body: Bytes| body).await;
    for body in ["one", "two"] {
        assert_eq!(probe.ask("POST", &[], body).await.text(), body);
    }
}

#[tokio::test]
async fn not_modified_age_and_range() {
    let probe = Probe::new(|_, _| "0123456789").await;
    let first = probe.get(&[]).await;
    let etag = first.header("etag").unwrap();
    let answer = probe.get(&[("if-none-match", etag)]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (304, ""));
    assert_eq!(answer.header("age"), Some("0"));
    let answer = probe.get(&[("range", "bytes=2-4")]).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (206, "234"));
}

#[tokio::test]
async fn put_invalidates() {
    let probe = Probe::new(|_, _| "x").await;
    probe.get(&[]).await;
    assert!(probe.get(&[]).await.is_hit());
    probe.ask("PUT", &[], "y").await;
    assert!(!probe.get(&[]).await.is_hit());
}

#[tokio::test]
async fn events_with_no_store_pass_at_once() {
    let first =
        || async { Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("data: 1\n\n"))) };
    let probe = Probe::new(move |_, _| {
        use futures_util::StreamExt;
        let events = futures_util::stream::once(first()).chain(futures_util::stream::pending());
        Response::builder()
            .header("content-type", "text/event-stream")
            .header("cache-control", "no-store")
            .body(Body::new(StreamBody::new(events)))
            .unwrap()
    })
    .await;
    let request = Request::get("/").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(probe.app.clone(), request)
        .await
        .unwrap();
    let mut body = response.into_body();
    let event = body.frame().await.unwrap().unwrap();
    assert_eq!(event.into_data().unwrap(), "data: 1\n\n");
}
