//! Reads whose question stands in the body: `safe_post` and QUERY.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{any, get, post};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use test_support::http::{Answer, send};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_pgcache::{Domain, PgCache, domain};

const MINUTE: Duration = Duration::from_secs(60);
const PRODUCT: Domain = domain!("product");

struct Stage {
    app: Router,
    cache: PgCache,
    calls: Arc<AtomicU32>,
}

/// Answers with the question and the number of the call.
async fn stage() -> Stage {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let handler = move |question: String| {
        let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
        std::future::ready(format!("{call}: {question}"))
    };
    let app = Router::new()
        .route(
            "/search",
            post(handler.clone()).layer(cache.layer().ttl(MINUTE).domain(PRODUCT).safe_post(100)),
        )
        .route(
            "/query",
            any(handler.clone()).layer(cache.layer().ttl(MINUTE)),
        )
        .route(
            "/outer",
            post(handler).layer(cache.layer().ttl(MINUTE).safe_post(100)),
        )
        .layer(cache.layer().ttl(MINUTE).invalidates(PRODUCT));
    Stage { app, cache, calls }
}

impl Stage {
    async fn ask(&self, method: &str, path: &str, kind: &str, question: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind);
        let answer = send(
            &self.app,
            request.body(Body::from(question.to_owned())).unwrap(),
        )
        .await;
        self.cache.settled().await;
        answer
    }
}

#[tokio::test]
async fn the_body_is_part_of_the_question() {
    let stage = stage().await;
    for (kind, question, expected, hit) in [
        ("text/plain", "a", "1: a", false),
        ("text/plain", "a", "1: a", true),
        ("text/plain", "b", "2: b", false),
        ("text/markdown", "a", "3: a", false),
        ("text/plain", "b", "2: b", true),
        ("text/plain", "", "4: ", false),
        ("text/plain", "", "4: ", true),
    ] {
        let answer = stage.ask("POST", "/search", kind, question).await;
        assert_eq!(
            (answer.text(), answer.is_hit()),
            (expected, hit),
            "{kind} {question}"
        );
    }
}

#[tokio::test]
async fn a_safe_post_invalidates_nothing_but_is_invalidated() {
    let stage = stage().await;
    stage.ask("POST", "/search", "text/plain", "a").await;
    // the outer layer of the same engine says that POST invalidates: the inner one's settings win
    stage.ask("POST", "/search", "text/plain", "b").await;
    stage.ask("POST", "/outer", "text/plain", "c").await;
    assert_eq!(stage.cache.stats().invalidations, 0);
    assert!(
        stage
            .ask("POST", "/search", "text/plain", "a")
            .await
            .is_hit()
    );
    stage.cache.invalidate([PRODUCT]).await.unwrap();
    assert_eq!(
        stage.ask("POST", "/search", "text/plain", "a").await.text(),
        "4: a"
    );
}

#[tokio::test]
async fn query_reads_and_other_methods_on_the_same_uri_are_told_apart() {
    let stage = stage().await;
    assert_eq!(
        stage.ask("QUERY", "/query", "text/plain", "a").await.text(),
        "1: a"
    );
    assert!(
        stage
            .ask("QUERY", "/query", "text/plain", "a")
            .await
            .is_hit()
    );
    assert_eq!(
        stage.ask("GET", "/query", "text/plain", "").await.text(),
        "2: "
    );
    // POST is not safe here: it invalidates the URI, for QUERY too
    assert_eq!(
        stage.ask("POST", "/query", "text/plain", "a").await.text(),
        "3: a"
    );
    assert_eq!(
        stage.ask("QUERY", "/query", "text/plain", "a").await.text(),
        "4: a"
    );
}

#[tokio::test]
async fn a_question_that_is_too_long_or_does_not_say_how_long_passes_through() {
    let stage = stage().await;
    let long = "x".repeat(101);
    for _ in 0..2 {
        let answer = stage.ask("POST", "/search", "text/plain", &long).await;
        assert_eq!(
            answer.cache_status(),
            "fwd=bypass; fwd-status=200; detail=body"
        );
    }
    for _ in 0..2 {
        let chunks =
            futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"a"))]);
        let request = Request::post("/search")
            .body(Body::from_stream(chunks))
            .unwrap();
        let answer = send(&stage.app, request).await;
        assert_eq!(
            answer.cache_status(),
            "fwd=bypass; fwd-status=200; detail=body"
        );
    }
    assert_eq!(stage.calls.load(Ordering::SeqCst), 4);
    assert_eq!(stage.cache.stats().invalidations, 0);
}

/// A body of the application's own.
struct Own(Full<Bytes>);

impl From<Bytes> for Own {
    fn from(bytes: Bytes) -> Self {
        Self(Full::from(bytes))
    }
}

impl http_body::Body for Own {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

#[tokio::test]
async fn bodies_of_other_types_are_made_anew_as_the_route_says() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(2))
        .lookup_deadline(MINUTE)
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let inner = service_fn(|request: Request<Own>| async {
        let question = http_body_util::BodyExt::collect(request.into_body())
            .await?
            .to_bytes();
        Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from(question)))
    });
    let layer = || cache.layer().ttl(MINUTE).safe_post(100);
    let known = layer().rebuild_body::<Own>().layer(inner);
    let unknown = layer().namespace("unknown").layer(inner);
    for (is_known, expected) in [(true, "stored"), (false, "detail=body")] {
        let request = Request::post("/")
            .body(Own(Full::from("question")))
            .unwrap();
        let mut service = if is_known {
            known.clone()
        } else {
            unknown.clone()
        };
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        let status = response.headers()["cache-status"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(status.ends_with(expected), "{status}");
        let body = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(body, "question");
    }
}

#[tokio::test]
async fn the_answer_to_a_post_that_says_what_a_get_would_get_is_stored_for_gets() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .policy(tower_pgcache::Policy::shared_cache())
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let sql = Arc::new(database.connect().await);
    let writer = sql.clone();
    // what others do after the handler has read and before it answers: `x-busy`, commits that change something else; `x-change`, one
    // that changes this
    let handler = move |request: Request<Body>| {
        let writer = writer.clone();
        async move {
            if request.headers().contains_key("x-busy") {
                for _ in 0..100 {
                    writer
                        .query("SELECT pgcache.invalidate('other')", &[])
                        .await
                        .unwrap();
                }
            }
            if request.headers().contains_key("x-change") {
                writer
                    .query("SELECT pgcache.invalidate('product')", &[])
                    .await
                    .unwrap();
            }
            let mut response = Response::new(Body::from(request.method().to_string()));
            for name in ["content-location", "cache-control"] {
                let said = request.headers().get(format!("x-say-{name}"));
                response
                    .headers_mut()
                    .extend(said.map(|v| (name.parse::<http::HeaderName>().unwrap(), v.clone())));
            }
            response
        }
    };
    let app = Router::new()
        .route("/{id}", any(handler))
        .layer(cache.layer().domain(PRODUCT));
    let ask = async |method: &str, uri: &str, fields: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = send(&app, request.body(Body::empty()).unwrap()).await;
        cache.settled().await;
        answer
    };
    let here = ("x-say-content-location", "/1");
    let fresh = ("x-say-cache-control", "max-age=60");
    let post = ask("POST", "/1", &[here, fresh]).await;
    assert_eq!(post.cache_status(), "fwd=method; fwd-status=200; stored");
    assert_eq!(ask("GET", "/1", &[]).await.text(), "POST");
    // the next POST makes room for its own answer, if it has one
    ask("POST", "/1", &[]).await;
    assert_eq!(ask("GET", "/1", &[]).await.text(), "GET");
    for (uri, fields) in [
        ("/2", vec![here, fresh]),
        ("/1", vec![fresh]),
        ("/1", vec![here]),
        ("/1", vec![here, fresh, ("x-change", "1")]),
        ("/1", vec![here, fresh, ("x-busy", "1"), ("x-change", "1")]),
    ] {
        ask("POST", uri, &fields).await;
        let answer = ask("GET", uri, &[]).await;
        assert_eq!(
            answer.text(),
            "GET",
            "{uri} {fields:?}: {}",
            answer.cache_status()
        );
    }
    for busy in ["x-idle", "x-busy"] {
        ask("POST", "/1", &[here, fresh, (busy, "1")]).await;
        assert!(ask("GET", "/1", &[]).await.is_hit(), "{busy}");
    }
    sql.query("SELECT pgcache.invalidate('product')", &[])
        .await
        .unwrap();
    assert_eq!(ask("GET", "/1", &[]).await.text(), "GET");
}

/// To fold the log is to drop what a later change of the same stands for.
#[tokio::test]
async fn an_answer_to_a_post_does_not_become_good_when_the_log_is_folded() {
    let database = test_support::database().await;
    let cache = PgCache::builder(database.pool(4))
        .lookup_deadline(MINUTE)
        .cleanup_interval(Duration::ZERO)
        .policy(tower_pgcache::Policy::shared_cache())
        .build()
        .unwrap();
    cache.ready().await.unwrap();
    let sql = Arc::new(database.connect().await);
    let other = sql.clone();
    // after it has read, somebody else changes the same, and that is folded
    let post = move || async move {
        for statement in [
            "SELECT pgcache.invalidate('product')",
            "SELECT pgcache.fold()",
        ] {
            other.batch_execute(statement).await.unwrap();
        }
        (
            [("content-location", "/1"), ("cache-control", "max-age=60")],
            "POST",
        )
    };
    let layer = cache.layer().domain(PRODUCT).invalidates(PRODUCT);
    let app = Router::new()
        .route("/{id}", get(|| ready("GET")).post(post))
        .layer(layer);
    let post = Request::post("/1").body(Body::empty()).unwrap();
    assert_eq!(send(&app, post).await.text(), "POST");
    cache.settled().await;
    sql.batch_execute("SELECT pgcache.fold()").await.unwrap();
    let get = Request::get("/1").body(Body::empty()).unwrap();
    assert_eq!(send(&app, get).await.text(), "GET");
}
